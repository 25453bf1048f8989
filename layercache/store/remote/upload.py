"""Puts what was staged into a bucket, and takes things out of it.

Every key is written once: data first, each file put only where there is none, the manifest last, put only where there
is none. So whatever two writers of one shard do, and in whatever order, the files a manifest names are the ones it was
written for. A writer that finds a data file of another one, alive or killed, takes that file in place of its own: it
holds the same rows, up to the noise floor, and the manifest is written for what is there.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from layercache.errors import StoreError
from layercache.store import manifest
from layercache.store.layout import MANIFEST, RUN_FILE
from layercache.store.remote import index, keys, ranged, sync
from layercache.store.remote.bucket import Bucket
from layercache.store.remote.client import Object
from layercache.store.remote.index import Held
from layercache.store.remote.keys import Kind


def publish_folder(bucket: Bucket, staged: Path, final: Path) -> bool:
    """Put a staged folder into the bucket, then into the mirror.

    Returns:
        True when it is there now; False when something else was there first, which is left as it is.

    Raises:
        OSError: it may not be written.
        StoreError: the bucket cannot be reached, or holds a file of that name that is none of this folder's.
    """
    if final.is_dir() and any(final.iterdir()):
        return False
    last = MANIFEST if (staged / MANIFEST).exists() else RUN_FILE
    folder = bucket.key(final)
    data = sorted(path for path in staged.iterdir() if path.name != last)
    results = ranged.for_all(lambda path: _put_data(bucket, f"{folder}/{path.name}", path), data)
    if taken := [path for path, (_, own) in zip(data, results) if not own]:
        _reseal(bucket, staged, taken)
    etag = _put_last(bucket, f"{folder}/{last}", staged / last)
    if etag is None:
        sync.refresh(bucket)
        return False
    etags = {path.name: etag for path, (etag, _) in zip(data, results)}
    etags |= {last: etag, **_confirm(bucket, folder, data)}
    held = [(f"{folder}/{name}", Held((staged / name).stat().st_size, etag)) for name, etag in etags.items()]
    _emptied(folder, staged)
    with bucket.locked():
        final.parent.mkdir(parents=True, exist_ok=True)
        # Another process of this machine may have listed the bucket in between: then it is there already.
        with suppress(OSError):
            staged.rename(final)
        index.add(bucket.root, held)
    return True


def _put_data(bucket: Bucket, key: str, path: Path) -> tuple[str, bool]:
    """Put a data file unless there is one, which is then brought here in place of this one.

    Returns:
        The object's etag, and whether its bytes are this file's own.
    """
    etag = bucket.client.put_new(key, path)
    if etag is not None:
        return etag, True
    there = bucket.client.head(key)
    if there is None:
        raise StoreError(f"{bucket.address}/{key} has just been removed: run the same command again")
    brought = path.with_name(f".{path.name}")
    bucket.client.download(key, brought)
    own = sha256(brought) == sha256(path)
    brought.replace(path)
    return there.etag, own


def _put_last(bucket: Bucket, key: str, path: Path) -> str | None:
    """Put the file that makes a folder exist; None when another writer has put one."""
    etag = bucket.client.put_new(key, path)
    if etag is None:
        # An answer that was lost on its way looks like another writer's file.
        there = bucket.client.head(key)
        if there is not None and there.size == path.stat().st_size and bucket.client.get(key) == path.read_bytes():
            return there.etag
    return etag


def _reseal(bucket: Bucket, staged: Path, taken: Sequence[Path]) -> None:
    """Write a staged manifest anew for files that another writer had put there before."""
    value: dict[str, Any] = json.loads((staged / MANIFEST).read_bytes())
    for path in taken:
        info = value["files"][path.name]
        info |= {"bytes": path.stat().st_size, "sha256": sha256(path)}
        if "rows" in info:
            try:
                rows = pq.read_metadata(path).num_rows
            except (pa.ArrowException, OSError) as error:
                raise _in_the_way(bucket, path) from error
            if rows != info["rows"]:
                raise _in_the_way(bucket, path)
    value.pop("sha256")
    (staged / MANIFEST).write_bytes(manifest.seal({**value, "sha256": ""}))


def _in_the_way(bucket: Bucket, path: Path) -> StoreError:
    return StoreError(
        f"{bucket.address} holds a leftover {path.name} of another writer that does not fit: run `layercache gc"
        " --older-than 0 --store` on it, then this command again"
    )


def _confirm(bucket: Bucket, folder: str, data: Sequence[Path]) -> dict[str, str]:
    """Put back what `gc` elsewhere took for a leftover in the moment before there was a manifest; return new etags."""
    if not data:
        return {}
    there = {one.key for chunk in bucket.client.objects(folder) for one in chunk}
    gone = [path for path in data if f"{folder}/{path.name}" not in there]
    return {path.name: bucket.client.put_new(f"{folder}/{path.name}", path) or "" for path in gone}


def _emptied(folder: str, staged: Path) -> None:
    """Leave of large files only their size: a mirror holds no more."""
    for path in staged.iterdir():
        if keys.kind(f"{folder}/{path.name}") is Kind.LARGE:
            sync.placeholder(path, path.stat().st_size)


def place_file(bucket: Bucket, staged: Path, final: Path) -> None:
    """Put a staged file into the bucket, then into the mirror; its name has to say its content."""
    key = bucket.key(final)
    held = Held(staged.stat().st_size, bucket.client.put(key, staged))
    if keys.kind(key) is Kind.LARGE:
        sync.placeholder(staged, held.size)
    with bucket.locked():
        final.parent.mkdir(parents=True, exist_ok=True)
        staged.replace(final)
        index.add(bucket.root, [(key, held)])


def remove(bucket: Bucket, paths: Iterable[Path]) -> None:
    """Delete what lies at some paths: manifests first, so that half a shard never exists, and a `run.json` last."""
    found = [one.key for objects in ranged.for_all(lambda path: _below(bucket, path), paths) for one in objects]
    names = {key: key.rpartition("/")[2] for key in found}
    bucket.client.delete([key for key in found if names[key] == MANIFEST])
    bucket.client.delete([key for key in found if names[key] not in {MANIFEST, RUN_FILE}])
    bucket.client.delete([key for key in found if names[key] == RUN_FILE])


def move(bucket: Bucket, path: Path, target: Path) -> None:
    """Copy what lies at a path to another one, then delete it, its manifest first."""
    start, to = bucket.key(path), bucket.key(target)
    found = [one.key for one in _below(bucket, path)]
    ranged.for_all(lambda key: bucket.client.copy(key, f"{to}{key.removeprefix(start)}"), found)
    remove(bucket, [path])


def _below(bucket: Bucket, path: Path) -> list[Object]:
    """List the objects of a folder, or the one object that is a file."""
    key = bucket.key(path)
    found = [one for chunk in bucket.client.objects(key) for one in chunk]
    if not found and (one := bucket.client.head(key)) is not None:
        return [one]
    return found


def sha256(path: Path) -> str:
    """Return the sha256 of a file of this machine, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_writable(bucket: Bucket) -> None:
    """Refuse a bucket that may not be written, before any work is done: a trace of it lies in `.tmp`, never read.

    Raises:
        StoreError: it may not be written, or cannot be reached.
    """
    try:
        bucket.client.put(".tmp/writable", os.urandom(8).hex().encode())
    except OSError as error:
        raise StoreError(
            f"cannot write {bucket.address}: permission denied: choose another --store or change its permissions"
        ) from error
