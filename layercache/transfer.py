"""Copies between stores, wherever they are: a folder, a bucket, a dataset repository on the Hub.

`push` copies out of a local store, `pull` into one. What is there stays, so both go on where they were stopped.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from layercache import quantities
from layercache.hub import client
from layercache.hub.client import Address
from layercache.progress import Patient, Progress, in_bytes
from layercache.store import merge, mirror, outstanding
from layercache.store.outstanding import Plan
from layercache.store.publish import make_folder, one_line_errors, staging
from layercache.store.reader import open as open_store
from layercache.store.selection import EVERYTHING, Selection
from layercache.store.writer import check_writable


@dataclass
class Transferred:
    """What was copied, or on a dry run would be."""

    source: str
    target: str
    dry_run: bool
    runs: int = 0
    """Runs that were not there before."""
    shards: int = 0
    there: int = 0
    """Shards that were there already, by name."""
    files: int = 0
    """Rows files, recipes and heads."""
    results: int = 0
    bytes: int = 0
    rows: int = 0
    """Rows of the shards' tables."""
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        would = "would copy" if self.dry_run else "copied"
        return (
            f"{self.source} to {self.target}: {would} {quantities.in_words(self.bytes)}, {self.rows:,} rows, in"
            f" {self.shards} shards ({self.there} were there), {self.files} files, {self.results} results;"
            f" new runs: {self.runs}"
        )


def push(
    store: Path,
    target: str,
    asked: Selection = EVERYTHING,
    progress: Progress | None = None,
    *,
    dry_run: bool = False,
    private: bool = True,
) -> Transferred:
    """Copy what a store holds to another place.

    Args:
        store: the local store; only read.
        target: a folder, `s3://bucket/prefix` or `hf://datasets/user/name`.
        asked: what to copy.
        progress: where to report.
        dry_run: only say how much there is to copy.
        private: whether a repository that is made is.

    Raises:
        StoreError: a store cannot be read or written, or holds nothing of what is asked for.
    """
    place = place_of(target)
    if isinstance(place, Address):
        return _push_to_hub(store, place, asked, progress or Progress(), dry_run=dry_run, private=private)
    return _copy(store, mirror.name(store), place, target, asked, progress or Progress(), dry_run=dry_run)


def pull(
    source: str,
    store: Path,
    asked: Selection = EVERYTHING,
    progress: Progress | None = None,
    *,
    dry_run: bool = False,
) -> Transferred:
    """Copy what another place holds into a store. Arguments and errors as of `push`."""
    place = place_of(source)
    if isinstance(place, Address):
        return _pull_from_hub(place, store, asked, progress or Progress(), dry_run=dry_run)
    return _copy(place, source, store, mirror.name(store), asked, progress or Progress(), dry_run=dry_run)


def place_of(text: str) -> Path | Address:
    """Turn what a user names into the directory of a store, or the address of a repository: the one place that does.

    Raises:
        StoreError: it is an address that cannot be read.
    """
    return client.parse(text) if text.startswith(client.SCHEME) else mirror.located(text)


def _copy(
    source: Path,
    source_name: str,
    target: Path,
    target_name: str,
    asked: Selection,
    progress: Progress,
    *,
    dry_run: bool,
) -> Transferred:
    merge.check([source], target)
    plan = outstanding.plan(source, target, asked)
    done = _planned(plan, source_name, target_name, dry_run=dry_run)
    if not dry_run:
        with in_bytes(progress, f"copy to {target_name}", done.bytes) as moved:
            merged = merge.carry_out(plan, moved=moved)
        done.notes = merged.notes
    return done


def _planned(plan: Plan, source: str, target: str, *, dry_run: bool) -> Transferred:
    size = outstanding.size(plan)
    return Transferred(
        source,
        target,
        dry_run,
        runs=plan.new_runs,
        shards=sum(len(one.steps) for one in plan.runs),
        there=sum(one.there for one in plan.runs),
        files=len(plan.files),
        results=len(plan.results),
        bytes=size.bytes,
        rows=size.rows,
    )


def _pull_from_hub(
    address: Address, store: Path, asked: Selection, progress: Progress, *, dry_run: bool
) -> Transferred:
    from layercache.hub.pull import Copy

    check_writable(store)
    remote = client.look_at(client.connect(), address)
    # A dry run writes nothing to the store; the rest takes room where there has to be room.
    with _room(None if dry_run else store) as folder:
        copy = Copy(remote, folder)
        copy.prepare(asked)
        plan = outstanding.plan(folder, store, asked)
        done = _planned(plan, str(address), mirror.name(store), dry_run=dry_run)
        if not dry_run:
            with in_bytes(progress, f"pull from {address}", done.bytes) as moved:
                copy.files(plan, moved)
                merged = merge.carry_out(plan, ready=lambda step: copy.ready(step, moved))
            done.notes = merged.notes
    return done


def _push_to_hub(
    store: Path, address: Address, asked: Selection, progress: Progress, *, dry_run: bool, private: bool
) -> Transferred:
    from layercache.hub import push as hub_push

    open_store(store)
    api = client.connect()
    try:
        remote = client.look_at(api, address)
    except client.NoRepositoryError:
        if dry_run:
            remote = client.Remote(api, address, "", private, {})
        else:
            remote = client.create(api, address, private=private)
    done = Transferred(mirror.name(store), str(address), dry_run)
    if private and not remote.private:
        done.notes.append(f"{address} is there already, and is public")
    with _selected(store, asked, progress) as chosen:
        uploads, runs, replaced = hub_push.plan(chosen, remote)
        page = hub_push.page(remote, uploads, runs, replaced)
        for name in ("runs", "shards", "there", "files", "results", "bytes", "rows"):
            setattr(done, name, getattr(uploads, name))
        done.notes += uploads.notes
        if not dry_run:
            with in_bytes(progress, f"push to {address}", done.bytes) as moved:
                hub_push.carry_out(uploads, remote, page, moved)
    return done


@contextmanager
def _selected(store: Path, asked: Selection, progress: Progress) -> Iterator[Path]:
    """Give the store itself, or where only a part is asked for a store of that part, gone afterwards."""
    if asked == EVERYTHING:
        yield store
        return
    with tempfile.TemporaryDirectory(prefix="layercache-push-") as folder:
        plan = outstanding.plan(store, Path(folder), asked)
        with in_bytes(Patient(progress), f"take from {mirror.name(store)}", outstanding.size(plan).bytes) as moved:
            merge.carry_out(plan, moved=moved)
        yield Path(folder)


@contextmanager
def _room(store: Path | None) -> Iterator[Path]:
    """Give an empty directory for what is under way: among a store's unfinished work, or where temporary files are."""
    if store is None:
        with tempfile.TemporaryDirectory(prefix="layercache-pull-") as folder:
            yield Path(folder)
        return
    new = not store.exists()
    try:
        with one_line_errors(store):
            make_folder(store)
        with staging(store) as path:
            yield path
    except BaseException:
        if new:
            # Only where nothing was brought: what has something in it is not removed.
            with suppress(OSError):
                (store / ".tmp").rmdir()
                store.rmdir()
        raise
