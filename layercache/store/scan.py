"""A table of a store as a Polars LazyFrame: files opened only where a filter needs them, row groups skipped."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import polars as pl

from layercache.errors import StoreError
from layercache.frame import from_arrow
from layercache.store import mirror
from layercache.store.holdings import Exclusion
from layercache.store.layout import Run, ShardInfo, place
from layercache.store.schema import TABLES, arrow_schema

if TYPE_CHECKING:
    from layercache.store.reader import Store


def scan(store: "Store", table: str, run: Run | None = None, condition: str | None = None) -> pl.LazyFrame:
    """Return a table of shards as a lazy frame: `run`, `condition`, then the table's columns.

    What two shards hold counts once. States are an Array(Float32, d), or a List(Float32) where the runs have
    several widths. Polars does not push a filter on `run` or `condition` down to the files: name them here.

    Raises:
        StoreError: there is no such table, or a manifest is damaged.
    """
    runs = store.runs() if run is None else [run]
    parts = [(one, name) for one in runs for name in store.conditions(one) if condition in (None, name)]
    if table not in TABLES:
        raise StoreError(f"no table {table!r} to scan: use one of {', '.join(TABLES)}; for the other views use sql()")
    if table == "samples":
        return _samples(store, parts)
    widths = {one.width for one in runs}
    frames = [frame for one, name in parts for frame in _frames(store, one, name, table)]
    if table == "hidden" and len(widths) > 1:
        frames = [frame.with_columns(pl.col("vector").cast(pl.List(pl.Float32))) for frame in frames]
    empty = _schema(table, widths.pop() if len(widths) == 1 else None)
    return pl.concat([pl.LazyFrame(schema={"run": pl.String, "condition": pl.String, **empty}), *frames])


def _schema(table: str, width: int | None) -> dict[str, pl.DataType]:
    return dict(from_arrow(arrow_schema(TABLES[table].columns, width).empty_table()).schema)


def _frames(store: "Store", run: Run, condition: str, table: str) -> Iterator[pl.LazyFrame]:
    """Yield the frames of a condition: one of the shards that count whole, one for each of the others."""
    cut: dict[str, list[Exclusion]] = {}
    counting = store.shards(run, condition)
    for exclusion in store.overlaps(run, condition, counting):
        cut.setdefault(exclusion[0], []).append(exclusion)
    shards = [shard for shard in counting if shard.file(table) is not None]
    yield from _one(run, condition, table, [shard for shard in shards if shard.name not in cut])
    for shard in shards:
        if shard.name in cut:
            for frame in _one(run, condition, table, [shard]):
                for _, outputs, ids in cut[shard.name]:
                    frame = frame.filter(~(_of(table, outputs) & pl.col("sample_id").is_in(ids)))
                yield frame


def _one(run: Run, condition: str, table: str, shards: list[ShardInfo]) -> Iterator[pl.LazyFrame]:
    files = [path for shard in shards if (path := shard.file(table)) is not None]
    if files:
        schema = _schema(table, run.width)
        # A shard of an older version lacks nullable columns that came later; one of a newer version may have more.
        sources, options = mirror.for_polars(files)
        frame = pl.scan_parquet(
            sources,
            glob=False,
            hive_partitioning=False,
            schema=schema,
            missing_columns="insert",
            extra_columns="ignore",
            **options,
        )
        names = [pl.lit(run.id).alias("run"), pl.lit(condition).alias("condition")]
        yield frame.select(*names, *schema)


def _of(table: str, outputs: dict[str, list[int] | None]) -> pl.Expr:
    """Return whether a row is one of these outputs and layers."""
    wanted = pl.lit(False)
    for output, layers in outputs.items():
        where = place(output)
        if where is not None and where.table == table:
            same = pl.all_horizontal(pl.lit(True), *(pl.col(name) == value for name, value in where.where.items()))
            wanted |= same if layers is None else same & pl.col("layer").is_in(layers)
    return wanted


def _samples(store: "Store", parts: list[tuple[Run, str]]) -> pl.LazyFrame:
    """Return the samples; small, and merged over shards, so they are read at once."""
    frames = [
        store.samples(run, condition).select(
            pl.lit(run.id).alias("run"), pl.lit(condition).alias("condition"), pl.all()
        )
        for run, condition in parts
    ]
    empty = pl.DataFrame(schema={"run": pl.String, "condition": pl.String, **_schema("samples", None)})
    return pl.concat([empty, *frames]).lazy()
