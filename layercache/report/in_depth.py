"""Figures of what lies behind probes (`probe_depth`) and of training checkpoints, from a store's numbers."""

from typing import TypeAlias

import altair as alt
import polars as pl

from layercache.report import frames, heat
from layercache.report.measures import measure
from layercache.report.text import capital, plain
from layercache.store.reader import Store
from layercache.training_steps import training_step

Chart: TypeAlias = alt.TopLevelMixin
_SCORES = ("balanced_accuracy", "r2")
_ENDS = ("value", "low", "high")


def layer_transfer(numbers: pl.DataFrame) -> list[Chart]:
    """Draw, for each label, how well probes of each layer (down) read every layer's states (across)."""
    own = _transferred(numbers).filter(pl.col("other_run").is_null())
    drawn = []
    for (data, label, metric), part in own.group_by("data", "label", "metric", maintain_order=True):
        part = part.with_columns(panel=pl.format("{}, {}", "model", "panel"))
        title = f"{plain(str(label))} ({plain(str(data))}): a probe of one layer on the states of another"
        part = part.sort("panel", "layer", "other_layer")
        sides = heat.Side("other_layer", "layer of the states"), heat.Side("layer", "layer of the probe")
        drawn.append(heat.fields(part, *sides, measure(str(metric)), title))
    return drawn


def run_transfer(numbers: pl.DataFrame, names: dict[str, str]) -> list[Chart]:
    """Draw, for each label, how well probes of each run read other runs' states of the same layer."""
    own = _transferred(numbers).filter(pl.col("other_run").is_not_null())
    drawn = []
    for (data, label, metric), part in own.group_by("data", "label", "metric", maintain_order=True):
        other = frames.shown(pl.col("other_run"), part["other_run"], names)
        part = part.with_columns(pair=pl.format("{} on {}", "model", other)).sort("panel", "pair", "layer")
        title = f"{plain(str(label))} ({plain(str(data))}): a probe of one model on the states of another"
        sides = heat.Side("layer", "layer"), heat.Side("pair", "probe of … on states of …")
        drawn.append(heat.fields(part, *sides, measure(str(metric)), title))
    return drawn


def _transferred(numbers: pl.DataFrame) -> pl.DataFrame:
    return numbers.filter(pl.col("analysis") == "probe_depth", pl.col("group") == "transfer")


def concept_depth(numbers: pl.DataFrame) -> list[Chart]:
    """Draw, for each label, from which layer on each model nearly has it, and where it has it best."""
    deep = numbers.filter(pl.col("analysis") == "probe_depth")
    keys = ["data", "label", "panel", "model"]
    ends = [
        deep.filter(metric=metric).select(
            *keys, *(pl.col(end).alias(name + suffix) for end, suffix in zip(_ENDS, _SUFFIXES))
        )
        for metric, name in (("converging_layer", "near"), ("peak_layer", "peak"))
    ]
    both = ends[0].join(ends[1], on=keys, maintain_order="left")
    layers = deep["layer"].drop_nulls().unique().sort().to_list()
    drawn = []
    for (data, label), part in both.group_by("data", "label", maintain_order=True):
        part = part.with_columns(
            near_low=pl.col("near_low").fill_null(pl.col("near")),
            peak_high=pl.col("peak_high").fill_null(pl.col("peak")),
        )
        title = f"{plain(str(label))} ({plain(str(data))}): where it forms"
        drawn.append(heat.ranges(part.drop("data", "label"), part["model"].unique().sort().to_list(), layers, title))
    return drawn


_SUFFIXES = ("", "_low", "_high")


def checkpoints(store: Store, numbers: pl.DataFrame) -> list[Chart]:
    """Draw every number that runs of several training steps have at each layer: steps down, layers across.

    Of probes only the main scores, of other analyses all that rest on no label.
    """
    found = {run.id: training_step(run.model) for run in store.runs()}
    known = [(run, *step) for run, step in found.items() if step is not None]
    schema = {"run": pl.String, "series": pl.String, "step": pl.Int64}
    steps = pl.DataFrame(known, schema=schema, orient="row")
    scores = pl.col("metric").is_in(_SCORES) & pl.col("group").is_null() & (pl.col("analysis") == "probe")
    # Where nothing is known of a label, a number stands for the layer as such.
    numbers = frames.clean(numbers)
    free = pl.col("label").is_null() & ~pl.col("analysis").is_in(["text", "compare", "delta_p"])
    own = numbers.filter(scores | free, pl.col("layer").is_not_null(), pl.col("other_layer").is_null())
    own = own.filter(~pl.col("metric").str.contains("^left_out|_q[0-9.]+$")).join(
        steps, on="run", maintain_order="left"
    )
    keys = ["data", "series", "analysis", "metric", "label"]
    drawn = []
    for (data, series, _, metric, label), part in own.group_by(keys, maintain_order=True):
        if part["step"].n_unique() < 2:
            continue
        where = pl.concat_str(
            pl.col("panel").replace("", None), "position", "group", separator=" ", ignore_nulls=True
        ).replace("", "all samples")
        part = part.with_columns(panel=where).sort("panel", "step", "layer")
        # Two runs of one step (another dtype) would lie on top of each other: the first counts.
        part = part.unique(["panel", "step", "layer"], keep="first", maintain_order=True)
        name = measure(str(metric)).name if label is None else f"{measure(str(metric)).name} of {plain(str(label))}"
        title = f"{capital(name)} over training of {plain(str(series))} ({plain(str(data))})"
        sides = heat.Side("layer", "layer"), heat.Side("step", "training step")
        drawn.append(heat.fields(part, *sides, measure(str(metric)), title))
    return drawn
