"""Brings a mirror up to date with its bucket: one listing, then the small files that are new.

A shard or a result is made aside and renamed into its place whole, so a reader of the mirror never sees a part of one.
What is gone in the bucket goes from the mirror; what has changed there, which published things never do, is made anew.
"""

import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from layercache.errors import StoreError
from layercache.store.layout import MANIFEST, QUARANTINE, RUN_FILE, TEMPORARY
from layercache.store.remote import client, index, keys, ranged
from layercache.store.remote.bucket import Bucket
from layercache.store.remote.client import Object
from layercache.store.remote.index import Held
from layercache.store.remote.keys import Kind

_LARGEST = 2**30
"""Bytes of a small file. No manifest, rows or results come near it; a hostile one must not fill the disk."""


class Listing(NamedTuple):
    """What a bucket holds of a store."""

    held: dict[str, Object]
    """What a mirror holds, by key."""
    orphans: list[Object]
    """Files of folders without a manifest, and unfinished work: what a killed writer leaves."""
    empty: bool
    """Whether there is nothing at all; a trace of a writer in `.tmp` makes it an empty store."""


def listing(bucket: Bucket) -> Listing:
    """List a store in a bucket.

    Raises:
        StoreError: the bucket cannot be listed, or holds other things and no store.
    """
    found: dict[str, Object] = {}
    for chunk in bucket.client.objects():
        found.update((one.key, one) for one in chunk)
        if len(found) <= len(chunk) == client.PAGE and not any(map(keys.is_of_a_store, found)):
            _check_further(bucket, found)
    known = any(map(keys.is_of_a_store, found))
    if not known and not all(map(keys.is_hidden, found)):
        raise not_a_store(bucket)
    held, orphans = keys.whole(found)
    left = [one for key, one in found.items() if key.startswith(f"{TEMPORARY}/")]
    return Listing({key: found[key] for key in held}, [*(found[key] for key in orphans), *left], not found)


def _check_further(bucket: Bucket, found: Iterable[str]) -> None:
    """Look whether anything of a store comes after many keys of other things, without listing all of those."""
    for opening in ("recipes/", "results/", "run="):
        if opening > max(found):
            later = next(bucket.client.objects(after=opening), [])
            if later and later[0].key.startswith(opening):
                return
    raise not_a_store(bucket)


def not_a_store(bucket: Bucket) -> StoreError:
    """Return the error for a place that holds other things."""
    return StoreError(f"{bucket.address} holds other things and is not a store: give another prefix")


def refresh(bucket: Bucket, *, anew: bool = False) -> Listing:
    """Make a mirror like its bucket.

    Args:
        anew: fetch every small file again and forget what is cached of the large ones.

    Raises:
        StoreError: as `listing`; or something changed while it was fetched; or the cache folder cannot be written.
    """
    try:
        with bucket.locked():
            found = listing(bucket)
            before = {} if anew else dict(index.load(bucket.root))
            if anew:
                _forget(bucket)
            wanted = {key: Held(one.size, one.etag) for key, one in found.held.items()}
            changed = {key for key in wanted.keys() | before.keys() if wanted.get(key) != before.get(key)}
            changed |= {key for key in wanted.keys() - changed if not os.path.lexists(bucket.path(keys.unit(key)))}
            if changed or anew:
                _apply(bucket, found.held, changed if not anew else set(wanted) | set(index.load(bucket.root)))
                index.save(bucket.root, wanted)
            return found
    except OSError as error:
        raise StoreError(
            f"cannot write the cache {bucket.root} ({error.strerror or error}): free some space, or set LAYERCACHE_CACHE"
            " to another folder"
        ) from error


def _forget(bucket: Bucket) -> None:
    """Forget what is cached of the large files of a store."""
    cache = ranged.cache()
    for key, held in index.load(bucket.root).items():
        if keys.kind(key) is Kind.LARGE:
            cache.forget(ranged.Remote(bucket.client, key, held.size, held.etag, cache).cached)


def _apply(bucket: Bucket, wanted: dict[str, Object], changed: set[str]) -> None:
    """Make the units anew in which a key is new, has changed or is gone."""
    touched = {keys.unit(key) for key in changed}
    units: dict[str, list[Object]] = {unit: [] for unit in touched}
    for key, one in wanted.items():
        if keys.unit(key) in touched:
            units[keys.unit(key)].append(one)
    area = bucket.root / TEMPORARY / f"{os.getpid()}-{uuid.uuid4().hex}"
    area.mkdir(parents=True)
    try:
        # Runs first: what is found in a folder without a run.json would be taken for damage.
        ordered = sorted(units, key=lambda unit: (not unit.endswith(f"/{RUN_FILE}"), unit))
        made = _made(bucket, area, [units[unit] for unit in ordered])
        for number, (unit, new) in enumerate(zip(ordered, made)):
            _place(bucket, area, number, unit, new)
    finally:
        shutil.rmtree(area, ignore_errors=True)


def _made(bucket: Bucket, area: Path, units: Sequence[list[Object]]) -> list[Path | None]:
    """Make units aside: the path of each, or None of one that is gone."""
    copies: list[tuple[Object, Path]] = []
    made: list[Path | None] = []
    for number, objects in enumerate(units):
        folder = area / f"new-{number}"
        for one in objects:
            path = folder if keys.unit(one.key) == one.key else folder / one.key.rpartition("/")[2]
            path.parent.mkdir(exist_ok=True)
            if keys.kind(one.key) is Kind.COPY:
                copies.append((one, path))
            else:
                placeholder(path, one.size)
                os.utime(path, (one.modified, one.modified))
        made.append(folder if objects else None)
    ranged.for_all(lambda copy: _download(bucket, *copy), copies)
    for objects, new in zip(units, made):
        if new is not None and new.is_dir():
            # `gc` goes by when a shard appeared, which is when its manifest was put into the bucket.
            modified = max(one.modified for one in objects if one.key.endswith(f"/{MANIFEST}"))
            os.utime(new, (modified, modified))
    return made


def placeholder(path: Path, size: int) -> None:
    """Make a file of a size, without bytes."""
    with path.open("wb") as file:
        file.truncate(size)


def _download(bucket: Bucket, one: Object, path: Path) -> None:
    if one.size > _LARGEST:
        raise StoreError(f"{bucket.address}/{one.key} has {one.size:,} bytes: no such file of a store is so large")
    if bucket.client.download(one.key, path) != one.size:
        raise StoreError(f"{bucket.address}/{one.key} changed while it was read: run the same command again")
    os.utime(path, (one.modified, one.modified))


def _place(bucket: Bucket, area: Path, number: int, unit: str, new: Path | None) -> None:
    """Put a unit in its place, or take one away that is gone."""
    final = bucket.path(unit)
    if new is not None and not new.is_dir():
        final.parent.mkdir(parents=True, exist_ok=True)
        new.replace(final)
    else:
        with suppress(FileNotFoundError):
            final.rename(area / f"old-{number}")
        if new is not None:
            final.parent.mkdir(parents=True, exist_ok=True)
            new.rename(final)
    if unit.startswith(f"{QUARANTINE}/") and new is not None:
        found = final.stat().st_mtime
        os.utime(bucket.root.joinpath(*unit.split("/")[:2]), (found, found))
    if new is None:
        _prune(final.parent, bucket.root)


def _prune(folder: Path, root: Path) -> None:
    """Remove folders that nothing is in any more; a bucket has none."""
    while folder != root:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent
