"""SQL over a store: trusted in this process, or fenced in one of its own.

The views are `views.VIEWS`. Beside them there are the macros `cosine(a, b)`, `dot(a, b)`, `norm(a)`,
`l2(a, b)` and `minus(a, b)` (a vector) of states, computed in double precision. DuckDB's own array functions take
`hidden.vector` as it is, `FLOAT[d]`; where runs have states of several widths it is a list, and the view
`hidden_<run>` of each run is typed.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from layercache import quantities
from layercache.errors import QueryError, RecipeError
from layercache.queries import list_queries, load_query
from layercache.store import fence, mirror, reader
from layercache.store.reader import Store
from layercache.store.remote import duck
from layercache.store.remote.address import without_settings
from layercache.store.remote.blocks import Span
from layercache.store.remote.broker import Broker
from layercache.store.remote.ranged import RemoteFile
from layercache.store.sqltext import escape_wildcards
from layercache.store.views import definitions, names

__all__ = ["connect", "list_queries", "load_query", "query", "run_query"]

# DuckDB's list functions fail on a row where an array of fixed size is NULL (as `lag` gives), hence CASE.
_PAIR = "CASE WHEN a IS NOT NULL AND b IS NOT NULL THEN {}(CAST(a AS DOUBLE[]), CAST(b AS DOUBLE[])) END"
_MACROS = (
    # Of states of two widths the others fail, and so does this.
    "CREATE MACRO _minus(a, b) AS CASE WHEN len(a) = len(b)"
    " THEN list_transform(list_zip(a, b), lambda pair: pair[1] - pair[2])"
    " ELSE error('minus: states of ' || len(a) || ' and ' || len(b) || ' elements') END",
    f"CREATE MACRO dot(a, b) AS {_PAIR.format('list_dot_product')}",
    f"CREATE MACRO cosine(a, b) AS {_PAIR.format('list_cosine_similarity')}",
    f"CREATE MACRO l2(a, b) AS {_PAIR.format('list_distance')}",
    "CREATE MACRO norm(a) AS sqrt(dot(a, a))",
    f"CREATE MACRO minus(a, b) AS {_PAIR.format('_minus')}",
)
_LONGEST = 10**6
"""Seconds that a query may take at most: eleven days. Waiting for a process counts milliseconds in 32 bits."""
_WORD = re.compile(r"\w+")
_CATALOGUE = re.compile(r"show|information_schema|(duckdb|pg|sqlite)_\w+")


def connect(store: Store) -> duckdb.DuckDBPyConnection:
    """Return a new in-memory DuckDB connection with every view of a store and the macros.

    It is for your own queries: they may read and write files as DuckDB does.

    Raises:
        StoreError: the store is damaged.
        QueryError: a Parquet file cannot be read.
    """
    return _trusted(store, names(store), {})


def query(store: Store, text: str, params: Mapping[str, Any] | Sequence[Any] | None = None) -> pa.Table:
    """Run a query of your own in this process; only the views it names are made.

    Raises:
        StoreError: the store is damaged.
        QueryError: the query fails; the message is one line.
    """
    if not isinstance(text, str):
        raise QueryError(f"{text!r} is no query: give the text of one SELECT")
    with _trusted(
        store, _named(text, store), {"errors_as_json": True, "python_enable_replacements": False}
    ) as connection:
        try:
            relation = connection.sql(text, params=params or None)
            return _plain(relation.to_arrow_table()) if relation is not None else pa.table({})
        except duckdb.Error as error:
            raise QueryError(fence.one_line(error, text)) from error


def _trusted(store: Store, views: Iterable[str], config: dict[str, Any]) -> duckdb.DuckDBPyConnection:
    statements = _setup(store, views)
    connection = duckdb.connect(":memory:", config=config)
    if mirror.of(store.path) is not None:
        connection.register_filesystem(duck.file_system(_reader_of(store.path)))
    # DuckDB would show its progress on stdout, among the data. In a notebook without ipywidgets it has no bar, and refuses
    # every change of that setting.
    with suppress(duckdb.Error):
        connection.execute("SET enable_progress_bar = false")
    try:
        for statement in statements:
            connection.execute(statement)
    except duckdb.Error as error:
        connection.close()
        raise QueryError(f"{fence.one_line(error)}: run `layercache verify`") from error
    return connection


def run_query(
    path: Path, query: str, *, params: Mapping[str, Any] | None = None, memory: str = "2GB", timeout: float = 60.0
) -> pa.Table:
    """Run a query from elsewhere: read-only, seeing the store's tables and nothing else of the machine.

    Args:
        path: the store's directory.
        query: one SELECT (also WITH, FROM, VALUES, DESCRIBE, SHOW, SUMMARIZE), or EXPLAIN of one.
        params: values of the query's `$name` parameters: text, numbers, booleans, None, lists of them.
        memory: most memory the query, and its result, may take: `512MB`, `2GB`.
        timeout: seconds after which the query is killed.

    Raises:
        StoreError: there is no store, or it is damaged.
        QueryError: the query is refused, fails, or goes over a limit; the message is one line.
    """
    try:
        size = quantities.nbytes(memory)
    except RecipeError as error:
        raise QueryError(f"memory: {error}") from None
    try:
        query.encode()
    except UnicodeEncodeError:
        raise QueryError("the query holds bytes that are not UTF-8: write it anew") from None
    if not timeout > 0:
        raise QueryError(f"a timeout of {timeout:g} s leaves no time: give a positive number of seconds")
    if timeout > _LONGEST:
        raise QueryError(f"a timeout of {timeout:g} s is more than {_LONGEST:,} s: give fewer seconds")
    # Started before the store is read, so that both take their time at once. -P: no module is to be
    # found in the directory the user happens to be in.
    command = [sys.executable, "-P", fence.__file__]
    pipe = subprocess.PIPE
    # Arrow's usual allocator takes a gigabyte of address space at once, which counts against the limit.
    environment = {**without_settings(dict(os.environ)), "ARROW_DEFAULT_MEMORY_POOL": "system"}
    path = mirror.located(path)
    broker = Broker(_reader_of(path)) if mirror.of(path) is not None else None
    ends = [] if broker is None else broker.ends
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, pass_fds=ends, close_fds=True
    ) as process:
        try:
            if broker is not None:
                broker.started()
            request = _request(path, query, params or {}, size, timeout, ends)
            out, err = process.communicate(request, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise QueryError(f"the query took longer than {timeout:g} s: narrow it, or allow more time") from error
        finally:
            # Also when the user presses Ctrl-C; does nothing to a process that has ended.
            process.kill()
            process.wait()
            if broker is not None:
                broker.close()
    if process.returncode == 0:
        return _plain(pa.ipc.open_stream(pa.py_buffer(out)).read_all())
    said = err.decode("utf-8", errors="replace").strip()
    last = said.splitlines()[-1] if said else "it was killed"
    if process.returncode == fence.FAILED:
        raise QueryError(last)
    raise QueryError(f"the query's process died, perhaps for want of memory ({last}): narrow the query")


def _reader_of(store: Path) -> duck.Read:
    """Return what reads the large files of one mirror, and no other file."""
    root = str(store.absolute())

    def read(path: str, start: int, size: int) -> bytes:
        remote = mirror.remote(path) if os.path.normpath(path).startswith(f"{root}{os.sep}") else None
        if remote is None:
            raise QueryError(f"{path} is no file of this store")
        with RemoteFile(remote) as file:
            return file.read_at(Span(start, min(start + size, remote.size)))

    return read


def _request(
    path: Path, query: str, params: Mapping[str, Any], memory: int, timeout: float, lines: Sequence[int] = ()
) -> bytes:
    """Return what the fenced process is asked; of a mirror it reads the large files over some `lines`."""
    root = os.path.realpath(path)
    store = reader.open(root)
    schemes = ["", duck.SCHEME] if lines else [""]
    request = {
        "query": query,
        "params": dict(params),
        "tables": list(names(store)),
        "setup": _setup(store, _named(query, store)),
        # A path is compared as it is written in the view, where wildcards in it are escaped.
        "directories": sorted({f"{scheme}{one}" for scheme in schemes for one in (root, escape_wildcards(root))}),
        "lines": list(lines),
        "memory": memory,
        "timeout": timeout,
    }
    try:
        return json.dumps(request, allow_nan=True).encode()
    except TypeError as error:
        raise QueryError(f"a parameter's value cannot be passed on ({error}): use text, numbers or lists") from error


def _setup(store: Store, views: Iterable[str]) -> list[str]:
    """Return the statements that make the macros and the named views."""
    return [*_MACROS, *(f"CREATE VIEW {name} AS {select}" for name, select in definitions(store, views).items())]


def _named(query: str, store: Store) -> list[str]:
    """Return the views that a query could read: those whose names occur in its text."""
    words = {word.lower() for word in _WORD.findall(query)}
    there = names(store)
    if any(_CATALOGUE.fullmatch(word) for word in words):
        return list(there)
    named = [name for name in there if name in words]
    # DESCRIBE of nothing lists the tables.
    return list(there) if "describe" in words and not named else named


def _plain(table: pa.Table) -> pa.Table:
    """Turn DuckDB's 128-bit integers, which every sum of integers is, into 64-bit ones where they fit."""
    for index, field in enumerate(table.schema):
        if field.type == pa.decimal128(38, 0):
            try:
                column = pc.cast(table.column(index), pa.int64())
            except pa.ArrowInvalid:
                continue
            table = table.set_column(index, field.with_type(pa.int64()), column)
    return table
