"""Talks to a bucket through obstore, and says in one line what went wrong.

The environment says where the bucket is served and who asks, by the usual names (`AWS_ENDPOINT_URL`,
`AWS_ACCESS_KEY_ID`, `AWS_REGION`, …). A first question is given up after some seconds; reading and writing wait longer,
since by then the bucket is known to answer.
"""

import errno
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from layercache.errors import StoreError
from layercache.store.remote.address import Address, settings

_ATTEMPTS = 4
_FIRST_WAIT = 0.5
_LONGEST_WAIT = timedelta(seconds=5)
_PATIENCE = {
    "ask": ({"connect_timeout": "4s", "timeout": "10s"}, 2, 12),
    "read": ({"connect_timeout": "5s", "read_timeout": "30s", "timeout": "15m"}, 6, 60),
    "write": ({"connect_timeout": "5s", "timeout": "30m"}, 6, 60),
}
"""By what is done: the client's limits, how often a request is repeated, and for how many seconds."""
_CHUNK = 8 * 2**20
_QUOTED = re.compile(r"<Message>(.*?)</Message>", re.DOTALL)
_DENIED = re.compile(r"status code: 40[13]\b")
"""Of a refused listing obstore does not say by an exception of its own that it was refused."""
_LONGEST = 200
PAGE = 1000
"""Keys of a listing that are looked at together."""


class Object(NamedTuple):
    """What a listing says of a key, which is given without the store's prefix."""

    key: str
    size: int
    etag: str
    modified: float
    """When it was written, seconds since 1970."""


class Client:
    """One store's part of a bucket; keys are without its prefix."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._stores: dict[str, Any] = {}

    def objects(self, prefix: str = "", after: str = "") -> Iterator[list[Object]]:
        """Yield the objects below a key in the order of their keys, `PAGE` at once.

        Raises:
            StoreError: there is no such bucket, it may not be listed, it cannot be reached, or a key is no path.
        """
        with self._told("list"):
            stream = self._store("ask").list(prefix or None, offset=after or None, chunk_size=PAGE)
        while True:
            with self._told("list"):
                try:
                    chunk = next(stream)
                except StopIteration:
                    return
            yield [_object(meta) for meta in chunk]

    def head(self, key: str) -> Object | None:
        """Look at one object; None when there is none."""
        with self._told("read"):
            try:
                return _object(self._store("ask").head(key))
            except _exceptions().NotFoundError:
                return None
            except FileNotFoundError:
                return None

    def get(self, key: str, *, start: int = 0, stop: int | None = None, etag: str = "") -> bytes:
        """Read an object, or part of it.

        Args:
            etag: refuse to read when the object is another one by now.

        Raises:
            StoreError: it is gone, has changed, or cannot be read.
        """
        options: dict[str, Any] = {}
        if stop is not None:
            options["range"] = (start, stop)
        if etag:
            options["if_match"] = etag
        with self._told("read", key):
            data = bytes(self._store("read").get(key, options=options or None).bytes())
        if stop is not None and len(data) != stop - start:
            raise StoreError(f"{self.address}/{key} is cut short: run `layercache verify`")
        return data

    def download(self, key: str, path: Path) -> int:
        """Write an object into a file, a part at a time; return its bytes."""
        with path.open("wb") as file:
            return self.read_into(key, file)

    def read_into(self, key: str, file: BinaryIO) -> int:
        """Write an object into an open file, a part at a time; return its bytes."""
        with self._told("read", key):
            for chunk in self._store("read").get(key).stream(min_chunk_size=_CHUNK):
                file.write(chunk)
            return file.tell()

    def put(self, key: str, data: bytes | Path) -> str:
        """Write an object, whatever is there.

        Returns:
            Its etag.

        Raises:
            OSError: it may not be written.
            StoreError: the bucket is gone or cannot be reached.
        """
        with self._told("write", key):
            return self._put(key, data, "overwrite")

    def put_new(self, key: str, data: bytes | Path) -> str | None:
        """Write an object unless one is there already, in one step.

        Returns:
            Its etag; None when one was there. That may be this very object: where the answer to a request was lost,
            the next one finds it.
        """
        with self._told("write", key):
            try:
                return self._put(key, data, "create")
            except (_exceptions().AlreadyExistsError, _exceptions().PreconditionError):
                return None

    def _put(self, key: str, data: bytes | Path, mode: str) -> str:
        for attempt in range(_ATTEMPTS):
            try:
                return str(self._store("write").put(key, data, mode=mode, use_multipart=False).get("e_tag") or "")
            except _exceptions().GenericError:
                # obstore repeats what surely did not happen; whether a put did that got no answer it cannot know.
                if attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(_FIRST_WAIT * 2**attempt)
        raise AssertionError

    def copy(self, key: str, to: str) -> None:
        """Copy an object within the bucket."""
        with self._told("write", to):
            self._store("write").copy(key, to)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; what is gone already is let be."""
        if not keys:
            return
        with self._told("write", keys[0]):
            try:
                self._store("write").delete(list(keys))
            except (FileNotFoundError, _exceptions().NotFoundError):
                # Some kinds of bucket stop at the first key that is gone.
                for key in keys:
                    try:
                        self._store("write").delete([key])
                    except (FileNotFoundError, _exceptions().NotFoundError):
                        continue

    def _store(self, purpose: str) -> Any:
        if purpose not in self._stores:
            self._stores[purpose] = _connect(self.address, purpose)
        return self._stores[purpose]

    @contextmanager
    def _told(self, doing: str, key: str = "") -> Iterator[None]:
        """Turn an error of obstore into one line."""
        try:
            yield
        except (_exceptions().BaseError, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None and not _of_bucket(error):
                raise  # Of this machine's disk.
            raise _explained(error, self.address, doing, key) from error


@lru_cache(maxsize=64)
def _client(address: Address, environment: tuple[tuple[str, str], ...], process: int) -> Client:
    return Client(address)


def client(address: Address) -> Client:
    """Return the client of an address: one for as long as the environment says the same, and of this process alone."""
    return _client(address, settings(), os.getpid())


def _exceptions() -> Any:
    try:
        from obstore import exceptions
    except ImportError as error:
        raise StoreError(
            "stores in buckets need obstore and fsspec: install layercache with the extra s3 (`layercache[s3]`)"
        ) from error
    return exceptions


def _connect(address: Address, purpose: str) -> Any:
    _exceptions()
    from obstore import store

    if address.scheme == "file":
        folder = Path(f"/{address.prefix}")
        if purpose != "write" and not folder.is_dir():
            raise StoreError(f"no bucket at {address}: there is no such folder")
        return store.LocalStore(folder, mkdir=True)
    options, retries, seconds = _PATIENCE[purpose]
    kind = {"s3": store.S3Store, "gs": store.GCSStore, "az": store.AzureStore}[address.scheme]
    try:
        return kind(
            address.bucket,
            prefix=address.prefix or None,
            client_options={**options, **_plain_http(address)},
            retry_config={
                "max_retries": retries,
                "retry_timeout": timedelta(seconds=seconds),
                "backoff": {"max_backoff": _LONGEST_WAIT},
            },
        )
    except (_exceptions().BaseError, ValueError) as error:
        raise StoreError(f"{address} cannot be opened: {_short(error)}") from error


def _plain_http(address: Address) -> dict[str, bool]:
    """Allow HTTP without encryption where the environment says so, or to this machine itself."""
    local = re.match(r"http://(localhost|127\.0\.0\.1|\[::1\])(:|/|$)", address.endpoint)
    allowed = os.environ.get("AWS_ALLOW_HTTP", "").lower() in {"1", "true", "yes"}
    return {"allow_http": True} if local or allowed else {}


def _object(meta: Any) -> Object:
    modified: datetime = meta["last_modified"]
    return Object(meta["path"], int(meta["size"]), meta["e_tag"] or modified.isoformat(), modified.timestamp())


def _of_bucket(error: OSError) -> bool:
    """Tell whether an error of the operating system is obstore's way of saying that a key is not there."""
    return isinstance(error, FileNotFoundError | PermissionError) and error.filename is None


def _explained(error: BaseException, address: Address, doing: str, key: str) -> Exception:
    """Return the error to raise: one of the operating system where something may not be written, else a StoreError."""
    exceptions = _exceptions()
    text = str(error)
    place = f"{address}/{key}" if key else str(address)
    denied = isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError | PermissionError)
    denied |= _DENIED.search(text) is not None
    if denied and doing == "write":
        return PermissionError(errno.EACCES, f"no permission to write {place}")
    if denied:
        return StoreError(f"no permission to {doing} {place}: check {_who(address)}")
    if "NoSuchBucket" in text or "ContainerNotFound" in text or "bucket does not exist" in text:
        return StoreError(f"there is no bucket {address.scheme}://{address.bucket}: make it first, or check its name")
    if isinstance(error, exceptions.NotFoundError | FileNotFoundError):
        return StoreError(f"{place} is gone: run the same command again")
    if isinstance(error, exceptions.PreconditionError):
        return StoreError(f"{place} has changed since the store was opened: run the same command again")
    if isinstance(error, exceptions.InvalidPathError | ValueError):
        return StoreError(f"{address} holds a key that is no path ({_short(error)}): a store holds none, remove it")
    if "169.254.169.254" in text or "metadata.google" in text or "credential" in text.lower():
        return StoreError(f"no credentials for {address}: set {_who(address)}; of a public bucket AWS_SKIP_SIGNATURE=1")
    if "redirect" in text.lower():
        return StoreError(f"{address} is in another region or at another endpoint: set AWS_REGION or AWS_ENDPOINT_URL")
    if address.endpoint.startswith("http://") and not _plain_http(address):
        return StoreError(f"{address.endpoint} speaks HTTP without encryption: set AWS_ALLOW_HTTP=true to allow it")
    at = f" at {address.endpoint}" if address.endpoint else ""
    return StoreError(f"cannot {doing} {place}{at} ({_short(error)}): check the network and {_where(address)}")


def _who(address: Address) -> str:
    return {
        "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        "gs": "GOOGLE_APPLICATION_CREDENTIALS",
        "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    }.get(address.scheme, "the folder's permissions")


def _where(address: Address) -> str:
    return {"s3": "AWS_ENDPOINT_URL", "az": "AZURE_STORAGE_ACCOUNT_NAME"}.get(address.scheme, "the name")


def _short(error: BaseException) -> str:
    """Return what matters of an error: the server's own words, or the last part of a chain of causes."""
    text = str(error).partition("\n\nDebug source:")[0]
    quoted = _QUOTED.search(text)
    told = quoted[1] if quoted else text.rpartition(" - ")[2]
    line = " ".join(told.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
