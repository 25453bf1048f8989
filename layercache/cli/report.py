"""`layercache report` and `layercache plot`: pages and charts."""

from pathlib import Path

import click

from layercache.cli.options import store_option
from layercache.errors import RecipeError


@click.command()
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="HTML file; report.html in the store when not given."
)
@click.option("--title", help="Title of the page.")
@click.option("--samples", type=int, default=4, show_default=True, help="Samples shown one by one.")
@store_option
def report(out: Path | None, title: str | None, samples: int, store: Path) -> None:
    """Write one self-contained HTML page about everything in the store."""
    from layercache import recipe
    from layercache import report as reports
    from layercache.store import reader

    spec = recipe.validate(recipe.ReportSpec, {"samples": samples}, where="report")
    opened = reader.open(store)
    if out is None and opened.frozen:
        raise RecipeError(f"{store} is frozen, nothing is written into it: say where the page goes with -o FILE")
    click.echo(reports.build(opened, out or store / "report.html", spec, title))


@click.command()
@click.argument("name")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="File: .svg, .png, .pdf, .html or .json."
)
@store_option
def plot(name: str, out: Path, store: Path) -> None:
    """Draw one chart of the report into a file.

    NAME is probe, predictions, entropy, agreement, distance, target, depth, text, quantisation, consistency, delta_p,
    pathways, quality, distributions, cka, mutual_knn, perturbations, transfer, run_transfer, concept_depth, checkpoints,
    answers, rank_alpha, adaptation, tokens or lens.
    """
    from layercache import report as reports
    from layercache.store import reader

    click.echo(reports.plot(reader.open(store), name, out))
