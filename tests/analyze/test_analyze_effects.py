"""Effects and McNemar's test against formulas written out."""

import numpy as np
import pytest
from scipy import stats

from layercache.analyze import bootstrap, paired
from layercache.analyze.effects import effects, over_seeds


def test_effects_of_a_planted_grid() -> None:
    ranks, alphas = np.array([0.0, 0.1, 0.4]), np.array([0.0, 0.3])
    seeds = np.array([-0.02, 0.0, 0.02])
    y = 0.5 + ranks[:, None] / 10 + alphas[None, :] + 0 * seeds[:, None, None] + seeds[:, None, None]
    found = effects(y)
    assert found.effects["r"].value == pytest.approx(0.04)
    assert found.effects["alpha"].value == pytest.approx(0.3)
    assert found.effects["interaction"].value == pytest.approx(0)
    # Every seed has the same effects, so that their intervals have no width.
    assert found.effects["alpha"].low == pytest.approx(found.effects["alpha"].high)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.shares["interaction"] == pytest.approx(0, abs=1e-12)


def test_sums_of_squares_and_p_are_those_of_an_analysis_of_variance() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=(4, 3, 2)) + np.array([0.0, 0.5, 1.0])[:, None]
    found = effects(y)
    # By nested least-squares models with dummy columns.
    s, r, a = (grid.ravel() for grid in np.indices(y.shape))
    one, dr, da = np.ones((y.size, 1)), np.eye(3)[r][:, 1:], np.eye(2)[a][:, 1:]
    both = np.einsum("ij,ik->ijk", dr, da).reshape(y.size, -1)
    target = y.ravel()
    del s

    def left(*columns: np.ndarray) -> float:
        x = np.hstack(columns)
        return float(((target - x @ np.linalg.lstsq(x, target, rcond=None)[0]) ** 2).sum())

    residual = left(one, dr, da, both)
    sums = {
        "r": (left(one, da) - left(one, dr, da), 2),
        "alpha": (left(one, dr) - left(one, dr, da), 1),
        "interaction": (left(one, dr, da) - residual, 2),
    }
    for name, (value, free) in sums.items():
        assert found.shares[name] == pytest.approx(value / left(one))
        f = (value / free) / (residual / (y.size - 6))
        assert found.p[name] == pytest.approx(stats.f.sf(f, free, y.size - 6))
    assert found.shares["seed"] == pytest.approx(residual / left(one))


def test_intervals_over_seeds_are_students() -> None:
    values = np.array([0.1, 0.4, 0.2])
    found = over_seeds(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert over_seeds(np.array([0.3]))[:3] == (0.3, None, None)


def test_a_grid_of_one_rank_or_one_seed() -> None:
    y = np.array([[[0.5, 0.7]]])
    found = effects(y)
    assert set(found.effects) == {"alpha"}
    assert found.effects["alpha"].value == pytest.approx(0.2)
    assert found.p == {}
    # One seed explains nothing that could be left: a share of 1 would be no finding.
    assert found.shares == {}
    assert effects(np.array([[[0.5, 0.7]], [[0.4, 0.8]]])).shares.keys() == {"alpha", "seed"}
    assert effects(np.full((2, 2, 2), 0.5)).shares == {}


@pytest.mark.parametrize(("first", "second", "p"), [(5, 12, 0.1434631), (0, 0, 1.0), (1, 0, 1.0), (0, 10, 0.001953125)])
def test_mcnemar_is_the_binomial_test_of_discordant_rows(first: int, second: int, p: float) -> None:
    a = np.array([True] * first + [False] * second + [True] * 7 + [False] * 3)
    b = np.array([False] * first + [True] * second + [True] * 7 + [False] * 3)
    found = paired.mcnemar(a, b)
    assert (found.first, found.second) == (first, second)
    assert found.p == pytest.approx(p, rel=1e-6)


def test_a_paired_difference_has_an_interval_over_groups() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(50), 4)
    a = rng.random(200) < 0.7
    shift = np.repeat(rng.random(50) < 0.3, 4)
    b = a & ~shift
    found = paired.difference(a, b, bootstrap.draw(groups, 2000, 0))
    assert found.value == pytest.approx(a.mean() - b.mean())
    by_group = (a.astype(float) - b).reshape(50, 4).mean(axis=1)
    half = 1.96 * by_group.std() / np.sqrt(50)
    assert found.low == pytest.approx(found.value - half, abs=0.015)
    assert found.high == pytest.approx(found.value + half, abs=0.015)
