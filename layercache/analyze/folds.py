"""Folds of cross-validation: fixed by a seed, and never with the same prompt on both sides.

Rows are tied into groups by prompt text and by the `group_by` column together (the connected
components of both), and a group is always whole on one side. Which fold a group goes to follows from
the texts and the seed, not from the order of the rows.

A data set with a `split` column that names a training part and a part to report on is not
cross-validated: probes are fitted on `train` and reported on `test`. Rows of `validation` are fitted on
as well, because every penalty is chosen inside the fitted part; where there is no `test`, `validation`
is what is reported. Rows of any other split, or of none, are not used, and training rows that share a
group with a reported row are left out.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from layercache.errors import AnalysisError
from layercache.groups import TEST, TRAIN, VALIDATION, group_rows, part_of

Ints = npt.NDArray[np.int64]

TRAIN_ONLY = -1
"""Assignment of a row that is fitted on in every fold and reported in none."""
UNUSED = -2
"""Assignment of a row that has no part in the probe."""
INNER_FOLDS = 5
"""Of the fitted rows, one in this many is held back inside a fold to choose a penalty."""


class Folds(NamedTuple):
    """Where each row is reported, int64 [rows] each.

    `assignment` is the fold in which a row is held out, TRAIN_ONLY or UNUSED; `inner` cuts the same rows
    into INNER_FOLDS parts, for choices made inside a fold; `groups` numbers the groups from 0.
    """

    assignment: Ints
    inner: Ints
    groups: Ints
    k: int
    note: str | None


def assign(groups: Ints, keys: Sequence[str], classes: Ints | None, count: int, seed: int) -> Ints:
    """Deal whole groups into `count` folds, int64 [rows], balanced in size and, given classes, in classes.

    Groups are dealt largest first, then in the order of a hash of the seed and of their key (the smallest of
    the rows' `keys`), each to the fold that has least of its classes, then to the smallest fold.
    """
    kinds = np.zeros(len(groups), np.int64) if classes is None else classes
    table = np.zeros((int(groups.max()) + 1, int(kinds.max()) + 1))
    np.add.at(table, (groups, kinds), 1)
    share = table / np.maximum(table.sum(axis=0), 1) ** 2
    held, sizes = np.zeros((count, table.shape[1])), np.zeros(count)
    fold_of = np.empty(len(table), dtype=np.int64)
    for group in _deal_order(groups, keys, table.sum(axis=1), seed):
        cost = held @ share[group]
        fold = int(np.lexsort((sizes, cost))[0])
        fold_of[group] = fold
        held[fold] += table[group]
        sizes[fold] += table[group].sum()
    return fold_of[groups]


def _deal_order(groups: Ints, keys: Sequence[str], sizes: npt.NDArray[np.float64], seed: int) -> list[int]:
    """Order groups by falling size, then by hash."""
    smallest: dict[int, str] = {}
    for group, key in zip(groups.tolist(), keys):
        smallest[group] = min(smallest.get(group, key), key)
    digest = {group: hashlib.sha256(f"{seed}:{key}".encode()).digest() for group, key in smallest.items()}
    return sorted(digest, key=lambda group: (-sizes[group], digest[group]))


def make(
    texts: Sequence[str],
    *,
    label: str,
    count: int,
    seed: int,
    group_by: Sequence[str | None] | None = None,
    split: Sequence[str | None] | None = None,
    classes: Ints | None = None,
) -> Folds:
    """Choose what is fitted on and what is reported, for the rows that have a label.

    Args:
        texts: the prompt of each row.
        label: the label's name, for messages.
        count: folds of a cross-validation.
        seed: fixes which group goes to which fold.
        group_by: a value a row; equal values stay together.
        split: the name of each row's split, if the data set has splits.
        classes: class numbers, int64 [rows], to be spread evenly over folds.

    Raises:
        AnalysisError: too few rows or groups for the folds, or a fitted part with a single class.
    """
    groups = group_rows(texts, group_by)
    n_groups = int(groups.max()) + 1 if len(groups) else 0
    if n_groups < count or len(texts) < 4:
        raise AnalysisError(
            f"label {label!r}: {len(texts)} rows in {n_groups} groups are too few for {count} folds; "
            "use fewer folds or more rows"
        )
    given = None if split is None else _from_split(split, groups)
    if given is None:
        assignment, note = assign(groups, texts, classes, count, seed), None
        count_made = count
    else:
        (assignment, note), count_made = given, 1
    folds = Folds(assignment, assign(groups, texts, classes, INNER_FOLDS, seed + 1), groups, count_made, note)
    check(folds, label, classes)
    return folds


def check(folds: Folds, label: str, classes: Ints | None) -> None:
    """Refuse folds that leave nothing to report, too little to fit on, or a single class to fit on.

    Args:
        classes: class numbers, int64 [rows]; None for a number.

    Raises:
        AnalysisError: names the label and the counts.
    """
    for fold in range(folds.k):
        fitted = training(folds.assignment, fold)
        reported = int((folds.assignment == fold).sum())
        if fitted.sum() < 3 or not reported:
            raise AnalysisError(
                f"label {label!r}: fold {fold + 1} would be fitted on {fitted.sum()} rows and report {reported}; "
                "use fewer folds, more rows or another split"
            )
        if classes is not None and len(np.unique(classes[fitted])) < 2:
            raise AnalysisError(
                f"label {label!r}: all {fitted.sum()} rows that fold {fold + 1} is fitted on have the same class; "
                "use fewer folds or another group_by"
            )


def training(assignment: Ints, fold: int) -> npt.NDArray[np.bool_]:
    """Return which rows a fold is fitted on, bool [rows]."""
    return np.asarray((assignment != fold) & (assignment != UNUSED))


def held_back(inner: Ints) -> npt.NDArray[np.bool_]:
    """Return which of the fitted rows [n] are held back to choose a penalty: the first part that occurs.

    None are where all rows are in one part, so that nothing would be left to fit.
    """
    back = inner == inner.min()
    return np.asarray(back if not back.all() else ~back)


def again(folds: Folds, keys: Sequence[str], classes: Ints | None, seed: int) -> Folds:
    """Deal the same groups with another seed; where a split is honoured, only the inner parts change.

    Args:
        keys: a text a row, by which groups are dealt.
        classes: class numbers, int64 [rows], to be spread evenly; None for a number.
    """
    inner = assign(folds.groups, keys, classes, INNER_FOLDS, seed + 1)
    if (folds.assignment < 0).any():
        return folds._replace(inner=inner)
    return folds._replace(assignment=assign(folds.groups, keys, classes, folds.k, seed), inner=inner)


def take(folds: Folds, rows: npt.NDArray[np.bool_]) -> Folds:
    """Keep only some rows, bool [rows] (those with a state), every one in the fold it had."""
    groups = np.unique(folds.groups[rows], return_inverse=True)[1]
    return folds._replace(assignment=folds.assignment[rows], inner=folds.inner[rows], groups=groups)


def _from_split(split: Sequence[str | None], groups: Ints) -> tuple[Ints, str] | None:
    """Turn split names into an assignment and a note; None when they name no training or no reported part."""
    named = np.array([part_of(name) or "" for name in split])
    train, validation, test = (named == part for part in (TRAIN, VALIDATION, TEST))
    if not train.any() or not (test.any() or validation.any()):
        return None
    reported = test if test.any() else validation
    fitted = (train | validation) & ~reported
    shared = fitted & np.isin(groups, groups[reported])
    fitted &= ~shared
    assignment = np.where(reported, 0, np.where(fitted, TRAIN_ONLY, UNUSED))
    note = f"fitted on {fitted.sum():,} rows, reported on the {reported.sum():,} of split {_named(split, reported)!r}"
    if shared.any():
        note += f"; {shared.sum():,} training rows left out because their prompt or group is reported on"
    others = len(named) - int((train | validation | test).sum())
    return assignment, note + (f"; {others:,} rows of other splits not used" if others else "")


def _named(split: Sequence[str | None], reported: npt.NDArray[np.bool_]) -> str:
    """Return what the reported split is called in the data."""
    return (split[int(reported.argmax())] or "").strip().lower()
