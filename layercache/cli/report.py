"""`layercache report` and `layercache plot`: pages and charts."""

from pathlib import Path

import click

from layercache.cli import completion
from layercache.cli.options import json_option, quiet_option, store_option
from layercache.cli.output import print_json, reporter
from layercache.errors import RecipeError


@click.command()
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="HTML file; report.html in the store when not given."
)
@click.option("--title", help="Title of the page; the newest recipe's title or name when not given.")
@click.option("--samples", type=int, default=40, show_default=True, help="Samples with every panel; 0 for no browser.")
@click.option("--sample", "show", multiple=True, metavar="ID", help="Show this sample whole, too: an id, or DATA:ROW.")
@store_option
@quiet_option
@json_option
def report(
    out: Path | None, title: str | None, samples: int, show: tuple[str, ...], store: Path, quiet: bool, as_json: bool
) -> None:
    """Write one self-contained HTML page about everything in the store.

    \b
    layercache report --store demo-store
    layercache report --samples 100 --title "Films, layer by layer" -o films.html
    layercache report --sample movies:12 -o films.html
    """
    from layercache import recipe
    from layercache import report as reports
    from layercache.store import mirror, reader

    spec = recipe.validate(recipe.ReportSpec, {"samples": samples, "show": list(show)}, where="report")
    opened = reader.open(store)
    if out is None and opened.frozen:
        raise RecipeError(f"{store} is frozen, nothing is written into it: say where the page goes with -o FILE")
    page = reports.build(opened, out or mirror.beside(store, "report.html"), spec, title, reporter(quiet))
    if as_json:
        print_json({"report": page})
    else:
        click.echo(page)


@click.command()
@click.argument("name", shell_complete=completion.plots)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="File: .svg, .png, .pdf, .html or .json; NAME.svg when not given.",
)
@click.option(
    "--only",
    default="",
    metavar="WORDS",
    help="Of several charts those whose titles begin so; else the charts, or panels, whose titles have these words.",
)
@store_option
@json_option
def plot(name: str, out: Path | None, only: str, store: Path, as_json: bool) -> None:
    """Draw charts of the report into a file.

    NAME is probe, predictions, entropy, agreement, distance, target, depth, text, quantisation, consistency, delta_p,
    pathways, quality, distributions, cka, mutual_knn, perturbations, transfer, run_transfer, concept_depth, checkpoints,
    answers, rank_alpha, adaptation, tokens or lens.

    \b
    layercache plot probe -o probe.svg
    layercache plot entropy --store demo-store -o entropy.png
    layercache plot probe --only "rating mean@prompt" --store demo-store
    layercache plot probe --only "macro F1" --store demo-store
    """
    from layercache import report as reports
    from layercache.store import reader

    drawn = reports.plot(reader.open(store), name, out or Path(f"{name}.svg"), only)
    if as_json:
        print_json({"plot": drawn})
    else:
        click.echo(drawn)
