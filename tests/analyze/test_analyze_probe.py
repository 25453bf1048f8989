from pathlib import Path

import numpy as np
import polars as pl
import probe_stores as stores
import pytest

from layercache.analyze import KINDS, analyze, keep, metrics
from layercache.analyze import folds as folding
from layercache.errors import AnalysisError, StoreError
from layercache.recipe import ANALYSES, ProbeSpec
from layercache.store import results
from layercache.store.layout import Run
from layercache.store.reader import Store

N, WIDTH, LAYERS, BEST = 150, 12, 4, 2
TEXTS = [f"film {index} is what it is" for index in range(N)]
KEY = ["run", "data", "site", "layer", "pooling", "label", "group", "metric"]


def signal(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(N)


def columns(extra: dict | None = None) -> pl.DataFrame:
    value = signal()
    return pl.DataFrame(
        {
            "rating": value + 0.1 * np.random.default_rng(9).standard_normal(N),
            "kind": np.array(["low", "middle", "high"])[np.digitize(value, [-0.5, 0.5])],
            "good": value > 0,
            **(extra or {}),
        }
    )


LABELS = ["rating:number", "kind:category", "good:boolean"]


def simple(path: Path, frame: pl.DataFrame | None = None, labels: list[str] = LABELS, **settings) -> tuple[Store, Run]:
    run = stores.new_run(path, width=WIDTH, layers=LAYERS)
    stores.put_rows(run, columns() if frame is None else frame, TEXTS, labels, **settings)
    stores.put_states(run, TEXTS, {("resid", "mean@prompt"): stores.planted(N, WIDTH, LAYERS, BEST, signal())})
    return stores.opened(path), run


def probe(store: Store, notes: stores.Notes | None = None, **settings) -> results.Outcome:
    spec = ProbeSpec(**{"bootstrap": 50, "keep": False, "min_class": 5, **settings})
    return analyze(store, spec, notes or stores.Notes())


def value(table: pl.DataFrame, **where) -> float:
    where = {"group": None, **where}
    found = table.filter(*(pl.col(name).eq_missing(pl.lit(wanted)) for name, wanted in where.items()))
    assert len(found) == 1, found
    return found["value"][0]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, results.Outcome, stores.Notes]:
    store, _ = simple(tmp_path_factory.mktemp("probe") / "store")
    notes = stores.Notes()
    return store, probe(store, notes, keep=True, labels=["rating", "kind", "good"]), notes


def test_the_planted_layer_is_best(outcome):
    table = stores.frame(outcome[1].results)
    for label, metric in (("rating", "r2"), ("kind", "balanced_accuracy"), ("good", "balanced_accuracy")):
        scores = table.filter(
            pl.col("label") == label,
            pl.col("metric") == metric,
            pl.col("group").is_null(),
            pl.col("layer").is_not_null(),
        )
        assert scores.sort("value")["layer"][-1] == BEST
        shares = table.filter(label=label, metric="best_layer_share").sort("layer")
        assert shares["layer"].to_list() == list(range(LAYERS))
        assert shares["value"].sum() == pytest.approx(1)
        assert shares["value"][BEST] > 0.9
    assert value(table, label="rating", metric="r2", layer=BEST) > 0.8


def test_every_row_is_told_apart_and_named(outcome):
    table = stores.frame(outcome[1].results)
    assert not table.select(KEY).is_duplicated().any()
    assert set(table["metric"]) <= set(metrics.METRICS)
    assert set(table["analysis"]) == {"probe"}
    assert set(table["group"].drop_nulls()) == {"mean", "majority", "tf-idf", "shuffled"}
    layerless = table.filter(pl.col("layer").is_null(), pl.col("metric") != "left_out")
    assert set(layerless["group"]) == {"mean", "majority", "tf-idf"}
    assert layerless["pooling"].is_null().all()


def test_intervals_hold_their_value(outcome):
    table = stores.frame(outcome[1].results).drop_nulls("low")
    assert (table["low"] <= table["high"]).all()
    inside = table.filter((pl.col("value") >= pl.col("low")) & (pl.col("value") <= pl.col("high")))
    assert len(inside) > 0.9 * len(table)


def test_shuffled_labels_and_baselines_are_near_chance(outcome):
    table = stores.frame(outcome[1].results)
    for layer in range(LAYERS):
        assert value(table, label="rating", metric="r2", layer=layer, group="shuffled") < 0.1
        assert value(table, label="good", metric="balanced_accuracy", layer=layer, group="shuffled") < 0.65
    assert value(table, label="rating", metric="r2", group="mean") == 0
    assert value(table, label="kind", metric="balanced_accuracy", group="majority") == pytest.approx(1 / 3)
    assert value(table, label="good", metric="auc", group="majority") == 0.5


def test_sample_scores_are_the_metrics(outcome):
    store, found, _ = outcome
    table, scores = stores.frame(found.results), stores.frame(found.sample_scores)
    run = store.runs()[0]
    labels = store.labels(run, "toy")
    own = scores.filter(pl.col("group").is_null(), pl.col("layer") == BEST)
    error = own.filter(label="rating", metric="error")
    assert sorted(error["row"]) == list(range(N))
    assert (error["value"] ** 2).mean() == pytest.approx(value(table, label="rating", metric="mse", layer=BEST))
    truth = labels.filter(name="rating").select("row", "number")
    both = own.filter(label="rating", metric="prediction").join(truth, on="row").join(error, on="row")
    np.testing.assert_allclose(both["value"] - both["number"], both["value_right"])
    right = own.filter(label="kind", metric="correct")
    assert right["value"].mean() == pytest.approx(value(table, label="kind", metric="accuracy", layer=BEST))
    named = own.filter(label="kind", metric="predicted").join(
        labels.filter(name="kind").select("row", truth="text"), on="row"
    )
    assert (named["text"] == named["truth"]).mean() == pytest.approx(right["value"].mean())
    assert named["value"].is_between(1 / 3, 1).all()
    assert set(own.filter(label="good", metric="predicted")["text"]) == {"true", "false"}
    assert set(scores["group"].unique().to_list()) == {None, "tf-idf"}


def test_progress_ends_at_its_total(outcome):
    notes = outcome[2]
    assert notes.done == notes.total == 3 + 3 * LAYERS
    assert notes.notes == []


def test_the_outcome_can_be_saved_and_asked_by_sql(outcome, tmp_path: Path):
    _, found, _ = outcome
    path = results.save(tmp_path / "other", "probe", {}, [], found)
    assert path is not None
    asked = stores.opened(tmp_path / "other").sql("select count(*) as n from results where metric = 'r2'")
    assert asked.to_pylist() == [{"n": 2 * LAYERS + 2}]
    kept = keep.load(next(path.glob("probe-*-rating-*.safetensors")))
    assert kept.info["label"] == "rating"


def test_kept_probes_reproduce_scikit_learn_on_all_rows(outcome, tmp_path: Path):
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.preprocessing import StandardScaler

    store, found, _ = outcome
    for name, content in found.files.items():
        (tmp_path / name).write_bytes(content)
    run = store.runs()[0]
    states = store.matrix(run, BEST)
    z = StandardScaler().fit_transform(states.values.astype(np.float64))
    ids = {name: row for row, name in enumerate(states.sample_ids)}
    order = [ids[stores.sample_id(text)] for text in TEXTS]
    frame = columns()

    number = keep.load(tmp_path / f"probe-{run.id}-toy-rating-resid-mean@prompt.safetensors")
    alpha = number.info["layers"][str(BEST)]["penalty"]
    expected = Ridge(alpha=alpha).fit(z[order], frame["rating"].to_numpy()).predict(z)
    np.testing.assert_allclose(number.models[BEST].scores(states.values)[:, 0], expected, rtol=1e-6, atol=1e-8)
    assert number.info["classes"] is None
    assert number.info["layers"][str(BEST)]["metrics"]["r2"] > 0.8
    assert sorted(number.models) == list(range(LAYERS))

    category = keep.load(tmp_path / f"probe-{run.id}-toy-kind-resid-mean@prompt.safetensors")
    assert category.info["classes"] == ["high", "low", "middle"]
    c = category.info["layers"][str(BEST)]["penalty"]
    model = LogisticRegression(C=c, tol=1e-8, max_iter=2000).fit(z[order], frame["kind"].to_numpy())
    np.testing.assert_allclose(category.models[BEST].scores(states.values), model.decision_function(z), atol=5e-3)


def test_probes_that_are_not_there_or_newer(tmp_path: Path):
    with pytest.raises(AnalysisError, match="does not hold kept probes"):
        keep.load(tmp_path / "none.safetensors")
    (tmp_path / "new.json").write_text('{"format": 9, "layers": {}}')
    (tmp_path / "new.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(AnalysisError, match="probe format 9"):
        keep.load(tmp_path / "new.safetensors")


def test_deterministic_and_seeded(tmp_path: Path):
    store, _ = simple(tmp_path / "store")
    one, two = (probe(store, labels=["rating", "kind"], keep=True, layers=[0, 2]) for _ in range(2))
    assert one.results.equals(two.results)
    assert one.sample_scores.equals(two.sample_scores)
    assert one.files == two.files
    other = probe(store, labels=["rating", "kind"], layers=[0, 2], seed=1)
    assert not one.results.equals(other.results)


def test_no_bootstrap_no_intervals(tmp_path: Path):
    store, _ = simple(tmp_path / "store")
    table = stores.frame(probe(store, labels=["rating"], bootstrap=0).results)
    assert table["low"].is_null().all()
    assert "best_layer_share" not in set(table["metric"])


def test_rows_without_the_label_are_left_out_and_counted(tmp_path: Path):
    frame = columns().with_columns(
        rating=pl.when(pl.int_range(pl.len()) < 10)
        .then(None)
        .when(pl.int_range(pl.len()) < 13)
        .then(float("nan"))
        .otherwise("rating")
    )
    store, _ = simple(tmp_path / "store", frame)
    notes = stores.Notes()
    found = probe(store, notes, labels=["rating"])
    table = stores.frame(found.results)
    left = table.filter(metric="left_out")
    assert left.select("value", "n", "pooling").rows() == [(13.0, N, "mean@prompt")]
    assert value(table, metric="r2", layer=BEST) > 0.8
    assert set(table.filter(metric="r2")["n"]) == {N - 13}
    assert min(stores.frame(found.sample_scores)["row"]) == 13
    assert notes.notes == [f"toy: rating: 13 of {N} rows have no value and are left out of its probe"]


def test_samples_without_a_state_are_left_out_of_that_pooling_only(tmp_path: Path):
    run = stores.new_run(tmp_path / "store", width=WIDTH, layers=LAYERS)
    stores.put_rows(run, columns(), TEXTS, LABELS)
    planted = stores.planted(N, WIDTH, LAYERS, BEST, signal())
    gone = {"hidden:resid:last@answer": set(TEXTS[:30])}
    states = {("resid", "mean@prompt"): planted, ("resid", "last@answer"): planted}
    stores.put_states(run, TEXTS, states, gone)
    notes = stores.Notes()
    table = stores.frame(probe(stores.opened(tmp_path / "store"), notes, labels=["rating"]).results)
    counts = {(row["pooling"], row["value"]) for row in table.filter(metric="left_out").iter_rows(named=True)}
    assert counts == {("mean@prompt", 0.0), ("last@answer", 30.0)}
    assert set(table.filter(metric="r2", pooling="last@answer")["n"]) == {N - 30}
    assert any("30 of 150 rows left out, without a state at every layer" in note for note in notes.notes)


def test_all_layers_are_compared_on_the_same_rows(tmp_path: Path):
    """A second shard adds samples at two layers only: they are in no layer's probe."""
    run = stores.new_run(tmp_path / "store", width=WIDTH, layers=LAYERS)
    stores.put_rows(run, columns(), TEXTS, LABELS)
    planted = stores.planted(N, WIDTH, LAYERS, BEST, signal())
    first = {layer: values[:100] for layer, values in planted.items()}
    stores.put_states(run, TEXTS[:100], {("resid", "mean@prompt"): first})
    rest = {layer: values[100:] for layer, values in planted.items() if layer in (0, 2)}
    stores.put_states(run, TEXTS[100:], {("resid", "mean@prompt"): rest})
    store = stores.opened(tmp_path / "store")
    every = stores.frame(probe(store, labels=["rating"]).results)
    assert set(every.filter(pl.col("layer").is_not_null())["n"]) == {100}
    two = stores.frame(probe(store, labels=["rating"], layers=[0, 2]).results)
    assert set(two.filter(pl.col("layer").is_not_null())["n"]) == {N}


def test_rare_classes_are_merged(tmp_path: Path):
    kinds = ["a"] * 70 + ["b"] * 68 + ["rare\none"] * 7 + ["rarer"] * 5
    store, _ = simple(tmp_path / "store", columns({"genre": kinds}), ["genre:category"])
    notes = stores.Notes()
    found = probe(store, notes, min_class=20)
    assert notes.notes == [
        "toy, label 'genre': classes of fewer than 20 rows are merged into 'other' (2, 12 rows): rare + one, rarer"
    ]
    assert set(stores.frame(found.sample_scores).filter(metric="predicted")["text"]) <= {"a", "b", "other"}


def test_one_class_is_refused(tmp_path: Path):
    frame = columns({"same": ["x"] * N, "each": TEXTS, "yes": [True] * N, "three": [3.0] * N})
    store, _ = simple(tmp_path / "store", frame, ["same:category", "each:category", "yes:boolean", "three:number"])
    for label, message in (
        ("same", r"toy, label 'same': all 150 rows have the class 'x'$"),
        ("each", r"label 'each': all 150 rows have the class 'other'; lower min_class \(5\)"),
        ("yes", "label 'yes': all 150 rows have the class 'true'"),
        ("three", "label 'three': all 150 values are 3, there is nothing to predict"),
    ):
        with pytest.raises(AnalysisError, match=message):
            probe(store, labels=[label])
    with pytest.raises(AnalysisError, match=r"toy, label 'same': all 150 rows have the class 'x'$"):
        probe(store)


def test_a_label_that_cannot_be_probed_does_not_stop_the_others(tmp_path: Path):
    few = [1.0, 2.0, 3.0] + [None] * (N - 3)
    frame = columns().with_columns(same=pl.Series(["x"] * N), few=pl.Series(few))
    store, _ = simple(tmp_path / "store", frame, [*LABELS, "same:category", "few:number"])
    notes = stores.Notes()
    found = probe(store, notes, layers=[1])
    assert set(stores.frame(found.results)["label"]) == {label.partition(":")[0] for label in LABELS}
    left = "left out, the others are probed (--labels names those to probe)"
    assert f"toy, label 'same': all 150 rows have the class 'x'; {left}" in notes.notes
    assert any(note.startswith("label 'few': 3 rows in 3 groups") and note.endswith(left) for note in notes.notes)
    assert notes.done == notes.total
    with pytest.raises(AnalysisError, match="all 150 rows have the class 'x'; leave it out of --labels"):
        probe(store, labels=["rating", "same"])


def test_a_label_whose_rows_have_too_few_states_is_left_out(tmp_path: Path):
    """Of eight rows that have the label `rare`, two have states."""
    run = stores.new_run(tmp_path / "store", width=WIDTH, layers=LAYERS)
    rare = [float(i) if i < 8 else None for i in range(N)]
    stores.put_rows(run, columns().with_columns(rare=pl.Series(rare)), TEXTS, [*LABELS, "rare:number"])
    planted = stores.planted(N, WIDTH, LAYERS, BEST, signal())
    gone = {"hidden:resid:mean@prompt": set(TEXTS[2:60])}
    stores.put_states(run, TEXTS, {("resid", "mean@prompt"): planted}, gone)
    notes = stores.Notes()
    table = stores.frame(probe(stores.opened(tmp_path / "store"), notes, layers=[1]).results)
    assert "rare" not in set(table.filter(pl.col("layer").is_not_null())["label"])
    assert "good" in set(table["label"])
    assert any("label 'rare'" in note and "left out, the others are probed" in note for note in notes.notes)


def test_a_rare_boolean_is_not_merged(tmp_path: Path):
    store, _ = simple(tmp_path / "store", columns({"rare": [i % 15 == 0 for i in range(N)]}), ["rare:boolean"])
    found = probe(store, min_class=20)
    assert value(stores.frame(found.results), metric="accuracy", group="majority") == pytest.approx(14 / 15)


def test_rows_that_share_a_prompt_share_a_state_and_a_fold(tmp_path: Path):
    """Every prompt twice with the same noise as label: a straddling duplicate would give it away."""
    noise = np.repeat(np.random.default_rng(3).standard_normal(N // 2), 2)
    texts = [TEXTS[index // 2] for index in range(N)]
    run = stores.new_run(tmp_path / "store", width=100, layers=1)
    stores.put_rows(run, pl.DataFrame({"noise": noise}), texts, ["noise:number"])
    states = np.random.default_rng(4).standard_normal((N // 2, 100))
    stores.put_states(run, TEXTS[: N // 2], {("resid", "mean@prompt"): {0: states}})
    found = probe(stores.opened(tmp_path / "store"))
    table = stores.frame(found.results)
    assert value(table, metric="r2", layer=0) < 0.15
    assert value(table, metric="r2", group="tf-idf") < 0.15
    scores = (
        stores.frame(found.sample_scores).filter(pl.col("layer") == 0, pl.col("metric") == "prediction").sort("row")
    )
    assert (scores["value"].to_numpy()[::2] == scores["value"].to_numpy()[1::2]).all()


@pytest.mark.parametrize("given", ["rows", "spec"])
def test_group_by_keeps_a_director_on_one_side(tmp_path: Path, given: str):
    """The label is the director's; the states name the director. Only folds by director show that nothing carries over."""
    rng = np.random.default_rng(5)
    director = np.repeat(np.arange(30), 5)
    names = [f"d{d}" for d in director]
    states = rng.standard_normal((30, 60))[director] * 3 + rng.standard_normal((N, 60))
    frame = pl.DataFrame({"fame": rng.standard_normal(30)[director], "director": names})
    run = stores.new_run(tmp_path / "store", width=60, layers=1)
    stores.put_rows(run, frame, TEXTS, ["fame:number"], group_by="director" if given == "rows" else None)
    stores.put_states(run, TEXTS, {("resid", "mean@prompt"): {0: states}})
    store = stores.opened(tmp_path / "store")
    settings = {"group_by": "director"} if given == "spec" else {}
    assert value(stores.frame(probe(store, **settings).results), metric="r2", layer=0) < 0.2
    if given == "spec":
        assert value(stores.frame(probe(store).results), metric="r2", layer=0) > 0.3
        with pytest.raises(AnalysisError, match="no column 'directr': did you mean 'director'"):
            probe(store, group_by="directr")


def test_the_split_is_honoured(tmp_path: Path):
    from sklearn.linear_model import Ridge
    from sklearn.metrics import r2_score
    from sklearn.preprocessing import StandardScaler

    split = ["train"] * 90 + ["test"] * 50 + ["unused"] * 10
    store, run = simple(tmp_path / "store", columns({"split": split}), split="split")
    notes = stores.Notes()
    found = probe(store, notes, labels=["rating"], keep=True)
    table = stores.frame(found.results)
    assert sorted(set(stores.frame(found.sample_scores)["row"])) == list(range(90, 140))
    assert set(table.filter(metric="r2")["n"]) == {50}
    assert value(table, metric="left_out", pooling="mean@prompt") == 10
    assert notes.notes == [
        "toy, label 'rating': fitted on 90 rows, reported on the 50 of split 'test'; 10 rows of other splits not used"
    ]
    states = store.matrix(run, BEST)
    ids = {name: row for row, name in enumerate(states.sample_ids)}
    x = states.values[[ids[stores.sample_id(text)] for text in TEXTS]].astype(np.float64)
    y = columns()["rating"].to_numpy()
    (tmp_path / "p.safetensors").write_bytes(next(v for k, v in found.files.items() if k.endswith("tensors")))
    (tmp_path / "p.json").write_bytes(next(v for k, v in found.files.items() if k.endswith("json")))
    kept = keep.load(tmp_path / "p.safetensors")
    scaler = StandardScaler().fit(x[:90])
    model = Ridge(alpha=kept.info["layers"][str(BEST)]["penalty"]).fit(scaler.transform(x[:90]), y[:90])
    predicted = model.predict(scaler.transform(x[90:140]))
    np.testing.assert_allclose(kept.models[BEST].scores(x[90:140])[:, 0], predicted, rtol=1e-6)
    mse = ((predicted - y[90:140]) ** 2).mean()
    assert value(table, metric="mse", layer=BEST) == pytest.approx(mse)
    against_train = 1 - mse / ((y[90:140] - y[:90].mean()) ** 2).mean()
    assert value(table, metric="r2", layer=BEST) == pytest.approx(against_train)
    assert value(table, metric="r2", layer=BEST) == pytest.approx(r2_score(y[90:140], predicted), abs=0.05)


def test_several_models_side_by_side(tmp_path: Path):
    first = stores.new_run(tmp_path / "store", model="first", width=WIDTH, layers=LAYERS)
    second = stores.new_run(tmp_path / "store", model="second", width=20, layers=2)
    for run, layers, width, best in ((first, LAYERS, WIDTH, BEST), (second, 2, 20, 1)):
        stores.put_rows(run, columns(), TEXTS, LABELS)
        stores.put_states(run, TEXTS, {("resid", "mean@prompt"): stores.planted(N, width, layers, best, signal())})
    store = stores.opened(tmp_path / "store")
    notes = stores.Notes()
    found = probe(store, notes, labels=["rating"])
    table = stores.frame(found.results)
    assert table.filter(metric="r2", group="tf-idf")["run"].to_list() == [first.id, second.id]
    assert table.filter(metric="r2", group="tf-idf")["value"].n_unique() == 1
    assert table.filter(pl.col("run") == second.id)["layer"].max() == 1
    only = stores.frame(probe(store, labels=["rating"], runs=["second"]).results)
    assert set(only["run"]) == {second.id}
    assert only.equals(table.filter(pl.col("run") == second.id))


def test_data_sets_of_one_run(tmp_path: Path):
    run = stores.new_run(tmp_path / "store", width=WIDTH, layers=LAYERS)
    stores.put_rows(run, columns()[:100], TEXTS[:100], LABELS, data="films")
    stores.put_rows(run, columns()[50:], TEXTS[50:], ["rating:number"], data="more films")
    stores.put_states(run, TEXTS, {("resid", "mean@prompt"): stores.planted(N, WIDTH, LAYERS, BEST, signal())})
    store = stores.opened(tmp_path / "store")
    table = stores.frame(probe(store, labels=["rating", "kind"], layers=[2]).results)
    assert set(table.select("data", "label").rows()) == {
        ("films", "rating"),
        ("films", "kind"),
        ("more films", "rating"),
    }
    assert set(stores.frame(probe(store, data=["more films"]).results)["data"]) == {"more films"}
    with pytest.raises(AnalysisError, match=r"no data set 'flims' in .*: did you mean 'films'"):
        probe(store, data=["flims"])


def test_unknown_names(tmp_path: Path):
    store, run = simple(tmp_path / "store", columns({"note": TEXTS}), [*LABELS, "note:text"])
    for settings, message in (
        ({"labels": ["ratin"]}, "no label 'ratin' in .*: did you mean 'rating'"),
        ({"labels": ["xyz"]}, "no label 'xyz' in .*: it has good, kind, note, rating"),
        ({"labels": ["note"]}, "label 'note' is text"),
        ({"pooling": ["last"]}, "has no pooling 'last@prompt'"),
        ({"sites": ["mlp_out"]}, "has no site 'mlp_out': it has resid"),
        ({"layers": [0, 9]}, "has no layer 9 of mean@prompt: it has 0, 1, 2, 3"),
    ):
        with pytest.raises(AnalysisError, match=message) as caught:
            probe(store, **settings)
        assert "\n" not in str(caught.value)
    with pytest.raises(StoreError, match="no run 'tox'"):
        probe(store, runs=["tox"])
    assert set(stores.frame(probe(store, runs=[run.id[:6]], labels=["rating"], layers=[0]).results)["run"]) == {run.id}


def test_nothing_to_probe(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(AnalysisError, match="holds no runs"):
        probe(stores.opened(tmp_path / "empty"))
    run = stores.new_run(tmp_path / "store", width=WIDTH, layers=LAYERS)
    with pytest.raises(AnalysisError, match="holds no rows"):
        probe(stores.opened(tmp_path / "store"))
    stores.put_rows(run, columns({"note": TEXTS}), TEXTS, ["note:text"])
    with pytest.raises(AnalysisError, match="declare them with --label"):
        probe(stores.opened(tmp_path / "store"))
    stores.put_rows(run, columns(), TEXTS, LABELS)
    with pytest.raises(AnalysisError, match="none of the 150 rows has both a label and a stored sample"):
        probe(stores.opened(tmp_path / "store"))
    stores.put_lens(run, TEXTS, {3: np.ones(N)}, {3: np.ones(N, bool)})
    with pytest.raises(AnalysisError, match="holds no states: run `layercache extract --pooling mean`"):
        probe(stores.opened(tmp_path / "store"))


def test_too_few_rows(tmp_path: Path):
    store, _ = simple(tmp_path / "store", columns({"few": [1.0, 2.0, 3.0] + [None] * (N - 3)}), ["few:number"])
    with pytest.raises(AnalysisError, match="label 'few': 3 rows in 3 groups are too few for 5 folds"):
        probe(store)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a/b:c*?", "rating (0–10)", "x" * 150, "Ünïcode label", '"; drop table x', "run_"]
)
def test_hostile_label_names(tmp_path: Path, name: str):
    store, _ = simple(tmp_path / "store", columns().rename({"rating": name}), [f"{name}:number"])
    found = probe(store, keep=True, layers=[2])
    assert set(stores.frame(found.results)["label"]) == {name}
    path = results.save(tmp_path / "store", "probe", {"name": name}, [], found)
    assert path is not None
    assert {file.parent for file in path.rglob("*")} == {path}
    assert keep.load(next(path.glob("*.safetensors"))).info["label"] == name


def test_names_that_look_alike_in_a_file_name_stay_apart(tmp_path: Path):
    frame = columns().rename({"rating": "a?b"}).with_columns(pl.col("a?b").alias("a*b"))
    store, _ = simple(tmp_path / "store", frame, ["a?b:number", "a*b:number"])
    found = probe(store, keep=True, layers=[2])
    assert len(found.files) == 4


def test_a_constant_and_a_massive_dimension_change_nothing(tmp_path: Path):
    planted = stores.planted(N, WIDTH, LAYERS, BEST, signal())
    found = []
    for name in ("plain", "odd"):
        run = stores.new_run(tmp_path / name, width=WIDTH + 2, layers=LAYERS)
        stores.put_rows(run, columns(), TEXTS, LABELS)
        extra = np.zeros((N, 2)) if name == "plain" else np.tile([3.25e4, -7.0], (N, 1))
        states = {layer: np.hstack([values, extra]) for layer, values in planted.items()}
        stores.put_states(run, TEXTS, {("resid", "mean@prompt"): states})
        found.append(stores.frame(probe(stores.opened(tmp_path / name), labels=["rating", "good"]).results))
    for one, other in zip(*(table.iter_rows(named=True) for table in found)):
        assert one["value"] == pytest.approx(other["value"], abs=1e-6)


def test_more_dimensions_than_rows(tmp_path: Path):
    run = stores.new_run(tmp_path / "store", width=400, layers=2)
    stores.put_rows(run, columns(), TEXTS, LABELS)
    planted = stores.planted(N, 400, 2, 1, signal(), strength=20)
    stores.put_states(run, TEXTS, {("resid", "mean@prompt"): planted})
    table = stores.frame(probe(stores.opened(tmp_path / "store"), keep=True).results)
    assert value(table, label="rating", metric="r2", layer=1) > 0.5
    assert value(table, label="good", metric="auc", layer=1) > 0.9


def test_folds_are_the_same_for_every_layer_and_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    made = []
    plain = folding.make
    monkeypatch.setattr(folding, "make", lambda *args, **kw: made.append(plain(*args, **kw)) or made[-1])
    for model in ("one", "two"):
        run = stores.new_run(tmp_path / "store", model=model, width=WIDTH, layers=LAYERS)
        stores.put_rows(run, columns(), TEXTS, LABELS)
        stores.put_states(run, TEXTS, {("resid", "mean@prompt"): stores.planted(N, WIDTH, LAYERS, BEST, signal())})
    probe(stores.opened(tmp_path / "store"), labels=["rating"], layers=[1])
    assert np.array_equal(made[0].assignment, made[1].assignment)


def test_columns_of_the_users_own_may_have_any_name(tmp_path: Path):
    extra = {name: ["always the same"] * N for name in ("prompt", "group", "number", "text", "name", "fold")}
    store, _ = simple(tmp_path / "store", columns(extra), ["rating:number"])
    plain, _ = simple(tmp_path / "plain", labels=["rating:number"])
    assert probe(store, layers=[2]).results.equals(probe(plain, layers=[2]).results)


def test_class_names_that_differ_by_a_nul(tmp_path: Path):
    store, _ = simple(tmp_path / "store", columns({"odd": ["a" + "\0" * (i % 2) for i in range(N)]}), ["odd:category"])
    found = probe(store, layers=[2])
    assert value(stores.frame(found.results), metric="accuracy", group="majority") == pytest.approx(0.5, abs=0.1)


def test_infinite_states_are_refused(tmp_path: Path):
    planted = stores.planted(N, WIDTH, LAYERS, BEST, signal())
    planted[1][3, 4] = np.inf
    run = stores.new_run(tmp_path / "store", width=WIDTH, layers=LAYERS)
    stores.put_rows(run, columns(), TEXTS, ["rating:number"])
    stores.put_states(run, TEXTS, {("resid", "mean@prompt"): planted})
    with pytest.raises(AnalysisError, match="1 samples have infinite or NaN states mean@prompt at layer 1"):
        probe(stores.opened(tmp_path / "store"))


def test_every_kind_of_the_recipe_has_its_function():
    assert set(KINDS) == set(ANALYSES)
