"""Makes new shards of what others hold: of some samples, some outputs, every row that counts and no other.

What shards hold twice they hold once in the new ones: shards that share samples are looked at together. Rows are
read by row group, and only those that may be of the outputs asked for.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pyarrow as pa

from layercache import __version__
from layercache.errors import StoreError
from layercache.store.blocks import VECTOR_COLUMN
from layercache.store.files import fetch, open_parquet
from layercache.store.holdings import SAMPLES, Exclusion, Holdings, Outputs, Pair, exclusions, holdings, united
from layercache.store.ids import read_ids
from layercache.store.layout import Run, ShardInfo, canonical_json, place, table_of
from layercache.store.row_groups import groups_of, is_in, rows_of, together
from layercache.store.schema import TABLES
from layercache.store.states import unreadable
from layercache.store.writer import Shard


@dataclass
class Shards:
    """What is known of the shards of a condition before anything is read but sample ids."""

    run: Run
    condition: str
    shards: list[ShardInfo]
    ids: list[list[str]]
    held: Holdings
    dropped: dict[str, list[Exclusion]]
    """Rows that do not count, by shard."""


class Piece(NamedTuple):
    """A shard to make: some samples that all hold the same outputs, and the numbers of the shards they are in."""

    outputs: Outputs
    sample_ids: list[str]
    sources: list[int]


def look_at(run: Run, condition: str, shards: list[ShardInfo]) -> Shards:
    """Read the sample ids of the shards of a condition, sorted by name, and find what is held twice."""
    ids = [array.to_pylist() for array in read_ids(shards)]
    dropped: dict[str, list[Exclusion]] = {}
    for one in exclusions(shards, ids):
        dropped.setdefault(one.shard, []).append(one)
    return Shards(run, condition, shards, ids, holdings(shards, ids), dropped)


def hanging_together(known: Shards) -> list[list[int]]:
    """Return the shards, by number, in parts that share no sample with one another."""
    parent = list(range(len(known.shards)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for holders in set(known.held.holders.values()):
        for index in holders[1:]:
            parent[root(index)] = root(holders[0])
    parts: dict[int, list[int]] = {}
    for index in range(len(known.shards)):
        parts.setdefault(root(index), []).append(index)
    return list(parts.values())


def nbytes(known: Shards, group: Iterable[int]) -> int:
    """Return the bytes of the files of shards."""
    return sum(info.bytes for index in group for info in known.shards[index].files.values())


def pieces(
    known: Shards,
    group: list[int],
    size: int,
    *,
    wanted: Callable[[Pair], bool] = lambda pair: True,
    samples: frozenset[str] | None = None,
) -> Iterator[Piece]:
    """Yield the new shards of a group: samples that hold the same outputs, in parts of about `size` bytes.

    Args:
        known: the shards.
        group: numbers of shards that share samples with none outside it.
        size: bytes of a new shard's files, about.
        wanted: whether an (output, layer) is to be in the new shards.
        samples: the samples to be in them; all when not given.
    """
    by_pairs: dict[frozenset[Pair], list[tuple[tuple[int, ...], str]]] = {}
    for name in dict.fromkeys(name for index in group for name in known.ids[index]):
        if samples is None or name in samples:
            holders = known.held.holders[name]
            pairs = frozenset[Pair]().union(*(known.held.pairs[index] for index in holders))
            by_pairs.setdefault(pairs, []).append((holders, name))
    n_samples = sum(len(members) for members in by_pairs.values())
    for pairs, members in sorted(by_pairs.items(), key=lambda item: min(item[1])):
        chosen = frozenset(filter(wanted, pairs))
        # Layers differ little in size; of tables none is as large as that of the states.
        total = nbytes(known, group) * max(1, len(chosen)) // max(1, len(pairs))
        most = n_samples if total <= 2 * size else max(1, n_samples * size // total)
        # Samples that lie in the same shards together, so that each old shard is read for few new ones.
        members.sort()
        for start in range(0, len(members), most):
            part = members[start : start + most]
            sources = sorted({index for holders, _ in part for index in holders})
            yield Piece(united(chosen), sorted(name for _, name in part), sources)


def filled(known: Shards, piece: Piece, into: Run, provenance: dict[str, Any], replaces: Sequence[str] = ()) -> Shard:
    """Collect the rows of a new shard of the run `into`.

    Raises:
        StoreError: a file cannot be read.
    """
    sources = [known.shards[index] for index in piece.sources]
    shard = Shard(
        into,
        piece.outputs,
        condition=known.condition,
        provenance=provenance,
        allow_nonfinite=any(source.allow_nonfinite for source in sources),
        replaces=replaces,
    )
    wanted = pa.array(piece.sample_ids)
    gaps = _Gaps(sources, wanted, piece.outputs)
    # The samples last: by then it is known which of them have a row after all.
    for table in [name for name in TABLES if name != SAMPLES]:
        for source in sources:
            outputs = narrowed(source, piece.outputs)
            if source.file(table) is not None and is_read(table, outputs):
                rows = _rows(source, table, wanted, outputs, known.dropped.get(source.name, []))
                gaps.look_at(table, rows)
                shard.add(table, _columns(rows))
    for source in sources:
        rows = _rows(source, SAMPLES, wanted, None, known.dropped.get(source.name, []))
        columns = _columns(rows)
        columns["absent"] = [gaps.of(name) for name in columns["sample_id"].to_pylist()]
        shard.add(SAMPLES, columns)
    return shard


class _Gaps:
    """What is absent of every sample: of the outputs of a new shard, what its sources say and its rows bear out."""

    def __init__(self, sources: Sequence[ShardInfo], wanted: pa.Array, outputs: Outputs) -> None:
        self._outputs = outputs
        self._said: dict[str, list[dict[str, str]]] = {name: [] for name in wanted.to_pylist()}
        for source in sources:
            table = pa.concat_tables(read_rows(source, SAMPLES, columns=["sample_id", "absent"]))
            for name, reasons in zip(table["sample_id"].to_pylist(), table["absent"].to_pylist(), strict=True):
                if name in self._said:
                    known = self._said[name]
                    known += [one for one in reasons if one["output"] in outputs and one not in known]
        self._found: dict[tuple[str, str], set[int]] = {}

    def look_at(self, table: str, rows: pa.Table) -> None:
        """Note the layers at which samples that are said to lack an output have a row of it."""
        for output in {one["output"] for reasons in self._said.values() for one in reasons}:
            where, layers = place(output), self._outputs[output]
            if where is None or where.table != table or layers is None:
                continue
            having = [name for name, reasons in self._said.items() if any(one["output"] == output for one in reasons)]
            match = is_in(rows["sample_id"], pa.array(having)) & rows_of(rows, table, {output: layers})
            some = rows.select(["sample_id", "layer"]).filter(pa.array(match))
            for name, layer in zip(some["sample_id"].to_pylist(), some["layer"].to_pylist(), strict=True):
                self._found.setdefault((output, name), set()).add(layer)

    def of(self, sample_id: str) -> list[dict[str, str]]:
        """Return the outputs that lack a row of a sample, at some of their layers or all, and why."""
        return [one for one in self._said[sample_id] if not self._complete(one["output"], sample_id)]

    def _complete(self, output: str, sample_id: str) -> bool:
        layers = self._outputs[output]
        return layers is not None and self._found.get((output, sample_id), set()) == set(layers)


def read_rows(
    source: ShardInfo, table: str, outputs: Outputs | None = None, columns: list[str] | None = None
) -> Iterator[pa.Table]:
    """Yield the rows of the row groups that may hold rows of the outputs, some row groups at a time.

    Raises:
        StoreError: the file cannot be read, or has a column that this version does not know.
    """
    path = source.path / f"{table}.parquet"
    known = [column.name for column in TABLES[table].columns]
    try:
        # Of a bucket's file: what lies apart in it comes at once.
        fetch([path], lambda metadata: [(group, columns or known) for group in groups_of(metadata, table, outputs)])
        with open_parquet(path) as file:
            unknown = sorted(set(file.schema_arrow.names) - set(known))
            if unknown:
                raise StoreError(
                    f"{path} has a column {unknown[0]} that this version does not know: install a newer one"
                )
            for numbers in together(file.metadata, groups_of(file.metadata, table, outputs)):
                yield file.read_row_groups(numbers, columns=columns)
            # So that there is a table, with its columns, also where there is no row.
            yield (
                file.schema_arrow.empty_table() if columns is None else file.schema_arrow.empty_table().select(columns)
            )
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error


def narrowed(source: ShardInfo, outputs: Outputs) -> Outputs | None:
    """Return the outputs to read of a shard; None where it is all that it holds."""
    missing = {
        name
        for name, layers in source.outputs.items()
        if name not in outputs or not set(layers or []) <= set(outputs[name] or [])
    }
    return outputs if missing else None


def is_read(table: str, outputs: Outputs | None) -> bool:
    """Tell whether a table has to be read for outputs (all when None)."""
    return outputs is None or table == SAMPLES or any(table_of(output) == table for output in outputs)


def _rows(
    source: ShardInfo, table: str, wanted: pa.Array, outputs: Outputs | None, dropped: list[Exclusion]
) -> pa.Table:
    """Read the rows of a table that count, are of the outputs (all when None), and are of the samples wanted."""
    kept = []
    for rows in read_rows(source, table, outputs):
        keep = is_in(rows["sample_id"], wanted)
        if outputs is not None:
            keep &= rows_of(rows, table, outputs)
        for _, again, ids in dropped:
            of_these = is_in(rows["sample_id"], pa.array(ids))
            if table == SAMPLES:
                keep &= ~of_these
            else:
                keep &= ~(of_these & rows_of(rows, table, again))
        kept.append(rows.filter(pa.array(keep)))
    return pa.concat_tables(kept).combine_chunks()


def _columns(rows: pa.Table) -> dict[str, Any]:
    columns = {name: rows[name].combine_chunks() for name in rows.column_names if name != VECTOR_COLUMN}
    if VECTOR_COLUMN in rows.column_names:
        vectors = rows[VECTOR_COLUMN].combine_chunks()
        columns[VECTOR_COLUMN] = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, vectors.type.list_size)
    return columns


def compacted(sources: Sequence[ShardInfo]) -> dict[str, Any]:
    """Say what a shard was made of: what all sources agree on, and every kind of source with its shards."""
    kinds: dict[bytes, dict[str, Any]] = {}
    for source in sources:
        earlier = source.provenance.get("compacted")
        for one in earlier if isinstance(earlier, list) else [{"shards": [source.name], **source.provenance}]:
            fixed = {key: value for key, value in one.items() if key not in _OF_ONE_SHARD}
            kind = kinds.setdefault(canonical_json(fixed), {"shards": [], "created": [], **fixed})
            created = one.get("created", [])
            times = [*kind["created"], *(created if isinstance(created, list) else [created])]
            kind["created"] = [min(times), max(times)] if times else []
            kind["shards"] += one["shards"]
            if "taken_from" in one:
                kind.setdefault("taken_from", []).extend(one["taken_from"])
    first = next(iter(kinds.values()))
    agreed = {key: value for key, value in first.items() if all(kind.get(key) == value for kind in kinds.values())}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    own = {"created": now, "compacted_by": __version__, "compacted": list(kinds.values())}
    return {**{key: value for key, value in agreed.items() if key not in _OF_ONE_SHARD}, **own}


_OF_ONE_SHARD = {"shards", "created", "taken_from"}


def taken(sources: Sequence[ShardInfo]) -> dict[str, Any]:
    """Say what a shard with some rows of others was taken from: their provenance, and in `taken_from` their names.

    No time is in it, so that taking the same again gives the same bytes.
    """
    if len(sources) == 1:
        given = dict(sources[0].provenance)
    else:
        given = {key: value for key, value in compacted(sources).items() if key not in {"created", "compacted_by"}}
    earlier = [name for source in sources for name in source.provenance.get("taken_from", [])]
    return {**given, "taken_from": [*(source.name for source in sources), *earlier]}
