"""What of a sample's state stays under views of its prompt: InfoNCE, LiDAR and DiME.

The views' states are centred together, over all samples and views, then each is brought to unit norm. Beside each number
stands what it is when the views are paired at random.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from layercache.analyze.quality import spectrum
from layercache.analyze.quality.estimates import Estimate, Floats, Ints, States, from_influence
from layercache.errors import AnalysisError

_ROWS = 1024


class Contrast(NamedTuple):
    """InfoNCE of each sample [n], with its own other view and with that of a sample drawn at random."""

    losses: Floats
    shuffled: Floats


class Lidar(NamedTuple):
    """LiDAR of samples and their views, and of views dealt to the samples at random."""

    value: float
    shuffled: float


class Dime(NamedTuple):
    """DiME of two views, and of the second dealt to the samples at random."""

    value: Estimate
    shuffled: Estimate


def unit_views(views: Sequence[npt.NDArray[np.floating]]) -> list[States]:
    """Centre views [n, d] together and bring every state to unit norm; float32.

    Raises:
        AnalysisError: fewer samples than views, fewer than two of either, or all states are the same.
    """
    count, n = len(views), len(views[0])
    if count < 2:
        raise AnalysisError("one view alone, and invariance needs at least 2: run `layercache extract --augment 2`")
    if n < count:
        raise AnalysisError(
            f"{n:,} samples with {count} views each: invariance needs at least as many samples as views"
        )
    if not any((view != views[0][:1]).any() for view in views):
        raise AnalysisError(f"all {n * count:,} states of all views are the same")
    middle = np.mean([view.mean(axis=0, dtype=np.float64) for view in views], axis=0)
    return [spectrum.normalised(view - middle).astype(np.float32) for view in views]


def infonce(a: States, b: States, temperature: float, seed: int) -> Contrast:
    """InfoNCE of unit rows a and b [n, d], nats a sample (van den Oord, Li & Vinyals 2018).

    The loss of sample i is that of finding b_i among all rows of b by cosine / temperature with a_i: ln n where the
    states tell no sample from another, 0 where they single out the right one.
    """
    n = len(a)
    deal = derangement(n, seed)
    losses, shuffled = np.empty(n), np.empty(n)
    for start in range(0, n, _ROWS):
        block = slice(start, min(start + _ROWS, n))
        scores = a[block] @ b.T
        scores /= np.float32(temperature)
        largest = scores.max(axis=1)
        total = largest + np.log(np.exp(scores - largest[:, None]).sum(axis=1, dtype=np.float64))
        at = np.arange(len(scores))
        losses[block] = total - scores[at, np.arange(start, block.stop)]
        shuffled[block] = total - scores[at, deal[block]]
    return Contrast(losses, shuffled)


def lidar(views: Sequence[States], delta: float, seed: int) -> Lidar:
    """LiDAR of unit rows, views [n, d] each (Thilak et al. 2023, eqs. 1-3): how many directions tell samples apart.

    Samples are the classes, views their members; the eigenvalues of within^-1/2 between within^-1/2, as shares of
    their sum, have an entropy whose exponential this is. `delta` is added to the diagonal of `within`. The 1e-7 that
    the paper adds to every share is left out. No interval: the covariances of a bootstrap are those of fewer samples.
    """
    n = len(views[0])
    middle = np.mean([view.mean(axis=0, dtype=np.float64) for view in views], axis=0)
    total = np.mean([(view.T @ view).astype(np.float64) for view in views], axis=0) / n - np.outer(middle, middle)
    rng = np.random.default_rng(seed)
    dealt = [views[0], *(view[rng.permutation(n)] for view in views[1:])]
    return Lidar(*(_lidar(_means(one), total, middle, delta) for one in (views, dealt)))


def _means(views: Sequence[States]) -> Floats:
    """Mean of each sample's views, [n, d]."""
    total = views[0].astype(np.float64)
    for view in views[1:]:
        total += view
    return total / len(views)


def _lidar(means: Floats, total: Floats, middle: Floats, delta: float) -> float:
    means -= middle
    n, d = means.shape
    between = means.T @ means / n
    try:
        lower = cholesky(total - between + delta * np.eye(d), lower=True, overwrite_a=True)
    except LinAlgError as error:
        raise AnalysisError(f"LiDAR's within-sample covariance is singular: raise lidar_delta ({delta:g})") from error
    if n > d:
        half = solve_triangular(lower, between, lower=True)
        gram = solve_triangular(lower, half.T, lower=True)
    else:
        half = solve_triangular(lower, means.T, lower=True)
        gram = half.T @ half
    return math.exp(spectrum.entropy(spectrum.of_gram((gram + gram.T) / 2, intervals=False).values, 1.0))


def dime(a: States, b: States, alpha: float, permutations: int, seed: int) -> Dime:
    """DiME of unit rows a and b [n, d], nats (Skean, Osorio, Brockmeier & Giraldo 2023).

    It is the mean, over shuffled pairings, of the matrix-based joint entropy S(A ∘ B) minus that of the true pairing,
    where A and B are the Gram matrices. Both are of samples, [n, n]: the joint entropy is one of pairs of states, and
    has no smaller side. The number for chance is one shuffled pairing held against the others.
    """
    n = len(a)
    of_a, of_b = (z @ z.T for z in (a.astype(np.float64), b.astype(np.float64)))
    rng = np.random.default_rng(seed)
    joint, of_joint = _joint(of_a, of_b, np.arange(n), alpha)
    values, moved = [], []
    for _ in range(permutations + 1):
        deal = rng.permutation(n)
        value, influence = _joint(of_a, of_b, deal, alpha)
        back = np.empty_like(influence)
        back[deal] = influence
        values.append(value)
        # A sample is in two of the shuffled pairs: with its own a, and with its own b.
        moved.append(influence + back)
    mean, ceiling = float(np.mean(values[:-1])), math.log(n)
    whole = from_influence(mean - joint, np.mean(moved[:-1], axis=0) - of_joint, n, -ceiling, ceiling)
    return Dime(whole, Estimate(mean - values[-1], None, None, n))


def _joint(a: Floats, b: Floats, deal: Ints, alpha: float) -> tuple[float, Floats]:
    """Joint entropy of Gram matrices, the rows of the second dealt anew, and each pair's influence on it [n]."""
    found = spectrum.of_gram(a * b[np.ix_(deal, deal)])
    (influence,) = spectrum.influences(found, None, [spectrum.entropy_slope(found.values, alpha)])
    assert influence is not None
    return spectrum.entropy(found.values, alpha), influence


def derangement(n: int, seed: int) -> Ints:
    """Return another row for each of n > 1 rows, int64 [n], drawn at random: a cycle through all in a random order."""
    order = np.random.default_rng(seed).permutation(n)
    deal = np.empty(n, dtype=np.int64)
    deal[order] = np.roll(order, 1)
    return deal
