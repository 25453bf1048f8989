import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from layercache.analyze import logistic, scaling
from layercache.analyze.folds import TRAIN_ONLY


def problem(n: int, d: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) / np.sqrt(d)
    y = (x @ rng.standard_normal((d, classes)) / np.sqrt(d) + rng.gumbel(size=(n, classes))).argmax(axis=1)
    return x.astype(np.float32), y


def reference(z: np.ndarray, y: np.ndarray, c: float) -> LogisticRegression:
    return LogisticRegression(C=c, solver="newton-cg", tol=1e-9, max_iter=1000).fit(z, y)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("n", "d"), [(200, 15), (50, 80), (40, 500)], ids=["tall", "wide", "rotated"])
@pytest.mark.parametrize("c", [1e-3, 1.0])
def test_equals_scikit_learn(n: int, d: int, classes: int, c: float):
    x, y = problem(n, d, classes)
    model = logistic.fit(x, y, classes, c, tolerance=1e-9)
    z = StandardScaler().fit_transform(x.astype(np.float64))
    expected = reference(z, y, c)
    np.testing.assert_allclose(model.coef, expected.coef_, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(logistic.probabilities(model.scores(x)), expected.predict_proba(z), atol=1e-6)


@pytest.mark.parametrize("classes", [2, 4])
def test_default_tolerance_is_tight(classes: int):
    x, y = problem(300, 40, classes)
    z = StandardScaler().fit_transform(x.astype(np.float64))
    for c in logistic.PENALTIES:
        found = logistic.probabilities(logistic.fit(x, y, classes, c).scores(x))
        np.testing.assert_allclose(found, reference(z, y, c).predict_proba(z), atol=2e-3)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("n", "d"), [(300, 12), (90, 120), (50, 600)], ids=["tall", "wide", "rotated"])
def test_cross_validation_equals_scikit_learn_in_folds(n: int, d: int, classes: int):
    x, y = problem(n, d, classes)
    rng = np.random.default_rng(1)
    folds, inner = rng.integers(0, 3, n), rng.integers(0, 5, n)
    targets = np.column_stack([y, rng.permutation(y)])
    found = logistic.cross_validate(x, targets, classes, folds, inner)
    wide = x.astype(np.float64)
    for fold in range(3):
        train, test = folds != fold, folds == fold
        scaler = StandardScaler().fit(wide[train])
        z, held = scaler.transform(wide[train]), scaler.transform(wide[test])
        back = inner[train] == 0
        for t in range(2):
            labels = targets[train, t]
            losses = []
            for c in logistic.PENALTIES:
                front = reference(z[~back], labels[~back], c)
                losses.append(log_loss(labels[back], front.predict_proba(z[back]), labels=list(range(classes))))
            rises = [i for i in range(1, len(losses)) if losses[i] >= losses[i - 1]]
            best = losses[rises[0] - 1 if rises else len(losses) - 1]
            chosen = found.penalty[fold, t]
            # While C is chosen fits are rough: of two equally good values either may be taken.
            assert losses[logistic.PENALTIES.index(chosen)] <= best + 1e-3
            expected = reference(z, labels, chosen).predict_proba(held)
            np.testing.assert_allclose(found.probability[t, test], expected, atol=1e-3)


def test_massive_dimensions_and_constant_columns():
    x, y = problem(300, 6, 2)
    folds, inner = np.arange(300) % 5, np.arange(300) % 3
    plain = logistic.cross_validate(x, y[:, None], 2, folds, inner)
    moved = np.column_stack([x.astype(np.float64), np.full(300, 77.0)])
    moved[:, 2] = 1000 + moved[:, 2]
    moved[:, 3] = 3e6 + 1e3 * moved[:, 3]
    found = logistic.cross_validate(moved, y[:, None], 2, folds, inner)
    np.testing.assert_allclose(found.probability, plain.probability, atol=1e-6)


def test_a_class_that_a_fold_has_not_seen_gets_next_to_nothing():
    x, y = problem(120, 5, 3)
    folds = np.where(y == 2, 0, 1 + np.arange(120) % 2)
    found = logistic.cross_validate(x, y[:, None], 3, folds, np.arange(120) % 5)
    assert found.probability[0, folds == 0, 2].max() < 1e-3
    np.testing.assert_allclose(found.probability[0].sum(axis=1), 1)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_fold_that_sees_one_class_alone(classes: int):
    x, y = problem(60, 4, classes)
    folds = np.where(y == 0, 0, 1)
    found = logistic.cross_validate(x, np.where(y == 0, 0, 1)[:, None], classes, folds, np.arange(60) % 5)
    np.testing.assert_allclose(found.probability[0, folds == 1, 0], 1)
    np.testing.assert_allclose(found.probability[0, folds == 0, 1], 1)


def test_rows_that_are_only_fitted_on():
    x, y = problem(100, 5, 2)
    assignment = np.where(np.arange(100) < 70, TRAIN_ONLY, 0)
    found = logistic.cross_validate(x, y[:, None], 2, assignment, np.arange(100) % 5)
    assert np.isnan(found.probability[0, :70]).all()
    z = StandardScaler().fit(x[:70].astype(np.float64))
    expected = reference(z.transform(x[:70].astype(np.float64)), y[:70], found.penalty[0, 0])
    np.testing.assert_allclose(
        found.probability[0, 70:], expected.predict_proba(z.transform(x[70:].astype(np.float64))), atol=1e-4
    )


def test_nothing_to_hold_back():
    x, y = problem(60, 5, 2)
    found = logistic.cross_validate(x, y[:, None], 2, np.arange(60) % 3, np.zeros(60, np.int64))
    assert set(found.penalty.ravel()) == {1e-2}


def test_separable_classes_converge():
    x = np.linspace(-1, 1, 40)[:, None].astype(np.float32)
    model = logistic.fit(x, (x[:, 0] > 0).astype(np.int64), 2, 1.0)
    assert ((model.scores(x)[:, 0] > 0) == (x[:, 0] > 0)).all()


def test_threads_give_the_same_numbers():
    x, y = problem(200, 20, 3)
    folds, inner = np.arange(200) % 5, np.arange(200) % 3
    with scaling.one_thread_each() as pool:
        one = logistic.cross_validate(x, y[:, None], 3, folds, inner, pool)
        two = logistic.cross_validate(x, y[:, None], 3, folds, inner, pool)
    assert np.array_equal(one.probability, two.probability)


def test_choose_stops_at_the_first_that_does_no_better():
    losses = {1.0: 3.0, 2.0: 2.0, 3.0: 2.0, 4.0: 0.0}
    seen = []

    def loss(penalty: float) -> float:
        seen.append(penalty)
        return losses[penalty]

    assert logistic.choose((1.0, 2.0, 3.0, 4.0), loss) == (2.0, 2.0)
    assert seen == [1.0, 2.0, 3.0]
