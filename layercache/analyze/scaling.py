"""Centring and scaling inside a fold, Gram matrices, and the linear model that comes of them.

The states are centred once, globally, before any Gram matrix is formed: residual streams have
"massive" dimensions whose mean is a thousand times their spread, and the variance of such a column is
lost when it is computed as a difference of two large sums. Centring on all rows does not leak, since
each fold subtracts its own mean afterwards.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from layercache import engine

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
T = TypeVar("T")

_pool: ContextVar[ThreadPoolExecutor | None] = ContextVar("pool", default=None)

_CONSTANT = 1e-12
"""A column whose variance is below this share of its mean square (about the global mean) is constant."""


class Blocks(NamedTuple):
    """Sums over the rows of each fold, so that a fold's fitted part is a sum over the others.

    counts [b], sums [b, d], powers [b, d] (sums of squares), grams [b, d, d] or None; `folds` [b] says which
    assignment a block is of.
    """

    folds: Ints
    counts: Floats
    sums: Floats
    powers: Floats
    grams: Floats | None


class Scaling(NamedTuple):
    """Mean and scale of the fitted rows, [d] each, and their standardised Gram matrix [d, d] or None.

    `scale` is 1 for a constant column, whose standardised value is 0.
    """

    rows: int
    mean: Floats
    scale: Floats
    constant: npt.NDArray[np.bool_]
    gram: Floats | None


class Linear(NamedTuple):
    """A linear model of standardised states: coef [t, d], intercept [t], mean [d], scale [d], float64."""

    coef: Floats
    intercept: Floats
    mean: Floats
    scale: Floats

    def scores(self, x: npt.NDArray[np.floating]) -> Floats:
        """Return the model's outputs [n, t] for states [n, d]."""
        return ((x.astype(np.float64) - self.mean) / self.scale) @ self.coef.T + self.intercept


@contextmanager
def one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """Open a pool with a thread a core (at most 8, each needs memory), each doing its linear algebra alone; or the one open.

    Folds in parallel use the cores better than threads inside one small product do, results do not depend on
    the number of cores, and a busy machine does not stall (spinning BLAS threads were 100 times slower there).
    """
    if (pool := _pool.get()) is not None:
        yield pool
        return
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(min(engine.cores(), 8)) as pool:
        token = _pool.set(pool)
        try:
            yield pool
        finally:
            _pool.reset(token)


def in_order(pool: ThreadPoolExecutor | None, work: Callable[[int], T], count: int) -> list[T]:
    """Do `work(0) … work(count - 1)`, in the pool's threads when there is one; results in order."""
    return list(pool.map(work, range(count))) if pool else [work(index) for index in range(count)]


def centre(x: npt.NDArray[np.floating]) -> tuple[Floats, Floats]:
    """Return x in float64 with its global mean taken off [n, d], and that mean [d]."""
    wide = x.astype(np.float64)
    middle = wide.mean(axis=0)
    wide -= middle
    return wide, middle


def fewest_fitted(assignment: Ints) -> int:
    """Return the size of the smallest fitted part over the folds of an assignment [n]."""
    return len(assignment) - int(np.bincount(assignment[assignment >= 0]).max())


def blocks(x: Floats, assignment: Ints, gram: bool, pool: ThreadPoolExecutor | None = None) -> Blocks:
    """Sum x [n, d], its squares and, where `gram`, its products over the rows of each assignment."""
    folds = np.unique(assignment)

    def one(index: int) -> tuple[int, Floats, Floats, Floats | None]:
        part = x[assignment == folds[index]]
        return len(part), part.sum(axis=0), np.einsum("ij,ij->j", part, part), part.T @ part if gram else None

    counts, sums, powers, grams = zip(*in_order(pool, one, len(folds)))
    return Blocks(
        folds, np.array(counts, np.float64), np.array(sums), np.array(powers), np.array(grams) if gram else None
    )


def scaling(sums: Blocks, held_out: int | None) -> Scaling:
    """Scale the rows of every block but `held_out` (None: of all); population variance, as scikit-learn."""
    fitted = np.ones(len(sums.folds), bool) if held_out is None else sums.folds != held_out
    rows = float(sums.counts[fitted].sum())
    mean = sums.sums[fitted].sum(axis=0) / rows
    power = sums.powers[fitted].sum(axis=0) / rows
    variance = power - mean**2
    constant = variance <= _CONSTANT * power
    scale = np.sqrt(np.where(constant, 1.0, variance))
    gram = None
    if sums.grams is not None:
        gram = sums.grams[fitted].sum(axis=0)
        gram -= rows * np.outer(mean, mean)
        gram /= scale
        gram /= scale[:, None]
        gram[constant] = 0.0
        gram[:, constant] = 0.0
    return Scaling(int(rows), mean, scale, constant, gram)


def standardise(x: Floats, how: Scaling) -> Floats:
    """Return x [n, d] standardised; a constant column becomes 0 everywhere."""
    z: Floats = (x - how.mean) / how.scale
    z[:, how.constant] = 0.0
    return z
