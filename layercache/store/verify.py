"""Checks a whole store: every run, head, shard, rows file, recipe and result. Finds problems; `repair` mends them."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from layercache.errors import StoreError
from layercache.progress import Patient, Progress, in_bytes
from layercache.store import head, mirror, results, rows, sequence
from layercache.store.coverage import lost_by_replacing
from layercache.store.files import sha256 as file_sha256
from layercache.store.layout import (
    CONDITION,
    MANIFEST,
    RECIPES,
    RESULTS,
    ROWS,
    RUN,
    RUN_FILE,
    SHARD,
    Run,
    first_line,
    is_gone,
    listed,
    read_json,
    read_run,
    refuse_link,
)
from layercache.store.reader import Store
from layercache.store.shard_checks import LINK, RUN_CHANGED, Problem, shard_problems, told

__all__ = ["Problem", "verify"]


_Looked = Callable[[Path], object]
"""Told of every shard, file or folder that has been looked at."""


def verify(store: Path, deep: bool = False, progress: Progress | None = None) -> list[Problem]:
    """Check a store: sizes, row counts, schemas and names; with `deep` also every byte and every row.

    `deep` recomputes the sha256 of every file, and looks for keys that occur twice, states that are not
    finite, and outputs that lack rows of a sample without a reason being stored. The bytes of a `run.json`
    are vouched for by the manifests of its shards, those of a manifest by its own last field. Of a store in a bucket
    every byte is fetched anew.

    Args:
        store: the store.
        deep: read everything.
        progress: where to report.

    Returns:
        What is wrong; empty when all is well. Does not raise for anything it finds in the store.

    Raises:
        StoreError: there is no store at all.
    """
    mirror.check_store(store)
    if deep and mirror.of(store) is not None:
        mirror.refresh(store, anew=True)
    problems: list[Problem] = []
    with _looking(store, deep, Patient(progress or Progress())) as looked_at:
        for path in (store / name for name in listed(store, RUN)):
            try:
                run = read_run(path)
            except StoreError as error:
                problems.append(_without_run(path, error))
                continue
            problems += _run(run, deep, looked_at)
        problems += _sequenced(store / RECIPES, "json", read_json)
        try:
            problems += [Problem(path, what) for path, what in results.problems(store, deep=deep)]
        except (StoreError, OSError) as error:
            problems.append(Problem(store / RESULTS, told(error, store / RESULTS)))
        looked_at(store / RESULTS)
    return [*problems, *_links(store)]


@contextmanager
def _looking(store: Path, deep: bool, progress: Progress) -> Iterator[_Looked]:
    """Report the bytes that are read, or where only names, sizes and footers are looked at the shards."""
    title, runs = f"verify {mirror.name(store)}", [store / name for name in listed(store, RUN)]
    if deep:
        with in_bytes(progress, title, sum(map(_bytes, [*runs, store / RESULTS]))) as read:
            yield lambda path: read(_bytes(path))
    else:
        shards = sum(1 for run in runs for _ in run.glob(f"{CONDITION}*/{SHARD}*"))
        with progress.task(title, shards, "shards") as task:
            yield lambda path: task.advance() if path.name.startswith(SHARD) else None


def _bytes(path: Path) -> int:
    """Return the bytes of a file, or of all in a folder; whatever the store holds, that is no reason to stop."""
    files = [path, *(Path(folder) / name for folder, _, names in os.walk(path) for name in names)]
    total = 0
    for file in files:
        with suppress(OSError):
            total += 0 if file.is_dir() else file.lstat().st_size
    return total


def _without_run(path: Path, error: StoreError) -> Problem:
    if not is_gone(path / RUN_FILE):
        return Problem(path / RUN_FILE, told(error, path / RUN_FILE))
    if any(path.glob(f"{CONDITION}*/{SHARD}*/{MANIFEST}")):
        return Problem(path, f"has no {RUN_FILE}: extract the same model and settings again, which restores it")
    return Problem(path, f"has no {RUN_FILE}: it is not a run and can be deleted")


def _run(run: Run, deep: bool, looked_at: _Looked) -> Iterator[Problem]:
    try:
        found = list(_shards(run, deep, looked_at))
    except StoreError as error:
        found = [Problem(run.path, told(error, run.path))]
    changed = [problem for problem in found if problem.what == RUN_CHANGED]
    if changed and len(changed) == len(list(_shard_paths(run))):
        # All shards disagree with it: it is `run.json` that has changed, not they.
        found = [problem for problem in found if problem.what != RUN_CHANGED]
        yield Problem(run.path / RUN_FILE, "its sha256 is not the one in the manifests of its shards")
    yield from found
    if not found:
        try:
            yield from lost_by_replacing(Store(run.store), run)
        except StoreError as error:
            yield Problem(run.path, first_line(error))
    yield from _sequenced(run.path / ROWS, "parquet", rows.read_info)
    looked_at(run.path / ROWS)
    yield from head.problems(run, deep=deep)
    for path in run.path.glob("head-*"):
        looked_at(path)


def _shard_paths(run: Run) -> Iterable[Path]:
    folders = [run.path / name for name in listed(run.path, CONDITION)]
    return [folder / name for folder in folders for name in listed(folder, SHARD)]


def _shards(run: Run, deep: bool, looked_at: _Looked) -> Iterator[Problem]:
    for path in _shard_paths(run):
        if not is_gone(path / MANIFEST):
            yield from shard_problems(path, run, deep=deep)
        else:
            yield Problem(path, f"has no {MANIFEST}: it is not a shard and can be deleted")
        looked_at(path)


def _sequenced(folder: Path, suffix: str, read: Callable[[Path], object]) -> Iterator[Problem]:
    """Check files whose names end in their sha256."""
    try:
        files = sequence.files(folder, suffix)
    except StoreError as error:
        yield Problem(folder, told(error, folder))
        return
    for file in files:
        try:
            refuse_link(file.path)
            if not file.path.stem.endswith(file_sha256(file.path)[:16]):
                yield Problem(file.path, "its sha256 is not the one in its name")
            else:
                read(file.path)
        except (StoreError, OSError) as error:
            yield Problem(file.path, told(error, file.path) if isinstance(error, StoreError) else first_line(error))


def _links(store: Path) -> Iterator[Problem]:
    """Look for links among directories and the files outside shards; those in shards are checked with them."""
    patterns = (f"{RUN}*", f"{RUN}*/*", f"{RUN}*/{ROWS}/*", RECIPES, f"{RECIPES}/*", RESULTS, f"{RESULTS}/*")
    for path in sorted(path for pattern in (*patterns, f"{RESULTS}/*/*") for path in store.glob(pattern)):
        if path.is_symlink():
            yield Problem(path, LINK)
