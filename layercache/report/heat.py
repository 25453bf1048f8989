"""Charts with a coloured field for every pair of things, and of ranges of layers; as in `charts`, field names are fixed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt
import polars as pl

from layercache.report.marks import chart, color, grid, or_else, ticks, tip
from layercache.report.measures import Measure
from layercache.report.text import number

_STEP, _LARGE, _SIDE, _SMALL = 26, 46, 360, 9
"""Pixels of a cell where there are some, where there are few, and of a side of many; those of a cell at the least."""
_WRITTEN = 38
"""Pixels of a cell that holds its number in writing."""
# Room for panels beside each other, and what axis and gap of each take of it.
_WIDE, _BESIDE = 1080, 110


class Side(NamedTuple):
    """An axis of a field: the column, whose values are in order, and its title."""

    column: str
    title: str


def fields(frame: pl.DataFrame, across: Side, down: Side, measure: Measure, title: str = "") -> alt.TopLevelMixin:
    """Draw a field for each value: a panel for each value of `panel`, the same colours in all of them.

    Args:
        frame: panel, the columns of both sides (`down` from the top), value, low, high, n.
        across: the x axis.
        down: the y axis.
        measure: how the number is called; its floor cuts the colours as it cuts an axis.
        title: above the figure.
    """
    least = or_else(frame["value"].min(), 0.0)
    least = least if measure.floor is None else max(least, measure.floor)
    most = or_else(frame["value"].max(), 1.0)
    scale = alt.Scale(domain=[least, most if most > least else least + 1], scheme="viridis", clamp=True)
    legend = alt.Legend(title=measure.axis, gradientLength=160, titleLimit=400)
    drawn, widest = [], 0
    for panel in frame["panel"].unique(maintain_order=True):
        own = frame.filter(panel=panel)
        names = [own[side.column].unique(maintain_order=True).to_list() for side in (across, down)]
        own = own.with_columns(text=pl.Series([_short(value) for value in own["value"]], dtype=pl.String))
        field = chart(own, "model", across.column, down.column, "value", "low", "high", "n", "text").mark_rect()
        field = field.encode(
            x=alt.X(f"{across.column}:O", title=across.title, sort=names[0], axis=_axis(names[0])),
            y=alt.Y(f"{down.column}:O", title=down.title, sort=names[1], axis=_axis(names[1])),
            color=alt.Color("value:Q", scale=scale, legend=legend),
            tooltip=[
                alt.Tooltip(f"{down.column}:N", title=down.title),
                alt.Tooltip(f"{across.column}:N", title=across.title),
                tip("value", measure.name),
                tip("low", "95 % from"),
                tip("high", "to"),
                tip("n", "samples", ",d"),
            ],
        )
        width, height = map(_size, names)
        layers = [field]
        if width / len(names[0]) >= _WRITTEN:
            middle = (least + most) / 2
            ink = alt.condition(f"datum.value > {middle}", alt.value("black"), alt.value("white"))
            layers.append(field.mark_text(fontSize=11).encode(text="text:N", color=ink))
        widest = max(widest, width)
        drawn.append(alt.layer(*layers).properties(title=panel, width=width, height=height))
    return grid(drawn, title, columns=max(1, _WIDE // (widest + _BESIDE)))


def _axis(names: Sequence[Any]) -> alt.Axis:
    """Label every value of few, every second, fourth … layer of many."""
    values = ticks(names) if names and all(isinstance(name, int) for name in names) and len(names) > 12 else names
    return alt.Axis(labelAngle=0, grid=False, ticks=False, values=[one for one in names if one in set(values)])


def _short(value: float | None) -> str:
    """Write a number with about three digits, so that a cell holds it."""
    return number(value, 2 if value is None or abs(value) < 10 else 1 if abs(value) < 100 else 0)


def _size(names: Sequence[Any]) -> int:
    """Return the pixels of a side: large cells where they are few, smaller ones where there would be too many."""
    few = max(_STEP, min(_LARGE, _SIDE // max(len(names), 1)))
    return min(few * len(names), max(_SIDE, _SMALL * len(names)))


def ranges(frame: pl.DataFrame, models: Sequence[str], layers: Sequence[int], title: str = "") -> alt.TopLevelMixin:
    """Draw where a label forms: from the layer that comes near the best one (a bar's begin) to the best (its point).

    Args:
        frame: panel, model, near, near_low, near_high, peak, peak_low, peak_high: layers.
        models: their order gives the colours and the rows.
        layers: the layers there are.
        title: above the figure.
    """
    scale = alt.Scale(domain=[layers[0] - 0.5, layers[-1] + 0.5], nice=False, zero=False)
    axis = alt.Axis(format="d", tickMinStep=1, grid=True)
    y = alt.Y("model:N", title=None, sort=list(models))
    drawn = []
    for panel in frame["panel"].unique(maintain_order=True):
        base = chart(frame.filter(panel=panel), *(name for name in frame.columns if name != "panel")).encode(
            y=y, color=color(models, legend=False)
        )
        x = alt.X("near:Q", title="layer", scale=scale, axis=axis)
        tips = ["model:N", *(tip(end, name, "d") for end, name in _ENDS)]
        interval = base.mark_rule(strokeWidth=1).encode(x=alt.X("near_low:Q", title="layer", scale=scale, axis=axis))
        drawn.append(
            alt.layer(
                interval.encode(x2="peak_high:Q"),
                base.mark_rule(strokeWidth=6, opacity=0.5).encode(x=x, x2="peak:Q"),
                base.mark_tick(thickness=3, size=16).encode(x=x),
                base.mark_point(filled=True, opacity=1, size=110).encode(
                    x=alt.X("peak:Q", title="layer", scale=scale, axis=axis), tooltip=tips
                ),
            ).properties(title=panel, width=420, height=alt.Step(_STEP))
        )
    return grid(drawn, title)


_ENDS = (("near", "comes near from"), ("peak", "best"), ("near_low", "95 % from"), ("peak_high", "to"))
