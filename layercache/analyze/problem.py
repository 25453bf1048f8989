"""One thing to predict: the rows of a data set that have a label, their prompts, and their folds."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from layercache.analyze import folds as folding
from layercache.analyze import select
from layercache.analyze.baselines import shuffle
from layercache.analyze.folds import UNUSED, Folds
from layercache.cells import without_value
from layercache.errors import AnalysisError
from layercache.progress import Progress
from layercache.recipe import Label, ProbingSpec
from layercache.store.layout import RowsInfo, Run
from layercache.store.reader import Store

OTHER = "other"
"""The class that rare classes become."""
_NUMBER = "number"


@dataclass(frozen=True)
class Problem:
    """The labelled rows of a data set under one run, in row order.

    `y` is float64 for a number and a class number (int64, of `classes`) otherwise; `shuffled` is `y` permuted
    across groups; `total` counts the data set's rows, with and without the label.
    """

    run: Run
    data: str
    label: Label
    rows: npt.NDArray[np.int64]
    sample_ids: npt.NDArray[np.str_]
    texts: list[str]
    y: npt.NDArray[Any]
    shuffled: npt.NDArray[Any]
    classes: list[str] | None
    folds: Folds
    total: int
    seed: int

    @property
    def reported(self) -> npt.NDArray[np.bool_]:
        """Which rows are held out in some fold, bool [n]."""
        return self.folds.assignment >= 0

    def take(self, keep: npt.NDArray[np.bool_]) -> "Problem":
        """Keep only some rows, bool [n], each in the fold it had.

        Raises:
            AnalysisError: too few are left.
        """
        if keep.all():
            return self
        kept = self.only(keep)
        folding.check(kept.folds, self.label.name, None if self.classes is None else kept.y)
        return replace(kept, shuffled=shuffle(kept.y, kept.folds.groups, self.seed))

    def only(self, keep: npt.NDArray[np.bool_]) -> "Problem":
        """Keep only some rows, bool [n], whatever is left: for what fits nothing on them."""
        return replace(
            self,
            rows=self.rows[keep],
            sample_ids=self.sample_ids[keep],
            texts=[text for text, wanted in zip(self.texts, keep) if wanted],
            y=self.y[keep],
            shuffled=self.shuffled[keep],
            folds=folding.take(self.folds, keep),
        )


def problems(store: Store, spec: ProbingSpec, progress: Progress) -> list[Problem]:
    """List what a probe is asked to predict: every number, category and boolean label, by run and data set.

    What was merged or left out is noted once, not for every run. A label that cannot be probed is left out, where it was
    not named and another one can.

    Raises:
        AnalysisError: an unknown name, no labels, or a label that was named, or all there are, cannot be probed.
    """
    chosen = select.data(store, select.runs(store, spec), spec)
    known = sorted({label.name for _, info in chosen for label in info.labels})
    for name in spec.labels or ():
        if name not in known:
            raise AnalysisError(f"no label {name!r} in {store.path}: {select.hint(name, known)}")
    found = []
    notes: dict[str, None] = {}
    refused: dict[str, AnalysisError] = {}
    for run, info in chosen:
        wanted = [label for label in info.labels if _wanted(label, spec)]
        if wanted:
            rows, labels = store.rows(run, info.name), store.labels(run, info.name)
            frame = with_prompts(store, run, info, rows, spec)
            for label in wanted:
                try:
                    problem, said = build(run, info, label, frame, labels, len(rows), spec)
                except AnalysisError as error:
                    refused[refusal(error, spec)] = error
                    continue
                found.append(problem)
                notes.update(dict.fromkeys(said))
    if not found:
        for first in refused.values():
            raise first
        raise AnalysisError(
            "no number, category or boolean labels: declare them with --label NAME:KIND when extracting"
        )
    for note in [*notes, *refused]:
        progress.note(note)
    return found


def refusal(error: AnalysisError, spec: ProbingSpec) -> str:
    """Return the note on a label that cannot be probed and is left out.

    Raises:
        AnalysisError: the label was named; of several named ones with the advice not to.
    """
    if spec.labels is not None:
        raise AnalysisError(f"{error}; leave it out of --labels") if len(spec.labels) > 1 else error
    return f"{error}; left out, the others are probed (--labels names those to probe)"


def _wanted(label: Label, spec: ProbingSpec) -> bool:
    if spec.labels is None:
        return label.kind != "text"
    if label.name in spec.labels and label.kind == "text":
        raise AnalysisError(f"label {label.name!r} is text, which a probe cannot predict: declare it as a category")
    return label.name in spec.labels


def with_prompts(store: Store, run: Run, info: RowsInfo, rows: pl.DataFrame, spec: ProbingSpec) -> pl.DataFrame:
    """Return row, sample_id, split, group (what ties rows together) and prompt of the rows that have a sample."""
    prompts = store.samples(run).select("sample_id", "prompt")
    # The user's own columns go first: one may well be called `prompt`, too.
    frame = rows.select("row", "sample_id", "split", _grouping(rows, info, spec))
    return frame.join(prompts, on="sample_id", how="inner", maintain_order="left").sort("row")


def build(
    run: Run, info: RowsInfo, label: Label, frame: pl.DataFrame, labels: pl.DataFrame, total: int, spec: ProbingSpec
) -> tuple[Problem, list[str]]:
    """Build a problem from the rows that have a sample; return it with what the user should know.

    Args:
        run, info, label: what is predicted.
        frame: what `with_prompts` gives.
        labels: row, name, number, text of the labels' values, a line a value.
        total: rows of the data set.
        spec: folds, seed and the like.

    Raises:
        AnalysisError: nothing has the label, all values are the same, or the rows are too few for the folds.
    """
    where = f"{info.name}, label {label.name!r}"
    values = labels.filter(pl.col("name") == label.name).select("row", "number", "text")
    known = pl.col("number").is_finite() if label.kind in {_NUMBER, "boolean"} else pl.col("text").is_not_null()
    labelled = values.filter(known)
    here = frame.join(labelled, on="row", how="inner", maintain_order="left")
    if here.is_empty():
        raise AnalysisError(f"{where}: none of the {total} rows has both a label and a stored sample")
    y, classes, notes = _target(here, label, where, spec.min_class)
    texts = here["prompt"].to_list()
    folds = folding.make(
        texts,
        label=label.name,
        count=spec.folds,
        seed=spec.seed,
        group_by=here["group"].to_list(),
        split=None if here["split"].is_null().all() else here["split"].to_list(),
        classes=None if classes is None else y,
    )
    if len(here) < total and len(here) == labelled["row"].n_unique():
        notes.append(f"{info.name}: {without_value(label.name, total - len(here), total)}")
    elif len(here) < total:
        notes.append(f"{where}: {total - len(here):,} of {total:,} rows left out, without the label or a sample")
    if folds.note:
        notes.append(f"{where}: {folds.note}")
    problem = Problem(
        run=run,
        data=info.name,
        label=label,
        rows=here["row"].to_numpy(),
        sample_ids=here["sample_id"].to_numpy().astype(str),
        texts=texts,
        y=y,
        shuffled=shuffle(y, folds.groups, spec.seed),
        classes=classes,
        folds=folds,
        total=total,
        seed=spec.seed,
    )
    return problem.take(folds.assignment != UNUSED), notes


def _grouping(rows: pl.DataFrame, info: RowsInfo, spec: ProbingSpec) -> pl.Expr:
    """Return the column that ties rows together, as text called `group`; all NULL where none is set."""
    name = spec.group_by or info.group_by
    if name is None:
        return pl.lit(None, pl.String).alias("group")
    if name not in rows.columns:
        raise AnalysisError(f"group_by: data set {info.name} has no column {name!r}: {select.hint(name, rows.columns)}")
    column = pl.col(name)
    text = column.list.join("\n", ignore_nulls=True) if rows.schema[name] == pl.List(pl.String) else column
    return text.cast(pl.String).alias("group")


def _target(
    here: pl.DataFrame, label: Label, where: str, min_class: int
) -> tuple[npt.NDArray[Any], list[str] | None, list[str]]:
    """Return numbers, or class numbers and the classes' names, and notes on merged classes."""
    if label.kind == _NUMBER:
        numbers = here["number"].to_numpy().astype(np.float64)
        if np.ptp(numbers) == 0:
            raise AnalysisError(f"{where}: all {len(numbers)} values are {numbers[0]:g}, there is nothing to predict")
        return numbers, None, []
    if label.kind == "boolean":
        names = here.select(pl.when(pl.col("number") != 0).then(pl.lit("true")).otherwise(pl.lit("false"))).to_series()
        notes: list[str] = []
    else:
        names, notes = _merge_rare(here["text"], where, min_class)
    classes = sorted(names.unique().to_list())
    if len(classes) < 2:
        lower = f"; lower min_class ({min_class}) to keep rare ones" if notes else ""
        raise AnalysisError(f"{where}: all {len(names)} rows have the class {classes[0]!r}{lower}")
    numbers_of = {name: number for number, name in enumerate(classes)}
    return np.array([numbers_of[name] for name in names], dtype=np.int64), classes, notes


def _merge_rare(names: pl.Series, where: str, min_class: int) -> tuple[pl.Series, list[str]]:
    """Rename classes of fewer than `min_class` rows `other`."""
    counts = names.value_counts()
    rare = sorted(counts.filter(pl.col("count") < min_class)[names.name].to_list())
    if not rare:
        return names, []
    is_rare = names.is_in(rare)
    shown = ", ".join(rare[:5]) + (", …" if len(rare) > 5 else "")
    note = f"{where}: classes of fewer than {min_class} rows are merged into {OTHER!r} ({len(rare)}, {is_rare.sum():,} rows)"
    merged = pl.select(pl.when(is_rare).then(pl.lit(OTHER)).otherwise(names)).to_series()
    return merged, [f"{note}: {shown}".replace("\n", " + ")]
