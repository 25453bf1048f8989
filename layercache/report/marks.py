"""What every chart is put together from: data, colours, tooltips, titles that fit, grids of panels."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt
import polars as pl

_PLACES = ("panel", "metric", "kind", "layer", "other_layer")
_AXIS, _LEAST = 45, 320
"""Pixels of an axis beside a panel; those that a title has at the least."""
_LEGEND, _ENTRY = 900, 46
"""Pixels of a legend, and those of an entry's symbol and gap."""
_LETTERS = 48
_SHORTENED = f"length(datum.label) > {_LETTERS} ? slice(datum.label, 0, 12) + '…' + slice(datum.label, -{_LETTERS - 13}) : datum.label"


def chart(frame: pl.DataFrame, *fields: str) -> alt.Chart:
    """Return a chart of these columns of a frame, NaN as null: JSON has no NaN.

    Columns that say which panel and layers a row belongs to come along, for the table below the chart.
    """
    known = [name for name in _PLACES if name in frame.columns and name not in fields]
    # A frame and not a list of rows: Altair copies every list it holds, many times.
    return alt.Chart(frame.select(*known, *fields).with_columns(pl.selectors.float().fill_nan(None)))


def color(models: Sequence[str], legend: bool = True) -> alt.Color:
    """Colour by model, in the order given."""
    scale = alt.Scale(domain=list(models))
    return alt.Color("model:N", title="model", scale=scale, legend=model_legend(models, legend))


def model_legend(models: Sequence[str], wanted: bool = True) -> alt.Legend | None:
    """Return the legend of several models; a single one is named under the title instead."""
    # Bands are faint; the legend's symbols must not be.
    return legend(models, symbolOpacity=1) if wanted and len(models) > 1 else None


def legend(names: Sequence[str], **settings: Any) -> alt.Legend:
    """Return a legend of these names, in as many columns as fit."""
    longest = min(max(map(len, names), default=0), _LETTERS)
    fitting = int(_LEGEND / (_ENTRY + 6 * longest))
    columns = {"columns": max(1, fitting)} if fitting < len(names) else {}
    # Names of one kind begin alike (paths do) and differ at the end: what is left out is in the middle.
    middle = {"labelExpr": _SHORTENED} if any(len(name) > _LETTERS for name in names) else {}
    return alt.Legend(**settings, **columns, **middle)


def dashes(names: Sequence[str]) -> alt.Legend:
    """Return the legend of dashed lines: swatches long enough to show dash and gap, no higher than the text."""
    return legend(names, symbolSize=1000, symbolStrokeWidth=1.5, clipHeight=14)


def tip(field: str, title: str, form: str = ".3f") -> alt.Tooltip:
    """Return a line of a tooltip."""
    return alt.Tooltip(f"{field}:Q", title=title, format=form)


def grid(
    panels: Iterable[alt.TopLevelMixin], title: str, models: Sequence[str] = (), columns: int = 2, note: str = ""
) -> alt.TopLevelMixin:
    """Put panels side by side under a title; a single model is named there and needs no legend.

    Args:
        panels: their titles are broken into lines that fit.
        title: above the figure.
        models: those of the figure.
        columns: panels beside each other.
        note: what has to be known to read the figure, below its title.
    """
    drawn = list(panels)
    least = _LEAST if min(len(drawn), columns) == 1 else 0
    for panel in drawn:
        if not isinstance(panel.width, int):
            continue
        lines = _one_or_many(
            [part for line in titles(panel) for part in wrapped(line, max(least, panel.width + _AXIS), 7.4)]
        )
        if isinstance(panel.title, alt.TitleParams):
            panel.title.text = lines
        elif lines:
            panel.title = lines
    widths = [panel.width if isinstance(panel.width, int) else _LEAST for panel in drawn]
    across = max(_LEAST, min(len(drawn), columns) * (max(widths, default=0) + _AXIS))
    under = [*(models if len(models) == 1 else ()), *([note] if note else ())]
    return titled(alt.concat(*drawn, columns=columns), title, under, across)


def titled(chart: alt.TopLevelMixin, title: str, under: Sequence[str] = (), across: int = 900) -> alt.TopLevelMixin:
    """Give a chart a title, if there is one, and lines below it; both are broken where the chart's width ends."""
    if not title:
        return chart
    lines = [part for line in under for part in wrapped(line, across, 5.8)]
    below = {"subtitle": _one_or_many(lines)} if lines else {}
    return chart.properties(title=alt.Title(_one_or_many(wrapped(title, across, 8.0)), fontSize=14, offset=10, **below))


def titles(chart: alt.TopLevelMixin) -> list[str]:
    """Return the lines of the title above a chart or a panel."""
    title = chart.title.text if isinstance(chart.title, alt.TitleParams) else chart.title
    if title is alt.Undefined or not title:
        return []
    return [str(line) for line in title] if isinstance(title, list) else [str(title)]


def wrapped(text: str, pixels: float, letter: float) -> list[str]:
    """Break text into lines of so many pixels, a letter taking about `letter` of them; words only where they must be."""
    most = max(12, int(pixels / letter))
    if len(text) <= most:
        return [text]
    return textwrap.wrap(text, most, break_on_hyphens=any(len(word) > most for word in text.split()))


def upright(text: str, height: int) -> str | list[str]:
    """Break the title of a y axis into lines that are no longer than the axis."""
    return _one_or_many(wrapped(text, height, 6.0))


def _one_or_many(lines: list[str]) -> str | list[str]:
    return lines[0] if len(lines) == 1 else lines


def or_else(value: Any, otherwise: float) -> float:
    """Return a number, or another where there is none."""
    return otherwise if value is None else float(value)


def ticks(layers: Sequence[int]) -> list[int]:
    """Return the layers that get a number: all of a few, every second, fourth or eighth of many."""
    step = next((step for step in (1, 2, 4, 8) if layers[-1] - layers[0] < 16 * step), 16)
    return [layer for layer in range(layers[0], layers[-1] + 1) if layer % step == 0] or list(layers)
