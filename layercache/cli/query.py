"""`layercache sql`: questions in SQL, which `layercache export` asks too."""

import sys
from pathlib import Path
from typing import Any

import click

from layercache.cli import completion, stopping
from layercache.cli.options import format_option, limit_options, param_option, store_option
from layercache.cli.output import print_json, width
from layercache.errors import RecipeError


@click.command()
@click.argument("query", required=False)
@click.option("--query", "named", shell_complete=completion.queries, help="Name of a query that ships with layercache.")
@param_option
@click.option("--list", "listing", is_flag=True, help="List the named queries.")
@click.option("--show", "show_text", is_flag=True, help="Print the named query's text instead of running it.")
@format_option()
@limit_options
@store_option
def sql(
    query: str | None,
    named: str | None,
    params: tuple[str, ...],
    listing: bool,
    show_text: bool,
    fmt: str,
    memory: str,
    timeout: float,
    store: Path,
) -> None:
    """Ask the store anything, in SQL.

    Without a query: a shell with history where there is a terminal, else the query is read from stdin.

    \b
    layercache sql "SELECT layer, avg(entropy) FROM lens GROUP BY layer ORDER BY layer"
    layercache sql --query entropy_by_layer --store demo-store
    layercache sql --query cosine_neighbours --param sample=… --json
    """
    from layercache import table
    from layercache.store import sql as engine

    if listing:
        if fmt == "json":
            print_json([{"name": one.name, "title": one.title} for one in engine.list_queries()])
            return
        for one in engine.list_queries():
            click.echo(f"{one.name:24} {one.title}")
        return
    if query is None and named is None:
        if sys.stdin.isatty() and sys.stdout.isatty() and not params:
            from layercache.shell import Shell

            stopping.shell_takes_over()
            Shell(store, fmt, memory, timeout, width).run()
            return
        query = "-"
    if query == "-":
        query = "" if sys.stdin.isatty() else sys.stdin.buffer.read().decode("utf-8", errors="replace")
    if query is not None and (command := query.lstrip()).startswith("."):
        raise RecipeError(
            f"{command.split()[0]!r} is a command of the shell, which needs a terminal; here one query is taken, such as"
            " SHOW TABLES or DESCRIBE TABLE"
        )
    if (not query) == (named is None):
        raise RecipeError("give a SELECT, or --query NAME (see layercache sql --list)")
    if named is not None and show_text:
        click.echo(engine.load_query(named).sql)
        return
    result = ask(store, query, named, params, memory, timeout)
    sys.stdout.flush()
    table.write(result, fmt, sys.stdout.buffer, width=width())
    if named is not None and not result.num_rows:
        from layercache import listing as store_listing

        if note := store_listing.why_empty(store, engine.load_query(named), bool(params)):
            click.echo(note, err=True)


def ask(store: Path, query: str | None, named: str | None, params: tuple[str, ...], memory: str, timeout: float) -> Any:
    """Run a query, or a named one, inside the fence."""
    from layercache.store import sql as engine

    given: dict[str, Any] = dict(_params(params))
    if named is not None:
        loaded = engine.load_query(named)
        query, given = loaded.sql, dict(loaded.bind(given))
    assert query is not None
    return engine.run_query(store, query, params=given, memory=memory, timeout=timeout)


def _params(pairs: tuple[str, ...]) -> dict[str, str]:
    given = dict(pair.partition("=")[::2] for pair in pairs if "=" in pair)
    bad = next((pair for pair in pairs if "=" not in pair), None)
    if bad is not None:
        raise RecipeError(f"--param {bad!r} is not NAME=VALUE")
    return given
