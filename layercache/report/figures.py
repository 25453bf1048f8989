"""Every figure of the report, drawn from a store's numbers; `PLOTS` names the ones that can stand alone."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import altair as alt
import polars as pl

from layercache.report import (
    adaptation,
    charts,
    frames,
    in_depth,
    pathways,
    predictions,
    qualities,
    sample_charts,
    samples,
    texts,
)
from layercache.report.charts import Look
from layercache.report.frames import Task
from layercache.report.measures import BASELINES, measure
from layercache.report.text import capital, plain
from layercache.report.texts import TextTask
from layercache.store.reader import Store

Chart: TypeAlias = alt.TopLevelMixin


_LENS_TITLES = {
    "agrees_with_final": "Agreement with the last layer",
    "kl_to_final": "Distance from the last layer",
    "target_logprob": "Log-probability of the target",
}


class Plot(NamedTuple):
    """A chart with a name: what it shows, the analysis it needs, and how it is drawn (None: no numbers for it)."""

    doc: str
    needs: str
    draw: Callable[[Store, pl.DataFrame], Chart | None]


def look(frame: pl.DataFrame, metric: str) -> Look:
    """Return what the panels of a figure of one metric share."""
    return charts.look(_models(frame), frame, measure(metric))


def probe(task: Task, metric: str) -> Chart:
    """Draw one metric of a probed label over layers, a panel a pooling."""
    scores = task.scores.filter(metric=metric)
    baselines = task.baselines.filter(metric=metric)
    order = list(BASELINES.values())
    baselines = baselines.sort(pl.col("baseline").replace_strict(order, range(len(order)), default=len(order)))
    style = look(pl.concat([scores, baselines.select(scores.columns)]), metric)
    title = f"{capital(measure(metric).name)} of {plain(task.label)} ({plain(task.data)})"
    return charts.curves(scores, baselines, style, title)


def held_out(store: Store, task: Task) -> Chart | None:
    """Draw the predictions of each model's best probe against the truth; None where none are kept."""
    parts = []
    for at in task.best().iter_rows(named=True):
        found = predictions.predictions(store, task, at)
        name = f"{at['model']}, layer {at['layer']}, {at['panel']}"
        parts.append(found.with_columns(panel=pl.lit(name), model=pl.lit(at["model"])))
    found = pl.concat(parts) if parts else pl.DataFrame()
    if not len(found):
        return None
    title = f"Held-out predictions of {plain(task.label)} ({plain(task.data)})"
    if found["predicted"].dtype.is_numeric():
        drawn = [part.gather_every(1 + len(part) // predictions.MAX_POINTS) for part in parts]
        return sample_charts.scatter(pl.concat(drawn), _models(found), title)
    tables = [
        predictions.counts(part, sample_charts.MAX_CLASSES).with_columns(panel=pl.lit(part["panel"][0]))
        for part in parts
        if len(part)
    ]
    return sample_charts.confusion(pl.concat(tables), title)


def entropy(data: str, numbers: pl.DataFrame) -> Chart | None:
    """Draw the lens's entropy over layers, a panel a model and position."""
    middle, bands = frames.quantile_bands(numbers)
    if not len(middle):
        return None
    ends = pl.concat(
        [middle.select("layer", "value"), bands.select("layer", value="low"), bands.select("layer", value="high")]
    )
    style = look(ends.with_columns(low=None, high=None, model=pl.lit("")), "entropy")
    return charts.spread(middle, bands, style._replace(models=_models(middle)), f"Lens entropy ({plain(data)})")


def lens(data: str, numbers: pl.DataFrame, metric: str) -> Chart | None:
    """Draw one of the lens's other numbers over layers, models side by side, a panel a position."""
    own = numbers.filter(pl.col("metric") == metric, pl.col("layer").is_not_null())
    if not len(own):
        return None
    none = own.head(0).with_columns(baseline=pl.lit(None, pl.String))
    return charts.curves(own, none, look(own, metric), f"{_LENS_TITLES[metric]} ({plain(data)})")


def depth(store: Store, data: str, numbers: pl.DataFrame) -> Chart | None:
    """Draw at which layer the samples' predictions settle."""
    found = frames.depths(store, data)
    layers = numbers["layer"].drop_nulls().unique().sort().to_list()
    if not len(found) or not layers:
        return None
    return charts.shares(found, _models(found), layers, f"Prediction depth ({plain(data)})")


def tokens(sample: samples.Sample) -> Chart:
    """Draw a sample's most probable tokens at several layers, a row a model."""
    return sample_charts.bars(sample.tokens, f"{plain(sample.data)}, row {sample.row}, {plain(sample.position)}")


def heat(sample: samples.Sample) -> Chart:
    """Draw the logit lens at every token of a sample, a panel a model."""
    return sample_charts.heat(sample.grid, f"Logit lens ({plain(sample.data)}, row {sample.row})")


def text(task: TextTask, metric: str) -> Chart:
    """Draw one number of generated text over layers, models side by side, beside the line that means nothing."""
    own = pl.concat([task.scores, task.differences, task.foretold]).filter(metric=metric)
    line = {"_minus_other": ("no difference", 0.0)} if metric.endswith("_minus_other") else {"auc_": ("chance", 0.5)}
    name, value = next((at for part, at in line.items() if part in metric), ("", 0.0))
    nothing = own.head(1 if name else 0).with_columns(
        baseline=pl.lit(name), panel=None, layer=None, value=pl.lit(value), low=None, high=None
    )
    nothing = nothing.cast({"panel": pl.String, "layer": pl.Int32, "low": pl.Float64, "high": pl.Float64})
    style = look(pl.concat([own, nothing.select(own.columns)]), metric)
    return charts.curves(own, nothing, style, f"{capital(measure(metric).name)} ({plain(task.data)})")


def _text(metrics: Sequence[str]) -> Callable[[Store, pl.DataFrame], Chart | None]:
    """Return what draws the numbers of generated text that there are, of those named."""

    def draw(store: Store, numbers: pl.DataFrame) -> Chart | None:
        found = texts.tasks(numbers)
        known = [{*one.scores["metric"], *one.differences["metric"], *one.foretold["metric"]} for one in found]
        return _stacked([text(one, name) for one, own in zip(found, known) for name in metrics if name in own])

    return draw


def _probe(store: Store, numbers: pl.DataFrame) -> Chart | None:
    return _stacked([probe(task, task.metric) for task in frames.tasks(numbers)])


def _held_out(store: Store, numbers: pl.DataFrame) -> Chart | None:
    return _stacked([held_out(store, task) for task in frames.tasks(numbers)])


def _entropy(store: Store, numbers: pl.DataFrame) -> Chart | None:
    return _stacked([entropy(data, own) for data, own in frames.entropies(numbers)])


def _lens(metric: str) -> Callable[[Store, pl.DataFrame], Chart | None]:
    return lambda store, numbers: _stacked([lens(data, own, metric) for data, own in frames.entropies(numbers)])


def _depth(store: Store, numbers: pl.DataFrame) -> Chart | None:
    return _stacked([depth(store, data, own) for data, own in frames.entropies(numbers)])


def _tokens(store: Store, numbers: pl.DataFrame) -> Chart | None:
    return _stacked([tokens(sample) for sample in samples.choose(store) if len(sample.tokens)])


def _heat(store: Store, numbers: pl.DataFrame) -> Chart | None:
    return _stacked([heat(sample) for sample in samples.choose(store) if len(sample.grid)])


def _answers(store: Store, numbers: pl.DataFrame) -> Chart | None:
    tasks = {(task.data, task.label): task for task in adaptation.tasks(numbers)}
    return _stacked(
        [
            adaptation.by_layer(
                own, "accuracy", adaptation.chosen(tasks.get((data, label)), own), f"{plain(label)}, {plain(data)}"
            )
            for data, label, own in adaptation.answers(numbers)
        ]
    )


def _rank_alpha(store: Store, numbers: pl.DataFrame) -> Chart | None:
    return _stacked([adaptation.heat(task) for task in adaptation.tasks(numbers)])


def _adapted(store: Store, numbers: pl.DataFrame) -> Chart | None:
    return _stacked(
        [
            adaptation.gaps(task, metric)
            for task in adaptation.tasks(numbers)
            for metric in (*adaptation.GAPS, "cka_with_base")
        ]
    )


def _delta_p(store: Store, numbers: pl.DataFrame) -> Chart | None:
    found = [
        (task, data, metric)
        for task in pathways.tasks(numbers)
        for data in task.data
        for metric in pathways.DIFFERENCES
    ]
    return _stacked([pathways.differences(task, metric, data) for task, data, metric in found])


def _pathways(store: Store, numbers: pl.DataFrame) -> Chart | None:
    found = pathways.tasks(numbers)
    return _stacked([pathways.split(task, name) for task in found for name in task.conditions()])


def _quality(store: Store, numbers: pl.DataFrame) -> Chart | None:
    return _stacked([one for data in qualities.data_sets(numbers) for one in qualities.by_depth(store, numbers, data)])


def _distributions(store: Store, numbers: pl.DataFrame) -> Chart | None:
    return _stacked([one for data in qualities.data_sets(numbers) for one in qualities.histograms(store, data)])


def _likeness(metric: str) -> Callable[[Store, pl.DataFrame], Chart | None]:
    return lambda store, numbers: _stacked(
        [one for data in qualities.data_sets(numbers) for one in qualities.likeness(store, numbers, data, metric)]
    )


def _strengths(store: Store, numbers: pl.DataFrame) -> Chart | None:
    return _stacked([one for data in qualities.data_sets(numbers) for one in qualities.strengths(numbers, data)])


PLOTS: dict[str, Plot] = {
    "probe": Plot("probe scores over layers, with intervals and baselines", "probe", _probe),
    "predictions": Plot("held-out predictions of the best probes against the truth", "probe", _held_out),
    "entropy": Plot("entropy of the lens over layers, with quantile bands", "entropy", _entropy),
    "agreement": Plot("share of samples whose top token is the last layer's", "entropy", _lens("agrees_with_final")),
    "distance": Plot("KL divergence from the last layer", "entropy", _lens("kl_to_final")),
    "target": Plot("log-probability of the target token", "entropy", _lens("target_logprob")),
    "depth": Plot("the layer at which predictions settle", "entropy", _depth),
    "text": Plot("scores of the text that every layer wrote", "text", _text(texts.HEADLINE)),
    "quantisation": Plot("what quantisation changes in them", "text", _text(texts.DIFFERENCES)),
    "consistency": Plot("how well the lens tells right answers from wrong ones", "text", _text(texts.FORETOLD)),
    "delta_p": Plot("what a knockout does to a probe of truthfulness, minus its control", "delta_p", _delta_p),
    "pathways": Plot("the same by outcome, beside its noise floor (the study's figure)", "delta_p", _pathways),
    "quality": Plot("quality of states over the depth of every model", "quality", _quality),
    "distributions": Plot("distribution of statistics over tokens at every layer", "quality", _distributions),
    "cka": Plot("CKA of every two layers, within and between models", "quality", _likeness("cka")),
    "mutual_knn": Plot("common nearest neighbours of every two layers", "quality", _likeness("mutual_knn")),
    "perturbations": Plot("numbers against the strength of a perturbation", "quality", _strengths),
    "transfer": Plot(
        "probes of one layer read on the states of every other",
        "probe_depth",
        lambda store, numbers: _stacked(in_depth.layer_transfer(numbers)),
    ),
    "run_transfer": Plot(
        "probes of one model read on the states of another",
        "probe_depth --measures transfer_runs",
        lambda store, numbers: _stacked(in_depth.run_transfer(numbers, frames.model_names(store))),
    ),
    "concept_depth": Plot(
        "the layers in which a label forms",
        "probe_depth",
        lambda store, numbers: _stacked(in_depth.concept_depth(numbers)),
    ),
    "checkpoints": Plot(
        "numbers by layer over the steps of a training",
        "probe` on runs of several training steps (`revisions`), or `layercache analyze entropy",
        lambda store, numbers: _stacked(in_depth.checkpoints(store, numbers)),
    ),
    "answers": Plot("accuracy of the answers that every layer prefers", "choices", _answers),
    "rank_alpha": Plot("accuracy of a grid of adapters by rank and alpha", "compare", _rank_alpha),
    "adaptation": Plot("what adapters change at every layer", "compare", _adapted),
    "tokens": Plot("the most probable tokens of a few samples, by layer", "entropy", _tokens),
    "lens": Plot("the logit lens at every token of a few samples (--lens token)", "entropy", _heat),
}


def _stacked(parts: Sequence[Chart | None]) -> Chart | None:
    """Put figures under each other; each keeps its own colours and legends."""
    drawn = [part for part in parts if part is not None]
    if len(drawn) < 2:
        return drawn[0] if drawn else None
    return alt.vconcat(*drawn, spacing=40).resolve_scale(
        color="independent", shape="independent", strokeDash="independent"
    )


def _models(frame: pl.DataFrame) -> list[str]:
    return frame["model"].unique().sort().to_list()
