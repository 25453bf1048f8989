"""Reads lengths of time and sizes as people write them, and writes sizes and runs of numbers: `1h`, `256MB`, `0–8`."""

import re
from collections.abc import Iterable

from layercache.errors import RecipeError

_SECONDS = {"": 1, "S": 1, "M": 60, "H": 3600, "D": 86400}
_BYTES = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def seconds(text: str) -> float:
    """Return a length of time in seconds: `90`, `30m`, `1h`, `7d`.

    Raises:
        RecipeError: it is none.
    """
    return _number(text, _SECONDS, "a length of time: write 30m, 1h or 7d")


def nbytes(text: str) -> int:
    """Return a size in bytes: `256MB`, `1GiB`.

    Raises:
        RecipeError: it is none, or nothing.
    """
    size = int(_number(text, _BYTES, "a size: write 256MB or 1GB"))
    if size < 1:
        raise RecipeError(f"{text!r} is not a size: write 256MB or 1GB")
    return size


def in_words(size: float) -> str:
    """Write a size in bytes for people: `1.4 MB`, `12 bytes`; powers of 1,000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def consecutive(numbers: Iterable[int]) -> list[list[int]]:
    """Part ascending numbers into runs of such as follow each other: 0, 1, 2, 5 are [0, 1, 2] and [5]."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _number(text: str, units: dict[str, int], wanted: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in units:
        raise RecipeError(f"{text!r} is not {wanted}")
    return float(match[1]) * units[match[2].upper()]
