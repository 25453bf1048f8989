"""Two uses of the groups: can clean states foretell a sample's group, and does knowing it help to detect wrong answers?

Everything that scores a held-out sample is fitted on the other folds alone, the groups included: inside a fold's fitted part
the truthfulness probe is cross-fitted once more, and its flips are what the gate and the two experts are trained on.

The mixture (after the study's Mixture-of-Probes; how it mixes is our choice) is g · P_question + (1 − g) · P_answer, where g
is the gate's probability that the sample is question-anchored, and the two experts are probes of truthfulness fitted on the
samples of one group each. A group with fewer than MIN_CLASS right or wrong answers has the plain probe as its expert.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from layercache.analyze import bootstrap, folds, logistic, metrics, tables
from layercache.analyze.bootstrap import Estimate, Resamples
from layercache.analyze.delta_p_data import Task
from layercache.analyze.delta_p_effect import key, minus, row
from layercache.analyze.folds import Folds, training
from layercache.analyze.metrics import Classes
from layercache.analyze.scaling import Linear, in_order
from layercache.analyze.tables import Row
from layercache.recipe import DeltaPSpec
from layercache.store.layout import CLEAN

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
States = npt.NDArray[np.float32]

MIN_CLASS = 5
"""Right and wrong answers that a group needs for an expert of its own."""
PROBE, MIXTURE = "probe", "mixture"


class Fold(NamedTuple):
    """What one fold's fitted part gives: its probe of truthfulness, and which of its rows flip (NaN: others)."""

    probe: Linear
    flipped: Floats


def fit_folds(clean: States, changed: States, y: Ints, how: Folds, pool: ThreadPoolExecutor) -> list[Fold]:
    """Fit the probe of every fold, and cross-fit it again within the fold's fitted part to see which rows flip.

    Args:
        clean, changed: states [n, d]; a changed one is NaN where a row has none.
        y: 1 for a right answer [n].
        how: the folds, and the parts of the rows that are held out inside them.
        pool: threads to spread folds over.
    """

    def one(fold: int) -> Fold:
        fitted = training(how.assignment, fold)
        probe, penalty = logistic.fit_chosen(clean[fitted], y[fitted], 2, how.inner[fitted])
        flipped = np.full(len(y), np.nan)
        for part in np.unique(how.inner[fitted]):
            own, others = fitted & (how.inner == part), fitted & (how.inner != part)
            if others.any():
                model = logistic.fit(clean[others], y[others], 2, penalty)
                before, after = model.scores(clean[own])[:, 0], model.scores(changed[own])[:, 0]
                flipped[own] = np.where(np.isnan(after), np.nan, (before > 0) != (after > 0))
        return Fold(probe, flipped)

    return in_order(pool, one, how.k)


def foretell(x: States, fitted: list[Fold], how: Folds, pool: ThreadPoolExecutor) -> Floats:
    """Let a gate, fitted on clean states x [n, d] to say who flips, score held-out rows: log-odds [n]."""

    def one(fold: int) -> Floats:
        return _gate(x, fitted[fold], how)(x[how.assignment == fold])

    return _gathered(in_order(pool, one, how.k), how)


def mix(x: States, y: Ints, fitted: list[Fold], how: Folds, pool: ThreadPoolExecutor) -> Floats:
    """Score held-out rows of clean states x [n, d] by two gated experts: the probability of a right answer [n]."""

    def one(fold: int) -> Floats:
        held = x[how.assignment == fold]
        gate = expit(_gate(x, fitted[fold], how)(held))
        question, answer = (expit(_expert(x, y, fitted[fold], group, how).scores(held)[:, 0]) for group in (1, 0))
        return np.asarray(gate * question + (1 - gate) * answer)

    return _gathered(in_order(pool, one, how.k), how)


def plain(x: States, fitted: list[Fold], how: Folds) -> Floats:
    """Score held-out rows of clean states x [n, d] by the fold's own probe: log-odds [n]."""
    return _gathered([one.probe.scores(x[how.assignment == fold])[:, 0] for fold, one in enumerate(fitted)], how)


def _gate(x: States, one: Fold, how: Folds) -> Callable[[States], Floats]:
    """Fit who flips; where nobody does or everybody, a constant."""
    known = ~np.isnan(one.flipped)
    flipped = one.flipped[known].astype(np.int64)
    if min(int(flipped.sum()), int((1 - flipped).sum())) < MIN_CLASS:
        share = (flipped.sum() + 0.5) / (len(flipped) + 1)
        return lambda held: np.full(len(held), np.log(share / (1 - share)))
    model, _ = logistic.fit_chosen(x[known], flipped, 2, how.inner[known])
    return lambda held: model.scores(held)[:, 0]


def _expert(x: States, y: Ints, one: Fold, group: int, how: Folds) -> Linear:
    own = one.flipped == group
    right = int(y[own].sum())
    if min(right, int(own.sum()) - right) < MIN_CLASS:
        return one.probe
    return logistic.fit_chosen(x[own], y[own], 2, how.inner[own])[0]


def _gathered(parts: list[Floats], how: Folds) -> Floats:
    scores = np.full(len(how.assignment), np.nan)
    for fold, part in enumerate(parts):
        scores[how.assignment == fold] = part
    return scores


def pathway_rows(
    task: Task, condition: str, layer: int, made: int, scores: dict[str, Floats], flipped: Floats, spec: DeltaPSpec
) -> list[Row]:
    """Return how well scores [n] of each system foretell who flips [n] (NaN: not known): `auc`, a row a system."""
    rows = task.problem.reported & ~np.isnan(flipped)
    truth = flipped[rows].astype(np.int64)
    if truth.all() or not truth.any():
        return []
    resamples = bootstrap.draw(task.problem.folds.groups[rows], spec.bootstrap, spec.seed)
    found = []
    for system, values in scores.items():
        one = area(truth, values[rows], task.problem.folds.assignment[rows], resamples)
        place = key(task, condition=condition, layer=layer, group=system, other_layer=made)
        found += row(place, "auc", one, int(rows.sum()))
    return found


def area(truth: Ints, score: Floats, fold: Ints, resamples: Resamples) -> Estimate:
    """Estimate the area under the ROC curve of a score, mean over folds.

    Args:
        truth: 0 or 1, int64 [n].
        score: higher for 1, float64 [n].
        fold: int64 [n].
        resamples: of the n rows.
    """
    given = Classes(truth, np.column_stack([-score, score]), fold)
    return bootstrap.estimate(lambda weights: metrics.auc(given, weights), resamples)


def detection(
    task: Task,
    layer: int,
    clean: States,
    changed: States,
    given: dict[str, Floats],
    spec: DeltaPSpec,
    pool: ThreadPoolExecutor,
) -> list[Row]:
    """Return how well every system tells wrong answers from right ones: `detection_auc`, over several seeds of folds.

    Args:
        task: the rows.
        layer: where the probes read.
        clean, changed: states at that layer [n, d], the changed ones those whose flips train the gate.
        given: further scores [n], higher for a right answer, NaN where a row has none; of these rows all systems speak.
        spec: repeats, bootstrap and seed.
        pool: threads.
    """
    y = task.problem.y
    rows = task.problem.reported & np.logical_and.reduce([~np.isnan(values) for values in given.values()] or [y >= 0])
    if len(np.unique(y[rows])) < 2:
        return []
    resamples = bootstrap.draw(task.problem.folds.groups[rows], spec.bootstrap, spec.seed)
    areas: dict[str, list[Estimate]] = {}
    for how in _repeated(task, spec):
        fitted = fit_folds(clean, changed, y, how, pool)
        scores = {PROBE: plain(clean, fitted, how), MIXTURE: mix(clean, y, fitted, how, pool), **given}
        for system, values in scores.items():
            one = area(y[rows], values[rows], how.assignment[rows], resamples)
            areas.setdefault(system, []).append(one)
    return [one for system in areas for one in _detection_rows(task, layer, system, areas, int(rows.sum()))]


def _repeated(task: Task, spec: DeltaPSpec) -> list[Folds]:
    """Return the task's own folds, and the same groups dealt with other seeds."""
    given, y = task.problem, task.problem.y
    others = (folds.again(given.folds, given.texts, y, spec.seed + at) for at in range(1, spec.repeats))
    return [given.folds, *others]


def _detection_rows(task: Task, layer: int, system: str, areas: dict[str, list[Estimate]], n: int) -> list[Row]:
    fitted = system in (PROBE, MIXTURE)
    place = key(task, condition=CLEAN, layer=layer if fitted else None, group=system, other_layer=layer)
    own = _mean(areas[system])
    found = row(place, "detection_auc", own, n)
    if len(areas[system]) > 1:
        spread = float(np.std([one.value for one in areas[system]], ddof=1))
        found += tables.row(place, "detection_auc_sd", spread, len(areas[system]))
    if system != PROBE:
        found += row(place, "detection_auc_minus_probe", minus(own, _mean(areas[PROBE])), n)
    return found


def _mean(found: list[Estimate]) -> Estimate:
    """Average estimates over seeds, draw by draw."""
    resampled = np.mean([one.resampled for one in found], axis=0)
    return bootstrap.around(float(np.mean([one.value for one in found])), resampled)
