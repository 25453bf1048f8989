"""The scores of single samples that analyses have left in a store."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from layercache.frame import from_arrow
from layercache.store import numbers
from layercache.store.schema import SAMPLE_SCORES, arrow_schema


def newest(store: Path, analysis: str, metric: str) -> pl.DataFrame:
    """Return the sample scores of one analysis and metric, the columns of `schema.SAMPLE_SCORES`.

    Where two results have the same scores, the newer one's count.

    Raises:
        StoreError: a result's file is damaged.
    """
    empty = from_arrow(arrow_schema(SAMPLE_SCORES).empty_table())
    parts = [
        numbers.read(path, pl.col("metric") == metric).select(empty.columns).cast(empty.schema)
        for info, path in numbers.tables(store, "sample_scores")
        if info.analysis == analysis
    ]
    return numbers.first(empty, parts)


def of(store: Path, where: Mapping[str, Any]) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return the sample scores with these values in the newest result that has any, and what was asked of that analysis.

    Args:
        where: column of `schema.SAMPLE_SCORES` → value; None for NULL.

    Raises:
        StoreError: a result's file is damaged.
    """
    empty = from_arrow(arrow_schema(SAMPLE_SCORES).empty_table())
    same = [pl.col(name).eq_missing(pl.lit(value)) for name, value in where.items()]
    for info, path in numbers.tables(store, "sample_scores"):
        found = numbers.read(path, *same).select(empty.columns)
        if len(found):
            return found, info.spec
    return empty, {}
