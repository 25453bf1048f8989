"""All numbers that analyses have left in a store, each once."""

from pathlib import Path

import polars as pl

from layercache.errors import StoreError
from layercache.frame import from_arrow
from layercache.store import results
from layercache.store.layout import first_line
from layercache.store.results import ResultInfo
from layercache.store.schema import RESULTS, arrow_schema

NUMBERS = ("value", "low", "high", "n", "text", "row", "sample_id", "other_layer")
"""Columns of results that say nothing of what a number is a number of: where two analyses have rows that agree in all others, the
newer one's count. The layer compared with is one: of a ΔP anchored at one layer, then at another, the last asked for is meant."""


def newest(store: Path) -> pl.DataFrame:
    """Return the columns of `schema.RESULTS`; where two analyses gave the same numbers, the newer one's count.

    Raises:
        StoreError: a result's file is damaged.
    """
    empty = from_arrow(arrow_schema(RESULTS).empty_table())
    parts = [read(path).select(empty.columns).cast(empty.schema) for _, path in tables(store, "results")]
    return first(empty, parts)


def first(empty: pl.DataFrame, parts: list[pl.DataFrame]) -> pl.DataFrame:
    """Join tables, the newest first; of rows that say the same but for `NUMBERS`, only those of the first table."""
    key = [name for name in empty.columns if name not in NUMBERS]
    aged = [part.with_columns(age=pl.lit(age)) for age, part in enumerate([empty, *parts])]
    return pl.concat(aged).filter(pl.col("age") == pl.col("age").min().over(key)).drop("age")


def tables(store: Path, name: str) -> list[tuple[ResultInfo, Path]]:
    """List the stored results that have a table (`results`, `sample_scores`), the newest first."""
    listing = sorted(results.listing(store), key=lambda info: (info.created, info.path), reverse=True)
    return [(info, path) for info in listing if (path := info.file(f"{name}.parquet")) is not None]


def read(path: Path, *conditions: pl.Expr) -> pl.DataFrame:
    """Read those rows of a result's table that fulfil all conditions.

    Raises:
        StoreError: the file cannot be read.
    """
    try:
        # A path is no pattern, whatever stands in it.
        return pl.scan_parquet(path, glob=False).filter(*conditions).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise StoreError(
            f"{path} cannot be read ({first_line(error)}): delete {path.parent}, it can be made again"
        ) from error
