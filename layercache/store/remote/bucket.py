"""A store in a bucket and the folder that mirrors it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from layercache.store.remote.address import Address
from layercache.store.remote.client import Client, client

MARKER = ".bucket"
_LOCK = ".lock"


class Bucket(NamedTuple):
    """A store in a bucket, and the folder of its mirror."""

    address: Address
    root: Path

    @property
    def client(self) -> Client:
        """What talks to the bucket."""
        return client(self.address)

    def key(self, path: Path | str) -> str:
        """Return the key of a path of the mirror."""
        return os.path.relpath(path, self.root).replace(os.sep, "/")

    def path(self, key: str) -> Path:
        """Return the path of a key in the mirror."""
        return self.root.joinpath(*key.split("/"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes of this machine from changing the mirror; of use alone, nothing correct rests on it."""
        handle = os.open(self.root / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)
