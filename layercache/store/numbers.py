"""All numbers that analyses have left in a store, each once."""

from pathlib import Path

import polars as pl

from layercache.frame import from_arrow
from layercache.store import results
from layercache.store.results import ResultInfo
from layercache.store.schema import RESULTS, arrow_schema

_NUMBERS = ("value", "low", "high", "n")
_KEY = [column.name for column in RESULTS if column.name not in _NUMBERS]


def newest(store: Path) -> pl.DataFrame:
    """Return the columns of `schema.RESULTS`; where two analyses gave the same number, the newer one's counts."""
    empty = from_arrow(arrow_schema(RESULTS).empty_table())
    parts = [pl.read_parquet(path).select(empty.columns).cast(empty.schema) for _, path in tables(store, "results")]
    return pl.concat([empty, *parts]).unique(_KEY, keep="first", maintain_order=True)


def tables(store: Path, name: str) -> list[tuple[ResultInfo, Path]]:
    """List the stored results that have a table (`results`, `sample_scores`), the newest first."""
    listing = sorted(results.listing(store), key=lambda info: (info.created, info.path), reverse=True)
    return [(info, path) for info in listing if (path := info.file(f"{name}.parquet")) is not None]
