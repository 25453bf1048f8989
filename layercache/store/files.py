"""Opens the files of a store wherever their bytes are: on the disk, or in the bucket that a mirror is of.

Whatever reads a shard's tables or a head, or hashes any file of a store, opens it here.
"""

import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from layercache.store import mirror
from layercache.store.remote import ranged
from layercache.store.remote.blocks import Span

_MAGIC = b"PAR1"
_TAIL = (4096, 65536)
"""The least and the most that is read to find a file's footer: more of a larger file, of which it is nothing."""
_TAIL_PART = 512
_CHUNK = 64 * 2**20
"""Read at once of a file that is read whole: of a bucket's, several requests."""
_ENDING = struct.Struct("<I4s")

Wanted = Callable[[Any], Iterable[tuple[int, Sequence[str]]]]
"""Given a Parquet file's metadata, the row groups and their columns that are going to be read."""


def open_binary(path: Path | str) -> BinaryIO:
    """Open a file for reading.

    Raises:
        OSError: it cannot be opened.
        StoreError: the bucket cannot be read.
    """
    remote = mirror.remote(path)
    return open(path, "rb") if remote is None else cast(BinaryIO, ranged.RemoteFile(remote))


def sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex; errors as `open_binary`."""
    with open_binary(path) as file:
        digest = hashlib.sha256()
        while data := file.read(_CHUNK):
            digest.update(data)
        return digest.hexdigest()


def open_on_disk(path: Path) -> BinaryIO:
    """Open a file of this machine that holds the same bytes, for what has to be mapped into memory.

    Of a bucket's it is one of the cache, which may make room at any time; what is open stays whole. Errors as `open_binary`.
    """
    remote = mirror.remote(path)
    return open(path, "rb") if remote is None else ranged.whole(remote)


def open_parquet(path: Path, **options: Any) -> Any:
    """Open a Parquet file whose pages are checked against their checksums as they are read."""
    remote = mirror.remote(path)
    if remote is None:
        return pq.ParquetFile(path, page_checksum_verification=True, **options)
    file = ranged.RemoteFile(remote)
    options["pre_buffer"] = False
    return _InThisThread(file, metadata=_metadata(file), page_checksum_verification=True, **options)


class _InThisThread(pq.ParquetFile):  # type: ignore[misc]
    """A Parquet file read through a file of Python's, in the thread that asks for it alone.

    A thread of Arrow's own that still holds something of Python's when the interpreter ends makes the process abort,
    after all its work is done. What is read has been fetched before, many requests at once (`fetch`).
    """

    def read(self, *args: Any, **options: Any) -> Any:
        return super().read(*args, **{**options, "use_threads": False})

    def read_row_group(self, *args: Any, **options: Any) -> Any:
        return super().read_row_group(*args, **{**options, "use_threads": False})

    def read_row_groups(self, *args: Any, **options: Any) -> Any:
        return super().read_row_groups(*args, **{**options, "use_threads": False})


def fetch(paths: Iterable[Path], wanted: Wanted) -> None:
    """Bring what is going to be read of many Parquet files here at once; files on the disk are let be.

    One after the other, each would wait for the bucket.
    """
    remotes = [remote for path in paths if (remote := mirror.remote(path)) is not None]
    if not remotes:
        return
    with ExitStack() as stack:
        opened = [stack.enter_context(ranged.RemoteFile(remote)) for remote in remotes]
        spans = ranged.for_all(lambda file: _spans(_metadata(file), wanted), opened)
        ranged.fetch_all(opened, spans)


def fetch_whole(paths: Iterable[Path]) -> None:
    """Bring whole files here at once; files on the disk are let be."""
    remotes = [remote for path in paths if (remote := mirror.remote(path)) is not None]
    if remotes:
        with ExitStack() as stack:
            opened = [stack.enter_context(ranged.RemoteFile(remote)) for remote in remotes]
            ranged.fetch_all(opened, [[Span(0, remote.size)] for remote in remotes])


def _metadata(file: ranged.RemoteFile) -> Any:
    """Read a Parquet file's footer, and little more; pyarrow would read 64 KiB of each.

    Raises:
        ArrowInvalid: it is no Parquet file.
    """
    size = file.size()
    low, high = _TAIL
    tail = file.read_at(Span(max(0, size - min(high, max(low, size // _TAIL_PART))), size))
    length, magic = _ENDING.unpack(tail[-_ENDING.size :]) if len(tail) >= _ENDING.size else (0, b"")
    if magic != _MAGIC or length + _ENDING.size + len(_MAGIC) > size:
        raise pa.ArrowInvalid("it is not a Parquet file, or cut short")
    footer = file.read_at(Span(size - length - _ENDING.size, size))
    return pq.read_metadata(pa.BufferReader(_MAGIC + footer))


def _spans(metadata: Any, wanted: Wanted) -> list[Span]:
    """Return where the columns lie that are going to be read."""
    spans = []
    for group, names in wanted(metadata):
        row_group = metadata.row_group(group)
        for index in range(row_group.num_columns):
            column = row_group.column(index)
            if column.path_in_schema.split(".", 1)[0] in names:
                start = column.data_page_offset
                if column.has_dictionary_page and column.dictionary_page_offset:
                    start = min(start, column.dictionary_page_offset)
                spans.append(Span(start, start + column.total_compressed_size))
    return spans
