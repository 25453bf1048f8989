"""The texts that generated ones are compared with, and whether they are long enough for BLEU."""

from collections.abc import Sequence
from typing import Any

from layercache.report import frames
from layercache.report.text import number
from layercache.report.texts import TextTask
from layercache.store.layout import RowsInfo, Run
from layercache.store.reader import Store

NGRAM = 4
"""Words in a row that BLEU counts, at the most."""


def columns(store: Store, run: Run, info: RowsInfo) -> list[str]:
    """Return the columns of a data set that hold references: those that the newest analysis read, else those declared."""
    _, asked = frames.sample_scores(store, {"run": run.id, "data": info.name, "analysis": "text"})
    return asked.get("reference") or list(info.reference or info.answers)


def texts(cells: Sequence[Any]) -> list[str]:
    """Return the texts of a row's cells; a cell holds one, or a list of them."""
    items = (item for cell in cells for item in (cell if isinstance(cell, list) else [cell]))
    return [str(item) for item in items if item is not None]


def short_share(store: Store, task: TextTask) -> float | None:
    """Return the share of rows none of whose references has four words; None where there is no reference."""
    held = [(run, info) for run in store.runs() if run.id in task.scores["run"] for info in store.data(run)]
    found = next(((run, info) for run, info in held if info.name == task.data), None)
    if found is None:
        return None
    frame = store.rows(found[0], task.data)
    rows = map(texts, frame.select(name for name in columns(store, *found) if name in frame.columns).iter_rows())
    short = [all(len(text.split()) < NGRAM for text in row) for row in rows if row]
    return sum(short) / len(short) if short else None


def caution(store: Store, task: TextTask, metric: str) -> str:
    """Say that BLEU has nothing to count where most references have fewer than four words; empty where it has."""
    share = short_share(store, task) if metric.startswith("bleu") else None
    if share is None or share < 0.5:
        return ""
    others = " or ".join(name for name in ("exact match", "token F1") if name.replace(" ", "_").lower() in _known(task))
    return (
        f"{number(100 * share, 0)} % of the references have fewer than {NGRAM} words, the runs that BLEU counts: a right answer"
        f" scores 0 and what is above it comes from longer texts.{f' Read {others} here.' if others else ''}"
    )


def _known(task: TextTask) -> set[str]:
    return set(task.scores["metric"].drop_nulls().to_list())
