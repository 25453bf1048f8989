"""Checks a whole store: every run, head, shard, rows file, recipe and result. Finds problems; mends nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path

from layercache.errors import StoreError
from layercache.store import head, results, rows, sequence
from layercache.store.layout import (
    CONDITION,
    MANIFEST,
    RECIPES,
    ROWS,
    RUN,
    SHARD,
    Run,
    check_store,
    first_line,
    read_json,
    read_run,
)
from layercache.store.shard_checks import Problem, file_sha256, shard_problems

__all__ = ["Problem", "verify"]


def verify(store: Path, deep: bool = False) -> list[Problem]:
    """Check a store: sizes, row counts, schemas and names; with `deep` also every byte and every row.

    `deep` recomputes the sha256 of every file, and looks for keys that occur twice, states that are not
    finite, and outputs that lack rows of a sample without a reason being stored.

    Returns:
        What is wrong; empty when all is well. Does not raise for anything it finds in the store.

    Raises:
        StoreError: there is no store at all.
    """
    check_store(store)
    problems: list[Problem] = []
    for path in sorted(store.glob(f"{RUN}*")):
        try:
            run = read_run(path)
        except StoreError as error:
            problems.append(Problem(path, first_line(error)))
            continue
        problems += _shards(run, deep)
        problems += head.problems(run, deep=deep)
        problems += _sequenced(path / ROWS, "parquet", rows.read_info)
    problems += _sequenced(store / RECIPES, "json", read_json)
    return problems + [Problem(path, what) for path, what in results.problems(store, deep=deep)]


def _shards(run: Run, deep: bool) -> Iterator[Problem]:
    for path in sorted(run.path.glob(f"{CONDITION}*/{SHARD}*")):
        if (path / MANIFEST).exists():
            yield from shard_problems(path, run, deep=deep)
        else:
            yield Problem(path, f"has no {MANIFEST}: it is not a shard and can be deleted")


def _sequenced(folder: Path, suffix: str, read: Callable[[Path], object]) -> Iterator[Problem]:
    """Check files whose names end in their sha256."""
    for file in sequence.files(folder, suffix):
        try:
            if not file.path.stem.endswith(file_sha256(file.path)[:16]):
                yield Problem(file.path, "its sha256 is not the one in its name")
            else:
                read(file.path)
        except (StoreError, OSError) as error:
            yield Problem(file.path, first_line(error))
