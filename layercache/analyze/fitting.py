"""Fits one probe: one label on the states of one layer, cross-validated, with shuffled labels beside it."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from layercache.analyze import logistic, ridge
from layercache.analyze.folds import TRAIN_ONLY
from layercache.analyze.metrics import Classes, Numbers
from layercache.analyze.problem import Problem
from layercache.analyze.scaling import Linear

States = npt.NDArray[np.float32]
Scores = Numbers | Classes


class Fitted(NamedTuple):
    """A layer's held-out scores, those with shuffled labels, and the probe fitted on all rows with its penalty.

    The penalty is ridge regression's alpha for a number and C of logistic regression for classes.
    """

    layer: int
    scores: Scores
    shuffled: Scores
    model: Linear | None
    penalty: float


def fit_layer(x: States, problem: Problem, layer: int, keep: bool, pool: ThreadPoolExecutor) -> Fitted:
    """Cross-validate a probe on states x [n, d]; with `keep` also fit one on all rows.

    Where a split is honoured, "all rows" are those that are not reported.
    """
    everyone = problem.folds.assignment == TRAIN_ONLY
    if not everyone.any():
        everyone[:] = True
    return (_number if problem.classes is None else _classes)(x, problem, layer, everyone if keep else None, pool)


def number_scores(problem: Problem, prediction: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]) -> Numbers:
    """Keep the reported rows of predictions [n] of the problem's numbers."""
    held = problem.reported
    return Numbers(problem.y[held], prediction[held], reference[held], problem.folds.assignment[held])


def class_scores(problem: Problem, probability: npt.NDArray[np.float64]) -> Classes:
    """Keep the reported rows of class probabilities [n, classes]."""
    held = problem.reported
    return Classes(problem.y[held], probability[held], problem.folds.assignment[held])


def _number(
    x: States, problem: Problem, layer: int, everyone: npt.NDArray[np.bool_] | None, pool: ThreadPoolExecutor
) -> Fitted:
    targets = np.column_stack([problem.y, problem.shuffled])
    found = ridge.cross_validate(x, targets, problem.folds.assignment, pool)
    scores = number_scores(problem, found.prediction[:, 0], found.reference[:, 0])
    shuffled = number_scores(problem, found.prediction[:, 1], found.reference[:, 1])
    shuffled = shuffled._replace(truth=problem.shuffled[problem.reported])
    model, alpha = None, np.median(found.alpha[:, :1], axis=0)
    if everyone is not None:
        model, alpha = ridge.fit(x[everyone], targets[everyone, :1])
    return Fitted(layer, scores, shuffled, model, float(alpha[0]))


def _classes(
    x: States, problem: Problem, layer: int, everyone: npt.NDArray[np.bool_] | None, pool: ThreadPoolExecutor
) -> Fitted:
    targets = np.column_stack([problem.y, problem.shuffled])
    folds, count = problem.folds, len(problem.classes or ())
    found = logistic.cross_validate(x, targets, count, folds.assignment, folds.inner, pool)
    scores = class_scores(problem, found.probability[0])
    shuffled = class_scores(problem, found.probability[1])._replace(truth=problem.shuffled[problem.reported])
    # The penalty most folds chose, of equal ones the stronger.
    values, times = np.unique(found.penalty[:, 0], return_counts=True)
    penalty = float(values[times.argmax()])
    model = None if everyone is None else logistic.fit(x[everyone], problem.y[everyone], count, penalty)
    return Fitted(layer, scores, shuffled, model, penalty)
