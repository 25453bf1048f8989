"""Reads the sample ids of many shards at once.

A small Parquet file opened on its own costs several times what it costs among a thousand that are read together. What
reads them together takes a damaged file badly, so it is given only bytes that are those the manifest vouches for.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import polars as pl
import pyarrow as pa

from layercache.errors import StoreError
from layercache.store import files
from layercache.store.layout import ShardInfo, first_line
from layercache.store.manifest import MEND
from layercache.store.states import read_column

_FILE, _COLUMN = "samples.parquet", "sample_id"
_SMALL = 2**16
"""A file of so many bytes is read whole: hashing it costs less than opening it as Parquet."""
_TOGETHER = 1000


def read_ids(shards: Sequence[ShardInfo]) -> list[pa.Array]:
    """Read the sample ids of every shard, in the order of its file.

    Raises:
        StoreError: a file cannot be read, or is not the one its manifest was written for.
    """
    _fetch(shards)
    found: dict[int, pa.Array] = {}
    small = [index for index, shard in enumerate(shards) if shard.files[_FILE].bytes <= _SMALL]
    for start in range(0, len(small), _TOGETHER):
        part = small[start : start + _TOGETHER]
        found |= zip(part, _together([shards[index] for index in part]), strict=True)
    return [found[index] if index in found else _one(shard) for index, shard in enumerate(shards)]


def _fetch(shards: Sequence[ShardInfo]) -> None:
    """Bring what is to be read of a bucket's files here at once; what is wrong with one is told when it is read."""
    small = [shard.files[_FILE].bytes <= _SMALL for shard in shards]
    files.fetch_whole([shard.path / _FILE for shard, is_small in zip(shards, small) if is_small])
    with suppress(pa.ArrowException):
        files.fetch(
            [shard.path / _FILE for shard, is_small in zip(shards, small) if not is_small],
            lambda metadata: [(group, [_COLUMN]) for group in range(metadata.num_row_groups)],
        )


def _together(shards: Sequence[ShardInfo]) -> list[pa.Array]:
    counts = [shard.files[_FILE].rows for shard in shards]
    contents = [_content(shard) for shard in shards]
    try:
        frame = pl.scan_parquet(contents, schema={_COLUMN: pl.String}, extra_columns="ignore").collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return [_one(shard) for shard in shards]
    if len(frame) != sum(counts):
        return [_one(shard) for shard in shards]
    ids = frame[_COLUMN].to_arrow().cast(pa.string())
    ends = np.cumsum(counts).tolist()
    return [ids.slice(end - count, count) for end, count in zip(ends, counts, strict=True)]


def _content(shard: ShardInfo) -> bytes:
    path = f"{shard.path}/{_FILE}"
    try:
        with files.open_binary(path) as file:
            data = file.read()
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({first_line(error)}): {MEND}") from error
    if hashlib.sha256(data).hexdigest() != shard.files[_FILE].sha256:
        raise StoreError(f"{path} is damaged (its sha256 is not the manifest's): {MEND}")
    return data


def _one(shard: ShardInfo) -> pa.Array:
    return read_column(shard.path / _FILE, _COLUMN).combine_chunks()
