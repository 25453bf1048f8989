"""Linear probes: how well each layer's states predict each label, with intervals and baselines.

Numbers are predicted by ridge regression (`ridge`), categories and booleans by logistic regression
(`logistic`), on grouped folds (`folds`). All layers of a label are fitted and reported on the same rows
in the same folds, and so are all models whose rows are the same. Beside the probes stand, as rows whose
`group` names them, `mean` or `majority` and `tf-idf` (without layer; on every labelled row that has a
sample), and `shuffled` (the same probe for permuted labels, at every layer). Layer 0 is a row like any
other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from layercache import engine
from layercache.analyze import problem, scorecard, select, states, tables
from layercache.analyze.bootstrap import Resamples
from layercache.analyze.problem import Problem
from layercache.analyze.scaling import one_thread_each
from layercache.analyze.scorecard import Probed, Scorecard
from layercache.errors import AnalysisError
from layercache.progress import Progress
from layercache.recipe import ProbeSpec, ProbingSpec
from layercache.store.layout import Run
from layercache.store.reader import Store
from layercache.store.results import Outcome
from layercache.store.stored import StoredFeature


class Task(NamedTuple):
    """A problem on the states of one feature: only the rows that have them at every layer."""

    problem: Problem
    feature: StoredFeature


def probe(store: Store, spec: ProbeSpec, progress: Progress) -> Outcome:
    """Fit probes for every run, data set, label, site, pooling and layer asked for.

    Raises:
        AnalysisError: a name that is not known, nothing stored to probe, or a label that cannot be probed.
    """
    problems = problem.problems(store, spec, progress)
    card = Scorecard()
    found = tasks(store, problems, spec, progress)
    groups = list(by_feature(found))
    total = len(problems) + sum(len(task.feature.layers) for task in found)
    with one_thread_each(), progress.task("probe", total, "fits") as bar:
        places = [(number, layer) for number, (_, feature, _) in enumerate(groups) for layer in feature.layers]
        probes = engine.each(_Fits(store, spec, without_texts(groups)), places, what="probe")
        for given, texts in zip(problems, scorecard.text_scores(problems)):
            scorecard.add_baselines(card, given, texts, spec)
            bar.advance()
        for _, feature, group in groups:
            by_layer = []
            for _ in feature.layers:
                by_layer.append(next(probes))
                bar.advance(len(group))
            for number, task in enumerate(group):
                scorecard.add_probes(card, task.problem, feature, [layer[number] for layer in by_layer], spec)
    return Outcome(tables.results(card.rows), tables.joined(card.scores), card.files)


@dataclass
class _Fits:
    """Fits the probes of all labels on one layer, given the number of a group and the layer."""

    store: Store
    spec: ProbeSpec
    groups: "list[Group]"
    drawn: dict[int, list[Resamples]] = field(default_factory=dict)
    """Of the group that was last."""

    def __call__(self, place: tuple[int, int]) -> list[Probed]:
        number, layer = place
        run, feature, group = self.groups[number]
        if number not in self.drawn:
            self.drawn = {number: [scorecard.resamples(task.problem, self.spec) for task in group]}
        read = states.finite(self.store, run, feature, layer)
        found = []
        with one_thread_each() as pool:
            for task, drawn in zip(group, self.drawn[number]):
                x = read.values[np.searchsorted(read.sample_ids, task.problem.sample_ids)]
                found.append(scorecard.probe_layer(x, task.problem, layer, self.spec, drawn, pool))
        return found


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


Group = tuple[Run, StoredFeature, list[Task]]
"""The labels that are probed on the states of one feature of a run."""


def without_texts(groups: Sequence[Group]) -> list[Group]:
    """Leave out the prompts, which states are not fitted with: they need not be shipped."""
    return [
        (run, feature, [task._replace(problem=replace(task.problem, texts=[])) for task in group])
        for run, feature, group in groups
    ]


def by_feature(tasks: Sequence[Task]) -> Iterator[Group]:
    """Group tasks by run and feature, so that a layer's states are read once for all labels."""
    groups: dict[tuple[str, str, str], list[Task]] = {}
    for task in tasks:
        key = (task.problem.run.id, task.feature.site, task.feature.pooling)
        groups.setdefault(key, []).append(task)
    for group in groups.values():
        yield group[0].problem.run, group[0].feature, group
