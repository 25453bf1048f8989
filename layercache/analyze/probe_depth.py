"""Probing in depth: what lies behind a probe's score, on the same rows and in the same folds as `probe`.

    selectivity     the score minus that of the same probe on a control task (`control`)
    mdl             bits of an online code for the labels, given the states (`information`)
    information     usable information in bits, of every row too (`information`)
    depth           the layer with the best score, and the first that comes near it; none where no layer beats shuffled labels
    transfer        probes of one layer read on the states of another (`transfer`)
    transfer_runs   probes of one run read on another run's states of the same layer

Bits are for categories and booleans. For a number the usable information of linear models with a fixed variance is its R²
but for a factor (Xu et al. 2020, proposition 1), and R² is what the score is.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from layercache import engine
from layercache.analyze import bootstrap, control, crossfit, information, problem, states, tables, transfer
from layercache.analyze.metrics import estimated, weighted_mean
from layercache.analyze.part import Found, Part
from layercache.analyze.probe import Task, by_feature, tasks
from layercache.analyze.scaling import one_thread_each
from layercache.progress import Progress
from layercache.recipe import ProbeDepthSpec
from layercache.store.reader import Store
from layercache.store.results import Outcome

SHUFFLED, ABOVE = "shuffled", "layers_above_shuffled"


def probe_depth(store: Store, spec: ProbeDepthSpec, progress: Progress) -> Outcome:
    """Look behind the probes of every run, data set, label, site, pooling and layer asked for.

    Raises:
        AnalysisError: as `probe`; a `control_by` that makes no control task; or runs between which no probe can be
            transferred, when that is asked for.
    """
    problems = problem.problems(store, spec, progress)
    found = tasks(store, problems, spec, progress)
    parts = [_part(store, task, spec) for task in found]
    pairs = transfer.pairs(parts, progress) if "transfer_runs" in spec.measures else []
    transferred = bool({"transfer", "transfer_runs"} & {*spec.measures})
    places = _places(found)
    total = sum(len(place.parts) for place in places) * (1 + transferred)
    with one_thread_each(), progress.task("probe_depth", total, "fits") as bar:
        fit = partial(_fit_place, store, spec, [part.blank() for part in parts])
        for place, looked_at in zip(places, engine.each(fit, places, what="probe_depth")):
            for number, one in zip(place.parts, looked_at):
                parts[number].take(one)
            bar.advance(len(place.parts))
        if "depth" in spec.measures:
            for part in parts:
                _concept_depth(part, spec)
        if transferred:
            known = [replace(part.blank(), models=part.models) for part in parts]
            at = [(_index(parts, source), _index(parts, target)) for source, target in pairs]
            transferred_to = partial(_transfer_place, store, spec, known, at)
            for place, added in zip(places, engine.each(transferred_to, places, what="probe_depth, transfer")):
                for number, more in added:
                    parts[number].rows += more
                bar.advance(len(place.parts))
    rows = [row for part in parts for row in part.rows]
    return Outcome(tables.results(rows), tables.joined([table for part in parts for table in part.scores]))


def _part(store: Store, task: Task, spec: ProbeDepthSpec) -> Part:
    given = task.problem
    targets: dict[str | None, npt.NDArray[Any]] = {None: given.y}
    if {"selectivity", "mdl", "depth"} & {*spec.measures}:
        targets[SHUFFLED] = given.shuffled
    if "selectivity" in spec.measures and spec.control_by is not None:
        of_type = control.types(store, given, spec.control_by)
        targets[f"control-{spec.control_by}"] = control.labels(given.y, of_type, spec.seed)
    resamples = bootstrap.draw(given.folds.groups[given.reported], spec.bootstrap, spec.seed)
    return Part(given, task.feature, targets, resamples)


class _Place(NamedTuple):
    """A layer, and the numbers of the parts that are looked at there: its states are read once for all labels."""

    parts: list[int]
    layer: int


def _places(found: Sequence[Task]) -> list[_Place]:
    number = {id(task): at for at, task in enumerate(found)}
    return [
        _Place([number[id(task)] for task in group], layer)
        for _, feature, group in by_feature(found)
        for layer in feature.layers
    ]


def _index(parts: Sequence[Part], one: Part) -> int:
    return next(at for at, part in enumerate(parts) if part is one)


def _read(store: Store, parts: Sequence[Part], place: _Place) -> Iterator[crossfit.States]:
    """Yield the states [n, d] of the rows of each part of a place."""
    first = parts[place.parts[0]]
    matrix = states.finite(store, first.given.run, first.feature, place.layer)
    for number in place.parts:
        yield matrix.values[np.searchsorted(matrix.sample_ids, parts[number].given.sample_ids)]


def _fit_place(store: Store, spec: ProbeDepthSpec, parts: Sequence[Part], place: _Place) -> list[Found]:
    """Look at one layer of the parts of a place."""
    found = [parts[number].blank() for number in place.parts]
    with one_thread_each() as pool:
        for part, x in zip(found, _read(store, parts, place)):
            _fit(part, place.layer, x, spec, pool)
    return [part.found for part in found]


def _transfer_place(
    store: Store, spec: ProbeDepthSpec, parts: Sequence[Part], pairs: Sequence[tuple[int, int]], place: _Place
) -> list[tuple[int, list[tables.Row]]]:
    """Read the states of a place with probes of other layers and runs: rows by the number of the part whose probes read.

    `pairs` are numbers of parts: whose probes are read on whose states.
    """
    found = [replace(part, rows=[]) for part in parts]
    with one_thread_each() as pool:
        for number, x in zip(place.parts, _read(store, parts, place)):
            sources = [found[number]] if "transfer" in spec.measures else []
            sources += [found[source] for source, target in pairs if target == number]
            transfer.add(found[number], place.layer, x, sources, spec.rescale, pool)
    return [(number, part.rows) for number, part in enumerate(found) if part.rows]


def _fit(part: Part, layer: int, x: crossfit.States, spec: ProbeDepthSpec, pool: ThreadPoolExecutor) -> None:
    """Fit a layer's probe and its controls, and add what can be said of the layer alone."""
    given, n = part.given, int(part.given.reported.sum())
    wanted = {
        None,
        *(part.targets if "selectivity" in spec.measures else [SHUFFLED] if "depth" in spec.measures else []),
    }
    fitted = [name for name in part.targets if name in wanted]
    for name, models in zip(fitted, crossfit.fit(x, given, [part.targets[name] for name in fitted], pool)):
        said = crossfit.held_out(x, given, models)
        one = estimated(part.metric, crossfit.scores(given, said, part.targets[name]), part.resamples)
        part.add(part.metric, one, n, layer=layer, group=name)
        if name is None:
            part.models[layer], part.main[layer] = models, one
            if "information" in spec.measures and given.classes is not None:
                _information(part, layer, said, spec)
        else:
            difference = bootstrap.around(
                part.main[layer].value - one.value, part.main[layer].resampled - one.resampled
            )
            if name == SHUFFLED and (difference.value if difference.low is None else difference.low) > 0:
                part.above.add(layer)
            if "selectivity" in spec.measures:
                part.add("selectivity", difference, n, layer=layer, group=name)
    if "mdl" in spec.measures and given.classes is not None:
        for name in (None, SHUFFLED):
            _codelength(part, layer, x, name, spec, pool)


def _information(part: Part, layer: int, said: bootstrap.Floats, spec: ProbeDepthSpec) -> None:
    """Add usable information, what is left unknown, and each row's pointwise information."""
    given = part.given
    null = information.null_bits(given.y, len(given.classes or ()), given.folds)
    # A class that a fold was not fitted on cannot be known, with states or without.
    known = given.reported & np.isfinite(null)
    if not known.any():
        return
    left = information.probe_bits(given.y[known], said[known])
    resamples = bootstrap.draw(given.folds.groups[known], spec.bootstrap, spec.seed)
    n = int(known.sum())
    numbers = {"v_information": null[known] - left, "v_entropy": left, "label_entropy": null[known]}
    for metric, bits in numbers.items():
        found = bootstrap.estimate(lambda weights, bits=bits: weighted_mean(bits, weights), resamples)  # type: ignore[misc]
        part.add(metric, found, n, layer=layer)
    part.scores.append(
        tables.scores(part.key(layer=layer), "pvi", given.rows[known], given.sample_ids[known], null[known] - left)
    )


def _codelength(
    part: Part, layer: int, x: crossfit.States, name: str | None, spec: ProbeDepthSpec, pool: ThreadPoolExecutor
) -> None:
    """Add the length of an online code for a target, and how far it beats the uniform one."""
    given, n = part.given, len(part.given.y)
    code = information.online_code(x, part.targets[name], given, spec.fractions, pool)
    resamples = bootstrap.draw(given.folds.groups, spec.bootstrap, spec.seed)
    total = bootstrap.estimate(lambda weights: n * weighted_mean(code.bits, weights), resamples)
    uniform = n * np.log2(len(given.classes or ()))
    part.add("mdl", total, n, layer=layer, group=name)
    part.add(
        "compression", bootstrap.around(uniform / total.value, uniform / total.resampled), n, layer=layer, group=name
    )


def _concept_depth(part: Part, spec: ProbeDepthSpec) -> None:
    """Add the layer with the best score and the first with a share of it, where the label is known at some layer.

    It is where a score is above 0, and above that of the same probe on shuffled labels: the interval of the difference
    is above 0 (without resamples the difference itself). How many layers there are of the second kind is added too.

    After the concept depth of Jin et al. 2024 ("Exploring Concept Depth", whose own converging point goes by the ratio
    of consecutive accuracies, and so depends on how many layers there are).
    """
    layers = np.array(sorted(part.main))
    values = np.array([part.main[layer].value for layer in layers])
    n = int(part.given.reported.sum())
    part.rows += tables.row(part.key(), ABOVE, len(part.above), n)
    if not part.above or not values.max() > 0:
        return
    resampled = np.array([part.main[layer].resampled for layer in layers])
    for metric, share in (("peak_layer", 1.0), ("converging_layer", spec.converged)):
        first = float(layers[first_near(values[:, None], share)[0]])
        usable = resampled[:, resampled.max(axis=0) > 0]
        part.add(metric, bootstrap.around(first, layers[first_near(usable, share)].astype(np.float64)), n)


def first_near(values: bootstrap.Floats, share: float) -> npt.NDArray[np.intp]:
    """Return, for each column of values [layers, b], the first row that has at least a share of the column's largest."""
    return np.asarray((values >= share * values.max(axis=0)).argmax(axis=0))
