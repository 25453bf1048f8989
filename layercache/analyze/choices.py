"""Which answer every layer prefers: the scores that the lens gave to answers, held against labels.

The probability of a choice is its share among the choices: p(c) = exp s(c) / Σ exp s(c'), s being the log-probability of
the whole answer (group `whole`) or of its first token (`first`, where that is another number). Where every answer was scored
with a leading space and without one, each way counts alone (`whole spaced`, `whole unspaced`) and both together (`whole
either`: the probabilities of an answer's texts are added). Choices that are no value of the label compete, and are wrong.

Reported are the rows that a probe of the label reports: those of the test split, where there is one. Nothing is fitted.

    choice_ece      expected calibration error (Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3), 15 bins of equal
                    width: Σ |bin| / n · |accuracy of the bin − its mean confidence|, confidence being that of the preferred choice
    choice_brier    mean over rows of Σ_c (p(c) − [c is right])² (Brier 1950): 0 to 2
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from scipy.special import logsumexp, softmax

from layercache import engine
from layercache.analyze import bootstrap, problem, select, tables
from layercache.analyze.bootstrap import Resamples
from layercache.analyze.folds import TRAIN_ONLY
from layercache.analyze.metrics import Classes, Floats, Weights, accuracy, balanced_accuracy, weighted_mean
from layercache.analyze.problem import Problem
from layercache.analyze.scaling import one_thread_each
from layercache.analyze.tables import Row
from layercache.choice_texts import folded
from layercache.errors import AnalysisError
from layercache.progress import Progress
from layercache.recipe import ChoicesSpec, ProbeSpec
from layercache.store import captured
from layercache.store.layout import Run
from layercache.store.reader import Store
from layercache.store.results import Outcome

BINS = 15
"""Bins of the calibration error."""
_SCORES = {"whole": "logprob", "first": "first_logprob"}


class Scored(NamedTuple):
    """What the layers prefer, on the reported rows of a problem that have every score.

    Attributes:
        given: the problem, those rows alone.
        group: how answers are scored: `whole`, `first spaced`, …
        names: the choices, folded; those of the label's classes come first, in their order.
        layers: where they are scored.
        logprobs: log-probability of every choice, float64 [rows, layers, choices], nats.
        left_out: rows of the data set without the label, or to be reported and without a choice for an answer or a score.
        fitted: the right choices of the rows that a probe would be fitted on; none where there is no split.
    """

    given: Problem
    group: str
    names: list[str]
    layers: list[int]
    logprobs: Floats
    left_out: int
    fitted: npt.NDArray[np.int64]

    def take(self, keep: npt.NDArray[np.bool_]) -> "Scored":
        """Keep only some rows, bool [rows]."""
        return self._replace(given=self.given.only(keep), logprobs=self.logprobs[keep])

    def classes(self, index: int) -> Classes:
        """Return the choices' shares at one layer as the probabilities of classes."""
        fold = np.zeros(len(self.given.y), dtype=np.int64)
        return Classes(self.given.y, softmax(self.logprobs[:, index], axis=1), fold)

    def right(self, index: int) -> npt.NDArray[np.bool_]:
        """Return whether the preferred choice is the right one, bool [rows]; of equal ones the first counts."""
        return np.asarray(self.logprobs[:, index].argmax(axis=1) == self.given.y)


def choices(store: Store, spec: ChoicesSpec, progress: Progress) -> Outcome:
    """Score the answers that every layer prefers, for every run, data set and label that has them.

    Raises:
        AnalysisError: no answers are scored, no label has them for values, or a label has only one of them.
    """
    found = read(store, spec, progress)
    rows: list[Row] = []
    scores: list[pa.Table] = []
    with one_thread_each(), progress.task("choices", len(found), "scorings") as bar:
        # The prompts' texts need not be shipped.
        items = (one._replace(given=replace(one.given, texts=[])) for one in found)
        for piece in engine.each(partial(_piece, spec), items, what="choices"):
            rows += piece.rows
            scores += piece.scores
            bar.advance()
    return Outcome(tables.results(rows), tables.joined(scores))


def _piece(spec: ChoicesSpec, one: Scored) -> tables.Piece:
    with one_thread_each() as pool:
        return tables.Piece(list(_rows(one, spec, pool)), list(_sample_scores(one)))


def scored(store: Store, run: Run) -> bool:
    """Tell whether a run holds scores of answers."""
    return any("choices-" in lens.output for lens in store.lens_outputs(run))


def read(store: Store, spec: ChoicesSpec, progress: Progress) -> list[Scored]:
    """Read the scores of answers, once for every run, data set, label and way of scoring.

    Raises:
        AnalysisError: as `choices`.
    """
    chosen = select.runs(store, spec)
    lines = {run.id: captured.choices(store, run) for run in chosen}
    for run in chosen:
        if lines[run.id].is_empty():
            progress.note(f"{run.id}: no answers are scored, left out (`layercache extract --choice` scores some)")
    having = [run for run in chosen if not lines[run.id].is_empty()]
    if not having:
        raise AnalysisError(
            "no run holds scores of answers: run `layercache extract --choice TEXT --choice TEXT` first"
        )
    labels = spec.labels or _matching(store, having, lines, spec)
    asked = ProbeSpec(
        data=spec.data, runs=[run.id for run in having], labels=labels, min_class=1, folds=2, group_by=spec.group_by
    )
    found: list[Scored] = []
    for given in problem.problems(store, asked, progress):
        if given.classes is None:
            raise AnalysisError(f"label {given.label.name!r} is a number, and answers are texts: declare it a category")
        for _, own in lines[given.run.id].group_by("output", maintain_order=True):
            found += _scored(given, own, progress)
    if not found:
        raise AnalysisError(f"no row has both a label and scores of answers: {', '.join(labels)}")
    return found


def _matching(store: Store, runs: Sequence[Run], lines: dict[str, pl.DataFrame], spec: ChoicesSpec) -> list[str]:
    """Return the labels of which two values at least are choices."""
    names: dict[str, None] = {}
    for run, info in select.data(store, runs, spec):
        known = {folded(text) for text in lines[run.id]["choice"].unique().to_list()}
        table = store.labels(run, info.name)
        for label in info.labels:
            if label.kind == "boolean":
                values = {"true", "false"}
            elif label.kind == "category":
                values = set(table.filter(name=label.name)["text"].drop_nulls().unique().to_list())
            else:
                continue
            if len(known & {folded(value) for value in values}) > 1:
                names[label.name] = None
    if not names:
        raise AnalysisError(
            "no label has the scored answers for values: declare the column that holds the right answer with"
            " --label NAME:category or NAME:boolean"
        )
    return list(names)


def _scored(given: Problem, lines: pl.DataFrame, progress: Progress) -> Iterator[Scored]:
    """Yield every way of scoring the answers of one output."""
    texts = lines["choice"].unique().sort().to_list()
    classes = [folded(name) for name in given.classes or ()]
    known = {folded(text) for text in texts}
    if len(known & set(classes)) < 2:
        return
    where = f"{given.run.id}, {given.data}, label {given.label.name!r}"
    names = [*(name for name in classes if name in known), *sorted(known - set(classes))]
    layers = lines["layer"].unique().sort().to_list()
    ids, table = _table(lines, texts, layers)
    answerable = np.array([folded(name) in known for name in given.classes or ()])
    keep = given.reported & answerable[given.y] & np.isin(given.sample_ids, ids)
    if not keep.any():
        progress.note(f"{where}: no row has both an answer among the choices and their scores")
        return
    number = np.array([names.index(name) if name in known else -1 for name in classes])
    fitted = number[given.y[given.folds.assignment == TRAIN_ONLY]]
    left_out = given.total - len(given.y) + int(given.reported.sum() - keep.sum())
    taken = replace(given.only(keep), y=number[given.y[keep]], classes=names)
    place = np.searchsorted(ids, taken.sample_ids)
    for score in _SCORES:
        values = table[score][place]
        if score == "first" and _same(values, table["whole"][place]):
            continue
        for variant, forms in _variants(texts, names).items():
            both = np.stack([logsumexp(values[:, :, own], axis=2) for own in forms], axis=2)
            if score == "first" and _ties(both):
                progress.note(f"{where}: choices share their first token, so only whole answers are scored")
                continue
            group = " ".join([score, *([variant] if variant else [])])
            yield Scored(taken, group, names, layers, both, left_out, fitted[fitted >= 0])


def _table(lines: pl.DataFrame, texts: list[str], layers: list[int]) -> tuple[npt.NDArray[np.str_], dict[str, Floats]]:
    """Return the samples that have every score at every layer, sorted, and by way of scoring [samples, layers, texts]."""
    whole = lines.drop_nulls(list(_SCORES.values()))
    whole = whole.filter(pl.len().over("sample_id") == len(texts) * len(layers)).sort("sample_id", "layer", "choice")
    ids = whole["sample_id"].unique(maintain_order=True).to_numpy().astype(str)
    shape = (len(ids), len(layers), len(texts))
    return ids, {name: whole[column].to_numpy().astype(np.float64).reshape(shape) for name, column in _SCORES.items()}


def _variants(texts: list[str], names: list[str]) -> dict[str, list[list[int]]]:
    """Return the ways in which answers are written: for each, which texts are every name's."""
    every = [[i for i, text in enumerate(texts) if folded(text) == name] for name in names]
    spaced = [[i for i in own if texts[i][:1].isspace()] for own in every]
    unspaced = [[i for i in own if not texts[i][:1].isspace()] for own in every]
    if all(spaced) and all(unspaced):
        return {"spaced": spaced, "unspaced": unspaced, "either": every}
    return {"": every}


def _same(a: Floats, b: Floats) -> bool:
    """Tell whether answers of one token were scored, for which both scores are the same number."""
    return bool(np.array_equal(a, b))


def _ties(values: Floats) -> bool:
    """Tell whether two choices always have the same score."""
    return any(np.array_equal(values[:, :, i], values[:, :, j]) for i in range(values.shape[2]) for j in range(i))


def ece(given: Classes, weights: Weights) -> Floats:
    """Expected calibration error over `BINS` bins of equal width, for every column of weights [n, b]."""
    confidence = given.probability.max(axis=1)
    right = (given.probability.argmax(axis=1) == given.truth).astype(np.float64)
    place = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gaps = np.zeros((BINS, weights.shape[1]))
    np.add.at(gaps, place, (right - confidence)[:, None] * weights)
    return np.asarray(np.abs(gaps).sum(axis=0) / weights.sum(axis=0, dtype=np.float64))


def brier(given: Classes, weights: Weights) -> Floats:
    """Brier score over all choices, for every column of weights [n, b]."""
    target = np.zeros_like(given.probability)
    target[np.arange(len(given.truth)), given.truth] = 1
    return weighted_mean(((given.probability - target) ** 2).sum(axis=1), weights)


METRICS: dict[str, Callable[[Classes, Weights], Floats]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "choice_ece": ece,
    "choice_brier": brier,
}


def _rows(one: Scored, spec: ChoicesSpec, pool: ThreadPoolExecutor) -> Iterator[Row]:
    resamples = bootstrap.draw(one.given.folds.groups, spec.bootstrap, spec.seed)
    yield from (row for part in pool.map(partial(_layer, one, resamples), range(len(one.layers))) for row in part)
    yield from tables.row(key_of(one), "left_out", one.left_out, one.given.total)


def _layer(one: Scored, resamples: Resamples, index: int) -> list[Row]:
    """Return the numbers of one layer."""
    given, key, rows = one.classes(index), {**key_of(one), "layer": one.layers[index]}, []
    for name, metric in METRICS.items():
        found = bootstrap.estimate(partial(metric, given), resamples)
        rows += tables.row(key, name, found.value, len(given.truth), found.low, found.high)
    mass = np.exp(logsumexp(one.logprobs[:, index], axis=1))
    found = bootstrap.estimate(lambda weights: weighted_mean(mass, weights), resamples)
    return rows + tables.row(key, "choice_mass", found.value, len(mass), found.low, found.high)


def key_of(one: Scored) -> Row:
    """Return the columns that say what its numbers are of."""
    given = one.given
    key = {"run": given.run.id, "data": given.data, "analysis": "choices", "condition": "clean"}
    return {**key, "position": "last@prompt", "label": given.label.name, "group": one.group}


def _sample_scores(one: Scored) -> Iterator[pa.Table]:
    given = one.given
    for index, layer in enumerate(one.layers):
        key, probability = {**key_of(one), "layer": layer}, one.classes(index).probability
        best = probability.argmax(axis=1)
        names = [one.names[i] for i in best]
        yield tables.scores(key, "predicted", given.rows, given.sample_ids, probability.max(axis=1), names)
        yield tables.scores(key, "correct", given.rows, given.sample_ids, (best == given.y).astype(np.float64))
