"""`layercache export` and `layercache import`: states from and for other tools."""

from pathlib import Path
from typing import Any

import click

from layercache.cli import completion
from layercache.cli.options import json_option, limit_options, numbers, param_option, plain, quiet_option, store_option
from layercache.cli.output import print_json, reporter
from layercache.cli.query import ask
from layercache.errors import RecipeError


@click.command()
@click.argument("run_name", metavar="[RUN]", required=False, shell_complete=completion.runs)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder, or of a query the file.")
@click.option(
    "--format", "fmt", help="Of a run npz, npy, safetensors, csv or hf; of a query the file's suffix, or hf (a folder)."
)
@click.option("--pooling", help="Poolings to export (last@prompt), separated by commas; all when not given.")
@click.option("--layers", help="Layers, separated by commas; all when not given.")
@click.option("--site", default="resid", show_default=True, help="resid, attn_out or mlp_out.")
@click.option(
    "--condition",
    default="clean",
    show_default=True,
    shell_complete=completion.conditions,
    help="How the model was run.",
)
@click.option(
    "--data",
    shell_complete=completion.data_sets,
    help="The data set whose rows are the lines, where the run has several.",
)
@click.option("--sql", "query", help="Export the rows of a SELECT.")
@click.option("--query", "named", shell_complete=completion.queries, help="Export a query that ships with layercache.")
@param_option
@limit_options
@store_option
@quiet_option
@json_option
def export(
    run_name: str | None,
    out: Path,
    fmt: str | None,
    query: str | None,
    named: str | None,
    params: tuple[str, ...],
    memory: str,
    timeout: float,
    store: Path,
    quiet: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Write states, labels and rows of a run, or the rows of a query, for other tools.

    Of a run, line i of every array is line i of the rows. `hf` is a Hugging Face data set folder.

    \b
    layercache export Llama-3.2-1B --pooling last --layers 0,8,16 --format npz -o llama
    layercache export --query entropy_by_layer -o entropy.csv
    """
    from layercache import exchange
    from layercache.store import reader

    progress = reporter(quiet)
    if (run_name is not None) + (query is not None) + (named is not None) != 1:
        raise RecipeError("give one of RUN, --sql SELECT and --query NAME")
    if run_name is None:
        unused = next((name for name in ("pooling", "layers", "data") if chosen[name] is not None), None)
        if unused is not None:
            raise RecipeError(f"--{unused} goes with RUN; of a query, choose in its WHERE")
        result = ask(store, query, named, params, memory, timeout)
        exchange.export_table(result, out, fmt)
        what, counts = f"{result.num_rows:,} rows", {"rows": result.num_rows}
    else:
        opened, settings = reader.open(store), _chosen(chosen)
        done = exchange.export_run(opened, run_name, out, fmt or "npz", **settings, progress=progress)
        what = f"{len(done.rows):,} rows, {len(done.places)} arrays"
        what += f"; {done.left_out:,} rows without all of them are left out" if done.left_out else ""
        counts = {"rows": len(done.rows), "arrays": len(done.places), "left_out": done.left_out}
    if as_json:
        print_json({"out": out, **counts})
    progress.note(f"{out}: {what}")


def _chosen(options: dict[str, Any]) -> dict[str, Any]:
    layers, pooling = options.pop("layers"), options.pop("pooling")
    return {
        **options,
        "layers": numbers(layers),
        "poolings": None if pooling is None else [one.strip() for one in pooling.split(",")],
    }


@click.command("import")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
@click.option("--model", help="Whose states they are; an export of layercache knows it.")
@click.option("--layers", help="The layers' numbers in order, separated by commas; 0 is the embedding output.")
@click.option("--pooling", help="How a prompt's tokens became one state (mean, last@question); of vLLM's, how they do.")
@click.option("--site", default="resid", show_default=True, help="resid, attn_out or mlp_out.")
@click.option("--key", help="Name of the array that holds the states, where a file has several.")
@click.option(
    "--data",
    "source",
    shell_complete=completion.sources,
    help="The prompts and labels: any data file that extract reads.",
)
@click.option("--prompt", "template", help='Prompt template: "Title: {title}".')
@click.option("--id", "id_column", help="Column that names each row's line of states; by row order when not given.")
@click.option("--name", help="What the data set is called in the store.")
@click.option("--label", "labels", multiple=True, metavar="NAME:KIND", help="KIND: number, category, boolean, text.")
@click.option("--split", help="Column naming each row's split.")
@click.option("--group-by", help="Column whose equal values never straddle a fold.")
@click.option("--missing", multiple=True, help="A cell that means no value (N/A); may be repeated.")
@click.option("--final-layer", type=int, help="Number of the layer after the last block; the highest when not given.")
@click.option("--precision", type=click.IntRange(1, 23), default=23, show_default=True, help="Mantissa bits kept.")
@click.option("--allow-nonfinite", is_flag=True, help="Keep infinities and NaN.")
@store_option
@quiet_option
@json_option
def import_(
    paths: tuple[Path, ...],
    layers: str | None,
    pooling: str | None,
    site: str,
    key: str | None,
    store: Path,
    quiet: bool,
    as_json: bool,
    model: str | None,
    id_column: str | None,
    final_layer: int | None,
    precision: int,
    allow_nonfinite: bool,
    **flags: Any,
) -> None:
    """Store states that you already have as a run.

    PATH is .npy, .npz or .safetensors with arrays [n, d] or [n, layers, d], a folder of the files that vLLM's
    extract_hidden_states writes, or a folder that `layercache export` wrote.

    \b
    layercache import states.npy --model my-llama --layers 0,8,16 --pooling last \\
        --data films.csv --prompt "{title}" --label rating:number
    """
    from dataclasses import asdict

    from layercache import exchange, recipe

    given = {name: plain(value) for name, value in flags.items() if value not in (None, ())}
    data = recipe.validate(recipe.DataSpec, given, where="--data") if "source" in given else None
    if data is None and given:
        raise RecipeError(f"--{next(iter(given)).replace('_', '-')} goes with --data")
    source = exchange.Source(model, data, id_column, final_layer, precision, allow_nonfinite)
    asked = exchange.Asked(numbers(layers), pooling, site, key)
    done = exchange.import_states(paths, store, source, asked, reporter(quiet))
    if as_json:
        print_json(asdict(done))
    else:
        click.echo(str(done))
