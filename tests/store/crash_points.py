"""Makes one file-system call of a piece of work the last one, or lets it fail."""

import errno
import io
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import pytest

from layercache.store import encode


class KilledError(BaseException):
    """Stands for the process being killed: nothing after it is done."""


class _Written:
    """A file open for writing whose first write counts as a call; stopping at a later one is like at any other."""

    def __init__(self, file: Any, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self._file = file
        self._first = wrap(file.write)
        self._written = False

    def write(self, data: Any) -> Any:
        if self._written:
            return self._file.write(data)
        self._written = True
        return self._first(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Written":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


@contextmanager
def failing_at(call: int, *, dead: bool, number: int = errno.EIO) -> Iterator[itertools.count]:
    """Let the file-system call number `call` (and, when dead, all after it) fail."""
    counter = itertools.count()
    targets: list[tuple[object, str]] = [
        (os, name) for name in ("mkdir", "open", "fsync", "rename", "replace", "link", "unlink", "rmdir")
    ]
    targets.append((encode._HashingFile, "sync"))

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: object, **kwargs: object) -> object:
            index = next(counter)
            if index == call or (dead and index > call):
                raise KilledError if dead else OSError(number, os.strerror(number))
            return original(*args, **kwargs)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in targets:
            patch.setattr(owner, name, wrap(getattr(owner, name)))
        opening, counted = io.open, wrap(io.open)

        def open_file(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            # Reading is left alone: it changes nothing.
            return (
                _Written(counted(file, mode, *args, **kwargs), wrap)
                if "w" in mode
                else opening(file, mode, *args, **kwargs)
            )

        patch.setattr(io, "open", open_file)
        yield counter
