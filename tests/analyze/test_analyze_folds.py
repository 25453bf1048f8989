import numpy as np
import pytest

from layercache.analyze import folds
from layercache.errors import AnalysisError


def make(texts: list[str], **settings) -> folds.Folds:
    return folds.make(texts, **{"label": "rating", "count": 5, "seed": 0, **settings})


def test_duplicates_never_straddle():
    texts = [f"prompt {i % 37}" for i in range(200)]
    made = make(texts)
    for text in set(texts):
        rows = [i for i, other in enumerate(texts) if other == text]
        assert len(set(made.assignment[rows])) == 1
        assert len(set(made.inner[rows])) == 1


def test_groups_are_components_of_text_and_group_by():
    # 0-1 share a text, 1-2 a director, 3 has no director and its own text, 4-5 share a director.
    groups = folds.group_rows(["a", "a", "b", "c", "d", "e"], ["x", "y", "y", None, "z", "z"])
    assert groups.tolist() == [0, 0, 0, 1, 2, 2]


def test_a_missing_group_by_ties_nothing():
    assert folds.group_rows(["a", "b", "c"], [None, None, None]).tolist() == [0, 1, 2]


def test_group_by_never_straddles_and_sizes_stay_balanced():
    rng = np.random.default_rng(0)
    directors = [f"d{i}" for i in rng.integers(0, 60, 400)]
    made = make([f"film {i}" for i in range(400)], group_by=directors)
    for director in set(directors):
        assert len({made.assignment[i] for i, other in enumerate(directors) if other == director}) == 1
    sizes = np.bincount(made.assignment)
    assert sizes.min() >= 75
    assert sizes.max() <= 85


def test_folds_do_not_depend_on_the_order_of_rows():
    rng = np.random.default_rng(1)
    texts = [f"prompt {i % 90}" for i in range(150)]
    classes = np.array([i % 90 % 3 for i in range(150)])
    order = rng.permutation(150)
    one = make(texts, classes=classes)
    other = make([texts[i] for i in order], classes=classes[order])
    assert np.array_equal(one.assignment[order], other.assignment)
    assert np.array_equal(one.groups[order], other.groups)


def test_another_seed_gives_other_folds():
    texts = [f"prompt {i}" for i in range(100)]
    assert not np.array_equal(make(texts).assignment, make(texts, seed=1).assignment)


def test_classes_are_spread_evenly():
    rng = np.random.default_rng(0)
    classes = rng.choice(3, 203, p=[0.7, 0.2, 0.1])
    made = make([f"prompt {i}" for i in range(203)], classes=classes)
    for number in range(3):
        counts = np.bincount(made.assignment[classes == number], minlength=5)
        assert counts.max() - counts.min() <= 1
    sizes = np.bincount(made.assignment)
    assert sizes.max() - sizes.min() <= 3


def test_split_is_honoured_and_validation_joins_the_fitted_rows():
    texts = [f"prompt {i}" for i in range(12)]
    split = ["train"] * 5 + ["validation"] * 2 + ["test"] * 3 + ["extra", None]
    made = make(texts, split=split)
    assert made.k == 1
    assert made.assignment.tolist() == [folds.TRAIN_ONLY] * 7 + [0] * 3 + [folds.UNUSED] * 2
    assert made.note == "fitted on 7 rows, reported on the 3 of split 'test'; 2 rows of other splits not used"


def test_without_a_test_part_validation_is_reported():
    made = make([f"p{i}" for i in range(10)], split=["Train"] * 6 + ["dev"] * 4)
    assert made.assignment.tolist() == [folds.TRAIN_ONLY] * 6 + [0] * 4


@pytest.mark.parametrize("names", [["train"], ["test"], ["a", "b"], ["validation", "test"]])
def test_splits_without_both_parts_are_cross_validated(names: list[str]):
    made = make([f"p{i}" for i in range(20)], split=[names[i % len(names)] for i in range(20)])
    assert made.k == 5
    assert set(made.assignment) == {0, 1, 2, 3, 4}


def test_training_rows_with_a_reported_prompt_are_left_out():
    texts = ["same", "b", "c", "d", "same", "e"]
    made = make(texts, split=["train"] * 4 + ["test"] * 2)
    assert made.assignment.tolist() == [folds.UNUSED, -1, -1, -1, 0, 0]
    assert made.note is not None
    assert "1 training rows left out because their prompt" in made.note


def test_fewer_groups_than_folds():
    with pytest.raises(AnalysisError, match=r"label 'rating': 40 rows in 3 groups are too few for 5 folds"):
        make([f"prompt {i % 3}" for i in range(40)])


def test_fewer_rows_than_folds():
    with pytest.raises(AnalysisError, match=r"label 'rating': 4 rows in 4 groups are too few for 5 folds"):
        make(["a", "b", "c", "d"])


def test_no_rows_at_all():
    with pytest.raises(AnalysisError, match="0 rows in 0 groups"):
        make([])


def test_a_fitted_part_with_one_class():
    classes = np.array([0] * 10 + [1] * 10)
    with pytest.raises(AnalysisError, match=r"label 'rating': all 10 rows that fold 1 is fitted on have the same"):
        make([f"p{i}" for i in range(20)], classes=classes, split=["train"] * 10 + ["test"] * 10)
    with pytest.raises(AnalysisError, match="same class"):
        make([f"p{i}" for i in range(20)], count=2, classes=classes, group_by=["a"] * 10 + ["b"] * 10)


def test_split_with_hardly_anything_to_fit():
    with pytest.raises(AnalysisError, match="fitted on 2 rows and report 8"):
        make([f"p{i}" for i in range(10)], split=["train"] * 2 + ["test"] * 8)


def test_held_back_leaves_something_to_fit():
    assert folds.held_back(np.array([2, 1, 1, 3])).tolist() == [False, True, True, False]
    assert not folds.held_back(np.array([2, 2, 2])).any()


def test_take_keeps_every_row_in_its_fold():
    made = make([f"p{i}" for i in range(30)])
    keep = np.arange(30) % 3 != 0
    taken = folds.take(made, keep)
    assert np.array_equal(taken.assignment, made.assignment[keep])
    assert sorted(taken.groups) == list(range(20))
