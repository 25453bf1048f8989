"""The SQL views over the users' own columns: `rows`, as they were given, and `labels`, a line a value."""

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from layercache.errors import StoreError
from layercache.recipe import Label
from layercache.store.layout import RowsInfo, Run, first_line
from layercache.store.reader import Store
from layercache.store.schema import LABELS, ROW_COLUMNS, Column
from layercache.store.sqltext import empty_table, identifier, literal, path_literal

_RUN = Column("run", pa.string(), False, "the run")
_OPENING = (_RUN, Column("data", pa.string(), False, "the data set"), *ROW_COLUMNS)


class _RowsFile(NamedTuple):
    """A rows file: whose it is, and the columns it has."""

    run: Run
    info: RowsInfo
    schema: pa.Schema

    @property
    def own(self) -> list[pa.Field]:
        """The user's own columns."""
        return list(self.schema)[len(ROW_COLUMNS) :]

    @property
    def source(self) -> str:
        """The file as a table of columns c0, c1, …; by position, since names that differ only in case, or
        are those of DuckDB's own columns, are not safe to use."""
        names = ", ".join(f"c{index}" for index in range(len(self.schema)))
        return f"read_parquet([{path_literal(self.info.path)}], hive_partitioning = false) AS t({names})"


def _rows_files(store: Store) -> list[_RowsFile]:
    found = []
    for run in store.runs():
        for info in store.data(run):
            try:
                found.append(_RowsFile(run, info, pq.read_schema(info.path)))
            except (pa.ArrowException, OSError) as error:
                raise StoreError(
                    f"{info.path} cannot be read ({first_line(error)}): run `layercache verify`"
                ) from error
    return found


def rows_view(store: Store) -> str:
    """Return the SELECT of all rows of all runs, their columns united by name.

    A column that is of different types in two files is a number where both are numbers, else text.
    """
    files = _rows_files(store)
    names = [_distinct([field.name for field in file.own]) for file in files]
    spelled: dict[str, str] = {}
    kinds: dict[str, set[pa.DataType]] = {}
    for file, given in zip(files, names, strict=True):
        for name, field in zip(given, file.own, strict=True):
            spelled.setdefault(name.lower(), name)
            kinds.setdefault(name.lower(), set()).add(field.type)
    selects = [
        _one_file(file, [name.lower() for name in given], spelled, kinds)
        for file, given in zip(files, names, strict=True)
    ]
    return " UNION ALL ".join(selects) if selects else empty_table(_OPENING)


def _one_file(file: _RowsFile, has: list[str], spelled: dict[str, str], kinds: dict[str, set[pa.DataType]]) -> str:
    """Return the SELECT of one file with the columns of all; `has` are the keys of its own columns."""
    columns = [f"{literal(file.run.id)} AS run", f"{literal(file.info.name)} AS data"]
    columns += [f"c{index} AS {identifier(column.name)}" for index, column in enumerate(ROW_COLUMNS)]
    for key, name in spelled.items():
        column = f"c{len(ROW_COLUMNS) + has.index(key)}" if key in has else "NULL"
        columns.append(f"{_united(column, kinds[key])} AS {identifier(name)}")
    return f"SELECT {', '.join(columns)} FROM {file.source}"


def _distinct(names: Sequence[str]) -> list[str]:
    """Return what a file's columns are called in the view: distinct whatever the case of their letters."""
    taken, given = {column.name for column in _OPENING}, []
    for name in names:
        new, number = name, 0
        while new.lower() in taken:
            number += 1
            new = f"{name}_{number}"
        taken.add(new.lower())
        given.append(new)
    return given


def _united(column: str, kinds: set[pa.DataType]) -> str:
    """Return a column in the one type it has in all files."""
    if len(kinds) == 1:
        return column
    if all(pa.types.is_signed_integer(kind) for kind in kinds):
        return f"CAST({column} AS BIGINT)"
    if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds):
        return f"CAST({column} AS DOUBLE)"
    return f"CAST({column} AS VARCHAR)"


def labels_view(store: Store) -> str:
    """Return the SELECT of all labels in long form: a line a value of a row that has a sample."""
    selects = [
        _one_label(file, label)
        for file in _rows_files(store)
        for label in file.info.labels
        if label.name in file.schema.names
    ]
    return " UNION ALL ".join(selects) if selects else empty_table((_RUN, *LABELS))


def _one_label(file: _RowsFile, label: Label) -> str:
    index = file.schema.names.index(label.name)
    number, text = "CAST(NULL AS DOUBLE)", "CAST(NULL AS VARCHAR)"
    if label.kind in {"number", "boolean"}:
        number = f"CAST(c{index} AS DOUBLE)"
    elif pa.types.is_list(file.schema.field(index).type):
        text = f"array_to_string(c{index}, chr(10))"
    else:
        text = f"CAST(c{index} AS VARCHAR)"
    return (
        f"SELECT {literal(file.run.id)} AS run, {literal(file.info.name)} AS data, c0 AS row, c1 AS sample_id,"
        f" {literal(label.name)} AS name, {literal(label.kind)} AS kind, {number} AS number, {text} AS text"
        f" FROM {file.source} WHERE c{index} IS NOT NULL AND c1 IS NOT NULL"
    )
