"""Seeded draws that depend on a key alone: not on the batch, the order, or which other samples there are."""

import hashlib

import numpy as np


def stream(*key: object) -> np.random.Generator:
    """Return random numbers that follow from the key."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng(int.from_bytes(digest))


def uniforms(n: int, *key: object) -> np.ndarray:
    """Return n numbers, float64 in [0, 1), that follow from the key; the first k of them do not depend on n."""
    return stream(*key).random(n)


def choose(items: np.ndarray, k: int, numbers: np.random.Generator) -> np.ndarray:
    """Return k different ones of n items [n], in their order, every set of k equally likely: [k], of the same dtype."""
    return items[np.sort(np.argsort(numbers.random(len(items)), kind="stable")[:k])]
