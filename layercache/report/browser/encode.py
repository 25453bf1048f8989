"""Numbers and texts of the sample browser, written short: texts once, numbers with three or four digits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from layercache.report.text import plain, script_json

Floats = npt.NDArray[np.float64]
SHORT, WHOLE = 600, 10_000
"""Parts of one that a probability is written in are `WHOLE`; characters that a text may have, `SHORT`."""


class Tables:
    """Texts and tokens of the page, each held once and meant by its number."""

    def __init__(self) -> None:
        self._texts: dict[str, int] = {}
        self._tokens: dict[tuple[str, int], int] = {}
        self.bytes = 0
        """What they take in the page."""

    def text(self, text: str | None, most: int | None = SHORT) -> int | None:
        """Return the number of a text, made plain and cut to `most` characters; None for none."""
        if text is None:
            return None
        shown = plain(cut(text, most), keep="\n\t")
        if shown not in self._texts:
            self._texts[shown] = len(self._texts)
            self.bytes += size(shown) + 1
        return self._texts[shown]

    def token(self, text: str | None, number: int) -> int:
        """Return the number of a token, of its text and its id in the vocabulary."""
        key = plain(text or "", keep="\n\t"), int(number)
        if key not in self._tokens:
            self._tokens[key] = len(self._tokens)
            self.bytes += size(key[0]) + len(str(key[1])) + 2
        return self._tokens[key]

    def mark(self) -> tuple[int, int, int]:
        """Return what `undo` goes back to."""
        return len(self._texts), len(self._tokens), self.bytes

    def undo(self, mark: tuple[int, int, int]) -> None:
        """Forget what came after a mark."""
        while len(self._texts) > mark[0]:
            self._texts.popitem()
        while len(self._tokens) > mark[1]:
            self._tokens.popitem()
        self.bytes = mark[2]

    def json(self) -> dict[str, list[Any]]:
        """Return the tables: a text, and a token's text and id, at the place of its number."""
        return {
            "texts": list(self._texts),
            "token_texts": [text for text, _ in self._tokens],
            "token_ids": [number for _, number in self._tokens],
        }


def size(value: Any) -> int:
    """Return the bytes that a value takes in the page."""
    return len(script_json(value).encode())


def cut(text: str, most: int | None = SHORT) -> str:
    """Return a text of at most `most` characters, with a sign that it was longer."""
    return text if most is None or len(text) <= most else f"{text[: most - 1]}…"


def probabilities(values: Floats) -> list[Any]:
    """Write probabilities in parts of `WHOLE`; None where there is none. Lists as the array, of any shape, is nested."""
    return integers(values * WHOLE)


def hundredths(values: Floats) -> list[Any]:
    """Write nats or percentage points in hundredths; lists as the array, of any shape, is nested."""
    return integers(values * 100)


def integers(values: Floats) -> list[Any]:
    """Round to integers; None where a value is not finite. Lists as the array, of any shape, is nested."""
    known = np.isfinite(values)
    rounded = np.where(known, np.rint(values), 0).astype(np.int64)
    found: npt.NDArray[Any] = rounded.astype(object)
    found[~known] = None
    return list(found.tolist())


def significant(values: Sequence[float | None] | Floats, digits: int = 4) -> list[float | int | None]:
    """Round numbers [n] to so many digits; None where a value is missing or not finite."""
    return [None if value is None or not np.isfinite(value) else _short(float(value), digits) for value in values]


def _short(value: float, digits: int) -> float | int:
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
