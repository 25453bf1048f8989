"""Reads the hidden states of one feature and layer from the shards that hold it, and nothing else of them."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from layercache.errors import StoreError
from layercache.store import files
from layercache.store.files import open_parquet
from layercache.store.layout import first_line

_ID = ("sample_id",)
_THREADS = 4
"""Row groups read at once: each is up to 64 MB in memory beside the result."""


@dataclass(frozen=True)
class Matrix:
    """States of one feature and layer: row i of `values` is the state of sample `sample_ids[i]`."""

    sample_ids: np.ndarray
    """str [n], sorted; distinct, except of states that are one row a token."""
    values: np.ndarray
    """float32 [n, d], C-contiguous."""
    positions: np.ndarray | None = None
    """int32 [n], the token position of every row, of states that are one row a token; else None."""


@dataclass(frozen=True, kw_only=True)
class LabelledMatrix(Matrix):
    """States beside a label: line i is the data set's row `rows[i]`, in row order.

    Labels belong to rows and states to samples, so rows of one prompt have the same `sample_ids[i]` and the
    same state: keep them on one side of a split.
    """

    rows: np.ndarray
    """int64 [n], rows of the data set that have both the label and a state."""
    labels: np.ndarray
    """[n]: float64 for a number, bool for a boolean, str (object) for a category or text."""


class Source(NamedTuple):
    """A `hidden.parquet` and the samples whose rows in it do not count."""

    path: Path
    excluded: frozenset[str]


class _Part(NamedTuple):
    """A row group that holds wanted rows: their sample ids, token positions (0 where they do not count), and which
    rows they are (None: all)."""

    path: Path
    group: int
    ids: np.ndarray
    positions: np.ndarray
    keep: np.ndarray | None


def read_column(path: Path, name: str) -> pa.ChunkedArray:
    """Read one column of a file of any size; of small files in a third of the time that the usual way takes.

    Raises:
        StoreError: the file cannot be read.
    """
    try:
        with open_parquet(path, pre_buffer=False) as file:
            return file.read(columns=[name], use_threads=False)[name]
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error


def read_states(sources: Sequence[Source], where: dict[str, Any], width: int, *, tokens: bool = False) -> Matrix:
    """Read the states whose scalar columns equal `where`, in sorted order of their sample ids.

    Row groups whose statistics exclude `where` are not read. Memory: the result and a few row groups.

    Args:
        tokens: a sample has a row a token; rows are in order of sample, then position.

    Raises:
        StoreError: a file cannot be read, holds vectors of another width, or a sample twice.
    """
    _fetch(sources, where, [*_ID, *(["position"] if tokens else []), "vector"])
    workers = min(_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        parts = [part for found in pool.map(lambda source: _find(source, where, tokens), sources) for part in found]
        ids = np.concatenate([np.empty(0, dtype="U1"), *(part.ids for part in parts)])
        positions = np.concatenate([np.empty(0, dtype=np.int32), *(part.positions for part in parts)])
        order = np.lexsort((positions, ids)) if tokens else np.argsort(ids, kind="stable")
        same = (ids[order][1:] == ids[order][:-1]) & (positions[order][1:] == positions[order][:-1])
        twice = np.flatnonzero(same)
        if len(twice):
            raise StoreError(
                f"sample {ids[order][twice[0]]} is stored twice in {parts[0].path}: run `layercache verify`"
            )
        place = np.empty(len(ids), dtype=np.int64)
        place[order] = np.arange(len(ids))
        values = np.empty((len(ids), width), dtype=np.float32)
        ends = np.cumsum([len(part.ids) for part in parts])
        jobs = [pool.submit(_fill, values, place[end - len(part.ids) : end], part) for part, end in zip(parts, ends)]
        for job in jobs:
            job.result()
    return Matrix(ids[order], values, positions[order] if tokens else None)


def with_labels(states: Matrix, labels: pl.DataFrame) -> LabelledMatrix:
    """Put a label beside states; `labels` are the lines of one label, in the columns of `schema.LABELS`."""
    lines = labels.filter(pl.col("sample_id").is_in(states.sample_ids.tolist())).sort("row")
    kind = lines["kind"][0] if len(lines) else "number"
    values = lines["number" if kind in {"number", "boolean"} else "text"].to_numpy()
    ids = lines["sample_id"].to_numpy().astype(states.sample_ids.dtype)
    place = np.searchsorted(states.sample_ids, ids)
    return LabelledMatrix(
        sample_ids=ids,
        values=states.values[place],
        rows=lines["row"].to_numpy(),
        labels=values.astype(bool) if kind == "boolean" else values,
    )


def _fetch(sources: Sequence[Source], where: dict[str, Any], columns: list[str]) -> None:
    """Bring what is to be read of a bucket's files here at once; what is wrong with one is told when it is read."""

    def wanted(metadata: Any) -> Iterator[tuple[int, list[str]]]:
        for group in range(metadata.num_row_groups):
            unsure = _unsure(metadata.row_group(group), where)
            if unsure is not None:
                yield group, [*columns, *unsure]

    with suppress(pa.ArrowException):
        files.fetch([source.path for source in sources], wanted)


def _find(source: Source, where: dict[str, Any], tokens: bool) -> list[_Part]:
    """Find the wanted rows of a file by its row groups' statistics, then by their scalar columns."""
    try:
        file = open_parquet(source.path)
        with file:
            parts = [_rows(file, source, where, group, tokens) for group in range(file.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        raise unreadable(source.path, error) from error
    return [part for part in parts if part is not None and len(part.ids)]


def _rows(file: Any, source: Source, where: dict[str, Any], group: int, tokens: bool) -> _Part | None:
    unsure = _unsure(file.metadata.row_group(group), where)
    if unsure is None:
        return None
    table = file.read_row_group(group, columns=[*_ID, *unsure, *(["position"] if tokens else [])])
    ids = np.array(table["sample_id"].to_pylist(), dtype=str)
    positions = table["position"].to_numpy().astype(np.int32) if tokens else np.zeros(len(ids), dtype=np.int32)
    keep = np.ones(len(ids), dtype=bool)
    for name in unsure:
        keep &= pc.equal(table[name], where[name]).to_numpy()
    if source.excluded:
        keep &= np.fromiter((name not in source.excluded for name in ids.tolist()), dtype=bool, count=len(ids))
    if keep.all():
        return _Part(source.path, group, ids, positions, None)
    return _Part(source.path, group, ids[keep], positions[keep], keep)


def _unsure(group: Any, where: dict[str, Any]) -> list[str] | None:
    """Return the columns whose statistics leave open whether a row is wanted; None when no row can be."""
    unsure = set(where)
    for index in range(group.num_columns):
        column = group.column(index)
        name = column.path_in_schema
        if name in where and column.is_stats_set and column.statistics.has_min_max:
            low, high = column.statistics.min, column.statistics.max
            if not low <= where[name] <= high:
                return None
            if low == high and column.statistics.null_count == 0:
                unsure.discard(name)
    return sorted(unsure)


def _fill(values: np.ndarray, place: np.ndarray, part: _Part) -> None:
    """Read the vectors of a part into their places."""
    width = values.shape[1]
    try:
        with open_parquet(part.path) as file:
            column = file.read_row_group(part.group, columns=["vector"])["vector"]
        rows = pa.chunked_array([chunk.flatten() for chunk in column.chunks], type=pa.float32()).to_numpy()
    except (pa.ArrowException, OSError) as error:
        raise unreadable(part.path, error) from error
    if len(rows) != len(column) * width:
        raise StoreError(f"{part.path} holds vectors that are not {width} wide: run `layercache verify`")
    rows = rows.reshape(-1, width)
    values[place] = rows if part.keep is None else rows[part.keep]


def unreadable(path: Path, error: BaseException) -> StoreError:
    """Return the error for a Parquet file of a shard that cannot be read."""
    return StoreError(f"{path} cannot be read ({first_line(error)}): run `layercache verify --deep`")
