"""The samples of a run under a condition, each once, whatever number of shards holds it."""

from collections.abc import Sequence

import polars as pl
import pyarrow as pa

from layercache.frame import from_arrow
from layercache.store.files import fetch_whole, open_parquet
from layercache.store.holdings import SAMPLES
from layercache.store.layout import ShardInfo
from layercache.store.schema import TABLES, arrow_schema
from layercache.store.states import unreadable


def read(shards: Sequence[ShardInfo]) -> pl.DataFrame:
    """Return the samples of shards, sorted by id: the columns of the table `samples`.

    A sample in several shards is one row: the one of the shard that comes first, with what is absent from any of them.

    Args:
        shards: sorted by name.

    Raises:
        StoreError: a file cannot be read.
    """
    schema = arrow_schema(TABLES[SAMPLES].columns)
    fetch_whole(shard.path / f"{SAMPLES}.parquet" for shard in shards)
    tables = [_read(shard, schema.names).cast(schema) for shard in shards]
    frame = from_arrow(pa.concat_tables([schema.empty_table(), *tables]))
    first = frame.unique("sample_id", keep="first", maintain_order=True).drop("absent")
    absent = frame.group_by("sample_id").agg(pl.col("absent").explode(empty_as_null=False).unique(maintain_order=True))
    return first.join(absent, on="sample_id", how="left").select(schema.names).sort("sample_id")


def _read(shard: ShardInfo, columns: list[str]) -> pa.Table:
    path = shard.path / f"{SAMPLES}.parquet"
    try:
        with open_parquet(path) as file:
            return file.read(columns=columns).select(columns)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error
