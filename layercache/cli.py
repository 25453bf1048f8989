"""The command line: parse, call, print. No logic lives here, and nothing heavy is imported before a command runs.

layercache run demo --store demo-store
layercache sql "SELECT * FROM runs" --store demo-store
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from layercache import __version__
from layercache.errors import LayercacheError, RecipeError

F = TypeVar("F", bound=Callable[..., Any])

EXTRACT_OPTIONS = (
    *("pooling", "sites", "layers", "lens", "top_k", "dtype", "device", "attn", "truncate"),
    *("batch_tokens", "precision", "allow_nonfinite", "trust_remote_code"),
)
DATA_OPTIONS = ("name", "template", "chat", "labels", "target", "split", "group_by", "missing", "limit")


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except LayercacheError as error:
        _fail(str(error))
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        help_command = f" (see {context.command_path} --help)" if context else ""
        _fail(error.format_message() + help_command)
    except (click.Abort, KeyboardInterrupt):
        click.echo("\ninterrupted: what is published is safe; the same command again does the rest", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has gone: not an error, but the interpreter must not try to flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _fail(message: str) -> None:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(2)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "LAYERCACHE"})
@click.version_option(__version__, prog_name="layercache")
def cli() -> None:
    """Run a language model once, keep what every layer said, ask about layers with SQL.

    \b
    layercache run demo                              a whole study on the embedded model
    layercache extract --model gpt2 --data films.csv --prompt "Title: {title}" --label rating:number
    layercache analyze probe                         which layer knows the rating
    layercache sql --query entropy_by_layer          ask anything else
    """


def store_option(command: F) -> F:
    """Add `--store`, which every command takes."""
    return click.option(
        "--store",
        type=click.Path(path_type=Path),
        default=Path("store"),
        envvar="LAYERCACHE_STORE",
        show_default=True,
        show_envvar=True,
        help="Directory of the store.",
    )(command)


def quiet_option(command: F) -> F:
    """Add `--quiet`: no progress and no notes on stderr."""
    return click.option("-q", "--quiet", is_flag=True, help="No progress, no notes.")(command)


def json_option(command: F) -> F:
    """Add `--json`: what is printed is JSON."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def _progress(quiet: bool) -> Any:
    from layercache.progress import Progress, TerminalProgress

    return Progress() if quiet else TerminalProgress()


def _width() -> int | None:
    """The terminal's width; None, for tables in full, where stdout is not one."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _say_extracted(summaries: list[Any], progress: Any) -> None:
    for summary in summaries:
        progress.note(str(summary))


def _say_analysed(analysed: list[Any], progress: Any) -> None:
    from layercache.analyze.summary import summarise

    for one in analysed:
        if one.cached:
            progress.note(f"{one.kind}: nothing has changed, read from {one.path}")
        elif one.path is None:
            progress.note(f"{one.kind}: the store takes no results, they are only shown")
        click.echo(summarise(one.results))


@cli.command()
@click.argument("recipe_name", metavar="RECIPE")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting of the recipe.")
@store_option
@quiet_option
@json_option
def run(recipe_name: str, settings: tuple[str, ...], store: Path, quiet: bool, as_json: bool) -> None:
    """Run a study: extract, analyse, report.

    RECIPE is a TOML file, or the name of one that ships with layercache (demo, movies, sample). The VALUE of a
    setting is TOML or plain text.

    \b
    layercache run movies
    layercache run movies --set models=gpt2,./my-llama --set data.source=action.csv
    """
    from dataclasses import asdict

    from layercache import recipe, study

    progress = _progress(quiet)
    result = study.run(recipe.load(recipe_name, settings), store, progress)
    if as_json:
        extracted = [asdict(summary) for summary in result.extracted]
        analysed = [{"kind": one.kind, "path": one.path, "cached": one.cached} for one in result.analysed]
        _print_json({"extracted": extracted, "analysed": analysed, "report": result.report})
        return
    _say_extracted(result.extracted, progress)
    _say_analysed(result.analysed, progress)
    if result.report is not None:
        click.echo(f"report: {result.report.resolve()}")


@cli.command()
@click.argument("recipe_name", metavar="[RECIPE]", required=False)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting of the recipe.")
@click.option("--model", "models", multiple=True, help="A folder, a hub name, or demo; may be repeated.")
@click.option("--data", "source", help="CSV, TSV, JSON, JSONL, Parquet, text file, hf:NAME or demo:NAME.")
@click.option("--prompt", "template", help='Prompt template: "Title: {title}". Every field becomes a span.')
@click.option("--name", help="What the data set is called in the store.")
@click.option("--label", "labels", multiple=True, metavar="NAME:KIND", help="KIND: number, category, boolean, text.")
@click.option("--chat", is_flag=True, default=None, help="Render through the tokenizer's chat template.")
@click.option("--target", help="Column whose first token the lens follows.")
@click.option("--answer", multiple=True, metavar="COLUMN", help="Column with the right text; may be repeated.")
@click.option("--split", help="Column naming each row's split.")
@click.option("--group-by", help="Column whose equal values never straddle a fold.")
@click.option("--missing", multiple=True, help="A cell that means no value (N/A); may be repeated.")
@click.option("--limit", type=int, help="Use only the first rows.")
@click.option("--pooling", help="mean, max, first, last, optionally @a span; separated by commas.")
@click.option("--sites", help="resid, attn_out, mlp_out; separated by commas.")
@click.option("--layers", help="Layer numbers separated by commas, or all. 0 is the embedding output.")
@click.option("--lens", help="Positions of the logit lens (last, last@question), or none.")
@click.option("--top-k", type=int, help="Tokens the lens keeps.")
@click.option("--dtype", help="auto, float32, bfloat16, float16.")
@click.option("--device", help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--attn", help="auto, eager, sdpa.")
@click.option("--truncate", is_flag=True, default=None, help="Cut prompts that are longer than the context.")
@click.option("--batch-tokens", type=int, help="Padded tokens a batch may hold; found when not given.")
@click.option("--precision", type=int, help="Mantissa bits kept: 7, 10 or 23.")
@click.option("--allow-nonfinite", is_flag=True, default=None, help="Keep infinities and NaN.")
@click.option("--trust-remote-code", is_flag=True, default=None, help="Run code that comes with a hub model.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and what it takes; write nothing.")
@store_option
@quiet_option
@json_option
def extract(
    recipe_name: str | None,
    settings: tuple[str, ...],
    store: Path,
    quiet: bool,
    as_json: bool,
    dry_run: bool,
    **flags: Any,
) -> None:
    """Run models on data and keep what every layer said.

    Give a RECIPE, or --model and --data. What the store already holds is not run again.

    \b
    layercache extract --model ./llama --data films.csv --prompt "Title: {title}" --label rating:number
    layercache extract demo --dry-run
    """
    from dataclasses import asdict

    from layercache import study

    progress = _progress(quiet)
    asked = _recipe_from(recipe_name, settings, flags)
    summaries = study.extract(asked, store, progress, dry_run=dry_run)
    if as_json:
        _print_json([asdict(summary) for summary in summaries])
        return
    for summary in summaries:
        click.echo(str(summary))


def _recipe_from(recipe_name: str | None, settings: tuple[str, ...], flags: dict[str, Any]) -> Any:
    """Build a recipe from a name and overrides, or from flags alone."""
    from layercache import dataset, recipe

    given = {key: _plain(value) for key, value in flags.items() if value not in (None, ())}
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
        data["reference"] = given["answer"]
    extraction = {key: given[key] for key in EXTRACT_OPTIONS if key in given}
    name = dataset.data_name(recipe.validate(recipe.DataSpec, data, where="--data"))
    table = {"name": name, "models": given["models"], "data": data, "extract": extraction}
    for setting in settings:
        recipe.override(table, setting)
    return recipe.build(table, where="command line")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@cli.command()
@click.argument("kinds", nargs=-1, metavar="[KIND]...")
@click.option("--data", help="Data sets, separated by commas.")
@click.option("--runs", help="Runs, by id or model name, separated by commas.")
@click.option("--labels", help="Labels to probe, separated by commas.")
@click.option("--layers", help="Layers, separated by commas.")
@click.option("--pooling", help="Poolings to probe (mean@prompt), separated by commas.")
@click.option("--sites", help="Sites to probe, separated by commas.")
@click.option("--positions", help="Lens positions, separated by commas.")
@click.option("--folds", type=int, help="Folds of the cross-validation.")
@click.option("--group-by", help="Column whose equal values never straddle a fold.")
@click.option("--min-class", type=int, help="Classes with fewer rows are merged into `other`.")
@click.option("--metrics", help="Scores of text (bleu, rouge_l, exact_match), separated by commas.")
@click.option("--outputs", help="Generated outputs to score, by name or its start.")
@click.option("--answer", "reference", help="Columns to compare text with, separated by commas.")
@click.option("--bertscore-model", help="Encoder of BERTScore: a folder, a hub name, or minilm.")
@click.option("--bertscore-layer", type=int, help="Layer at which that encoder is read.")
@click.option("--correct", help="Score that makes an answer right: exact_match, token_f1, rouge_l.")
@click.option("--correct-above", type=float, help="The least such score of a right answer.")
@click.option("--bootstrap", type=int, help="Resamples behind each interval.")
@click.option("--seed", type=int, help="Seed of folds, shuffles and resamples.")
@click.option("--format", "fmt", type=click.Choice(["table", "csv", "json", "jsonl", "markdown"]), default="table")
@store_option
@quiet_option
def analyze(kinds: tuple[str, ...], store: Path, quiet: bool, fmt: str, **settings: Any) -> None:
    """Ask about layers, on a CPU, without the model.

    KIND is probe, entropy or text; none named means what the recipes kept in the store ask for.

    \b
    layercache analyze probe --labels rating --pooling last@prompt
    layercache analyze text --answer golden_answers --bertscore-model minilm
    """
    from layercache import study, table

    progress = _progress(quiet)
    overrides = {key: value for key, value in settings.items() if value is not None}
    analysed = study.analyze(store, study.specs_to_run(store, kinds, overrides), progress)
    if fmt == "table":
        _say_analysed(analysed, progress)
        return
    for one in analysed:
        table.write(one.results, fmt, sys.stdout.buffer)


@cli.command()
@click.argument("query", required=False)
@click.option("--query", "named", help="Name of a query that ships with layercache.")
@click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="A parameter of the query.")
@click.option("--list", "listing", is_flag=True, help="List the named queries.")
@click.option("--show", "show_text", is_flag=True, help="Print the named query's text instead of running it.")
@click.option(
    "--format", "fmt", default="table", type=click.Choice(["table", "csv", "json", "jsonl", "parquet", "markdown"])
)
@click.option("--memory", default="2GB", show_default=True, help="Memory the query may use.")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds the query may take.")
@store_option
def sql(
    query: str | None,
    named: str | None,
    params: tuple[str, ...],
    listing: bool,
    show_text: bool,
    fmt: str,
    memory: str,
    timeout: float,
    store: Path,
) -> None:
    """Ask the store anything, in SQL.

    \b
    layercache sql "SELECT layer, avg(entropy) FROM lens GROUP BY layer ORDER BY layer"
    layercache sql --query cosine_neighbours --param sample=…
    """
    from layercache import table
    from layercache.store import sql as engine

    if listing:
        for one in engine.list_queries():
            click.echo(f"{one.name:24} {one.title}")
        return
    if (query is None) == (named is None):
        raise RecipeError("give a SELECT, or --query NAME (see layercache sql --list)")
    given: dict[str, Any] = dict(_params(params))
    if named is not None:
        loaded = engine.load_query(named)
        query, given = loaded.sql, dict(loaded.bind(given))
        if show_text:
            click.echo(loaded.sql)
            return
    assert query is not None
    result = engine.run_query(store, query, params=given, memory=memory, timeout=timeout)
    sys.stdout.flush()
    table.write(result, fmt, sys.stdout.buffer, width=_width())


def _params(pairs: tuple[str, ...]) -> dict[str, str]:
    given = dict(pair.partition("=")[::2] for pair in pairs if "=" in pair)
    bad = next((pair for pair in pairs if "=" not in pair), None)
    if bad is not None:
        raise RecipeError(f"--param {bad!r} is not NAME=VALUE")
    return given


@cli.command()
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


@cli.command()
@click.argument("name")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="File: .svg, .png, .html or .json.")
@store_option
def plot(name: str, out: Path, store: Path) -> None:
    """Draw one chart of the report into a file.

    NAME is probe, predictions, entropy, agreement, distance, target, depth, text, quantisation,
    consistency or tokens.
    """
    from layercache import report as reports
    from layercache.store import reader

    click.echo(reports.plot(reader.open(store), name, out))


@cli.command()
@store_option
@json_option
def ls(store: Path, as_json: bool) -> None:
    """List the runs of the store."""
    from layercache import listing, table
    from layercache.store import reader

    runs = listing.runs(reader.open(store))
    if as_json:
        _print_json(runs.to_pylist())
    else:
        table.write(runs, "table", sys.stdout.buffer, width=_width())


@cli.command()
@click.argument("run_name", metavar="RUN")
@store_option
@json_option
def show(run_name: str, store: Path, as_json: bool) -> None:
    """Show one run: its settings, layers, data sets, outputs."""
    from layercache import listing
    from layercache.store import reader

    described = listing.describe(reader.open(store), run_name)
    if as_json:
        _print_json(described)
    else:
        click.echo(listing.as_text(described))


@cli.command()
@click.option("--deep", is_flag=True, help="Read every byte: checksums, row counts, keys, finite values.")
@store_option
def verify(deep: bool, store: Path) -> None:
    """Check the store's files; exit code 1 when something is wrong."""
    from layercache.store import verify as verifier

    problems = verifier.verify(store, deep=deep)
    for problem in problems:
        click.echo(f"{problem.path}: {problem.what}")
    click.echo(f"{len(problems)} problems" if problems else "no problems found", err=True)
    sys.exit(1 if problems else 0)
