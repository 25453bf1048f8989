"""How much rank and alpha matter: main effects and interaction over a complete grid of adapters, with seeds as replicates.

With y[s, i, j] the accuracy of seed s at the i-th rank and the j-th alpha:

    effect of r            mean over alphas of y at the largest minus at the smallest rank; of alpha likewise
    interaction            what the effect of r at the largest alpha has more than at the smallest
    share of variance      sum of squares of a factor over that of all (eta squared); what is left are the seeds: not
                           with one seed, where none of it can be left
    p                      F-test of the two-way analysis of variance with replicates (Fisher; Montgomery, "Design and
                           Analysis of Experiments", sec. 5.3)

Intervals are Student's over seeds: each seed is a whole grid, and gives one value of an effect.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]

FACTORS = ("r", "alpha", "interaction")


class Over(NamedTuple):
    """A mean over seeds with the ends of its 95 % interval, None where there is one seed."""

    value: float
    low: float | None
    high: float | None
    n: int


class Effects(NamedTuple):
    """What a grid says: effects in accuracy, shares of the variance (of the three factors, and `seed`), and p by factor."""

    effects: dict[str, Over]
    shares: dict[str, float]
    p: dict[str, float]


def over_seeds(values: Floats) -> Over:
    """Average values [seeds], with Student's 95 % interval."""
    n, mean = len(values), float(values.mean())
    if n < 2:
        return Over(mean, None, None, n)
    half = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Over(mean, mean - half, mean + half, n)


def effects(y: Floats) -> Effects:
    """Compute effects, shares and p of accuracies y [seeds, ranks, alphas], both in rising order.

    A factor of one level has no effect and is left out; without a second seed there are no shares and no p.
    """
    seeds, ranks, alphas = y.shape
    mean = y.mean()
    by_r, by_alpha, cells = y.mean(axis=(0, 2)), y.mean(axis=(0, 1)), y.mean(axis=0)
    sums = {
        "r": seeds * alphas * ((by_r - mean) ** 2).sum(),
        "alpha": seeds * ranks * ((by_alpha - mean) ** 2).sum(),
        "interaction": seeds * ((cells - by_r[:, None] - by_alpha + mean) ** 2).sum(),
        "seed": ((y - cells) ** 2).sum(),
    }
    free = {"r": ranks - 1, "alpha": alphas - 1, "interaction": (ranks - 1) * (alphas - 1)}
    kept = [name for name in FACTORS if free[name]]
    contrasts = {
        "r": (y[:, -1] - y[:, 0]).mean(axis=1),
        "alpha": (y[:, :, -1] - y[:, :, 0]).mean(axis=1),
        "interaction": (y[:, -1, -1] - y[:, 0, -1]) - (y[:, -1, 0] - y[:, 0, 0]),
    }
    total = float(((y - mean) ** 2).sum())
    shares = {name: float(sums[name]) / total for name in [*kept, "seed"]} if total > 0 and seeds > 1 else {}
    left = ranks * alphas * (seeds - 1)
    p = {}
    if left and sums["seed"] > 0:
        for name in kept:
            ratio = (sums[name] / free[name]) / (sums["seed"] / left)
            p[name] = float(stats.f.sf(ratio, free[name], left))
    return Effects({name: over_seeds(contrasts[name]) for name in kept}, shares, p)
