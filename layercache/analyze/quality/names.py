"""What the analysis computes, by the names that are asked for, and what of it was refused and why."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa

from layercache.analyze import select
from layercache.analyze.quality.estimates import Estimate
from layercache.analyze.tables import Key, Row, row
from layercache.errors import AnalysisError, RecipeError
from layercache.outputs import parse_statistic
from layercache.recipe import QualitySpec
from layercache.store.reader import Store

OF_STATES: dict[str, tuple[str, ...]] = {
    "dataset_entropy": ("dataset_entropy", "dataset_entropy_normalized", "dataset_effective_rank"),
    "dataset_mean_cosine": ("dataset_mean_cosine",),
    "dataset_first_pc_share": ("dataset_first_pc_share",),
    "intrinsic_dimension": ("intrinsic_dimension", "dataset_copies"),
}
"""What is computed together of one layer's states: the numbers it gives."""
OF_PAIRS: dict[str, tuple[str, ...]] = {"cka": ("cka", "cka_biased"), "mutual_knn": ("mutual_knn",)}
"""The same of two layers."""
OF_VIEWS: dict[str, tuple[str, ...]] = {"infonce": ("infonce", "views"), "lidar": ("lidar",), "dime": ("dime",)}
"""The same of the views of every prompt."""
_COMPUTED = {**OF_STATES, **OF_PAIRS, **OF_VIEWS}

_PLACES = 2
"""Places that a note names of those it is about."""


@dataclass
class Found:
    """The rows of an analysis, and what gave none: (where, layer, what, why)."""

    rows: list[Row] = field(default_factory=list)
    scores: list[pa.Table] = field(default_factory=list)
    refused: list[tuple[str, int | None, str, str]] = field(default_factory=list)

    def add(self, other: "Found") -> None:
        """Take over what another found."""
        self.rows += other.rows
        self.scores += other.scores
        self.refused += other.refused

    def notes(self) -> list[str]:
        """Say what gave no number: once for all layers, and for all places, of one reason."""
        grouped: dict[tuple[str, str], dict[str, dict[int | None, None]]] = {}
        for where, layer, what, why in self.refused:
            grouped.setdefault((where, why), {}).setdefault(what, {})[layer] = None
        places: dict[str, list[str]] = {}
        for (where, why), parts in grouped.items():
            layers = list(dict.fromkeys(str(layer) for own in parts.values() for layer in own if layer is not None))
            at = f" at layer {', '.join(layers)}" if layers else ""
            places.setdefault(f"no {', '.join(parts)}{at}: {why}", []).append(where)
        return [f"{_shortened(found)}: {said}" for said, found in places.items()]


def _shortened(places: list[str]) -> str:
    shown, more = "; ".join(places[:_PLACES]), len(places) - _PLACES
    return f"{shown}; and {more} more" if more > 0 else shown


def asked(store: Store, spec: QualitySpec) -> set[str] | None:
    """Return the metrics asked for, each by the name under which it is computed; None for all.

    Raises:
        AnalysisError: one is not known, or not stored.
    """
    if spec.metrics is None:
        return None
    heads = {name: head for head, names in _COMPUTED.items() for name in names}
    stored = stored_statistics(store)
    for name in spec.metrics:
        if name not in heads and name not in stored:
            if _is_statistic(name):
                raise AnalysisError(f"no run holds {name}: run `layercache extract --stats {name}` first")
            raise AnalysisError(f"unknown metric {name!r}: {select.hint(name, sorted({*heads, *stored}))}")
    return {heads.get(name, name) for name in spec.metrics}


def _is_statistic(name: str) -> bool:
    try:
        return parse_statistic(name) == name
    except RecipeError:
        return False


def stored_statistics(store: Store) -> set[str]:
    """Return the names of the statistics over tokens that any run holds under any condition."""
    shards = (shard for run in store.runs() for name in store.conditions(run) for shard in store.shards(run, name))
    outputs = {output for shard in shards for output in shard.outputs}
    return {output.removeprefix("stats:") for output in outputs if output.startswith("stats:")}


def wanted(table: Iterable[str], names: set[str] | None) -> list[str]:
    """Return what of a table is asked for."""
    return [name for name in table if names is None or name in names]


def number(key: Key, metric: str, one: Estimate, intervals: bool = True) -> list[Row]:
    """Return an estimate as a row of results."""
    low, high = (one.low, one.high) if intervals else (None, None)
    return row(key, metric, one.value, one.n, low, high)


def refuse_nothing(found: Found, names: set[str] | None, missing: dict[str, str]) -> None:
    """Raise where a metric asked for by name, or everything, gave no number.

    Args:
        found: what there is.
        names: the metrics asked for, as computed.
        missing: why a metric may be absent that nothing refused.

    Raises:
        AnalysisError: the first reason why.
    """
    given = {one["metric"] for one in found.rows}
    reasons = {what: f"{where}: no {what}: {why}" for where, _, what, why in reversed(found.refused)}
    for name in sorted(names or ()):
        if not given.intersection(_COMPUTED.get(name, (name,))):
            raise AnalysisError(reasons.get(name) or missing.get(name) or f"nothing is stored that gives {name}")
    if not found.rows:
        raise AnalysisError(next(iter(reasons.values()), "nothing is stored that any number could be computed from"))
