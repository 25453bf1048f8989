from pathlib import Path

import numpy as np
import polars as pl
import probe_stores as stores
import pytest

from layercache.analyze import analyze, metrics
from layercache.errors import AnalysisError
from layercache.recipe import EntropySpec
from layercache.store import results
from layercache.store.layout import Run
from layercache.store.reader import Store

N = 60
TEXTS = [f"prompt {index}" for index in range(N)]
ENTROPIES = {layer: np.random.default_rng(layer).gamma(5 - layer, 1, N).astype(np.float32) for layer in range(4)}
AGREES = {layer: np.random.default_rng(10 + layer).random(N) < 0.3 + 0.2 * layer for layer in range(3)}
AGREES[3] = np.ones(N, bool)


def lens_store(path: Path, **settings) -> tuple[Store, Run]:
    run = stores.new_run(path)
    stores.put_rows(run, pl.DataFrame({"x": range(N)}), TEXTS, [])
    stores.put_lens(run, TEXTS, ENTROPIES, AGREES, **settings)
    return stores.opened(path), run


def entropy(store: Store, notes: stores.Notes | None = None, **settings) -> results.Outcome:
    return analyze(store, EntropySpec(**{"bootstrap": 40, **settings}), notes or stores.Notes())


def test_every_number_by_layer(tmp_path: Path):
    store, run = lens_store(tmp_path / "store")
    notes = stores.Notes()
    table = stores.frame(entropy(store, notes, quantiles=[0.1, 0.5, 0.975]).results)
    assert notes.notes == []
    assert (notes.done, notes.total) == (1, 1)
    expected = {
        "entropy": lambda layer: ENTROPIES[layer].mean(),
        "entropy_q10": lambda layer: np.quantile(ENTROPIES[layer], 0.1),
        "entropy_q50": lambda layer: np.median(ENTROPIES[layer]),
        "entropy_q97.5": lambda layer: np.quantile(ENTROPIES[layer], 0.975),
        "kl_to_final": lambda layer: ENTROPIES[layer].mean() / 2,
        "js_to_final": lambda layer: ENTROPIES[layer].mean() / 8,
        "agrees_with_final": lambda layer: AGREES[layer].mean(),
    }
    for metric, compute in expected.items():
        found = table.filter(metric=metric).sort("layer")
        assert found["layer"].to_list() == [0, 1, 2, 3]
        np.testing.assert_allclose(found["value"], [compute(layer) for layer in range(4)], rtol=1e-6)
        assert (found["low"] <= found["value"]).all()
        assert (found["value"] <= found["high"]).all()
        assert set(found["n"]) == {N}
    assert set(table["position"]) == {"last@prompt"}
    assert set(table["run"]) == {run.id}
    assert "target_logprob" not in set(table["metric"])
    plain = set(table["metric"].str.replace(r"_q.*", "_q…"))
    assert plain <= set(metrics.METRICS)


def test_prediction_depth(tmp_path: Path):
    store, _ = lens_store(tmp_path / "store")
    found = entropy(store)
    table, scores = stores.frame(found.results), stores.frame(found.sample_scores)
    depths = []
    for index in range(N):
        depth = 3
        while depth > 0 and AGREES[depth - 1][index]:
            depth -= 1
        depths.append(depth)
    assert scores.sort("row")["value"].to_list() == depths
    assert scores["layer"].is_null().all()
    mean = table.filter(metric="prediction_depth")
    assert mean.select("layer", "value", "n").rows() == [(None, pytest.approx(np.mean(depths)), N)]
    assert table.filter(metric="prediction_depth_median")["value"][0] == np.median(depths)


def test_rows_that_share_a_sample_count_once_but_each_have_a_depth(tmp_path: Path):
    run = stores.new_run(tmp_path / "store")
    texts = [*TEXTS, *TEXTS[:5], "never extracted"]
    stores.put_rows(run, pl.DataFrame({"x": range(len(texts))}), texts, [])
    stores.put_lens(run, TEXTS, ENTROPIES, AGREES)
    notes = stores.Notes()
    found = entropy(stores.opened(tmp_path / "store"), notes)
    table, scores = stores.frame(found.results), stores.frame(found.sample_scores).sort("row")
    assert set(table.filter(metric="entropy")["n"]) == {N}
    assert table.filter(metric="left_out").select("value", "n").rows() == [(1.0, N + 6)]
    assert scores["row"].to_list() == list(range(N + 5))
    assert scores["value"][:5].to_list() == scores["value"][N:].to_list()
    assert notes.notes == [f"{run.id}, toy, last@prompt: 1 of 66 rows left out, without the lens at every layer"]


def test_the_target_where_there_is_one(tmp_path: Path):
    rng = np.random.default_rng(0)
    target = {layer: -rng.gamma(2, 1, N) for layer in range(4)}
    for values in target.values():
        values[:20] = np.nan
    store, _ = lens_store(tmp_path / "store", target=target)
    table = stores.frame(entropy(store).results)
    found = table.filter(metric="target_logprob").sort("layer")
    np.testing.assert_allclose(found["value"], [values[20:].mean() for values in target.values()], rtol=1e-6)
    assert set(found["n"]) == {N - 20}
    ranks = table.filter(metric="target_rank").sort("layer")
    np.testing.assert_allclose(ranks["value"], [np.median((-10 * v[20:]).astype(int)) for v in target.values()])


def test_two_numbers_of_top_tokens_and_two_positions(tmp_path: Path):
    """A position stored with another top_k is the same lens; another position is another table."""
    store, run = lens_store(tmp_path / "store")
    once = stores.frame(entropy(store).results)
    stores.put_lens(run, TEXTS, ENTROPIES, AGREES, top_k=50)
    assert stores.frame(entropy(stores.opened(tmp_path / "store")).results).equals(once)
    stores.put_lens(
        run,
        TEXTS[:40],
        {k: v[:40] for k, v in ENTROPIES.items()},
        {k: v[:40] for k, v in AGREES.items()},
        position="last@x",
    )
    both = stores.opened(tmp_path / "store")
    table = stores.frame(entropy(both).results)
    assert set(table.filter(metric="entropy").select("position", "n").rows()) == {("last@prompt", N), ("last@x", 40)}
    assert set(stores.frame(entropy(both, positions=["last@x"]).results)["position"]) == {"last@x"}
    assert stores.frame(entropy(both, positions=["last"]).results).equals(once)
    with pytest.raises(AnalysisError, match="no lens at 'last@y': did you mean 'last@x'"):
        entropy(both, positions=["last@y"])


def test_without_the_final_layer_there_is_no_depth(tmp_path: Path):
    run = stores.new_run(tmp_path / "store")
    stores.put_rows(run, pl.DataFrame({"x": range(N)}), TEXTS, [])
    stores.put_lens(run, TEXTS, {k: ENTROPIES[k] for k in (0, 2)}, AGREES)
    notes = stores.Notes()
    found = entropy(stores.opened(tmp_path / "store"), notes)
    assert "prediction_depth" not in set(stores.frame(found.results)["metric"])
    assert found.sample_scores.num_rows == 0
    assert notes.notes == [
        f"{run.id}, toy, last@prompt: the final layer 3 is not stored, so there is no prediction depth"
    ]


def test_no_lens(tmp_path: Path):
    run = stores.new_run(tmp_path / "store")
    stores.put_rows(run, pl.DataFrame({"x": range(N)}), TEXTS, [])
    with pytest.raises(
        AnalysisError, match="no run holds a logit lens of one token a sample: run `layercache extract --lens last`"
    ):
        entropy(stores.opened(tmp_path / "store"))
    with pytest.raises(AnalysisError, match="no run holds a logit lens"):
        entropy(stores.opened(tmp_path / "store"), positions=["last"])
    other = stores.new_run(tmp_path / "store", model="other")
    stores.put_rows(other, pl.DataFrame({"x": range(N)}), TEXTS, [])
    stores.put_lens(other, TEXTS, ENTROPIES, AGREES)
    notes = stores.Notes()
    table = stores.frame(entropy(stores.opened(tmp_path / "store"), notes).results)
    assert set(table["run"]) == {other.id}
    assert notes.notes == [f"{run.id}: no logit lens stored, left out (`layercache extract --lens last` adds it)"]


def test_wrong_quantiles(tmp_path: Path):
    store, _ = lens_store(tmp_path / "store")
    with pytest.raises(AnalysisError, match="between 0 and 1"):
        entropy(store, quantiles=[50.0])


def test_deterministic(tmp_path: Path):
    store, _ = lens_store(tmp_path / "store")
    one, two, other = entropy(store), entropy(store), entropy(store, seed=1)
    assert one.results.equals(two.results)
    assert not one.results.equals(other.results)
    assert stores.frame(entropy(store, bootstrap=0).results)["low"].is_null().all()
