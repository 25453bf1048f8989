"""Reads lengths of time and sizes as people write them: `1h`, `30m`, `256MB`."""

import re

from layercache.errors import RecipeError

_SECONDS = {"": 1, "S": 1, "M": 60, "H": 3600, "D": 86400}
_BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


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


def in_words(size: int) -> str:
    """Write a size in bytes with three digits: `1.23 MB`."""
    value, unit = float(size), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}" if unit != "bytes" else f"{size} bytes"


def _number(text: str, units: dict[str, int], wanted: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in units:
        raise RecipeError(f"{text!r} is not {wanted}")
    return float(match[1]) * units[match[2].upper()]
