"""What charts are made of equals what the store holds."""

from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
import report_store
from report_store import CLASSES, POOLINGS, Plan, build, value

from layercache.frame import from_arrow
from layercache.report import figures, frames, predictions, sample_charts, samples
from layercache.store import reader, results
from layercache.store.reader import Store
from layercache.store.schema import RESULTS, arrow_schema


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return build(tmp_path_factory.mktemp("report") / "store")


def test_numbers_are_those_of_the_sql_view(store: Store) -> None:
    ours = frames.stored(frames.results(store))
    theirs = from_arrow(store.sql("SELECT * FROM results"))
    keys = [name for name in ours.columns if name not in ("value", "low", "high", "n")]
    assert ours.sort(keys).equals(theirs.select(ours.columns).sort(keys))


def test_the_newer_of_two_analyses_counts(tmp_path: Path) -> None:
    store = build(tmp_path / "s", Plan(models=("demo",)))
    run = store.runs()[0]
    row = {"run": run.id, "data": "films", "analysis": "probe", "condition": "clean", "site": "resid", "layer": 4}
    row |= {"pooling": POOLINGS[0], "label": "certificate", "metric": "balanced_accuracy", "value": 0.123, "n": 7}
    table = pa.Table.from_pylist([row], schema=arrow_schema(RESULTS))
    results.save(store.path, "probe", {"kind": "probe", "labels": ["certificate"]}, ["test"], results.Outcome(table))
    (task, _) = frames.tasks(frames.results(store))
    found = task.scores.filter(layer=4, metric="balanced_accuracy", pooling=POOLINGS[0])
    assert found["value"].to_list() == [0.123]


def test_other_conditions_are_left_out(tmp_path: Path) -> None:
    store = build(tmp_path / "s", Plan(models=("demo",), probes=False))
    row = {"run": store.runs()[0].id, "data": "films", "analysis": "probe", "condition": "knockout-title", "layer": 4}
    row |= {"pooling": POOLINGS[0], "label": "certificate", "metric": "balanced_accuracy", "value": 0.9}
    table = pa.Table.from_pylist([row], schema=arrow_schema(RESULTS))
    results.save(store.path, "probe", {"kind": "probe"}, ["test"], results.Outcome(table))
    assert frames.tasks(frames.results(store)) == []


def test_results_outlive_their_run(tmp_path: Path) -> None:
    store = build(tmp_path / "s", Plan(models=("demo",)))
    row = {"run": "gone-1234", "data": "films", "analysis": "probe", "layer": 4, "pooling": POOLINGS[0], "label": "x"}
    table = pa.Table.from_pylist([{**row, "metric": "r2", "value": 0.9}], schema=arrow_schema(RESULTS))
    results.save(store.path, "probe", {"kind": "probe", "labels": ["x"]}, ["test"], results.Outcome(table))
    task = frames.tasks(frames.results(store))[-1]
    assert task.best().select("model", "layer_name").rows() == [("gone-1234", None)]
    assert len(predictions.predictions(store, task, task.best().row(0, named=True))) == 0
    assert figures.held_out(store, task) is None


def test_probes_baselines_and_the_best_layer(store: Store) -> None:
    certificate, rating = frames.tasks(frames.results(store))
    assert (certificate.label, certificate.metric, rating.label, rating.metric) == (
        "certificate",
        "balanced_accuracy",
        "rating",
        "r2",
    )
    assert set(certificate.baselines["baseline"]) == {"majority class", "tf-idf", "shuffled labels"}
    assert set(rating.baselines["baseline"]) == {"mean", "tf-idf", "shuffled labels"}
    assert certificate.scores["group"].null_count() == len(certificate.scores)
    best = certificate.best().select("model", "layer", "panel", "value").rows()
    assert best == [
        ("demo", 4, POOLINGS[0], pytest.approx(value(4, 0))),
        ("demo:early", 4, POOLINGS[0], pytest.approx(value(4, 1))),
    ]
    assert certificate.scores.filter(layer=7)["layer_name"].unique().to_list() == ["model.norm"]


def test_less_error_is_better(store: Store) -> None:
    _, rating = frames.tasks(frames.results(store))
    worst = rating._replace(metric="mse").best().row(0, named=True)
    expected = min(value(layer, model, pooling) for layer in range(8) for model in (0, 1) for pooling in POOLINGS)
    assert worst["value"] == pytest.approx(expected)


def test_quantiles_are_paired_around_the_median(store: Store) -> None:
    ((data, numbers),) = frames.entropies(frames.results(store))
    middle, bands = frames.quantile_bands(numbers)
    assert data == "films"
    assert middle["metric"].unique().to_list() == ["entropy_q50"]
    at = bands.filter(model="demo", layer=2).sort("band")
    assert at.select("band", "low", "high").rows() == [
        ("10–90 %", pytest.approx(2.2 - 0.5), pytest.approx(2.2 + 0.5)),
        ("25–75 %", pytest.approx(2.2 - 0.2), pytest.approx(2.2 + 0.2)),
    ]
    alone, none = frames.quantile_bands(numbers.filter(~pl.col("metric").str.contains("_q")))
    assert alone["metric"].unique().to_list() == ["entropy"]
    assert len(none) == 0


def test_depths_are_shares_of_each_model(store: Store) -> None:
    found = frames.depths(store, "films")
    assert found.filter(model="demo").select("layer", "share", "n").rows() == [(k, 0.25, 6) for k in range(4)]
    assert len(frames.depths(store, "no such data")) == 0


def test_predictions_stand_beside_the_truth(store: Store) -> None:
    certificate, rating = frames.tasks(frames.results(store))
    found = predictions.predictions(store, certificate, certificate.best().row(0, named=True))
    assert found["truth"].to_list() == [CLASSES[k % 3] for k in range(24)]
    table = predictions.counts(found, 12)
    assert {(t, p): (n, s) for t, p, n, s in table.rows()} == {
        ("U", "U"): (8, 1.0),
        ("PG", "PG"): (8, 1.0),
        ("15", "U"): (8, 1.0),
    }
    numbers = predictions.predictions(store, rating, rating.best().row(0, named=True))
    assert numbers["predicted"].to_list() == [k + 1.0 for k in range(24)]
    assert numbers["truth"].to_list() == [float(k) for k in range(24)]
    nowhere = {**rating.best().row(0, named=True), "layer": 2}
    assert len(predictions.predictions(store, rating, nowhere)) == 0


def test_rare_classes_are_put_together() -> None:
    found = pl.DataFrame({"truth": ["a"] * 5 + ["b"] * 3 + ["c", "d"], "predicted": ["a"] * 9 + ["b"]})
    table = predictions.counts(found, 3)
    assert set(table["truth"]) == {"a", "b", "other"}
    assert table["n"].sum() == 10
    assert table.filter(truth="other", predicted="a")["n"].to_list() == [1]


def test_runs_of_one_model_keep_apart_where_they_meet(tmp_path: Path) -> None:
    store = build(tmp_path / "s", Plan(models=("demo", "demo")))
    names = frames.model_names(store)
    assert set(names.values()) == {run.id for run in store.runs()}
    apart = build(tmp_path / "t")
    assert set(frames.model_names(apart).values()) == {"demo", "demo:early"}


def test_a_grid_is_the_lens_at_every_token(store: Store) -> None:
    sample = samples.choose(store, 1, 3)[0]
    assert sample.grid.columns == ["position", "token", "layer", "top_token", "probability", "entropy", "model"]
    one = sample.grid.filter(model="demo", position=2).sort("layer")
    assert one["layer"].to_list() == list(range(7))
    assert one["token"].unique().to_list() == ["⏎"], "white space is visible"
    assert one["top_token"].to_list() == ["⏎"] * 4 + ["␣U"] * 3
    assert one["probability"].to_list() == pytest.approx([(k + 1) / 8 for k in range(7)])
    assert one["entropy"].to_list() == pytest.approx([2 * (1 - (k + 1) / 8) for k in range(7)])


def test_a_grid_shows_the_last_tokens_of_a_long_prompt(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_TOKENS", 3)
    assert samples.choose(store, 1, 3)[0].grid["position"].unique().to_list() == [2, 3, 4]


def test_samples_are_shown_where_the_lens_was_read_at_every_token_only(tmp_path: Path) -> None:
    found = samples.choose(build(tmp_path / "s", Plan(lens=False)), 3, 2)
    assert [one.row for one in found] == [0, 12, 23]
    assert all(len(one.tokens) == 0 and len(one.grid) == 2 * 7 * 4 for one in found)


def test_samples_run_from_the_surest_to_the_least_sure(store: Store) -> None:
    chosen = samples.choose(store, 4, 2)
    assert [sample.row for sample in chosen] == [0, 8, 15, 23]
    assert chosen[0].prompt == "Title: Film 0\nCertificate:"
    tokens = chosen[0].tokens
    assert tokens["model"].unique(maintain_order=True).to_list() == ["demo", "demo:early"]
    assert tokens["layer"].unique().sort().to_list() == [0, 2, 3, 4, 6]
    assert set(tokens["rank"]) == {0, 1}
    last = tokens.filter(model="demo", layer=6).sort("rank")
    lens = store.sql(
        "SELECT top_logprobs FROM lens WHERE run LIKE 'demo-%' AND layer = 6 AND sample_id = $id",
        {"id": report_store.sample_id(0)},
    ).to_pylist()[0]["top_logprobs"]
    assert last["probability"].to_list() == pytest.approx(pl.Series(lens[:2]).exp().to_list(), rel=1e-6)
    assert last["token"].to_list() == ["␣U", "⏎"]
    assert last["role"].to_list() == ["final", "other"]
    assert samples.choose(store, 1, 3)[0].tokens.filter(token="␣PG")["role"].unique().to_list() == ["target"]
    assert samples.choose(store, 0, 3) == []
    assert len(samples.choose(store, 100, 1)) == 24


@pytest.mark.parametrize(
    ("layers", "stops"),
    [([0], [0]), ([0, 1], [0, 1]), (list(range(33)), [0, 8, 16, 24, 32]), ([0, 6, 12], [0, 6, 12])],
)
def test_stops_are_spread_over_the_layers(layers: list[int], stops: list[int]) -> None:
    assert samples.stops(layers) == stops


def test_what_stands_for_several_classes_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    store = build(path, Plan(models=("demo",)))
    certificate, rating = frames.tasks(frames.results(store))
    assert predictions.merged(store, certificate) == predictions.merged(store, rating) == ""
    monkeypatch.setattr(sample_charts, "MAX_CLASSES", 2)
    said = predictions.merged(store, certificate)
    assert said == "Of 3 classes the rarest are put together as “other”."
    drawn = figures.held_out(store, certificate)
    assert drawn is not None
    assert said in str(drawn.to_dict()["title"]["subtitle"])
    # The newest analysis took classes of fewer than nine rows as one: each of the three has eight.
    scores = [row for run in store.runs() for row in report_store._predictions(run, Plan(models=("demo",)))]
    report_store._save(path, "probe", {"kind": "probe", "min_class": 9}, [], scores)
    said = predictions.merged(reader.open(path), certificate)
    assert "“other” are classes of fewer than 9 rows, which the probe takes as one." in said
