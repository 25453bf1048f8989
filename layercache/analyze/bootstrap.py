"""Bootstrap over groups: 95 % percentile intervals, and how often a layer comes out best.

Whole groups of rows (a prompt, a passage) are drawn with replacement, the same draws for every layer
and system on the same rows, so that differences are paired (Efron & Tibshirani 1993, ch. 13).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]

_BLOCK = 8_000_000
"""Weights held at once."""


class Resamples(NamedTuple):
    """How often each group was drawn, uint8 [groups, resamples], and the group of each row [n], with the draws' seed.

    Pickled it is what it is drawn from, a thousandth of its size.
    """

    drawn: npt.NDArray[np.uint8]
    groups: Ints
    seed: int

    def __reduce__(self) -> "tuple[Callable[..., Resamples], tuple[Ints, int, int]]":
        return draw, (self.groups, self.drawn.shape[1], self.seed)


class Estimate(NamedTuple):
    """A value with the ends of its 95 % interval (None where there is none) and its resampled values [b]."""

    value: float
    low: float | None
    high: float | None
    resampled: Floats


def draw(groups: Ints, count: int, seed: int) -> Resamples:
    """Draw `count` resamples of the groups numbered in `groups` [n]."""
    present, rows = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = np.empty((len(present), count), dtype=np.uint8)
    for column in range(count):
        times = np.bincount(rng.integers(len(present), size=len(present)), minlength=len(present))
        drawn[:, column] = np.minimum(times, 255)
    return Resamples(drawn, rows, seed)


def estimate(metric: Callable[[Weights], Floats], resamples: Resamples) -> Estimate:
    """Compute a metric of weights [n, b] on the rows as they are and on every resample."""
    rows, count = len(resamples.groups), resamples.drawn.shape[1]
    value = float(metric(np.ones((rows, 1), np.float32))[0])
    step = max(_BLOCK // max(rows, 1), 1)
    parts = [metric(_weights(resamples, slice(start, start + step))) for start in range(0, count, step)]
    return around(value, np.concatenate(parts) if parts else np.empty(0))


def around(value: float, resampled: Floats) -> Estimate:
    """Put the 95 % percentile interval of its resampled values [b] around a value."""
    known = resampled[~np.isnan(resampled)]
    if not len(known):
        return Estimate(value, None, None, resampled)
    low, high = np.percentile(known, [2.5, 97.5])
    return Estimate(value, float(low), float(high), resampled)


def sums(statistics: Floats, resamples: Resamples) -> Floats:
    """Sum statistics of rows [n, s] over all rows (first) and over every resample: [1 + b, s]."""
    grouped = np.zeros((len(resamples.drawn), statistics.shape[1]))
    np.add.at(grouped, resamples.groups, statistics)
    count, step = resamples.drawn.shape[1], max(_BLOCK // max(len(grouped), 1), 1)
    blocks = (resamples.drawn[:, start : start + step] for start in range(0, count, step))
    return np.concatenate(
        [grouped.sum(axis=0, keepdims=True), *(block.T.astype(np.float64) @ grouped for block in blocks)]
    )


def best_share(resampled: Floats) -> Floats:
    """Share of resamples [systems] in which each system of [systems, b] has the largest value; ties share.

    An undefined value never wins; resamples where all are undefined are left out.
    """
    known = ~np.isnan(resampled).all(axis=0)
    values = np.where(np.isnan(resampled), -np.inf, resampled)[:, known]
    wins = values == values.max(axis=0, initial=-np.inf)
    shares = (wins / np.maximum(wins.sum(axis=0), 1)).sum(axis=1)
    return np.asarray(shares / max(int(known.sum()), 1))


def _weights(resamples: Resamples, columns: slice) -> Weights:
    return resamples.drawn[:, columns].astype(np.float32)[resamples.groups]
