"""One label on the states of one feature, as `probe_depth` looks into it: what is fitted, and what has been found."""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy.typing as npt
import pyarrow as pa

from layercache.analyze import crossfit, tables
from layercache.analyze.bootstrap import Estimate, Resamples
from layercache.analyze.metrics import MAIN
from layercache.analyze.problem import Problem
from layercache.analyze.tables import Row
from layercache.store.stored import StoredFeature


class Found(NamedTuple):
    """What was found of a part: the folds' models and the main metric's estimate by layer, rows, sample scores."""

    models: dict[int, crossfit.Models]
    main: dict[int, Estimate]
    above: set[int]
    rows: list[Row]
    scores: list[pa.Table]


@dataclass
class Part:
    """One label on the states of one feature: its targets by group (None: the label itself), and what was found.

    `models` holds the folds' models of the label by layer, `main` the estimate of its main metric; `above` are the layers
    where that is above the same with shuffled labels.
    """

    given: Problem
    feature: StoredFeature
    targets: dict[str | None, npt.NDArray[Any]]
    resamples: Resamples
    models: dict[int, crossfit.Models] = field(default_factory=dict)
    main: dict[int, Estimate] = field(default_factory=dict)
    above: set[int] = field(default_factory=set)
    rows: list[Row] = field(default_factory=list)
    scores: list[pa.Table] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """The metric by which layers are compared."""
        return MAIN[self.given.label.kind]

    def blank(self) -> "Part":
        """Return the same without what was found, and without the prompts, which states are not fitted with."""
        return Part(replace(self.given, texts=[]), self.feature, self.targets, self.resamples)

    @property
    def found(self) -> Found:
        """What was found."""
        return Found(self.models, self.main, self.above, self.rows, self.scores)

    def take(self, found: Found) -> None:
        """Add what was found elsewhere."""
        self.models |= found.models
        self.main |= found.main
        self.above |= found.above
        self.rows += found.rows
        self.scores += found.scores

    def key(self, **further: Any) -> Row:
        """Return the columns that say what a number is of."""
        given = self.given
        key = {"run": given.run.id, "data": given.data, "analysis": "probe_depth", "condition": "clean"}
        place = {"label": given.label.name, "site": self.feature.site, "pooling": self.feature.pooling}
        return {**key, **place, **further}

    def add(self, metric: str, found: Estimate, n: int, **further: Any) -> None:
        """Add one number with its interval."""
        self.rows += tables.row(self.key(**further), metric, found.value, n, found.low, found.high)
