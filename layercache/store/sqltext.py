"""Pieces of SQL text: literals, types, and tables made of JSON or of Parquet files."""

import glob
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from layercache.errors import StoreError
from layercache.store import mirror
from layercache.store.remote.duck import SCHEME
from layercache.store.schema import Column

FILE = "layercache_file"
"""Column of `from_files` with the path of a row's file; not `filename`, which a real column may be called."""

RUN, CONDITION, SHARD = (
    f"substr(split_part({FILE}, '/', {step}), {len(prefix) + 1})"
    for step, prefix in ((-4, "run="), (-3, "condition="), (-2, "shard="))
)
"""A row's run, condition and shard, cut out of the path of its shard's file. A filter on one of them drops
whole files before any is opened."""

_WILDCARD = re.compile(r"([*?\[])")
_TYPES = {
    pa.bool_(): "BOOLEAN",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.string(): "VARCHAR",
}


def literal(text: str) -> str:
    """Return a text as an SQL string literal.

    Raises:
        StoreError: the text holds a NUL character, which no SQL text can.
    """
    if "\0" in text:
        raise StoreError(f"{text!r} holds a NUL character: rename it")
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """Return a name as a quoted SQL identifier; errors as `literal`."""
    literal(name)
    return '"' + name.replace('"', '""') + '"'


def path_literal(path: Path) -> str:
    """Return a path as an SQL literal for a function that reads `*`, `?` and `[` as wildcards."""
    scheme = SCHEME if mirror.is_remote(path) else ""
    return literal(scheme + escape_wildcards(path.absolute().as_posix()))


def escape_wildcards(path: str) -> str:
    """Return the pattern that matches exactly this path.

    In a pattern DuckDB takes a backslash for a slash, and a pattern that matches nothing for the path itself.

    Raises:
        StoreError: the path holds a backslash beside wildcards, and as a pattern it could match something else.
    """
    if "\\" not in path or not _WILDCARD.search(path):
        return _WILDCARD.sub(r"[\1]", path)
    if any(glob.iglob(path.partition("\\")[0])):
        raise StoreError(
            f"{path!r} holds a backslash and one of * ? [, which cannot be told from other folders there: rename it"
        )
    return path


def sql_type(kind: pa.DataType) -> str:
    """Return DuckDB's name of one of the Arrow types of `schema.py`."""
    if pa.types.is_struct(kind):
        return f"STRUCT({', '.join(f'{identifier(field.name)} {sql_type(field.type)}' for field in kind)})"
    if pa.types.is_list(kind):
        return f"{sql_type(kind.value_type)}[]"
    return _TYPES[kind]


def json_table(columns: Sequence[Column], rows: list[dict[str, Any]]) -> str:
    """Return a SELECT of rows given as JSON values.

    One literal rather than VALUES: DuckDB reads 10,000 rows of it in 30 ms, and of VALUES in 2 s.
    """
    # A list's type is written ["VARCHAR"] here, where CAST wants VARCHAR[].
    shape = {
        column.name: [sql_type(column.type.value_type)] if pa.types.is_list(column.type) else sql_type(column.type)
        for column in columns
    }
    names = ", ".join(f"line.{identifier(column.name)}" for column in columns)
    text = literal(json.dumps(rows, ensure_ascii=False, allow_nan=False))
    return f"SELECT {names} FROM (SELECT unnest(from_json({text}, {literal(json.dumps([shape]))})) AS line)"


def empty_table(columns: Sequence[Column], types: dict[str, str] | None = None) -> str:
    """Return a SELECT of no rows with the columns' names and types; `types` overrides some."""
    given = types or {}
    casts = (
        f"CAST(NULL AS {given.get(column.name) or sql_type(column.type)}) AS {identifier(column.name)}"
        for column in columns
    )
    return f"SELECT {', '.join(casts)} WHERE false"


def from_files(files: Sequence[Path], *, differ: bool = False) -> str:
    """Return a table of exactly these Parquet files, with the column `FILE` beside theirs.

    The folders of the paths mean nothing: a store may lie below one called `layer=3`. Where the files' columns may
    `differ` every file is opened, and a column that one lacks is NULL there.
    """
    paths = ", ".join(path_literal(path) for path in files)
    united = ", union_by_name = true" if differ else ""
    return f"read_parquet([{paths}], filename = '{FILE}', hive_partitioning = false{united})"
