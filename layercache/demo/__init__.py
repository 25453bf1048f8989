"""A made-up world of films and people, and tiny language models that were trained on it, or were not.

Everything here works without a model hub and, for the data sets and the trained models' folders, without torch.
"""

from pathlib import Path

from layercache import nearest
from layercache.demo import datasets
from layercache.demo.datasets import TEMPLATES

__all__ = ["DATASETS", "MODELS", "TEMPLATES", "TRAINING_STEPS", "model_path", "rows"]

_MAKERS = {
    "movies": datasets.movies,
    "qa": datasets.qa,
    "boolq": datasets.boolq,
    "instructions": datasets.instructions,
}
_FOLDERS = {"demo": "final", "demo:early": "early", "demo:middle": "middle", "demo:mamba2": "mamba2"}
_UNTRAINED = {"demo:random": "llama", "demo:mamba": "mamba"}
TRAINING_STEPS = {"demo-random": 0, "demo-early": 678, "demo-middle": 1890, "demo": 4070}
"""Steps behind the models of the demo's own training, by the name they have in a store."""
DATASETS: tuple[str, ...] = tuple(_MAKERS)
MODELS: tuple[str, ...] = (*_FOLDERS, *_UNTRAINED)


def rows(name: str) -> list[dict[str, object]]:
    """The rows of a data set; KeyError names the known ones."""
    if name not in _MAKERS:
        raise KeyError(f"no demo data set {name!r}; there are {', '.join(DATASETS)}")
    return _MAKERS[name]()


def model_path(name: str = "demo") -> Path:
    """The folder of a demo model, readable by `from_pretrained`; KeyError names the known ones.

    `demo:random` (the demo's architecture) and `demo:mamba` are untrained: their folders are made now, and last as long
    as the process.
    """
    weights = Path(__file__).parent / "weights"
    if name in _UNTRAINED:
        from layercache.demo import untrained

        return untrained.folder(_UNTRAINED[name], weights / _FOLDERS["demo"])
    if name not in _FOLDERS:
        raise KeyError(f"no demo model {name!r}: {nearest.hint(name, MODELS)}")
    return weights / _FOLDERS[name]
