"""Makes few large shards of many small ones; what readers see stays the same.

The shards of a condition are put into groups that share no sample with one another. Every row that counts
is copied as it is, rows that do not count are dropped, and the last new shard of a group `replaces` the old
ones. Until then the new shards hold copies of rows that are there already, so a stop at any moment leaves
what was readable readable. The old shards stay until `gc` removes them.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from layercache.errors import StoreError
from layercache.progress import Patient, Progress, in_bytes
from layercache.store import pieces
from layercache.store.files import open_parquet
from layercache.store.layout import Run, ShardInfo, canonical_json, place
from layercache.store.pieces import Piece, Shards
from layercache.store.publish import check_not_frozen
from layercache.store.reader import Store
from layercache.store.schema import TABLES
from layercache.store.shard_checks import shard_problems

SHARD_BYTES = 256 * 10**6
"""Size of a new shard's files, about; the memory needed is about three times that."""


class Compacted(NamedTuple):
    """What was made of a condition's shards."""

    run: str
    condition: str
    shards: int
    """Shards that counted before."""
    replaced: int
    """Of these, shards that count no more."""
    made: list[str]
    """Names of the new shards."""


def compact(
    store: Store, run: Run, condition: str, *, size: int = SHARD_BYTES, progress: Progress | None = None
) -> Compacted:
    """Rewrite the shards of a run under one condition that are small, or hold samples of one another.

    Args:
        size: bytes of the files of a new shard, about.
        progress: where to report.

    Raises:
        StoreError: a shard is damaged or holds what only a newer layercache knows, or the store cannot be written.
    """
    check_not_frozen(store.path)
    known = pieces.look_at(run, condition, store.shards(run, condition))
    made, replaced = [], 0
    groups = list(_groups(known, size))
    total = sum(pieces.nbytes(known, group) for group in groups)
    with in_bytes(Patient(progress or Progress()), f"compact {run.id}, {condition}", total) as moved:
        for group in groups:
            _check(known, group)
            made += _rewrite(known, group, size, moved)
            replaced += len(group)
    return Compacted(run.id, condition, len(known.shards), replaced, made)


def _groups(known: Shards, size: int) -> Iterator[list[int]]:
    """Yield groups of shards, by number, worth rewriting together: up to `size`, or more that hang together."""
    by_outputs: dict[bytes, list[list[int]]] = {}
    for members in pieces.hanging_together(known):
        if len(members) == 1 and 2 * pieces.nbytes(known, members) > size:
            continue
        kind = sorted({canonical_json(known.shards[index].outputs) for index in members})
        by_outputs.setdefault(b"\n".join(kind), []).append(members)
    for _, parts in sorted(by_outputs.items()):
        group: list[int] = []
        for members in parts:
            if group and pieces.nbytes(known, [*group, *members]) > size:
                yield from _worth_it(group)
                group = []
            group += members
        yield from _worth_it(group)


def _worth_it(group: list[int]) -> Iterator[list[int]]:
    if len(group) > 1:
        yield sorted(group)


def _check(known: Shards, group: list[int]) -> None:
    """Refuse to copy what is damaged, which would give it a new and valid hash, or what would be lost.

    Bytes that are those written need no second look at their rows here: those of the new shard are checked.
    """
    for index in group:
        shard = known.shards[index]
        _check_one(shard, known.run, rows=False)
        unknown = [name for name in shard.outputs if place(name) is None]
        unknown += [name for name in shard.files if Path(name).stem not in TABLES]
        for name in shard.files if not unknown else ():
            with open_parquet(shard.path / name) as file:
                columns = {column.name for column in TABLES[Path(name).stem].columns}
                unknown += [f"{name} {column}" for column in file.schema_arrow.names if column not in columns]
        if unknown:
            raise StoreError(
                f"{shard.path} holds {unknown[0]}, unknown to this version: compact with a newer layercache"
            )


def _check_one(shard: ShardInfo, run: Run, *, rows: bool) -> None:
    problems = shard_problems(shard.path, run, deep=True, rows=rows)
    if problems:
        raise StoreError(f"{problems[0]}: run `layercache verify --deep --repair`, extract, then compact")


def _rewrite(known: Shards, group: list[int], size: int, moved: Callable[[int], None]) -> list[str]:
    """Publish a group's new shards; the last one replaces the group's old shards."""
    new = list(pieces.pieces(known, group, size))
    per_sample = pieces.nbytes(known, group) / max(1, sum(len(piece.sample_ids) for piece in new))
    made: list[str] = []
    for number, piece in enumerate(new):
        replaces = [known.shards[index].name for index in group] if number == len(new) - 1 else []
        same = [index for index in piece.sources if _is(known, index, piece)]
        provenance = pieces.compacted([known.shards[index] for index in piece.sources])
        # Named as an old shard, a new one would be taken for it: let it replace that one at once.
        replaces = replaces or [known.shards[index].name for index in same]
        shard = pieces.filled(known, piece, known.run, provenance, replaces)
        try:
            name = shard.publish(check=True)
        except StoreError:
            # Perhaps for rows that an old shard was published with: then it is that one which has to be named.
            for index in piece.sources:
                _check_one(known.shards[index], known.run, rows=True)
            raise
        assert name is not None
        made.append(name)
        moved(round(per_sample * len(piece.sample_ids)))
    return made


def _is(known: Shards, index: int, piece: Piece) -> bool:
    shard = known.shards[index]
    return len(known.ids[index]) == len(piece.sample_ids) and shard.outputs == piece.outputs
