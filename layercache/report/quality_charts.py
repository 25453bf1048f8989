"""Charts of the quality of states: pure functions from a DataFrame to an Altair chart, with fixed field names.

by_depth     numbers over the depth of the model, a panel a metric, models of any size side by side
histogram    the distribution of a statistic over samples at every layer, which may have two peaks
likeness     every layer against every other, of one model or two
strength     a number against how much of the prompt was changed, a line a layer
"""

from collections.abc import Sequence

import altair as alt
import polars as pl

from layercache.report import theme
from layercache.report.marks import chart, color, dashes, grid, model_legend, ticks, tip, upright
from layercache.report.measures import measure

WIDTH, HEIGHT = 265, 180
"""Of a panel, pixels."""
BINS = 40
"""Of a histogram."""
_CELL, _SIDE = 22, 300


def by_depth(frame: pl.DataFrame, models: Sequence[str], title: str = "") -> alt.TopLevelMixin:
    """Draw numbers over depth, 0 % the embedding output and 100 % the last block: a panel for each value of `metric`.

    Args:
        frame: metric, baseline (null: the number itself), model, layer, layer_name, depth (0 to 100), value, low, high, n.
        models: their order gives the colours.
        title: above the figure.
    """
    baselines = frame["baseline"].drop_nulls().unique(maintain_order=True).to_list()
    dash = alt.StrokeDash(
        "baseline:N",
        title="baseline",
        scale=alt.Scale(domain=baselines, range=[theme.dash(name) for name in baselines]),
        legend=dashes(baselines),
    )
    drawn = []
    for metric in frame["metric"].unique(maintain_order=True):
        own = frame.filter(metric=metric)
        x = alt.X("depth:Q", title="depth (%)", scale=alt.Scale(domain=[-2, 102], nice=False))
        x = x.axis(values=[0, 25, 50, 75, 100], grid=False)
        title_y = upright(measure(metric).axis, HEIGHT)
        y = alt.Y("value:Q", title=title_y, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5))
        layers = _depth_layers(own.filter(pl.col("baseline").is_null()), models, x, y, title_y)
        beside = own.filter(pl.col("baseline").is_not_null())
        if len(beside):
            line = chart(beside, "model", "baseline", "depth", "value").mark_line(style="baseline", strokeWidth=1.5)
            tips = ["baseline:N", "model:N", tip("value", measure(metric).name)]
            layers.append(line.encode(x=x, y=y, strokeDash=dash, detail="model:N", tooltip=tips))
        drawn.append(alt.layer(*layers).properties(title=measure(metric).name, width=WIDTH, height=HEIGHT))
    return grid(drawn, title, models, columns=3)


def _depth_layers(
    frame: pl.DataFrame, models: Sequence[str], x: alt.X, y: alt.Y, title: str | list[str]
) -> list[alt.Chart]:
    hue = color(models)
    fields = ("model", "layer", "layer_name", "depth", "value", "low", "high", "n")
    known = frame.drop_nulls(["low", "high"])
    base = chart(frame, *fields).encode(x=x, y=y, color=hue)
    scale = alt.Scale(domain=list(models), range=theme.shapes(len(models)))
    shape = alt.Shape("model:N", title="model", scale=scale, legend=model_legend(models))
    tips = ["model:N", tip("layer", "layer", "d"), alt.Tooltip("layer_name:N", title="module"), tip("value", "value")]
    tips += [tip("low", "95 % from"), tip("high", "to"), tip("n", "samples", ",d")]
    band = chart(known, *fields).mark_area(opacity=0.18)
    return [
        *([band.encode(x=x, y=alt.Y("low:Q", title=title), y2="high:Q", color=hue)] if len(known) else []),
        base.mark_line(),
        base.mark_point(filled=True, opacity=1, size=28).encode(shape=shape, tooltip=tips),
    ]


def histogram(frame: pl.DataFrame, title: str = "") -> alt.TopLevelMixin:
    """Draw distributions over layers: a panel for each metric and model, a column a layer, darker where more samples are.

    Args:
        frame: metric, model, layer, low and high (the ends of a bin), share (of the layer's samples, above 0), n.
        title: above the figure.
    """
    drawn = []
    for metric, model in frame.select("metric", "model").unique(maintain_order=True).iter_rows():
        own = frame.filter(metric=metric, model=model)
        layers = own["layer"].unique().sort().to_list()
        x = alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0, values=ticks(layers), ticks=False))
        y = alt.Y(
            "low:Q",
            title=upright(measure(metric).axis, HEIGHT),
            scale=alt.Scale(zero=False, nice=False),
            axis=alt.Axis(grid=False),
        )
        shade = alt.FillOpacity("share:Q", scale=alt.Scale(type="sqrt", range=[0.06, 0.9]), legend=None)
        tips = [tip("layer", "layer", "d"), tip("low", "from"), tip("high", "to")]
        tips += [tip("share", "share of samples", ".1%"), tip("n", "samples", ",d")]
        cells = chart(own, "layer", "low", "high", "share", "n").mark_rect()
        cells = cells.encode(x=x, y=y, y2="high:Q", fillOpacity=shade, tooltip=tips)
        drawn.append(cells.properties(title=model, width=WIDTH, height=HEIGHT))
    return grid(drawn, title, columns=3)


def likeness(frame: pl.DataFrame, metric: str, title: str = "") -> alt.TopLevelMixin:
    """Draw how alike layers are: a panel for each value of `panel`, a square a pair of layers, darker where more alike.

    Args:
        frame: panel, model, other, layer, other_layer, value, low, high, n.
        metric: its name.
        title: above the figure.
    """
    shown = measure(metric)
    drawn = []
    for panel in frame["panel"].unique(maintain_order=True):
        own = frame.filter(panel=panel)
        sides = [own[name].unique().sort().to_list() for name in ("layer", "other_layer")]
        width, height = (max(min(_CELL * len(side), _SIDE), 60) for side in reversed(sides))
        x = alt.X("other_layer:O", title=f"layer of {own['other'][0]}")
        y = alt.Y("layer:O", title=f"layer of {own['model'][0]}", sort="descending")
        # A debiased estimate may lie a little below 0, where nothing is shared.
        shade = alt.FillOpacity("value:Q", scale=alt.Scale(domain=[0, 1], range=[0.02, 0.9], clamp=True), legend=None)
        tips = [tip("layer", "layer", "d"), tip("other_layer", "with layer", "d"), tip("value", shown.name)]
        tips += [tip("low", "95 % from"), tip("high", "to"), tip("n", "samples", ",d")]
        base = chart(own, "layer", "other_layer", "value", "low", "high", "n").encode(
            x=x.axis(labelAngle=0, values=ticks(sides[1]), ticks=False), y=y.axis(values=ticks(sides[0]), ticks=False)
        )
        cells = base.mark_rect().encode(fillOpacity=shade, tooltip=tips)
        drawn.append(cells.properties(title=panel, width=width, height=height))
    return grid(drawn, title, columns=3)


def strength(frame: pl.DataFrame, title: str = "") -> alt.TopLevelMixin:
    """Draw numbers against the strength of a perturbation: a panel for each metric, kind and model, a line a layer.

    Args:
        frame: metric, kind, model, layer, strength, value, low, high, n.
        title: above the figure.
    """
    layers = [str(layer) for layer in frame["layer"].unique().sort()]
    frame = frame.with_columns(line=pl.col("layer").cast(pl.String))
    # Not the colours of models: layers have an order. Neither end is lost on white or on black.
    scheme = alt.SchemeParams(name="viridis", extent=[0.15, 0.9])
    scale = alt.Scale(domain=layers, scheme=scheme)
    hue = alt.Color("line:O", title="layer", scale=scale, legend=alt.Legend(symbolOpacity=1))
    drawn = []
    for metric, kind, model in frame.select("metric", "kind", "model").unique(maintain_order=True).iter_rows():
        own = chart(
            frame.filter(metric=metric, kind=kind, model=model), "line", "strength", "value", "low", "high", "n"
        )
        x = alt.X("strength:Q", title=_STRENGTHS[kind], axis=alt.Axis(grid=False))
        title_y = upright(measure(metric).axis, HEIGHT)
        y = alt.Y("value:Q", title=title_y, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5))
        tips = [alt.Tooltip("line:N", title="layer"), tip("strength", _STRENGTHS[kind], "g")]
        tips += [tip("value", "value"), tip("low", "95 % from"), tip("high", "to"), tip("n", "samples", ",d")]
        band = own.mark_area(opacity=0.15).encode(x=x, y=alt.Y("low:Q", title=title_y), y2="high:Q", color=hue)
        line = own.mark_line(point=True).encode(x=x, y=y, color=hue, tooltip=tips)
        panel = alt.layer(band, line).properties(title=[model, kind], width=WIDTH, height=HEIGHT)
        drawn.append(panel)
    return grid(drawn, title, columns=3)


_STRENGTHS = {
    "repeat": "share of tokens repeated",
    "random": "share of tokens random",
    "truncate": "tokens kept",
}
"""What the number in a perturbation's name is."""
