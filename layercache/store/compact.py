"""Makes few large shards of many small ones; what readers see stays the same.

The shards of a condition are put into groups that share no sample with one another. Every row that counts
is copied as it is, rows that do not count are dropped, and the last new shard of a group `replaces` the old
ones. Until then the new shards hold copies of rows that are there already, so a stop at any moment leaves
what was readable readable. The old shards stay until `gc` removes them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from layercache import __version__
from layercache.errors import StoreError
from layercache.store.blocks import VECTOR_COLUMN
from layercache.store.files import open_parquet
from layercache.store.holdings import SAMPLES, Exclusion, Holdings, Outputs, exclusions, holdings, united
from layercache.store.ids import read_ids
from layercache.store.layout import Run, ShardInfo, canonical_json, place
from layercache.store.publish import check_not_frozen
from layercache.store.reader import Store
from layercache.store.schema import TABLES
from layercache.store.shard_checks import shard_problems
from layercache.store.states import unreadable
from layercache.store.writer import Shard

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


@dataclass
class _Plan:
    """What is known of a condition before anything is read but sample ids."""

    run: Run
    condition: str
    shards: list[ShardInfo]
    ids: list[list[str]]
    held: Holdings
    dropped: dict[str, list[Exclusion]]
    """Rows that do not count, by shard."""


class _Piece(NamedTuple):
    """A new shard: some samples that all hold the same outputs, and the numbers of the shards they are in."""

    outputs: Outputs
    sample_ids: list[str]
    sources: list[int]


def compact(store: Store, run: Run, condition: str, *, size: int = SHARD_BYTES) -> Compacted:
    """Rewrite the shards of a run under one condition that are small, or hold samples of one another.

    Args:
        size: bytes of the files of a new shard, about.

    Raises:
        StoreError: a shard is damaged or holds what only a newer layercache knows, or the store cannot be written.
    """
    check_not_frozen(store.path)
    shards = store.shards(run, condition)
    ids = [array.to_pylist() for array in read_ids(shards)]
    dropped: dict[str, list[Exclusion]] = {}
    for one in exclusions(shards, ids):
        dropped.setdefault(one.shard, []).append(one)
    plan = _Plan(run, condition, shards, ids, holdings(shards, ids), dropped)
    made, replaced = [], 0
    for group in _groups(plan, size):
        _check(plan, group)
        made += _rewrite(plan, group, size)
        replaced += len(group)
    return Compacted(run.id, condition, len(shards), replaced, made)


def _groups(plan: _Plan, size: int) -> Iterator[list[int]]:
    """Yield groups of shards, by number, worth rewriting together: up to `size`, or more that hang together."""
    by_outputs: dict[bytes, list[list[int]]] = {}
    for members in _hanging_together(plan.held, len(plan.shards)):
        if len(members) == 1 and 2 * _bytes(plan, members) > size:
            continue
        kind = sorted({canonical_json(plan.shards[index].outputs) for index in members})
        by_outputs.setdefault(b"\n".join(kind), []).append(members)
    for _, parts in sorted(by_outputs.items()):
        group: list[int] = []
        for members in parts:
            if group and _bytes(plan, [*group, *members]) > size:
                yield from _worth_it(group)
                group = []
            group += members
        yield from _worth_it(group)


def _worth_it(group: list[int]) -> Iterator[list[int]]:
    if len(group) > 1:
        yield sorted(group)


def _hanging_together(held: Holdings, n_shards: int) -> list[list[int]]:
    """Return the shards, by number, in parts that share no sample with one another."""
    parent = list(range(n_shards))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for holders in set(held.holders.values()):
        for index in holders[1:]:
            parent[root(index)] = root(holders[0])
    parts: dict[int, list[int]] = {}
    for index in range(n_shards):
        parts.setdefault(root(index), []).append(index)
    return list(parts.values())


def _bytes(plan: _Plan, group: Iterable[int]) -> int:
    return sum(info.bytes for index in group for info in plan.shards[index].files.values())


def _check(plan: _Plan, group: list[int]) -> None:
    """Refuse to copy what is damaged, which would give it a new and valid hash, or what would be lost.

    Bytes that are those written need no second look at their rows here: those of the new shard are checked.
    """
    for index in group:
        shard = plan.shards[index]
        _check_one(shard, plan.run, rows=False)
        unknown = [name for name in shard.outputs if place(name) is None]
        unknown += [name for name in shard.files if Path(name).stem not in TABLES]
        for name in shard.files if not unknown else ():
            with open_parquet(shard.path / name) as file:
                known = {column.name for column in TABLES[Path(name).stem].columns}
                unknown += [f"{name} {column}" for column in file.schema_arrow.names if column not in known]
        if unknown:
            raise StoreError(
                f"{shard.path} holds {unknown[0]}, unknown to this version: compact with a newer layercache"
            )


def _check_one(shard: ShardInfo, run: Run, *, rows: bool) -> None:
    problems = shard_problems(shard.path, run, deep=True, rows=rows)
    if problems:
        raise StoreError(f"{problems[0]}: run `layercache verify --deep --repair`, extract, then compact")


def _rewrite(plan: _Plan, group: list[int], size: int) -> list[str]:
    """Publish a group's new shards; the last one replaces the group's old shards."""
    pieces = list(_pieces(plan, group, size))
    made: list[str] = []
    for number, piece in enumerate(pieces):
        replaces = [plan.shards[index].name for index in group] if number == len(pieces) - 1 else []
        same = [index for index in piece.sources if _is(plan, index, piece)]
        # Named as an old shard, a new one would be taken for it: let it replace that one at once.
        shard = _filled(plan, piece, replaces or [plan.shards[index].name for index in same])
        try:
            name = shard.publish(check=True)
        except StoreError:
            # Perhaps for rows that an old shard was published with: then it is that one which has to be named.
            for index in piece.sources:
                _check_one(plan.shards[index], plan.run, rows=True)
            raise
        assert name is not None
        made.append(name)
    return made


def _is(plan: _Plan, index: int, piece: _Piece) -> bool:
    shard = plan.shards[index]
    return len(plan.ids[index]) == len(piece.sample_ids) and shard.outputs == piece.outputs


def _pieces(plan: _Plan, group: list[int], size: int) -> Iterator[_Piece]:
    """Yield the new shards: samples that hold the same outputs, in parts of about `size`."""
    by_pairs: dict[frozenset[Any], list[tuple[tuple[int, ...], str]]] = {}
    for name in dict.fromkeys(name for index in group for name in plan.ids[index]):
        holders = plan.held.holders[name]
        pairs = frozenset[Any]().union(*(plan.held.pairs[index] for index in holders))
        by_pairs.setdefault(pairs, []).append((holders, name))
    total = _bytes(plan, group)
    n_samples = sum(len(members) for members in by_pairs.values())
    most = n_samples if total <= 2 * size else max(1, n_samples * size // total)
    for pairs, members in sorted(by_pairs.items(), key=lambda item: min(item[1])):
        # Samples that lie in the same shards together, so that each old shard is read for few new ones.
        members.sort()
        for start in range(0, len(members), most):
            part = members[start : start + most]
            sources = sorted({index for holders, _ in part for index in holders})
            yield _Piece(united(pairs), sorted(name for _, name in part), sources)


def _filled(plan: _Plan, piece: _Piece, replaces: list[str]) -> Shard:
    """Collect the rows of a new shard."""
    sources = [plan.shards[index] for index in piece.sources]
    shard = Shard(
        plan.run,
        piece.outputs,
        condition=plan.condition,
        provenance=_provenance(sources),
        allow_nonfinite=any(source.allow_nonfinite for source in sources),
        replaces=replaces,
    )
    wanted = pa.array(piece.sample_ids)
    absent = _absent(sources, wanted)
    for source in sources:
        for table in TABLES:
            if source.file(table) is not None:
                columns = _rows(source, table, wanted, plan.dropped.get(source.name, []))
                if table == SAMPLES:
                    columns["absent"] = [absent[name] for name in columns["sample_id"].to_pylist()]
                shard.add(table, columns)
    return shard


def _absent(sources: Sequence[ShardInfo], wanted: pa.Array) -> dict[str, list[dict[str, str]]]:
    """Return what is absent of every sample from any of its shards, each once."""
    found: dict[str, list[dict[str, str]]] = {name: [] for name in wanted.to_pylist()}
    for source in sources:
        table = _read(source, SAMPLES, ["sample_id", "absent"])
        for name, reasons in zip(table["sample_id"].to_pylist(), table["absent"].to_pylist(), strict=True):
            if name in found:
                found[name] += [reason for reason in reasons if reason not in found[name]]
    return found


def _rows(source: ShardInfo, table: str, wanted: pa.Array, dropped: list[Exclusion]) -> dict[str, Any]:
    """Read the rows of a table that count and are of the samples wanted, as columns."""
    rows = _read(source, table)
    keep = _is_in(rows["sample_id"], wanted)
    for _, outputs, ids in dropped:
        of_these = _is_in(rows["sample_id"], pa.array(ids))
        for output, layers in outputs.items():
            where = {} if output == SAMPLES == table else _where(output, table)
            if where is not None:
                match = of_these.copy()
                for name, value in where.items():
                    match &= _is_in(rows[name], pa.array([value]))
                if layers is not None:
                    match &= _is_in(rows["layer"], pa.array(layers, pa.int32()))
                keep &= ~match
    kept = rows.filter(pa.array(keep)).combine_chunks()
    columns = {name: kept[name].combine_chunks() for name in kept.column_names if name != VECTOR_COLUMN}
    if VECTOR_COLUMN in kept.column_names:
        vectors = kept[VECTOR_COLUMN].combine_chunks()
        columns[VECTOR_COLUMN] = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, vectors.type.list_size)
    return columns


def _where(output: str, table: str) -> dict[str, str] | None:
    where = place(output)
    return where.where if where is not None and where.table == table else None


def _is_in(column: pa.ChunkedArray, values: pa.Array) -> np.ndarray:
    found: np.ndarray = pc.is_in(column, value_set=values.cast(column.type)).to_numpy()
    return found


def _read(source: ShardInfo, table: str, columns: list[str] | None = None) -> pa.Table:
    path = source.path / f"{table}.parquet"
    try:
        with open_parquet(path) as file:
            return file.read(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error


def _provenance(sources: Sequence[ShardInfo]) -> dict[str, Any]:
    """Say what a shard was made of: what all sources agree on, and every kind of source with its shards."""
    kinds: dict[bytes, dict[str, Any]] = {}
    for source in sources:
        earlier = source.provenance.get("compacted")
        for one in earlier if isinstance(earlier, list) else [{"shards": [source.name], **source.provenance}]:
            fixed = {key: value for key, value in one.items() if key not in {"shards", "created"}}
            kind = kinds.setdefault(canonical_json(fixed), {"shards": [], "created": [], **fixed})
            created = one.get("created", [])
            times = [*kind["created"], *(created if isinstance(created, list) else [created])]
            kind["created"] = [min(times), max(times)] if times else []
            kind["shards"] += one["shards"]
    first = next(iter(kinds.values()))
    agreed = {key: value for key, value in first.items() if all(kind.get(key) == value for kind in kinds.values())}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    own = {"created": now, "compacted_by": __version__, "compacted": list(kinds.values())}
    return {**{key: value for key, value in agreed.items() if key != "shards"}, **own}
