"""Adapters in the report: the table of systems, rank against alpha, and what changed at which layer."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt
import polars as pl

from layercache.chosen import by_validation, validated
from layercache.report import charts
from layercache.report.frames import shown
from layercache.report.marks import chart, grid, tip
from layercache.report.measures import measure
from layercache.report.text import capital, interval, number, plain

MODEL = "model"
GAPS = ("choice_accuracy_minus_base", "probe_accuracy_minus_base", "entropy_minus_base")
METRICS = (
    *("accuracy", "accuracy_minus_base", "mcnemar_p", "only_right", "only_base_right", *GAPS, "cka_with_base"),
    *("validation_accuracy", "validation_nll", "cell_accuracy", "effect", "variance_share", "anova_p"),
)
"""What `compare` writes about adapters."""
SHOWN = 4
"""Adapters whose layers are drawn."""
_SURE = 0.05
_CELL = r"^r=(\d+) alpha=([\d.e+-]+)(.*)$"


class AdaptationTask(NamedTuple):
    """A label of a data set: the rows of `results` of analysis compare that are about adapters."""

    data: str
    label: str
    numbers: pl.DataFrame

    def systems(self) -> pl.DataFrame:
        """Return a line a system, the most accurate first: model, system, value, low, high, gap, gap_low, gap_high, p."""
        keys = ["run", "model", "group"]
        parts = {name: self.numbers.filter(metric=name) for name in ("accuracy", "accuracy_minus_base", "mcnemar_p")}
        found = parts["accuracy"].select(*keys, "layer", "value", "low", "high", "n")
        gaps = parts["accuracy_minus_base"].select(*keys, "other_run", gap="value", gap_low="low", gap_high="high")
        found = found.join(gaps, on=keys, how="left").join(
            parts["mcnemar_p"].select(*keys, p="value"), on=keys, how="left"
        )
        return found.sort("value", descending=True, maintain_order=True)

    def bases(self) -> list[str]:
        """Return the names of the models that adapters are held against."""
        runs = self.numbers["other_run"].drop_nulls().unique().to_list()
        return self.numbers.filter(pl.col("run").is_in(runs))["model"].unique(maintain_order=True).to_list()


def tasks(numbers: pl.DataFrame) -> list[AdaptationTask]:
    """Return what was asked of adapters in `results`, by data set and label."""
    own = numbers.filter(pl.col("analysis") == "compare", pl.col("metric").is_in(METRICS))
    return [
        AdaptationTask(
            str(data), str(label), own.filter(data=data).filter((pl.col("label") == label) | pl.col("label").is_null())
        )
        for data, label in own.drop_nulls("label").select("data", "label").unique(maintain_order=True).iter_rows()
    ]


def answers(numbers: pl.DataFrame) -> list[tuple[str, str, pl.DataFrame]]:
    """Return the rows of `results` of analysis choices, by data set and label; their panel is the way of scoring."""
    own = numbers.filter(analysis="choices")
    own = own.with_columns(panel=pl.format("scoring: {}", shown(pl.col("group"), own["group"])).fill_null(""))
    return [
        (str(data), str(label), part)
        for (data, label), part in own.group_by("data", "label", maintain_order=True)
        if len(part)
    ]


def chosen(task: AdaptationTask | None, numbers: pl.DataFrame) -> list[str]:
    """Return the models to draw: all where they are few, else the bases and adapters from the best to the worst."""
    models = numbers["model"].unique().sort().to_list()
    if task is None or len(models) <= SHOWN + 1:
        return models
    found = task.systems().filter(group=MODEL)
    adapted = [name for name in found["model"].to_list() if name not in task.bases()]
    places = {round(i * (len(adapted) - 1) / (SHOWN - 1)) for i in range(SHOWN)}
    return [*task.bases(), *(adapted[i] for i in sorted(places))]


def by_layer(
    numbers: pl.DataFrame, metric: str, models: Sequence[str], title: str, base: str = ""
) -> alt.TopLevelMixin | None:
    """Draw a number of some models over layers; beside the base, which has no difference from itself, where it is one."""
    own = numbers.filter(pl.col("metric") == metric, pl.col("layer").is_not_null(), pl.col("model").is_in(list(models)))
    if not len(own):
        return None
    own = own.with_columns(pl.col("panel").fill_null("")).sort("panel", "model", "layer")
    nothing = own.head(1 if metric.endswith("_minus_base") else 0).with_columns(
        baseline=pl.lit(base), panel=None, layer=None, value=pl.lit(0.0), low=None, high=None
    )
    nothing = nothing.cast({"panel": pl.String, "layer": pl.Int32, "low": pl.Float64, "high": pl.Float64})
    known = own["model"].unique().sort().to_list()
    style = charts.look(known, pl.concat([own, nothing.select(own.columns)]), measure(metric))
    return charts.curves(own, nothing, style, f"{capital(measure(metric).name)} ({title})")


def answered(
    task: AdaptationTask | None, numbers: pl.DataFrame, metric: str, data: str, label: str
) -> alt.TopLevelMixin | None:
    """Draw a number of the answers that every layer prefers; of many adapters a few."""
    return by_layer(numbers, metric, chosen(task, numbers), f"{plain(label)}, {plain(data)}")


def gaps(task: AdaptationTask, metric: str) -> alt.TopLevelMixin | None:
    """Draw what adapters change at every layer, a few of them from the best to the worst."""
    return by_layer(task.numbers, metric, chosen(task, task.numbers), plain(task.data), ", ".join(task.bases()))


def cells(task: AdaptationTask) -> pl.DataFrame:
    """Return the cells of the grids: model, panel, r, alpha, value, low, high, n."""
    found = task.numbers.filter(metric="cell_accuracy")
    part = [pl.col("group").str.extract(_CELL, index) for index in (1, 2, 3)]
    found = found.with_columns(r=part[0].cast(pl.Int64), alpha=part[1].cast(pl.Float64), rest=part[2].fill_null(""))
    return found.with_columns(panel=pl.col("model") + pl.col("rest")).sort("panel", "r", "alpha")


def heat(task: AdaptationTask) -> alt.TopLevelMixin | None:
    """Draw the accuracy of every rank and alpha, a panel a grid, as colours with the number written on them."""
    found = cells(task)
    if not len(found):
        return None
    panels = []
    ends = [float(v) for v in (found["value"].min(), found["value"].max())]  # type: ignore[arg-type]
    middle = sum(ends) / 2
    for (panel,), own in found.group_by("panel", maintain_order=True):
        own = own.with_columns(
            alpha=pl.format("{}", pl.col("alpha")).str.strip_suffix(".0"),
            r=pl.col("r").cast(pl.String),
            text=pl.Series([number(v, 3) for v in own["value"].to_list()]),
        )
        base = chart(own, "r", "alpha", "value", "low", "high", "n", "text").encode(
            x=alt.X(
                "alpha:O",
                title="alpha",
                sort=own["alpha"].unique(maintain_order=True).to_list(),
                axis=alt.Axis(labelAngle=0),
            ),
            y=alt.Y("r:O", title="r", sort=own["r"].unique(maintain_order=True).to_list()[::-1]),
            tooltip=[
                "r:N",
                "alpha:N",
                tip("value", "accuracy"),
                tip("low", "95 % from"),
                tip("high", "to"),
                tip("n", "seeds", "d"),
            ],
        )
        scale = alt.Scale(domain=ends if ends[0] < ends[1] else [0, 1], scheme="blues")
        rect = base.mark_rect().encode(color=alt.Color("value:Q", title="accuracy", scale=scale))
        text = base.mark_text(fontSize=13).encode(
            text="text:N", color=alt.condition(f"datum.value > {middle}", alt.value("white"), alt.value("black"))
        )
        panels.append(alt.layer(rect, text).properties(title=str(panel), width=220, height=160))
    return grid(panels, f"Accuracy by rank and alpha ({plain(task.data)})")


def finding(task: AdaptationTask) -> list[str]:
    """Say how the best adapter does beside the base and the baselines, whether rank or alpha matters, and where it pays."""
    found = task.systems()
    said = []
    for base in task.bases():
        run = task.numbers.filter(model=base)["run"][0]
        adapted = found.filter(group=MODEL, other_run=run)
        own = found.filter(run=run)
        if not len(adapted):
            continue
        best, how = _picked(task, adapted)
        plainly = own.filter(group=MODEL).row(0, named=True)
        others = own.filter(pl.col("group") != MODEL)
        beside = ", ".join(f"{plain(one['group'])} {_scored(one)}" for one in others.iter_rows(named=True))
        said.append(
            f"{how}: {best['model']} answers {_scored(best)} of the rows tested right, {base} itself {_scored(plainly)}: a"
            f" difference of {interval(best['gap'], best['gap_low'], best['gap_high'])}, McNemar's exact p {_p(best['p'])}."
            + (f" Beside them: {beside}." if beside else "")
        )
        said += _effects(task.numbers.filter(model=base))
        said += _where(task.numbers.filter(model=best["model"]), str(best["model"]))
    return said


def _picked(task: AdaptationTask, adapted: pl.DataFrame) -> tuple[dict[str, Any], str]:
    """Return the adapter to speak of, and how it was chosen: by the rows to validate on where there are any."""
    count = f"of {len(adapted)} adapters"
    best = by_validation(validated(adapted, task.numbers))
    if best is None:
        return adapted.row(0, named=True), f"The best {count} on the rows tested, which flatters it"
    return best, f"Chosen {count} by the rows to validate on"


def _effects(own: pl.DataFrame) -> list[str]:
    """Say what rank and alpha do to accuracy."""
    effects = {one["group"]: one for one in own.filter(metric="effect").iter_rows(named=True)}
    shares = dict(own.filter(metric="variance_share").select("group", "value").iter_rows())
    if not {"r", "alpha"} <= effects.keys():
        return []
    r, alpha = effects["r"], effects["alpha"]
    said = f"From its smallest to its largest value, alpha changes accuracy by {_scored(alpha)}, rank by {_scored(r)}"
    if shares and r["n"] > 1:
        said += (
            f"; of the variance between cells, alpha explains {_percent(shares['alpha'])}, rank {_percent(shares['r'])}, both"
            f" together {_percent(shares.get('interaction', 0))}, seeds {_percent(shares['seed'])}"
        )
    seeds = f"{r['n']} seeds" if r["n"] != 1 else "one seed, so without intervals or shares of the variance"
    return [f"{said} ({seeds}).{_verdict(own, shares)} What an adapter adds is multiplied by alpha / r."]


def _verdict(own: pl.DataFrame, shares: dict[str, float]) -> str:
    """Say which of rank and alpha matters more, where it stands out from the seeds; nothing without a test."""
    p = dict(own.filter(metric="anova_p").select("group", "value").iter_rows())
    if not {"r", "alpha"} <= p.keys():
        return ""
    more, less = sorted(("alpha", "r"), key=lambda name: -shares[name])
    if p[more] >= _SURE:
        return f" Neither stands out from the seeds (F-test: alpha p {_p(p['alpha'])}, r p {_p(p['r'])})."
    beside = "does too" if p[less] < _SURE else "does not"
    return f" {more} matters more: it stands out from the seeds (F-test p {_p(p[more])}), {less} {beside} (p {_p(p[less])})."


def _where(own: pl.DataFrame, model: str) -> list[str]:
    """Say from which layer on answers differ from the base's, and where states do."""
    gaps = own.filter(metric="choice_accuracy_minus_base").drop_nulls("low").sort("layer")
    layers = gaps["layer"].to_list()
    not_above = gaps.filter(pl.col("low") <= 0)["layer"].to_list()
    run = [layer for layer in layers if layer > max(not_above, default=-1)]
    last = max(layers, default=0)
    said = []
    if run:
        said.append(
            f"{model}: its layers' answers are better than the base's from layer {min(run)} of {last} on (intervals above 0)."
        )
    elif len(gaps):
        said.append(f"{model}: at no layer is the interval of its answers' gain above 0 and stays there to the last.")
    alike = own.filter(metric="cka_with_base", pooling="last@prompt").drop_nulls("value").sort("value")
    if len(alike):
        least = alike.row(0, named=True)
        said.append(
            f"{model}: states at the last token differ most from the base's at layer {least['layer']} (CKA {number(least['value'])})."
        )
    return said


def _scored(one: dict[str, Any]) -> str:
    return interval(one["value"], one["low"], one["high"])


def _percent(share: float) -> str:
    return f"{number(100 * share, 0)} %"


def _p(value: float | None) -> str:
    return "–" if value is None else number(value, 3) if value >= 0.001 else "below .001"


def table(task: AdaptationTask) -> pl.DataFrame:
    """Return the table of systems as it is shown."""
    lines = [
        {
            "system": one["model"] if one["group"] == MODEL else f"{plain(one['group'])} ({one['model']})",
            "accuracy [95 %]": _scored(one),
            "minus base [95 %]": "–" if one["gap"] is None else interval(one["gap"], one["gap_low"], one["gap_high"]),
            "McNemar p": _p(one["p"]),
            "rows": one["n"],
        }
        for one in task.systems().iter_rows(named=True)
    ]
    return pl.DataFrame(lines)
