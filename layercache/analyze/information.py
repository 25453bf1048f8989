"""What states say of a class, in bits: usable information, and the length of a code for the labels.

Usable (V-)information (Xu et al. 2020, "A Theory of Usable Information Under Computational Constraints", definition 2):
H_V(Y) - H_V(Y|X), V being linear classifiers, estimated on held-out rows. Its share of one row is the pointwise
V-information (Ethayarajh et al. 2022, "Understanding Dataset Difficulty with V-Usable Information", eq. 4).

Online (prequential) code (Voita & Titov 2020, "Information-Theoretic Probing with Minimum Description Length", eq. 4):
the labels of a first portion cost log2 K each; then a probe fitted on all that was sent codes the next portion. Their
footnote 4 gives the portions. Against a class that no row has had yet, each probe is mixed with one count of every
class: p' = (t p + 1) / (t + K) after t rows, which is a code as well.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from layercache.analyze import crossfit, logistic, scaling
from layercache.analyze.folds import Folds, training
from layercache.analyze.problem import Problem
from layercache.analyze.scaling import Floats, Ints


class Code(NamedTuple):
    """An online code: the bits each row cost [n], and where its portions end."""

    bits: Floats
    ends: list[int]


def null_bits(y: Ints, classes: int, folds: Folds) -> Floats:
    """Return -log2 of the fitted rows' share of each row's class [n]: what it costs without states.

    NaN for rows in no fold, infinite where the class was not fitted on.
    """
    bits = np.full(len(y), np.nan)
    for fold in range(folds.k):
        fitted, held = training(folds.assignment, fold), folds.assignment == fold
        share = np.bincount(y[fitted], minlength=classes) / fitted.sum()
        with np.errstate(divide="ignore"):
            bits[held] = -np.log2(share[y[held]])
    return bits


def probe_bits(y: Ints, probability: Floats) -> Floats:
    """Return -log2 of the probability of each row's class [n], from held-out probabilities [n, classes]."""
    with np.errstate(divide="ignore"):
        return np.asarray(-np.log2(probability[np.arange(len(y)), y]))


def portions(order_groups: Ints, fractions: Sequence[float]) -> list[int]:
    """Return where portions end, for rows whose groups, int64 [n], are in the order they are sent: rising, the last one n.

    A group is never parted, so that no probe is fitted on a prompt that it codes; portions without rows fall away.
    """
    n = len(order_groups)
    last_of_group = np.flatnonzero(np.r_[order_groups[1:] != order_groups[:-1], True]) + 1
    wanted = np.maximum(np.round(np.asarray(fractions) * n).astype(int), 1)
    return sorted({int(last_of_group[np.searchsorted(last_of_group, end)]) for end in wanted})


def sending_order(groups: Ints, seed: int) -> Ints:
    """Return rows [n] in the order they are sent: groups at random, the rows of one together."""
    place = np.random.default_rng([seed, 2020]).permutation(int(groups.max()) + 1)
    return np.lexsort((np.arange(len(groups)), place[groups]))


def online_code(
    x: crossfit.States, y: Ints, given: Problem, fractions: Sequence[float], pool: ThreadPoolExecutor
) -> Code:
    """Code the labels y [n] of a problem's rows, given states x [n, d]."""
    count = len(given.classes or ())
    order = sending_order(given.folds.groups, given.seed)
    ends = portions(given.folds.groups[order], fractions)
    bits = np.full(len(y), np.log2(count))

    def one(index: int) -> tuple[Ints, Floats]:
        sent, coming = order[: ends[index]], order[ends[index] : ends[index + 1]]
        model, _ = logistic.fit_chosen(x[sent], y[sent], count, given.folds.inner[sent])
        p = logistic.probabilities(model.scores(x[coming]))[np.arange(len(coming)), y[coming]]
        return coming, -np.log2((len(sent) * p + 1) / (len(sent) + count))

    for rows, cost in scaling.in_order(pool, one, len(ends) - 1):
        bits[rows] = cost
    return Code(bits, ends)
