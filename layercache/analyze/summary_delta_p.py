"""ΔP as plain text."""

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from layercache.analyze.delta_p_groups import FEW
from layercache.analyze.plain_tables import cell, of, tables

_ANCHORED = {
    "question_anchored": "ΔP, flipped",
    "noise_question_anchored": "noise, flipped",
    "answer_anchored": "ΔP, not flipped",
    "noise_answer_anchored": "noise, not flipped",
}
"""Groups and the heads of their columns; samples that flip are the question-anchored ones."""
_DETECTED = {"": "[95 % interval]", "_sd": "sd over seeds", "_minus_probe": "minus probe"}


def effects(frame: pl.DataFrame) -> Iterator[str]:
    """Yield, for each data set, label, position and run, a table a changed pass, then one of detection."""
    own = frame.filter(pl.col("analysis") == "delta_p")
    for (data, label, pooling, run), part in own.group_by("data", "label", "pooling", "run", maintain_order=True):
        layers = sorted(part["layer"].drop_nulls().unique().to_list())
        changed = part.filter(group="all", metric="delta_p")["condition"].unique(maintain_order=True)
        where = f"{data}, {run}, {label} at {pooling}"
        for condition in (name for name in changed if not name.startswith("control-")):
            columns = {
                "clean AUC": {"condition": "clean", "metric": "auc", "group": None},
                "ΔP": {"condition": condition, "metric": "delta_p", "group": "all"},
                "ΔP - control": {"condition": condition, "metric": "delta_p_minus_control"},
                "flips": {"condition": condition, "metric": "flip_rate", "group": "all"},
                "flips - control": {"condition": condition, "metric": "flip_rate_minus_control"},
                **{
                    title: {"condition": condition, "metric": "delta_p", "group": name}
                    for name, title in _ANCHORED.items()
                },
            }
            found = [_matching(part, where) for where in columns.values()]
            counted = [title in _ANCHORED.values() and "noise" not in title for title in columns]
            cells = [
                [" " + (_sized if sized else cell)(of(one, layer=layer)) for layer in layers]
                for one, sized in zip(found, counted)
            ]
            small = any("!" in text for own in cells for text in own)
            legend = f"; ! fewer than {FEW} samples" if small else ""
            title = f"{where}: {condition} [95 % interval]; flipped: question-anchored{legend}"
            yield tables(title, [*map(str, layers)], list(columns), cells, across=9)
        systems = part.filter(metric="detection_auc")["group"].to_list()
        if systems:
            cells = [
                [" " + cell(of(part, metric=f"detection_auc{end}", group=name)) for name in systems]
                for end in _DETECTED
            ]
            yield tables(
                f"{where}: AUC of detecting wrong answers", systems, list(_DETECTED.values()), cells, corner="system"
            )


def _sized(found: pl.DataFrame) -> str:
    """Write a value with its interval and the samples behind it, marked where they are few."""
    if found.is_empty():
        return "-"
    n = int(found["n"][0])
    return f"{cell(found)} n={n:,}{'!' if n < FEW else ''}"


def _matching(frame: pl.DataFrame, where: Mapping[str, Any]) -> pl.DataFrame:
    return frame.filter(*(pl.col(name).eq_missing(pl.lit(value)) for name, value in where.items()))
