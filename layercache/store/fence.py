"""The fence round a query from elsewhere: the statement gate, and the process that runs what passes it.

`sql.run_query` starts this file as a program of its own. It imports nothing of layercache (but to read a store that is
in a bucket), so that it starts quickly; it reads a request (JSON) from stdin and writes the result to stdout as an Arrow IPC
stream, or one line of text to stderr and exits with `FAILED`.

The gate is the wall. DuckDB's settings alone let `COPY … TO` write below an allowed directory, let views
be replaced, and take `WITH x AS (INSERT …) SELECT` for a SELECT; so every statement is parsed by DuckDB
itself and its tree is searched, and what is not known to be harmless is refused.

Three limits bound memory: DuckDB's own `memory_limit` for what DuckDB counts, with nothing spilt to the disk;
`RLIMIT_DATA` (where the system enforces it, as Linux does) for what it does not count; and the size of the
result, counted as it is written. Time: whoever started the process kills it, and an alarm of its own does
should that one be gone.
"""

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, BinaryIO

import duckdb
import pyarrow as pa

try:
    import resource
except ImportError:  # Windows has no limits of this kind; DuckDB's own memory limit holds there too.
    resource = None  # type: ignore[assignment]

FAILED = 3
"""What the fenced process exits with where the query is to blame."""
_BATCH_ROWS = 8192
_LONGEST = 400
_GIB = 1 << 30

_QUERY_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
_TABLE_REFERENCES = {
    "BASE_TABLE",
    "CTE",
    "EMPTY",
    "EXPRESSION_LIST",
    "JOIN",
    "PIVOT",
    "SHOW_REF",
    "SUBQUERY",
    "TABLE_FUNCTION",
}
_TABLE_FUNCTIONS = {
    "duckdb_columns",
    "duckdb_functions",
    "duckdb_keywords",
    "duckdb_types",
    "duckdb_views",
    "generate_series",
    "json_each",
    "json_tree",
    "pragma_version",
    "range",
    "repeat",
    "unnest",
}
_REFUSED_FUNCTIONS = {"current_setting", "getenv", "getvariable", "nextval", "setval", "write_log"}
"""Scalar functions that reach beyond the query: the process's environment and settings (which may hold secrets and
paths), sequences, the log. No other of DuckDB 2.0 does; a test goes through them."""
_BLANK = r"(?>\s|--[^\n]*\n|/\*.*?\*/)"
_EXPLAIN = re.compile(rf"{_BLANK}*+EXPLAIN\b{_BLANK}*+(ANALYZE\b|\([A-Z\s,]*\))?", re.IGNORECASE | re.DOTALL)
_SYSTEM_TABLE = re.compile(
    r"duckdb_(columns|constraints|schemas|tables|types|views)|sqlite_(temp_)?(master|schema)"
    r"|pg_(attribute|class|description|namespace|tables|type|views)"
)
_SHOWN = {'"tables"', '"databases"', '"schemas"', '"variables"', "__show_tables_expanded"}
"""What SHOW may show beside a table: of anything else it shows the setting of that name."""
_SCHEMAS = {("", ""), ("", "main"), ("memory", "main"), ("", "information_schema"), ("", "pg_catalog")}


class RefusedError(Exception):
    """The statement is not one that may be run, or it failed; the text is one line for the user."""


def check(connection: duckdb.DuckDBPyConnection, query: str, tables: list[str]) -> str:
    """Let a statement pass that only reads the named tables.

    Args:
        connection: any connection; it parses, nothing of the query is run on it.
        query: the SQL text.
        tables: the names a query may read from.

    Returns:
        The text to run, no other than what was checked.

    Raises:
        RefusedError: it is not exactly one SELECT, DESCRIBE, SHOW, SUMMARIZE, or EXPLAIN of a SELECT; or it
            changes something, reads a file or names a table that does not exist.
    """
    kind, explain = _kind(connection, query), ""
    if kind == "EXPLAIN" and (match := _EXPLAIN.match(query)):
        # Put together anew: where a comment ends may be read in two ways (DuckDB's nest).
        explain, query = f"EXPLAIN {match[1] or ''} ", query[match.end() :]
        kind = _kind(connection, query)
    if kind == "MULTI":
        raise RefusedError("a PIVOT must name its values: PIVOT … ON column IN (…)")
    if kind != "SELECT":
        raise RefusedError(f"only SELECT, DESCRIBE, SHOW, SUMMARIZE and EXPLAIN of a SELECT are run, not {kind}")
    _check_tree(_tree(connection, query), query, tables)
    return explain + query


def _kind(connection: duckdb.DuckDBPyConnection, query: str) -> str:
    """Return the type of the one statement of a text."""
    statements = connection.extract_statements(query)
    if len(statements) != 1:
        raise RefusedError(f"write exactly one statement, this is {len(statements) or 'none'}")
    try:
        return str(statements[0].type.name)
    except ValueError:  # A type that DuckDB's Python package has no name for.
        return "a statement of this kind"


def _tree(connection: duckdb.DuckDBPyConnection, query: str) -> Any:
    """Return DuckDB's own parse of a SELECT."""
    row = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchone()
    try:
        tree = json.loads(row[0] if row else "null")
    except RecursionError:
        raise RefusedError("the statement is nested too deeply") from None
    if not isinstance(tree, dict) or tree.get("error") is not False:
        raise RefusedError(f"the statement cannot be checked: {tree.get('error_message') if tree else 'no parse'}")
    return tree


def _check_tree(tree: Any, query: str, tables: list[str]) -> None:
    named = {entry["key"].lower() for node in _nodes(tree) for entry in (node.get("cte_map") or {}).get("map", [])}
    readable = {name.lower() for name in tables} | named
    for node in _nodes(tree):
        _check_kind(node)
        _check_function(node)
        reads = node.get("type") == "BASE_TABLE" or node.get("show_type") == "SHOW"
        shown = "show_type" in node and node.get("table_name") in {"", *_SHOWN}
        if reads and not shown and not _is_readable(node, readable):
            name = str(node.get("table_name"))
            close = get_close_matches(name.lower(), tables, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(tables)}"
            raise RefusedError(f"there is no table {name!r}: {hint}{_position(node.get('query_location'), query)}")


def _check_kind(node: dict[str, Any]) -> None:
    """Refuse a node that changes something, or a kind of table that is not known to be harmless."""
    kind = node.get("type")
    if isinstance(kind, str) and kind.endswith("_NODE") and kind not in _QUERY_NODES:
        raise RefusedError(f"a query only reads: {kind.removesuffix('_NODE').removesuffix('_QUERY')} is refused")
    if "alias" in node and "sample" in node and kind not in _TABLE_REFERENCES:
        raise RefusedError(f"a table of the kind {kind} is refused")


def _check_function(node: dict[str, Any]) -> None:
    """Refuse a table function that is not known to be harmless, or a scalar one that is known not to be."""
    if node.get("type") == "TABLE_FUNCTION" and node["function"]["function_name"].lower() not in _TABLE_FUNCTIONS:
        raise RefusedError(f"{node['function']['function_name']}() is refused: a query reads the store's tables only")
    if "function_name" in node and node["function_name"].lower() in _REFUSED_FUNCTIONS:
        raise RefusedError(f"{node['function_name']}() is refused")


def _is_readable(node: dict[str, Any], readable: set[str]) -> bool:
    """Tell whether a table exists; DuckDB might take one that does not for the path of a file."""
    catalog, schema, name = (node.get(f"{part}_name", "").lower() for part in ("catalog", "schema", "table"))
    known = schema == "information_schema" or name in readable or _SYSTEM_TABLE.fullmatch(name)
    return bool(known and (catalog, schema) in _SCHEMAS and re.fullmatch(r"[\w -]+", name))


def _position(offset: Any, query: str) -> str:
    """Return where in the query something is, for the end of a message.

    DuckDB counts bytes from 0; where it does not know, there is none or 2⁶⁴−1.
    """
    before = query.encode()[: int(offset)].decode(errors="ignore") if str(offset).isdigit() else query
    if len(before) >= len(query):
        return ""
    column = len(before) - (before.rfind("\n") + 1) + 1
    return (
        f" (at character {column})" if "\n" not in query else f" (line {before.count(chr(10)) + 1}, character {column})"
    )


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield every object of a JSON value."""
    left = [tree]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            yield value
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)


def _limit(request: dict[str, Any]) -> None:
    """Bound the process from within, should the one that started it be killed or DuckDB's accounts be wrong."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, request["timeout"] + 5.0)
    if resource is not None:
        threads = os.cpu_count() or 1
        most = int(request["memory"]) + _GIB + threads * (_GIB // 64)
        for limit, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_DATA, most)):
            hard = resource.getrlimit(limit)[1]
            resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _connect(memory: int) -> duckdb.DuckDBPyConnection:
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{memory}B",
        "temp_directory": "",
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "allow_community_extensions": False,
        "python_enable_replacements": False,
        "errors_as_json": True,
    }
    connection = duckdb.connect(":memory:", config=config)
    connection.execute("SET enable_progress_bar = false")
    return connection


def _read_over(connection: duckdb.DuckDBPyConnection, lines: list[int]) -> None:
    """Let the views read files of a bucket over lines to the process that started this one."""
    from layercache.store.remote import broker, duck

    connection.register_filesystem(duck.file_system(broker.reader(lines)))


def _prepare(connection: duckdb.DuckDBPyConnection, request: dict[str, Any]) -> None:
    """Make the views, then lock everything else."""
    try:
        for statement in request["setup"]:
            connection.execute(statement)
    except duckdb.Error as error:
        raise RefusedError(f"{one_line(error)}: run `layercache verify`") from error
    directories = ", ".join("'" + path.replace("'", "''") + "'" for path in request["directories"])
    # In this order: allowed directories cannot be set any more once external access is off.
    connection.execute(f"SET allowed_directories = [{directories}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _parameters(connection: duckdb.DuckDBPyConnection, query: str, given: dict[str, Any]) -> dict[str, Any] | None:
    """Return the values of the parameters that the query names."""
    wanted: set[str] = connection.extract_statements(query)[0].named_parameters
    missing, unknown = sorted(wanted - set(given)), sorted(set(given) - wanted)
    if missing:
        raise RefusedError(f"no value given for {', '.join(f'${name}' for name in missing)}")
    if unknown:
        raise RefusedError(f"the query has no parameter {', '.join(f'${name}' for name in unknown)}")
    return given or None


def _relation(
    connection: duckdb.DuckDBPyConnection, query: str, params: dict[str, Any] | None
) -> duckdb.DuckDBPyRelation:
    try:
        return connection.sql(query, params=params)
    except (duckdb.BinderException, duckdb.CatalogException):
        # Of a relation, such an error does not say where in the query; of a statement it does.
        connection.execute(query, params)
        raise


def _result(connection: duckdb.DuckDBPyConnection, request: dict[str, Any]) -> pa.RecordBatchReader:
    """Check the query, lock the connection and start to run it."""
    query = check(connection, request["query"], request["tables"])
    params = _parameters(connection, query, request["params"])
    _prepare(connection, request)
    return _relation(connection, query, params).to_arrow_reader(_BATCH_ROWS)


def _answer(request: dict[str, Any], out: BinaryIO) -> None:
    """Run the query and write its result as it comes."""
    connection = _connect(request["memory"])
    if lines := request.get("lines"):
        _read_over(connection, lines)
    reader = _result(connection, request)
    size = 0
    with pa.ipc.new_stream(out, reader.schema) as writer:
        for batch in reader:
            size += batch.nbytes
            if size > request["memory"]:
                raise MemoryError
            writer.write_batch(batch)


def one_line(error: BaseException, query: str = "") -> str:
    """Return a DuckDB error as one line: what was wrong, the candidates, where in the query it was."""
    text = str(error)
    head, _, tail = text.partition(": ")
    try:
        detail = json.loads(tail)
        message, place = str(detail["exception_message"]), detail.get("position")
    except (ValueError, KeyError, TypeError):
        message, place = tail if head.endswith("Error") else text, None
    lines = [line.strip() for line in message.split("\nLINE ")[0].splitlines() if line.strip()]
    text = " ".join(lines)
    return (text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…") + _position(place, query)


def _failure(error: BaseException, request: dict[str, Any]) -> str:
    if isinstance(error, MemoryError | duckdb.OutOfMemoryException) or "Out of Memory" in str(error):
        megabytes = int(request["memory"]) // 10**6
        return f"the query needs more than {megabytes:,} MB of memory: narrow it, add a LIMIT, or allow more memory"
    return one_line(error, request["query"])


def main() -> None:
    """Answer the request on stdin."""
    # Whatever a library prints must not end up among the result.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    request = json.load(sys.stdin.buffer)
    _limit(request)
    try:
        _answer(request, out)
        out.flush()
    except (RefusedError, duckdb.Error, pa.ArrowException, MemoryError, OSError, ValueError) as error:
        sys.stderr.write(_failure(error, request))
        sys.stderr.flush()
        os._exit(FAILED)
    # Not a normal end: taking a large database apart in memory takes time, and nothing of it is kept.
    os._exit(0)


if __name__ == "__main__":
    main()
