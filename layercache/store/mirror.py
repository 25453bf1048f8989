"""A store in a bucket, seen as a directory: its *mirror* in the user's cache folder.

A mirror looks exactly like a store. Its small files are copies, so that whatever reads JSON, rows or results need not
know where they came from; a shard's tables are sparse files of the right size without their bytes, which are fetched
when they are read (`store.files`). A marker in the mirror's folder says which bucket it is of. One listing brings a
mirror up to date; `reader.open`, `writer.open_run` and the like ask for it.
"""

import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from layercache.errors import StoreError
from layercache.store.layout import check_path, first_line, is_store
from layercache.store.remote import index, keys, ranged, sync, upload
from layercache.store.remote.address import is_url, parse
from layercache.store.remote.bucket import MARKER, Bucket
from layercache.store.remote.client import Object
from layercache.store.remote.index import Held

_FOLDER = "buckets"


def attach(url: str) -> Path:
    """Return the mirror of a store in a bucket; asks the bucket nothing yet.

    Args:
        url: `s3://bucket/prefix`, `gs://…`, `az://…`; `file:///folder` is read and written as a bucket is.

    Raises:
        StoreError: it is not the URL of a place in a bucket, or the cache folder cannot be written.
    """
    address = parse(url)
    root = ranged.cache_folder() / _FOLDER / address.folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not (root / MARKER).exists():
            said = json.dumps({"url": str(address), "endpoint": address.endpoint})
            temporary = root / f"{MARKER}.{os.getpid()}"
            temporary.write_text(f"{said}\n", encoding="utf-8")
            temporary.replace(root / MARKER)
    except OSError as error:
        raise StoreError(
            f"cannot write the cache {root} ({error.strerror}): set LAYERCACHE_CACHE to a folder of yours"
        ) from error
    return root


def located(store: str | Path) -> Path:
    """Return where a store is: a path as it is, of a URL the mirror.

    Raises:
        StoreError: as `attach`.
    """
    return attach(str(store)) if is_url(str(store)) else Path(store)


def check_store(path: Path) -> None:
    """Refuse a path that is not a store; one that is a mirror is brought up to date.

    Raises:
        StoreError: nothing is there, or something else, or it cannot be looked at.
    """
    check_path(path)
    if of(path) is not None:
        if refresh(path).empty:
            raise StoreError(f"no store at {name(path)}: run `layercache extract` first, or name another store")
        return
    try:
        if not path.exists():
            raise StoreError(f"no store at {path}: run `layercache extract` first, or name another store")
        if not path.is_dir():
            raise StoreError(f"{path} is a file, not a store: give the directory that `layercache extract` wrote")
        if not is_store(path):
            raise StoreError(f"{path} is not a store: give the directory that `layercache extract` wrote")
    except OSError as error:
        raise StoreError(f"cannot read the store {path}: {first_line(error)}") from error


def of(path: Path | str) -> Bucket | None:
    """Return the bucket that a path is a mirror of, or lies in the mirror of; None of a path on the disk alone."""
    text = os.path.abspath(path)
    # Mirrors lie nowhere else, and most paths are not of one: a look at the text is all that those cost.
    folder = f"{ranged.cache_folder()}{os.sep}{_FOLDER}{os.sep}"
    if not text.startswith(folder):
        return None
    return _marked(folder + text[len(folder) :].split(os.sep, 1)[0])


@lru_cache(maxsize=64)
def _bucket(root: str, said: bytes) -> Bucket:
    return Bucket(parse(json.loads(said)["url"]), Path(root))


def _marked(root: str) -> Bucket | None:
    try:
        with open(f"{root}/{MARKER}", "rb") as file:
            return _bucket(root, file.read())
    except (OSError, ValueError, KeyError):
        return None


def name(store: Path | str) -> str:
    """Return what a store is called by its user: the URL of a mirror, or the path."""
    bucket = of(store)
    if bucket is None:
        return str(store)
    key = bucket.key(store)
    return str(bucket.address) if key == "." else f"{bucket.address}/{key}"


def told(text: str) -> str:
    """Return a text for people with the paths of mirrors replaced by the URLs they stand for."""
    folder = f"{ranged.cache_folder()}{os.sep}{_FOLDER}{os.sep}"
    before, *rest = text.split(folder)
    parts = [before]
    for part in rest:
        root = next((one for one in _roots() if part.startswith(one)), None)
        bucket = None if root is None else _marked(folder + root)
        parts.append(folder + part if bucket is None or root is None else f"{bucket.address}{part[len(root) :]}")
    return "".join(parts)


def _roots() -> list[str]:
    """List the names of the folders of mirrors, the longest first."""
    try:
        return sorted(os.listdir(ranged.cache_folder() / _FOLDER), key=len, reverse=True)
    except OSError:
        return []


def refresh(store: Path, *, anew: bool = False) -> sync.Listing:
    """Bring a mirror up to date with its bucket, by one listing.

    Args:
        store: the mirror's folder.
        anew: fetch every small file again, and forget what is cached of the large ones.

    Returns:
        What the bucket holds.

    Raises:
        StoreError: the bucket cannot be read, or holds other things and no store.
    """
    bucket = of(store)
    if bucket is None:
        raise StoreError(f"{store} is not the mirror of a bucket: give its URL")
    return sync.refresh(bucket, anew=anew)


class Orphan(NamedTuple):
    """What a killed writer left in a bucket, where no reader sees it."""

    path: Path
    """Where it would be in the mirror."""
    what: str
    bytes: int
    modified: float
    """When it was last written to, seconds since 1970."""


def orphans(store: Path) -> list[Orphan]:
    """List what killed writers left in the bucket; nothing of a store on the disk.

    Raises:
        StoreError: the bucket cannot be listed.
    """
    bucket = of(store)
    if bucket is None:
        return []
    folders: dict[str, list[Object]] = {}
    for one in sync.listing(bucket).orphans:
        folders.setdefault(keys.unit(one.key), []).append(one)
    return [
        Orphan(
            bucket.path(folder),
            "unfinished work" if keys.is_hidden(folder) else "without a manifest",
            sum(one.size for one in objects),
            max(one.modified for one in objects),
        )
        for folder, objects in sorted(folders.items())
    ]


def beside(store: Path, file: str) -> Path:
    """Return where something made of a store goes that is no part of it: into its folder; of a bucket's into this one."""
    return store / file if of(store) is None else Path(file)


def remote(path: Path | str) -> ranged.Remote | None:
    """Return the object behind a file of a mirror whose bytes are in the bucket; None of any other path.

    Raises:
        StoreError: there is no such object any more.
    """
    bucket = of(path)
    if bucket is None:
        return None
    key = bucket.key(path)
    if keys.kind(key) is not keys.Kind.LARGE:
        return None
    held = index.load(bucket.root).get(key)
    if held is None:
        found = bucket.client.head(key)
        if found is None:
            raise StoreError(f"{bucket.address}/{key} is gone: run the same command again")
        held = Held(found.size, found.etag)
    return ranged.Remote(bucket.client, key, held.size, held.etag, ranged.cache())


def is_remote(path: Path | str) -> bool:
    """Tell whether the bytes of a file are in a bucket."""
    bucket = of(path)
    return bucket is not None and keys.kind(bucket.key(path)) is keys.Kind.LARGE


def check_writable(store: Path) -> None:
    """Refuse a bucket that may not be written, before any work is done.

    Raises:
        StoreError: it may not be written, or cannot be reached.
    """
    bucket = of(store)
    if bucket is not None:
        upload.check_writable(bucket)


def for_polars(files: Sequence[Path]) -> tuple[list[Any], dict[str, Any]]:
    """Return what Polars' `scan_parquet` is to read in place of files, and how.

    Polars reads a bucket with a client of its own, only what a filter needs of it, past the cache.
    """
    bucket = of(files[0]) if files else None
    if bucket is None:
        return list(files), {}
    address = bucket.address
    if address.scheme == "file":
        return [Path(f"/{address.prefix}").joinpath(bucket.key(path)) for path in files], {}
    where: dict[str, Any] = {"credential_provider": None}
    if address.scheme == "s3" and address.endpoint:
        where["storage_options"] = {"aws_endpoint_url": address.endpoint, "aws_allow_http": "true"}
    return [f"{address}/{bucket.key(path)}" for path in files], where
