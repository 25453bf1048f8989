"""Which rows of a table are of given outputs and layers, and which row groups may hold any, by their statistics.

Reading goes row group by row group, so that of a file far away only what is asked for has to come.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from layercache.store.holdings import Outputs
from layercache.store.layout import place

READ_BYTES = 64 * 2**20
"""Row groups are read together up to so many bytes, as their metadata states them uncompressed."""

Bounds = dict[str, tuple[Any, Any]]
"""Lowest and highest value of the scalar columns of a row group."""


def groups_of(metadata: Any, table: str, outputs: Outputs | None) -> list[int]:
    """List the row groups of a file that may hold rows of the outputs; all where none are given.

    Args:
        metadata: a Parquet file's `metadata`.
        table: whose file it is. Of `samples` every row group counts.
        outputs: outputs and their layers.
    """
    numbers = range(metadata.num_row_groups)
    if outputs is None or table == "samples":
        return list(numbers)
    return [number for number in numbers if may_hold(bounds_of(metadata.row_group(number)), table, outputs)]


def together(metadata: Any, numbers: list[int]) -> Iterator[list[int]]:
    """Yield row groups to read at once: one, or several up to what a large one takes."""
    part: list[int] = []
    size = 0
    for number in numbers:
        nbytes = metadata.row_group(number).total_byte_size
        if part and size + nbytes > READ_BYTES:
            yield part
            part, size = [], 0
        part.append(number)
        size += nbytes
    if part:
        yield part


def stored_bytes(metadata: Any, numbers: list[int]) -> int:
    """Return the bytes that row groups take in the file."""
    return sum(stop - start for start, stop in ranges(metadata, numbers))


def ranges(metadata: Any, numbers: list[int]) -> list[tuple[int, int]]:
    """Return the bytes [start, stop) of the file that row groups lie in, neighbours as one, in order."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        group = metadata.row_group(number)
        columns = [group.column(index) for index in range(group.num_columns)]
        start = min(_start(column) for column in columns)
        stop = max(_start(column) + column.total_compressed_size for column in columns)
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return found


def rows_of(rows: pa.Table, table: str, outputs: Outputs) -> np.ndarray:
    """Tell which rows are of the outputs and layers: bool [n]; of `samples` all are."""
    if table == "samples":
        return np.ones(len(rows), dtype=bool)
    wanted = np.zeros(len(rows), dtype=bool)
    for output, layers in outputs.items():
        where = place(output)
        if where is not None and where.table == table:
            match = np.ones(len(rows), dtype=bool)
            for name, value in where.where.items():
                match &= is_in(rows[name], pa.array([value]))
            if layers is not None:
                match &= is_in(rows["layer"], pa.array(layers, pa.int32()))
            wanted |= match
    return wanted


def is_in(column: pa.ChunkedArray, values: pa.Array) -> np.ndarray:
    """Tell which elements are among the values: bool [n]."""
    found: np.ndarray = pc.is_in(column, value_set=values.cast(column.type)).to_numpy()
    return found


def _start(column: Any) -> int:
    first: int = column.data_page_offset
    dictionary = column.dictionary_page_offset
    return first if dictionary is None else min(first, dictionary)


def bounds_of(group: Any) -> Bounds:
    """Return the bounds of a row group's scalar columns, as far as its statistics state them."""
    found: Bounds = {}
    for index in range(group.num_columns):
        column = group.column(index)
        if column.is_stats_set and column.statistics.has_min_max:
            found[column.path_in_schema] = (column.statistics.min, column.statistics.max)
    return found


def may_hold(bounds: Bounds, table: str, outputs: Outputs) -> bool:
    """Tell whether a row group of a table may hold a row of the outputs."""
    for output, layers in outputs.items():
        where = place(output)
        if where is None or where.table != table:
            continue
        inside = all(low <= where.where[name] <= high for name, (low, high) in bounds.items() if name in where.where)
        low, high = bounds.get("layer", (None, None))
        if inside and (layers is None or low is None or any(low <= layer <= high for layer in layers)):
            return True
    return False
