"""All numbers that analyses have left in a store, each once."""

from pathlib import Path

import polars as pl

from layercache.errors import StoreError
from layercache.frame import from_arrow
from layercache.store import results
from layercache.store.layout import first_line
from layercache.store.results import ResultInfo
from layercache.store.schema import RESULTS, arrow_schema

_NUMBERS = ("value", "low", "high", "n")
_KEY = [column.name for column in RESULTS if column.name not in _NUMBERS]


def newest(store: Path) -> pl.DataFrame:
    """Return the columns of `schema.RESULTS`; where two analyses gave the same number, the newer one's counts.

    Raises:
        StoreError: a result's file is damaged.
    """
    empty = from_arrow(arrow_schema(RESULTS).empty_table())
    parts = [read(path).select(empty.columns).cast(empty.schema) for _, path in tables(store, "results")]
    return pl.concat([empty, *parts]).unique(_KEY, keep="first", maintain_order=True)


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
