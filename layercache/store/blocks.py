"""What a shard holds in memory before it is written: blocks of columns, checked as they arrive."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from layercache.store.schema import TABLES, Column

VECTOR_COLUMN = "vector"
SLAB_BYTES = 64 * 2**20
"""Size of the arrays that vectors are collected in: above what the C library puts on its heap, and only what has been
written to takes memory."""

Values: TypeAlias = Any
"""A list, a NumPy array or an Arrow array of a column's values."""


class Block(NamedTuple):
    """Rows of one table: every column but the vectors as Arrow, the vectors as float32 [n, d] or None."""

    columns: pa.Table
    vectors: np.ndarray | None

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return int(self.columns.nbytes) + (0 if self.vectors is None else self.vectors.nbytes)


def block(table: str, columns: Mapping[str, Values], width: int) -> Block:
    """Convert the columns of some rows of `table` to the declared types; nullable ones may be left out.

    Raises:
        ValueError: an unknown table or column, one that is missing, of another length, of a type that
            does not convert without loss, or a NULL where there must be none.
    """
    if table not in TABLES:
        raise ValueError(f"no table {table!r}: use one of {', '.join(TABLES)}")
    declared = {column.name: column for column in TABLES[table].columns}
    unknown = sorted(set(columns) - set(declared))
    if unknown:
        raise ValueError(f"table {table} has no column {', '.join(unknown)}")
    n = len(columns["sample_id"]) if "sample_id" in columns else 0
    vectors = _vectors(columns.get(VECTOR_COLUMN), n, width) if VECTOR_COLUMN in declared else None
    arrays = {name: _array(table, column, columns, n) for name, column in declared.items() if name != VECTOR_COLUMN}
    schema = pa.schema([pa.field(c.name, c.type, c.nullable) for c in declared.values() if c.name != VECTOR_COLUMN])
    return Block(pa.Table.from_arrays(list(arrays.values()), schema=schema), vectors)


class Collected:
    """The rows of one table of a shard, as they come.

    Vectors are copied into few large arrays. Kept as they come, the small arrays of every batch would stand
    between the blocks that the forward pass frees, and the C library's heap would grow by several times their size.

    Attributes:
        columns: every column but the vectors, a table a block.
        nbytes: bytes held in memory.
    """

    def __init__(self) -> None:
        self.columns: list[pa.Table] = []
        self.nbytes = 0
        self._slabs: list[np.ndarray] = []
        self._filled: list[int] = []

    def add(self, one: Block) -> None:
        """Add rows; the block is not needed afterwards."""
        # `take` copies: columns made of arrays without a copy would keep those where they are.
        self.columns.append(one.columns.take(np.arange(len(one.columns))))
        self.nbytes += one.nbytes
        if one.vectors is not None:
            self._copy(one.vectors)

    def vectors(self) -> list[np.ndarray] | None:
        """Return the vectors, pieces of float32 [n, d] in the order of the columns' rows; None for a table without."""
        return [slab[:n] for slab, n in zip(self._slabs, self._filled, strict=True)] or None

    def _copy(self, vectors: np.ndarray) -> None:
        done, (n, width) = 0, vectors.shape
        while done < n or not self._slabs:
            if not self._slabs or self._filled[-1] == len(self._slabs[-1]):
                self._slabs.append(np.empty((max(1, SLAB_BYTES // (width * 4)), width), dtype=np.float32))
                self._filled.append(0)
            start = self._filled[-1]
            stop = min(start + n - done, len(self._slabs[-1]))
            self._slabs[-1][start:stop] = vectors[done : done + stop - start]
            done += stop - start
            self._filled[-1] = stop


def _array(table: str, column: Column, columns: Mapping[str, Values], n: int) -> pa.Array:
    where = f"{table}.{column.name}"
    values = columns.get(column.name)
    if values is None:
        if not column.nullable:
            raise ValueError(f"{where} is missing")
        return pa.nulls(n, column.type)
    try:
        array = values.cast(column.type) if isinstance(values, pa.Array) else pa.array(values, type=column.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{where} does not convert to {column.type}: {error}") from error
    if len(array) != n:
        raise ValueError(f"{where} has {len(array)} rows, sample_id has {n}")
    if array.null_count and not column.nullable:
        raise ValueError(f"{where} holds a NULL")
    return array


def _vectors(values: Values | None, n: int, width: int) -> np.ndarray:
    if not isinstance(values, np.ndarray) or values.dtype != np.float32 or values.shape != (n, width):
        shape = f"{values.dtype} {list(values.shape)}" if isinstance(values, np.ndarray) else type(values).__name__
        raise ValueError(f"vectors must be a float32 array [{n}, {width}], not {shape}")
    return np.ascontiguousarray(values)
