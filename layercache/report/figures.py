"""Every figure of the report, drawn from a store's numbers; `plots` gives names to the ones that can stand alone."""

from typing import TypeAlias

import altair as alt
import polars as pl

from layercache.report import charts, frames, predictions, references, sample_charts, samples
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
    return sample_charts.confusion(pl.concat(tables), title, predictions.merged(store, task))


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


def text(store: Store, task: TextTask, metric: str) -> Chart:
    """Draw one number of generated text over layers, models side by side, beside the line that means nothing."""
    own = pl.concat([task.scores, task.differences, task.foretold]).filter(metric=metric)
    line = {"_minus_other": ("no difference", 0.0)} if metric.endswith("_minus_other") else {"auc_": ("chance", 0.5)}
    name, value = next((at for part, at in line.items() if part in metric), ("", 0.0))
    nothing = own.head(1 if name else 0).with_columns(
        baseline=pl.lit(name), panel=None, layer=None, value=pl.lit(value), low=None, high=None
    )
    nothing = nothing.cast({"panel": pl.String, "layer": pl.Int32, "low": pl.Float64, "high": pl.Float64})
    style = look(pl.concat([own, nothing.select(own.columns)]), metric)
    name = f"{capital(measure(metric).name)} ({plain(task.data)})"
    return charts.curves(own, nothing, style, name, references.caution(store, task, metric))


def _models(frame: pl.DataFrame) -> list[str]:
    return frame["model"].unique().sort().to_list()
