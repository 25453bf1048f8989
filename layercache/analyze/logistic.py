"""Logistic regression with an L2 penalty, binary and multinomial: scikit-learn's own, cross-validated on given folds.

What is ours is how folds share their sums and how C is chosen, not the fit, which is in float64 and to a tolerance of 1e-5,
nearer to the optimum than the default one. `benchmarks/probe.py` holds time and nearness against plain StandardScaler and
LogisticRegression in the same folds.

With far fewer rows than columns the columns are first rotated onto the rows' span by an exact thin QR, which changes no
prediction and leaves less to fit.

C is chosen inside the fitted part from PENALTIES by log loss on a held-back fifth of it: from the
strongest on, stopping at the first that does no better.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.special import log_expit, log_softmax
from sklearn.linear_model import LogisticRegression

from layercache.analyze.folds import held_back
from layercache.analyze.scaling import (
    Floats,
    Ints,
    Linear,
    Scaling,
    blocks,
    centre,
    in_order,
    scaling,
    standardise,
)

T = TypeVar("T")

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Values of C tried on standardised columns, the strongest penalty first."""
_STEPS = 2000
_ROTATED = 10
"""Columns for each row from which on a rotation pays."""
_ROUGH = 1e-3
"""Tolerance while C is chosen: far below what tells two of its values apart."""
_NEVER = -1e4
"""Intercept of a class that no fitted row has: its probability is 0."""


class CrossValidated(NamedTuple):
    """Held-out class probabilities [t, n, classes], NaN for rows in no fold, and the chosen C [folds, t]."""

    probability: Floats
    penalty: Floats


class Design(NamedTuple):
    """Standardised rows in the coordinates that are fitted: z [n, r]; `basis` [d, r] leads back, None where r = d."""

    z: Floats
    basis: Floats | None


def cross_validate(
    x: npt.NDArray[np.floating],
    y: Ints,
    classes: int,
    assignment: Ints,
    inner: Ints,
    pool: ThreadPoolExecutor | None = None,
) -> CrossValidated:
    """Give every row of x [n, d] class probabilities from the folds it is not in, for targets y [n, t].

    Args:
        x: the states.
        y: class numbers from 0.
        classes: how many there are.
        assignment: the fold that holds a row out [n]; negative ones are always fitted on.
        inner: parts of the rows [n], one of which is held back inside a fold to choose C.
        pool: threads to spread folds over.
    """

    def held_out(fold: _Fold) -> list[tuple[Floats, float]]:
        held = standardise(fold.held, fold.how)
        return [(probabilities(held @ weights[:-1] + weights[-1]), penalty) for weights, penalty in fold.found]

    folds = _over_folds(x, y, classes, assignment, inner, pool, held_out)
    probability = np.full((y.shape[1], len(y), classes), np.nan)
    penalty = np.zeros((len(folds), y.shape[1]))
    for fold, targets in enumerate(folds):
        for t, (predicted, chosen) in enumerate(targets):
            probability[t, assignment == fold] = predicted
            penalty[fold, t] = chosen
    return CrossValidated(probability, penalty)


def fold_models(
    x: npt.NDArray[np.floating],
    y: Ints,
    classes: int,
    assignment: Ints,
    inner: Ints,
    pool: ThreadPoolExecutor | None = None,
) -> list[list[Linear]]:
    """Return the models that `cross_validate` predicts with, [folds][t]; arguments are as there."""

    def models(fold: _Fold) -> list[Linear]:
        return [Linear(weights[:-1].T, weights[-1], fold.middle, fold.how.scale) for weights, _ in fold.found]

    return _over_folds(x, y, classes, assignment, inner, pool, models)


class _Fold(NamedTuple):
    """One fold: the rows it holds out [m, d], their scaling, the mean of x there, and weights and C of every target."""

    held: Floats
    how: Scaling
    middle: Floats
    found: list[tuple[Floats, float]]


def _over_folds(
    x: npt.NDArray[np.floating],
    y: Ints,
    classes: int,
    assignment: Ints,
    inner: Ints,
    pool: ThreadPoolExecutor | None,
    use: Callable[[_Fold], T],
) -> list[T]:
    """Fit every target in every fold, and return what `use` makes of each."""
    wide, middle = centre(x)
    sums = blocks(wide, assignment, gram=False, pool=pool)

    def one(fold: int) -> T:
        fitted = assignment != fold
        how = scaling(sums, fold)
        design, back = _design(wide[fitted], how), held_back(inner[fitted])
        found = [_weights(design, y[fitted, t], back, classes) for t in range(y.shape[1])]
        return use(_Fold(wide[~fitted], how, how.mean + middle, found))

    return in_order(pool, one, int(assignment.max()) + 1)


def fit(x: npt.NDArray[np.floating], y: Ints, classes: int, penalty: float, tolerance: float = 1e-5) -> Linear:
    """Fit class numbers y [n] on all rows of x [n, d] with C = `penalty`.

    Returns:
        A model with one row of coefficients a class, or a single one (of class 1) where there are two.
    """
    wide, middle = centre(x)
    everyone = np.zeros(len(wide), dtype=np.int64)
    how = scaling(blocks(wide, everyone, gram=False), None)
    design = _design(wide, how)
    weights = weigh(design.z, y, classes, penalty, tolerance)
    coef = weights[:-1] if design.basis is None else design.basis @ weights[:-1]
    return Linear(coef.T, weights[-1], how.mean + middle, how.scale)


def fit_chosen(x: npt.NDArray[np.floating], y: Ints, classes: int, inner: Ints) -> tuple[Linear, float]:
    """Fit class numbers y [n] on all rows of x [n, d], C chosen on one part of `inner` [n] as in `cross_validate`.

    On the fitted part of a fold this is the model that `cross_validate` predicts the fold's held-out rows with.

    Returns:
        The model, as `fit` gives it, and its C.
    """
    wide, middle = centre(x)
    how = scaling(blocks(wide, np.zeros(len(wide), dtype=np.int64), gram=False), None)
    weights, penalty = _weights(_design(wide, how), y, held_back(inner), classes)
    return Linear(weights[:-1].T, weights[-1], how.mean + middle, how.scale), penalty


def weigh(z: Floats | csr_array, y: Ints, classes: int, penalty: float, tolerance: float = 1e-5) -> Floats:
    """Fit one scikit-learn model.

    Args:
        z: rows [n, r].
        y: class numbers [n] of `classes`; not all need be there.
        penalty: C, the inverse of the penalty on the summed log loss.

    Returns:
        Weights [r + 1, t], the intercepts last; t is 1 for two classes, `classes` for more.
    """
    there = np.unique(y)
    weights = np.zeros((z.shape[1] + 1, classes))
    weights[-1] = _NEVER
    if len(there) == 1:
        weights[-1, there] = 0.0
    else:
        model = LogisticRegression(C=penalty, tol=tolerance, max_iter=_STEPS).fit(z, y)
        # scikit-learn keeps one row for two classes: the log-odds of the second.
        coef = model.coef_ if len(there) > 2 else np.vstack([np.zeros_like(model.coef_), model.coef_])
        intercept = model.intercept_ if len(there) > 2 else np.append(0.0, model.intercept_)
        weights[:-1, there], weights[-1, there] = coef.T, intercept
    return weights if classes > 2 else weights[:, 1:] - weights[:, :1]


def probabilities(scores: Floats) -> Floats:
    """Turn linear scores [n, classes], or [n, 1] for two classes, into probabilities [n, classes]."""
    if scores.shape[1] == 1:
        return np.asarray(np.exp(np.hstack([log_expit(-scores), log_expit(scores)])))
    return np.asarray(np.exp(log_softmax(scores, axis=1)))


def choose(candidates: tuple[float, ...], loss: Callable[[float], float]) -> tuple[float, float]:
    """Go through penalties from the strongest on; stop when one does no better.

    Args:
        candidates: values of C.
        loss: fits with C and returns the held-back log loss.

    Returns:
        The best C and its loss.
    """
    best = (candidates[0], loss(candidates[0]))
    for penalty in candidates[1:]:
        value = loss(penalty)
        if not value < best[1]:
            break
        best = (penalty, value)
    return best


def log_loss(scores: Floats, y: Ints) -> float:
    """Return the mean negative log-probability, in nats, of classes y [n] under linear scores."""
    if scores.shape[1] == 1:
        return float(-log_expit(np.where(y == 1, scores[:, 0], -scores[:, 0])).mean())
    return float(-log_softmax(scores, axis=1)[np.arange(len(y)), y].mean())


def _design(fitted: Floats, how: Scaling) -> Design:
    z = standardise(fitted, how)
    if _ROTATED * len(z) > z.shape[1]:
        return Design(z, None)
    basis, rotated = np.linalg.qr(z.T)
    return Design(np.ascontiguousarray(rotated.T), basis)


def _weights(design: Design, y: Ints, back: npt.NDArray[np.bool_], classes: int) -> tuple[Floats, float]:
    """Choose C inside a fold and refit on the whole fitted part: weights of standardised columns [d + 1, t], and C.

    Where no row can be held back, C is the middle one.
    """

    def loss(penalty: float) -> float:
        weights = weigh(design.z[~back], y[~back], classes, penalty, _ROUGH)
        return log_loss(design.z[back] @ weights[:-1] + weights[-1], y[back])

    penalty = PENALTIES[len(PENALTIES) // 2]
    if back.any():
        penalty, _ = choose(PENALTIES, loss)
    weights = weigh(design.z, y, classes, penalty)
    if design.basis is not None:
        weights = np.vstack([design.basis @ weights[:-1], weights[-1]])
    return weights, penalty
