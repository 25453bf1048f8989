"""`layercache ls` and `layercache show`: what a store holds."""

import sys
from pathlib import Path

import click

from layercache.cli.options import json_option, store_option
from layercache.cli.output import print_json, width


@click.command()
@store_option
@json_option
def ls(store: Path, as_json: bool) -> None:
    """List the runs of the store."""
    from layercache import listing, table
    from layercache.store import reader

    runs = listing.runs(reader.open(store))
    if as_json:
        print_json(runs.to_pylist())
    else:
        table.write(runs, "table", sys.stdout.buffer, width=width())
    if note := listing.litter(store):
        click.echo(note, err=True)


@click.command()
@click.argument("run_name", metavar="RUN")
@store_option
@json_option
def show(run_name: str, store: Path, as_json: bool) -> None:
    """Show one run: its settings, layers, data sets, outputs."""
    from layercache import listing
    from layercache.store import reader

    described = listing.describe(reader.open(store), run_name)
    if as_json:
        print_json(described)
    else:
        click.echo(listing.as_text(described))
