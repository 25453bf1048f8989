"""Makes files and directories appear in a store whole or not at all, and survive a crash once they have.

A directory is written under `<store>/.tmp/`, every file is forced to the disk, then the directory, and
one rename puts it in its place; the parents follow. Renaming onto a directory that is not empty fails,
which makes the rename "put if absent": of several writers of the same thing exactly one wins. Nothing
here relies on file locks, which some network file systems silently ignore; the one lock there is, on a
directory being written, only keeps `gc` on the same machine from taking it for a leftover.

In the mirror of a bucket all of this puts things into the bucket first (`remote.upload`), then into the mirror.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from layercache.errors import StoreError
from layercache.store import files, mirror
from layercache.store.layout import TEMPORARY, first_line, frozen_hint
from layercache.store.remote import upload

_OCCUPIED = {errno.ENOTEMPTY, errno.EEXIST}
_LOCKED = {errno.EWOULDBLOCK, errno.EACCES}
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP}
_REASONS = {
    errno.ENOSPC: "the disk is full: free some space and run the same command again (what is published is kept)",
    errno.EDQUOT: "the disk quota is used up: free some space and run the same command again (what is published is kept)",
    errno.EFBIG: "a file would be larger than this process may write (ulimit -f): raise that limit and run it again",
    errno.EACCES: "permission denied: choose another --store or change its permissions",
    errno.EPERM: "permission denied: choose another --store or change its permissions",
    errno.EROFS: "the file system is read-only: choose another --store",
    errno.ENOENT: "its folder has been removed meanwhile: run the same command again",
    errno.ENOTDIR: "part of the path is a file: choose another --store",
    errno.EEXIST: "part of the path is a file: choose another --store",
}
_CHUNK = 8 * 2**20
READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def one_line_errors(path: Path) -> Iterator[None]:
    """Turn an error of the operating system while writing `path` into a StoreError of one line."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, f"{first_line(error)}: choose another --store or mend the disk")
        raise StoreError(f"cannot write {path}: {reason}") from error


def check_not_frozen(store: Path) -> None:
    """Refuse a store that is not to be written.

    Raises:
        StoreError: the store has a `FROZEN` file; its text is part of the message.
    """
    with one_line_errors(store):
        hint = frozen_hint(store)
    if hint is not None:
        raise StoreError(f"the store {store} is frozen: {hint or 'choose another --store'}")


def sync(path: Path) -> None:
    """Force a file or a directory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot sync a directory; there is nothing better to do on them.
        if error.errno not in _CANNOT_SYNC or not path.is_dir():
            raise
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Create a directory and its missing parents, each forced to the disk with its parent."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def write_file(path: Path, data: bytes) -> None:
    """Write a file and force it to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def staging(store: Path) -> Iterator[Path]:
    """Give a new empty directory under `<store>/.tmp/`, gone afterwards unless it was published."""
    folder = store / TEMPORARY / f"{os.getpid()}-{uuid.uuid4().hex}"
    make_folder(folder.parent)
    # Not tempfile: its directories are readable by their owner only, and what is published would be too.
    folder.mkdir()
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            # Where a file system cannot lock, the age of the directory is all that `gc` goes by.
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield folder
        finally:
            os.close(handle)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_being_written(staged: Path) -> bool:
    """Tell whether a living writer on this machine holds a directory under `<store>/.tmp/`."""
    try:
        handle = os.open(staged, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _LOCKED
    finally:
        os.close(handle)
    return False


def remove(store: Path, paths: Iterable[Path]) -> None:
    """Take files or directories out of a store, each in one step, then delete them; a crash leaves them in `.tmp`.

    Nothing is deleted before its absence from the store is on the disk: no half of it can come back.
    """
    paths = list(paths)
    if (bucket := mirror.of(store)) is not None:
        upload.remove(bucket, paths)
    with staging(store) as folder:
        parents = set()
        for number, path in enumerate(paths):
            # What is gone already has been taken by another one that cleans.
            with suppress(FileNotFoundError):
                path.rename(folder / f"{number}-{path.name}"[:200])
            parents.add(path.parent)
        for parent in sorted(parents):
            # A mirror need not have what lies about in its bucket.
            with suppress(FileNotFoundError):
                sync(parent)


def move(path: Path, target: Path) -> None:
    """Move a file or directory within a store."""
    if (bucket := mirror.of(path)) is not None:
        upload.move(bucket, path, target)
    make_folder(target.parent)
    path.rename(target)
    sync(target.parent)
    sync(path.parent)


def publish_folder(staged: Path, final: Path) -> bool:
    """Rename a staged directory, whose files are on the disk already, into its place.

    Returns:
        True when it is there now; False when something else was there first, which is left as it is.

    Raises:
        OSError: it cannot be written.
        StoreError: the store is in a bucket that cannot be reached.
    """
    if (bucket := mirror.of(final)) is not None:
        return upload.publish_folder(bucket, staged, final)
    sync(staged)
    make_folder(final.parent)
    try:
        staged.rename(final)
    except OSError as error:
        if error.errno in _OCCUPIED and final.is_dir():
            return False
        raise
    sync(final.parent)
    return True


def publish_file(store: Path, final: Path, data: bytes) -> None:
    """Write a file whole; its name has to say its content, so that replacing it changes nothing."""
    with staging(store) as folder:
        write_file(folder / final.name, data)
        place_file(folder / final.name, final)


def place_file(staged: Path, final: Path) -> None:
    """Rename a staged file, which is on the disk already, into its place; its name has to say its content."""
    if (bucket := mirror.of(final)) is not None:
        upload.place_file(bucket, staged, final)
        return
    make_folder(final.parent)
    staged.replace(final)
    sync(final.parent)


def copy_file(source: Path, target: Path) -> str:
    """Copy a file's bytes and force them to the disk.

    Returns:
        The sha256 of what was copied, in hex.
    """
    sha256 = hashlib.sha256()
    with files.open_binary(source) as given, target.open("wb") as file:
        while data := given.read(_CHUNK):
            sha256.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return sha256.hexdigest()
