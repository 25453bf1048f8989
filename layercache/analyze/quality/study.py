"""The analysis `quality`: every number for every run, data set, site, pooling, layer and condition asked for."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import polars as pl

from layercache import engine
from layercache.analyze import select, tables
from layercache.analyze.quality import compare, geometry, names, neighbours, reading, spectrum, tokens, views
from layercache.analyze.quality.estimates import Estimate, States
from layercache.analyze.quality.names import OF_PAIRS, OF_STATES, OF_VIEWS, Found, number, wanted
from layercache.analyze.quality.reading import Views
from layercache.analyze.scaling import one_thread_each
from layercache.analyze.tables import Key
from layercache.errors import AnalysisError
from layercache.progress import Progress
from layercache.recipe import QualitySpec
from layercache.store.layout import CLEAN, RowsInfo, Run
from layercache.store.reader import Store
from layercache.store.results import Outcome
from layercache.store.stored import StoredFeature

_VIEWS = (
    "no run holds two views of its prompts (conditions augment-1, augment-2): run `layercache extract --augment 2` first"
    " (16 for LiDAR)"
)


@dataclass
class _Work:
    """What all steps of an analysis share."""

    store: Store
    spec: QualitySpec
    names: set[str] | None
    pool: ThreadPoolExecutor
    found: Found = field(default_factory=Found)


def quality(store: Store, spec: QualitySpec, progress: Progress) -> Outcome:
    """Compute what makes a layer's states good or poor, without labels.

    Raises:
        AnalysisError: a name is not known, or a metric asked for by name gives no number anywhere.
    """
    asked = names.asked(store, spec)
    chosen = select.runs(store, spec)
    pairs = select.data(store, chosen, spec)
    _check_conditions(store, chosen, spec)
    steps = list(_steps(store, pairs, spec, asked, progress))
    found = Found()
    with one_thread_each(), progress.task("quality", len(steps), "steps") as bar:
        for one in engine.each(partial(_take, store, spec, asked), steps, what="quality"):
            found.add(one)
            bar.advance()
    for note in found.notes():
        progress.note(note)
    names.refuse_nothing(found, asked, dict.fromkeys(OF_VIEWS, _VIEWS))
    if asked is None and not any(row["metric"] in OF_VIEWS for row in found.rows):
        progress.note(f"no {', '.join(OF_VIEWS)}: {_VIEWS}")
    return Outcome(tables.results(found.rows), tables.joined(found.scores))


def _take(store: Store, spec: QualitySpec, asked: set[str] | None, step: "_Step") -> Found:
    """Take one step."""
    with one_thread_each() as pool:
        work = _Work(store, spec, asked, pool)
        step(work)
    return work.found


def _check_conditions(store: Store, chosen: Sequence[Run], spec: QualitySpec) -> None:
    known = sorted({name for run in chosen for name in store.conditions(run)})
    for name in spec.conditions or ():
        if name not in known:
            raise AnalysisError(f"no condition {name!r} in {store.path}: {select.hint(name, known)}")


_Step = Callable[[_Work], None]


def _steps(
    store: Store, pairs: Sequence[tuple[Run, RowsInfo]], spec: QualitySpec, asked: set[str] | None, progress: Progress
) -> Iterator[_Step]:
    """Yield the pieces of work: a data set's token statistics, a feature under a condition, its views, a pair of runs."""
    of_states = wanted({**OF_STATES, **OF_PAIRS, **OF_VIEWS}, asked)
    features: dict[str, list[StoredFeature]] = {}
    for run in {run.id: run for run, _ in pairs}.values():
        try:
            features[run.id] = select.features(store, run, spec) if of_states else []
        except AnalysisError as error:
            if asked is not None or spec.pooling or spec.sites or spec.layers != "all":
                raise
            progress.note(f"{error}; only its statistics over tokens are looked at")
            features[run.id] = []
    for run, info in pairs:
        for condition in reading.conditions(store, run, spec):
            yield partial(_tokens, run=run, info=info, condition=condition)
            for feature in features[run.id]:
                yield partial(_states, run=run, info=info, condition=condition, feature=feature)
        if wanted(OF_VIEWS, asked):
            for feature in features[run.id]:
                for way in reading.augmentations(store, run, feature):
                    yield partial(_augmented, run=run, info=info, feature=feature, way=way)
    if wanted(OF_PAIRS, asked) and spec.compare != "layers":
        for (a, one), (b, other) in combinations(pairs, 2):
            for feature in features[a.id] if one.name == other.name else ():
                found = [two for two in features[b.id] if (two.site, two.pooling) == (feature.site, feature.pooling)]
                if found:
                    yield partial(_runs, a=a, b=b, data=one.name, feature=feature, other=found[0])


def _tokens(work: _Work, run: Run, info: RowsInfo, condition: str) -> None:
    """Summarise a data set's statistics over tokens under a condition."""
    key = {**_key(run, info.name, condition), "site": "resid"}
    ids = reading.samples_of(work.store, run, info.name)
    work.found.rows += tokens.summarise(work.store, run, ids, condition, work.names, work.spec, key)


def _states(work: _Work, run: Run, info: RowsInfo, condition: str, feature: StoredFeature) -> None:
    """Look at each layer of a feature under a condition, and compare its layers."""
    metrics = wanted(OF_STATES, work.names)
    compared = wanted(OF_PAIRS, work.names) if _compared(work.spec, condition) else []
    stored = work.store.features(run, condition)
    held = {layer for one in stored if one[:2] == feature[:2] for layer in one.layers}
    here = feature._replace(layers=[layer for layer in feature.layers if layer in held])
    if not here.layers or not (metrics or compared):
        return
    where = f"{run.id}, {info.name}, {feature.pooling}, {condition}"
    ids = reading.samples_of(work.store, run, info.name)
    try:
        stack = reading.stack(work.store, run, here, ids, work.spec, condition)
    except AnalysisError as error:
        work.found.refused += [(where, None, metric, str(error)) for metric in [*metrics, *compared]]
        return
    key = {**_key(run, info.name, condition), "site": feature.site, "pooling": feature.pooling}
    jobs = [({**key, "layer": layer}, x) for layer, x in stack.layers.items()]
    for found in work.pool.map(lambda job: _layer(job[0], where, job[1], metrics, work.spec), jobs):
        work.found.add(found)
    if compared and work.spec.compare != "runs" and len(stack.layers) > 1:
        work.found.add(compare.within(key, where, stack.layers, compared, work.spec, work.pool))


def _compared(spec: QualitySpec, condition: str) -> bool:
    return condition == CLEAN or spec.conditions is not None


def _layer(key: Key, where: str, x: States, metrics: Sequence[str], spec: QualitySpec) -> Found:
    """Compute what is asked of one layer's states [n, d]."""
    intervals = spec.bootstrap > 0
    found = Found()
    for metric in metrics:
        try:
            for name, one in _COMPUTE[metric](x, spec).items():
                found.rows += number(key, name, one, intervals)
        except AnalysisError as error:
            found.refused.append((where, key["layer"], metric, str(error)))
    return found


def _dimension(x: States, spec: QualitySpec) -> dict[str, Estimate]:
    one, copies = neighbours.two_nn(x, spec.bootstrap, spec.seed)
    return {"intrinsic_dimension": one, "dataset_copies": Estimate(copies, None, None, len(x))}


_COMPUTE: dict[str, Callable[[States, QualitySpec], dict[str, Estimate]]] = {
    "dataset_entropy": lambda x, spec: spectrum.summarise(x, spec.alpha, spec.bootstrap > 0),
    "dataset_mean_cosine": lambda x, spec: {"dataset_mean_cosine": geometry.mean_cosine(x)},
    "dataset_first_pc_share": lambda x, spec: {"dataset_first_pc_share": geometry.first_pc_share(x)},
    "intrinsic_dimension": _dimension,
}


def _augmented(work: _Work, run: Run, info: RowsInfo, feature: StoredFeature, way: Views) -> None:
    """Look at the views of a data set's prompts, layer by layer."""
    metrics = wanted(OF_VIEWS, work.names)
    where = f"{run.id}, {info.name}, {feature.pooling}, {way.name}"
    ids = reading.samples_of(work.store, run, info.name)
    rows = work.store.rows(run, info.name).select("row", "sample_id").drop_nulls("sample_id")
    key = {**_key(run, info.name, way.name), "site": feature.site, "pooling": feature.pooling}

    def one(layer: int) -> Found:
        here = {**key, "layer": layer}
        try:
            given = reading.views(work.store, run, feature, layer, ids, work.spec, way)
        except AnalysisError as error:
            return Found(refused=[(where, layer, metric, str(error)) for metric in metrics])
        found, losses = views.layer_rows(here, where, given.states, metrics, work.spec)
        if losses is not None:
            each = rows.join(pl.DataFrame({"sample_id": given.ids, "loss": losses}), on="sample_id", how="inner")
            each = each.sort("row")
            of_rows = each["sample_id"].to_numpy().astype(str)
            found.scores.append(
                tables.scores(here, "infonce", each["row"].to_numpy(), of_rows, each["loss"].to_numpy())
            )
        return found

    every = Found()
    for found in work.pool.map(one, reading.view_layers(work.store, run, feature, way)):
        every.add(found)
    if every.rows:
        every.rows += tables.row(key, "views", len(way.conditions), len(ids))
    work.found.add(every)


def _runs(work: _Work, a: Run, b: Run, data: str, feature: StoredFeature, other: StoredFeature) -> None:
    """Compare the layers of two runs on the samples that both have."""
    metrics = wanted(OF_PAIRS, work.names)
    where = f"{a.id} and {b.id}, {data}, {feature.pooling}"
    try:
        left, right = reading.paired(work.store, (a, b), data, (feature, other), work.spec)
    except AnalysisError as error:
        work.found.refused += [(where, None, metric, str(error)) for metric in metrics]
        return
    key = {**_key(a, data, CLEAN), "site": feature.site, "pooling": feature.pooling, "other_run": b.id}
    work.found.add(compare.between(key, where, left, right, metrics, work.spec, work.pool))


def _key(run: Run, data: str, condition: str) -> dict[str, Any]:
    return {"run": run.id, "data": data, "analysis": "quality", "condition": condition}
