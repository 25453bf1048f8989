"""What a probe's fits become: rows of results with intervals, sample scores, kept probes."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from layercache.analyze import baselines, bootstrap, keep, tables
from layercache.analyze.bootstrap import Estimate, Resamples
from layercache.analyze.fitting import Fitted, Scores, class_scores, number_scores
from layercache.analyze.metrics import CLASS_METRICS, MAIN, NUMBER_METRICS, Classes
from layercache.analyze.problem import Problem
from layercache.analyze.tables import Row
from layercache.recipe import ProbeSpec
from layercache.store.layout import Feature


@dataclass
class Scorecard:
    """What has been found so far: rows of results, tables of sample scores, files by name."""

    rows: list[Row] = field(default_factory=list)
    scores: list[pa.Table] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    texts: dict[Any, Scores] = field(default_factory=dict)
    """tf-idf scores by what they were fitted on: runs with the same rows and prompts share them."""


def add_baselines(card: Scorecard, given: Problem, spec: ProbeSpec, pool: ThreadPoolExecutor) -> None:
    """Add the mean or majority, and tf-idf with its sample scores."""
    folds = given.folds
    identity = (given.data, given.label, tuple(given.texts), given.y.tobytes(), folds.assignment.tobytes())
    known: Scores
    if given.classes is None:
        fixed, mean = "mean", baselines.expected(given.y, folds)
        known = number_scores(given, mean, mean)
        if identity not in card.texts:
            counts = baselines.term_counts(given.texts)
            card.texts[identity] = number_scores(given, baselines.tfidf_numbers(counts, given.y, folds, pool), mean)
    else:
        fixed, count = "majority", len(given.classes)
        known = class_scores(given, baselines.majority(given.y, count, folds))
        if identity not in card.texts:
            counts = baselines.term_counts(given.texts)
            card.texts[identity] = class_scores(given, baselines.tfidf_classes(counts, given.y, count, folds, pool))
    resamples = _resamples(given, spec)
    for name, scores in ((fixed, known), ("tf-idf", card.texts[identity])):
        card.rows += _metric_rows(_key(given, group=name), _estimates(scores, resamples), scores)
    card.scores += _sample_scores(_key(given, group="tf-idf"), given, card.texts[identity])


def add_probes(
    card: Scorecard, given: Problem, feature: Feature, fitted: list[Fitted], spec: ProbeSpec, pool: ThreadPoolExecutor
) -> None:
    """Add the probes of one label and feature: every layer's metrics, true and shuffled, and who wins."""
    resamples = _resamples(given, spec)
    place = {"site": feature.site, "pooling": feature.pooling}
    jobs = [one.scores for one in fitted] + [one.shuffled for one in fitted]
    estimates = list(pool.map(lambda scores: _estimates(scores, resamples), jobs))
    main, n = MAIN[given.label.kind], int(given.reported.sum())
    shares = bootstrap.best_share(np.array([one[main].resampled for one in estimates[: len(fitted)]]))
    metrics = {}
    for one, probed, shuffled, share in zip(fitted, estimates, estimates[len(fitted) :], shares):
        key = _key(given, **place, layer=one.layer)
        card.rows += _metric_rows(key, probed, one.scores)
        card.rows += _metric_rows({**key, "group": "shuffled"}, shuffled, one.shuffled)
        if spec.bootstrap:
            card.rows += tables.row(key, "best_layer_share", float(share), n)
        card.scores += _sample_scores(key, given, one.scores)
        metrics[one.layer] = {name: estimate.value for name, estimate in probed.items()}
    card.rows += tables.row(_key(given, **place), "left_out", given.total - len(given.rows), given.total)
    if spec.keep:
        name, tensors, info = keep.files(given, feature.site, feature.pooling, fitted, metrics)
        while f"{name}.json" in card.files:
            name += "_"
        card.files |= {f"{name}.safetensors": tensors, f"{name}.json": info}


def _key(given: Problem, **further: Any) -> Row:
    key = {"run": given.run.id, "data": given.data, "analysis": "probe", "condition": "clean"}
    return {**key, "label": given.label.name, **further}


def _resamples(given: Problem, spec: ProbeSpec) -> Resamples:
    return bootstrap.draw(given.folds.groups[given.reported], spec.bootstrap, spec.seed)


def _estimates(scores: Scores, resamples: Resamples) -> dict[str, Estimate]:
    """Compute every metric of held-out scores, with its interval."""
    functions: dict[str, Callable[..., Any]] = {**(CLASS_METRICS if isinstance(scores, Classes) else NUMBER_METRICS)}
    return {name: bootstrap.estimate(_of(metric, scores), resamples) for name, metric in functions.items()}


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
