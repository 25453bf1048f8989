"""The study's figure: ΔP within the samples that flip and those that do not, beside the same figure made of noise.

`question_anchored` are the samples whose prediction flips under the knockout at one stated layer, `answer_anchored` the
others. A knockout and every control are grouped by their own flips, patches and `answer-only` by the knockout's. The
split is on the outcome, so that the figure says little without its floor: `noise_question_anchored` and
`noise_answer_anchored` are the groups that label-blind noise makes, `noise` is that noise over all samples.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from layercache.analyze import bootstrap, delta_p_noise, tables
from layercache.analyze.delta_p_conditions import Change
from layercache.analyze.delta_p_data import Task
from layercache.analyze.delta_p_effect import METRICS, Logits, averages, compared, effect, key, minus, row
from layercache.analyze.delta_p_noise import Floor
from layercache.analyze.tables import Row
from layercache.recipe import DeltaPSpec
from layercache.store.layout import CLEAN

Floats = npt.NDArray[np.float64]

QUESTION, ANSWER, NOISE = "question_anchored", "answer_anchored", "noise"
GROUPS = (QUESTION, ANSWER)
FEW = 30
"""Samples below which a group is said to be small."""
NOISE_GROUPS = (NOISE, f"{NOISE}_{QUESTION}", f"{NOISE}_{ANSWER}")


def grouped(change: Change) -> list[tuple[str, str]]:
    """Return (condition, condition by whose flips it is grouped) of a change and its control."""
    own = [(change.condition, change.anchor)]
    return [*own, (change.control, change.control)] if change.control else own


def flips(logits: Logits, condition: str) -> Floats:
    """Return which samples flip under a condition, [layers, n]: 0 or 1, NaN where that is not known."""
    return effect(logits[CLEAN], logits[condition]).flip


def conditioned(task: Task, logits: Logits, change: Change, at: int, spec: DeltaPSpec) -> Iterator[Row]:
    """Yield ΔP and flip rate within the groups, for a change and its control, with intervals, and the noise floor.

    Args:
        task, logits, change: what is grouped.
        at: the index of the layer that fixed groups are made at.
        spec: fixed or per-layer groups, draws, seed.
    """
    for condition, anchor in grouped(change):
        if not task.have[condition].any():
            continue
        rows = compared(task, change) & task.have[condition] & task.have[anchor]
        if rows.any():
            yield from _groups(task, logits, condition, anchor, rows, at, spec)
            if spec.noise:
                yield from _noise(task, logits, condition, anchor, rows, at, spec)


def _groups(
    task: Task,
    logits: Logits,
    condition: str,
    anchor: str,
    rows: npt.NDArray[np.bool_],
    at: int,
    spec: DeltaPSpec,
) -> Iterator[Row]:
    found = effect(logits[CLEAN][:, rows], logits[condition][:, rows])
    flipped = flips(logits, anchor)[:, rows]
    if spec.anchor == "fixed":
        flipped = np.broadcast_to(flipped[at], flipped.shape)
    resamples = bootstrap.draw(task.problem.folds.groups[rows], spec.bootstrap, spec.seed)
    for group, member in zip(GROUPS, (flipped, 1 - flipped)):
        estimates = [averages(values, resamples, member) for values in found]
        for index, place in enumerate(_places(task, condition, group, at, spec)):
            for metric, own in zip(METRICS, estimates):
                yield from row(place, metric, own[index], int(member[index].sum()))


def _places(task: Task, condition: str, group: str, at: int, spec: DeltaPSpec) -> Iterator[Row]:
    """Yield the columns of a group at every layer; `other_layer` is the layer whose flips made it."""
    for layer in task.feature.layers:
        made = layer if spec.anchor == "per-layer" else task.feature.layers[at]
        yield key(task, condition=condition, layer=layer, group=group, other_layer=made)


def _noise(
    task: Task, logits: Logits, condition: str, anchor: str, rows: npt.NDArray[np.bool_], at: int, spec: DeltaPSpec
) -> Iterator[Row]:
    """Yield what noise gives; the interval holds 95 % of the draws, `n` is the mean size of the group."""
    places = [list(_places(task, condition, group, at, spec)) for group in NOISE_GROUPS]
    for index, floor in enumerate(noise(logits, condition, anchor, rows, at, spec)):
        for number in range(len(NOISE_GROUPS)):
            place = places[number][index]
            for metric, values in zip(METRICS, (floor.delta_p, floor.flip_rate)):
                yield from over_draws(place, metric, values[number], floor.size[number])


def noise(
    logits: Logits, condition: str, anchor: str, rows: npt.NDArray[np.bool_], at: int, spec: DeltaPSpec
) -> Iterator[Floor]:
    """Draw the noise floor of a condition grouped by another's (or its own) flips, a layer at a time.

    Args:
        logits: of every condition, [layers, n].
        condition, anchor: whose effect, and by whose flips.
        rows: which count, bool [n].
        at: the layer, as an index, whose flips group all layers where the groups are fixed.
    """
    clean = logits[CLEAN][:, rows]
    own, leader = (delta_p_noise.Change(clean, logits[name][:, rows] - clean) for name in (condition, anchor))
    fixed = at if spec.anchor == "fixed" else None
    return delta_p_noise.floors(own, None if condition == anchor else leader, fixed, spec.noise, spec.seed)


def over_draws(place: Row, metric: str, values: Floats, sizes: Floats) -> list[Row]:
    """Return the mean over draws of noise, with the middle 95 % of them; draws without the group are left out.

    Args:
        values: of every draw, float64 [draws], NaN where the group is empty.
        sizes: rows in the group, float64 [draws].
    """
    known = ~np.isnan(values)
    if not known.any():
        return []
    one = bootstrap.around(float(values[known].mean()), values[known])
    return tables.row(place, metric, one.value, round(float(sizes[known].mean())), one.low, one.high)


def boundary(task: Task, logits: Logits, change: Change, at: int, spec: DeltaPSpec) -> Iterator[Row]:
    """Yield what is known of the groups' answers: accuracy, don't-know rate, mean ln(1 + popularity).

    For a change that is grouped by its own flips, and its control; the difference between the groups, as a metric that
    ends in `_minus_answer_anchored`, with its interval. The noise groups are those that label-blind noise makes at the layer
    of the groups, with the interval of its draws: samples near the threshold flip first, whatever flips them.
    """
    for condition, anchor in grouped(change):
        rows = compared(task, change) & task.have[condition]
        if anchor != condition or not rows.any():
            continue
        flipped = flips(logits, condition)[at]
        drawn = delta_p_noise.flips(logits[CLEAN][at], flipped, rows, spec.noise, spec.seed)
        for metric, values in about(task).items():
            known = rows & ~np.isnan(values)
            if not known.any():
                continue
            resamples = bootstrap.draw(task.problem.folds.groups[known], spec.bootstrap, spec.seed)
            layer = task.feature.layers[at]
            members = (np.ones(int(known.sum())), flipped[known], 1 - flipped[known])
            estimates = [averages(values[None, known], resamples, member[None])[0] for member in members]
            for group, one, member in zip(("all", *GROUPS), estimates, members):
                place = key(task, condition=condition, layer=layer, group=group, other_layer=layer)
                yield from row(place, metric, one, int(member.sum()))
            place = key(task, condition=condition, layer=layer, group=QUESTION, other_layer=layer)
            yield from row(place, f"{metric}_minus_{ANSWER}", minus(estimates[1], estimates[2]), int(known.sum()))
            place = key(task, condition=condition, layer=layer, other_layer=layer)
            yield from _boundary_of_noise(place, metric, values[known], drawn[:, known])


def _boundary_of_noise(place: Row, metric: str, values: Floats, drawn: npt.NDArray[np.bool_]) -> Iterator[Row]:
    """Yield the averages of values [n] over the groups of every draw of noise [draws, n], and their difference."""
    sizes = np.array([drawn.sum(axis=1), (~drawn).sum(axis=1)], np.float64)
    sums = np.array([np.where(part, values, 0.0).sum(axis=1) for part in (drawn, ~drawn)])
    means = np.divide(sums, sizes, out=np.full(sums.shape, np.nan), where=sizes > 0)
    for group, mean, size in zip(NOISE_GROUPS[1:], means, sizes):
        yield from over_draws({**place, "group": group}, metric, mean, size)
    difference = {**place, "group": NOISE_GROUPS[1]}
    yield from over_draws(difference, f"{metric}_minus_{ANSWER}", means[0] - means[1], sizes.sum(axis=0))


def about(task: Task) -> dict[str, Floats]:
    """Return what is averaged over groups of samples, [n] each, NaN where a row does not say."""
    found = {"answer_correct": task.problem.y.astype(np.float64)}
    if task.about.dont_know is not None:
        found["dont_know_rate"] = task.about.dont_know.astype(np.float64)
    if task.about.popularity is not None:
        found["log_popularity"] = task.about.popularity
    return found
