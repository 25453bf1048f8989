"""Charts over layers: pure functions from a DataFrame to an Altair chart, with fixed field names (no user's is parsed).

    curves       a number over layers, models side by side, with intervals and baselines
    spread       the distribution of a number over layers, as quantile bands
    shares       a histogram over layers

Text in a frame is drawn as it is; `frames` and `samples` make it plain beforehand.
"""

from collections.abc import Sequence
from typing import NamedTuple

import altair as alt
import polars as pl

from layercache.report import theme
from layercache.report.marks import chart, color, dashes, grid, model_legend, or_else, ticks, tip, upright
from layercache.report.measures import Measure

_POINT = ("model", "layer", "layer_name", "value", "low", "high", "n")
WIDTH, HEIGHT = 460, 250
"""Of a chart with one or two panels, pixels."""
_NARROW = 285


def size(panels: int) -> dict[str, int]:
    """Return the size of one of so many panels: two beside each other, of more three."""
    return {"width": WIDTH, "height": HEIGHT} if panels < 3 else {"width": _NARROW, "height": 190}


def columns(panels: int) -> int:
    """Return how many panels stand beside each other."""
    return 2 if panels < 3 else 3


class Look(NamedTuple):
    """What the panels of one figure share: the models (their order gives the colours), the layers, the y axis."""

    models: Sequence[str]
    layers: Sequence[int]
    measure: Measure
    domain: tuple[float, float]
    cut: bool = False
    legend: bool = True
    height: int = HEIGHT


def look(models: Sequence[str], frame: pl.DataFrame, measure: Measure) -> Look:
    """Choose one y axis for every panel of a figure.

    Scales with two ends are drawn whole. Where the numbers go below the measure's floor (R² of a probe that fails
    does), the axis stops there; `cut` says that something lies beyond an end.
    """
    ends = [frame[name].cast(pl.Float64).fill_nan(None).drop_nulls() for name in ("value", "low", "high")]
    values = pl.concat(ends)
    least, most = or_else(values.min(), 0.0), or_else(values.max(), 1.0)
    low = measure.low if measure.low is not None else min(0.0, 1.05 * least)
    high = measure.high if measure.high is not None else max(most * 1.05, low)
    if measure.floor is not None:
        low = max(low, measure.floor)
    cut = least < low or most > high
    layers = frame["layer"].drop_nulls().unique().sort().to_list()
    return Look(models, layers, measure, (low, high if high > low else low + 1), cut)


def curves(
    frame: pl.DataFrame, baselines: pl.DataFrame, style: Look, title: str = "", note: str = ""
) -> alt.TopLevelMixin:
    """Draw a number over layers: a panel for each value of `panel`, a line and its 95 % band for each model.

    Args:
        frame: panel, model, layer, layer_name, value, low, high, n; low and high may be null.
        baselines: panel (null: in every panel), model, baseline, layer (null: at every layer), value, low, high, n.
        style: what the panels share.
        title: above the figure.
        note: below the title.
    """
    panels = frame["panel"].unique(maintain_order=True).to_list()
    style = style._replace(height=size(len(panels))["height"])
    drawn = []
    for panel in panels:
        own = baselines.filter(pl.col("panel").is_null() | (pl.col("panel") == panel))
        layers = [*_curve_layers(frame.filter(panel=panel), style), *_baseline_layers(own, baselines, style)]
        drawn.append(alt.layer(*layers).properties(title=panel, **size(len(panels))))
    return grid(drawn, title, style.models, columns(len(panels)), note)


def spread(frame: pl.DataFrame, bands: pl.DataFrame, style: Look, title: str = "") -> alt.TopLevelMixin:
    """Draw distributions over layers: a panel for each value of `panel`, its line over its quantile bands.

    Args:
        frame: panel, model, layer, layer_name, value, low, high, n: the middle of the distribution.
        bands: panel, model, layer, band (such as `10–90 %`), low, high.
        style: what the panels share.
        title: above the figure.
    """
    panels = frame.select("panel", "model").unique(maintain_order=True)
    style = style._replace(legend=False, height=size(len(panels))["height"])
    drawn = []
    for panel, model in panels.iter_rows():
        own = bands.filter(panel=panel, model=model)
        area = _band(own, style, opacity=0.2).encode(detail="band:N", tooltip=["model:N", "band:N"])
        layers = [area, *_line_layers(frame.filter(panel=panel, model=model), style)]
        drawn.append(alt.layer(*layers).properties(title=[model, panel], **size(len(panels))))
    return grid(drawn, title, columns=columns(len(panels)))


def shares(frame: pl.DataFrame, models: Sequence[str], layers: Sequence[int], title: str = "") -> alt.TopLevelMixin:
    """Draw a histogram of prediction depths over layers, the models' bars side by side.

    Args:
        frame: panel, model, layer, share (0 to 1), n (samples at this layer).
        models: their order gives the colours.
        layers: the layers there are, in order.
        title: above the figure.
    """
    panels = frame["panel"].unique(maintain_order=True).to_list()
    x = alt.X("layer:O", title="layer from which the top token stays", scale=alt.Scale(domain=list(layers)))
    x = x.axis(labelAngle=0, values=ticks(layers), grid=False)
    drawn = []
    for panel in panels:
        bars = chart(frame.filter(panel=panel), "model", "layer", "share", "n").mark_bar()
        bars = bars.encode(
            x=x,
            xOffset=alt.XOffset("model:N", sort=list(models)),
            y=alt.Y("share:Q", title="share of samples", axis=alt.Axis(format="%")),
            color=color(models),
            tooltip=[
                "model:N",
                tip("layer", "layer", "d"),
                tip("share", "share of samples", ".1%"),
                tip("n", "samples", ",d"),
            ],
        )
        drawn.append(bars.properties(title=panel, width=WIDTH, height=HEIGHT))
    return grid(drawn, title, models)


def _curve_layers(frame: pl.DataFrame, style: Look) -> list[alt.Chart]:
    """Draw intervals under the line."""
    known = frame.drop_nulls(["low", "high"])
    return [*([_band(known, style, opacity=0.18)] if len(known) else []), *_line_layers(frame, style)]


def _band(frame: pl.DataFrame, style: Look, opacity: float) -> alt.Chart:
    """Draw low to high; with a single layer there is no area, so it becomes a bar."""
    # With the columns of the line, so that a page holds them once.
    drawn = chart(frame, *(("model", "layer", "low", "high", "band") if "band" in frame.columns else _POINT))
    if len(style.layers) == 1:
        drawn = drawn.mark_rule(strokeWidth=3, opacity=2 * opacity, clip=style.cut)
    else:
        drawn = drawn.mark_area(opacity=opacity, clip=style.cut)
    hue = color(style.models, style.legend)
    return drawn.encode(x=_x(style), y=_y(style, "low"), y2="high:Q", color=hue)


def _line_layers(frame: pl.DataFrame, style: Look) -> list[alt.Chart]:
    base = chart(frame, *_POINT).encode(x=_x(style), y=_y(style, "value"), color=color(style.models, style.legend))
    scale = alt.Scale(domain=list(style.models), range=theme.shapes(len(style.models)))
    shape = alt.Shape("model:N", title="model", scale=scale, legend=model_legend(style.models, style.legend))
    tips = [
        "model:N",
        tip("layer", "layer", "d"),
        alt.Tooltip("layer_name:N", title="module"),
        tip("value", style.measure.name),
    ]
    tips += [tip("low", "95 % from"), tip("high", "to"), tip("n", "samples", ",d")]
    size = 46 if len(style.layers) <= 16 else 20
    return [
        base.mark_line(clip=style.cut),
        base.mark_point(filled=True, opacity=1, size=size, clip=style.cut).encode(shape=shape),
        base.mark_point(filled=True, opacity=0, size=260, clip=style.cut).encode(tooltip=tips),
    ]


def _baseline_layers(own: pl.DataFrame, every: pl.DataFrame, style: Look) -> list[alt.Chart]:
    """Draw rules for systems without layers, lines for those that have several (shuffled labels)."""
    names = every["baseline"].unique(maintain_order=True).to_list()
    scale = alt.Scale(domain=names, range=[theme.dash(name) for name in names])
    dash = alt.StrokeDash("baseline:N", title="baseline", scale=scale, legend=dashes(names))
    tips = ["baseline:N", "model:N", tip("value", style.measure.name), tip("low", "95 % from"), tip("high", "to")]
    drawn = []
    level = pl.col("layer").is_null() if len(style.layers) > 1 else pl.lit(True)
    # Models may share a baseline; each keeps its own, for one of them may be hidden.
    rules = own.filter(level)
    if len(rules):
        rule = chart(rules, "model", "baseline", "value", "low", "high").mark_rule(style="baseline", clip=style.cut)
        drawn.append(rule.encode(y=_y(style, "value"), strokeDash=dash, tooltip=tips))
    lines = own.filter(~level)
    if len(lines):
        line = chart(lines, "model", "baseline", "layer", "value", "low", "high").mark_line(
            style="baseline", strokeWidth=1.5, clip=style.cut
        )
        drawn.append(line.encode(x=_x(style), y=_y(style, "value"), strokeDash=dash, detail="model:N", tooltip=tips))
    return drawn


def _x(style: Look) -> alt.X:
    scale = alt.Scale(domain=[style.layers[0] - 0.3, style.layers[-1] + 0.3], nice=False, zero=False)
    return alt.X(
        "layer:Q", title="layer", scale=scale, axis=alt.Axis(values=ticks(style.layers), format="d", grid=False)
    )


def _y(style: Look, field: str) -> alt.Y:
    scale = alt.Scale(domain=list(style.domain), nice=False, zero=False)
    title = upright(style.measure.axis, style.height)
    return alt.Y(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(tickCount=6))
