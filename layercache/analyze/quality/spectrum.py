"""Matrix-based entropy and effective rank of the states of a data set.

The states are centred over the data set, then each is brought to unit norm; the spectrum is that of their Gram matrix
divided by its trace, computed in float64 on the smaller side (the Gram matrix [n, n] and the second moment [d, d] have
the same non-zero eigenvalues). Eigenvalues below 0 by rounding become 0; entries of the Gram matrix are never changed,
since a cosine below 0 is a cosine.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from layercache.analyze.quality.estimates import Estimate, Floats, from_influence
from layercache.analyze.scaling import centre
from layercache.errors import AnalysisError

ENOUGH = 3
"""Samples for each element of a state, below which an effective rank gets no interval: it is then made of directions
that a few samples alone span, and what one sample adds to them is not small."""
_ROWS = 1024
"""Rows projected at once."""


class Spectrum(NamedTuple):
    """Eigenvalues [r] of a trace-one Gram matrix, none 0, and what projects the samples on their directions.

    `vectors` are eigenvectors [d, r] of the second moment, or [n, r] of the Gram matrix; None where only the
    eigenvalues were asked for.
    """

    values: Floats
    vectors: Floats | None
    of_samples: bool
    trace: float


def unit(x: npt.NDArray[np.floating]) -> Floats:
    """Return states [n, d] centred over the rows, each row then of unit norm, float64; a row at the mean stays 0.

    Raises:
        AnalysisError: all rows are the same.
    """
    refuse_constant(x)
    z, _ = centre(x)
    return normalised(z)


def normalised(z: Floats) -> Floats:
    """Bring every row of [n, d] to unit norm, in place; rows of 0 stay."""
    norms = np.linalg.norm(z, axis=1, keepdims=True)
    np.divide(z, norms, out=z, where=norms > 0)
    return z


def refuse_constant(x: npt.NDArray[np.floating]) -> None:
    """Refuse states [n, d] that do not differ, or fewer than two.

    Raises:
        AnalysisError: saying so.
    """
    if len(x) < 2:
        raise AnalysisError(f"{len(x)} sample with a state, and at least 2 are needed")
    if constant(x):
        raise AnalysisError(f"all {len(x):,} states are the same")


def constant(x: npt.NDArray[np.floating]) -> bool:
    """Tell whether all rows [n, d] are the same."""
    return not (x[1:] != x[:1]).any()


def of_states(z: Floats, intervals: bool = True) -> Spectrum:
    """Return the spectrum of unit rows [n, d], from the smaller of the Gram matrix and the second moment."""
    n, d = z.shape
    return of_gram(z @ z.T, intervals) if n <= d else of_gram(z.T @ z, intervals)._replace(of_samples=False)


def of_gram(gram: Floats, intervals: bool = True) -> Spectrum:
    """Return the spectrum of a Gram matrix of samples [n, n], positive semi-definite."""
    trace = float(np.trace(gram))
    if intervals:
        values, vectors = np.linalg.eigh(gram)
    else:
        values, vectors = np.linalg.eigvalsh(gram), None
    values = values / trace
    # What is below the rounding error of the largest is 0.
    kept = values > values[-1] * len(gram) * np.finfo(np.float64).eps
    return Spectrum(values[kept] / values[kept].sum(), None if vectors is None else vectors[:, kept], True, trace)


def entropy(values: Floats, alpha: float) -> float:
    """Rényi entropy of order alpha of eigenvalues [r] that sum to 1, nats (Giraldo, Rao & Príncipe 2014).

    Order 1 is the von Neumann entropy, the limit.
    """
    if alpha == 1:
        return float(-(values * np.log(values)).sum())
    return float(np.log((values**alpha).sum()) / (1 - alpha))


def entropy_slope(values: Floats, alpha: float) -> Floats:
    """Derivative of that entropy by each eigenvalue [r]."""
    if alpha == 1:
        return np.asarray(-np.log(values) - 1)
    return np.asarray(alpha / (1 - alpha) * values ** (alpha - 1) / (values**alpha).sum())


def rank_entropy(values: Floats) -> float:
    """Logarithm of the effective rank (Roy & Vetterli 2007): the entropy, nats, of the singular values' shares.

    Of eigenvalues [r] that sum to 1.
    """
    shares = np.sqrt(values) / np.sqrt(values).sum()
    return float(-(shares * np.log(shares)).sum())


def rank_slope(values: Floats) -> Floats:
    """Derivative of that by each eigenvalue [r]."""
    roots = np.sqrt(values)
    return np.asarray(-(np.log(roots / roots.sum()) + rank_entropy(values)) / (2 * roots * roots.sum()))


def influences(spectrum: Spectrum, z: Floats | None, slopes: Sequence[Floats]) -> list[Floats | None]:
    """Return how much each sample moves functions of the eigenvalues whose derivatives are `slopes` [r], [n] each.

    A sample z with squared projections c_k on the eigenvectors moves eigenvalue k by c_k minus it (first-order
    perturbation), with the centring held fixed. With fewer samples than elements of a state the errors that follow
    from it are too small, by up to a quarter for the entropy. Where no eigenvectors are known, None.

    Args:
        spectrum: of the rows.
        z: the unit rows [n, d]; not needed where the spectrum is of their Gram matrix.
        slopes: the derivatives.
    """
    if spectrum.vectors is None:
        return [None] * len(slopes)
    by = np.column_stack(slopes)
    if spectrum.of_samples:
        moved = (spectrum.vectors**2 * (spectrum.trace * spectrum.values)) @ by
    else:
        assert z is not None
        steps = range(0, len(z), _ROWS)
        moved = np.concatenate([(z[at : at + _ROWS] @ spectrum.vectors) ** 2 @ by for at in steps])
    moved -= spectrum.values @ by
    return list(moved.T)


def summarise(x: npt.NDArray[np.floating], alpha: float, intervals: bool) -> dict[str, Estimate]:
    """Return entropy (raw, and divided by the most it can be, ln min(n, d)) and effective rank of states [n, d].

    Raises:
        AnalysisError: fewer than two states, or all are the same.
    """
    z = unit(x)
    n, most = len(z), math.log(min(z.shape))
    found = of_states(z, intervals)
    slopes = [entropy_slope(found.values, alpha), rank_slope(found.values)]
    of_entropy, of_rank = influences(found, z, slopes)
    raw = from_influence(entropy(found.values, alpha), of_entropy, n, 0.0, most)
    known = of_rank if n >= ENOUGH * z.shape[1] else None
    rank = from_influence(rank_entropy(found.values), known, n, 0.0, most)
    parts = {"dataset_entropy": raw, "dataset_effective_rank": _each(rank, math.exp)}
    if most > 0:
        parts["dataset_entropy_normalized"] = _each(raw, lambda value: value / most)
    return parts


def _each(estimate: Estimate, change: Callable[[float], float]) -> Estimate:
    low, high = (None if end is None else change(end) for end in (estimate.low, estimate.high))
    return Estimate(change(estimate.value), low, high, estimate.n)
