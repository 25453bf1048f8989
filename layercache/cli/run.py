"""`layercache run` and `layercache finetune`: whole studies."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from layercache.cli import completion
from layercache.cli.options import (
    check_engine,
    device_names,
    devices_option,
    dry_run_option,
    engine_options,
    format_option,
    json_option,
    quiet_option,
    set_option,
    store_option,
    workers_option,
)
from layercache.cli.output import print_json, reporter, say_analysed, say_extracted, width
from layercache.errors import RecipeError

if TYPE_CHECKING:
    from layercache.recipe import Recipe


@click.command()
@click.argument("recipe_name", metavar="RECIPE", shell_complete=completion.recipes)
@set_option
@dry_run_option
@store_option
@quiet_option
@json_option
@click.option("--shard", hidden=True)
@devices_option
@engine_options
@workers_option
def run(
    recipe_name: str,
    settings: tuple[str, ...],
    dry_run: str | None,
    store: Path,
    quiet: bool,
    as_json: bool,
    shard: str | None,
    devices: str | None,
    engine: str,
    address: str | None,
    workers: int | None,
) -> None:
    """Run a study: train adapters where it asks for any, extract, analyse, report.

    RECIPE is a TOML file, or the name of one that ships with layercache (demo, movies, layer_generation,
    truth_pathways, boolq_lora, representation_quality, sample). The VALUE of a
    setting is TOML or plain text. The last two lines are the slow studies made small.

    \b
    layercache run demo --store demo-store
    layercache run movies --dry-run
    layercache run movies --set models=gpt2,./my-llama --set data.source=action.csv
    layercache run boolq_lora --set finetune.seeds=0 --set finetune.alpha=0,64
    layercache run representation_quality --set data.0.limit=120 --set data.1.limit=120
    """
    from dataclasses import asdict

    from layercache import engine as engines
    from layercache import recipe, study

    if shard is not None:
        raise RecipeError(
            f"only extraction is done by parts: `layercache extract {recipe_name} --shard {shard}` for every part, then"
            " this command without --shard for the rest"
        )
    progress = reporter(quiet)
    check_engine(engine, workers, devices)
    asked, names = recipe.load(recipe_name, settings), device_names(devices)
    if dry_run is not None:
        _say_planned(asked, store, progress, dry_run, as_json=as_json)
        return
    with engines.on(engine, address):
        result = study.run(asked, store, progress, devices=names, workers=workers)
    if as_json:
        extracted = [asdict(summary) for summary in result.extracted]
        analysed = [{"kind": one.kind, "path": one.path, "cached": one.cached} for one in result.analysed]
        print_json({"extracted": extracted, "analysed": analysed, "report": result.report})
        return
    say_extracted(result.extracted, progress)
    say_analysed(result.analysed, progress)
    if result.report is not None:
        click.echo(f"report: {result.report.resolve()}")


def _say_planned(asked: "Recipe", store: Path, progress: Any, dry_run: str, *, as_json: bool) -> None:
    """Print what a study would do: its extraction as `layercache extract --dry-run` does, and what follows it."""
    from dataclasses import asdict

    from layercache import study

    planned = study.extract(asked, store, progress, dry_run="measure" if dry_run == "measure" else True)
    kinds = [spec.kind for spec in study.in_order(asked.analyze)]
    if as_json:
        print_json({"extracted": [asdict(summary) for summary in planned], "to_analyse": kinds})
        return
    for summary in planned:
        click.echo(str(summary))
    click.echo(f"then: analyze {', '.join(kinds)}, and write the report" if kinds else "then: nothing to analyse")


@click.command()
@click.argument("recipe_name", metavar="RECIPE", shell_complete=completion.recipes)
@set_option
@click.option("--dry-run", is_flag=True, help="Train nothing: say what is there, and what is wrong with the grid.")
@format_option()
@store_option
@quiet_option
def finetune(recipe_name: str, settings: tuple[str, ...], dry_run: bool, fmt: str, store: Path, quiet: bool) -> None:
    """Train the grid of LoRA adapters that a recipe asks for, and print what each can do.

    The table [finetune] of the RECIPE says which. An adapter that is there is not trained again, so the same command
    goes on where it was stopped; the adapters lie beside the store, in STORE-adapters, and `layercache extract` with the
    same recipe takes those that are there.

    \b
    layercache finetune boolq_lora --dry-run
    layercache finetune boolq_lora --set finetune.r=1,16 --set finetune.alpha=1,16,256
    """
    import pyarrow as pa

    from layercache import recipe, study, table

    progress = reporter(quiet)
    tuned = study.finetune(recipe.load(recipe_name, settings), store, progress, dry_run=dry_run)
    for one in tuned:
        progress.note(f"{one.model}: {one.trained:,} adapters trained, results in {one.folder / 'results.csv'}")
    table.write(pa.concat_tables([one.arrow() for one in tuned]), fmt, sys.stdout.buffer, width=width())
    sys.stdout.flush()
    for one in tuned:
        if (best := one.chosen) is not None:
            progress.note(
                f"{one.model}: chosen by the {best['validation_rows']:,} rows to validate on: {best['adapter']}, accuracy"
                f" {best['validation_accuracy']:.3f} there"
            )
