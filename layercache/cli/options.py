"""Options that several commands share, as decorators, and how the text of some is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from layercache.errors import RecipeError

F = TypeVar("F", bound=Callable[..., Any])

FORMATS = ("table", "csv", "json", "jsonl", "parquet", "markdown")


class StorePath(click.Path):
    """A directory, or the URL of a place in a bucket, which becomes the directory that mirrors it."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path of the store."""
        # Nobody waits for a bucket when Tab is pressed.
        completing = ctx is not None and ctx.resilient_parsing
        if completing or "/" not in str(value) or ":" not in str(value).partition("/")[0]:
            return super().convert(value, param, ctx)
        from layercache.store import mirror

        return mirror.located(value)


def store_option(command: F) -> F:
    """Add `--store`, which every command takes."""
    return click.option(
        "--store",
        type=StorePath(),
        metavar="PATH|URL",
        default=Path("store"),
        envvar="LAYERCACHE_STORE",
        show_default=True,
        show_envvar=True,
        callback=_remember,
        help="Directory of the store, or a bucket: s3://bucket/prefix.",
    )(command)


def _remember(context: click.Context, _param: click.Parameter, store: Path) -> Path:
    """Keep the store and the command's name, for what is said when the program is stopped."""
    if isinstance(context.obj, dict):
        context.obj.update(store=store, command=context.info_name)
    return store


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
    """Add `--format`, how a table is printed, and `--json`, which is short for one of them."""

    def add(command: F) -> F:
        short = click.option(
            *("--json", "as_json"),
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_ask_for_json,
            help="The same as --format json.",
        )
        return click.option(
            "--format", "fmt", type=click.Choice(of), default="table", callback=_form, help="How the table is printed."
        )(short(command))

    return add


def _ask_for_json(context: click.Context, _param: click.Parameter, asked: bool) -> None:
    context.meta["layercache.json"] = asked


def _form(context: click.Context, _param: click.Parameter, form: str) -> str:
    """Return the format asked for; --json is one way to ask for it."""
    if not context.meta.get("layercache.json"):
        return form
    if form not in ("table", "json"):
        raise click.UsageError(f"--json and --format {form} exclude each other", context)
    return "json"


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


def engine_options(command: F) -> F:
    """Add `--engine` and `--address`: where independent pieces of work are done."""
    from layercache.engine import NAMES

    address = click.option(
        "--address", help="A running Ray cluster: auto, HOST:PORT or ray://HOST:PORT; started here when not given."
    )
    return click.option(
        "--engine",
        type=click.Choice(NAMES),
        default="local",
        show_default=True,
        help="Where the work is done: in this process, or on Ray, here or on a cluster.",
    )(address(command))


def workers_option(command: F) -> F:
    """Add `--workers`, the processes of an extraction on Ray."""
    return click.option(
        "--workers",
        type=click.IntRange(1),
        help="With --engine ray: processes that hold a model; one on every GPU when not given, or on every machine.",
    )(command)


def dry_run_option(command: F) -> F:
    """Add `--dry-run`, of commands that extract."""
    return click.option(
        "--dry-run",
        is_flag=False,
        flag_value="plan",
        type=click.Choice(["plan", "measure"]),
        help="Say what would be done, and what it takes; write nothing. =measure runs a few batches to say how long.",
    )(command)


def shard_option(command: F) -> F:
    """Add `--shard`, a part of the samples."""
    return click.option(
        "--shard", metavar="I/N", help="Run part I of N of the samples; parts need not know of each other."
    )(command)


def devices_option(command: F) -> F:
    """Add `--devices`, a process on each."""
    return click.option(
        "--devices", metavar="A,B,…", help="Devices, a process on each: 0,1 (GPUs by number), all, or cpu,cpu."
    )(command)


def device_names(text: str | None) -> list[str]:
    """Read `0,1` as names of devices.

    Raises:
        RecipeError: a name is empty.
    """
    names = [] if text is None else [name.strip() for name in text.split(",")]
    if "" in names:
        raise RecipeError(f"--devices {text!r}: give devices separated by commas (0,1)")
    return [f"cuda:{name}" if name.isdecimal() else name for name in names]


def check_engine(engine: str, workers: int | None, devices: str | None) -> None:
    """Refuse options that do not go together.

    Raises:
        RecipeError: names the two.
    """
    if engine == "local" and workers is not None:
        raise RecipeError(f"--workers {workers} goes with --engine ray; on this machine use --devices")
    if engine != "local" and devices is not None:
        raise RecipeError(f"--devices and --engine {engine} exclude each other: use --workers")


def plain(value: Any) -> Any:
    """Make the tuple of an option that may be repeated a list."""
    return list(value) if isinstance(value, tuple) else value


def numbers(text: str | None) -> list[int] | None:
    """Read `0,4,8`.

    Raises:
        RecipeError: it is something else.
    """
    if text is None:
        return None
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise RecipeError(f"--layers {text!r}: give numbers separated by commas (0,4,8)")
    return [int(part) for part in text.split(",")]
