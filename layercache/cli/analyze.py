"""`layercache analyze` and `layercache lens`: questions about layers, on a CPU."""

import sys
from pathlib import Path
from typing import Any

import click

from layercache.cli import completion
from layercache.cli.options import FORMATS, engine_options, format_option, quiet_option, store_option
from layercache.cli.output import reporter, say_analysed, width
from layercache.errors import RecipeError


@click.command()
@click.argument("kinds", nargs=-1, metavar="[KIND]...", shell_complete=completion.kinds)
@click.option("--data", shell_complete=completion.data_sets, help="Data sets, separated by commas.")
@click.option("--runs", shell_complete=completion.runs, help="Runs, by id or model name, separated by commas.")
@click.option(
    "--labels",
    "--label",
    shell_complete=completion.labels,
    help="Labels to probe, separated by commas; of delta_p boolean ones, `correct` when not given; of choices those whose values are the answers.",
)
@click.option("--layers", help="Layers, separated by commas.")
@click.option("--pooling", help="Poolings to look at (mean@prompt), separated by commas.")
@click.option("--sites", help="Sites to look at, separated by commas.")
@click.option("--conditions", shell_complete=completion.conditions, help="Conditions to look at, separated by commas.")
@click.option("--positions", help="Lens positions, separated by commas.")
@click.option("--folds", type=int, help="Folds of the cross-validation.")
@click.option("--group-by", help="Column whose equal values never straddle a fold.")
@click.option("--min-class", type=int, help="Classes with fewer rows are merged into `other`.")
@click.option("--measures", help="What probe_depth computes (selectivity, mdl, information, …), separated by commas.")
@click.option("--control-by", help="Column whose every value gets a random label in the control task of probe_depth.")
@click.option(
    "--metrics",
    help="Numbers to compute (text: bleu; quality: cka, infonce), or metrics to compare, separated by commas.",
)
@click.option("--with-quantiles", is_flag=True, default=None, help="Compare quantiles of metrics too, not only means.")
@click.option("--outputs", help="Generated outputs to score, by name or its start.")
@click.option("--answer", "reference", help="Columns to compare text with, separated by commas.")
@click.option("--bertscore-model", help="Encoder of BERTScore: a folder, a hub name, or minilm.")
@click.option("--bertscore-layer", type=int, help="Layer at which that encoder is read.")
@click.option("--correct", help="Score that makes an answer right: exact_match, token_f1, rouge_l.")
@click.option("--correct-above", type=float, help="The least such score of a right answer.")
@click.option("--answers", help="Columns with the accepted answers, separated by commas.")
@click.option("--kind-by", help="Column with the kind of question, within which AUC is taken too.")
@click.option("--popularity", help="Column that counts how well known a question's subject is.")
@click.option("--anchor", help="fixed or per-layer: where a sample's group comes from.")
@click.option("--anchor-layer", type=int, help="Layer whose flips make the groups.")
@click.option("--noise", type=int, help="Draws of label-blind noise behind the noise floor; 0 for none.")
@click.option("--p-true", help="Data set whose rows ask whether the same rows' answers are true, for P(true).")
@click.option("--repeats", type=int, help="Seeds of folds for hallucination detection; 0 leaves it out.")
@click.option("--alpha", type=float, help="Order of the matrix-based entropy; 1 is von Neumann's.")
@click.option("--k", type=int, help="Neighbours in mutual_knn.")
@click.option("--cka", help="Estimator of CKA: debiased, biased or both.")
@click.option("--compare", help="What cka and mutual_knn compare: layers, runs or both.")
@click.option("--max-samples", type=int, help="Samples whose states quality looks at.")
@click.option("--bootstrap", type=int, help="Resamples behind each interval.")
@click.option("--seed", type=int, help="Seed of folds, shuffles and resamples.")
@click.option("--workers", hidden=True)
@engine_options
@format_option(of=tuple(one for one in FORMATS if one != "parquet"))
@store_option
@quiet_option
def analyze(
    kinds: tuple[str, ...],
    store: Path,
    quiet: bool,
    fmt: str,
    engine: str,
    address: str | None,
    workers: str | None,
    **settings: Any,
) -> None:
    """Ask about layers, on a CPU, without the model.

    KIND is probe, probe_depth, entropy, text, delta_p, quality, choices or compare; none named means what the recipes kept in
    the store ask for.

    \b
    layercache analyze probe --labels rating --pooling last@prompt
    layercache analyze probe_depth --labels certificate --measures selectivity,mdl --control-by director
    layercache analyze probe entropy compare
    layercache analyze text --answer golden_answers --bertscore-model minilm
    layercache analyze delta_p --conditions knockout-subject,control-subject
    layercache analyze quality --pooling mean@prompt --metrics dataset_entropy,cka
    """
    from layercache import engine as engines
    from layercache import study, table

    if workers is not None:
        raise RecipeError(
            "--workers goes with extract and run: an analysis takes the cores of this machine by itself, and with"
            " --engine ray those of the cluster"
        )
    progress = reporter(quiet)
    overrides = {key: value for key, value in settings.items() if value is not None}
    specs = study.specs_to_run(store, kinds, overrides)
    with engines.on(engine, address):
        analysed = study.analyze(store, specs, progress)
    if fmt == "table":
        say_analysed(analysed, progress)
        return
    for one in analysed:
        table.write(one.results, fmt, sys.stdout.buffer)


@click.command()
@click.argument("run_name", metavar="RUN", shell_complete=completion.runs)
@click.option("--layers", default="all", show_default=True, help="Layer numbers separated by commas, or all.")
@click.option("--pooling", default="last", show_default=True, help="State of one token: last, first@question, token.")
@click.option("--token", "tokens", multiple=True, metavar="TEXT", help="Follow this token (' Paris'); may be repeated.")
@click.option("--token-id", "token_ids", multiple=True, type=int, help="Follow the token of this id.")
@click.option("--top-k", type=int, default=10, show_default=True, help="Tokens kept of every distribution.")
@click.option("--sample", "samples", multiple=True, metavar="ID", help="Only this sample, a line a layer.")
@click.option("--data", shell_complete=completion.data_sets, help="Only the samples of this data set.")
@click.option(
    "--condition",
    default="clean",
    show_default=True,
    shell_complete=completion.conditions,
    help="How the forward pass was run.",
)
@click.option("--per-sample", is_flag=True, help="A line a sample and layer instead of means by layer.")
@format_option()
@store_option
@quiet_option
def lens(run_name: str, fmt: str, store: Path, quiet: bool, **settings: Any) -> None:
    """Ask what stored states predict, without the model: the logit lens of a run that has its head.

    RUN was extracted with --save-head. Means by layer are over samples; entropies and log-probabilities in nats.

    \b
    layercache lens demo --token " PG" --token " 15" --layers 0,2,4,6
    layercache lens demo --sample 3f… --top-k 3
    """
    from layercache import table
    from layercache.analyze import lens as lenses

    answer = lenses.ask(store, run_name, **settings, progress=reporter(quiet))
    table.write(answer, fmt, sys.stdout.buffer, width=width())
