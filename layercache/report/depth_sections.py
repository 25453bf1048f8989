"""Sections of the page on what lies behind probes, on training steps, and on models side by side."""

import polars as pl

from layercache.report import charts, frames, in_depth, page, rules
from layercache.report.measures import measure
from layercache.report.page import Figure, Section
from layercache.report.text import capital, plain
from layercache.store.reader import Store

_DEEP_NOTE = (
    "Selectivity is the probe's score minus that of the same probe on random labels. Usable information and description"
    " lengths are in bits, for categories and booleans. Probes that read another layer's states are cross-fitted as well."
)
_COMPARE_NOTE = (
    "What the layer that a metric picks without labels gains over the majority class or the mean, as a share of what the"
    " best layer gains; one line a rule, the mean over labels, poolings and models that know the label at some layer."
)
_CURVES = ("selectivity", "v_information", "compression")


def deep_section(store: Store, numbers: pl.DataFrame) -> Section:
    """Return what lies behind the probes, a figure a number and label."""
    deep = numbers.filter(pl.col("analysis") == "probe_depth")
    parts: list[page.Part] = [page.paragraph(_DEEP_NOTE, "faint")]
    for (data, label), own in deep.group_by("data", "label", maintain_order=True):
        parts.append(page.heading(f"{label} ({data})"))
        for metric in _CURVES:
            part = own.filter(pl.col("metric") == metric, pl.col("layer").is_not_null())
            part = part if metric == "selectivity" else part.filter(pl.col("group").is_null())
            if len(part):
                by = pl.concat_str("panel", "group", separator=", ", ignore_nulls=True)
                part = part.with_columns(panel=by)
                style = charts.look(part["model"].unique().sort().to_list(), part, measure(metric))
                none = part.head(0).with_columns(baseline=pl.lit(None, pl.String))
                name = f"{capital(measure(metric).name)} of {plain(str(label))}"
                parts.append(Figure(charts.curves(part, none, style, name), f"{name} over layers."))
        for drawn, what in (
            (in_depth.concept_depth(own), "From the layer that comes near the best one (tick) to the best (point)."),
            (in_depth.layer_transfer(own), "Probes of one layer (down) on the states of another (across)."),
            (in_depth.run_transfer(own, frames.model_names(store)), "Probes of one model on the states of another."),
        ):
            parts += [Figure(chart, what) for chart in drawn]
        unknown = own.filter(pl.col("metric") == "layers_above_shuffled", pl.col("value") == 0)
        if len(unknown):
            where = [f"{model} ({panel})" for model, panel in unknown.select("model", "panel").iter_rows()]
            parts.append(
                page.paragraph(
                    f"No peak or converging layer, since no layer is above shuffled labels: {', '.join(where)}."
                )
            )
    return Section("behind", "What is behind the scores", parts)


def steps_section(drawn: list[in_depth.Chart]) -> Section:
    """Return numbers by layer over the steps of a training."""
    opened = 4
    parts = [
        Figure(chart, "Training steps down, layers across.", None if place < opened else page.title_of(chart))
        for place, chart in enumerate(drawn)
    ]
    return Section("training", "Over training", [*parts])


def compare_section(numbers: pl.DataFrame) -> Section:
    """Return the best layers of the models side by side, and which metric finds them."""
    own = numbers.filter(pl.col("analysis") == "compare")
    best = own.filter(pl.col("metric").is_in(["best_layer", "best_depth", "best_score"]))
    side = best.pivot("metric", index=["data", "label", "panel", "group", "model"], values="value")
    side = side.sort("data", "label", "best_score", descending=[False, False, True]).rename(
        {"panel": "read at", "group": "score"}
    )
    side = side.with_columns(pl.Series("score", [measure(name).name for name in side["score"]], pl.String))
    side = side.rename(
        {"best_layer": "best layer", "best_depth": "its depth, 0 to 1", "best_score": "best score"}, strict=False
    )
    parts: list[page.Part] = [page.table(side)]
    picked = own.filter(pl.col("metric") == "picked_share").group_by("group")
    picks = picked.agg(mean=pl.col("value").mean(), worst=pl.col("value").min(), cases=pl.len())
    picks = picks.sort("mean", "group", descending=[True, False])
    if len(picks):
        parts += [page.heading("Which layer to take without labels"), page.paragraph(_COMPARE_NOTE, "faint")]
        parts.append(Figure(rules.chart(picks), rules.caption(picks)))
        parts.append(page.Numbers(picks.rename({"group": "rule"}), "every rule"))
    return Section("compare", "Models side by side", parts)
