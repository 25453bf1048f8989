"""Findings in words, made from the numbers alone; what a number does not support is not said."""

from typing import Any

import polars as pl

from layercache.report.frames import Task
from layercache.report.measures import BASELINES, measure
from layercache.report.text import count, interval, number

_CONTROL = BASELINES["shuffled"]


def probe_finding(task: Task) -> list[str]:
    """Say for each model where a label is read best, how the baselines do, and when none is beaten."""
    return [_of_model(task, at) for at in task.best().iter_rows(named=True)] or [f"{task.label} could not be scored."]


def layers_finding(task: Task, numbers: pl.DataFrame) -> list[str]:
    """Say whether the last layer loses against the best, and whether models differ, from paired differences."""
    own = numbers.filter(pl.col("analysis") == "compare", pl.col("label") == task.label, pl.col("data") == task.data)
    said = []
    lost = own.filter(pl.col("metric").str.ends_with("_last_minus_best")).drop_nulls("low")
    for at in task.best().iter_rows(named=True):
        found = lost.filter(run=at["run"], panel=at["panel"])
        if len(found):
            said.append(_lost(task, at, found.row(0, named=True)))
    names = dict(numbers.select("run", "model").unique().iter_rows())
    for one in own.filter(pl.col("metric").str.ends_with("_minus_other_run")).drop_nulls("low").iter_rows(named=True):
        what = _OF[one["metric"].partition("_")[0]]
        places = (
            f"{one['model']} (layer {one['layer']}) and {names.get(one['other_run'], one['other_run'])} (layer"
            f" {one['other_layer']})"
        )
        verdict = (
            "has an interval that holds 0: they are not told apart"
            if _holds(one)
            else "has an interval that excludes 0"
        )
        said.append(
            f"{task.label}: the difference in {what} between the layers that are best by {what}, of {places}, {verdict}:"
            f" {_wide(one)} (paired, by rows)."
        )
    return said


_OF = {"mse": "mean squared error", "accuracy": "accuracy"}


def _lost(task: Task, at: dict[str, Any], one: dict[str, Any]) -> str:
    """Say what the last layer has lost, where its interval excludes 0."""
    what = _OF[one["metric"].partition("_")[0]]
    verdict = "nothing is shown to be lost on the way to the last layer"
    if not _holds(one):
        verdict = "the last layer has lost some of it"
    return (
        f"{at['model']}, {at['panel']}: the last layer's {what} (layer {one['layer']}, before the final norm) for {task.label} minus that of layer {one['other_layer']}, its"
        f" best by {what}, is {_wide(one)}: {verdict} (paired, by rows; the best layer is chosen on them, which favours it)."
    )


def _holds(one: dict[str, Any]) -> bool:
    return bool(one["low"] <= 0 <= one["high"])


def _wide(one: dict[str, Any]) -> str:
    """Write a difference with three digits: those of accuracies are small."""
    return f"{number(one['value'], 3)} [{number(one['low'], 3)}, {number(one['high'], 3)}]"


def _of_model(task: Task, at: dict[str, Any]) -> str:
    shown = measure(task.metric)
    score = f"{shown.name} {interval(at['value'], at['low'], at['high'])}"
    place = f"at layer {at['layer']} of {at['model']} ({at['panel']})"
    rivals = _rivals(task, at)
    rival = rivals[0] if rivals else None
    against = ", ".join(f"{one['baseline']} {interval(one['value'], None, None)}" for one in rivals)
    if rival is not None and not _better(at["value"], rival["value"], shown.rising):
        other = interval(rival["value"], rival["low"], rival["high"])
        return f"No layer of {at['model']} reads {task.label} better than {rival['baseline']}: {score} {place}, against {other}."
    sentence = f"{task.label} is best read {place}: {score}{_share(task, at)}"
    if rival is not None and _overlap(at, rival):
        sentence += (
            f", not clearly better than {rival['baseline']} ({interval(rival['value'], rival['low'], rival['high'])})"
        )
    elif against:
        sentence += f"; {against}"
    return f"{sentence}.{_ties(task, at)}"


def _ties(task: Task, at: dict[str, Any]) -> str:
    """Name the other layers of the same place that score the same: none of them is the best."""
    own = task.scores.filter(metric=task.metric, run=at["run"], panel=at["panel"])
    tied = own.filter(pl.col("value") == at["value"], pl.col("layer") != at["layer"]).sort("layer")["layer"].to_list()
    layers = f"Layer {tied[0]} scores" if len(tied) == 1 else f"Layers {', '.join(map(str, tied))} score"
    return f" {layers} the same." if tied else ""


def _rivals(task: Task, at: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the baselines of a model, the best first; shuffled labels are a control, not a rival."""
    own = task.baselines.filter(
        pl.col("metric") == task.metric, pl.col("model") == at["model"], pl.col("baseline") != _CONTROL
    )
    own = own.drop_nulls("value").sort("value", descending=measure(task.metric).rising, maintain_order=True)
    return own.unique("baseline", keep="first", maintain_order=True).to_dicts()


def _share(task: Task, at: dict[str, Any]) -> str:
    """Say how often resampling names the same layer the best of its pooling."""
    won = task.wins.filter(run=at["run"], panel=at["panel"], layer=at["layer"])["value"]
    return f" (the best layer in {100 * won[0]:.0f} % of resamples)" if len(won) and won[0] is not None else ""


def _better(value: float, other: float, rising: bool) -> bool:
    return value > other if rising else value < other


def _overlap(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Tell whether two intervals overlap; a number without one is an interval of no width."""
    low_a, high_a = a["low"] if a["low"] is not None else a["value"], a["high"] if a["high"] is not None else a["value"]
    low_b, high_b = b["low"] if b["low"] is not None else b["value"], b["high"] if b["high"] is not None else b["value"]
    return bool(low_a <= high_b and low_b <= high_a)


def entropy_finding(numbers: pl.DataFrame) -> list[str]:
    """Say, for each model and position, how entropy falls and from where the lens agrees with the last layer."""
    found = []
    for (panel, model), own in numbers.group_by("panel", "model", maintain_order=True):
        curve = own.filter(metric="entropy").drop_nulls("value").sort("layer")
        if not len(curve):
            continue
        first, last = curve.row(0, named=True), curve.row(-1, named=True)
        samples = f" ({count(last['n'], 'sample')})" if last["n"] is not None else ""
        said = f"{model}, {panel}{samples}: mean entropy {_nats(first)} at layer {first['layer']}"
        if len(curve) > 1:
            said += f", {_nats(last)} at layer {last['layer']}"
        found.append(f"{said}{_agreement(own, last['layer'])}.")
    return found


def _nats(row: dict[str, Any]) -> str:
    return f"{number(row['value'])} nats"


def _agreement(own: pl.DataFrame, last: int) -> str:
    """Say from which layer on at least half of the samples have the last layer's token on top."""
    shares = own.filter(metric="agrees_with_final").drop_nulls("value").sort("layer")
    lacking = shares.filter(pl.col("value") < 0.5)["layer"].to_list()
    agreeing = [layer for layer in shares["layer"].to_list() if layer > max(lacking, default=-1)]
    from_layer = min(agreeing, default=last)
    said = ""
    if from_layer != last:
        said = f"; from layer {from_layer} on, at least half of the samples have the last layer's top token"
    elif len(shares) > 1:
        said = "; before the last layer, fewer than half of the samples have its top token"
    depth = own.filter(metric="prediction_depth")["value"]
    return said + (f"; predictions settle at layer {number(depth[0], 1)} on average" if len(depth) else "")
