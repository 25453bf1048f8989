"""Seeded changes of a prompt's words: split in two, random characters, slips of the keyboard.

The three augmentations of "Layer by Layer" (Skean et al. 2025, arXiv:2502.02013), one after the other, at the rates
that nlpaug has by default: of the words of at least four characters a share p, at least one and at most ten, and in
each such word a share p of its characters, at least one and at most ten.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from string import ascii_lowercase, ascii_uppercase, digits
from typing import NamedTuple

import numpy as np

from layercache.conditions import ANSWER, EXACT_ANSWER
from layercache.extract.conditions.draws import choose
from layercache.template import Prompt

_WORD = re.compile(r"[^\W_]{4,}")
_MOST = 10
_ROWS = (("1234567890", 0.0), ("qwertyuiop", 0.5), ("asdfghjkl", 0.75), ("zxcvbnm", 1.25))
"""The rows of a QWERTY keyboard, and how far each is shifted, in keys."""


def _neighbours() -> dict[str, str]:
    """Return of every key those that touch it: at most one row and one key's width away."""
    places = {key: (x + shift, y) for y, (row, shift) in enumerate(_ROWS) for x, key in enumerate(row)}
    near = {
        key: "".join(b for b, (u, v) in places.items() if b != key and abs(u - x) <= 1 and abs(v - y) <= 1)
        for key, (x, y) in places.items()
    }
    return near | {key.upper(): keys.upper() for key, keys in near.items() if key.isalpha()}


NEIGHBOURS = _neighbours()


class Edit(NamedTuple):
    """Characters [start, end) of a text, and what comes in their place."""

    start: int
    end: int
    new: str


def view(prompt: Prompt, rate: float, numbers: np.random.Generator) -> Prompt:
    """Change a prompt's fields, and move its spans along; the template's own words and an answer stay as they are.

    Args:
        rate: share of the words, and of a word's characters.
        numbers: what is drawn from.
    """
    for change in (_split, _random_characters, _slips):
        words = _words(prompt)
        chosen = choose(np.arange(len(words)), _share(rate, len(words)), numbers).tolist()
        ranges = [words[n] for n in chosen]
        edits = [edit for start, end in ranges for edit in change(prompt.text, start, end, rate, numbers)]
        prompt = apply(prompt, edits)
    return prompt


def _share(rate: float, n: int) -> int:
    return min(max(int(rate * n), 1), _MOST, n)


def _words(prompt: Prompt) -> list[tuple[int, int]]:
    """List the character ranges of the words that may change."""
    answers = [prompt.spans[name] for name in (ANSWER, EXACT_ANSWER) if name in prompt.spans]
    # A template that is one field called `prompt`, or has none, has no span of its own: all of it may change.
    fields = [ends for ends in prompt.spans.values() if ends not in answers] or [(0, len(prompt.text))]
    found = {
        match.span()
        for start, end in fields
        for match in _WORD.finditer(prompt.text, start, end)
        if not any(match.start() < stop and match.end() > begin for begin, stop in answers)
    }
    # Spans may lie in one another: of words that overlap, the first and longest.
    words: list[tuple[int, int]] = []
    for start, end in sorted(found, key=lambda ends: (ends[0], -ends[1])):
        if not words or start >= words[-1][1]:
            words.append((start, end))
    return words


def apply(prompt: Prompt, edits: Sequence[Edit]) -> Prompt:
    """Carry out edits that do not overlap, and move the spans along."""
    if not edits:
        return prompt
    edits = sorted(edits)
    pieces: list[str] = []
    end, shifts = 0, [0]
    for edit in edits:
        pieces += [prompt.text[end : edit.start], edit.new]
        end = edit.end
        shifts.append(shifts[-1] + len(edit.new) - (edit.end - edit.start))
    text = "".join([*pieces, prompt.text[end:]])
    ends = [edit.end for edit in edits]

    def move(place: int) -> int:
        return place + shifts[bisect_right(ends, place)]

    spans = {name: (move(start), move(end)) for name, (start, end) in prompt.spans.items()}
    return replace(prompt, text=text, spans=spans)


def _split(text: str, start: int, end: int, rate: float, numbers: np.random.Generator) -> list[Edit]:
    place = start + 1 + int(numbers.random() * (end - start - 1))
    return [Edit(place, place, " ")]


def _random_characters(text: str, start: int, end: int, rate: float, numbers: np.random.Generator) -> list[Edit]:
    return _substitutes(text, list(range(start, end)), rate, numbers, _any)


def _slips(text: str, start: int, end: int, rate: float, numbers: np.random.Generator) -> list[Edit]:
    there = [place for place in range(start, end) if text[place] in NEIGHBOURS]
    return _substitutes(text, there, rate, numbers, NEIGHBOURS.__getitem__)


def _substitutes(
    text: str, places: list[int], rate: float, numbers: np.random.Generator, instead: Callable[[str], str]
) -> list[Edit]:
    """Put other characters into a share of the places, each drawn from those that `instead` gives for it."""
    edits = []
    for place in choose(np.array(places, dtype=int), _share(rate, len(places)), numbers).tolist():
        others = instead(text[place])
        edits.append(Edit(place, place + 1, others[int(numbers.random() * len(others))]))
    return edits


def _any(character: str) -> str:
    """Return the characters that may come in one's place: other digits, or other letters of the same case."""
    kind = digits if character.isdigit() else ascii_uppercase if character.isupper() else ascii_lowercase
    return kind.replace(character, "")
