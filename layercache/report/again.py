"""The commands that make a part of the page again, from the settings that the store keeps with every result."""

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from layercache import recipe
from layercache.report import overview
from layercache.store import numbers as stored_numbers
from layercache.store import recipes
from layercache.store.reader import Store

_OPTIONS = {"reference": "--answer"}
"""Options of `layercache analyze` that are not called as the setting is."""
WITHOUT_OPTION = frozenset({"keep", "quantiles", "fractions", "converged", "rescale", "temperature", "score"}) | {
    *("lidar_delta", "dime_samples", "permutations")
}
"""Settings that only a recipe can change."""


PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "probes": (("probe",), ("probe", "predictions")),
    "behind": (("probe_depth",), ("transfer", "run_transfer", "concept_depth")),
    "compare": (("compare",), ()),
    "training": (("probe", "entropy", "quality"), ("checkpoints",)),
    "lens": (("entropy",), ("entropy", "agreement", "distance", "target", "depth")),
    "text": (("text",), ("text", "quantisation", "consistency")),
    "pathways": (("delta_p",), ("delta_p", "pathways")),
    "quality": (("quality",), ("quality", "distributions", "cka", "mutual_knn", "perturbations")),
    "answers": (("choices",), ("answers",)),
    "adaptation": (("compare",), ("rank_alpha", "adaptation")),
}
"""The analyses and the plots behind the parts of the page, by their anchors."""


def analysis(store: Store, kinds: Iterable[str], plots: Sequence[str] = ()) -> list[str]:
    """Return the commands that compute these analyses again and draw their figures.

    An analysis that a recipe of the store describes needs no options; where results come from other settings, these
    are given. What no option can say follows as a comment.
    """
    kinds, place = list(kinds), overview.place(store.path)
    kept = [spec for one in recipes.load_all(store.path) for spec in one.get("analyze") or []]
    newest = {info.analysis: info.spec for info, _ in reversed(stored_numbers.tables(store.path, "results"))}
    lines = [_analyze(kind, newest[kind], kept, place) for kind in kinds if kind in newest]
    if lines:
        lines += [f"layercache plot {name} -o {name}.svg --store {place}" for name in plots]
        names = ", ".join(f"'{kind}'" for kind in kinds)
        query = f"SELECT * FROM results WHERE analysis IN ({names})"
        lines.append(f'layercache sql "{query}" --format csv --store {place}')
    return lines


def _analyze(kind: str, spec: dict[str, Any], kept: Sequence[dict[str, Any]], place: str) -> str:
    described = [one for one in kept if one.get("kind") == kind]
    # Named kinds start from every description that a kept recipe has of them.
    bases = described or [recipe.ANALYSES[kind]().model_dump(mode="json")]
    whole = {**recipe.ANALYSES[kind]().model_dump(mode="json"), **spec}
    full = [{**recipe.ANALYSES[kind]().model_dump(mode="json"), **base} for base in bases]
    changed = {} if whole in full else {key: value for key, value in whole.items() if value != full[0].get(key)}
    given = [(key, value) for key, value in changed.items() if key not in WITHOUT_OPTION and value is not None]
    words = ["layercache", "analyze", kind]
    for key, value in given:
        words += [_OPTIONS.get(key, f"--{key.replace('_', '-')}"), _word(value)]
    line = f"{shlex.join(words)} --store {place}"
    rest = [f"{key} = {value!r}" for key, value in changed.items() if (key, value) not in given]
    # A line end in a setting would end the comment.
    return f"{line}  # with {', '.join(rest)} in a recipe".replace("\n", " ") if rest else line


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
