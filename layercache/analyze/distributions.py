"""Numbers of next-token distributions, from logits, in NumPy.

With z the logits, p = softmax(z) and f the final layer's p, all in nats:

    logsumexp = log Σ exp z        entropy = -Σ p log p        rank = |{v : z_v > z_target}|
    kl_to_final = KL(p ‖ f) = Σ p (log p - log f)
    js_to_final = ½ KL(p ‖ m) + ½ KL(f ‖ m), m = (p + f) / 2    (= H(m) - ½ H(p) - ½ H(f))
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_FLOOR = np.float32(-10_000.0)
"""A log-probability whose exponential is 0; keeps 0 · log 0 a number where a logit is -inf."""
_TINY = np.float32(1e-38)


class Distributions(NamedTuple):
    """Distributions over a vocabulary, a row each.

    Attributes:
        logits, logp, p: float32 [n, V].
        logsumexp, entropy: float32 [n], nats.
        best: int64 [n], the most probable token.
    """

    logits: np.ndarray
    logp: np.ndarray
    p: np.ndarray
    logsumexp: np.ndarray
    entropy: np.ndarray
    best: np.ndarray


def distributions(logits: np.ndarray) -> Distributions:
    """Return the distributions of logits, float32 [n, V]; sums are in float64."""
    best = logits.argmax(axis=1)
    top = logits[np.arange(len(logits)), best, None]
    shifted = np.maximum(logits - top, _FLOOR)
    p = np.exp(shifted)
    total = p.sum(axis=1, keepdims=True, dtype=np.float64)
    log_total = np.log(total)
    p /= total.astype(np.float32)
    shifted -= log_total.astype(np.float32)
    logsumexp = (top + log_total)[:, 0].astype(np.float32)
    return Distributions(logits, shifted, p, logsumexp, -_dot(p, shifted), best)


def kl(here: Distributions, final: Distributions) -> Floats:
    """Return KL(here ‖ final), float32 [n], nats, never below 0."""
    divergence: Floats = np.maximum(-here.entropy - _dot(here.p, final.logp), 0)
    return divergence


def js(here: Distributions, final: Distributions) -> Floats:
    """Return the Jensen-Shannon divergence, float32 [n], nats, never below 0."""
    mixture = (here.p + final.p) * np.float32(0.5)
    entropy = -_dot(mixture, np.log(np.maximum(mixture, _TINY)))
    divergence: Floats = np.maximum(entropy - (here.entropy + final.entropy) * np.float32(0.5), 0)
    return divergence


def top(here: Distributions, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k most probable tokens, best first, of equal ones the smaller id: ids int64 [n, k] and log-probabilities."""
    k = min(k, here.logits.shape[1])
    ids = np.sort(np.argpartition(here.logits, -k, axis=1)[:, -k:], axis=1)
    order = np.argsort(-np.take_along_axis(here.logits, ids, axis=1), axis=1, kind="stable")
    ids = np.take_along_axis(ids, order, axis=1)
    return ids, np.take_along_axis(here.logits, ids, axis=1) - here.logsumexp[:, None]


def follow(here: Distributions, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return log-probability, float32, and rank, int32, of tokens: int64 [n, t] in, [n, t] out."""
    values = np.take_along_axis(here.logits, tokens, axis=1)
    above = [(here.logits > one[:, None]).sum(axis=1) for one in values.T]
    ranks = np.stack(above, axis=1) if above else np.empty(tokens.shape)
    return values - here.logsumexp[:, None], ranks.astype(np.int32)


def _dot(left: np.ndarray, right: np.ndarray) -> Floats:
    """Return the product of every row of `left` with that of `right`."""
    product: Floats = np.einsum("ij,ij->i", left, right, dtype=np.float64).astype(np.float32)
    return product
