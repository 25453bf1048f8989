"""What every chart is put together from: data, colours, tooltips, grids of panels."""

from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt
import polars as pl

_PLACES = ("panel", "metric", "kind", "layer", "other_layer")


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
    return alt.Legend(symbolOpacity=1) if wanted and len(models) > 1 else None


def tip(field: str, title: str, form: str = ".3f") -> alt.Tooltip:
    """Return a line of a tooltip."""
    return alt.Tooltip(f"{field}:Q", title=title, format=form)


def grid(
    panels: Iterable[alt.TopLevelMixin], title: str, models: Sequence[str] = (), columns: int = 2
) -> alt.TopLevelMixin:
    """Put panels side by side under a title; a single model is named there and needs no legend."""
    return titled(alt.concat(*panels, columns=columns), title, models[0] if len(models) == 1 else "")


def titled(chart: alt.TopLevelMixin, title: str, subtitle: str = "") -> alt.TopLevelMixin:
    """Give a chart a title, if there is one."""
    if not title:
        return chart
    under = {"subtitle": subtitle} if subtitle else {}
    return chart.properties(title=alt.Title(title, fontSize=14, **under))


def or_else(value: Any, otherwise: float) -> float:
    """Return a number, or another where there is none."""
    return otherwise if value is None else float(value)


def ticks(layers: Sequence[int]) -> list[int]:
    """Return the layers that get a number: all of a few, every second, fourth or eighth of many."""
    step = next((step for step in (1, 2, 4, 8) if layers[-1] - layers[0] < 16 * step), 16)
    return [layer for layer in range(layers[0], layers[-1] + 1) if layer % step == 0] or list(layers)
