"""What a probe's fits become: rows of results with intervals, sample scores, kept probes."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from layercache import engine
from layercache.analyze import baselines, bootstrap, keep, tables
from layercache.analyze.bootstrap import Estimate, Resamples
from layercache.analyze.fitting import Fitted, Scores, States, class_scores, fit_layer, number_scores
from layercache.analyze.metrics import CLASS_METRICS, MAIN, NUMBER_METRICS, Classes
from layercache.analyze.problem import Problem
from layercache.analyze.scaling import in_order, one_thread_each
from layercache.analyze.tables import Row
from layercache.recipe import ProbeSpec
from layercache.store.stored import StoredFeature


@dataclass
class Scorecard:
    """What has been found so far: rows of results, tables of sample scores, files by name."""

    rows: list[Row] = field(default_factory=list)
    scores: list[pa.Table] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)


class Probed(NamedTuple):
    """A probe of one layer, and the estimates of its metrics, true and with shuffled labels."""

    fitted: Fitted
    estimates: dict[str, Estimate]
    shuffled: dict[str, Estimate]


def text_scores(problems: Sequence[Problem]) -> Iterator[Scores]:
    """Fit tf-idf on the prompts of each problem; runs with the same rows and prompts share it."""
    first: dict[Any, Problem] = {}
    names = [
        (one.data, one.label, tuple(one.texts), one.y.tobytes(), one.folds.assignment.tobytes()) for one in problems
    ]
    for name, given in zip(names, problems):
        first.setdefault(name, given)
    found = engine.each(_tfidf, first.values(), what="tf-idf")
    known: dict[Any, Scores] = {}
    for name in names:
        if name not in known:
            known[name] = next(found)
        yield known[name]


def _tfidf(given: Problem) -> Scores:
    counts = baselines.term_counts(given.texts)
    with one_thread_each() as pool:
        if given.classes is None:
            found = baselines.tfidf_numbers(counts, given.y, given.folds, pool)
            return number_scores(given, found, baselines.expected(given.y, given.folds))
        return class_scores(given, baselines.tfidf_classes(counts, given.y, len(given.classes), given.folds, pool))


def add_baselines(card: Scorecard, given: Problem, texts: Scores, spec: ProbeSpec) -> None:
    """Add the mean or majority, and tf-idf with its sample scores."""
    known: Scores
    if given.classes is None:
        fixed, mean = "mean", baselines.expected(given.y, given.folds)
        known = number_scores(given, mean, mean)
    else:
        fixed = "majority"
        known = class_scores(given, baselines.majority(given.y, len(given.classes), given.folds))
    drawn = resamples(given, spec)
    for name, scores in ((fixed, known), ("tf-idf", texts)):
        card.rows += _metric_rows(_key(given, group=name), _estimates([scores], drawn)[0], scores)
    card.scores += _sample_scores(_key(given, group="tf-idf"), given, texts)


def probe_layer(
    x: States, given: Problem, layer: int, spec: ProbeSpec, drawn: Resamples, pool: ThreadPoolExecutor
) -> Probed:
    """Fit a problem's probe on states x [n, d] and estimate its metrics."""
    fitted = fit_layer(x, given, layer, spec.keep, pool)
    return Probed(fitted, *_estimates([fitted.scores, fitted.shuffled], drawn, pool))


def add_probes(card: Scorecard, given: Problem, feature: StoredFeature, probes: list[Probed], spec: ProbeSpec) -> None:
    """Add the probes of one label and feature: every layer's metrics, true and shuffled, and who wins."""
    place = {"site": feature.site, "pooling": feature.pooling}
    main, n = MAIN[given.label.kind], int(given.reported.sum())
    shares = bootstrap.best_share(np.array([one.estimates[main].resampled for one in probes]))
    metrics = {}
    for (one, probed, shuffled), share in zip(probes, shares):
        key = _key(given, **place, layer=one.layer)
        card.rows += _metric_rows(key, probed, one.scores)
        card.rows += _metric_rows({**key, "group": "shuffled"}, shuffled, one.shuffled)
        if spec.bootstrap:
            card.rows += tables.row(key, "best_layer_share", float(share), n)
        card.scores += _sample_scores(key, given, one.scores)
        metrics[one.layer] = {name: estimate.value for name, estimate in probed.items()}
    card.rows += tables.row(_key(given, **place), "left_out", given.total - len(given.rows), given.total)
    if spec.keep:
        name, tensors, info = keep.files(given, feature.site, feature.pooling, [one.fitted for one in probes], metrics)
        while f"{name}.json" in card.files:
            name += "_"
        card.files |= {f"{name}.safetensors": tensors, f"{name}.json": info}


def _key(given: Problem, **further: Any) -> Row:
    key = {"run": given.run.id, "data": given.data, "analysis": "probe", "condition": "clean"}
    return {**key, "label": given.label.name, **further}


def resamples(given: Problem, spec: ProbeSpec) -> Resamples:
    """Draw the resamples of a problem's reported rows."""
    return bootstrap.draw(given.folds.groups[given.reported], spec.bootstrap, spec.seed)


def _estimates(
    several: Sequence[Scores], drawn: Resamples, pool: ThreadPoolExecutor | None = None
) -> list[dict[str, Estimate]]:
    """Compute every metric of each of some held-out scores, with its interval."""
    functions: dict[str, Callable[..., Any]] = {
        **(CLASS_METRICS if isinstance(several[0], Classes) else NUMBER_METRICS)
    }
    jobs = [_of(metric, scores) for scores in several for metric in functions.values()]
    found = iter(in_order(pool, lambda index: bootstrap.estimate(jobs[index], drawn), len(jobs)))
    return [dict(zip(functions, found)) for _ in several]


def _of(metric: Callable[..., Any], scores: Scores) -> Callable[[bootstrap.Weights], bootstrap.Floats]:
    return lambda weights: metric(scores, weights)


def _metric_rows(key: Row, estimates: dict[str, Estimate], scores: Scores) -> list[Row]:
    n = len(scores.truth)
    return [row for name, one in estimates.items() for row in tables.row(key, name, one.value, n, one.low, one.high)]


def _sample_scores(key: Row, given: Problem, scores: Scores) -> list[pa.Table]:
    """Return each reported row's prediction and its error, or its most probable class, and its class and whether that is it."""
    rows, ids = given.rows[given.reported], given.sample_ids[given.reported]
    if isinstance(scores, Classes):
        guess = scores.probability.argmax(axis=1)
        names, truths = ([(given.classes or [])[index] for index in own] for own in (guess, scores.truth))
        return [
            tables.scores(key, "predicted", rows, ids, scores.probability.max(axis=1), names),
            tables.scores(key, "correct", rows, ids, (guess == scores.truth).astype(np.float64), truths),
        ]
    return [
        tables.scores(key, "prediction", rows, ids, scores.prediction),
        tables.scores(key, "error", rows, ids, scores.prediction - scores.truth),
    ]
