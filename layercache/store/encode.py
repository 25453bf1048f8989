"""Writes one table of a shard as a Parquet file: rows in order, one feature and layer a row group.

The states are gathered one row group at a time from the arrays they were collected in, so that writing needs
little memory beyond what the shard already holds.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from layercache.errors import StoreError
from layercache.store.blocks import VECTOR_COLUMN, Collected
from layercache.store.layout import FileInfo
from layercache.store.schema import TABLES, arrow_schema, vector

ROW_GROUP_BYTES = 64 * 2**20
"""Uncompressed size of a row group, at most (one row at least)."""


class _HashingFile:
    """A file that knows the sha256 of what was written to it; hands pyarrow what it asks of a Python file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._sha256 = hashlib.sha256()
        self.bytes = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self._sha256.update(data)
        self.bytes += len(data)
        return len(data)

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        self._file.flush()

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self.closed = True
        self._file.close()

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


def write_table(path: Path, table: str, rows: Collected, width: int, *, allow_nonfinite: bool) -> FileInfo:
    """Write the rows collected for a table as the Parquet file `path` and force it to the disk.

    Raises:
        StoreError: a state is not finite and `allow_nonfinite` is not given; names its layer and sample.
        OSError: the file cannot be written.
    """
    schema = arrow_schema(TABLES[table].columns, width)
    columns, order = _sorted(table, rows.columns)
    vectors = rows.vectors()
    gather = _Gather(vectors, order, width) if vectors is not None else None
    with _parquet(path, schema) as (file, writer):
        for start, stop in _row_groups(table, columns, gather):
            part = columns.slice(start, stop - start)
            if gather is not None:
                states = gather.rows(start, stop)
                if not allow_nonfinite:
                    _check_finite(states, part)
                part = _with_vectors(part, states, schema)
            writer.write_table(part.select(schema.names), row_group_size=stop - start)
    return FileInfo(file.bytes, len(columns), file.hexdigest())


@contextmanager
def _parquet(path: Path, schema: pa.Schema) -> Iterator[tuple[_HashingFile, Any]]:
    """Open a Parquet writer; on leaving, the footer is written and the file forced to the disk."""
    file = _HashingFile(path)
    try:
        writer = pq.ParquetWriter(file, schema, **_options(schema))
        try:
            yield file, writer
        except BaseException:
            # A writer left open would try to write its footer when it is collected, to a closed file.
            with suppress(Exception):
                writer.close()
            raise
        writer.close()
        file.sync()
    finally:
        file.close()


def _sorted(table: str, parts: list[pa.Table]) -> tuple[pa.Table, pa.Array]:
    """Return the columns without the vectors, rows in the table's order, and the order itself."""
    columns = pa.concat_tables(parts).combine_chunks()
    order = pc.sort_indices(columns, sort_keys=[(name, "ascending") for name in TABLES[table].order])
    return columns.take(order), order


class _Gather:
    """Collects rows of states, in order, from the arrays that hold them."""

    def __init__(self, vectors: list[np.ndarray], order: pa.Array, width: int) -> None:
        self._vectors = vectors
        self._starts = np.cumsum([0, *(len(vectors) for vectors in self._vectors)])
        self._order = order.to_numpy().astype(np.int64)
        self.width = width

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows [start, stop) of the order as float32 [stop - start, d]."""
        wanted = self._order[start:stop]
        owner = np.searchsorted(self._starts, wanted, side="right") - 1
        out = np.empty((stop - start, self.width), dtype=np.float32)
        for index in np.unique(owner):
            mine = owner == index
            out[mine] = self._vectors[index][wanted[mine] - self._starts[index]]
        return out


def _row_groups(table: str, columns: pa.Table, gather: _Gather | None) -> Iterator[tuple[int, int]]:
    """Yield [start, stop) of every row group: at most 64 MB, and of states one (site, pooling, layer)."""
    n = len(columns)
    row_bytes = columns.nbytes / max(n, 1) + (0 if gather is None else gather.width * 4)
    limit = max(1, int(ROW_GROUP_BYTES / max(row_bytes, 1)))
    edges = [0, n] if gather is None else _changes(table, columns)
    for start, stop in pairwise(edges):
        for first in range(start, stop, limit):
            yield first, min(first + limit, stop)


def _changes(table: str, columns: pa.Table) -> list[int]:
    """Return the rows at which a column other than the sample and position changes, and both ends."""
    changed = np.zeros(len(columns), dtype=bool)
    changed[0] = True
    for name in TABLES[table].order:
        if name not in {"sample_id", "position"}:
            column = columns[name].combine_chunks()
            changed[1:] |= pc.not_equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False)
    return [*np.flatnonzero(changed).tolist(), len(columns)]


def _check_finite(states: np.ndarray, keys: pa.Table) -> None:
    finite = np.isfinite(states)
    if finite.all():
        return
    row = keys.slice(int(np.argmin(finite.all(axis=1))), 1).to_pylist()[0]
    raise StoreError(
        f"the {row['site']} state of layer {row['layer']}, {row['pooling']}, of sample {row['sample_id']} is not finite:"
        " try another dtype (bfloat16, float32), or --allow-nonfinite to keep it"
    )


def _with_vectors(part: pa.Table, states: np.ndarray, schema: pa.Schema) -> pa.Table:
    array = pa.FixedSizeListArray.from_arrays(pa.array(states.reshape(-1)), type=vector(states.shape[1]))
    return part.append_column(schema.field(VECTOR_COLUMN), array)


def _options(schema: pa.Schema) -> dict[str, Any]:
    """Return how every file of a shard is written: statistics on scalars, bytes of states split."""
    leaves = [leaf for field in schema for leaf in _leaves(field.name, field.type)]
    options: dict[str, Any] = {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": [name for name, kind in leaves if pa.types.is_string(kind)],
        "write_statistics": [name for name, _ in leaves if "." not in name],
        "write_page_checksum": True,
    }
    if VECTOR_COLUMN in schema.names:
        options["column_encoding"] = {f"{VECTOR_COLUMN}.list.element": "BYTE_STREAM_SPLIT"}
    return options


def _leaves(name: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """Yield the Parquet columns that an Arrow column becomes: path and type."""
    if pa.types.is_struct(kind):
        for field in kind:
            yield from _leaves(f"{name}.{field.name}", field.type)
    elif pa.types.is_nested(kind):
        yield from _leaves(f"{name}.list.element", kind.value_type)
    else:
        yield name, kind
