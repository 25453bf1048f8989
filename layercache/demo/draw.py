"""Reproducible random choices: the same on every Python version and whatever PYTHONHASHSEED says.

Only `random.Random.random()` is used, whose sequence for an integer seed Python promises to keep.
"""

import random
import zlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """A named stream of random choices."""

    def __init__(self, name: str, seed: int = 0) -> None:
        self._random = random.Random(zlib.crc32(name.encode()) + (seed << 32)).random

    def below(self, n: int) -> int:
        """An integer in 0…n-1."""
        return int(self._random() * n)

    def uniform(self, low: float, high: float) -> float:
        """A number between low and high."""
        return low + (high - low) * self._random()

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return self._random() < p

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.below(len(items))]

    def other(self, items: Sequence[T], *taken: T) -> T:
        """One of the items that is none of those taken."""
        while (item := self.pick(items)) in taken:
            pass
        return item

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in a random order."""
        result = list(items)
        for i in range(len(result) - 1, 0, -1):
            j = self.below(i + 1)
            result[i], result[j] = result[j], result[i]
        return result

    def sample(self, items: Sequence[T], k: int) -> list[T]:
        """k different items (by position)."""
        return self.shuffled(items)[:k]
