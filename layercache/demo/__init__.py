"""A made-up world of films and people, and a tiny language model that was trained on it.

Everything here works without a model hub and, for the data sets, without torch.
"""

from pathlib import Path

from layercache.demo import datasets
from layercache.demo.datasets import TEMPLATES

__all__ = ["DATASETS", "MODELS", "TEMPLATES", "model_path", "rows"]

_MAKERS = {
    "movies": datasets.movies,
    "qa": datasets.qa,
    "boolq": datasets.boolq,
    "instructions": datasets.instructions,
}
_FOLDERS = {"demo": "final", "demo:early": "early", "demo:middle": "middle"}
DATASETS: tuple[str, ...] = tuple(_MAKERS)
MODELS: tuple[str, ...] = tuple(_FOLDERS)


def rows(name: str) -> list[dict[str, object]]:
    """The rows of a data set; KeyError names the known ones."""
    if name not in _MAKERS:
        raise KeyError(f"no demo data set {name!r}; there are {', '.join(DATASETS)}")
    return _MAKERS[name]()


def model_path(name: str = "demo") -> Path:
    """The folder of a demo model, readable by `from_pretrained`; KeyError names the known ones."""
    if name not in _FOLDERS:
        raise KeyError(f"no demo model {name!r}; there are {', '.join(MODELS)}")
    return Path(__file__).parent / "weights" / _FOLDERS[name]
