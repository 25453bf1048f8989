"""Logistic regression with an L2 penalty, binary and multinomial, equal to scikit-learn's LogisticRegression.

The loss is scikit-learn's, C times the summed log loss plus half the squared coefficients, intercepts
free. L-BFGS runs in coordinates in which the curvature is near the identity (the fixed bound of Böhning
1992, "Multinomial logistic regression algorithm", Annals of the Institute of Statistical Mathematics
44: the Hessian is at most a constant times the Gram matrix), so that it takes tens of steps where raw
coordinates take hundreds. With fewer rows than columns the columns are first rotated onto the rows' span
by an exact thin QR.

C is chosen inside the fitted part from PENALTIES by log loss on a held-back fifth of it: from the
strongest on, each started from the last, stopping at the first that does no better.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import log_expit, log_softmax

from layercache.analyze.folds import held_back
from layercache.analyze.scaling import (
    Blocks,
    Floats,
    Ints,
    Linear,
    Scaling,
    blocks,
    centre,
    fewest_fitted,
    in_order,
    scaling,
    standardise,
)

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Values of C tried on standardised columns, the strongest penalty first."""
_STEPS = 1000
_ROUGH = 1e-3
"""Tolerance while C is chosen: far below what tells two of its values apart."""


class CrossValidated(NamedTuple):
    """Held-out class probabilities [t, n, classes], NaN for rows in no fold, and the chosen C [folds, t]."""

    probability: Floats
    penalty: Floats


class Design(NamedTuple):
    """Standardised rows in the coordinates that are fitted: z [n, r]; `basis` [d, r] leads back, None for r = d."""

    z: Floats
    basis: Floats | None
    gram: Floats


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
    wide, _ = centre(x)
    sums = blocks(wide, assignment, gram=fewest_fitted(assignment) >= wide.shape[1], pool=pool)

    def one(fold: int) -> list[tuple[Floats, float]]:
        fitted = assignment != fold
        design, how = _design(wide[fitted], sums, fold)
        held, back = standardise(wide[~fitted], how), held_back(inner[fitted])
        return [_held_out(design, y[fitted, t], back, classes, held) for t in range(y.shape[1])]

    count = int(assignment.max()) + 1
    probability = np.full((y.shape[1], len(y), classes), np.nan)
    penalty = np.zeros((count, y.shape[1]))
    for fold, targets in enumerate(in_order(pool, one, count)):
        for t, (predicted, chosen) in enumerate(targets):
            probability[t, assignment == fold] = predicted
            penalty[fold, t] = chosen
    return CrossValidated(probability, penalty)


def fit(x: npt.NDArray[np.floating], y: Ints, classes: int, penalty: float, tolerance: float = 1e-5) -> Linear:
    """Fit class numbers y [n] on all rows of x [n, d] with C = `penalty`.

    Returns:
        A model with one row of coefficients a class, or a single one (of class 1) where there are two.
    """
    wide, middle = centre(x)
    everyone = np.zeros(len(wide), dtype=np.int64)
    design, how = _design(wide, blocks(wide, everyone, gram=len(wide) >= wide.shape[1]), None)
    weights = minimise(design.z, one_hot(y, classes), penalty, _whitener(design, y, penalty), None, tolerance)
    coef = weights[:-1] if design.basis is None else design.basis @ weights[:-1]
    return Linear(coef.T, weights[-1], how.mean + middle, how.scale)


def probabilities(scores: Floats) -> Floats:
    """Turn linear scores [n, classes], or [n, 1] for two classes, into probabilities [n, classes]."""
    if scores.shape[1] == 1:
        return np.asarray(np.exp(np.hstack([log_expit(-scores), log_expit(scores)])))
    return np.asarray(np.exp(log_softmax(scores, axis=1)))


def choose(
    candidates: tuple[float, ...], loss: Callable[[float, Floats | None], tuple[float, Floats]]
) -> tuple[float, float, Floats]:
    """Go through penalties from the strongest on, each started from the last; stop when one does no better.

    Args:
        candidates: values of C.
        loss: fits with C from a start and returns the held-back log loss and the weights.

    Returns:
        The best C, its loss and its weights.
    """
    best = (candidates[0], *loss(candidates[0], None))
    for penalty in candidates[1:]:
        value, weights = loss(penalty, best[2])
        if not value < best[1]:
            break
        best = (penalty, value, weights)
    return best


def log_loss(scores: Floats, y: Ints) -> float:
    """Return the mean negative log-probability, in nats, of classes y [n] under linear scores."""
    if scores.shape[1] == 1:
        return float(-log_expit(np.where(y == 1, scores[:, 0], -scores[:, 0])).mean())
    return float(-log_softmax(scores, axis=1)[np.arange(len(y)), y].mean())


def _design(fitted: Floats, sums: Blocks, fold: int | None) -> tuple[Design, Scaling]:
    how = scaling(sums, fold)
    z = standardise(fitted, how)
    if how.gram is not None:
        return Design(z, None, how.gram), how
    basis, rotated = np.linalg.qr(z.T)
    return Design(np.ascontiguousarray(rotated.T), basis, rotated @ rotated.T), how


def _held_out(design: Design, y: Ints, back: npt.NDArray[np.bool_], classes: int, held: Floats) -> tuple[Floats, float]:
    """Choose C inside a fold, refit on the whole fitted part, predict the held-out rows [m, d].

    Where no row can be held back, C is the middle one.
    """
    front_z, back_z = design.z[~back], design.z[back]
    front_y = one_hot(y[~back], classes)
    whiteners: dict[float, Floats] = {}

    def loss(penalty: float, start: Floats | None) -> tuple[float, Floats]:
        whiteners[penalty] = _whitener(design, y, penalty)
        weights = minimise(front_z, front_y, penalty, whiteners[penalty], start, _ROUGH)
        return log_loss(back_z @ weights[:-1] + weights[-1], y[back]), weights

    penalty, start = PENALTIES[len(PENALTIES) // 2], None
    if back.any():
        penalty, _, start = choose(PENALTIES, loss)
    whitener = whiteners[penalty] if penalty in whiteners else _whitener(design, y, penalty)
    weights = minimise(design.z, one_hot(y, classes), penalty, whitener, start)
    coef = weights[:-1] if design.basis is None else design.basis @ weights[:-1]
    return probabilities(held @ coef + weights[-1]), penalty


def one_hot(y: Ints, classes: int) -> Floats:
    """Return 0/1 columns [n, classes], or [n, 1] for two classes."""
    return np.asarray(y[:, None] == (np.arange(classes) if classes > 2 else [1]), dtype=np.float64)


def _whitener(design: Design, y: Ints, penalty: float) -> Floats:
    """Return the Cholesky factor [r, r] of the loss's curvature where all rows have the classes' frequencies."""
    share = np.bincount(y) / len(y)
    rows = len(design.z)
    curvature = design.gram * (float((share * (1 - share)).mean()) / rows)
    curvature[np.diag_indices_from(curvature)] += 1 / (penalty * rows)
    return np.asarray(cholesky(curvature, lower=True, overwrite_a=True, check_finite=False))


def minimise(
    z: Floats | csr_array,
    targets: Floats,
    penalty: float,
    whitener: Floats | None,
    start: Floats | None,
    tolerance: float = 1e-5,
) -> Floats:
    """Minimise the mean log loss plus |w|^2 / (2 C n); return weights [r + 1, t], the intercepts last.

    Args:
        z: rows [n, r].
        targets: 0/1 columns [n, t] of `one_hot`.
        penalty: C, the inverse of the penalty on the summed loss.
        whitener: lower factor L [r, r] of an estimate of the curvature; L-BFGS sees u = L' w. None for u = w.
        start: weights to start from.
        tolerance: bound on the largest element of the gradient in u.
    """
    rows, columns = z.shape
    shape = (columns + 1, targets.shape[1])
    ridge = 1 / (penalty * rows)

    def value(flat: Floats) -> tuple[float, Floats]:
        u = flat.reshape(shape)
        coef = _solve(whitener, u[:-1], transposed=True)
        scores = z @ coef + u[-1]
        loss, slope = _loss(scores, targets)
        gradient = np.empty(shape)
        gradient[-1] = slope.sum(axis=0)
        gradient[:-1] = _solve(whitener, z.T @ slope + ridge * coef)
        return loss + 0.5 * ridge * float((coef**2).sum()), gradient.ravel()

    at = np.zeros(shape)
    if start is not None:
        at[:-1] = start[:-1] if whitener is None else whitener.T @ start[:-1]
        at[-1] = start[-1]
    options = {"maxiter": _STEPS, "maxfun": 2 * _STEPS, "gtol": tolerance, "ftol": 1e-13}
    found = minimize(value, at.ravel(), jac=True, method="L-BFGS-B", options=options).x.reshape(shape)
    found[:-1] = _solve(whitener, found[:-1], transposed=True)
    return np.asarray(found)


def _solve(whitener: Floats | None, right: Floats, transposed: bool = False) -> Floats:
    """Solve L w = right, or L' w = right."""
    if whitener is None:
        return right
    return np.asarray(solve_triangular(whitener, right, lower=True, trans=int(transposed), check_finite=False))


def _loss(scores: Floats, targets: Floats) -> tuple[float, Floats]:
    """Return the mean log loss and its slope in the scores, [n, t]."""
    rows = len(scores)
    if scores.shape[1] == 1:
        signed = np.where(targets > 0, scores, -scores)
        return float(-log_expit(signed).mean()), (np.exp(log_expit(scores)) - targets) / rows
    logs = log_softmax(scores, axis=1)
    return float(-(logs * targets).sum() / rows), (np.exp(logs) - targets) / rows
