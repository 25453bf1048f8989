"""A data set's rows as the store keeps them: number, sample and split before the user's own columns."""

from collections.abc import Mapping, Sequence, Set
from typing import Any

import polars as pl

from layercache.dataset import Dataset
from layercache.recipe import Label
from layercache.store.answered_rows import answer_labels
from layercache.store.schema import RESERVED

_ANSWERED = {
    "prompt_sample_id": pl.String,
    "answer": pl.String,
    "exact_answer": pl.String,
    "correct": pl.Boolean,
    "dont_know": pl.Boolean,
}


def row_frame(
    data: Dataset, sample_ids: Sequence[str | None], answered: Mapping[str, Sequence[Any]] | None = None
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Put the rows' numbers, samples and split before the user's own columns.

    Args:
        answered: where the model answered: prompt_sample_id, answer, exact_answer, and the labels correct and dont_know.

    Returns:
        The frame, and the keyword arguments of `put_rows` that name its columns: a user's column called
        like one of ours is `user_…` there.
    """
    own = data.frame.drop("split") if data.split == "split" else data.frame
    names = _free_names(own.columns, RESERVED | set(answered or ()))
    opening = pl.DataFrame(
        {
            "row": pl.Series(range(len(sample_ids)), dtype=pl.Int64),
            "sample_id": pl.Series(sample_ids, dtype=pl.String),
            "split": _split(data, len(sample_ids)),
            **{name: pl.Series(values, dtype=_ANSWERED[name]) for name, values in (answered or {}).items()},
        }
    )
    frame = pl.concat([opening, own.rename(names)], how="horizontal") if own.width else opening
    labels = [Label(names.get(label.name, label.name), label.kind) for label in data.labels]
    return frame, {
        "labels": [*labels, *answer_labels(answered or {})],
        "split": data.split,
        "group_by": _renamed(names, data.group_by),
        "target": _renamed(names, data.target),
        "reference": [names[name] for name in data.references],
        "answers": [names[name] for name in data.answer_columns],
    }


def _split(data: Dataset, n: int) -> pl.Series:
    if data.split is None:
        return pl.Series([None] * n, dtype=pl.String)
    column = data.frame[data.split]
    if column.dtype == pl.Boolean or isinstance(column.dtype, pl.List):
        return pl.Series([None if value is None else str(value) for value in column.to_list()], dtype=pl.String)
    return column.cast(pl.String)


def _free_names(columns: Sequence[str], reserved: Set[str]) -> dict[str, str]:
    taken = set(columns)
    names: dict[str, str] = {}
    for name in columns:
        new = name
        while new in reserved or (new != name and new in taken):
            new = f"user_{new}"
        taken.add(new)
        names[name] = new
    return names


def _renamed(names: Mapping[str, str], name: str | None) -> str | None:
    return None if name is None else names.get(name, name)
