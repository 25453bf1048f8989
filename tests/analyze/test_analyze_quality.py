"""`analyze quality` on stores: what is read, which rows come of it, what is refused and how."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import probe_stores as stores
import pytest
from command import Call
from test_quality_metrics import cka_by_definition, entropy_by_definition, unit

from layercache import recipe, study
from layercache.analyze import analyze, metrics
from layercache.analyze.quality import neighbours
from layercache.errors import AnalysisError, RecipeError
from layercache.progress import Progress
from layercache.recipe import QualitySpec
from layercache.store import reader, writer
from layercache.store.layout import Run
from layercache.store.results import Outcome

N, WIDTH, LAYERS = 60, 16, 4
TEXTS = [f"prompt {index}" for index in range(N)]
MEAN = ("resid", "mean@prompt")
STATS = ("prompt_entropy", "curvature", "norm")
SAMPLE_STORE = Path(__file__).parents[2] / "store"


def states(seed: int = 0, n: int = N, width: int = WIDTH, layers: int = LAYERS) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(seed)
    kept = rng.standard_normal((n, width))
    return {k: (kept + 0.5 * k * rng.standard_normal((n, width)) + 2).astype(np.float32) for k in range(layers)}


def put(
    run: Run, layers: dict[int, np.ndarray], condition: str = "clean", texts: list[str] | None = None, **settings: Any
) -> None:
    """Publish pooled states, and statistics over tokens with `stats` (metric → layer → values, NaN being none)."""
    texts, stats = texts or TEXTS, settings.pop("stats", {})
    outputs: dict[str, Any] = {f"hidden:{MEAN[0]}:{MEAN[1]}": list(layers)} if layers else {}
    outputs |= {f"stats:{metric}": list(own) for metric, own in stats.items()}
    shard = writer.Shard(
        run, outputs, condition=condition, provenance=settings.pop("provenance", {}), allow_nonfinite=True
    )
    samples = stores.samples(texts, {})
    samples["n_tokens"], samples["n_special"] = [4 + k % 5 for k in range(len(texts))], [1] * len(texts)
    samples["spans"] = [[{"name": "prompt", "start": 1, "end": 4 + k % 5}] for k in range(len(texts))]
    shard.add("samples", {**samples, **settings})
    ids = [stores.sample_id(text) for text in texts]
    for layer, values in layers.items():
        place = {"sample_id": ids, "site": [MEAN[0]] * len(ids), "pooling": [MEAN[1]] * len(ids)}
        shard.add("hidden", {**place, "layer": [layer] * len(ids), "vector": values})
    for metric, own in stats.items():
        for layer, values in own.items():
            known = np.flatnonzero(~np.isnan(values))
            of = {"sample_id": [ids[k] for k in known], "layer": [layer] * len(known), "metric": [metric] * len(known)}
            shard.add("token_stats", {**of, "value": values[known]})
    shard.publish()


def made(path: Path, layers: dict[int, np.ndarray] | None = None, model: str = "toy", **settings: Any) -> Run:
    layers = states() if layers is None else layers
    width = next(iter(layers.values())).shape[1] if layers else WIDTH
    texts = settings.get("texts", TEXTS)
    run = stores.new_run(path, model=model, layers=LAYERS, width=width)
    stores.put_rows(run, pl.DataFrame({"x": range(len(texts))}), texts, [])
    put(run, layers, **settings)
    return run


def ask(path: Path, notes: stores.Notes | None = None, **settings: Any) -> pl.DataFrame:
    return stores.frame(outcome(path, notes, **settings).results)


def outcome(path: Path, notes: stores.Notes | None = None, **settings: Any) -> Outcome:
    spec = QualitySpec(**{"bootstrap": 40, **settings})
    return analyze(stores.opened(path), spec, notes or stores.Notes())


def only(table: pl.DataFrame, metric: str, **where: Any) -> pl.DataFrame:
    group = where.pop("group", None)
    kept = table.filter(pl.col("metric") == metric, pl.col("group").eq_missing(pl.lit(group, pl.String)))
    return kept.filter(*(pl.col(name) == value for name, value in where.items())).sort("layer", "other_layer")


def statistics(seed: int = 0) -> dict[str, dict[int, np.ndarray]]:
    rng = np.random.default_rng(seed)
    found = {metric: {layer: rng.gamma(2, 1, N) for layer in range(LAYERS)} for metric in STATS}
    found["curvature"][2][:7] = np.nan
    return found


# --- what is computed ---


def test_numbers_of_every_layer(tmp_path: Path) -> None:
    path, layers = tmp_path / "store", states()
    run = made(path, layers)
    notes = stores.Notes()
    table = ask(path, notes)
    assert notes.done == notes.total > 0
    for layer, x in layers.items():
        (entropy,) = only(table, "dataset_entropy", layer=layer).iter_rows(named=True)
        assert entropy["value"] == pytest.approx(entropy_by_definition(unit(x), 1.0))
        assert entropy["low"] < entropy["value"] < entropy["high"]
        assert (entropy["run"], entropy["data"], entropy["analysis"]) == (run.id, "toy", "quality")
        assert (entropy["condition"], entropy["site"], entropy["pooling"], entropy["n"]) == ("clean", *MEAN, N)
    for name in (
        "dataset_entropy_normalized",
        "dataset_effective_rank",
        "dataset_mean_cosine",
        "dataset_first_pc_share",
    ):
        assert only(table, name)["layer"].to_list() == list(range(LAYERS))
    assert only(table, "intrinsic_dimension")["n"].to_list() == [N] * LAYERS
    assert only(table, "dataset_copies")["value"].to_list() == [0.0] * LAYERS
    assert set(table["metric"]) <= set(metrics.METRICS)
    assert table["other_run"].is_null().all()


def test_every_two_layers_are_compared_once(tmp_path: Path) -> None:
    path, layers = tmp_path / "store", states()
    made(path, layers)
    table = ask(path, metrics=["cka", "mutual_knn"], cka="both", k=5)
    pairs = [(a, b) for a in range(LAYERS) for b in range(a + 1, LAYERS)]
    for name, debiased in (("cka", True), ("cka_biased", False)):
        found = only(table, name)
        assert found.select("layer", "other_layer").rows() == pairs
        expected = [cka_by_definition(layers[a], layers[b], debiased) for a, b in pairs]
        np.testing.assert_allclose(found["value"], expected, atol=2e-5)
        assert (found["low"] <= found["value"]).all()
        assert (found["value"] <= found["high"]).all()
    near = {layer: neighbours.neighbourhoods(x, 5) for layer, x in layers.items()}
    found = only(table, "mutual_knn")
    assert found.select("layer", "other_layer").rows() == pairs
    expected = [np.mean([len({*one} & {*two}) / 5 for one, two in zip(near[a], near[b])]) for a, b in pairs]
    np.testing.assert_allclose(found["value"], expected)
    (chance,) = only(table, "mutual_knn", group="chance").iter_rows(named=True)
    assert (chance["value"], chance["layer"], chance["other_layer"]) == (pytest.approx(5 / (N - 1)), None, None)
    assert set(ask(path, metrics=["cka"], cka="biased")["metric"]) == {"cka_biased"}
    assert set(table["metric"]) == {"cka", "cka_biased", "mutual_knn"}


def test_runs_are_compared_on_the_samples_they_share(tmp_path: Path) -> None:
    """The other run is wider and lacks some samples."""
    path, ours, theirs = tmp_path / "store", states(), states(5, N - 10, 24)
    a = made(path, ours, "a")
    b = made(path, theirs, "b", texts=TEXTS[10:])
    table = ask(path, metrics=["cka", "mutual_knn"], compare="runs")
    found = only(table, "cka")
    assert found.select("layer", "other_layer").rows() == [(i, j) for i in range(LAYERS) for j in range(LAYERS)]
    expected = [cka_by_definition(ours[i][10:], theirs[j], True) for i in range(LAYERS) for j in range(LAYERS)]
    np.testing.assert_allclose(found["value"], expected, atol=2e-5)
    assert set(found.select("run", "other_run", "n").rows()) == {(a.id, b.id, N - 10)}
    assert len(only(table, "mutual_knn")) == LAYERS**2
    both = ask(path, metrics=["cka"])
    assert len(both.filter(pl.col("other_run").is_null())) == 2 * LAYERS * (LAYERS - 1) / 2
    assert only(both, "cka", other_run=b.id).equals(found)
    assert ask(path, metrics=["cka"], compare="layers")["other_run"].is_null().all()


def test_runs_of_other_tokenizers_are_paired_by_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, ours, theirs = tmp_path / "store", states(), states(5)
    made(path, ours, "a")
    monkeypatch.setattr(stores, "sample_id", lambda text: f"{abs(hash(text[::-1])):024x}"[-24:])
    made(path, theirs, "b")
    found = only(ask(path, metrics=["cka"], compare="runs"), "cka", layer=1, other_layer=2)
    assert found["value"][0] == pytest.approx(cka_by_definition(ours[1], theirs[2], True), abs=2e-5)


def test_runs_without_a_prompt_in_common(tmp_path: Path) -> None:
    path = tmp_path / "store"
    made(path, states(), "a")
    made(path, states(5), "b", texts=[f"other {k}" for k in range(N)])
    notes = stores.Notes()
    ask(path, notes, metrics=["cka"])
    assert [note for note in notes.notes if "no prompt has states in both" in note or "no sample" in note]
    with pytest.raises(AnalysisError, match="no cka: no sample has a state at every layer"):
        ask(path, metrics=["cka"], compare="runs")


def test_the_order_of_samples_is_the_same_everywhere_and_a_choice_is_seeded(tmp_path: Path) -> None:
    path = tmp_path / "store"
    made(path)
    few = ask(path, metrics=["dataset_entropy"], max_samples=20)
    assert set(few["n"]) == {20}
    assert few.equals(ask(path, metrics=["dataset_entropy"], max_samples=20))
    assert not few.equals(ask(path, metrics=["dataset_entropy"], max_samples=20, seed=1))
    whole = ask(path, metrics=["dataset_entropy"], max_samples=N)
    assert set(whole["n"]) == {N}


def test_settings_reach_the_numbers(tmp_path: Path) -> None:
    path, layers = tmp_path / "store", states()
    made(path, layers)
    table = ask(path, metrics=["dataset_effective_rank"], alpha=2.0, layers=[1, 3], bootstrap=0)
    assert set(table["metric"]) == {"dataset_entropy", "dataset_entropy_normalized", "dataset_effective_rank"}
    found = only(table, "dataset_entropy")
    assert found["layer"].to_list() == [1, 3]
    assert found["value"][1] == pytest.approx(entropy_by_definition(unit(layers[3]), 2.0))
    assert table["low"].is_null().all()
    assert ask(path, metrics=["cka", "mutual_knn", "intrinsic_dimension"], bootstrap=0)["low"].is_null().all()


# --- statistics over tokens ---


def test_statistics_over_tokens(tmp_path: Path) -> None:
    path, stats = tmp_path / "store", statistics()
    run = made(path, stats=stats)
    table = ask(path, metrics=list(STATS), quantiles=[0.1, 0.5])
    for metric, own in stats.items():
        found = only(table, metric)
        np.testing.assert_allclose(found["value"], [np.nanmean(own[k]) for k in range(LAYERS)])
        assert found["n"].to_list() == [int((~np.isnan(own[k])).sum()) for k in range(LAYERS)]
        assert (found["low"] < found["value"]).all()
        assert (found["value"] < found["high"]).all()
        np.testing.assert_allclose(
            only(table, f"{metric}_q10")["value"], [np.nanquantile(own[k], 0.1) for k in range(LAYERS)]
        )
    tokens = np.array([3 + k % 5 for k in range(N)])
    for name, most in (
        ("tokens", np.log(tokens)),
        ("width", np.log(WIDTH)),
        ("min", np.log(np.minimum(tokens, WIDTH))),
    ):
        found = only(table, f"prompt_entropy_over_ln_{name}")
        np.testing.assert_allclose(found["value"], [np.mean(stats["prompt_entropy"][k] / most) for k in range(LAYERS)])
    assert not [name for name in table["metric"] if name.startswith("curvature_over")]
    assert set(table.select("run", "condition", "site", "pooling").rows()) == {(run.id, "clean", "resid", None)}
    assert only(ask(path, metrics=["norm"], layers=[2]), "norm")["layer"].to_list() == [2]
    without = ask(path, metrics=["norm"], bootstrap=0, quantiles=[])
    assert without["low"].is_null().all()
    assert set(without["metric"]) == {"norm"}


def test_the_bootstrap_of_statistics_is_that_of_means(tmp_path: Path) -> None:
    path, stats = tmp_path / "store", statistics()
    made(path, stats=stats)
    found = only(ask(path, metrics=["norm"], bootstrap=2000, quantiles=[]), "norm")
    for k in range(LAYERS):
        own = stats["norm"][k]
        half = (found["high"][k] - found["low"][k]) / 2
        assert half == pytest.approx(1.96 * own.std(ddof=1) / math.sqrt(N), rel=0.1)


def test_the_tokens_of_an_answer_do_not_count(tmp_path: Path) -> None:
    """The prompt's span is shorter than what the model saw; a sample may have one token, or no spans at all."""
    path, values = tmp_path / "store", {1: np.full(N, 0.5)}
    stats = {"prompt_entropy": values, "prompt_entropy2+centre-first": values}
    ends = [2, 6] + [7] * (N - 2)
    spans = [[{"name": "prompt", "start": 1, "end": end}, {"name": "answer", "start": end, "end": 20}] for end in ends]
    spans[2] = []
    made(path, {}, stats=stats, n_tokens=[20] * N, spans=spans)
    found = only(ask(path), "prompt_entropy_over_ln_tokens")
    expected = [0.5 / math.log(5), 0.5 / math.log(19), *[0.5 / math.log(6)] * (N - 3)]
    assert found.select("value", "n").rows() == [(pytest.approx(np.mean(expected)), N - 1)]
    found = only(ask(path), "prompt_entropy2+centre-first_over_ln_tokens")
    expected = [0.5 / math.log(4), 0.5 / math.log(18), *[0.5 / math.log(5)] * (N - 3)]
    assert found.select("value", "n").rows() == [(pytest.approx(np.mean(expected)), N - 1)]


def test_perturbed_prompts_are_looked_at_by_themselves(tmp_path: Path) -> None:
    path = tmp_path / "store"
    run = made(path, stats=statistics())
    by_name = {"random-0.25": 1, "random-0.5": 2, "truncate-4": 3, "knockout-question": 4}
    for name, seed in by_name.items():
        put(run, states(seed), name, stats=statistics(seed))
    table = ask(path)
    assert set(table["condition"]) == {"clean", "random-0.25", "random-0.5", "truncate-4"}
    for name in ("random-0.25", "random-0.5"):
        own = statistics(by_name[name])["norm"]
        np.testing.assert_allclose(only(table, "norm", condition=name)["value"], [own[k].mean() for k in own])
        x = states(by_name[name])[2]
        (found,) = only(table, "dataset_entropy", condition=name, layer=2)["value"]
        assert found == pytest.approx(entropy_by_definition(unit(x), 1.0))
    assert set(table.filter(pl.col("metric") == "cka")["condition"]) == {"clean"}
    named = ask(path, conditions=["knockout-question"])
    assert set(named["condition"]) == {"knockout-question"}
    assert "cka" in set(named["metric"])
    with pytest.raises(AnalysisError, match=r"no condition 'random-0\.2' in .*: did you mean 'random-0\.25'"):
        ask(path, conditions=["random-0.2"])


# --- views ---


def put_views(
    run: Run, count: int = 3, noise: float = 0.2, suffix: str = "", **settings: Any
) -> list[dict[int, np.ndarray]]:
    rng, kept, found = np.random.default_rng(9), states(), []
    for number in range(1, count + 1):
        layers = {k: (x + noise * rng.standard_normal(x.shape)).astype(np.float32) for k, x in kept.items()}
        given = {"kind": "augment", "number": number, **settings}
        put(run, layers, f"augment-{number}{suffix and f'-{number:07x}{suffix}'}", provenance={"condition": given})
        found.append(layers)
    return found


def test_invariance_over_views(tmp_path: Path) -> None:
    path = tmp_path / "store"
    run = made(path)
    put_views(run)
    found = outcome(path, metrics=["infonce", "lidar", "dime"], dime_samples=30)
    table = stores.frame(found.results)
    for metric in ("infonce", "lidar", "dime"):
        assert only(table, metric)["layer"].to_list() == list(range(LAYERS))
        assert only(table, metric, group="shuffled")["layer"].to_list() == list(range(LAYERS))
    chance = only(table, "infonce", group="chance")
    assert set(chance["value"]) == {math.log(N)}
    assert (only(table, "infonce")["high"] < math.log(N) / 2).all()
    assert (only(table, "infonce", group="shuffled")["low"] > math.log(N)).all()
    assert (only(table, "dime")["low"] > only(table, "dime", group="shuffled")["value"]).all()
    assert set(only(table, "dime")["n"]) == {30}
    assert set(only(table, "lidar")["n"]) == {N}
    assert only(table, "views")["value"].to_list() == [3.0]
    assert set(table["condition"]) == {"augment"}
    scores = stores.frame(found.sample_scores)
    for layer in range(LAYERS):
        own = scores.filter(layer=layer, metric="infonce").sort("row")
        assert own["row"].to_list() == list(range(N))
        assert own["sample_id"].to_list() == [stores.sample_id(text) for text in TEXTS]
        assert own["value"].mean() == pytest.approx(only(table, "infonce", layer=layer)["value"][0])
    assert set(table["metric"]) <= set(metrics.METRICS)


def test_the_first_views_by_number_are_the_pair_and_settings_are_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "store"
    run = made(path)
    given = put_views(run, 11)
    table = ask(path, metrics=["infonce"])
    stacked = np.stack([view[1] for view in given]).astype(np.float64)
    z = stacked - stacked.mean(axis=(0, 1))
    z /= np.linalg.norm(z, axis=2, keepdims=True)
    scores = z[0] @ z[1].T / 0.1
    expected = np.mean(np.log(np.exp(scores).sum(axis=1)) - np.diag(scores))
    assert only(table, "infonce", layer=1)["value"][0] == pytest.approx(expected, rel=1e-5)
    put_views(run, 2, 2.0, "a", augment_rate=0.6)
    put_views(run, 2, 4.0, "b", augment_rate=0.9)
    table = ask(path, metrics=["infonce"])
    assert len(set(table["condition"])) == 3
    assert sorted(only(table, "views")["value"]) == [2.0, 2.0, 11.0]
    mean = only(table, "infonce", layer=0)
    assert len(mean) == 3
    assert only(table, "infonce", layer=0, condition="augment")["value"][0] == min(mean["value"])


def test_without_views(tmp_path: Path) -> None:
    path = tmp_path / "store"
    run = made(path)
    with pytest.raises(AnalysisError, match=r"no run holds two views.*run `layercache extract --augment 2` first"):
        ask(path, metrics=["infonce"])
    notes = stores.Notes()
    assert len(ask(path, notes))
    assert [note for note in notes.notes if note.startswith("no infonce, lidar, dime: no run holds two views")]
    put_views(run, 1)
    with pytest.raises(AnalysisError, match="augment: no lidar: one view alone"):
        ask(path, metrics=["lidar"])
    assert "views" not in set(ask(path)["metric"])


def test_fewer_samples_than_views(tmp_path: Path) -> None:
    path, texts = tmp_path / "store", TEXTS[:3]
    run = made(path, states(n=3), texts=texts)
    for number in range(1, 5):
        put(run, states(number, n=3), f"augment-{number}", texts)
    with pytest.raises(AnalysisError, match="3 samples with 4 views each: invariance needs at least as many samples"):
        ask(path, metrics=["dime"])


def test_one_reason_in_many_places_is_said_once(tmp_path: Path) -> None:
    path = tmp_path / "store"
    ids = [made(path, states(number), f"m{number}").id for number in range(4)]
    notes = stores.Notes()
    ask(path, notes, k=100, compare="layers")
    shown = "; ".join(f"{name}, toy, mean@prompt, clean" for name in sorted(ids)[:2])
    why = "60 samples, and 100 neighbours need at least 102: add samples or lower k"
    said = [note for note in notes.notes if "mutual_knn" in note]
    assert said == [f"{shown}; and 2 more: no mutual_knn: {why}"]


# --- bad input ---


@pytest.mark.parametrize(
    ("n", "metric", "message"),
    [
        (1, "dataset_entropy", "1 sample with a state, and at least 2 are needed"),
        (1, "dataset_mean_cosine", "1 states other than 0"),
        (1, "intrinsic_dimension", "1 sample with a state"),
        (3, "cka", "3 samples, and CKA needs at least 4"),
        (11, "mutual_knn", "11 samples, and 10 neighbours need at least 12: add samples or lower k"),
        (12, "intrinsic_dimension", "12 distinct states, and a dimension needs at least 20"),
    ],
)
def test_too_few_samples(tmp_path: Path, n: int, metric: str, message: str) -> None:
    path = tmp_path / "store"
    made(path, states(n=n), texts=TEXTS[:n])
    with pytest.raises(AnalysisError, match=message):
        ask(path, metrics=[metric])


def test_one_sample_gives_nothing_at_all(tmp_path: Path) -> None:
    path = tmp_path / "store"
    made(path, states(n=1), texts=TEXTS[:1])
    with pytest.raises(AnalysisError, match="1 sample"):
        ask(path)


def test_a_layer_of_equal_states_is_left_out_and_said(tmp_path: Path) -> None:
    path, layers = tmp_path / "store", states()
    layers[0] = np.full((N, WIDTH), 0.1, np.float32)
    run = made(path, layers)
    notes = stores.Notes()
    table = ask(path, notes, metrics=["dataset_entropy", "intrinsic_dimension", "cka", "mutual_knn"])
    for metric in ("dataset_entropy", "intrinsic_dimension"):
        assert only(table, metric)["layer"].to_list() == [1, 2, 3]
    for metric in ("cka", "mutual_knn"):
        assert only(table, metric).select("layer", "other_layer").rows() == [(1, 2), (1, 3), (2, 3)]
    assert notes.notes == [
        f"{run.id}, toy, mean@prompt, clean: no dataset_entropy, intrinsic_dimension at layer 0: all 60 states are the same",
        f"{run.id}, toy, mean@prompt, clean: no cka, mutual_knn at layer 0: all states are the same",
    ]
    with pytest.raises(AnalysisError, match="all 60 states are the same"):
        ask(path, metrics=["dataset_entropy"], layers=[0])
    for metric in ("cka", "mutual_knn"):
        with pytest.raises(AnalysisError, match=f"no {metric}"):
            ask(path, metrics=[metric], layers=[0, 1])


def test_states_that_are_not_numbers(tmp_path: Path) -> None:
    path, layers = tmp_path / "store", states()
    layers[2][5, 3] = np.inf
    made(path, layers)
    with pytest.raises(AnalysisError, match="1 samples have infinite or NaN states mean@prompt at layer 2"):
        ask(path, metrics=["dataset_entropy"])
    assert len(ask(path, metrics=["dataset_entropy"], layers=[0, 1])) == 6


def test_names_that_are_not_known(tmp_path: Path) -> None:
    path = tmp_path / "store"
    made(path, stats={"norm": {0: np.ones(N)}})
    with pytest.raises(AnalysisError, match="unknown metric 'dataset_entrpy': did you mean 'dataset_entropy'"):
        ask(path, metrics=["dataset_entrpy"])
    with pytest.raises(AnalysisError, match="no run holds max_norm: run `layercache extract --stats max_norm` first"):
        ask(path, metrics=["max_norm"])
    with pytest.raises(AnalysisError, match="has no pooling 'last@prompt'"):
        ask(path, pooling=["last"])
    with pytest.raises(RecipeError, match=r"quality: alpha: 0 is out of range: it must be above 0"):
        recipe.validate(QualitySpec, {"alpha": 0}, "quality")
    with pytest.raises(RecipeError, match=r"quality: cka: 'unbiased' is not one of"):
        recipe.validate(QualitySpec, {"cka": "unbiased"}, "quality")


def test_a_run_without_states(tmp_path: Path) -> None:
    path = tmp_path / "store"
    run = made(path, {}, stats=statistics())
    notes = stores.Notes()
    table = ask(path, notes)
    assert set(STATS) <= set(table["metric"])
    assert "cka" not in set(table["metric"])
    assert notes.notes[0].startswith(f"run {run.id} holds no states")
    with pytest.raises(AnalysisError, match="holds no states: run `layercache extract --pooling mean` first"):
        ask(path, metrics=["cka"])


def test_a_recipe_asks_for_it() -> None:
    asked = {
        "kind": "quality",
        "metrics": "cka,infonce",
        "pooling": "mean,last",
        "conditions": "clean",
        "compare": "runs",
    }
    table = {"name": "a", "models": "demo", "data": {"source": "demo:movies"}, "analyze": [asked]}
    (spec,) = recipe.build(table).analyze
    assert isinstance(spec, QualitySpec)
    assert (spec.metrics, spec.pooling) == (["cka", "infonce"], ["mean@prompt", "last@prompt"])
    assert spec.every_condition


# --- the command, and real states ---


def test_the_command_prints_a_table_keeps_the_result_and_sees_new_conditions(tmp_path: Path, call: Call) -> None:
    path = tmp_path / "store"
    run = made(path, stats=statistics())
    first = call("analyze", "quality", "--store", path, "--bootstrap", 20, "--cka", "both", "--k", 5)
    assert first.code == 0
    assert "toy, toy, mean@prompt, clean: quality" in first.out
    assert "dataset entropy, nats" in first.out
    assert "cka_biased with the next layer" in first.out
    again = call("analyze", "quality", "--store", path, "--bootstrap", 20, "--cka", "both", "--k", 5)
    assert again.out == first.out
    assert "nothing has changed" in again.err
    put_views(run, 2)
    more = call("analyze", "quality", "--store", path, "--bootstrap", 20, "--cka", "both", "--k", 5)
    assert "nothing has changed" not in more.err
    assert "toy, toy, mean@prompt, augment: quality" in more.out
    assert "InfoNCE, nats" in more.out
    wrong = call("analyze", "quality", "--store", path, "--metrics", "ckaa")
    assert (wrong.code, wrong.out) == (2, "")
    assert wrong.err.strip() == "error: unknown metric 'ckaa': did you mean 'cka'?"


@pytest.fixture(scope="module")
def real() -> pl.DataFrame:
    """What the committed store's states give: two trainings of the demo model on films and on questions."""
    (done,) = study.analyze(SAMPLE_STORE, [QualitySpec(bootstrap=50, pooling=["mean@prompt"])], Progress())
    return stores.frame(done.results)


def test_real_states_of_every_run_against_the_definitions(real: pl.DataFrame) -> None:
    store = reader.open(SAMPLE_STORE)
    for run in store.runs():
        (info,) = store.data(run)
        ids = store.rows(run, info.name)["sample_id"].unique().to_list()
        x = {}
        for layer in (0, 3, 6):
            states_ = store.matrix(run, layer, "mean@prompt")
            x[layer] = states_.values[np.isin(states_.sample_ids, ids)]
            (found,) = only(real, "dataset_entropy", run=run.id, layer=layer)["value"]
            assert found == pytest.approx(entropy_by_definition(unit(x[layer]), 1.0))
        own = real.filter(pl.col("other_run").is_null())
        for a, b in ((0, 3), (3, 6)):
            (found,) = only(own, "cka", run=run.id, layer=a, other_layer=b)["value"]
            assert found == pytest.approx(cka_by_definition(x[a], x[b], True), abs=1e-4)


def test_real_runs_of_one_data_set_are_compared(real: pl.DataFrame) -> None:
    pairs = real.filter(pl.col("other_run").is_not_null()).select("data", "run", "other_run").unique()
    assert sorted(pairs["data"]) == ["movies", "qa"]
    chance = real.filter(metric="mutual_knn", group="chance")["value"].max()
    assert (
        real.filter(pl.col("metric") == "mutual_knn", pl.col("layer") == pl.col("other_layer"))["value"] > chance
    ).all()
