"""A part of a run: samples by their id, so that workers who know nothing of each other share the work.

    part = parse("2/4")
    holds(part, sample_id)

Which samples a part has follows from their ids alone: not from the rows' order, nor from what is stored already. A
part is no part of a run's identity: the shards of all parts together are those of one run.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from layercache.errors import RecipeError

_DIGITS = 15
"""Hex digits of a sample id that decide: as many as every program reads as one exact integer."""
_WRITTEN = re.compile(r"(\d{1,9})/(\d{1,9})", re.ASCII)


@dataclass(frozen=True)
class Part:
    """One of `count` parts; `index` counts modulo `count`, so that 0/4 … 3/4 and 1/4 … 4/4 both cover everything."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def split(self, count: int) -> "list[Part]":
        """Return `count` smaller parts that together are this one."""
        return [Part(self.index % self.count + self.count * n, self.count * count) for n in range(count)]


WHOLE = Part(0, 1)


@dataclass(frozen=True)
class Work:
    """What one part lacks.

    Attributes:
        samples: that lack something.
        passes, tokens: forward passes under every condition, and their tokens; those of answers that are not there
            yet at full length.
        bytes: about what is added to the store.
        files: what is missing beside the samples' shards: the head, the rows.
    """

    part: Part
    samples: int = 0
    passes: int = 0
    tokens: int = 0
    bytes: int = 0
    files: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.passes or self.files)


def parse(text: str) -> Part:
    """Read a part from what a user writes: `2/4`.

    Raises:
        RecipeError: it is none.
    """
    found = _WRITTEN.fullmatch(text.strip())
    if found is None:
        raise RecipeError(f"shard {text!r}: write i/n, such as 0/4 for the first of four parts")
    index, count = map(int, found.groups())
    if count < 1:
        raise RecipeError(f"shard {text}: there must be at least one part: write i/n with n from 1")
    if index > count:
        raise RecipeError(
            f"shard {text}: of {count} parts there is none with number {index}: write 0/{count} to {count - 1}/{count}, or"
            f" count them from 1 to {count}/{count}, which is 0/{count}"
        )
    return Part(index, count)


def every(count: int) -> list[Part]:
    """Return the parts that together are everything.

    Raises:
        RecipeError: fewer than one.
    """
    if count < 1:
        raise RecipeError(f"shards {count}: there must be at least one part")
    return WHOLE.split(count)


def number(sample_id: str, count: int) -> int:
    """Say in which of `count` parts a sample is, from 0."""
    return int(sample_id[:_DIGITS], 16) % count


def holds(part: Part, sample_id: str) -> bool:
    """Tell whether a sample is in a part."""
    return number(sample_id, part.count) == part.index % part.count


def of(part: Part | None, sample_ids: Iterable[str]) -> list[str]:
    """Return the samples that are in a part, in their order; all of them without one."""
    return [one for one in sample_ids if part is None or holds(part, one)]
