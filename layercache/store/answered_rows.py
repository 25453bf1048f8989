"""Rows of one data set whose answers were generated in parts: each part's rows know the answers of its own prompts.

Both have all rows; where one has no answer yet and the other has, the other's counts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from layercache.recipe import Label

ANSWERED = ("sample_id", "answer", "exact_answer", "correct", "dont_know")
"""Columns that come with an answer."""
_PROMPT = "prompt_sample_id"
_LABELS = ("correct", "dont_know")


def answer_labels(columns: Mapping[str, Sequence[Any]]) -> list[Label]:
    """Declare what answers are worth, where it is known; whether a model knows only where there is both to tell apart."""
    known = {name: set(columns.get(name, ())) - {None} for name in _LABELS}
    return [Label(name, "boolean") for name, values in known.items() if len(values) > (name == "dont_know")]


def joined(one: pl.DataFrame, other: pl.DataFrame) -> pl.DataFrame | None:
    """Return the rows with the answers of both; None where they are not two looks at the same rows.

    Args:
        one, other: rows files' columns, in one order.
    """
    if one.schema != other.schema or one.height != other.height or not {_PROMPT, *ANSWERED} <= {*one.columns}:
        return None
    rest = [name for name in one.columns if name not in ANSWERED]
    known = one.get_column("answer").is_not_null()
    both = known & other.get_column("answer").is_not_null()
    if one.select(rest).equals(other.select(rest)) and one.filter(both).equals(other.filter(both)):
        return one.with_columns(
            pl.when(known).then(one.get_column(name)).otherwise(other.get_column(name)).alias(name) for name in ANSWERED
        )
    return None


def own_labels(labels: Sequence[Label]) -> list[Label]:
    """Return the labels that do not come with answers."""
    return [label for label in labels if label.name not in _LABELS]


def labels_of(frame: pl.DataFrame, labels: Sequence[Label]) -> list[Label]:
    """Return the labels of joined rows: those declared, and what the answers of all are worth."""
    return [*own_labels(labels), *answer_labels({name: frame.get_column(name).to_list() for name in _LABELS})]
