"""`layercache extract`: models on data, from a recipe or from options."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from layercache.cli import completion
from layercache.cli.options import (
    check_engine,
    device_names,
    devices_option,
    dry_run_option,
    engine_options,
    json_option,
    plain,
    quiet_option,
    set_option,
    shard_option,
    store_option,
    workers_option,
)
from layercache.cli.output import print_json, reporter
from layercache.errors import RecipeError

EXTRACT_OPTIONS = (
    *("pooling", "sites", "layers", "lens", "top_k", "choices", "stats", "spectrum_sample", "sink_cutoff"),
    *("dtype", "device", "device_map", "max_memory", "attn", "quantize", "compile", "reference", "truncate"),
    *("batch_tokens", "precision", "allow_nonfinite", "trust_remote_code", "save_head"),
    *("generate_layers", "max_new_tokens", "stop", "temperature", "sample_top_k", "sample_top_p", "generate_seed"),
    *("no_final_norm", "generate_answer"),
    *("conditions", "augment", "augment_rate", "condition_seed", "control_from"),
)
DATA_OPTIONS = (
    *("name", "template", "chat", "labels", "target", "split", "group_by", "missing", "limit"),
    *("exact_answer", "spans"),
)


@click.command()
@click.argument("recipe_name", metavar="[RECIPE]", required=False, shell_complete=completion.recipes)
@set_option
@click.option(
    "--model",
    "models",
    multiple=True,
    shell_complete=completion.models,
    help="A folder, a hub name, or demo; may be repeated.",
)
@click.option(
    "--data",
    "source",
    shell_complete=completion.sources,
    help="CSV, TSV, JSON, JSONL, Parquet, text file, hf:NAME or demo:NAME.",
)
@click.option("--prompt", "template", help='Prompt template: "Title: {title}". Every field becomes a span.')
@click.option("--name", help="What the data set is called in the store.")
@click.option("--label", "labels", multiple=True, metavar="NAME:KIND", help="KIND: number, category, boolean, text.")
@click.option("--chat", is_flag=True, default=None, help="Render through the tokenizer's chat template.")
@click.option("--target", help="Column whose first token the lens follows.")
@click.option("--answer", multiple=True, metavar="COLUMN", help="Column with the right text; may be repeated.")
@click.option("--exact-answer", metavar="COLUMN", help="Column with the words of an answer that are the exact one.")
@click.option(
    "--span",
    "spans",
    multiple=True,
    metavar="COLUMN@FIELD",
    help="A column's text makes a span where it is in a field.",
)
@click.option("--split", help="Column naming each row's split.")
@click.option("--group-by", help="Column whose equal values never straddle a fold.")
@click.option("--missing", multiple=True, help="A cell that means no value (N/A); may be repeated.")
@click.option("--limit", type=int, help="Use only the first rows.")
@click.option(
    "--pooling",
    help="mean, max, first, last, mean+special, mean-sinks, token, optionally @a span; separated by commas.",
)
@click.option("--sites", help="resid, attn_out, mlp_out; separated by commas.")
@click.option("--layers", help="Layer numbers separated by commas, or all. 0 is the embedding output.")
@click.option("--lens", help="Positions of the logit lens (last, last@question, token for every token), or none.")
@click.option("--top-k", type=int, help="Tokens the lens keeps.")
@click.option(
    "--choice", "choices", multiple=True, help='An answer the lens scores at last, verbatim (" true"); may be repeated.'
)
@click.option(
    "--stats",
    help="Statistics over tokens, separated by commas: norm, max_norm, sinks, mean_cosine, curvature, prompt_entropy,"
    " effective_rank, first_pc_share; options +centre, +unit, -first; of an entropy the order (prompt_entropy2).",
)
@click.option("--spectrum-sample", type=int, help="Take those that need eigenvalues of this many samples only.")
@click.option("--sink-cutoff", type=float, help="Norm of an attention sink, in medians of the sample's tokens.")
@click.option("--dtype", help="auto, float32, bfloat16, float16.")
@click.option("--device", help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--device-map", help="Spread the layers over all GPUs: auto, balanced, sequential.")
@click.option(
    "--max-memory", metavar="DEVICE=SIZE,…", help="What weights may take, with --device-map: 0=20GB,cpu=60GB."
)
@click.option("--attn", help="auto, eager, sdpa, flex_attention, flash_attention_2.")
@click.option("--quantize", help="int8 or nf4: quantise the linear layers inside the blocks (bitsandbytes).")
@click.option("--adapter", help="Folder of a PEFT adapter (LoRA) trained on the --model.")
@click.option("--compile", is_flag=True, default=None, help="Let torch compile every block (--sites resid only).")
@click.option("--reference", type=int, help="Measure the noise on this many samples run in float32; loads it twice.")
@click.option("--truncate", is_flag=True, default=None, help="Cut prompts that are longer than the context.")
@click.option("--batch-tokens", type=int, help="Padded tokens a batch may hold; found when not given.")
@click.option("--precision", type=int, help="Mantissa bits kept: 7, 10 or 23.")
@click.option("--allow-nonfinite", is_flag=True, default=None, help="Keep infinities and NaN.")
@click.option("--save-head", is_flag=True, default=None, help="Keep norm and unembedding, for `layercache lens`.")
@click.option("--trust-remote-code", is_flag=True, default=None, help="Run code that comes with a hub model.")
@click.option("--generate-layers", help="Layers that text is generated from, separated by commas, or all.")
@click.option(
    "--generate-answer", is_flag=True, default=None, help="Let the model answer, and capture prompt and answer."
)
@click.option("--max-new-tokens", type=int, help="Tokens a text may have; when not given 128, of an answer 32.")
@click.option("--stop", multiple=True, metavar="TEXT", help="A string that ends a text; may be repeated.")
@click.option("--temperature", type=float, help="Temperature of sampling; 0 takes the most probable token.")
@click.option("--sample-top-k", type=int, help="Sample only from so many most probable tokens.")
@click.option("--sample-top-p", type=float, help="Sample only from the tokens that together have this probability.")
@click.option("--generate-seed", type=int, help="Seed of sampling.")
@click.option("--no-final-norm", is_flag=True, default=None, help="Generate without the model's final norm.")
@click.option(
    "--condition",
    "conditions",
    multiple=True,
    help="Run changed prompts too: knockout-SPAN, control-SPAN, patch-SPAN, control-patch-SPAN, answer-only, repeat-P,"
    " random-P, truncate-N; may be repeated.",
)
@click.option("--augment", type=int, help="Run so many views of every prompt, with typos (augment-1, augment-2).")
@click.option("--augment-rate", type=float, help="Share of words, and of their characters, a view changes; 0.3.")
@click.option("--condition-seed", type=int, help="Seed of what conditions draw.")
@click.option("--control-from", help="Span that control tokens are drawn from; the prompt when not given.")
@dry_run_option
@store_option
@quiet_option
@shard_option
@devices_option
@engine_options
@workers_option
@json_option
def extract(
    recipe_name: str | None,
    settings: tuple[str, ...],
    store: Path,
    quiet: bool,
    as_json: bool,
    dry_run: str | None,
    shard: str | None,
    devices: str | None,
    engine: str,
    address: str | None,
    workers: int | None,
    **flags: Any,
) -> None:
    """Run models on data and keep what every layer said.

    Give a RECIPE, or --model and --data. What the store already holds is not run again.

    \b
    layercache extract --model ./llama --data films.csv --prompt "Title: {title}" --label rating:number
    layercache extract demo --dry-run
    layercache extract demo --shard 0/4
    """
    from dataclasses import asdict

    from layercache import engine as engines
    from layercache import parts, study

    progress = reporter(quiet)
    part = None if shard is None else parts.parse(shard)
    asked = recipe_from(recipe_name, settings, flags)
    only_say: Any = "measure" if dry_run == "measure" else bool(dry_run)
    check_engine(engine, workers, devices)
    names = device_names(devices)
    # What would be done is found out without a cluster.
    with engines.on(engine, address) if not only_say else nullcontext():
        summaries = study.extract(asked, store, progress, dry_run=only_say, part=part, devices=names, workers=workers)
    if as_json:
        print_json([asdict(summary) for summary in summaries])
        return
    for summary in summaries:
        click.echo(str(summary))


@click.command()
@click.argument("recipe_name", metavar="RECIPE")
@set_option
@click.option("--shards", required=True, type=click.IntRange(1, 1_000_000), help="Parts that the work is cut into.")
@click.option("--format", "fmt", type=click.Choice(["slurm", "sh", "json"]), default="sh", show_default=True)
@store_option
@quiet_option
def plan(recipe_name: str, settings: tuple[str, ...], shards: int, fmt: str, store: Path, quiet: bool) -> None:
    """Print the jobs that do what is missing of a RECIPE's extraction, part by part.

    Each is one `layercache extract --shard`, to be run from this folder; parts that lack nothing are left out. slurm is
    a script for sbatch, sh a command a line (for GNU parallel), json says of each what it takes.

    \b
    layercache plan movies --shards 16 --format slurm | sbatch
    layercache plan movies --shards 16 | parallel -j 4
    """
    import os
    import sys

    from layercache import jobs, recipe, study
    from layercache.store import mirror

    progress = reporter(quiet)
    works = study.plan(recipe.load(recipe_name, settings), store, progress, shards)
    if not works:
        progress.note("nothing is missing: there is no job to run")
    for work in works if fmt == "sh" else []:
        progress.note(jobs.told(work))
    if works or fmt == "json":
        text = jobs.FORMATS[fmt](jobs.Command(recipe_name, settings, mirror.name(store), shards), works)
        # A path may hold bytes that are no text.
        sys.stdout.buffer.write(os.fsencode(f"{text}\n"))


def recipe_from(recipe_name: str | None, settings: tuple[str, ...], flags: dict[str, Any]) -> Any:
    """Build a recipe from a name and overrides, or from flags alone.

    Raises:
        RecipeError: both are given, or too little is, or a value is not allowed.
    """
    from layercache import dataset, recipe

    given = {key: plain(value) for key, value in flags.items() if value not in (None, ())}
    if given.get("lens") == "none":
        given["lens"] = []
    if recipe_name is not None:
        if given:
            flag = "--" + next(iter(given)).replace("_", "-")
            raise RecipeError(f"{flag} goes with --model and --data; with a recipe use --set KEY=VALUE")
        return recipe.load(recipe_name, settings)
    if "models" not in given or "source" not in given:
        raise RecipeError("give a recipe, or --model and --data (try: layercache extract demo --dry-run)")
    data = {"source": given["source"], **{key: given[key] for key in DATA_OPTIONS if key in given}}
    if "answer" in given:
        data["answers" if given.get("generate_answer") else "reference"] = given["answer"]
    extraction = {key: given[key] for key in EXTRACT_OPTIONS if key in given}
    name = dataset.data_name(recipe.validate(recipe.DataSpec, data, where="--data"))
    models = given["models"]
    if "adapter" in given:
        if len(models) != 1:
            raise RecipeError("--adapter goes with one --model; a recipe can name an adapter for each")
        models = [{"model": models[0], "adapter": given["adapter"]}]
    table = {"name": name, "models": models, "data": data, "extract": extraction}
    for setting in settings:
        recipe.override(table, setting)
    return recipe.build(table, where="command line")
