"""The noise floor: what the study's procedure gives when the changed pass is replaced by noise that knows nothing.

Splitting samples by whether they flip and averaging ΔP within the groups is a split on the outcome: samples that flip have
lost at least what it takes to flip. Here the log-odds under the change are the clean ones plus Gaussian noise of mean zero,
the same for right and wrong answers, for sure and unsure samples, whatever the question. Rules:

    size        at every layer, and for every condition, the standard deviation is such that the expected flip rate of the
                noise is the condition's own, which is what a reader would hold a figure against
    ceiling     noise without direction flips fewer than half; a condition that flips more gets noise that flips CEILING
    layers      a sample's noise at a layer is correlated with its noise at the layer of the groups as strongly as the
                condition's own changes of the log-odds are, since a perturbed state stays perturbed in the layers above
    conditions  where groups are those of another condition, the two noises are independent
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import ndtr

from layercache.analyze.delta_p_effect import effect

Floats = npt.NDArray[np.float64]

CEILING = 0.49
"""The largest flip rate that noise is fitted to."""


class Change(NamedTuple):
    """The clean log-odds of some samples and their changes under a condition, [layers, n] each."""

    clean: Floats
    change: Floats

    @property
    def flip_rate(self) -> Floats:
        """The condition's own flip rate at every layer, [layers]."""
        return np.asarray(effect(self.clean, self.clean + self.change).flip.mean(axis=1))


class Floor(NamedTuple):
    """What the noise gives at one layer, a value a draw: over all samples, and within its own two groups.

    `delta_p` [3, draws] and `flip_rate` [3, draws] are of all, the flipped and the unflipped; `size` [3, draws] counts them.
    """

    delta_p: Floats
    flip_rate: Floats
    size: Floats


def scale(clean: Floats, flip_rate: float) -> float:
    """Return the standard deviation of zero-mean Gaussian noise that flips this share of log-odds [n] in expectation.

    The expectation is the mean of Φ(−|log-odds| / sd): it rises with sd from 0 to one half.
    """
    wanted = min(flip_rate, CEILING)
    if wanted <= 0:
        return 0.0
    margins = np.maximum(np.abs(clean), 1e-12)
    top = float(margins.max())
    while ndtr(-margins / top).mean() < wanted:
        top *= 2
    return float(brentq(lambda sd: ndtr(-margins / max(sd, 1e-300)).mean() - wanted, 0.0, top, xtol=1e-9, rtol=1e-9))


def correlations(change: Floats, anchor: Floats) -> Floats:
    """Correlate changes of log-odds [layers, n] with those at the layer of the groups [n]; 0 where either is constant."""
    a, b = change - change.mean(axis=1, keepdims=True), anchor - anchor.mean()
    size = np.sqrt((a**2).sum(axis=1) * (b**2).sum())
    return np.asarray(np.divide(a @ b, size, out=np.zeros(len(a)), where=size > 0))


def floors(own: Change, anchor: Change | None, at: int | None, draws: int, seed: int) -> Iterator[Floor]:
    """Draw noise in place of a condition and put it through the study's procedure, a layer at a time.

    Args:
        own: the condition on some samples.
        anchor: the condition by whose flips the same samples are grouped; None where that is the condition itself.
        at: the index of the layer that groups are fixed at; None for groups of each layer's own flips.
        draws: how often noise is drawn.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    shape = (draws, own.clean.shape[1])
    leader = own if anchor is None else anchor
    first = rng.standard_normal(shape)
    rates = leader.flip_rate
    if at is not None:
        fixed = _flips(leader.clean[at], scale(leader.clean[at], rates[at]) * first)
        shared = correlations(own.change, own.change[at]) if anchor is None else np.zeros(len(own.clean))
    for layer, (clean, rate) in enumerate(zip(own.clean, own.flip_rate)):
        own_part = rng.standard_normal(shape)
        if at is None:
            fixed = _flips(leader.clean[layer], scale(leader.clean[layer], rates[layer]) * first)
            noise = first if anchor is None else own_part
        else:
            noise = shared[layer] * first + np.sqrt(max(1 - shared[layer] ** 2, 0.0)) * own_part
        found = effect(np.broadcast_to(clean, shape), clean + scale(clean, rate) * noise)
        yield _floor(found.delta_p, found.flip, fixed)


def flips(clean: Floats, flipped: Floats, rows: npt.NDArray[np.bool_], draws: int, seed: int) -> npt.NDArray[np.bool_]:
    """Draw which samples noise flips that flips as many as a condition does, at one layer: bool [draws, n].

    Args:
        clean: log-odds of all samples [n].
        flipped: which of them the condition flips [n], 0 or 1, NaN where that is not known.
        rows: those that are looked at [n]; the others are not flipped.
        draws, seed: as in `floors`.
    """
    found = np.zeros((draws, len(clean)), np.bool_)
    first = np.random.default_rng(seed).standard_normal((draws, int(rows.sum())))
    found[:, rows] = _flips(clean[rows], scale(clean[rows], float(flipped[rows].mean())) * first)
    return found


def _flips(clean: Floats, noise: Floats) -> npt.NDArray[np.bool_]:
    return np.asarray((clean > 0) != (clean + noise > 0))


def _floor(delta_p: Floats, flip: Floats, group: npt.NDArray[np.bool_]) -> Floor:
    parts = [np.ones_like(group), group, ~group]
    sizes = np.array([part.sum(axis=1) for part in parts], np.float64)

    def means(values: Floats) -> Floats:
        sums = np.array([np.where(part, values, 0.0).sum(axis=1) for part in parts])
        return np.asarray(np.divide(sums, sizes, out=np.full(sums.shape, np.nan), where=sizes > 0))

    return Floor(means(delta_p), means(flip), sizes)
