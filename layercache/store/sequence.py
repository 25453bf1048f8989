"""Files outside shards, of which the newest counts: `<name>-<seq>-<sha16>.parquet` (rows) or `.json` (recipes).

The name ends in the content's sha256, so that two writers never write different things to one name.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

from layercache.errors import StoreError
from layercache.store.layout import ROWS, listed

_SEQUENCED = re.compile(r"(?P<name>.+)-(?P<seq>[0-9]{6,})-(?P<sha>[0-9a-f]{16})\.(?P<suffix>parquet|json)")


class SequencedFile(NamedTuple):
    """A file outside shards: what it is of, its place in the sequence, its path."""

    name: str
    seq: int
    path: Path


def file_name(name: str, seq: int, data: bytes, suffix: str) -> str:
    """Return the file name `<name>-<seq>-<sha16>.<suffix>`; `name` is percent-encoded.

    Raises:
        StoreError: the name is too long for a file system.
    """
    encoded = quote(name, safe="")
    if not name or len(encoded) > 200:
        raise StoreError(f"name {name[:40]!r} cannot be stored: give one of 1 to 200 letters (others count for more)")
    return f"{encoded}-{seq:06d}-{hashlib.sha256(data).hexdigest()[:16]}.{suffix}"


def files(folder: Path, suffix: str) -> list[SequencedFile]:
    """List the sequenced files of a folder, oldest first within a name; other files are not looked at.

    Raises:
        StoreError: the folder cannot be looked into.
    """
    found = [file for name in listed(folder) if (file := parse(folder / name)) and name.endswith(f".{suffix}")]
    return sorted(found, key=lambda file: (file.name, file.seq, file.path.name))


def parse(path: Path) -> SequencedFile | None:
    """Read the name of a sequenced file; None for another one."""
    match = _SEQUENCED.fullmatch(path.name)
    return SequencedFile(unquote(match["name"]), int(match["seq"]), path) if match else None


def newest(files: Iterable[SequencedFile]) -> dict[str, SequencedFile]:
    """Return the newest file of every name: the highest sequence number, of equal ones the larger file name."""
    return {file.name: file for file in sorted(files, key=lambda file: (file.seq, file.path.name))}


def newest_rows(run: Path) -> dict[str, SequencedFile]:
    """Return the newest rows file of every data set of a run, given the run's directory.

    Raises:
        StoreError: the folder cannot be looked into.
    """
    return newest(files(run / ROWS, "parquet"))
