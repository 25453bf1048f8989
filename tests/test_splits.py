"""Splits: what belongs together is on one side, the data's own splits count, and the order of rows changes nothing."""

from collections import Counter
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from layercache import splits
from layercache.dataset import Dataset
from layercache.errors import DataError
from layercache.groups import group_rows, part_of
from layercache.template import Prompt


def data(passages: list[str], questions: list[str] | None = None, split: list[str] | None = None) -> Dataset:
    questions = questions or [f"question {i}" for i in range(len(passages))]
    columns = {"passage": passages, "question": questions} | ({"split": split} if split else {})
    prompts = [Prompt(f"{p} {q}", {}) for p, q in zip(passages, questions)]
    return Dataset(
        *("made", "made.csv", pl.DataFrame(columns), prompts, [], "split" if split else None, None, None, "", False, [])
    )


def dealt(given: Dataset, columns: list[str], **changes: float) -> list[str]:
    groups = splits.groups_of(given, columns)
    settings = {"validation": 0.1, "test": 0.2, "seed": 0} | changes
    made = splits.with_split(given, groups, **settings)  # type: ignore[arg-type]
    return list(made.frame[made.split or ""])


def test_what_belongs_together_is_on_one_side() -> None:
    rng = np.random.default_rng(0)
    passages = [f"p{i}" for i in rng.integers(300, size=1000)]
    questions = [f"q{i}" for i in rng.integers(5000, size=1000)]
    found = dealt(data(passages, questions), ["passage", "question"])
    for values in (passages, questions):
        sides: dict[str, set[str]] = {}
        for value, side in zip(values, found, strict=True):
            sides.setdefault(value, set()).add(side)
        assert max(map(len, sides.values())) == 1
    shares = {name: count / 1000 for name, count in Counter(found).items()}
    assert shares["test"] == pytest.approx(0.2, abs=0.03)
    assert shares["validation"] == pytest.approx(0.1, abs=0.03)


def test_the_order_of_rows_does_not_matter_and_the_seed_does() -> None:
    given = data([f"p{i // 3}" for i in range(300)])
    found = dealt(given, ["passage"])
    order = np.random.default_rng(1).permutation(300)
    shuffled = replace(given, frame=given.frame[order], prompts=[given.prompts[i] for i in order])
    assert [found[i] for i in order] == dealt(shuffled, ["passage"])
    assert found != dealt(given, ["passage"], seed=1)


def test_own_splits_count() -> None:
    names = ["Train", "dev", "testing", "train", "other", ""]
    given = data(["a", "b", "c", "c", "d", "e"], split=names)
    groups = splits.groups_of(given, ["passage"])
    assert splits.with_split(given, groups, validation=0.1, test=0.2, seed=0) is given
    # The fourth row shares its passage with one that is tested on.
    assert splits.parts(given, groups) == ["train", "validation", "test", None, None, None]
    assert splits.parts(given, splits.groups_of(given, [])) == ["train", "validation", "test", "train", None, None]
    chain = data(["a", "b", "b"], split=["train", "validation", "test"])
    assert splits.parts(chain, splits.groups_of(chain, ["passage"])) == ["train", None, "test"]


def test_equal_prompts_are_one_group_without_being_asked() -> None:
    given = data(["a", "a", "b"] * 20, ["q", "q", "r"] * 20)
    assert len(set(splits.groups_of(given, []).tolist())) == 2


def test_groups_are_chains_over_columns() -> None:
    texts = ["a", "b", "c", "d"]
    assert group_rows(texts, ["x", "x", None, None], [None, "y", "y", None]).tolist() == [0, 0, 0, 1]
    # The same value in two columns ties nothing.
    assert group_rows(texts, ["x", None, None, None], [None, "x", None, None]).tolist() == [0, 1, 2, 3]


def test_too_few_rows_and_no_such_column() -> None:
    with pytest.raises(DataError, match="3 rows in 1 groups leave none for train"):
        dealt(data(["a"] * 3), ["passage"], test=1.0)
    with pytest.raises(DataError, match="leave none for test"):
        dealt(data(["a", "b", "b"]), ["passage"], test=0.1, validation=0)
    with pytest.raises(DataError, match="no column 'film': it has passage, question"):
        splits.groups_of(data(["a"]), ["film"])


def test_a_column_that_is_called_split_is_left_alone() -> None:
    given = data(["a", "b", "c", "d", "e"])
    given = replace(given, frame=given.frame.with_columns(split=pl.lit("mine")))
    made = splits.with_split(given, splits.groups_of(given, []), validation=0.2, test=0.2, seed=0)
    assert made.split == "split_"
    assert set(made.frame["split"]) == {"mine"}


@pytest.mark.parametrize(
    ("name", "part"), [("TRAIN ", "train"), ("dev", "validation"), ("testing", "test"), ("tests", None), (None, None)]
)
def test_names_of_parts(name: str | None, part: str | None) -> None:
    assert part_of(name) == part
