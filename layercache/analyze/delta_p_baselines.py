"""What the model itself says of its answers: P(true), and the log-probability of the answer's tokens.

They need no probe: of each a score a row, higher for a right answer, NaN where nothing is stored.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from layercache import queries
from layercache.analyze import select
from layercache.analyze.delta_p_data import Task
from layercache.errors import AnalysisError
from layercache.store import captured
from layercache.store.layout import Run
from layercache.store.reader import Store

Floats = npt.NDArray[np.float64]

P_TRUE, MEAN_LOGPROB, MIN_LOGPROB = "p_true", "mean_logprob", "min_logprob"
_SAID = ({"true", "yes"}, {"false", "no"})


def scores(store: Store, task: Task, p_true: str | None) -> dict[str, Floats]:
    """Return the scores there are, by system, float64 [n]; none of which every row would lack.

    Args:
        store, task: whose answers.
        p_true: the data set whose row i asks whether the answer of row i is true; None for the task's own prompts.

    Raises:
        AnalysisError: no run of the model has that data set.
    """
    run = task.problem.run
    asking, samples = (run, task.problem.sample_ids.tolist()) if p_true is None else _asking(store, task, p_true)
    found = {P_TRUE: _of(samples, _p_true(_read(store, "delta_p_choices", asking)))}
    if task.about.prompt_ids is not None:
        own = _fullest(_read(store, "delta_p_generations", run), task.about.prompt_ids)
        found[MEAN_LOGPROB] = _of(task.about.prompt_ids, {name: sum(line) / len(line) for name, line in own.items()})
        found[MIN_LOGPROB] = _of(task.about.prompt_ids, {name: min(line) for name, line in own.items()})
    return {system: values for system, values in found.items() if not np.isnan(values).all()}


def _asking(store: Store, task: Task, data: str) -> tuple[Run, list[str | None]]:
    """Find the run of the same model that has a data set, and its samples of the task's rows."""
    run = asking(store, task.problem.run.model, data)
    rows = store.rows(run, data).select("row", "sample_id")
    own = pl.DataFrame({"row": task.problem.rows}).join(rows, on="row", how="left", maintain_order="left")
    return run, own["sample_id"].to_list()


def asking(store: Store, model: str, data: str) -> Run:
    """Return the first run of a model that has the data set in which P(true) is asked for.

    Raises:
        AnalysisError: none has.
    """
    runs = [run for run in store.runs() if run.model == model]
    having = [run for run in runs if any(info.name == data for info in store.data(run))]
    if not having:
        known = sorted({info.name for run in runs for info in store.data(run)})
        raise AnalysisError(f"p_true: no run of {model} has data set {data!r}: {select.hint(data, known)}")
    return having[0]


def _read(store: Store, query: str, run: Run) -> pl.DataFrame:
    """Run a query on the final layer of a run."""
    values = {"run": run.id, "layer": run.final_layer}
    return captured.frame(store, queries.load_query(query).sql, **values)


def _p_true(lines: pl.DataFrame) -> dict[str, float]:
    """Return P(true) / (P(true) + P(false)) of every sample whose choices say true and false, or yes and no."""
    found: dict[str, float] = {}
    for sample, choices in lines.select("sample_id", "choices").iter_rows():
        yes, no = (_logprob(choices, said) for said in _SAID)
        if yes is not None and no is not None:
            found.setdefault(sample, 1 / (1 + math.exp(min(no - yes, 700))))
    return found


def _logprob(choices: Sequence[dict[str, Any]], said: set[str]) -> float | None:
    """Return the log-probability of the one choice that says so."""
    own = [one for one in choices if one["choice"].strip().lower() in said]
    if len(own) != 1:
        return None
    whole = own[0]["logprob"]
    value = own[0]["first_logprob"] if whole is None else whole
    return None if value is None else float(value)


def _fullest(lines: pl.DataFrame, wanted: Sequence[str | None]) -> dict[str, list[float]]:
    """Return the tokens' log-probabilities of the generated output that most of the samples have.

    The token that ended a text (an end token, or the last of a stop string) is no part of the answer.
    """
    best: dict[str, list[float]] = {}
    for (_, *_rest), part in lines.group_by("output", maintain_order=True):
        own: dict[str, list[float]] = {}
        for sample, logprobs, reason in part.select("sample_id", "token_logprobs", "finish_reason").iter_rows():
            kept = logprobs[:-1] if reason != "length" and len(logprobs) > 1 else logprobs
            if kept:
                own[sample] = kept
        if len(own.keys() & set(wanted)) > len(best.keys() & set(wanted)):
            best = own
    return best


def _of(sample_ids: Sequence[str | None], values: dict[str, float]) -> Floats:
    return np.array([values.get(name, np.nan) if name is not None else np.nan for name in sample_ids])
