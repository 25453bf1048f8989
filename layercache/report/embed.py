"""What a page holds once however often it is drawn: the numbers of all figures, as columns, and the charts without them.

A table of numbers and the chart above it are made from the same columns, which the page's script turns into rows.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt
import polars as pl

from layercache.report import linking, theme
from layercache.report.text import plain

DIGITS = 5
"""Significant digits that embedded numbers keep; the store has them all."""

TITLES = {
    **{"model": "model", "other": "other model", "panel": "read at", "data": "data", "condition": "condition"},
    **{"group": "system", "baseline": "baseline", "band": "band", "metric": "metric", "kind": "kind", "row": "row"},
    **{
        "position": "position",
        "layer": "layer",
        "layer_name": "module",
        "other_layer": "other layer",
        "depth": "depth (%)",
    },
    **{"step": "training step", "pair": "probe and states", "strength": "strength", "r": "r", "alpha": "alpha"},
    **{"token": "token", "rank": "rank", "top_token": "most probable next", "probability": "probability"},
    **{
        "entropy": "entropy (nats)",
        "role": "role",
        "truth": "true",
        "predicted": "predicted",
        "near": "comes near from",
    },
    **{"peak": "best", "near_low": "near, 95 % from", "peak_high": "best, to", "near_high": "near, to"},
    **{"rule": "rule", "mean": "mean", "worst": "worst", "cases": "cases"},
    **{"peak_low": "best, 95 % from", "value": "value", "low": "95 % from", "high": "to", "share": "share", "n": "n"},
}
"""Columns of the tables behind charts, in their order, and what they are called; others are for drawing only."""


class Embedded:
    """Collects what figures and tables hold.

    Attributes:
        data: by name the number of rows and the columns of every frame.
        specs: the charts, in the order of the page.
    """

    def __init__(self, models: Sequence[str] = ()) -> None:
        self.data: dict[str, dict[str, Any]] = {}
        self.specs: list[dict[str, Any]] = []
        self._models = list(models)
        self._names: dict[str, str] = {}

    def chart(self, chart: alt.TopLevelMixin, description: str) -> tuple[int, list[str]]:
        """Keep a chart; return its number and the names of the frames it is drawn from."""
        drawn = as_dict(chart)
        frames = drawn.pop("datasets", {})
        names = {name: self._keep(name, list(rows)) for name, rows in frames.items()}
        columns = {names[name]: {key for row in rows[:1] for key in row} for name, rows in frames.items()}
        spec = linking.linked(_renamed(drawn, names), columns, self._models)
        self.specs.append({**spec, "description": plain(description)})
        shown = [name for name, own in columns.items() if own & {"model", "panel", "layer"}]
        return len(self.specs) - 1, list(dict.fromkeys(shown))

    def frame(self, frame: pl.DataFrame) -> str:
        """Keep a frame; return its name."""
        name = f"t{len(self.data)}"
        self.data[name] = _columns(frame.columns, [frame[column].to_list() for column in frame.columns], len(frame))
        return name

    def rows(self, names: Iterable[str]) -> int:
        """Return how many rows frames have together."""
        return sum(int(self.data[name]["n"]) for name in names)

    def _keep(self, name: str, rows: list[dict[str, Any]]) -> str:
        """Keep rows under a short name; those of a name that Altair made of their content, once."""
        if name not in self._names:
            self._names[name] = f"d{len(self.data)}"
            keys = list(dict.fromkeys(key for row in rows for key in row))
            self.data[self._names[name]] = _columns(keys, [[row.get(key) for row in rows] for key in keys], len(rows))
        return self._names[name]


def as_dict(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """Return a chart as Altair's dictionary, with its numbers and without a config."""
    with alt.data_transformers.disable_max_rows():
        drawn: dict[str, Any] = chart.to_dict(validate=False)
    return {key: value for key, value in drawn.items() if key != "config"}


def alone(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """Return a chart's Vega-Lite specification for a file of its own, in light colours."""
    return {**as_dict(chart), "config": theme.FILE}


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """Give every `data` of a chart its new name."""
    if isinstance(value, list):
        return [_renamed(one, names) for one in value]
    if not isinstance(value, dict):
        return value
    renamed = {key: _renamed(one, names) for key, one in value.items()}
    if isinstance(own := renamed.get("data"), dict) and own.get("name") in names:
        renamed["data"] = {"name": names[own["name"]]}
    return renamed


def _columns(keys: Sequence[str], columns: Sequence[list[Any]], rows: int) -> dict[str, Any]:
    return {"n": rows, "columns": {key: _column(values) for key, values in zip(keys, columns, strict=True)}}


def _column(values: list[Any]) -> Any:
    """Return a column as briefly as it can be said: as runs of equal values, an index into the few there are, or whole."""
    values = [_short(value) for value in values]
    runs = [(value, len(list(same))) for value, same in itertools.groupby(values)]
    if 3 * len(runs) < len(values):
        return {"runs": [part for run in runs for part in run]}
    known = list(dict.fromkeys(values))
    if any(isinstance(value, str) for value in known) and 2 * len(known) <= len(values):
        places = {value: place for place, value in enumerate(known)}
        return {"of": known, "at": [places[value] for value in values]}
    return values


def _short(value: Any) -> Any:
    """Round a number to the digits that are shown, whole ones to integers; text is made plain, lists are joined."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        rounded = float(f"{value:.{DIGITS}g}") if abs(value) < 10**DIGITS else round(value)
        return int(rounded) if rounded == int(rounded) else rounded
    if isinstance(value, list):
        return ", ".join(plain(str(one)) for one in value)
    return plain(value) if isinstance(value, str) else value
