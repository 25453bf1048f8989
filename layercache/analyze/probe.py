"""Linear probes: how well each layer's states predict each label, with intervals and baselines.

Numbers are predicted by ridge regression (`ridge`), categories and booleans by logistic regression
(`logistic`), on grouped folds (`folds`). All layers of a label are fitted and reported on the same rows
in the same folds, and so are all models whose rows are the same. Beside the probes stand, as rows whose
`group` names them, `mean` or `majority` and `tf-idf` (without layer; on every labelled row that has a
sample), and `shuffled` (the same probe for permuted labels, at every layer). Layer 0 is a row like any
other.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from layercache.analyze import problem, scorecard, select, states, tables
from layercache.analyze.fitting import Fitted, fit_layer
from layercache.analyze.problem import Problem
from layercache.analyze.scaling import one_thread_each
from layercache.analyze.scorecard import Scorecard
from layercache.errors import AnalysisError
from layercache.progress import Progress
from layercache.recipe import ProbeSpec, ProbingSpec
from layercache.store.layout import Feature, Run
from layercache.store.reader import Store
from layercache.store.results import Outcome


class Task(NamedTuple):
    """A problem on the states of one feature: only the rows that have them at every layer."""

    problem: Problem
    feature: Feature


def probe(store: Store, spec: ProbeSpec, progress: Progress) -> Outcome:
    """Fit probes for every run, data set, label, site, pooling and layer asked for.

    Raises:
        AnalysisError: a name that is not known, nothing stored to probe, or a label that cannot be probed.
    """
    problems = problem.problems(store, spec, progress)
    card = Scorecard()
    found = tasks(store, problems, spec, progress)
    total = len(problems) + sum(len(task.feature.layers) for task in found)
    with one_thread_each() as pool, progress.task("probe", total, "fits") as bar:
        for given in problems:
            scorecard.add_baselines(card, given, spec, pool)
            bar.advance()
        for run, feature, group in by_feature(found):
            fitted: list[list[Fitted]] = [[] for _ in group]
            for layer in feature.layers:
                read = states.finite(store, run, feature, layer)
                for task, layers in zip(group, fitted):
                    x = read.values[np.searchsorted(read.sample_ids, task.problem.sample_ids)]
                    layers.append(fit_layer(x, task.problem, layer, spec.keep, pool))
                    bar.advance()
            for task, layers in zip(group, fitted):
                scorecard.add_probes(card, task.problem, feature, layers, spec, pool)
    return Outcome(tables.results(card.rows), tables.joined(card.scores), card.files)


def tasks(store: Store, problems: Sequence[Problem], spec: ProbingSpec, progress: Progress) -> list[Task]:
    """Pair problems with the features of their runs, leaving out rows without a state at every layer asked for.

    A label that too few rows are left of is left out with a note, where it was not named and another one can be probed.

    Raises:
        AnalysisError: no row has them, or too few of a label that was named or of all there are.
    """
    found: list[Task] = []
    refused: dict[str, AnalysisError] = {}
    for given in problems:
        where = f"{given.run.id}, {given.data}, label {given.label.name!r}"
        taken = 0
        for feature in select.features(store, given.run, spec):
            have = states.present(store, given.run, given.sample_ids, feature)
            if not have.any():
                progress.note(f"{where}, {feature.pooling}: no row has states at every layer, nothing to probe")
                continue
            taken += 1
            try:
                found.append(Task(given.take(have), feature))
            except AnalysisError as error:
                refused[problem.refusal(AnalysisError(f"{where}, {feature.pooling}: {error}"), spec)] = error
                continue
            if not have.all():
                gone = f"{(~have).sum():,} of {len(have):,} rows left out, without a state at every layer"
                progress.note(f"{where}, {feature.pooling}: {gone}")
        if not taken:
            raise AnalysisError(f"{where}: no row has states at every layer asked for; run `layercache extract` first")
    if not found:
        for first in refused.values():
            raise first
    for note in refused:
        progress.note(note)
    return found


def by_feature(tasks: Sequence[Task]) -> Iterator[tuple[Run, Feature, list[Task]]]:
    """Group tasks by run and feature, so that a layer's states are read once for all labels."""
    groups: dict[tuple[str, str, str], list[Task]] = {}
    for task in tasks:
        key = (task.problem.run.id, task.feature.site, task.feature.pooling)
        groups.setdefault(key, []).append(task)
    for group in groups.values():
        yield group[0].problem.run, group[0].feature, group
