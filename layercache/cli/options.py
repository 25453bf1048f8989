"""Options that several commands share, as decorators, and how the text of some is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from layercache.errors import RecipeError

F = TypeVar("F", bound=Callable[..., Any])

FORMATS = ("table", "csv", "json", "jsonl", "parquet", "markdown")


def store_option(command: F) -> F:
    """Add `--store`, which every command takes."""
    return click.option(
        "--store",
        type=click.Path(path_type=Path),
        default=Path("store"),
        envvar="LAYERCACHE_STORE",
        show_default=True,
        show_envvar=True,
        help="Directory of the store.",
    )(command)


def quiet_option(command: F) -> F:
    """Add `--quiet`: no progress and no notes on stderr."""
    return click.option("-q", "--quiet", is_flag=True, help="No progress, no notes.")(command)


def json_option(command: F) -> F:
    """Add `--json`: what is printed is JSON."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def set_option(command: F) -> F:
    """Add `--set`, which changes settings of a recipe."""
    return click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting of the recipe."
    )(command)


def format_option(*, of: tuple[str, ...] = FORMATS) -> Callable[[F], F]:
    """Add `--format`, how a table is printed."""
    return click.option("--format", "fmt", type=click.Choice(of), default="table")


def param_option(command: F) -> F:
    """Add `--param`, which goes with a named query."""
    return click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="A parameter of the query.")(
        command
    )


def limit_options(command: F) -> F:
    """Add `--memory` and `--timeout`, the limits of a query."""
    timeout = click.option("--timeout", default=60.0, show_default=True, help="Seconds the query may take.")
    return click.option("--memory", default="2GB", show_default=True, help="Memory the query may use.")(
        timeout(command)
    )


def plain(value: Any) -> Any:
    """Make the tuple of an option that may be repeated a list."""
    return list(value) if isinstance(value, tuple) else value


def numbers(text: str | None) -> list[int] | None:
    """Read `0,4,8`."""
    if text is None:
        return None
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise RecipeError(f"--layers {text!r}: give numbers separated by commas (0,4,8)")
    return [int(part) for part in text.split(",")]
