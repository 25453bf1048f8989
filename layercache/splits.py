"""Splits of a data set without leakage: which rows are trained on, validated on and tested on.

A data set's own `split` column counts where it names a training part and a part to report on. Where it has none, whole
groups of rows are dealt by a hash of their text and a seed, so that neither the order of the rows nor other rows matter
much to where a row goes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from layercache.dataset import Dataset
from layercache.errors import DataError
from layercache.groups import TEST, TRAIN, VALIDATION, Ints, group_rows, part_of
from layercache.template import as_text

_COLUMN = "split"


def kept_together(data: Dataset, asked: Sequence[str] | None) -> list[str]:
    """Return the columns whose equal values never straddle the splits: those asked for, or the data set's own."""
    return list(asked) if asked is not None else [data.group_by] if data.group_by else []


def groups_of(data: Dataset, columns: Sequence[str]) -> Ints:
    """Number the rows of a data set that must stay together, int64 [rows]: those of one prompt, or of one value in a column.

    Raises:
        DataError: there is no such column.
    """
    absent = next((name for name in columns if name not in data.frame.columns), None)
    if absent is not None:
        raise DataError(f"data set {data.name} has no column {absent!r}: it has {', '.join(data.frame.columns)}")
    values = [[as_text(value) or None for value in data.frame[name].to_list()] for name in columns]
    return group_rows([prompt.text for prompt in data.prompts], *values)


def parts(data: Dataset, groups: Ints) -> list[str | None]:
    """Return the part of every row: `train`, `validation`, `test`, or None for a row that has none.

    A row to train on whose group is validated or tested on has none, and so has a row to validate on that is tested on.

    Args:
        groups: of every row, int64 [rows].
    """
    named = (
        [None] * len(groups) if data.split is None else [part_of(as_text(v)) for v in data.frame[data.split].to_list()]
    )
    found = np.array([part or "" for part in named], dtype=object)
    for part, later in ((VALIDATION, (TEST,)), (TRAIN, (TEST, VALIDATION))):
        taken = np.unique(groups[np.isin(found, later)])
        found[(found == part) & np.isin(groups, taken)] = ""
    return [str(part) or None for part in found]


def with_split(data: Dataset, groups: Ints, *, validation: float, test: float, seed: int) -> Dataset:
    """Return a data set with a column `split`, where it has no splits of its own.

    Args:
        groups: rows of one number stay in one part, int64 [rows].
        validation, test: shares of the rows; parts are as near to them as whole groups allow.
        seed: another one deals other groups.

    Raises:
        DataError: a part that is wanted would be empty.
    """
    if data.split is not None:
        return data
    sizes, digests = np.bincount(groups), _digests(data, groups, seed)
    order = sorted(range(len(sizes)), key=digests.__getitem__)
    ends = np.cumsum(sizes[order]) / len(groups)
    dealt = np.where(ends <= test, TEST, np.where(ends <= test + validation, VALIDATION, TRAIN)).astype(object)
    part_of_group = dict(zip(order, dealt.tolist()))
    names = [part_of_group[group] for group in groups.tolist()]
    for part, share in ((TRAIN, 1.0), (VALIDATION, validation), (TEST, test)):
        if share > 0 and part not in names:
            raise DataError(
                f"data set {data.name}: {len(groups):,} rows in {len(sizes):,} groups leave none for {part}: "
                "use more rows, other shares, or a column with splits"
            )
    column = _COLUMN
    while column in data.frame.columns:
        column += "_"
    return replace(data, frame=data.frame.with_columns(pl.Series(column, names, pl.String)), split=column)


def _digests(data: Dataset, groups: Ints, seed: int) -> list[bytes]:
    smallest: dict[int, str] = {}
    for group, prompt in zip(groups.tolist(), data.prompts, strict=True):
        smallest[group] = min(smallest.get(group, prompt.text), prompt.text)
    return [hashlib.sha256(f"{seed}:{smallest[group]}".encode()).digest() for group in range(len(smallest))]
