"""What a changed pass does to a probe's prediction: ΔP and flips, and their difference from a control's, paired.

With ŷ the probe's clean prediction of a held-out sample, ΔP = 100 · (P(ŷ | changed) − P(ŷ | clean)), in percentage points,
and the sample flips when the prediction under the change is not ŷ. Because ŷ is what the clean pass made most probable, ΔP
is negative on average under any perturbation at all, noise included: that is what the control is for.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from layercache.analyze import bootstrap, tables
from layercache.analyze.bootstrap import Estimate, Resamples
from layercache.analyze.delta_p_conditions import Change
from layercache.analyze.delta_p_data import Task
from layercache.analyze.tables import Row
from layercache.recipe import DeltaPSpec
from layercache.store.layout import CLEAN

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Logits = dict[str, Floats]
"""Log-odds of a right answer by condition, [layers, n] each."""

METRICS = ("delta_p", "flip_rate")


class Effect(NamedTuple):
    """ΔP in percentage points and flips (0 or 1), float64 of one shape."""

    delta_p: Floats
    flip: Floats


def effect(clean: Floats, changed: Floats) -> Effect:
    """Compare log-odds under a change with clean ones of the same shape, [layers, n] or another; NaN where either is."""
    sign = np.where(clean > 0, 1.0, -1.0)
    delta = 100 * (expit(sign * changed) - expit(sign * clean))
    return Effect(delta, np.where(np.isnan(delta), np.nan, (clean > 0) != (changed > 0)))


def key(task: Task, **further: object) -> Row:
    """Return the columns that every number of a task shares."""
    given = task.problem
    shared = {"run": given.run.id, "data": given.data, "analysis": "delta_p", "label": given.label.name}
    return {**shared, "site": task.feature.site, "pooling": task.feature.pooling, **further}


def compared(task: Task, change: Change) -> Bools:
    """Return the rows that a change is reported on: held out, with states under it and, if it has one, its control."""
    rows = task.problem.reported & task.have[change.condition]
    both = rows & task.have[change.control] if change.control else rows
    return both if both.any() else rows


def unconditioned(task: Task, logits: Logits, change: Change, spec: DeltaPSpec) -> list[Row]:
    """Return ΔP and flip rate of a change and its control on the samples that have both, and their paired difference."""
    rows = compared(task, change)
    if not rows.any():
        return []
    names = [change.condition]
    if change.control and task.have[change.control][rows].all():
        names.append(change.control)
    effects = [effect(logits[CLEAN][:, rows], logits[name][:, rows]) for name in names]
    resamples = bootstrap.draw(task.problem.folds.groups[rows], spec.bootstrap, spec.seed)
    # [conditions, metrics, layers] of estimates on the same draws.
    found = [[averages(values, resamples) for values in one] for one in effects]
    n, table = int(rows.sum()), []
    for index, layer in enumerate(task.feature.layers):
        for number, metric in enumerate(METRICS):
            for name, estimates in zip(names, found):
                place = key(task, condition=name, layer=layer, group="all")
                table += row(place, metric, estimates[number][index], n)
            if len(names) == 2:
                place = key(task, condition=change.condition, layer=layer, group="all")
                table += row(place, f"{metric}_minus_control", minus(*(one[number][index] for one in found)), n)
    return table


def averages(values: Floats, resamples: Resamples, within: Floats | None = None) -> list[Estimate]:
    """Average rows of values [s, n], over all n or where `within` [s, n] is 1, with intervals."""
    weights = np.ones_like(values) if within is None else within
    sums = bootstrap.sums(np.concatenate([np.where(weights > 0, values, 0.0), weights]).T, resamples)
    top, bottom = sums[:, : len(values)], sums[:, len(values) :]
    means = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)
    return [bootstrap.around(float(column[0]), column[1:]) for column in means.T]


def minus(one: Estimate, other: Estimate) -> Estimate:
    """Return the paired difference of two estimates on the same draws."""
    return bootstrap.around(one.value - other.value, one.resampled - other.resampled)


def row(place: Row, metric: str, one: Estimate, n: int) -> list[Row]:
    """Return one row of results, or none where the value is undefined."""
    return tables.row(place, metric, one.value, n, one.low, one.high)
