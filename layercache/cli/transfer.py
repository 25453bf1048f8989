"""`push` and `pull`: copies between stores."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from layercache.cli.options import F, json_option, numbers, quiet_option, store_option
from layercache.cli.output import print_json, reporter


def selection_options(command: F) -> F:
    """Add the options that choose what of a store is copied."""
    options: list[Callable[[F], F]] = [
        click.option("--run", "runs", multiple=True, help="Only this run, by id or model; may be repeated."),
        click.option("--condition", "conditions", multiple=True, help="Only this condition; may be repeated."),
        click.option("--data", multiple=True, help="Only this data set, and its samples; may be repeated."),
        click.option(
            "--tables",
            help="Tables, separated by commas: samples, tokens, hidden, lens, token_stats, generations, rows, heads,"
            " recipes, results. samples come with every table of a shard.",
        ),
        click.option(
            "--outputs", help="Outputs by name or a part of it (mean@prompt, lens, stats:*), separated by commas."
        ),
        click.option("--layers", help="Layers, separated by commas."),
        click.option("--dry-run", is_flag=True, help="Say how much there is to copy; copy nothing."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _asked(chosen: dict[str, Any]) -> Any:
    from layercache.store.selection import Selection

    def names(text: str | None) -> tuple[str, ...]:
        return tuple(part.strip() for part in (text or "").split(",") if part.strip())

    return Selection(
        runs=chosen["runs"],
        conditions=chosen["conditions"],
        data=chosen["data"],
        tables=names(chosen["tables"]),
        outputs=names(chosen["outputs"]),
        layers=tuple(sorted(set(numbers(chosen["layers"]) or ()))),
    )


def _say(done: Any, progress: Any, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        print_json(asdict(done))
        return
    for note in done.notes:
        progress.note(note)
    click.echo(str(done))


@click.command()
@click.argument("target")
@selection_options
@click.option("--private/--public", default=True, show_default=True, help="Who may see a repository that is made.")
@store_option
@quiet_option
@json_option
def push(target: str, private: bool, dry_run: bool, store: Path, quiet: bool, as_json: bool, **chosen: Any) -> None:
    """Copy the store, or a part of it, to another place.

    TARGET is a folder, a bucket (s3://bucket/prefix) or a dataset repository on the Hugging Face Hub:
    hf://datasets/USER/NAME, optionally with @BRANCH. What is there stays; a push that was stopped goes on where it was.

    \b
    layercache push /mnt/shared/store
    layercache push hf://datasets/me/films-layers --run demo
    """
    from layercache import transfer

    progress = reporter(quiet)
    done = transfer.push(store, target, _asked(chosen), progress, dry_run=dry_run, private=private)
    _say(done, progress, as_json)


@click.command()
@click.argument("source")
@selection_options
@store_option
@quiet_option
@json_option
def pull(source: str, dry_run: bool, store: Path, quiet: bool, as_json: bool, **chosen: Any) -> None:
    """Copy another store, or a part of it, into the store.

    SOURCE is a folder, a bucket (s3://bucket/prefix) or a dataset repository on the Hugging Face Hub:
    hf://datasets/USER/NAME, optionally with @REVISION. Of a part only that part is read. What is there stays; a pull that was stopped goes on where it was.

    \b
    layercache pull /mnt/shared/store --outputs mean@prompt --layers 8,16
    layercache pull hf://datasets/me/films-layers --tables lens,rows
    """
    from layercache import transfer

    progress = reporter(quiet)
    _say(transfer.pull(source, store, _asked(chosen), progress, dry_run=dry_run), progress, as_json)
