"""Plain-text tables of what layers answer and of what adapters change, for a terminal."""

from collections.abc import Iterator

import polars as pl

from layercache.analyze.plain_tables import cell, number, of, tables
from layercache.chosen import ACCURACY, by_validation, validated

_CALIBRATION = ("choice_ece", "choice_brier", "choice_mass")
_EFFECTS = {"effect": "accuracy", "variance_share": "share of variance", "anova_p": "F-test p"}
_ONE_SEED = "one seed: without a second, nothing says what is chance, so no interval, share of variance or F-test"


def answers(frame: pl.DataFrame) -> Iterator[str]:
    """Yield for every data set, label and way of scoring the accuracy of the answers by layer, models beside each other."""
    found = frame.filter(analysis="choices")
    for (data, label, group), part in found.group_by("data", "label", "group", maintain_order=True):
        layers = sorted(part["layer"].drop_nulls().unique().to_list())
        titles, columns = [], []
        for run in part["run"].unique(maintain_order=True):
            here = of(part, run=run)
            titles.append(run)
            columns.append(
                [" " + cell(of(here, metric="accuracy", layer=layer)) for layer in layers]
                + [" " + cell(of(here, metric=name, layer=layers[-1])) for name in _CALIBRATION]
            )
        names = [*map(str, layers), *(f"{name}, layer {layers[-1]}" for name in _CALIBRATION)]
        yield tables(f"{data}, {label}, choices ({group}): accuracy [95 % interval] by layer", names, titles, columns)


def adapters(frame: pl.DataFrame) -> Iterator[str]:
    """Yield for every data set and label the systems beside the base, and what matters in the grid."""
    found = frame.filter(pl.col("analysis") == "compare", pl.col("group").is_not_null())
    for (data, label), part in found.drop_nulls("label").group_by("data", "label", maintain_order=True):
        systems = (
            part.filter(metric="accuracy")
            .filter(pl.col("value").is_not_null())
            .sort("value", descending=True, maintain_order=True)
        )
        if len(systems):
            rows = [of(part, run=one["run"], group=one["group"]) for one in systems.iter_rows(named=True)]
            wanted = {
                "accuracy": "accuracy",
                "minus base": "accuracy_minus_base",
                "McNemar p": "mcnemar_p",
            }
            columns = [[" " + cell(of(here, metric=metric)) for here in rows] for metric in wanted.values()]
            names = [f"{one['run']}, {one['group']}" for one in systems.iter_rows(named=True)]
            yield tables(f"{data}, {label}: systems [95 % interval]", names, list(wanted), columns, corner="system")
            yield from _chosen(part)
        for run, own in part.filter(pl.col("metric").is_in(list(_EFFECTS))).group_by("run", maintain_order=True):
            yield _grid(f"{data}, {label}, {run[0]}", own)


def _grid(place: str, own: pl.DataFrame) -> str:
    """Lay out what matters in a grid; with one seed its effects alone, and why."""
    shown = _EFFECTS
    if not (of(own, metric="effect")["n"] > 1).any():
        shown, own = {"effect": _EFFECTS["effect"]}, of(own, metric="effect")
    groups = own["group"].unique(maintain_order=True).to_list()
    columns = [[" " + cell(of(own, metric=metric, group=group)) for group in groups] for metric in shown]
    over = " [95 % interval over seeds]" if shown is _EFFECTS else ""
    table = tables(
        f"{place}: what matters in the grid{over}", groups, list(shown.values()), columns, corner="effect of"
    )
    return table if over else f"{table}\n{_ONE_SEED}"


def _chosen(part: pl.DataFrame) -> Iterator[str]:
    """Say which adapter of each base the rows to validate on choose; nothing where none were validated."""
    adapted = part.filter(metric="accuracy_minus_base", group="model").select("run", "group", "other_run")
    for _, own in validated(adapted, part).group_by("other_run", maintain_order=True):
        best = by_validation(own)
        if best is not None:
            rows = of(part, run=best["run"], group="model", metric=ACCURACY)["n"][0]
            tested = cell(of(part, run=best["run"], group="model", metric="accuracy"))
            yield (
                f"chosen of {len(own)} adapters by the {rows} rows to validate on: {best['run']}, accuracy"
                f" {number(best[ACCURACY])} there, {tested} on the rows tested"
            )
