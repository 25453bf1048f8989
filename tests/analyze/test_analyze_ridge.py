import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from layercache.analyze import ridge, scaling
from layercache.analyze.folds import TRAIN_ONLY


def problem(n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) / np.sqrt(d)
    y = x[:, :2].sum(axis=1) + rng.standard_normal(n)
    targets = np.column_stack([y, rng.permutation(y)])
    return x.astype(np.float32), targets, rng.integers(0, 5, n)


def reference_alpha(z: np.ndarray, y: np.ndarray) -> float:
    """Generalised cross-validation by brute force, from the hat matrix of every alpha."""
    n, d = z.shape
    scores = []
    for alpha in n * ridge.PENALTIES:
        hat = 1 / n + z @ np.linalg.solve(z.T @ z + alpha * np.eye(d), z.T)
        residual = y - hat @ y
        scores.append(n * (residual**2).sum() / (n - np.trace(hat)) ** 2)
    return float(n * ridge.PENALTIES[int(np.argmin(scores))])


@pytest.mark.parametrize(("n", "d"), [(120, 12), (60, 90)], ids=["primal", "dual"])
def test_equals_scikit_learn_in_folds(n: int, d: int):
    x, targets, folds = problem(n, d)
    found = ridge.cross_validate(x, targets, folds)
    for fold in range(5):
        train, test = folds != fold, folds == fold
        wide = x.astype(np.float64)
        z = StandardScaler().fit_transform(wide[train])
        for t in range(2):
            alpha = reference_alpha(z, targets[train, t])
            assert found.alpha[fold, t] == pytest.approx(alpha, rel=1e-12)
            model = make_pipeline(StandardScaler(), Ridge(alpha=alpha, solver="svd")).fit(
                wide[train], targets[train, t]
            )
            np.testing.assert_allclose(found.prediction[test, t], model.predict(wide[test]), rtol=1e-8, atol=1e-9)
            np.testing.assert_allclose(found.reference[test, t], targets[train, t].mean(), rtol=1e-12)


def test_close_to_leave_one_out():
    """RidgeCV chooses by leave-one-out, which generalised cross-validation approximates."""
    x, targets, _ = problem(300, 20)
    _, alpha = ridge.fit(x, targets[:, :1])
    z = StandardScaler().fit_transform(x.astype(np.float64))
    chosen = RidgeCV(alphas=300 * ridge.PENALTIES).fit(z, targets[:, 0]).alpha_
    assert abs(np.log10(alpha[0] / chosen)) < 0.7


def test_primal_and_dual_agree():
    """Ten copies of every column are the same model with ten times the penalty, three steps of the grid."""
    x, targets, folds = problem(80, 30)
    narrow = ridge.cross_validate(x, targets[:, :1], folds)
    wide = ridge.cross_validate(np.tile(x, 10), targets[:, :1], folds)
    np.testing.assert_allclose(wide.alpha, 10 * narrow.alpha)
    np.testing.assert_allclose(wide.prediction, narrow.prediction, rtol=1e-7, atol=1e-9)


def test_massive_dimensions():
    """A column whose mean is 1,000 times its spread is as good as any other."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 8))
    y = x[:, 3] + 0.1 * rng.standard_normal(400)
    folds = np.arange(400) % 5
    plain = ridge.cross_validate(x, y[:, None], folds)
    shifted = x.copy()
    shifted[:, 3] = 1000 + shifted[:, 3]
    shifted[:, 5] = -3e6 + 1e3 * shifted[:, 5]
    moved = ridge.cross_validate(shifted, y[:, None], folds)
    np.testing.assert_allclose(moved.prediction, plain.prediction, atol=1e-7)
    assert np.corrcoef(moved.prediction[:, 0], y)[0, 1] > 0.99


@pytest.mark.parametrize("d", [6, 200])
def test_constant_columns_have_no_say(d: int):
    x, targets, folds = problem(100, d)
    x[:, 0] = 1234.5
    # Constant where fold 0 is held out, but not in it: what such a column says there must be ignored.
    x[:, 1] = np.where(folds == 0, 1e6, 3.0)
    found = ridge.cross_validate(x, targets, folds)
    train = folds != 0
    expected = ridge.cross_validate(x[:, 2:], targets, folds)
    np.testing.assert_allclose(found.prediction[~train], expected.prediction[~train], rtol=1e-7, atol=1e-8)


def test_all_columns_constant():
    x = np.full((40, 5), 2.5, np.float32)
    y = np.arange(40.0)[:, None]
    found = ridge.cross_validate(x, y, np.arange(40) % 4)
    np.testing.assert_allclose(found.prediction, found.reference)


def test_rows_that_are_only_fitted_on():
    x, targets, _ = problem(90, 10)
    assignment = np.where(np.arange(90) < 60, TRAIN_ONLY, 0)
    found = ridge.cross_validate(x, targets, assignment)
    assert np.isnan(found.prediction[:60]).all()
    wide = x.astype(np.float64)
    model = make_pipeline(StandardScaler(), Ridge(alpha=found.alpha[0, 0], solver="svd"))
    model.fit(wide[:60], targets[:60, 0])
    np.testing.assert_allclose(found.prediction[60:, 0], model.predict(wide[60:]), rtol=1e-8)


@pytest.mark.parametrize(("n", "d"), [(90, 10), (30, 50)])
def test_the_probe_fitted_on_all_rows(n: int, d: int):
    x, targets, _ = problem(n, d)
    model, alpha = ridge.fit(x, targets)
    for t in range(2):
        wide = x.astype(np.float64)
        reference = make_pipeline(StandardScaler(), Ridge(alpha=alpha[t], solver="svd")).fit(wide, targets[:, t])
        np.testing.assert_allclose(model.scores(x)[:, t], reference.predict(wide), rtol=1e-8, atol=1e-9)


def test_noise_is_shrunk_to_the_mean():
    rng = np.random.default_rng(0)
    y = rng.standard_normal((500, 1))
    found = ridge.cross_validate(rng.standard_normal((500, 50)), y, np.arange(500) % 5)
    assert ((found.prediction - y) ** 2).mean() < 1.03 * y.var()


def test_threads_give_the_same_numbers():
    x, targets, folds = problem(200, 30)
    with scaling.one_thread_each() as pool:
        threaded = ridge.cross_validate(x, targets, folds, pool)
        again = ridge.cross_validate(x, targets, folds, pool)
    assert np.array_equal(threaded.prediction, again.prediction)
    np.testing.assert_allclose(threaded.prediction, ridge.cross_validate(x, targets, folds).prediction, rtol=1e-9)
