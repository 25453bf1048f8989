"""The names a store holds, read from its folders and the small files in them: what a shell completes, and counts.

Quicker than opening the store, and less strict: what cannot be read has no name here.
"""

from collections.abc import Iterator
from pathlib import Path

from layercache.errors import StoreError
from layercache.store import sequence
from layercache.store.layout import (
    CLEAN,
    CONDITION,
    MANIFEST,
    SHARD,
    Run,
    is_gone,
    listed,
    read_run,
    run_paths,
)


def count_shards(store: Path) -> int:
    """Count the published shards of a store, those that others replace among them."""
    return sum(1 for path in run_paths(store) for _ in _shards(path))


def runs(store: Path) -> list[Run]:
    """List the runs that can be read, sorted by id."""
    found = []
    for path in run_paths(store):
        try:
            found.append(read_run(path))
        except StoreError:
            continue
    return found


def data_sets(store: Path) -> list[str]:
    """List the data sets of all runs, sorted."""
    return sorted({name for path in run_paths(store) for name in sequence.newest_rows(path)})


def labels(store: Path) -> list[str]:
    """List the labels of all data sets, sorted."""
    from layercache.store import rows

    found: set[str] = set()
    for path in run_paths(store):
        for file in sequence.newest_rows(path).values():
            try:
                found.update(label.name for label in rows.read_info(file.path).labels)
            except StoreError:
                continue
    return sorted(found)


def conditions(store: Path) -> list[str]:
    """List the conditions of all runs, `clean` first."""
    found = {shard.parent.name.removeprefix(CONDITION) for path in run_paths(store) for shard in _shards(path)}
    return sorted(found, key=lambda name: (name != CLEAN, name))


def _shards(run: Path) -> Iterator[Path]:
    for condition in listed(run, CONDITION):
        for shard in listed(run / condition, SHARD):
            if not is_gone(run / condition / shard / MANIFEST):
                yield run / condition / shard
