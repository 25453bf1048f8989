"""`layercache init` and `layercache doctor`: before the first run."""

import sys
from pathlib import Path

import click

from layercache.cli import completion, mistakes, stopping
from layercache.cli.options import json_option, quiet_option, store_option
from layercache.cli.output import print_json, reporter
from layercache.errors import RecipeError


@click.command()
@click.argument("data", metavar="DATA", shell_complete=completion.sources)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Recipe to write; the data set's name and .toml.")
@click.option("--model", default="demo", show_default=True, shell_complete=completion.models, help="Model to run.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@quiet_option
@json_option
def init(data: str, out: Path | None, model: str, force: bool, quiet: bool, as_json: bool) -> None:
    """Write a recipe for a data file, with comments, by looking at its columns.

    DATA is any file that extract reads, hf:NAME or demo:NAME. What the prompt, the labels, answers, split and groups are is
    guessed and said on stderr; the recipe runs as it is, and is yours to change.

    \b
    layercache init films.csv
    layercache init demo:movies --model demo:early -o films.toml
    """
    from layercache import drafting

    drafted = drafting.draft(data, model)
    path = out or Path(f"{drafted.name}.toml")
    _write(path, drafted.text, force=force)
    progress = reporter(quiet)
    for guess in drafted.guesses:
        progress.note(mistakes.one_line(f"{guess.what}: {guess.value} ({guess.why})"))
    if as_json:
        print_json({"recipe": path, "rows": drafted.rows, "guesses": [guess._asdict() for guess in drafted.guesses]})
    else:
        click.echo(path)
    few = ["--set", f"data.limit={drafted.trial}"] if drafted.trial and drafted.trial < drafted.rows else []
    progress.note(f"next: {stopping.command(['layercache', 'run', str(path), *few, '--store', f'{path.stem}-store'])}")


def _write(path: Path, text: str, *, force: bool) -> None:
    """Write a new file, or over an old one when that is allowed."""
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise RecipeError(f"{path} is there already: choose another with -o, or write over it with --force") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be written: {error.strerror}") from error


@click.command()
@click.option("--model", shell_complete=completion.models, help="Say whether this model can be loaded here.")
@store_option
@json_option
def doctor(model: str | None, store: Path, as_json: bool) -> None:
    """Say what is installed, which devices there are, whether a model would load, and how the store is.

    Nothing is downloaded and no weights are read. Exit code 2 when the --model cannot be loaded here.

    \b
    layercache doctor
    layercache doctor --model demo --store demo-store
    """
    from layercache import doctor as examination
    from layercache.listing import as_text

    found = examination.examine(store, model)
    if as_json:
        print_json(found)
    else:
        click.echo(as_text(examination.told(found)))
    sys.exit(2 if model is not None and not found["model"]["loads"] else 0)
