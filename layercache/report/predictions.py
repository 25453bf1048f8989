"""Held-out predictions of a probe beside the truth."""

from typing import Any

import polars as pl

from layercache.report import sample_charts
from layercache.report.frames import Task, sample_scores, shown
from layercache.store.reader import Store

OTHER = "other"
MAX_POINTS = 1000
"""Rows that a scatter chart shows."""


def predictions(store: Store, task: Task, at: dict[str, Any]) -> pl.DataFrame:
    """Return what one probe predicted for rows that it was not fitted on.

    Args:
        store: the store.
        task: what was probed.
        at: a row of `task.best()`: run, site, layer and pooling say which probe.

    Returns:
        row, truth, predicted, by row: numbers for a number label, else text. No rows where no sample scores are
        kept, or the run is gone.
    """
    where = {name: at[name] for name in ("run", "site", "layer", "pooling")}
    scores, asked = sample_scores(store, {**where, "data": task.data, "label": task.label, "analysis": "probe"})
    scores = scores.filter(pl.col("group").eq_missing(pl.lit(at["group"])))
    numbers = scores.filter(metric="prediction").select("row", predicted="value")
    own = numbers if len(numbers) else scores.filter(metric="predicted").select("row", predicted="text")
    held = {(run.id, info.name) for run in store.runs() for info in store.data(run)}
    if (where["run"], task.data) not in held or not len(own):
        return own.head(0).with_columns(truth=pl.col("predicted"))
    labels = store.labels(where["run"], task.data).filter(name=task.label)
    truth = labels.select("row", truth="number") if len(numbers) else _classes(labels, asked.get("min_class", 1))
    return own.join(truth, on="row").drop_nulls().sort("row").select("row", "truth", "predicted")


def counts(found: pl.DataFrame, most: int) -> pl.DataFrame:
    """Count which class was taken for which, the rarest put together when there are more than `most`.

    Returns:
        truth, predicted, n, share (of the true class, 0 to 1); class names made plain.
    """
    classes = pl.concat([found["truth"], found["predicted"]]).value_counts(sort=True)["truth"].to_list()
    known = classes if len(classes) <= most else classes[: most - 1]
    names = found.select(_known(name, known) for name in ("truth", "predicted"))
    counted = names.group_by("truth", "predicted").agg(n=pl.len())
    counted = counted.with_columns(share=pl.col("n") / pl.col("n").sum().over("truth"))
    plain = [shown(pl.col(name), counted[name]) for name in ("truth", "predicted")]
    return counted.with_columns(plain).sort("truth", "predicted")


def merged(store: Store, task: Task) -> str:
    """Say what stands for several classes among the predictions of the best probes; empty where nothing does."""
    said: list[str] = []
    for at in task.best().iter_rows(named=True):
        found = predictions(store, task, at)
        if not len(found) or found["truth"].dtype.is_numeric():
            continue
        names = pl.concat([found["truth"], found["predicted"]]).n_unique()
        least = _least(store, task, at)
        if OTHER in found["truth"] and least > 1:
            said.append(f"“{OTHER}” are classes of fewer than {least} rows, which the probe takes as one.")
        if names > sample_charts.MAX_CLASSES:
            said.append(f"Of {names} classes the rarest are put together as “{OTHER}”.")
    return " ".join(dict.fromkeys(said))


def _least(store: Store, task: Task, at: dict[str, Any]) -> int:
    """Return how many rows a class has at the least that the probe took for itself."""
    where = {name: at[name] for name in ("run", "site", "layer", "pooling")}
    _, asked = sample_scores(store, {**where, "data": task.data, "label": task.label, "analysis": "probe"})
    return int(asked.get("min_class", 1))


def _classes(labels: pl.DataFrame, min_class: int) -> pl.DataFrame:
    """Return row and truth as the analysis saw them: booleans as words, rare classes as `other`."""
    if labels["kind"].eq("boolean").any():
        words = pl.when(pl.col("number") != 0).then(pl.lit("true")).otherwise(pl.lit("false"))
        return labels.select("row", truth=words)
    rare = pl.len().over("text") < min_class
    return labels.select("row", truth=pl.when(rare).then(pl.lit(OTHER)).otherwise(pl.col("text")))


def _known(name: str, known: list[str]) -> pl.Expr:
    return pl.when(pl.col(name).is_in(known)).then(pl.col(name)).otherwise(pl.lit(OTHER)).alias(name)
