import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn import metrics as reference

from layercache.analyze import bootstrap, metrics
from layercache.analyze.metrics import Classes, Numbers

FOLDS = np.arange(240) % 3


def drawn(columns: int = 6) -> np.ndarray:
    """Weights of a few resamples, the first of them all ones."""
    resamples = bootstrap.draw(np.arange(240), columns - 1, 0)
    return np.column_stack([np.ones(240), resamples.drawn]).astype(np.float32)


def numbers(ties: bool = False) -> Numbers:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(240)
    prediction = truth + rng.standard_normal(240)
    if ties:
        truth, prediction = np.round(truth), np.round(prediction)
    return Numbers(truth, prediction, np.array([0.1, -0.2, 0.0])[FOLDS], FOLDS)


def classes(count: int, ties: bool = False) -> Classes:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, count, 240)
    scores = rng.random((240, count)) + 0.6 * np.eye(count)[truth]
    probability = scores / scores.sum(axis=1, keepdims=True)
    return Classes(truth, np.round(probability, 1) if ties else probability, FOLDS)


def repeated(weights: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(240), weights.astype(int))


@pytest.mark.parametrize("ties", [False, True])
def test_numbers_equal_references_on_every_resample(ties: bool):
    given, weights = numbers(ties), drawn()
    found = {name: metric(given, weights) for name, metric in metrics.NUMBER_METRICS.items()}
    for column in range(weights.shape[1]):
        rows = repeated(weights[:, column])
        truth, prediction, base = given.truth[rows], given.prediction[rows], given.reference[rows]
        error = reference.mean_squared_error(truth, prediction)
        assert found["mse"][column] == pytest.approx(error)
        assert found["r2"][column] == pytest.approx(1 - error / reference.mean_squared_error(truth, base))
        ranked = [spearmanr(truth[FOLDS[rows] == f], prediction[FOLDS[rows] == f])[0] for f in range(3)]
        assert found["spearman"][column] == pytest.approx(np.mean(ranked), abs=1e-6)


def test_r2_is_scikit_learns_when_the_reference_is_the_mean():
    given = numbers()
    given = given._replace(reference=np.full(240, given.truth.mean()))
    assert metrics.r2(given, np.ones((240, 1)))[0] == pytest.approx(reference.r2_score(given.truth, given.prediction))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("count", [2, 4])
def test_classes_equal_scikit_learn_on_every_resample(count: int, ties: bool):
    given, weights = classes(count, ties), drawn()
    found = {name: metric(given, weights) for name, metric in metrics.CLASS_METRICS.items()}
    for column in range(weights.shape[1]):
        rows = repeated(weights[:, column])
        truth, guess = given.truth[rows], given.probability[rows].argmax(axis=1)
        assert found["accuracy"][column] == pytest.approx(reference.accuracy_score(truth, guess))
        assert found["balanced_accuracy"][column] == pytest.approx(reference.balanced_accuracy_score(truth, guess))
        assert found["macro_f1"][column] == pytest.approx(reference.f1_score(truth, guess, average="macro"))
        areas = []
        for fold in range(3):
            here = rows[FOLDS[rows] == fold]
            columns = range(count) if count > 2 else [1]
            areas.append(
                np.mean([reference.roc_auc_score(given.truth[here] == c, given.probability[here, c]) for c in columns])
            )
        assert found["auc"][column] == pytest.approx(np.mean(areas), abs=1e-6)


def test_multiclass_auc_is_scikit_learns_one_against_the_rest():
    rng = np.random.default_rng(0)
    probability = rng.dirichlet(np.ones(4), 240)
    truth = rng.integers(0, 4, 240)
    found = metrics.auc(Classes(truth, probability, np.zeros(240, np.int64)), np.ones((240, 1), np.float32))
    assert found[0] == pytest.approx(reference.roc_auc_score(truth, probability, multi_class="ovr"))


def test_a_constant_baseline_has_an_auc_of_one_half_in_folds():
    """Pooled over folds it would not: each fold's constant is its own, and lower where it holds out more of a class."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 200)
    folds = np.arange(200) % 5
    chance = np.array([truth[folds != f].mean() for f in range(5)])[folds]
    given = Classes(truth, np.column_stack([1 - chance, chance]), folds)
    assert metrics.auc(given, np.ones((200, 1), np.float32))[0] == 0.5
    assert reference.roc_auc_score(truth, chance) < 0.5


def test_undefined_values_are_nan():
    ones = np.ones((6, 1), np.float32)
    flat = Numbers(np.arange(6.0), np.zeros(6), np.zeros(6), np.zeros(6, np.int64))
    assert np.isnan(metrics.spearman(flat, ones)[0])
    one_class = Classes(np.zeros(6, np.int64), np.tile([0.4, 0.6], (6, 1)), np.zeros(6, np.int64))
    assert np.isnan(metrics.auc(one_class, ones)[0])
    assert metrics.balanced_accuracy(one_class, ones)[0] == 0


@pytest.mark.parametrize("q", [0, 0.1, 0.5, 0.77, 1])
def test_weighted_quantiles_equal_numpy(q: float):
    values, weights = numbers().prediction, drawn()
    found = metrics.weighted_quantile(values, weights, q)
    expected = [np.quantile(values[repeated(weights[:, column])], q) for column in range(weights.shape[1])]
    np.testing.assert_allclose(found, expected)


def test_intervals_equal_a_plain_bootstrap():
    given = numbers()
    resamples = bootstrap.draw(np.arange(240), 300, 7)
    found = bootstrap.estimate(lambda weights: metrics.mse(given, weights), resamples)
    errors = (given.truth - given.prediction) ** 2
    means = [errors[repeated(resamples.drawn[:, column])].mean() for column in range(300)]
    assert found.value == pytest.approx(errors.mean())
    np.testing.assert_allclose([found.low, found.high], np.percentile(means, [2.5, 97.5]), rtol=1e-6)


def test_the_interval_of_a_mean_is_near_the_normal_one():
    values = np.random.default_rng(0).standard_normal(2000)
    found = bootstrap.estimate(lambda w: metrics.weighted_mean(values, w), bootstrap.draw(np.arange(2000), 2000, 0))
    half = 1.96 * values.std() / np.sqrt(2000)
    np.testing.assert_allclose([found.low, found.high], [values.mean() - half, values.mean() + half], atol=0.15 * half)


def test_groups_are_drawn_whole():
    groups = np.array([5, 5, 5, 9, 9, 2])
    weights = bootstrap._weights(bootstrap.draw(groups, 50, 0), slice(0, 50))
    assert (weights[0] == weights[1]).all()
    assert (weights[0] == weights[2]).all()
    assert (weights[3] == weights[4]).all()
    assert (weights[0] + weights[3] + weights[5] == 3).all()


def test_blocks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch):
    given, resamples = numbers(), bootstrap.draw(np.arange(240), 100, 0)
    whole = bootstrap.estimate(lambda weights: metrics.spearman(given, weights), resamples)
    monkeypatch.setattr(bootstrap, "_BLOCK", 240 * 7)
    parts = bootstrap.estimate(lambda weights: metrics.spearman(given, weights), resamples)
    np.testing.assert_array_equal(whole.resampled, parts.resampled)


def test_no_resamples_no_interval():
    found = bootstrap.estimate(lambda w: w.sum(axis=0).astype(float), bootstrap.draw(np.arange(4), 0, 0))
    assert found[:3] == (4.0, None, None)


def test_undefined_resamples_are_left_out_of_the_interval():
    found = bootstrap.estimate(
        lambda w: np.where(np.arange(w.shape[1]) % 2, np.nan, 3.0), bootstrap.draw(np.arange(4), 10, 0)
    )
    assert (found.low, found.high) == (3.0, 3.0)


def test_shares_of_the_best():
    resampled = np.array([[1.0, 2.0, 5.0, np.nan], [3.0, 2.0, np.nan, np.nan], [0.0, 1.0, 0.0, np.nan]])
    np.testing.assert_allclose(bootstrap.best_share(resampled), [1.5 / 3, 1.5 / 3, 0])
    np.testing.assert_allclose(bootstrap.best_share(np.empty((2, 0))), [0, 0])
