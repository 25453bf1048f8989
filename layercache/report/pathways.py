"""ΔP in the report: what carries the evidence (a change minus its control), then the study's figure with its noise floor."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import altair as alt
import polars as pl

from layercache.report import charts, theme
from layercache.report.frames import shown
from layercache.report.marks import chart, grid, ticks, tip
from layercache.report.measures import measure
from layercache.report.text import capital, interval, number, plain

FEW = 30
"""Samples below which a group is said to be small."""
QUESTION, ANSWER = "question_anchored", "answer_anchored"
_GROUPS = {QUESTION: "question-anchored (flipped)", ANSWER: "answer-anchored (not flipped)"}
_NOISE = "noise_"
DIFFERENCES = ("flip_rate_minus_control", "delta_p_minus_control")
_KNOCKOUT = "knockout-"
_POINT = ("data", "group", "layer", "value", "low", "high", "n")


TABLES = {
    "what each pass does": ("delta_p", "flip_rate", "left_out"),
    "how good the probe is": ("auc", "auc_within_kind", "accuracy", "balanced_accuracy", "brier", "ece"),
    "what the groups know": tuple(
        f"{name}{suffix}"
        for name in ("answer_correct", "dont_know_rate", "log_popularity")
        for suffix in ("", f"_minus_{ANSWER}")
    ),
    "detecting wrong answers": ("detection_auc", "detection_auc_sd", "detection_auc_minus_probe"),
}
"""Tables of the page, by what they are opened with: the metrics they hold."""


class PathwayTask(NamedTuple):
    """A label, read at one position: the rows of `results` of analysis delta_p, of every run and data set."""

    label: str
    place: str
    numbers: pl.DataFrame

    @property
    def data(self) -> list[str]:
        """The data sets, in order."""
        return self.numbers["data"].unique().sort().to_list()

    @property
    def models(self) -> list[str]:
        """The models, in order."""
        return self.numbers["model"].unique().sort().to_list()

    def conditions(self, prefix: str = "") -> list[str]:
        """Return the changed passes that are grouped, knockouts first."""
        own = self.numbers.filter(group=QUESTION)["condition"].unique().to_list()
        own = [name for name in own if name.startswith(prefix) and not name.startswith("control-")]
        return sorted(own, key=lambda name: (not name.startswith(_KNOCKOUT), "-layers-" in name, name))


def tasks(numbers: pl.DataFrame) -> list[PathwayTask]:
    """Return what was asked about ΔP in `results`, by label and position."""
    own = numbers.filter(analysis="delta_p")
    return [
        PathwayTask(str(label), str(panel), part)
        for (label, panel), part in own.group_by("label", "panel", maintain_order=True)
    ]


def differences(task: PathwayTask, metric: str, data: str) -> alt.TopLevelMixin | None:
    """Draw a change minus its control over layers, a panel a change, models side by side, beside no difference."""
    own = task.numbers.filter(metric=metric, data=data).drop_nulls("layer")
    if not len(own):
        return None
    own = own.with_columns(panel=shown(pl.col("condition"), own["condition"])).sort("condition", "model", "layer")
    nothing = own.head(1).with_columns(
        baseline=pl.lit("no difference"), panel=None, layer=None, value=pl.lit(0.0), low=None, high=None
    )
    nothing = nothing.cast({"panel": pl.String, "layer": pl.Int32, "low": pl.Float64, "high": pl.Float64})
    models = own["model"].unique().sort().to_list()
    style = charts.look(models, pl.concat([own, nothing.select(own.columns)]), measure(metric))
    return charts.curves(own, nothing, style, f"{capital(measure(metric).name)} ({plain(data)}, {task.place})")


def split(task: PathwayTask, condition: str) -> alt.TopLevelMixin | None:
    """Draw the study's figure: ΔP over layers, a panel a model, a line a data set and group, the noise floor dashed."""
    own = task.numbers.filter(condition=condition, metric="delta_p").drop_nulls("layer")
    groups = own.filter(pl.col("group").is_in(list(_GROUPS)))
    if not len(groups):
        return None
    floor = own.filter(pl.col("group").str.starts_with(_NOISE), pl.col("group") != _NOISE.rstrip("_"))
    floor = floor.with_columns(pl.col("group").str.strip_prefix(_NOISE))
    layers = groups["layer"].unique().sort().to_list()
    names = {name: plain(name) for name in task.data}
    panels = []
    for model in groups["model"].unique().sort().to_list():
        drawn = [
            _lines(_named(part.filter(model=model), names), layers, list(names.values()), dashed)
            for part, dashed in ((groups, False), (floor, True))
        ]
        title = alt.TitleParams(model, subtitle=_sizes(groups.filter(model=model)))
        panels.append(
            alt.layer(*(one for part in drawn for one in part)).properties(
                title=title, width=charts.WIDTH, height=charts.HEIGHT
            )
        )
    note = "dashed: the same made of noise"
    return grid(panels, f"ΔP by outcome under {plain(condition)} ({task.place})", note=note)


def _sizes(groups: pl.DataFrame) -> list[str]:
    """Say how many samples flip and do not, a line a data set; of groups made at each layer the fewest and the most."""
    said = []
    for (name,), own in groups.group_by("data", maintain_order=True):
        counts = []
        for group in _GROUPS:
            sizes = own.filter(group=group)["n"].to_list() or [0]
            ends = dict.fromkeys(f"{size:,}" for size in (min(sizes), max(sizes)))
            counts.append(" to ".join(ends) + (" (few)" if min(sizes) < FEW else ""))
        said.append(f"{plain(str(name))}: {counts[0]} flipped, {counts[1]} not")
    return said


def _named(frame: pl.DataFrame, data: dict[str, str]) -> pl.DataFrame:
    return frame.with_columns(pl.col("data").replace(data), pl.col("group").replace(_GROUPS)).sort(
        "data", "group", "layer"
    )


def _lines(frame: pl.DataFrame, layers: list[int], data: list[str], dashed: bool) -> list[alt.Chart]:
    """Draw a line a data set and group; of noise a dashed one without points."""
    if not len(frame):
        return []
    scale = alt.Scale(domain=[layers[0] - 0.3, layers[-1] + 0.3], nice=False, zero=False)
    colour = alt.Color("data:N", title="data", scale=alt.Scale(domain=data), legend=alt.Legend(symbolOpacity=1))
    shape = alt.Shape(
        "group:N",
        title="group",
        scale=alt.Scale(domain=list(_GROUPS.values()), range=theme.shapes(len(_GROUPS))),
        legend=alt.Legend(symbolOpacity=1),
    )
    base = chart(frame, *_POINT).encode(
        x=alt.X("layer:Q", title="layer", scale=scale, axis=alt.Axis(values=ticks(layers), format="d", grid=False)),
        y=alt.Y("value:Q", title="ΔP (percentage points)", scale=alt.Scale(domain=[-100, 20], clamp=True)),
        color=colour,
    )
    tips = ["data:N", "group:N", tip("layer", "layer", "d"), tip("value", "ΔP", ".1f")]
    tips += [tip("low", "95 % from", ".1f"), tip("high", "to", ".1f"), tip("n", "samples", ",d")]
    if dashed:
        return [base.mark_line(strokeDash=[4, 4], opacity=0.7).encode(detail="group:N", tooltip=tips)]
    band = chart(frame.drop_nulls(["low", "high"]), *_POINT).mark_area(opacity=0.15)
    band = band.encode(x=base.encoding.x, y=alt.Y("low:Q"), y2="high:Q", color=colour, detail="group:N")
    return [
        *([band] if len(layers) > 1 else []),
        base.mark_line().encode(detail="group:N"),
        base.mark_point(filled=True, opacity=1, size=40).encode(shape=shape, tooltip=tips),
    ]


def finding(task: PathwayTask) -> list[str]:
    """Say, for every model, data set and controlled change, what it does beyond its control where that is largest."""
    said = []
    size = pl.col("value").abs()
    rates = task.numbers.filter(metric=DIFFERENCES[0]).sort(size, "layer", descending=[True, False], nulls_last=True)
    for at in rates.unique(["model", "data", "condition"], keep="first", maintain_order=True).iter_rows(named=True):
        own = task.numbers.filter(pl.col("layer") == at["layer"], group="all", model=at["model"], data=at["data"])
        change = _percent(own.filter(metric="flip_rate", condition=at["condition"]))
        fewer = at["value"] < 0
        read = ("value", "high", "low") if fewer else ("value", "low", "high")
        ends = (None if at[end] is None else 100 * (-at[end] if fewer else at[end]) for end in read)
        layers = rates.filter(model=at["model"], data=at["data"], condition=at["condition"])
        said.append(
            f"{at['model']}, {plain(at['data'])}: {plain(at['condition'])} flips {change} of the predictions at layer"
            f" {at['layer']}, {interval(*ends)} percentage points {'fewer than' if fewer else 'beyond'} its control{_surely(at, layers)}."
        )
    return said


def _surely(at: dict[str, Any], layers: pl.DataFrame) -> str:
    """Say whether an interval holds 0, and at how many layers it lies above; nothing where there is none."""
    if at["low"] is None:
        return ""
    above, below = (int(one.fill_null(False).sum()) for one in (layers["low"] > 0, layers["high"] < 0))
    said = "excludes" if at["low"] > 0 or at["high"] < 0 else "holds"
    return f"; the interval {said} 0 (of {len(layers)} layers {above} lie above 0, {below} below)"


def _percent(found: pl.DataFrame) -> str:
    return f"{number(100 * found['value'][0], 1)} %" if len(found) else "–"


def numbers_of(task: PathwayTask, metrics: Iterable[str]) -> pl.DataFrame:
    """Return the numbers of some metrics as they are stored, for a table."""
    names = ("model", "data", "condition", "group", "layer", "metric", "value", "low", "high", "n")
    return task.numbers.filter(pl.col("metric").is_in(list(metrics))).select(names)
