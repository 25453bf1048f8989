"""Builds the two tables an analysis returns, in the columns of `schema.RESULTS` and `schema.SAMPLE_SCORES`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from layercache.progress import Notes, Progress
from layercache.store.schema import RESULTS, SAMPLE_SCORES, arrow_schema

Key = Mapping[str, Any]
"""Values of the columns that say what a number is of: run, data, analysis, layer, …; absent ones are NULL."""
Row = dict[str, Any]


@dataclass
class Piece:
    """What one independent piece of an analysis gave: rows, sample scores, and what the user should know."""

    rows: list[Row] = field(default_factory=list)
    scores: list[pa.Table] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)

    def say(self, progress: Progress) -> None:
        """Say the notes."""
        for text in self.notes.texts:
            progress.note(text)


def row(key: Key, metric: str, value: float, n: int, low: float | None = None, high: float | None = None) -> list[Row]:
    """Return one row of results, or none where the value is undefined."""
    if not math.isfinite(value):
        return []
    return [{**key, "metric": metric, "value": value, "low": low, "high": high, "n": n}]


def results(rows: Iterable[Row]) -> pa.Table:
    """Build the results table; columns that a row does not name are NULL."""
    return pa.Table.from_pylist(list(rows), schema=arrow_schema(RESULTS))


def scores(
    key: Key,
    metric: str,
    rows: npt.NDArray[np.int64],
    sample_ids: npt.NDArray[np.str_],
    values: npt.NDArray[Any],
    texts: Sequence[str] | None = None,
) -> pa.Table:
    """Build sample scores of one metric: a value, and perhaps a text, a row of data.

    Args:
        key: the columns that all of them share.
        rows: of the data set, int64 [n].
        sample_ids: of those rows, [n].
        values: numbers [n]; NaN stays NaN.
        texts: one a row.

    Returns:
        The columns of `schema.SAMPLE_SCORES`, n lines.
    """
    columns: dict[str, Any] = {
        "metric": pa.repeat(pa.scalar(metric), len(rows)),
        "row": pa.array(rows, pa.int64()),
        "sample_id": pa.array(sample_ids.tolist(), pa.string()),
        "value": pa.array(values, pa.float64()),
    }
    if texts is not None:
        columns["text"] = pa.array(texts, pa.string())
    arrays = []
    for column in arrow_schema(SAMPLE_SCORES):
        if column.name in columns:
            arrays.append(columns[column.name])
        else:
            arrays.append(pa.repeat(pa.scalar(key.get(column.name), column.type), len(rows)))
    return pa.Table.from_arrays(arrays, schema=arrow_schema(SAMPLE_SCORES))


def joined(parts: Sequence[pa.Table]) -> pa.Table:
    """Concatenate tables of sample scores, none included."""
    return pa.concat_tables([arrow_schema(SAMPLE_SCORES).empty_table(), *parts]).combine_chunks()
