"""Rank correlations over layers and their intervals, against scikit-learn and SciPy on draws written out row by row."""

from pathlib import Path

import numpy as np
import polars as pl
import probe_stores as stores
import pytest
from scipy.stats import kendalltau, spearmanr
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from layercache import study
from layercache.analyze import bootstrap, layer_ranks
from layercache.recipe import CompareSpec, EntropySpec, ProbeSpec
from layercache.store import reader

N, LAYERS, DRAWS = 60, 5, 40


def rows(kind: str, values: np.ndarray, classes: list[str] | None = None) -> pl.DataFrame:
    """Sample scores [n, layers]; three rows share a prompt."""
    return pl.concat(
        pl.DataFrame(
            {
                "row": np.arange(N),
                "sample_id": [f"s{index // 3}" for index in range(N)],
                "layer": pl.Series([layer] * N, dtype=pl.Int32),
                "metric": [kind] * N,
                "value": values[:, layer],
                "text": pl.Series(classes or [None] * N, dtype=pl.String),
            }
        )
        for layer in range(LAYERS)
    )


def written_out() -> list[np.ndarray]:
    """The rows of every draw: all of them, then those of the drawn prompts, as often as they were drawn."""
    prompts = np.array([f"s{index // 3}" for index in range(N)])
    groups = np.unique(prompts, return_inverse=True)[1]
    draws = bootstrap.draw(groups, DRAWS, 7)
    times = draws.drawn[draws.groups]
    return [np.arange(N), *(np.repeat(np.arange(N), times[:, draw]) for draw in range(DRAWS))]


@pytest.mark.parametrize("score", layer_ranks.SCORED)
def test_every_draw_is_scored_as_scikit_learn_scores_its_rows(score: str) -> None:
    rng = np.random.default_rng(0)
    truth = np.array(["a", "b", "c"])[rng.choice(3, N, p=[0.7, 0.2, 0.1])]
    guesses = [np.where(rng.random(N) < 0.3 + 0.1 * layer, truth, "b") for layer in range(LAYERS)]
    errors = rng.standard_normal((N, LAYERS)) / np.arange(1, LAYERS + 1)
    if score == "r2":
        found = layer_ranks.resampled(rows("error", errors), list(range(LAYERS)), score, DRAWS, 7)
        expected = [[-np.mean(errors[own, layer] ** 2) for layer in range(LAYERS)] for own in written_out()]
    else:
        correct = np.column_stack([guess == truth for guess in guesses]).astype(float)
        given = rows("correct", correct, truth.tolist()).sample(fraction=1, shuffle=True, seed=1)
        found = layer_ranks.resampled(given, list(range(LAYERS)), score, DRAWS, 7)
        function = accuracy_score if score == "accuracy" else balanced_accuracy_score
        expected = [[function(truth[own], guess[own]) for guess in guesses] for own in written_out()]
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_correlations_are_scipys_ties_included() -> None:
    rng = np.random.default_rng(1)
    metric = np.array([1.0, 2.0, 2.0, 5.0, 4.0])
    score, draws = rng.integers(0, 4, LAYERS).astype(float), rng.integers(0, 4, (200, LAYERS)).astype(float)
    found = layer_ranks.correlations(metric, score, draws)
    for one, function in ((found.spearman, spearmanr), (found.kendall, kendalltau)):
        assert one.value == pytest.approx(function(metric, score).statistic)
        varied = [draw for draw in draws if np.ptp(draw)]
        every = np.array([function(metric, draw).statistic for draw in varied])
        np.testing.assert_allclose(one.resampled[~np.isnan(one.resampled)], every)
        assert (one.low, one.high) == pytest.approx(tuple(np.percentile(every, [2.5, 97.5])))
    alone = layer_ranks.correlations(metric, score, None)
    assert (alone.spearman.low, alone.kendall.high) == (None, None)


def test_what_is_not_kept_gives_no_interval() -> None:
    values = np.ones((N, LAYERS))
    whole, layers = rows("correct", values, ["a"] * N), list(range(LAYERS))
    assert layer_ranks.resampled(whole, layers, "accuracy", DRAWS, 0) is not None
    assert layer_ranks.resampled(whole, layers, "auc", DRAWS, 0) is None
    assert layer_ranks.resampled(whole, layers, "accuracy", 0, 0) is None
    assert layer_ranks.resampled(whole, [*layers, 9], "accuracy", DRAWS, 0) is None
    assert layer_ranks.resampled(rows("correct", values), layers, "balanced_accuracy", DRAWS, 0) is None
    gone = whole.filter(~((pl.col("layer") == 2) & (pl.col("row") == 5)))
    assert layer_ranks.resampled(gone, layers, "accuracy", DRAWS, 0) is None


def test_compare_gives_means_with_intervals_and_quantiles_when_asked(tmp_path: Path) -> None:
    """Signal that grows with the layer: a metric that grows too has a correlation whose interval is above 0."""
    rng = np.random.default_rng(3)
    count = 150
    texts, signal = [f"text {index}" for index in range(count)], rng.standard_normal(count)
    run = stores.new_run(tmp_path / "s", layers=LAYERS, width=8)
    frame = pl.DataFrame(
        {"rating": signal, "good": signal > 0, "kind": np.array(["x", "y", "z"])[np.digitize(signal, [-1, 1])]}
    )
    stores.put_rows(run, frame, texts, ["rating:number", "good:boolean", "kind:category"])
    states = {
        layer: (rng.standard_normal((count, 8)) + 0.35 * layer**2 * np.outer(signal, np.ones(8) / 3)).astype(np.float32)
        for layer in range(LAYERS)
    }
    stores.put_states(run, texts, {("resid", "mean@prompt"): states})
    entropies = {layer: layer + rng.random(count) for layer in range(LAYERS)}
    stores.put_lens(run, texts, entropies, {layer: np.ones(count, bool) for layer in range(LAYERS)})
    specs = [ProbeSpec(bootstrap=20, keep=False), EntropySpec(bootstrap=20), CompareSpec(bootstrap=200)]
    compared = stores.frame(study.analyze(tmp_path / "s", specs, stores.Notes())[-1].results)
    groups = set(compared.filter(metric="spearman_over_layers")["group"])
    assert groups == {"entropy last@prompt", "js_to_final last@prompt", "kl_to_final last@prompt"}
    own = compared.filter(metric="spearman_over_layers", group="entropy last@prompt")
    assert set(own["label"]) == {"rating", "good", "kind"}
    assert (own["n"] == LAYERS).all()
    assert (own["low"] > 0.3).all()
    assert (own["low"] <= own["value"]).all()
    assert own["value"].min() >= 0.9
    (more,) = study.analyze(tmp_path / "s", [CompareSpec(bootstrap=0, with_quantiles=True)], stores.Notes())
    every = stores.frame(more.results).filter(metric="spearman_over_layers")
    assert "entropy_q10 last@prompt" in set(every["group"])
    assert every["low"].is_null().all()
    (named,) = study.analyze(tmp_path / "s", [CompareSpec(bootstrap=0, metrics=["entropy_q50"])], stores.Notes())
    assert set(stores.frame(named.results).filter(metric="spearman_over_layers")["group"]) == {
        "entropy_q50 last@prompt"
    }
    assert reader.open(tmp_path / "s").sql(
        "SELECT DISTINCT text FROM sample_scores WHERE metric = 'correct' AND label = 'kind' ORDER BY 1"
    )["text"].to_pylist() == ["x", "y", "z"]
