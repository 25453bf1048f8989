"""Removes what no reader of a store needs: unfinished work, replaced shards, what was put in quarantine.

Only what has been as it is for some time goes. For unfinished work that is the time since anything in its
directory changed, and whatever its age, a directory that a living writer on this machine holds stays. For a
replaced shard it is the time since the shard that replaces it appeared, so that readers that had opened the
store before can finish; and that shard is read and checked, to the last byte, before the old one is deleted.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from layercache.progress import Patient, Progress, in_bytes
from layercache.store import mirror, reader
from layercache.store.coverage import Replaced, replaced
from layercache.store.layout import QUARANTINE, TEMPORARY, Run
from layercache.store.publish import check_not_frozen, is_being_written, one_line_errors, remove
from layercache.store.shard_checks import shard_problems

GRACE = 3600.0
"""Seconds that have to have passed, unless asked otherwise."""
_AT_ONCE = 500
"""Things that are taken out of the store, and forced to the disk, together."""


class Garbage(NamedTuple):
    """Something that no reader needs."""

    path: Path
    what: str
    bytes: int


class Collected(NamedTuple):
    """What was removed (or, on a dry run, would be), and what was kept although it looks like garbage, and why."""

    removed: list[Garbage]
    kept: list[Garbage]


def collect(
    store: Path, *, older_than: float = GRACE, dry_run: bool = False, progress: Progress | None = None
) -> Collected:
    """Remove garbage that is older than so many seconds; `progress` is where to report.

    Raises:
        StoreError: there is no store, it is frozen, damaged or cannot be written.
    """
    mirror.check_store(store)
    if not dry_run:
        check_not_frozen(store)
    found, patient = Collected([], []), Patient(progress or Progress())
    with one_line_errors(store):
        # Litter first: it can go whatever the state of the shards.
        for candidates in (_litter, _replaced_shards):
            gone = []
            for garbage, reason in candidates(store, older_than, patient):
                if reason is None:
                    gone.append(garbage)
                else:
                    found.kept.append(garbage._replace(what=f"{garbage.what}, kept: {reason}"))
            if not dry_run:
                _remove(store, gone, patient)
            found.removed.extend(gone)
    return found


def _remove(store: Path, gone: Sequence[Garbage], progress: Progress) -> None:
    with progress.task(f"remove from {mirror.name(store)}", len(gone), "things") as task:
        for start in range(0, len(gone), _AT_ONCE):
            paths = [garbage.path for garbage in gone[start : start + _AT_ONCE]]
            remove(store, paths)
            task.advance(len(paths))


def leftovers(store: Path) -> list[Garbage]:
    """List the unfinished work that no living writer on this machine holds, whatever its age."""
    entries = sorted((store / TEMPORARY).glob("*"))
    return [Garbage(path, "unfinished work", _size(path)) for path in entries if not is_being_written(path)]


def _litter(store: Path, older_than: float, _progress: Progress) -> Iterator[tuple[Garbage, str | None]]:
    """Yield garbage outside runs, and why it has to stay (None: it can go)."""
    now = time.time()
    for garbage in leftovers(store):
        yield garbage, _too_young(now - _newest(garbage.path), older_than)
    for path, what, size, modified in mirror.orphans(store):
        yield Garbage(path, what, size), _too_young(now - modified, older_than)
    for path in sorted((store / QUARANTINE).glob("*")):
        age = now - path.stat().st_mtime
        yield Garbage(path, "in quarantine", _size(path)), _too_young(age, older_than)


def _replaced_shards(store: Path, older_than: float, progress: Progress) -> Iterator[tuple[Garbage, str | None]]:
    """Yield shards that do not count any more, and why they have to stay (None: they can go)."""
    now = time.time()
    opened = reader.open(store)
    found = [
        (gone, run)
        for run in opened.runs()
        for condition in opened.conditions(run)
        for gone in replaced(opened, run, condition)
    ]
    sizes = {holder.path: _size(holder.path) for gone, _ in found for holder in gone.holders}
    checked: dict[Path, str | None] = {}
    with in_bytes(progress, "check what replaces old shards", sum(sizes.values())) as read:
        for gone, run in found:
            before = set(checked)
            yield _replaced(gone, run, now, older_than, checked)
            read(sum(sizes[path] for path in checked.keys() - before))


def _replaced(
    gone: Replaced, run: Run, now: float, older_than: float, checked: dict[Path, str | None]
) -> tuple[Garbage, str | None]:
    """Decide about one replaced shard; `checked` remembers what was found of the shards that hold its samples."""
    shard, by, lost, holders = gone
    garbage = Garbage(shard.path, f"replaced by shard {by.name if by else '?'}", _size(shard.path))
    if by is None or lost:
        return garbage, f"{lost} of its samples are nowhere else: run `layercache verify`"
    young = _too_young(now - by.path.stat().st_mtime, older_than)
    if young is not None:
        return garbage, young
    for holder in holders:
        if holder.path not in checked:
            problems = shard_problems(holder.path, run, deep=True)
            checked[holder.path] = str(problems[0]) if problems else None
        if checked[holder.path] is not None:
            return garbage, f"what holds its samples now is damaged ({checked[holder.path]})"
    return garbage, None


def _too_young(age: float, older_than: float) -> str | None:
    return None if age >= older_than else f"younger than {older_than:g} s"


def _files(path: Path) -> list[Path]:
    return [path, *(path.rglob("*") if path.is_dir() and not path.is_symlink() else ())]


def _size(path: Path) -> int:
    return sum(_stat(file)[0] for file in _files(path))


def _newest(path: Path) -> float:
    return max(_stat(file)[1] for file in _files(path))


def _stat(path: Path) -> tuple[int, float]:
    """Return a file's size and when it last changed; a file that has just gone counts as changed now."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return 0, time.time()
    return (0 if path.is_dir() else found.st_size), found.st_mtime
