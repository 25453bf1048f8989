"""Numbers of a store as the frames that charts and sentences are made of, with fixed column names.

`model`, `panel` and `layer_name` are for showing and plain; `run`, `data` and `label` are as they are stored.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import polars as pl

from layercache.report.measures import BASELINES, headline, measure
from layercache.report.text import plain
from layercache.store import numbers as stored_numbers
from layercache.store import scores
from layercache.store.layout import CLEAN, Run
from layercache.store.reader import Store
from layercache.store.schema import RESULTS

_NOT_SCORES = ("best_layer_share", "left_out")


class Task(NamedTuple):
    """A label of a data set that was probed.

    Attributes:
        scores: rows of `results` of the probes, every metric.
        baselines: the same of what they are held against, with `baseline`; panel and layer are null where a
            number is for all of them.
        wins: the same of `best_layer_share`.
        metric: the one that is shown first.
    """

    data: str
    label: str
    scores: pl.DataFrame
    baselines: pl.DataFrame
    wins: pl.DataFrame
    metric: str

    def best(self) -> pl.DataFrame:
        """Return the row of `scores` of each model's best layer by the main metric, the best model first."""
        own = self.scores.filter(metric=self.metric).drop_nulls("value")
        own = own.sort("value", descending=measure(self.metric).rising, maintain_order=True)
        return own.unique("model", keep="first", maintain_order=True)


def results(store: Store) -> pl.DataFrame:
    """Return the numbers of `results`, with model, layer_name and panel.

    Where two analyses gave the same number, the newer one's counts.
    """
    frame = stored_numbers.newest(store.path)
    frame = frame.with_columns(pl.col("value", "low", "high").fill_nan(None))
    return named(frame, store).sort("data", "label", "model", "panel", "layer", nulls_last=True)


def sample_scores(store: Store, where: Mapping[str, Any]) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return the sample scores with these values, and what was asked of the analysis they are from, the newest."""
    return scores.of(store.path, where)


def clean(numbers: pl.DataFrame) -> pl.DataFrame:
    """Return the numbers under the clean condition, or of none."""
    return numbers.filter(pl.col("condition").is_null() | (pl.col("condition") == CLEAN))


def tasks(numbers: pl.DataFrame) -> list[Task]:
    """Return the probed labels in `results`, by data set and label."""
    found = []
    probes = clean(numbers).filter(pl.col("analysis") == "probe", pl.col("label").is_not_null())
    for (data, label), own in probes.group_by("data", "label", maintain_order=True):
        measured = own.filter(~pl.col("metric").is_in(_NOT_SCORES))
        named_baseline = pl.col("layer").is_null() | pl.col("group").is_in(list(BASELINES))
        scores = measured.filter(~named_baseline.fill_null(False))
        name = pl.col("group").fill_null("baseline")
        baselines = measured.filter(named_baseline.fill_null(False)).with_columns(
            baseline=shown(name, measured["group"], BASELINES)
        )
        wins = own.filter(metric="best_layer_share")
        if len(scores):
            scores = scores.with_columns(pl.col("panel").fill_null(""))
            found.append(Task(str(data), str(label), scores, baselines, wins, headline(set(scores["metric"]))))
    return found


def three_layers(task: Task, final_layers: Mapping[str, int]) -> pl.DataFrame:
    """Return the table of the first study: mean squared error or accuracy at the first, middle and last layer.

    Beside these the best of all layers by that metric, since three say little of the others.
    """
    metric = "mse" if "mse" in task.scores["metric"] else "accuracy"
    own = task.scores.filter(metric=metric).drop_nulls("value")
    lines = []
    for (run, model, panel), part in own.group_by("run", "model", "panel", maintain_order=True):
        last = final_layers[str(run)]
        values = dict(part.select("layer", "value").iter_rows())
        best = min(values, key=values.__getitem__) if metric == "mse" else max(values, key=values.__getitem__)
        places = {"first": 0, "middle": last // 2, "last": last}
        line: dict[str, Any] = {"model": model, "read at": panel, "metric": measure(metric).name}
        line |= {f"{name}": values.get(layer) for name, layer in places.items()}
        lines.append(line | {"best of all": values[best], "its layer": best})
    return pl.DataFrame(lines)


def entropies(numbers: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    """Return the lens numbers in `results` of each data set; their panel is the position."""
    lens = clean(numbers).filter(analysis="entropy")
    lens = lens.with_columns(panel=shown(pl.col("position"), lens["position"]).fill_null(""))
    return [(str(data), own) for (data,), own in lens.group_by("data", maintain_order=True)]


def quantile_bands(numbers: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Turn `entropy_q10`, `entropy_q90`, … of a data set into bands around a middle.

    Returns:
        The middle (the median, or the mean where there is none) as rows of `entropies`, and the bands: panel,
        model, layer, band, low, high, the widest first.
    """
    quantile = pl.col("metric").str.extract(r"^entropy_q([0-9.]+)$").cast(pl.Float64)
    quantiles = numbers.with_columns(quantile=quantile).drop_nulls("quantile")
    keys = ["panel", "model", "layer"]
    low = quantiles.filter(pl.col("quantile") < 50).with_columns(other=100 - pl.col("quantile"))
    high = quantiles.filter(pl.col("quantile") > 50).select(*keys, "quantile", high="value")
    bands = low.drop("high").join(high, left_on=[*keys, "other"], right_on=[*keys, "quantile"])
    ends = [pl.col(name).cast(pl.String).str.strip_suffix(".0") for name in ("quantile", "other")]
    bands = bands.sort("quantile", "layer").select(
        *keys, pl.format("{}–{} %", *ends).alias("band"), low="value", high="high"
    )
    middle = numbers.filter(metric="entropy_q50")
    return (middle if len(middle) else numbers.filter(metric="entropy")), bands


def depths(store: Store, data: str) -> pl.DataFrame:
    """Return how many samples settle at which layer: panel (the position), model, layer, share, n."""
    scores, _ = sample_scores(store, {"data": data, "analysis": "entropy", "metric": "prediction_depth"})
    own = named(scores, store).with_columns(panel=shown(pl.col("position"), scores["position"]))
    counted = own.group_by("panel", "model", pl.col("value").cast(pl.Int32).alias("depth")).agg(n=pl.len())
    counted = counted.with_columns(share=pl.col("n") / pl.col("n").sum().over("panel", "model"))
    return counted.rename({"depth": "layer"}).sort("panel", "model", "layer")


def model_names(store: Store) -> dict[str, str]:
    """Return what each run is called: its model's name, or its id where two runs of one model share a data set."""
    runs = store.runs()
    data = {run.id: {info.name for info in store.data(run)} for run in runs}

    def alone(run: Run) -> bool:
        others = (other for other in runs if other.model == run.model and other.id != run.id)
        return not any(data[run.id] & data[other.id] for other in others)

    return {run.id: plain(run.model if alone(run) else run.id) for run in runs}


def named(frame: pl.DataFrame, store: Store) -> pl.DataFrame:
    """Add model, layer_name and panel (the pooling, after the site where that is not the residual stream)."""
    layers = [(run.id, one.layer, plain(one.name)) for run in store.runs() for one in run.layers]
    known = pl.DataFrame(layers, schema={"run": pl.String, "layer": pl.Int32, "layer_name": pl.String}, orient="row")
    site = pl.when(pl.col("site") == "resid").then(pl.lit("")).otherwise(pl.col("site") + " ").fill_null("")
    return frame.join(known, on=["run", "layer"], how="left", maintain_order="left").with_columns(
        model=shown(pl.col("run"), frame["run"], model_names(store)),
        panel=site + shown(pl.col("pooling"), frame["pooling"]),
    )


def shown(column: pl.Expr, values: pl.Series, names: Mapping[str, str] | None = None) -> pl.Expr:
    """Return a text column with what its values are called (themselves, when not in `names`), made plain."""
    called = {value: plain((names or {}).get(value, value)) for value in values.drop_nulls().unique()}
    return column.replace(list(called), list(called.values()))


def stored(numbers: pl.DataFrame) -> pl.DataFrame:
    """Return `results` with the columns of the SQL view and no others."""
    return numbers.select(column.name for column in RESULTS)
