"""Checks one shard against its manifest, its run and the schema."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from layercache.errors import StoreError
from layercache.frame import from_arrow
from layercache.store import manifest
from layercache.store.files import open_parquet
from layercache.store.files import sha256 as file_sha256
from layercache.store.layout import (
    MANIFEST,
    RUN_FILE,
    Run,
    ShardInfo,
    first_line,
    ids_digest,
    place,
    shard_name,
)
from layercache.store.schema import TABLES, Table, arrow_schema

ADVICE = ": run `layercache verify`"
RUN_CHANGED = f"{RUN_FILE} is not the one the shard was written for"
NOT_LISTED = "is not in the manifest"
_PIECE_BYTES = 64 * 2**20
LINK = "is a symbolic link: what a store holds has to lie in it"


class Problem(NamedTuple):
    """Something that is not as it should be, and where."""

    path: Path
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def shard_problems(path: Path, run: Run, *, deep: bool, rows: bool = True) -> list[Problem]:
    """Check a shard: names, sizes, row counts, schema; with `deep` also every byte and, unless not wanted, every row.

    Returns:
        What is wrong, in the order found; empty when all is well. Does not raise.
    """
    try:
        shard = manifest.read(path, run)
        problems = [*_manifest(shard, run), *_files(shard)]
    except (StoreError, OSError) as error:
        return [Problem(path / MANIFEST, told(error, path / MANIFEST))]
    return problems or table_problems(shard, run, deep=deep, rows=rows)


def table_problems(shard: ShardInfo, run: Run, *, deep: bool, rows: bool = True) -> list[Problem]:
    """Check the tables of a shard whose manifest is right, also of one that is not published yet.

    Returns:
        What is wrong: row counts and schema; with `deep` also every byte and, unless not wanted, every row.
    """
    problems: list[Problem] = []
    for name, info in shard.files.items():
        file = shard.path / name
        try:
            problems += _table(file, TABLES.get(file.stem), info.rows, run.width)
            if deep and file_sha256(file) != info.sha256:
                problems.append(Problem(file, "its sha256 is not the manifest's"))
        except (pa.ArrowException, OSError) as error:
            problems.append(Problem(file, f"cannot be read: {first_line(error)}"))
    if problems or not deep or not rows:
        return problems
    try:
        return _content(shard)
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError) as error:
        return [Problem(shard.path, f"its rows cannot be read: {first_line(error)}")]


def told(error: BaseException, path: Path) -> str:
    """Return what an error says of a path, without the path and without the advice to run `verify`."""
    return first_line(error).removeprefix(f"{path} ").removeprefix(f"{path}: ").removesuffix(ADVICE)


def _manifest(shard: ShardInfo, run: Run) -> Iterator[Problem]:
    file = shard.path / MANIFEST
    if not manifest.own_hash_is_right(file.read_bytes()):
        yield Problem(file, "its own sha256 is wrong")
    if shard.run_sha256 != file_sha256(run.path / RUN_FILE):
        yield Problem(file, RUN_CHANGED)
    if shard.name != shard_name(shard.samples_sha256, shard.outputs, shard.replaces):
        yield Problem(shard.path, "its name is not the hash of its sample ids and outputs")


def _files(shard: ShardInfo) -> Iterator[Problem]:
    there = {entry.name: entry for entry in shard.path.iterdir()}
    if shard.path.is_symlink() or there[MANIFEST].is_symlink():
        yield Problem(shard.path, LINK)
    for name, info in shard.files.items():
        if name not in there:
            yield Problem(shard.path / name, "is missing")
        elif there[name].is_symlink():
            yield Problem(shard.path / name, LINK)
        elif (size := there[name].stat().st_size) != info.bytes:
            yield Problem(shard.path / name, f"has {size} bytes, the manifest says {info.bytes}")
    for name in sorted(there.keys() - shard.files.keys() - {MANIFEST}):
        yield Problem(shard.path / name, NOT_LISTED)


def _table(file: Path, table: Table | None, rows: int, width: int) -> Iterator[Problem]:
    """Check a file's row count and columns; a table or nullable column of a later version is let be."""
    with open_parquet(file) as parquet:
        if parquet.metadata.num_rows != rows:
            yield Problem(file, f"has {parquet.metadata.num_rows} rows, the manifest says {rows}")
        there = parquet.schema_arrow
    columns = () if table is None else table.columns
    added = {column.name for column in columns if column.added}
    for field in arrow_schema(columns, width):
        if field.name not in there.names:
            if field.name not in added:
                yield Problem(file, f"has no column {field.name}")
        elif not there.field(field.name).equals(field):
            yield Problem(file, f"column {field.name} is {_kind(there.field(field.name))}, not {_kind(field)}")


def _kind(field: pa.Field) -> str:
    return f"{field.type}{' or NULL' if field.nullable else ''}"


def _content(shard: ShardInfo) -> list[Problem]:
    """Check every row: keys, values, and that each output has a row of every sample or a reason why not."""
    samples = _read(shard.path / "samples.parquet", ["sample_id", "absent"])
    ids = samples["sample_id"]
    absent = _absent(samples)
    problems = []
    if len(ids) != shard.n_samples or ids_digest(ids.to_list()) != shard.samples_sha256:
        problems.append(Problem(shard.path / "samples.parquet", "its sample ids are not the manifest's"))
    for name in shard.files:
        file, table = shard.path / name, TABLES.get(Path(name).stem)
        if table is not None:
            keys = _read(file, list(table.key))
            problems += _keys(file, keys, ids)
            problems += _coverage(file, keys, shard, absent)
            if not shard.allow_nonfinite:
                problems += _nonfinite(file, table)
    absent_files = {where.table for output in shard.outputs if (where := place(output))} & TABLES.keys()
    for table_name in sorted(name for name in absent_files if shard.file(name) is None):
        empty = pl.DataFrame(schema=dict.fromkeys(TABLES[table_name].key, pl.Null))
        problems += _coverage(shard.path / f"{table_name}.parquet", empty, shard, absent)
    return problems


def _keys(file: Path, keys: pl.DataFrame, ids: pl.Series) -> Iterator[Problem]:
    twice = keys.filter(keys.is_duplicated())
    if len(twice):
        yield Problem(file, f"{len(twice)} rows share a key, the first {twice.row(0)}")
    distinct = keys["sample_id"].unique().sort()
    strangers = distinct.filter(~distinct.is_in(ids.implode()))
    if len(strangers):
        yield Problem(file, f"{len(strangers)} sample ids are not in samples.parquet, the first {strangers[0]}")


def _absent(samples: pl.DataFrame) -> dict[str, pl.Series]:
    """Return the ids of the samples that are said to be absent, by output."""
    gaps = samples.explode("absent", empty_as_null=False, keep_nulls=False)
    gaps = gaps.select("sample_id", pl.col("absent").struct["output"]).unique(maintain_order=True)
    return {str(output): part["sample_id"] for (output,), part in gaps.group_by(["output"], maintain_order=True)}


def _coverage(file: Path, keys: pl.DataFrame, shard: ShardInfo, absent: dict[str, pl.Series]) -> Iterator[Problem]:
    """Count the samples of every output and layer, and the rows that are of no output."""
    accounted = 0
    for output, layers in shard.outputs.items():
        where = place(output)
        if where is None or where.table != file.stem:
            continue
        rows = keys.filter(*(pl.col(name).cast(pl.String) == value for name, value in where.where.items()))
        layer = pl.lit(None, pl.Int32) if layers is None else pl.col("layer").cast(pl.Int32)
        rows = rows.select("sample_id", layer.alias("layer"))
        if layers is not None:
            rows = rows.filter(pl.col("layer").is_in(layers))
        accounted += len(rows)
        gone = absent.get(output, pl.Series(dtype=pl.String))
        expected = shard.n_samples - len(gone)
        # A sample may be absent at some layers only; what it has at the others is beside what is expected.
        excused = pl.col("sample_id").is_in(gone.implode())
        found = dict(rows.filter(~excused).group_by("layer").agg(pl.col("sample_id").n_unique()).iter_rows())
        wanted = [None] if layers is None else sorted(set(layers))
        for one in wanted:
            if found.get(one, 0) != expected:
                at = output if one is None else f"{output} at layer {one}"
                there = f"has rows of {found.get(one, 0)} samples, {expected} expected ({len(gone)} absent)"
                yield Problem(file, f"{at} {there}")
        held = rows.filter(excused).group_by("sample_id").agg(pl.col("layer").n_unique() == len(wanted))["layer"].sum()
        if held:
            yield Problem(file, f"{output} has every row of {held} samples that are said to be absent")
    if accounted != len(keys) and file.stem != "samples":
        yield Problem(file, f"{len(keys) - accounted} rows are of no output or layer in the manifest")


def _nonfinite(file: Path, table: Table) -> Iterator[Problem]:
    """Look for states that are not finite and other numbers that are NaN."""
    floats = [column.name for column in table.columns if pa.types.is_floating(column.type)]
    vectors = ["vector"] * any(column.name == "vector" for column in table.columns)
    spoilt: dict[str, int] = {}
    row = 0
    with open_parquet(file) as parquet:
        for groups in _pieces(parquet.metadata) if floats or vectors else ():
            part = parquet.read_row_groups(groups, columns=[*floats, *vectors])
            for name in floats:
                if (first := pc.index(pc.is_nan(part[name]), True).as_py()) >= 0:
                    spoilt.setdefault(f"column {name} holds NaN", row + first)
            for name in vectors:
                states = [np.isfinite(chunk.flatten().to_numpy()) for chunk in part[name].chunks]
                if not all(finite.all() for finite in states):
                    whole = np.concatenate(states).reshape(len(part), -1).all(axis=1)
                    spoilt.setdefault("holds states that are not finite", row + int(np.argmin(whole)))
            row += len(part)
    yield from (Problem(file, f"{what}, the first in row {first}") for what, first in spoilt.items())


def _pieces(metadata: Any) -> Iterator[list[int]]:
    """Yield the numbers of row groups that are read together: one, or several up to what a large one takes."""
    piece: list[int] = []
    size = 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        if piece and size > _PIECE_BYTES:
            yield piece
            piece, size = [], metadata.row_group(group).total_byte_size
        piece.append(group)
    yield piece


def _read(file: Path, columns: list[str]) -> pl.DataFrame:
    with open_parquet(file) as parquet:
        return from_arrow(parquet.read(columns=columns))
