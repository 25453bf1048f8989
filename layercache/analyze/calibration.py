"""How good probabilities of a right answer are: calibration, and ranking within a kind of question.

As in `metrics`, every function takes weights [n, b] and returns a value a column [b].
"""

import numpy as np
import numpy.typing as npt

from layercache.analyze.metrics import Classes, Floats, Weights, auc, weighted_mean

BINS = 10
"""Bins of equal width that probabilities are put into."""


def brier(given: Classes, weights: Weights) -> Floats:
    """Mean squared distance of the probability of class 1 from the truth, 0 or 1: float64 [draws] (Brier 1950)."""
    return weighted_mean((given.probability[:, 1] - given.truth) ** 2, weights)


def ece(given: Classes, weights: Weights) -> Floats:
    """Expected calibration error of class 1 over ten bins of equal width (Naeini, Cooper & Hauskrecht 2015).

    The mean over rows of the distance, in the row's bin, between mean probability and the share that is right:
    float64 [draws].
    """
    bins = np.minimum((given.probability[:, 1] * BINS).astype(np.int64), BINS - 1)
    gap = (given.probability[:, 1] - given.truth).astype(np.float64)
    total = sum(np.abs(gap[bins == at] @ weights[bins == at].astype(np.float64)) for at in range(BINS))
    return np.asarray(total / weights.sum(axis=0, dtype=np.float64))


def auc_within(given: Classes, kinds: npt.NDArray[np.object_], weights: Weights) -> Floats:
    """AUC within every kind of question (mean over folds), averaged over the kinds that have both classes.

    A probe that only knows which kinds are easy has 0.5 here, whatever its AUC over all questions.

    Args:
        given: of the questions.
        kinds: the kind of each, [rows].
        weights: [rows, draws].

    Returns:
        float64 [draws]; NaN where no kind has both classes.
    """
    found = []
    for kind in usable(given, kinds):
        rows = kinds == kind
        part = Classes(given.truth[rows], given.probability[rows], given.fold[rows])
        found.append(auc(part, weights[rows]))
    values = np.array(found).reshape(len(found), weights.shape[1])
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    sums = np.where(known, values, 0.0).sum(axis=0)
    return np.asarray(np.divide(sums, count, out=np.full(len(count), np.nan), where=count > 0))


def usable(given: Classes, kinds: npt.NDArray[np.object_]) -> list[str]:
    """Return the kinds [n] (None: of no kind) that have right and wrong answers in one fold."""
    have: dict[str, set[tuple[int, int]]] = {}
    for kind, truth, fold in zip(kinds.tolist(), given.truth.tolist(), given.fold.tolist()):
        if kind is not None:
            have.setdefault(kind, set()).add((fold, truth))
    return sorted(kind for kind, seen in have.items() if any((fold, 1 - truth) in seen for fold, truth in seen))
