"""ΔP: does a probe of truthfulness depend on the question? Against a control, and against noise (after arXiv:2601.07422).

For every layer a logistic probe is cross-fitted on clean states to tell right answers from wrong ones (`delta_p_probe`), and
the same probe reads the states under every changed pass. What carries the evidence is the unconditioned ΔP and flip rate, the
changed pass minus its control on the same samples (`delta_p_effect`). The study's figure, ΔP within the samples that flip and
those that do not, stands beside it with its noise floor (`delta_p_groups`, `delta_p_noise`): the split is on the outcome.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.special import expit

from layercache import engine
from layercache.analyze import (
    bootstrap,
    calibration,
    delta_p_baselines,
    delta_p_data,
    delta_p_detect,
    delta_p_effect,
    delta_p_groups,
    delta_p_probe,
    metrics,
    tables,
)
from layercache.analyze.delta_p_data import CORRECT, Task
from layercache.analyze.delta_p_effect import Logits, effect, key
from layercache.analyze.metrics import Classes, Weights
from layercache.analyze.scaling import one_thread_each
from layercache.analyze.tables import Row
from layercache.errors import AnalysisError
from layercache.progress import Progress
from layercache.recipe import DeltaPSpec
from layercache.store.layout import CLEAN
from layercache.store.reader import Store
from layercache.store.results import Outcome

Floats = npt.NDArray[np.float64]

_CLEAN: dict[str, Callable[[Classes, Weights], Floats]] = {
    "auc": metrics.auc,
    "balanced_accuracy": metrics.balanced_accuracy,
    "accuracy": metrics.accuracy,
    "brier": calibration.brier,
    "ece": calibration.ece,
}


def delta_p(store: Store, spec: DeltaPSpec, progress: Progress) -> Outcome:
    """Compute ΔP and what goes with it for every run, data set, label and feature asked for.

    Raises:
        AnalysisError: no changed pass or label is stored, a name is not known, or the answers are all right or all
            wrong, or too few of either.
    """
    tasks = delta_p_data.read(store, spec, progress)
    if not any(task.changes for task in tasks):
        raise AnalysisError("no changed pass holds the states that the probe reads: extract them under the conditions")
    for task in tasks if spec.p_true is not None else ():
        # Read at the end only, but a wrong name is to be said before the fits.
        delta_p_baselines.asking(store, task.problem.run.model, str(spec.p_true))
    rows: list[Row] = []
    scores: list[pa.Table] = []
    further = [_detects(task, spec) * (len(task.feature.layers) + 1) for task in tasks]
    work = sum(further) + sum(len(task.feature.layers) for task in tasks)
    with one_thread_each(), progress.task("delta_p", work, "fits") as bar:
        items = zip(tasks, delta_p_probe.logits(store, tasks, bar))
        pieces = engine.each(partial(_piece, store, spec), items, what="delta_p")
        for piece, steps in zip(pieces, further):
            rows += piece.rows
            scores += piece.scores
            piece.say(progress)
            bar.advance(steps)
    return Outcome(tables.results(rows), tables.joined(scores))


def _piece(store: Store, spec: DeltaPSpec, of: tuple[Task, Logits]) -> tables.Piece:
    """Say what one task's probes do under every change."""
    (task, found), piece = of, tables.Piece()
    with one_thread_each() as pool:
        piece.rows += balance(task, spec, piece.notes)
        piece.rows += probe_rows(task, found, spec, pool)
        piece.rows += left_out(task, piece.notes)
        at = anchor_index(task, piece.rows, spec)
        for change in task.changes:
            piece.rows += delta_p_effect.unconditioned(task, found, change, spec)
            groups = list(delta_p_groups.conditioned(task, found, change, at, spec))
            note_small(task, change.condition, groups, piece.notes)
            piece.rows += groups
            piece.rows += delta_p_groups.boundary(task, found, change, at, spec)
        if _detects(task, spec):
            piece.rows += _uses(store, task, found, at, spec, pool)
        piece.scores += sample_scores(task, found, at)
    return piece


def _detects(task: Task, spec: DeltaPSpec) -> bool:
    return bool(task.changes) and spec.repeats > 0


def balance(task: Task, spec: DeltaPSpec, progress: Progress) -> list[Row]:
    """Return the share of right answers and of those that say they do not know; they are said aloud, too."""
    about, given = delta_p_groups.about(task), task.problem
    resamples = bootstrap.draw(given.folds.groups, spec.bootstrap, spec.seed)
    n, place = len(given.rows), key(task, condition=CLEAN, group="all")
    found = []
    for metric in ("answer_correct", "dont_know_rate"):
        if metric in about and not np.isnan(about[metric]).any():
            found += delta_p_effect.row(place, metric, delta_p_effect.averages(about[metric][None], resamples)[0], n)
    right = int(given.y.sum())
    unknown = "" if task.about.dont_know is None else f", {int(np.nansum(task.about.dont_know)):,} say they do not know"
    where = f"{given.run.id}, {given.data}, {given.label.name}, {task.feature.pooling}"
    what = "answers are right" if given.label.name == CORRECT else f"rows have the label {given.label.name} true"
    progress.note(f"{where}: {right:,} of {n:,} {what} ({right / n:.0%}){unknown}")
    return found


def note_small(task: Task, condition: str, rows: Iterable[Row], progress: Progress) -> None:
    """Say which groups of a change hold so few samples that their averages are little more than single samples."""
    sizes: dict[str, list[int]] = {}
    for row in rows:
        if (row["metric"], row["condition"]) == ("delta_p", condition) and row["group"] in delta_p_groups.GROUPS:
            sizes.setdefault(row["group"], []).append(row["n"])
    for group, found in sizes.items():
        if min(found) < delta_p_groups.FEW:
            many = f"{min(found)}" if min(found) == max(found) else f"{min(found)} to {max(found)}"
            where = f"{task.problem.run.id}, {task.problem.data}, {task.feature.pooling}, {condition}"
            said = group.replace("_", "-")
            progress.note(
                f"{where}: only {many} samples are {said}: below {delta_p_groups.FEW} their average says little"
            )


def probe_rows(task: Task, logits: Logits, spec: DeltaPSpec, pool: ThreadPoolExecutor) -> list[Row]:
    """Return how good each layer's probe is: ranking, ranking within kinds, calibration; and its AUC under every change."""
    given = task.problem
    found: list[Row] = []
    for name, values in logits.items():
        rows = given.reported & ~np.isnan(values[0])
        if rows.any():
            resamples = bootstrap.draw(given.folds.groups[rows], spec.bootstrap, spec.seed)
            layers = pool.map(partial(_probe_layer, task, name, rows, resamples), task.feature.layers, values)
            found += [one for layer in layers for one in layer]
    return found


def _probe_layer(
    task: Task, name: str, rows: npt.NDArray[np.bool_], resamples: bootstrap.Resamples, layer: int, values: Floats
) -> list[Row]:
    given, p = task.problem, expit(values[rows])
    classes = Classes(given.y[rows], np.column_stack([1 - p, p]), given.folds.assignment[rows])
    place, found = key(task, condition=name, layer=layer), []
    for metric, function in (_CLEAN if name == CLEAN else {"auc": metrics.auc}).items():
        one = bootstrap.estimate(partial(function, classes), resamples)
        found += delta_p_effect.row(place, metric, one, int(rows.sum()))
    if name == CLEAN and task.about.kind is not None:
        found += _within_kinds(place, classes, task.about.kind[rows], resamples)
    return found


def _within_kinds(
    place: Row, classes: Classes, kinds: npt.NDArray[np.object_], resamples: bootstrap.Resamples
) -> list[Row]:
    counted = calibration.usable(classes, kinds)
    n = int(np.isin(kinds.astype(str), counted).sum())
    one = bootstrap.estimate(lambda weights: calibration.auc_within(classes, kinds, weights), resamples)
    return delta_p_effect.row(place, "auc_within_kind", one, n)


def left_out(task: Task, progress: Progress) -> list[Row]:
    """Return, for every change, the rows without the states it is compared on (a control without enough tokens)."""
    found, given = [], task.problem
    for change in task.changes:
        gone = int(given.reported.sum() - delta_p_effect.compared(task, change).sum())
        found += tables.row(key(task, condition=change.condition), "left_out", gone, int(given.reported.sum()))
        if gone:
            both = f"{change.condition} and {change.control}" if change.control else change.condition
            where = f"{given.run.id}, {given.data}, {task.feature.pooling}"
            progress.note(
                f"{where}: {gone:,} of {given.reported.sum():,} rows without states under {both}, left out of it"
            )
        if change.control and not (task.have[change.condition] & task.have[change.control] & given.reported).any():
            progress.note(f"{given.run.id}: no row has states under both {change.condition} and {change.control}")
    return found


def anchor_index(task: Task, rows: list[Row], spec: DeltaPSpec) -> int:
    """Return the index of the layer whose flips make the groups: the one asked for, or that of the best clean AUC.

    The embedding layer is not chosen of itself: no attention has acted there, so that nothing can flip.

    Raises:
        AnalysisError: the layer asked for is not among those probed.
    """
    layers = task.feature.layers
    if spec.anchor_layer is not None:
        if spec.anchor_layer not in layers:
            raise AnalysisError(
                f"anchor_layer {spec.anchor_layer} is not probed: the layers are {', '.join(map(str, layers))}"
            )
        return layers.index(spec.anchor_layer)
    place = key(task, condition=CLEAN)
    own: dict[int, float] = {
        row["layer"]: row["value"]
        for row in rows
        if row["metric"] == "auc" and "group" not in row and all(row[name] == value for name, value in place.items())
    }
    above = [index for index, layer in enumerate(layers) if layer > 0 and layer in own]
    return max(above, key=lambda index: own[layers[index]], default=len(layers) - 1)


def _uses(store: Store, task: Task, logits: Logits, at: int, spec: DeltaPSpec, pool: ThreadPoolExecutor) -> list[Row]:
    """Return how well clean states foretell the groups of the first change, and what that does for detection."""
    change, layers, how = task.changes[0], task.feature.layers, task.problem.folds
    clean = delta_p_probe.read(store, task, layers[at], CLEAN)
    changed = delta_p_probe.read(store, task, layers[at], change.condition)
    fitted = delta_p_detect.fit_folds(clean, changed, task.problem.y, how, pool)
    flipped = delta_p_groups.flips(logits, change.condition)[at]
    rows: list[Row] = []
    for layer in layers:
        x = delta_p_probe.read(store, task, layer, CLEAN)
        scores: dict[str, Floats] = {"pathway": delta_p_detect.foretell(x, fitted, how, pool)}
        if layer == layers[at]:
            # A sample near the threshold flips under anything: what a gate must do better than.
            scores["pathway_margin"] = -np.abs(logits[CLEAN][at])
        rows += delta_p_detect.pathway_rows(task, change.condition, layer, layers[at], scores, flipped, spec)
    given = delta_p_baselines.scores(store, task, spec.p_true)
    return rows + delta_p_detect.detection(task, layers[at], clean, changed, given, spec, pool)


def sample_scores(task: Task, logits: Logits, at: int) -> list[pa.Table]:
    """Return every row's correctness, probability of being right by condition and layer, ΔP, flips, and its group."""
    given, found = task.problem, []

    def add(place: dict[str, Any], metric: str, rows: npt.NDArray[np.bool_], values: Any, texts: Any = None) -> None:
        if rows.any():
            found.append(tables.scores(place, metric, given.rows[rows], given.sample_ids[rows], values[rows], texts))

    everyone = np.ones(len(given.rows), np.bool_)
    add(key(task, condition=CLEAN), "correct", everyone, given.y.astype(np.float64))
    if task.about.dont_know is not None:
        add(key(task, condition=CLEAN), "dont_know", ~np.isnan(task.about.dont_know), task.about.dont_know)
    for name, values in logits.items():
        change = effect(logits[CLEAN], values)
        rows = given.reported & ~np.isnan(values[0])
        for index, layer in enumerate(task.feature.layers):
            place = key(task, condition=name, layer=layer)
            add(place, "p_correct", rows, expit(values[index]))
            if name != CLEAN:
                add(place, "delta_p", rows, change.delta_p[index])
                add(place, "flip", rows, change.flip[index])
    for own in (own for own in task.changes if own.anchor == own.condition):
        flipped = delta_p_groups.flips(logits, own.condition)[at]
        rows = given.reported & ~np.isnan(flipped)
        texts = [delta_p_groups.GROUPS[0 if one else 1] for one in flipped[rows]]
        add(key(task, condition=own.condition, layer=task.feature.layers[at]), "anchored", rows, flipped, texts)
    return found
