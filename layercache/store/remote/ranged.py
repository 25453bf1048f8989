"""Reads parts of objects of a bucket: what is not in the cache is fetched, in few requests, several at once."""

import io
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from layercache.errors import LayercacheError, StoreError
from layercache.store.remote.blocks import BlockFile, Cache, Span, aligned, limit
from layercache.store.remote.client import Client

_GAP = 16 * 2**10
"""Bytes that are fetched though nobody asked for them, rather than making a request of what lies behind them."""
_PIECE = 8 * 2**20
"""Bytes of a request at most; longer ranges are fetched in pieces at once."""
_REQUESTS = 16
"""Requests at once, and files looked at at once."""
T = TypeVar("T")
S = TypeVar("S")


class Remote(NamedTuple):
    """One version of an object of a bucket."""

    client: Client
    key: str
    size: int
    etag: str
    cache: Cache

    @property
    def cached(self) -> Path:
        """Where its fetched ranges are kept."""
        return self.cache.path(str(self.client.address), self.client.address.endpoint, self.key, self.etag, "blocks")


def cache_folder() -> Path:
    """Return the folder of mirrors and fetched ranges: `LAYERCACHE_CACHE`, or the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return _real(os.environ.get("LAYERCACHE_CACHE") or f"{home}/layercache")


@lru_cache(maxsize=8)
def _real(folder: str) -> Path:
    return Path(os.path.realpath(folder))


def cache() -> Cache:
    """Return the cache of ranges.

    Raises:
        StoreError: its size is not one.
    """
    try:
        return _cache(cache_folder() / "ranges", limit())
    except LayercacheError as error:
        raise StoreError(f"LAYERCACHE_CACHE_SIZE: {error}") from error


@lru_cache(maxsize=8)
def _cache(folder: Path, most: int) -> Cache:
    return Cache(folder, most)


class RemoteFile(io.RawIOBase):
    """An object of a bucket as a file that is read; thread-safe but for its position."""

    def __init__(self, remote: Remote) -> None:
        super().__init__()
        self.remote = remote
        self._position = 0
        self._blocks = _open(remote)

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a position."""
        self._position = max(0, (0, self._position, self.remote.size)[whence] + offset)
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def size(self) -> int:
        """Return the object's size."""
        return self.remote.size

    def read(self, size: int | None = -1) -> bytes:
        """Read from the position on."""
        stop = self.remote.size if size is None or size < 0 else min(self._position + size, self.remote.size)
        data = self.read_at(Span(self._position, stop))
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        """Read from the position on into a buffer."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def read_at(self, span: Span) -> bytes:
        """Read some bytes."""
        if span.stop <= span.start:
            return b""
        (wide,) = aligned([span], self.remote.size)
        data, missing = self._blocks.read(wide)
        if missing:
            pieces = _pieces(aligned(missing, self.remote.size, _GAP))
            for piece, fetched in zip(pieces, _at_once(self._fetch, pieces)):
                # A gap between what was missing may reach beyond nothing: pieces lie inside the span.
                data[piece.start - wide.start : piece.stop - wide.start] = fetched
        return bytes(memoryview(data)[span.start - wide.start : span.stop - wide.start])

    def missing(self, spans: Sequence[Span]) -> list[Span]:
        """Return the requests that would bring the parts of some spans that are not in the cache."""
        gaps = [gap for span in aligned(spans, self.remote.size) for gap in self._blocks.read(span)[1]]
        return _pieces(aligned(gaps, self.remote.size, _GAP))

    def _fetch(self, piece: Span) -> bytes:
        return fetch(self, piece)

    def keep(self, start: int, data: bytes) -> None:
        """Put fetched bytes into the cache; a full disk only means that they are fetched again."""
        try:
            self._blocks.write(start, data)
        except OSError:
            self.remote.cache.sweep()
        self.remote.cache.wrote(len(data))

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._blocks.close()
        super().close()


def fetch(file: RemoteFile, piece: Span) -> bytes:
    """Fetch a piece of an object and keep it."""
    remote = file.remote
    data = remote.client.get(remote.key, start=piece.start, stop=piece.stop, etag=remote.etag)
    file.keep(piece.start, data)
    return data


def fetch_all(files: Sequence[RemoteFile], spans: Sequence[Sequence[Span]]) -> None:
    """Bring spans of several files into the cache, many requests at once."""
    jobs = [(file, piece) for file, wanted in zip(files, spans, strict=True) for piece in file.missing(wanted)]
    _at_once(lambda job: len(fetch(*job)), jobs)


def for_all(function: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """Apply a function that mostly waits for a bucket to many items, several at once, in order."""
    with ThreadPoolExecutor(_REQUESTS) as pool:
        return list(pool.map(function, items))


def whole(remote: Remote) -> BinaryIO:
    """Open an object as a file of the cache, for what has to be mapped.

    Any process may remove files of the cache at any time, also one that is being fetched: what is open stays whole.

    Raises:
        StoreError: the object is not the one that was listed any more, or the bucket cannot be read.
    """
    path = remote.cache.path(
        str(remote.client.address), remote.client.address.endpoint, remote.key, remote.etag, "file"
    )
    try:
        file: BinaryIO = path.open("rb")
    except FileNotFoundError:
        file = _fetched(remote, path)
        remote.cache.wrote(remote.size)
    remote.cache.touch(path)
    return file


def _fetched(remote: Remote, path: Path) -> BinaryIO:
    """Fetch an object into a file of the cache, and return that, open."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    file = temporary.open("w+b")
    try:
        if remote.client.read_into(remote.key, file) != remote.size:
            raise StoreError(f"{remote.client.address}/{remote.key} has changed: run the same command again")
        file.flush()
        with suppress(FileNotFoundError):
            temporary.replace(path)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return file


def _open(remote: Remote) -> BlockFile:
    try:
        return BlockFile(remote.cached, remote.size)
    except OSError as error:
        folder = remote.cache.folder
        raise StoreError(
            f"cannot write the cache {folder} ({error.strerror}): set LAYERCACHE_CACHE to a folder of yours"
        ) from error


def _pieces(spans: Iterable[Span]) -> list[Span]:
    """Cut spans, which begin at blocks, into requests."""
    return [
        Span(start, min(start + _PIECE, span.stop)) for span in spans for start in range(span.start, span.stop, _PIECE)
    ]


def _at_once(function: Callable[[S], T], items: Sequence[S]) -> list[T]:
    if len(items) < 2:
        return [function(item) for item in items]
    return for_all(function, items)
