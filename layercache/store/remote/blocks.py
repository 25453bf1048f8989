"""The cache of fetched ranges: of every object one sparse file, with the checksums of what is in it behind its data.

A block is there when its checksum fits. The checksums lie in the same file as the data, and a reader sees both through
one open file, so whatever happens to the cache (another process removes the file to make room, a write is cut short,
the machine loses power), nobody ever takes a hole for zeros.
"""

import hashlib
import os
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from layercache import quantities

BLOCK = 4096
"""Bytes that are fetched, kept and checked together."""
_STAMP = 4
_DEFAULT_SIZE = "10GB"
_SLACK = 0.9
"""How full the cache is left when something had to go, so that it is not swept at every fetch."""
_SWEEP_AFTER = 1 / 16
"""Part of the cache's size that a process writes before it looks whether something has to go."""


class Span(NamedTuple):
    """Some bytes: [start, stop)."""

    start: int
    stop: int


class BlockFile:
    """The cached part of one object; thread-safe, and any number of processes may have it open."""

    def __init__(self, path: Path, size: int) -> None:
        self.size = size
        self._stamps = size + -size % BLOCK
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        if os.fstat(self._file).st_size != self._length:
            os.ftruncate(self._file, self._length)
        # What was used last goes last.
        with suppress(OSError):
            os.utime(self._file)

    @property
    def _length(self) -> int:
        return self._stamps + self._stamps // BLOCK * _STAMP

    def close(self) -> None:
        """Close the file; what is in it stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def read(self, span: Span) -> tuple[bytearray, list[Span]]:
        """Read whole blocks.

        Args:
            span: bytes that begin at a block, and end at one or at the object's end.

        Returns:
            The bytes, and those parts of the span that are not there (their bytes mean nothing).
        """
        first, count = span.start // BLOCK, -(-(span.stop - span.start) // BLOCK)
        data = bytearray(_exactly(self._file, span.stop - span.start, span.start))
        stamps = _exactly(self._file, count * _STAMP, self._stamps + first * _STAMP)
        view = memoryview(data)
        missing: list[Span] = []
        for index in range(count):
            start = index * BLOCK
            stated = stamps[index * _STAMP : (index + 1) * _STAMP]
            if stated == b"\0\0\0\0" or stated != _stamp(view[start : start + BLOCK]):
                at = Span(span.start + start, min(span.start + start + BLOCK, span.stop))
                if missing and missing[-1].stop == at.start:
                    missing[-1] = Span(missing[-1].start, at.stop)
                else:
                    missing.append(at)
        return data, missing

    def write(self, start: int, data: bytes) -> None:
        """Keep fetched bytes, from the beginning of a block; the data first, then its checksums."""
        view = memoryview(data)
        stamps = b"".join(_stamp(view[at : at + BLOCK]) for at in range(0, len(data), BLOCK))
        os.pwrite(self._file, data, start)
        os.pwrite(self._file, stamps, self._stamps + start // BLOCK * _STAMP)


def _exactly(file: int, length: int, start: int) -> bytes:
    """Read so many bytes; what is behind the file's end (another process has just made it) is zeros."""
    data = os.pread(file, length, start)
    while len(data) < length:
        more = os.pread(file, length - len(data), start + len(data))
        if not more:
            return data + bytes(length - len(data))
        data += more
    return data


def _stamp(block: memoryview) -> bytes:
    """Return the checksum of a block, which is never zero: that is what a hole has."""
    return (zlib.crc32(block) or 1).to_bytes(_STAMP, "little")


def aligned(spans: Sequence[Span], size: int, gap: int = 0) -> Iterator[Span]:
    """Yield spans widened to whole blocks, those that touch or lie closer than `gap` as one, in order."""
    last: Span | None = None
    for start, stop in sorted(spans):
        wide = Span(start - start % BLOCK, min(stop + -stop % BLOCK, size))
        if last is not None and wide.start <= last.stop + gap:
            last = Span(last.start, max(last.stop, wide.stop))
        else:
            if last is not None:
                yield last
            last = wide
    if last is not None:
        yield last


class Cache:
    """The folder of cached objects, of bounded size."""

    def __init__(self, folder: Path, most: int) -> None:
        self.folder = folder
        self.most = most
        self._lock = threading.Lock()
        self._written = most  # So that a process looks once before it relies on its own count.

    def path(self, *identity: str) -> Path:
        """Return the file of an object, or of something made of one."""
        name = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:40]
        path = self.folder / name[:2] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def wrote(self, size: int) -> None:
        """Count bytes that were written, and make room when it is time."""
        with self._lock:
            self._written += size
            if self._written < self.most * _SWEEP_AFTER:
                return
            self._written = 0
        self.sweep()

    def sweep(self) -> None:
        """Remove what was used longest ago until the rest is small enough. Who has it open goes on reading it."""
        found = sorted(self._files())
        total = sum(size for _, size, _ in found)
        if total <= self.most:
            return
        for _, size, path in found:
            if total <= self.most * _SLACK:
                return
            with suppress(OSError):
                os.unlink(path)
                total -= size

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """Yield when each file was last used, the bytes it takes on the disk, and its path."""
        for folder in sorted(self.folder.glob("??")):
            with suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(OSError):
                        found = entry.stat(follow_symlinks=False)
                        taken = getattr(found, "st_blocks", found.st_size // 512) * 512
                        yield found.st_mtime, taken, entry.path

    def forget(self, path: Path) -> None:
        """Remove a file of the cache."""
        with suppress(OSError):
            path.unlink()

    def touch(self, path: Path) -> None:
        """Say that a file was used now."""
        with suppress(OSError):
            os.utime(path, (time.time(),) * 2)


def limit() -> int:
    """Return the size of the cache in bytes: `LAYERCACHE_CACHE_SIZE`, or 10 GB."""
    return quantities.nbytes(os.environ.get("LAYERCACHE_CACHE_SIZE") or _DEFAULT_SIZE)
