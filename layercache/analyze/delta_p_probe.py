"""Cross-fitted probes of truthfulness: the log-odds they give a held-out sample, clean and under every changed pass.

The probe of a fold is fitted on the clean states of the other folds, its penalty chosen inside them, and the same probe
then reads the held-out samples' clean and changed states: no sample is ever scored by a probe that saw it, its prompt or
its group, under any condition.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from layercache import engine
from layercache.analyze import logistic, states
from layercache.analyze.delta_p_data import Task
from layercache.analyze.folds import training
from layercache.analyze.scaling import Linear, in_order, one_thread_each
from layercache.progress import Task as Bar
from layercache.store.layout import CLEAN
from layercache.store.reader import Store

Floats = npt.NDArray[np.float64]
States = npt.NDArray[np.float32]


def logits(store: Store, tasks: Sequence[Task], bar: Bar) -> Iterator[dict[str, Floats]]:
    """Yield, for each task, the log-odds of a right answer by condition, float64 [layers, n].

    NaN where a row is not held out in any fold, or has no state under the condition.
    """
    # The prompts' texts need not be shipped.
    plain = [task._replace(problem=replace(task.problem, texts=[])) for task in tasks]
    places = ((number, layer) for number, task in enumerate(tasks) for layer in task.feature.layers)
    fitted = engine.each(partial(_layer, store, plain), places, what="delta_p")
    for task in tasks:
        layers = []
        for _ in task.feature.layers:
            layers.append(next(fitted))
            bar.advance()
        yield {name: np.stack([layer[name] for layer in layers]) for name in (CLEAN, *task.have)}


def _layer(store: Store, tasks: Sequence[Task], place: tuple[int, int]) -> dict[str, Floats]:
    """Fit the probe of one layer, given the number of a task and the layer; return its log-odds by condition [n]."""
    task, layer = tasks[place[0]], place[1]
    with one_thread_each() as pool:
        models = fold_models(read(store, task, layer, CLEAN), task, pool)
    return {name: held_out(models, read(store, task, layer, name), task) for name in (CLEAN, *task.have)}


def fold_models(x: States, task: Task, pool: ThreadPoolExecutor) -> list[Linear]:
    """Fit the probe of every fold on states x [n, d]."""
    folds, y = task.problem.folds, task.problem.y

    def one(fold: int) -> Linear:
        fitted = training(folds.assignment, fold)
        return logistic.fit_chosen(x[fitted], y[fitted], 2, folds.inner[fitted])[0]

    return in_order(pool, one, folds.k)


def held_out(models: list[Linear], x: States, task: Task) -> Floats:
    """Let every fold's probe score the rows it did not see, float64 [n]; NaN where a state is NaN or not held out."""
    scores = np.full(len(x), np.nan)
    for fold, model in enumerate(models):
        rows = task.problem.folds.assignment == fold
        scores[rows] = model.scores(x[rows])[:, 0]
    return scores


def read(store: Store, task: Task, layer: int, condition: str) -> States:
    """Read the states of the task's rows, float32 [n, d]; NaN where a row has none under the condition."""
    matrix = states.finite(store, task.problem.run, task.feature, layer, condition)
    have = task.have.get(condition, np.ones(len(task.problem.rows), np.bool_))
    x = np.full((len(have), matrix.values.shape[1]), np.nan, np.float32)
    x[have] = matrix.values[np.searchsorted(matrix.sample_ids, task.problem.sample_ids[have])]
    return x
