"""The last layer against the best, and run against run: the differences by hand from what probes left of every row."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from probe_stores import planted, put_rows, put_states

from layercache import study
from layercache.progress import Progress
from layercache.recipe import CompareSpec, ProbeSpec
from layercache.report import frames
from layercache.report.sentences import layers_finding
from layercache.store import reader, writer

N, WIDTH, LAYERS = 160, 12, 4


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> reader.Store:
    """Two models: one knows at layer 1 and forgets, the other knows little."""
    path = tmp_path_factory.mktemp("layers") / "s"
    rng = np.random.default_rng(0)
    signal = rng.normal(size=N)
    texts = [f"text {i}" for i in range(N)]
    frame = pl.DataFrame({"rating": signal, "good": signal + rng.normal(size=N) > 0})
    for number, (model, strength) in enumerate((("knows", 3.0), ("guesses", 0.4))):
        names = [(layer, f"block.{layer}") for layer in range(LAYERS)]
        run = writer.open_run(path, {"model": model}, model=model, layers=names, width=WIDTH, final_layer=LAYERS - 1)
        put_rows(run, frame, texts, ["rating:number", "good:boolean"])
        states = planted(N, WIDTH, LAYERS, 1, signal, seed=number, strength=strength)
        put_states(run, texts, {("resid", "mean@prompt"): states})
    study.analyze(path, [ProbeSpec(bootstrap=50, keep=False), CompareSpec(bootstrap=500)], Progress())
    return reader.open(path)


def table(store: reader.Store, query: str, *values: Any) -> pl.DataFrame:
    found = pl.from_arrow(store.sql(query, list(values)))
    assert isinstance(found, pl.DataFrame)
    return found


def worth(store: reader.Store, model: str, label: str, layer: int) -> np.ndarray:
    metric = "error" if label == "rating" else "correct"
    query = (
        'SELECT value FROM sample_scores WHERE run = ? AND label = ? AND layer = ? AND metric = ? AND "group" IS NULL'
        " ORDER BY row"
    )
    values = table(store, query, store.run(model).id, label, layer, metric)["value"].to_numpy()
    return np.asarray(values**2 if label == "rating" else values)


@pytest.mark.parametrize(
    ("label", "metric", "best_of"), [("rating", "mse", np.argmin), ("good", "accuracy", np.argmax)]
)
def test_differences_are_those_of_the_rows(store: reader.Store, label: str, metric: str, best_of: Any) -> None:
    values = {model: [worth(store, model, label, k) for k in range(LAYERS)] for model in ("knows", "guesses")}
    best = {model: int(best_of([own.mean() for own in each])) for model, each in values.items()}
    query = "SELECT * FROM results WHERE analysis = 'compare' AND metric = ? AND run = ? AND label = ?"
    found = table(store, query, f"{metric}_last_minus_best", store.run("knows").id, label).row(0, named=True)
    gaps = values["knows"][-1] - values["knows"][best["knows"]]
    assert (found["layer"], found["other_layer"], found["n"]) == (LAYERS - 1, best["knows"], N)
    assert found["value"] == pytest.approx(gaps.mean())
    half = 1.96 * gaps.std() / np.sqrt(N)
    assert (found["low"], found["high"]) == (
        pytest.approx(gaps.mean() - half, abs=0.4 * half),
        pytest.approx(gaps.mean() + half, abs=0.4 * half),
    )
    query = "SELECT * FROM results WHERE analysis = 'compare' AND metric = ? AND label = ?"
    found = table(store, query, f"{metric}_minus_other_run", label).row(0, named=True)
    models = {run.id: run.model for run in store.runs()}
    one, other = models[found["run"]], models[found["other_run"]]
    assert (found["layer"], found["other_layer"]) == (best[one], best[other])
    expected = values[one][best[one]].mean() - values[other][best[other]].mean()
    assert found["value"] == pytest.approx(expected)


def test_the_report_says_what_is_lost_and_who_differs(store: reader.Store) -> None:
    numbers = frames.results(store)
    rating = next(task for task in frames.tasks(numbers) if task.label == "rating")
    said = layers_finding(rating, numbers)
    assert any(line.startswith("knows, mean@prompt: the last layer's mean squared error (layer ") for line in said)
    assert "the last layer has lost some of it (paired, by rows" in next(line for line in said if "knows, mean" in line)
    assert "has an interval that excludes 0" in said[-1]
    # The sentence before these may name another layer, by another metric.
    assert "between the layers that are best by mean squared error, of guesses (layer " in said[-1]
    assert ", its best by mean squared error, is " in said[0]
    same = numbers.with_columns(low=pl.lit(-9.0), high=pl.lit(9.0))
    said = layers_finding(rating, same)
    assert "nothing is shown to be lost" in said[0]
    assert "holds 0: they are not told apart" in said[-1]
    assert layers_finding(rating, numbers.filter(pl.col("analysis") != "compare")) == []


def test_the_three_layers_of_the_first_study(store: reader.Store) -> None:
    numbers = frames.results(store)
    rating = next(task for task in frames.tasks(numbers) if task.label == "rating")
    found = frames.three_layers(rating, {run.id: run.final_layer for run in store.runs()})
    line = found.filter(model="knows").row(0, named=True)
    for name, layer in (("first", 0), ("middle", 1), ("last", 3), ("best of all", 1)):
        assert line[name] == pytest.approx(worth(store, "knows", "rating", layer).mean()), name
    assert (line["metric"], line["its layer"]) == ("mean squared error", 1)
