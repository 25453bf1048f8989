"""Reads what ΔP is computed from: rows with their answers' correctness, and which of them have states under what."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from layercache import answers
from layercache.analyze import problem, select, states
from layercache.analyze.delta_p_conditions import Change, changes
from layercache.analyze.problem import Problem
from layercache.errors import AnalysisError
from layercache.progress import Progress
from layercache.recipe import DeltaPSpec, Label, ProbeSpec
from layercache.store.layout import RowsInfo, Run
from layercache.store.reader import Store
from layercache.store.stored import StoredFeature

CORRECT, ANSWER, DONT_KNOW, PROMPT_SAMPLE = "correct", "answer", "dont_know", "prompt_sample_id"
POOLINGS = ("last@exact_answer", "last@answer", "last@prompt")
"""Where the probe reads when nothing is said: the first of these that is stored."""

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


class About(NamedTuple):
    """What else is known of the rows, [n] each; None where the data set does not say.

    Attributes:
        kind: the kind of question, text (None where a row has none).
        dont_know: 1 where the answer says that it is not known.
        popularity: ln(1 + popularity); NaN where a row has none.
        prompt_ids: the sample whose generation is the answer.
    """

    kind: npt.NDArray[np.object_] | None
    dont_know: Floats | None
    popularity: Floats | None
    prompt_ids: list[str | None] | None


class Task(NamedTuple):
    """One label on the states of one feature of a run: the rows that have a clean state at every layer.

    `have` says of every condition used which of the rows have a state at every layer under it, bool [n].
    """

    problem: Problem
    feature: StoredFeature
    about: About
    changes: list[Change]
    have: dict[str, Bools]


def probe_spec(spec: DeltaPSpec) -> ProbeSpec:
    """Return the probe that is fitted; classes are never merged, so small ones can be refused by their own name."""
    shared = {name: getattr(spec, name) for name in ("data", "runs", "seed", "layers", "sites", "folds", "group_by")}
    return ProbeSpec(**shared, labels=list(spec.labels), min_class=1)


def read(store: Store, spec: DeltaPSpec, progress: Progress) -> list[Task]:
    """List what is to be computed: by run, data set, label and feature.

    Raises:
        AnalysisError: no changed pass is stored, a name is not known, all answers are right or all wrong, or too
            few are.
    """
    runs = select.runs(store, spec)
    paired = _paired(store, runs, spec)
    if not any(paired.values()):
        raise AnalysisError(
            "no run holds a knockout-…, patch-… or answer-only pass to compare with clean: extract with conditions first,"
            " such as knockout-subject and control-subject"
        )
    for run in runs:
        if not paired.get(run.id):
            progress.note(f"{run.id}: no changed pass stored, left out")
    tasks: list[Task] = []
    lacking: dict[str, str] = {}
    for run, info in select.data(store, [run for run in runs if paired.get(run.id)], spec):
        rows = store.rows(run, info.name)
        for name in spec.labels:
            values = _labels(store, run, info, name, rows, spec)
            if values is None:
                lacking[f"{info.name}: no boolean label {name!r}"] = ", ".join(map(str, info.labels)) or "none"
                continue
            tasks += _tasks(store, run, info, Label(name, "boolean"), rows, values, paired[run.id], spec, progress)
    if not tasks and lacking:
        said, have = next(iter(lacking.items()))
        raise AnalysisError(f"{said} (it has {have}): extract with generated answers, or name another with --label")
    for said in lacking:
        progress.note(f"{said}, left out")
    return tasks


def _paired(store: Store, runs: Sequence[Run], spec: DeltaPSpec) -> dict[str, list[Change]]:
    """Return the changes of every run; what is asked for must be stored in one of them."""
    stored = {run.id: store.conditions(run) for run in runs}
    changes(sorted({name for names in stored.values() for name in names}), spec.conditions)
    if spec.conditions is None:
        return {run: changes(names, None) for run, names in stored.items()}
    own = {run: [name for name in spec.conditions if name in names] for run, names in stored.items()}
    return {run: [one for one in changes(stored[run], names) if one.condition in names] for run, names in own.items()}


def _tasks(
    store: Store,
    run: Run,
    info: RowsInfo,
    label: Label,
    rows: pl.DataFrame,
    values: pl.DataFrame,
    paired: list[Change],
    spec: DeltaPSpec,
    progress: Progress,
) -> Iterator[Task]:
    """Yield the tasks of one label of one data set, a feature each."""
    where = f"{run.id}, {info.name}, {label.name}"
    _check_classes(where, label, values["number"].to_numpy(), spec.min_class)
    probe = probe_spec(spec)
    frame = problem.with_prompts(store, run, info, rows, probe)
    given, said = problem.build(run, info, label, frame, values, len(rows), probe)
    for note in said:
        progress.note(f"{run.id}, {note}")
    for feature in _features(store, run, spec):
        have = states.present(store, run, given.sample_ids, feature)
        if not have.any():
            progress.note(f"{where}, {feature.pooling}: no row has clean states at every layer, left out")
            continue
        own = given.take(have)
        _check_classes(f"{where}, {feature.pooling}", label, own.y, spec.min_class)
        used = _usable(store, run, feature, paired, where, progress)
        names = {name for one in used for name in one if name is not None}
        found = {name: states.present(store, run, own.sample_ids, feature, name) for name in sorted(names)}
        yield Task(own, feature, _about(rows, values, own, info, spec), used, found)


def _check_classes(where: str, label: Label, y: npt.NDArray[Any], least: int) -> None:
    """Refuse answers that are all right or all wrong, or too few of one sort."""
    right, wrong = int((y == 1).sum()), int((y == 0).sum())
    words, what = (("right", "wrong"), "answers") if label.name == CORRECT else (("true", "false"), "rows")
    if not right or not wrong:
        said = words[0] if right else words[1]
        raise AnalysisError(f"{where}: all {right + wrong} {what} are {said}, so there is nothing to tell apart")
    if min(right, wrong) < least:
        raise AnalysisError(
            f"{where}: {right} {words[0]} and {wrong} {words[1]} {what} are too few for a probe, {least} of each are needed"
            " (min_class)"
        )


def _usable(
    store: Store, run: Run, feature: StoredFeature, paired: Sequence[Change], where: str, progress: Progress
) -> list[Change]:
    """Keep the changes that hold this feature at its layers; a control that does not is left out of its pair."""

    def holds(condition: str | None) -> bool:
        stored = store.features(run, condition) if condition else []
        same = (one for one in stored if (one.site, one.pooling) == (feature.site, feature.pooling))
        return any(set(feature.layers) <= set(one.layers) for one in same)

    used = [change for change in paired if holds(change.condition)]
    kept = {change.condition for change in used}
    for name in (name for change in paired for name in change[:2] if name and not holds(name)):
        progress.note(f"{where}: {name} holds no states {feature.pooling} at every layer asked for, left out")
    found = []
    for change in used:
        control = change.control if holds(change.control) else None
        if control is None and change.control is None and change.condition.partition("-")[0] in ("knockout", "patch"):
            progress.note(f"{where}: {change.condition} has no control stored, so nothing says what is due to the span")
        found.append(
            change._replace(control=control, anchor=change.anchor if change.anchor in kept else change.condition)
        )
    return found


def _features(store: Store, run: Run, spec: DeltaPSpec) -> list[StoredFeature]:
    """Return the states that the probe reads: those asked for, or the most telling position that is stored."""
    probe, pooling = probe_spec(spec), spec.pooling
    if pooling is None:
        stored = {feature.pooling for feature in store.features(run) if feature.site in spec.sites}
        first = next((name for name in POOLINGS if name in stored), None)
        if first is None:
            have = ", ".join(sorted(stored)) or "none"
            raise AnalysisError(
                f"run {run.id} holds none of {', '.join(POOLINGS)}: name one with --pooling (it has {have})"
            )
        pooling = [first]
    return select.features(store, run, probe.model_copy(update={"pooling": pooling}))


def _labels(
    store: Store, run: Run, info: RowsInfo, name: str, rows: pl.DataFrame, spec: DeltaPSpec
) -> pl.DataFrame | None:
    """Return row, name, number (1 for a right answer), text (NULL) and dont_know; None where there is no such label.

    Correctness is computed from the answers and the accepted ones where both are there, so that a mended list of
    accepted answers needs no new forward pass.
    """
    columns = _answer_columns(info, rows, spec)
    if name == CORRECT and columns and ANSWER in rows.columns:
        return _labelled(rows.filter(pl.col("sample_id").is_not_null()), columns)
    if name == CORRECT and spec.answers:
        raise AnalysisError(f"data set {info.name} has no column {ANSWER!r} to label: extract with generated answers")
    declared = next((label for label in info.labels if label.name == name), None)
    if declared is not None and declared.kind != "boolean":
        raise AnalysisError(f"label {name!r} of {info.name} is a {declared.kind}: ΔP needs a boolean one")
    if declared is None:
        return None
    found = store.labels(run, info.name).filter(pl.col("name") == name).select("row", "name", "number", "text")
    known = pl.lit(None, pl.Float64)
    if DONT_KNOW in rows.columns and rows.schema[DONT_KNOW] == pl.Boolean:
        known = pl.col(DONT_KNOW).cast(pl.Float64)
    return found.join(rows.select("row", known.alias(DONT_KNOW)), on="row", how="left", maintain_order="left")


def _answer_columns(info: RowsInfo, rows: pl.DataFrame, spec: DeltaPSpec) -> list[str]:
    """Return the columns of accepted answers: those asked for, those the data set names, or one called `answers`."""
    for name in spec.answers or ():
        if name not in rows.columns:
            raise AnalysisError(f"data set {info.name} has no column {name!r}: {select.hint(name, rows.columns[3:])}")
    named = spec.answers or list(info.answers)
    return named or [name for name in ("answers",) if name in rows.columns]


def _labelled(rows: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    """Label every answer that is there and has accepted answers to compare with."""
    lines = []
    for row, answer, *cells in rows.select("row", ANSWER, *columns).iter_rows():
        aliases = [alias for name, cell in zip(columns, cells) for alias in _aliases(cell, name, row)]
        if answer is not None and aliases:
            found = answers.label(answer, aliases)
            lines.append((row, float(found.correct), float(found.dont_know)))
    frame = pl.DataFrame(lines, schema={"row": pl.Int64, "number": pl.Float64, DONT_KNOW: pl.Float64}, orient="row")
    return frame.with_columns(name=pl.lit(CORRECT), text=pl.lit(None, pl.String))


def _aliases(cell: Any, name: str, row: int) -> list[str]:
    return answers.read_aliases(cell, lambda: f"answers column {name!r}, row {row}") or []


def _about(rows: pl.DataFrame, values: pl.DataFrame, given: Problem, info: RowsInfo, spec: DeltaPSpec) -> About:
    """Read the columns that tell samples apart, in the order of the problem's rows."""
    if spec.kind_by is not None and spec.kind_by not in rows.columns:
        hint = select.hint(spec.kind_by, rows.columns[3:])
        raise AnalysisError(f"kind_by: data set {info.name} has no column {spec.kind_by!r}: {hint}")
    order = pl.DataFrame({"row": given.rows})
    own = order.join(rows, on="row", how="left", maintain_order="left")
    said = order.join(values.select("row", DONT_KNOW), on="row", how="left", maintain_order="left")[DONT_KNOW]
    names = (spec.kind_by, "kind", spec.group_by, info.group_by)
    kind = next((name for name in names if name is not None and name in rows.columns), None)
    if spec.popularity != "popularity" and spec.popularity not in rows.columns:
        hint = select.hint(spec.popularity, rows.columns[3:])
        raise AnalysisError(f"popularity: data set {info.name} has no column {spec.popularity!r}: {hint}")
    popularity = spec.popularity if spec.popularity in rows.columns else None
    if popularity is not None and not rows.schema[popularity].is_numeric():
        popularity = None
    return About(
        kind=None if kind is None else own[kind].cast(pl.String, strict=False).to_numpy().astype(object),
        dont_know=None if said.is_null().all() else said.cast(pl.Float64).to_numpy(),
        popularity=None if popularity is None else _logged(own[popularity]),
        prompt_ids=own[PROMPT_SAMPLE].to_list() if PROMPT_SAMPLE in own.columns else None,
    )


def _logged(counts: pl.Series) -> Floats:
    """Return ln(1 + count), NaN where there is none or a negative one."""
    values = counts.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return np.log1p(np.where(values >= 0, values, np.nan))
