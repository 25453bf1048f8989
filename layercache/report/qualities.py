"""The quality of states in the report: frames of the analysis `quality`, its charts and its sentences."""

from typing import Any

import altair as alt
import numpy as np
import polars as pl

from layercache import queries
from layercache.frame import from_arrow
from layercache.report import quality_charts
from layercache.report.frames import clean, named, shown
from layercache.report.measures import measure
from layercache.report.text import capital, count, interval, number, plain
from layercache.store.reader import Store

OF_STATES = (
    *("dataset_entropy_normalized", "dataset_effective_rank", "intrinsic_dimension"),
    *("dataset_mean_cosine", "dataset_first_pc_share", "infonce", "lidar", "dime"),
)
OF_TOKENS = ("prompt_entropy_over_ln_min", "curvature", "effective_rank", "mean_cosine", "first_pc_share", "norm")
_ORDER = {name: at for at, name in enumerate([*OF_STATES, *OF_TOKENS])}
_AGAINST_STRENGTH = ("prompt_entropy_over_ln_min", "curvature", "norm", "dataset_entropy_normalized")
_BASELINES = {"shuffled": "views paired at random", "chance": "chance"}
_AUGMENTED = "augment"
_STRENGTH = r"^(repeat|random|truncate)-(\d*\.?\d+)$"
_LINES = 5
"""Layers drawn against the strength of a perturbation."""


def data_sets(numbers: pl.DataFrame) -> list[str]:
    """Return the data sets whose states' quality was looked at."""
    return numbers.filter(analysis="quality")["data"].unique().sort().to_list()


def by_depth(store: Store, numbers: pl.DataFrame, data: str) -> list[alt.TopLevelMixin]:
    """Draw every number over depth, a figure a pooling; the statistics over tokens are one of their own."""
    own = _single(numbers, data).filter(pl.col("metric").is_in([*OF_STATES, *OF_TOKENS]))
    # After the final norm is no deeper than after the last block.
    own = own.filter(pl.col("condition").is_in(_depth_conditions(own))).join(
        _final_layers(store), on="run", how="inner"
    )
    own = own.filter(pl.col("layer") <= pl.col("final")).with_columns(
        depth=100 * pl.col("layer") / pl.col("final").clip(1),
        baseline=shown(pl.col("group"), own["group"], _BASELINES),
        panel=pl.col("panel").fill_null("tokens"),
        order=pl.col("metric").replace_strict(list(_ORDER), list(_ORDER.values()), return_dtype=pl.Int32),
    )
    return [
        quality_charts.by_depth(part, _models(part), f"Quality of states ({plain(data)}, {panel})")
        for (panel,), part in own.sort("order", "model", "layer").group_by("panel", maintain_order=True)
    ]


def _depth_conditions(own: pl.DataFrame) -> list[str]:
    """Return the conditions whose numbers are drawn over depth: the clean one and the first pair of views."""
    ways = own.filter(pl.col("condition").str.starts_with(_AUGMENTED))["condition"].unique().sort().to_list()
    return ["clean", *ways[:1]]


def histograms(store: Store, data: str) -> list[alt.TopLevelMixin]:
    """Draw the distribution over samples of every statistic over tokens, at every layer, a figure a statistic."""
    found = from_arrow(store.sql(queries.load_query("report_token_stats").sql, {"data": data}))
    found = found.with_columns(site=pl.lit("resid"), pooling=pl.lit(None, pl.String))
    own = named(found, store).filter(~pl.col("metric").str.contains("^(sinks|max_norm)"))
    figures = []
    for (metric,), part in own.sort("metric", "model").group_by("metric", maintain_order=True):
        low, high = float(part["value"].min()), float(part["value"].max())  # type: ignore[arg-type]
        edges = np.linspace(low, high if high > low else low + 1, quality_charts.BINS + 1)
        parts = []
        for (model, layer), here in part.sort("model", "layer").group_by("model", "layer", maintain_order=True):
            counts = np.histogram(here["value"].to_numpy(), edges)[0]
            some = np.flatnonzero(counts)
            columns = {
                "low": edges[some],
                "high": edges[some + 1],
                "share": counts[some] / len(here),
                "n": counts[some],
            }
            where = {"metric": str(metric), "model": str(model), "layer": layer}
            parts.append(pl.DataFrame(columns).with_columns(**{name: pl.lit(value) for name, value in where.items()}))
        title = f"{capital(measure(str(metric)).name)} over samples ({plain(data)})"
        figures.append(quality_charts.histogram(pl.concat(parts), title))
    return figures


def likeness(store: Store, numbers: pl.DataFrame, data: str, metric: str) -> list[alt.TopLevelMixin]:
    """Draw how alike layers are: a figure of every model with itself, then one of every two models."""
    own = clean(numbers).filter(
        pl.col("analysis") == "quality", pl.col("data") == data, pl.col("metric") == metric, pl.col("group").is_null()
    )
    own = own.filter(pl.col("other_layer").is_not_null())
    if own.is_empty():
        return []
    called = named(own.select(run="other_run", site="site", pooling="pooling", layer="layer"), store)["model"]
    own = own.with_columns(other=called.fill_null(own["model"]))
    inside = own.filter(pl.col("other_run").is_null())
    # Within a model a pair of layers is one row, and a layer is like itself.
    turned = inside.with_columns(layer=pl.col("other_layer"), other_layer=pl.col("layer"))
    keys = ["panel", "model", "other", "run", "other_run"]
    layers = pl.concat([inside, turned]).select(*keys, "layer", "n").unique(maintain_order=True)
    same = layers.with_columns(other_layer=pl.col("layer"), value=pl.lit(1.0))
    whole = pl.concat([own, turned, same], how="diagonal").with_columns(
        panel=pl.when(pl.col("other_run").is_null())
        .then(pl.format("{}, {}", "model", "panel"))
        .otherwise(pl.format("{} × {}, {}", "model", "other", "panel"))
    )
    whole = whole.sort("panel", "layer", "other_layer")
    name = capital(measure(metric).name)
    return [
        quality_charts.likeness(part, metric, f"{name} of layers {where} ({plain(data)})")
        for where, part in (
            ("of one model", whole.filter(pl.col("other_run").is_null())),
            ("of two models", whole.filter(pl.col("other_run").is_not_null())),
        )
        if len(part)
    ]


def strengths(numbers: pl.DataFrame, data: str) -> list[alt.TopLevelMixin]:
    """Draw numbers against how much of the prompt was changed, a figure a pooling and number; none where nothing was."""
    own = _single(numbers, data).filter(pl.col("group").is_null())
    own = own.with_columns(
        kind=pl.col("condition").str.extract(_STRENGTH, 1),
        strength=pl.col("condition").str.extract(_STRENGTH, 2).cast(pl.Float64),
        panel=pl.col("panel").fill_null("tokens"),
    )
    changed = own.drop_nulls("kind")
    # A prompt that is not changed is one of which a share of 0 is; of tokens kept it has no number.
    shares = pl.DataFrame({"kind": ["repeat", "random"], "strength": [0.0, 0.0]})
    plain_ones = own.filter(condition="clean").drop("kind", "strength").join(shares, how="cross")
    place = ["run", "panel", "metric", "kind", "layer"]
    plain_ones = plain_ones.join(changed, on=place, how="semi").select(changed.columns)
    drawn = pl.concat([changed, plain_ones]).filter(pl.col("metric").is_in(_AGAINST_STRENGTH))
    figures = []
    order = ["metric", "panel", "kind", "model", "layer", "strength"]
    for (metric, panel), part in drawn.sort(order).group_by("metric", "panel", maintain_order=True):
        layers = part["layer"].unique().sort().to_list()
        some = sorted({layers[round(at)] for at in np.linspace(0, len(layers) - 1, min(_LINES, len(layers)))})
        name = capital(measure(str(metric)).name)
        title = f"{name} against the strength of a perturbation ({plain(data)}, {panel})"
        figures.append(quality_charts.strength(part.filter(pl.col("layer").is_in(some)), title))
    return figures


def finding(numbers: pl.DataFrame, data: str) -> list[str]:
    """Say for each model and pooling where its states are most and least spread out, and what views leave of them."""
    own = _single(numbers, data).filter(pl.col("group").is_null())
    found = []
    for (panel, model), part in own.drop_nulls("panel").group_by("panel", "model", maintain_order=True):
        spread = part.filter(metric="dataset_entropy_normalized", condition="clean").drop_nulls("value").sort("value")
        said = []
        if len(spread) > 1:
            low, high = spread.row(0, named=True), spread.row(-1, named=True)
            said.append(
                f"dataset entropy, as a share of its most, is lowest with {_at(low)} and highest with {_at(high)}"
            )
        alike = part.filter(metric="infonce").drop_nulls("value").sort("value")
        if len(alike):
            best = alike.row(0, named=True)
            chance = number(float(np.log(best["n"])))
            said.append(f"InfoNCE of two views of a prompt is lowest with {_at(best)} (nats, chance {chance})")
        if said:
            samples = max(part["n"].drop_nulls().to_list(), default=0)
            found.append(f"{model}, {panel} ({count(samples, 'sample')}): {'; '.join(said)}.")
    return found


def not_drawn(numbers: pl.DataFrame, data: str) -> pl.DataFrame:
    """Return the numbers of single layers that no figure shows, for a table."""
    own = _single(numbers, data).filter(~pl.col("metric").str.contains("_q[0-9.]+$"))
    own = own.filter(
        ~(pl.col("metric").is_in([*OF_STATES, *OF_TOKENS]) & pl.col("condition").is_in(_depth_conditions(own)))
    )
    names = ("model", "panel", "condition", "layer", "group", "metric", "value", "low", "high", "n")
    kept = own.select(names)
    return kept.select(name for name in kept.columns if kept[name].null_count() < len(kept))


def _single(numbers: pl.DataFrame, data: str) -> pl.DataFrame:
    """Return a data set's numbers of single layers."""
    return numbers.filter(
        pl.col("analysis") == "quality",
        pl.col("data") == data,
        pl.col("layer").is_not_null(),
        pl.col("other_layer").is_null(),
    )


def _final_layers(store: Store) -> pl.DataFrame:
    found = [(run.id, run.final_layer) for run in store.runs()]
    return pl.DataFrame(found, schema={"run": pl.String, "final": pl.Int32}, orient="row")


def _at(row: dict[str, Any]) -> str:
    return f"{interval(row['value'], row['low'], row['high'])} at layer {row['layer']}"


def _models(frame: pl.DataFrame) -> list[str]:
    return frame["model"].unique().sort().to_list()
