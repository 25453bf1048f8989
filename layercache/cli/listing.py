"""`layercache ls` and `layercache show`: what a store holds."""

import sys
from pathlib import Path

import click

from layercache.cli import completion
from layercache.cli.options import json_option, quiet_option, store_option
from layercache.cli.output import print_json, reporter, width


@click.command()
@store_option
@quiet_option
@json_option
def ls(store: Path, quiet: bool, as_json: bool) -> None:
    """List the runs of the store.

    \b
    layercache ls --store demo-store
    layercache ls --json
    """
    from layercache import listing, table
    from layercache.store import reader

    runs = listing.runs(reader.open(store))
    if as_json:
        print_json(runs.to_pylist())
    else:
        # Few stores hold answers, and a column of nothing tells nobody what it is of.
        shown = runs if runs["prompts"].null_count < len(runs) else runs.drop_columns(["prompts"])
        table.write(shown, "table", sys.stdout.buffer, width=width())
    if note := listing.litter(store):
        reporter(quiet).note(note)


@click.command()
@click.argument("run_name", metavar="RUN", shell_complete=completion.runs)
@store_option
@json_option
def show(run_name: str, store: Path, as_json: bool) -> None:
    """Show one run: its settings, layers, data sets, outputs.

    RUN is a run's id, the beginning of one, or a model's name.

    \b
    layercache show demo --store movies-store
    """
    from layercache import listing
    from layercache.store import reader

    described = listing.describe(reader.open(store), run_name)
    if as_json:
        print_json(described)
    else:
        click.echo(listing.as_text(described))
