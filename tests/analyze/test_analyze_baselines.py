import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from layercache.analyze import baselines, folds

COLOURS = ["red", "blue", "green", "white"]


def made(n: int = 160) -> tuple[list[str], np.ndarray, folds.Folds]:
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 4, n)
    filler = np.array([f"word{i}" for i in range(50)])
    texts = [f"{i} a {COLOURS[c]} house {' '.join(filler[rng.integers(0, 50, 6)])}" for i, c in enumerate(colour)]
    return texts, colour, folds.make(texts, label="colour", count=4, seed=0, classes=colour)


def test_mean_and_majority_come_from_the_fitted_rows():
    y = np.array([0.0, 0, 0, 9, 9, 9])
    given = folds.Folds(np.array([0, 0, 1, 1, -1, -1]), np.zeros(6, np.int64), np.arange(6), 2, None)
    np.testing.assert_allclose(baselines.expected(y, given), [6.75, 6.75, 4.5, 4.5, np.nan, np.nan])
    found = baselines.majority((y / 9).astype(np.int64), 2, given)
    assert found[:4].argmax(axis=1).tolist() == [1, 1, 0, 0]
    assert np.isnan(found[4:]).all()


def test_text_that_says_the_class_is_found():
    texts, colour, given = made()
    counts = baselines.term_counts(texts)
    found = baselines.tfidf_classes(counts, colour, 4, given)
    assert (found.argmax(axis=1) == colour).mean() > 0.95
    np.testing.assert_allclose(found.sum(axis=1), 1)
    numbers = baselines.tfidf_numbers(counts, colour.astype(float), given)
    assert np.corrcoef(numbers, colour)[0, 1] > 0.9


def test_words_and_characters_equal_scikit_learns_vectorisers():
    texts, _, _ = made()
    words, characters = baselines.term_counts(texts)
    fitted = np.arange(160) < 120
    for counts, settings in (
        (words, {"ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"}),
        (characters, {"analyzer": "char_wb", "ngram_range": (2, 4)}),
    ):
        rows, held = baselines._weigh(counts, fitted, ~fitted)
        reference = TfidfVectorizer(sublinear_tf=True, min_df=2, **settings)
        expected = reference.fit_transform(texts[:120])
        assert rows.shape == expected.shape
        np.testing.assert_allclose(rows.toarray(), expected.toarray(), atol=1e-12)
        np.testing.assert_allclose(held.toarray(), reference.transform(texts[120:]).toarray(), atol=1e-12)


def test_the_model_behind_a_choice_is_scikit_learns(monkeypatch: pytest.MonkeyPatch):
    texts, colour, given = made()
    counts = baselines.term_counts(texts)
    monkeypatch.setattr(baselines, "_choice", lambda *rest: (0, 3.0))
    found = baselines.tfidf_classes(counts, colour, 4, given)
    numbers = baselines.tfidf_numbers(counts, colour.astype(float), given)
    for fold in range(4):
        held = given.assignment == fold
        rows, test = baselines._weigh(counts[0], ~held, held)
        expected = LogisticRegression(C=3.0, tol=1e-8, max_iter=2000).fit(rows, colour[~held]).predict_proba(test)
        np.testing.assert_allclose(found[held], expected, atol=5e-3)
        reference = Ridge(alpha=3.0).fit(rows.toarray(), colour[~held])
        np.testing.assert_allclose(numbers[held], reference.predict(test.toarray()), atol=1e-3)


def test_only_the_most_frequent_terms_are_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(baselines, "MAX_TERMS", 2)
    counts = csr_array(np.array([[1, 1, 0, 3], [1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0.0]]))
    fitted = np.array([True, True, True, False])
    rows, held = baselines._weigh(counts, fitted, ~fitted)
    assert rows.shape == (3, 2)
    assert (rows.toarray() > 0).tolist() == [[True, True], [True, True], [True, False]]
    assert held.shape == (1, 2)


@pytest.mark.parametrize("texts", [[""] * 12, [f"only{i}" for i in range(12)], ["!!!"] * 12])
def test_texts_without_shared_terms_give_the_mean(texts: list[str]):
    given = folds.Folds(np.arange(12) % 3, np.arange(12) % 5, np.arange(12), 3, None)
    y = np.arange(12.0)
    counts = baselines.term_counts(texts)[:1] if texts[0] == "only0" else baselines.term_counts(texts)
    found = baselines.tfidf_numbers(counts, y, given)
    np.testing.assert_allclose(found, baselines.expected(y, given), atol=1e-9)
    probability = baselines.tfidf_classes(counts, np.arange(12) % 2, 2, given)
    np.testing.assert_allclose(probability, 0.5, atol=0.2)


def test_shuffling_permutes_and_moves_groups_together():
    groups = np.repeat(np.arange(30), 4)
    y = groups * 10
    shuffled = baselines.shuffle(y, groups, 0)
    assert sorted(shuffled) == sorted(y)
    assert (shuffled != y).mean() > 0.8
    # Groups of one size trade their values whole.
    assert all(len(set(shuffled[groups == g])) == 1 for g in range(30))


def test_shuffling_does_not_depend_on_anything_but_the_seed():
    y, groups = np.random.default_rng(0).standard_normal(50), np.arange(50) // 2
    assert np.array_equal(baselines.shuffle(y, groups, 3), baselines.shuffle(y, groups, 3))
    assert not np.array_equal(baselines.shuffle(y, groups, 3), baselines.shuffle(y, groups, 4))
