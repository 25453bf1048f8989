"""How DuckDB reads files whose bytes are in a bucket: a file system of its own, of names that begin with `bucket://`.

What reads the bytes is given: for a trusted connection the ranged files of this process, for a fenced one a line to the
process that started it (`remote.broker`). The file system reads whole named files and does nothing else.
"""

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from io import RawIOBase
from typing import Any

SCHEME = "bucket://"
Read = Callable[[str, int, int], bytes]
"""Reads a file's bytes: its path, from where, how many."""
_ESCAPED = re.compile(r"\[(.)\]")


class _File(RawIOBase):
    """A file that is read through a function."""

    def __init__(self, path: str, read: Read) -> None:
        super().__init__()
        self._path, self._read = path, read
        self.size = os.stat(path).st_size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = max(0, (0, self._position, self.size)[whence] + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        stop = self.size if size is None or size < 0 else min(self._position + size, self.size)
        if stop <= self._position:
            return b""
        data = self._read(self._path, self._position, stop - self._position)
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)


def file_system(read: Read) -> Any:
    """Return the file system to register on a connection.

    Args:
        read: reads the bytes of a file of a mirror.
    """
    from fsspec import AbstractFileSystem

    class BucketFiles(AbstractFileSystem):  # type: ignore[misc]
        protocol = SCHEME.removesuffix("://")
        cachable = False

        def _open(self, path: str, mode: str = "rb", **options: Any) -> _File:
            if mode != "rb":
                raise PermissionError(f"{path} is only read")
            return _File(_plain(path), read)

        def info(self, path: str, **options: Any) -> dict[str, Any]:
            return {"name": path, "size": os.stat(_plain(path)).st_size, "type": "file"}

        def glob(self, path: str, **options: Any) -> list[str]:
            # DuckDB asks for every path, where wildcards are escaped: it stands for the one file of that name.
            plain = _ESCAPED.sub(r"\1", _plain(path))
            return [plain] if os.path.exists(plain) else []

        def modified(self, path: str) -> datetime:
            # A published file never changes.
            return datetime(1970, 1, 1, tzinfo=UTC)

    return BucketFiles()


def _plain(path: str) -> str:
    return path.removeprefix(SCHEME)
