"""Rank correlation over layers of a metric and a probe's score, and how far it hangs on the prompts that were probed.

    drawn = layer_ranks.resampled(rows, layers, "balanced_accuracy", 1000, seed)     scores [1 + draws, layers]
    rho, tau = layer_ranks.correlations(metric, score, drawn[1:])                    estimates with intervals

The interval is of the *probe's* scores: prompts are drawn with replacement, the same draws for every layer, every layer is
scored anew on each draw, and the correlation is taken again. The metric's values stay as they are, and so do the layers: they
are a model's own and no sample of anything, and neighbours are alike, so that no interval speaks of other layers or models.
A draw adds noise of its own to the scores, so that where layers are close to one another the interval leans towards 0.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.stats import rankdata

from layercache.analyze import bootstrap
from layercache.analyze.bootstrap import Estimate

Floats = npt.NDArray[np.float64]

SCORED = {"r2": "error", "accuracy": "correct", "balanced_accuracy": "correct"}
"""The scores that can be taken anew on every draw, and what `probe` left of every row that they are taken of."""


class Correlations(NamedTuple):
    """Spearman's rho and Kendall's tau-b; without an interval where the probe's rows are not known."""

    spearman: Estimate
    kendall: Estimate


def resampled(rows: pl.DataFrame, layers: list[int], score: str, count: int, seed: int) -> Floats | None:
    """Score every layer on the rows as they are (first) and on draws of their prompts.

    Args:
        rows: sample scores of one probe: row, sample_id, layer, metric, value, text (of `correct` the true class).
        layers: the layers, ascending.
        score: the metric; of `r2` what stands here is minus the mean squared error, which has the same order over layers on
            any one set of rows.
        count: draws.
        seed: of the draws.

    Returns:
        [1 + count, layers]; None where rows of a layer, or their classes, are not kept, or the score is not in SCORED.
    """
    own = rows.filter(pl.col("metric") == SCORED.get(score, "")).filter(pl.col("layer").is_in(layers))
    table = own.pivot("layer", index=["row", "sample_id", "text"], values="value", sort_columns=False)
    if not count or table.width != 3 + len(layers) or table.null_count().drop("text").sum_horizontal()[0]:
        return None
    values = table.select(map(str, layers)).to_numpy().astype(np.float64)
    if score == "balanced_accuracy" and table["text"].null_count():
        return None
    draws = bootstrap.draw(np.unique(table["sample_id"].to_numpy(), return_inverse=True)[1], count, seed)
    if score == "balanced_accuracy":
        return _balanced(values, np.unique(table["text"].to_numpy(), return_inverse=True)[1], draws)
    worth = -(values**2) if score == "r2" else values
    return _ratio(*np.split(bootstrap.sums(np.column_stack([worth, np.ones(len(worth))]), draws), [-1], axis=1))


def _balanced(correct: Floats, classes: npt.NDArray[np.int64], draws: bootstrap.Resamples) -> Floats:
    """Mean over the classes of a draw of the share of their rows that are right: [1 + draws, layers]."""
    recalls = []
    for number in range(int(classes.max()) + 1):
        mine = (classes == number)[:, None]
        recalls.append(_ratio(*np.split(bootstrap.sums(np.hstack([correct * mine, mine]), draws), [-1], axis=1)))
    return np.asarray(np.nanmean(np.array(recalls), axis=0))


def correlations(metric: Floats, score: Floats, draws: Floats | None) -> Correlations:
    """Correlate a metric with a probe's score over layers.

    Args:
        metric, score: [layers], neither of them constant.
        draws: the score of every draw of prompts [draws, layers]; None for no interval.
    """
    drawn = np.empty((0, len(score))) if draws is None else draws
    every = np.vstack([score, drawn])
    rho, tau = _spearman(metric, every), _kendall(metric, every)
    return Correlations(*(bootstrap.around(float(one[0]), one[1:]) for one in (rho, tau)))


def _spearman(metric: Floats, scores: Floats) -> Floats:
    """Pearson's correlation of ranks, ties at their mean rank; NaN where all layers score the same."""
    a, b = rankdata(metric), rankdata(scores, axis=1)
    a, b = a - a.mean(), b - b.mean(axis=1, keepdims=True)
    return _ratio(b @ a, np.sqrt((a**2).sum() * (b**2).sum(axis=1)))


def _kendall(metric: Floats, scores: Floats) -> Floats:
    """Kendall's tau-b: pairs of layers in the same order minus those in the other, ties taken out of the pairs there are."""
    first, second = np.triu_indices(len(metric), k=1)
    a, b = np.sign(metric[first] - metric[second]), np.sign(scores[:, first] - scores[:, second])
    return _ratio(b @ a, np.sqrt(np.abs(a).sum() * np.abs(b).sum(axis=1)))


def _ratio(top: Floats, bottom: Floats) -> Floats:
    return np.asarray(np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0))
