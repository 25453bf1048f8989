"""Files of which only some bytes are here: of the right size, with a hole where nothing was fetched.

A Parquet file whose footer and some row groups are there is read like any other, as long as only those are read.
"""

import os
from pathlib import Path

import pyarrow as pa

from layercache.errors import StoreError
from layercache.store.files import open_parquet
from layercache.store.holdings import Outputs
from layercache.store.row_groups import groups_of, ranges
from layercache.store.states import unreadable

TAIL = 64 * 2**10
"""Bytes at a Parquet file's end that are fetched first: most footers are shorter."""
_MAGIC = b"PAR1"


def make(path: Path, size: int) -> None:
    """Make a file of `size` bytes that takes no room."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def put(path: Path, start: int, data: bytes) -> None:
    """Write bytes in their place."""
    handle = os.open(path, os.O_WRONLY)
    try:
        done = 0
        while done < len(data):
            done += os.pwrite(handle, data[done:], start + done)
    finally:
        os.close(handle)


def footer(tail: bytes, size: int) -> int:
    """Say where the footer of a Parquet file begins.

    Args:
        tail: the file's last bytes, at least eight.
        size: the file's size in bytes.

    Raises:
        ValueError: it is not a Parquet file.
    """
    if len(tail) < 8 or tail[-4:] != _MAGIC:
        raise ValueError("it does not end as a Parquet file does")
    start = size - 8 - int.from_bytes(tail[-8:-4], "little")
    if start < 0:
        raise ValueError("its footer is said to be longer than it is")
    return start


def needed(path: Path, table: str, outputs: Outputs) -> list[tuple[int, int]]:
    """List the bytes [start, stop) of a table's file, whose footer is there, in which rows of the outputs may be.

    Raises:
        StoreError: the footer cannot be read, or points outside the file.
    """
    try:
        with open_parquet(path) as file:
            found = ranges(file.metadata, groups_of(file.metadata, table, outputs))
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error
    if any(start < 0 or stop > path.stat().st_size for start, stop in found):
        raise StoreError(f"{path} cannot be read (its footer points outside it): run `layercache verify --deep`")
    return found


def forget(path: Path, keep: int) -> None:
    """Make a hole of all that comes before byte `keep`."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(keep)
        tail = file.read()
    make(path, size)
    put(path, keep, tail)
