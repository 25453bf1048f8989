"""What a mirror holds of its bucket: a line of JSON a key, the last line of a key counts."""

import json
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

INDEX = ".index"


class Held(NamedTuple):
    """The object behind a file of a mirror."""

    size: int
    etag: str


def load(root: Path) -> Mapping[str, Held]:
    """Return what the mirror in a folder holds, by key; nothing where that is not known. Not to be changed."""
    try:
        found = (root / INDEX).stat()
    except FileNotFoundError:
        return {}
    return _load(root, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=8)
def _load(root: Path, *version: int) -> Mapping[str, Held]:
    held: dict[str, Held] = {}
    for line in (root / INDEX).read_bytes().splitlines():
        try:
            key, size, etag = json.loads(line)
            held[str(key)] = Held(int(size), str(etag))
        except (ValueError, TypeError):
            continue  # A line cut short: its key is looked up in the bucket again.
    return held


def save(root: Path, held: Mapping[str, Held]) -> None:
    """Replace the index."""
    temporary = root / f"{INDEX}.{os.getpid()}"
    temporary.write_bytes(_lines(held.items()))
    temporary.replace(root / INDEX)


def add(root: Path, held: Iterable[tuple[str, Held]]) -> None:
    """Add keys to the index."""
    with (root / INDEX).open("ab") as file:
        file.write(_lines(held))


def _lines(held: Iterable[tuple[str, Held]]) -> bytes:
    return "".join(f"{json.dumps([key, *entry])}\n" for key, entry in held).encode()
