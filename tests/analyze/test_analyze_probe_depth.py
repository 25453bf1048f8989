"""Probing in depth against plain loops over folds, portions and layers, on planted stores and on the sample store."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import probe_stores as stores
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score, r2_score
from sklearn.preprocessing import StandardScaler

from layercache.analyze import analyze, control, information, logistic, metrics, problem, ridge
from layercache.analyze.probe_depth import first_near
from layercache.analyze.summary import summarise
from layercache.errors import AnalysisError, RecipeError
from layercache.recipe import ProbeDepthSpec, ProbeSpec, validate
from layercache.store import reader
from layercache.store.layout import Run
from layercache.store.reader import Store

N, WIDTH, LAYERS, BEST = 150, 12, 4, 2
TEXTS = [f"film {index} is what it is" for index in range(N)]
LABELS = ["rating:number", "kind:category", "good:boolean"]
SAMPLE = Path(__file__).parents[2] / "store"
FEATURE = ("resid", "mean@prompt")


def signal() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(N)


def frame(**extra: Any) -> pl.DataFrame:
    value = signal()
    kinds = np.array(["low", "middle", "high"])[np.digitize(value, [-0.5, 0.5])]
    return pl.DataFrame({"rating": value, "kind": kinds, "good": value > 0, **extra})


def planted(path: Path, states: dict[int, np.ndarray] | None = None, *, model: str = "toy", **extra: Any) -> Run:
    states = states or stores.planted(N, WIDTH, LAYERS, BEST, signal())
    run = stores.new_run(path, model=model, width=states[0].shape[1], layers=len(states))
    stores.put_rows(run, frame(**extra), TEXTS, LABELS)
    stores.put_states(run, TEXTS, {FEATURE: states})
    return run


def deep(store: Store, notes: stores.Notes | None = None, **settings: Any) -> Any:
    spec = ProbeDepthSpec(**{"bootstrap": 20, "min_class": 5, **settings})
    return analyze(store, spec, notes or stores.Notes())


def value(table: pl.DataFrame, **where: Any) -> float:
    where = {"group": None, "other_layer": None, "other_run": None, **where}
    found = table.filter(*(pl.col(name).eq_missing(pl.lit(wanted)) for name, wanted in where.items()))
    assert len(found) == 1, found
    return float(found["value"][0])


def the_problem(store: Store, label: str, **settings: Any) -> problem.Problem:
    spec = ProbeSpec(labels=[label], **{"min_class": 5, **settings})
    return problem.problems(store, spec, stores.Notes())[0]


def states_of(store: Store, given: problem.Problem, layer: int, pooling: str = FEATURE[1]) -> np.ndarray:
    matrix = store.matrix(given.run, layer, pooling)
    return matrix.values[np.searchsorted(matrix.sample_ids, given.sample_ids)].astype(np.float64)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, pl.DataFrame, pl.DataFrame, stores.Notes]:
    path = tmp_path_factory.mktemp("depth") / "store"
    planted(path)
    notes, store = stores.Notes(), stores.opened(path)
    outcome = deep(store, notes)
    return store, stores.frame(outcome.results), stores.frame(outcome.sample_scores), notes


def test_the_score_is_that_of_the_plain_probe(found) -> None:
    store, table, _, notes = found
    plain = stores.frame(analyze(store, ProbeSpec(bootstrap=20, min_class=5, keep=False), stores.Notes()).results)
    keys = ["label", "layer", "group", "metric"]
    ours = table.filter(pl.col("metric").is_in(["r2", "balanced_accuracy"]), pl.col("other_layer").is_null())
    both = ours.join(plain, on=keys, suffix="_plain", nulls_equal=True)
    assert len(both) == len(ours) == 2 * 3 * LAYERS  # the labels and the same shuffled
    for name in ("value", "low", "high"):
        np.testing.assert_allclose(both[name], both[f"{name}_plain"], atol=1e-9)
    assert notes.done == notes.total == 2 * 3 * LAYERS


def test_rows_are_told_apart_and_named(found) -> None:
    _, table, scores, _ = found
    key = ["label", "layer", "pooling", "group", "metric", "other_run", "other_layer"]
    assert not table.select(key).is_duplicated().any()
    assert set(table["metric"]) | set(scores["metric"]) <= set(metrics.METRICS)
    assert set(table["analysis"]) == {"probe_depth"}
    number = table.filter(label="rating")
    assert not {"mdl", "v_information", "compression"} & set(number["metric"])


def test_where_the_label_is_planted_it_peaks(found) -> None:
    _, table, _, _ = found
    for label in ("rating", "kind", "good"):
        main = "r2" if label == "rating" else "balanced_accuracy"
        scores = np.array([value(table, label=label, metric=main, layer=layer) for layer in range(LAYERS)])
        assert value(table, label=label, metric="peak_layer", layer=None) == scores.argmax() == BEST
        near = next(layer for layer in range(LAYERS) if scores[layer] >= 0.95 * scores.max())
        assert value(table, label=label, metric="converging_layer", layer=None) == near
        for layer in range(LAYERS):
            control_score = value(table, label=label, metric=main, layer=layer, group="shuffled")
            assert value(table, label=label, metric="selectivity", layer=layer, group="shuffled") == pytest.approx(
                scores[layer] - control_score
            )


def test_layers_above_shuffled_labels_are_counted(found) -> None:
    store, table, _, _ = found
    alone = stores.frame(deep(store, measures=["depth"], labels=["kind"]).results)
    for label in ("rating", "kind", "good"):
        above = table.filter(label=label, metric="selectivity", group="shuffled").filter(pl.col("low") > 0)
        assert value(table, label=label, metric="layers_above_shuffled", layer=None) == len(above) > 0
    for metric in ("layers_above_shuffled", "peak_layer", "converging_layer"):
        where = {"label": "kind", "metric": metric, "layer": None}
        assert value(alone, **where) == value(table, **where)
    assert "selectivity" not in set(alone["metric"])


def test_a_label_that_no_layer_knows_has_no_peak(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    planted(tmp_path / "s", {layer: rng.standard_normal((N, WIDTH), dtype=np.float32) for layer in range(LAYERS)})
    outcome = deep(stores.opened(tmp_path / "s"), measures=["depth"], labels=["kind"], bootstrap=200)
    table = stores.frame(outcome.results)
    scores = [value(table, metric="balanced_accuracy", layer=layer) for layer in range(LAYERS)]
    assert max(scores) > 0, "above 0, where the best layer used to be named"
    assert value(table, metric="layers_above_shuffled", layer=None) == 0
    assert not {"peak_layer", "converging_layer"} & set(table["metric"])
    said = summarise(outcome.results).splitlines()
    assert said[-1] == "peak layer none, converging layer none: no layer is above shuffled labels"


def test_first_near_by_hand() -> None:
    values = np.array([[0.1, -1.0], [0.94, 0.5], [0.96, 0.5], [1.0, 0.2]])
    assert first_near(values, 0.95).tolist() == [2, 1]
    assert first_near(values, 1.0).tolist() == [3, 1]


@pytest.mark.parametrize("run", ["demo-f10fc3b9", "demo-early-f7373f2b"])
def test_usable_information_is_that_of_a_plain_loop(run: str) -> None:
    store = reader.open(SAMPLE)
    spec = {"runs": [run], "data": ["movies"], "pooling": ["last"], "labels": ["certificate"], "min_class": 10}
    outcome = deep(store, layers=[4, 5], measures=["information"], bootstrap=0, **spec)
    table, scores = stores.frame(outcome.results), stores.frame(outcome.sample_scores)
    given = the_problem(store, "certificate", runs=[run], data=["movies"], min_class=10)
    fold = given.folds.assignment
    for layer in (4, 5):
        x = states_of(store, given, layer, "last@prompt")
        chosen = logistic.cross_validate(x, given.y[:, None], len(given.classes), fold, given.folds.inner).penalty[:, 0]
        left, null = np.empty(len(x)), np.empty(len(x))
        for k in range(5):
            scaler = StandardScaler().fit(x[fold != k])
            model = LogisticRegression(C=chosen[k], tol=1e-8, max_iter=5000)
            model.fit(scaler.transform(x[fold != k]), given.y[fold != k])
            p = model.predict_proba(scaler.transform(x[fold == k]))
            left[fold == k] = -np.log2(p[np.arange(len(p)), np.searchsorted(model.classes_, given.y[fold == k])])
            share = np.bincount(given.y[fold != k]) / (fold != k).sum()
            null[fold == k] = -np.log2(share[given.y[fold == k]])
        assert value(table, metric="v_entropy", layer=layer) == pytest.approx(left.mean(), abs=2e-3)
        assert value(table, metric="label_entropy", layer=layer) == pytest.approx(null.mean())
        assert value(table, metric="v_information", layer=layer) == pytest.approx((null - left).mean(), abs=2e-3)
        pvi = scores.filter(layer=layer, metric="pvi").sort("row")
        np.testing.assert_allclose(pvi["value"].to_numpy()[np.argsort(np.argsort(given.rows))], null - left, atol=0.1)
        assert pvi["row"].to_list() == sorted(given.rows.tolist())


def plain_codelength(x: np.ndarray, y: np.ndarray, order: np.ndarray, inner: np.ndarray, ends: list[int]) -> float:
    """Bits of the online code, by scikit-learn; C by log loss on a held-back part, as in every probe."""
    count = int(y.max()) + 1
    bits = ends[0] * np.log2(count)

    def predict(rows: np.ndarray, on: np.ndarray, c: float) -> np.ndarray:
        scaler = StandardScaler().fit(x[sent])
        p, seen = np.full((len(on), count), 1e-300), np.unique(y[rows])
        if len(seen) == 1:
            p[:, seen] = 1.0
        else:
            fitted = LogisticRegression(C=c, tol=1e-7, max_iter=5000).fit(scaler.transform(x[rows]), y[rows])
            p[:, seen] = fitted.predict_proba(scaler.transform(x[on]))
        return p

    for start, end in pairwise(ends):
        sent, coming = order[:start], order[start:end]
        back = inner[sent] == inner[sent].min()
        best = (0.01, np.inf)
        if not back.all():
            for c in logistic.PENALTIES:
                p = predict(sent[~back], sent[back], c)
                loss = -np.log(p[np.arange(back.sum()), y[sent[back]]]).mean()
                if loss >= best[1]:
                    break
                best = (c, loss)
        p = predict(sent, coming, best[0])[np.arange(len(coming)), y[coming]]
        bits -= np.log2((start * p + 1) / (start + count)).sum()
    return float(bits)


@pytest.mark.parametrize(("path", "run", "label"), [(None, "toy", "kind"), (SAMPLE, "demo-f10fc3b9", "certificate")])
def test_the_online_code_is_that_of_a_plain_loop(found, path: Path | None, run: str, label: str) -> None:
    store = found[0] if path is None else reader.open(path)
    pooling, layer = ("mean@prompt", BEST) if path is None else ("last@prompt", 5)
    spec = {"runs": [run], "labels": [label], "pooling": [pooling], "layers": [layer], "measures": ["mdl"]}
    table = stores.frame(deep(store, bootstrap=0, **spec).results)
    given = the_problem(store, label, runs=[run])
    x = states_of(store, given, layer, pooling)
    order = information.sending_order(given.folds.groups, given.seed)
    assert sorted(order.tolist()) == list(range(len(x)))
    n = len(x)
    ends = sorted({max(1, round(share * n)) for share in ProbeDepthSpec().fractions})
    bits = plain_codelength(x, given.y, order, given.folds.inner, ends)
    assert value(table, metric="mdl", layer=layer) == pytest.approx(bits, rel=5e-3)
    uniform = n * np.log2(len(given.classes))
    assert value(table, metric="compression", layer=layer) == pytest.approx(uniform / bits, rel=5e-3)
    shuffled = value(table, metric="mdl", layer=layer, group="shuffled")
    assert shuffled > 1.5 * bits
    assert shuffled > 0.9 * uniform


def test_one_portion_is_the_uniform_code(found) -> None:
    table = stores.frame(deep(found[0], labels=["kind"], measures=["mdl"], fractions=[1.0], bootstrap=0).results)
    assert value(table, metric="mdl", layer=0) == pytest.approx(N * np.log2(3))
    assert value(table, metric="compression", layer=0) == pytest.approx(1)


def test_portions_never_part_a_group() -> None:
    groups = np.array([4, 4, 4, 1, 2, 2, 0, 3, 3, 3])
    assert information.portions(groups, [0.001, 0.2, 0.5, 1.0]) == [3, 6, 10]
    assert information.portions(np.arange(1000), ProbeDepthSpec().fractions) == [
        *(1, 2, 4, 8, 16, 32, 62, 125, 250, 500),
        1000,
    ]


def test_a_probe_that_knows_types_by_heart_is_not_selective(tmp_path: Path) -> None:
    # States say which of ten directors made the film; the label follows from the director, and nothing else is there.
    rng = np.random.default_rng(1)
    director = np.arange(N) % 10
    states = {k: (8 * np.eye(WIDTH)[director] + rng.standard_normal((N, WIDTH))).astype(np.float32) for k in range(2)}
    run = stores.new_run(tmp_path / "s", width=WIDTH, layers=2)
    table = pl.DataFrame({"good": director < 5, "director": [f"d{k}" for k in director]})
    stores.put_rows(run, table, TEXTS, ["good:boolean"])
    stores.put_states(run, TEXTS, {FEATURE: states})
    result = deep(stores.opened(tmp_path / "s"), measures=["selectivity"], control_by="director")
    numbers = stores.frame(result.results)
    assert value(numbers, metric="balanced_accuracy", layer=1) > 0.95
    assert value(numbers, metric="balanced_accuracy", layer=1, group="control-director") > 0.95
    assert value(numbers, metric="selectivity", layer=1, group="control-director") < 0.05
    assert value(numbers, metric="selectivity", layer=1, group="shuffled") > 0.3


def test_random_labels_are_one_a_type_and_as_frequent_as_the_labels() -> None:
    types = np.repeat(np.arange(2000), 3)
    y = np.random.default_rng(0).choice([0, 1, 2], p=[0.6, 0.3, 0.1], size=len(types))
    drawn = control.labels(y, types, seed=3)
    assert (drawn.reshape(-1, 3) == drawn.reshape(-1, 3)[:, :1]).all()
    np.testing.assert_allclose(np.bincount(drawn) / len(drawn), [0.6, 0.3, 0.1], atol=0.03)
    assert (control.labels(y, types, seed=3) == drawn).all()
    assert (control.labels(y, types, seed=4) != drawn).any()


def test_transfer_between_layers_is_that_of_a_plain_loop() -> None:
    store = reader.open(SAMPLE)
    spec = {"runs": ["demo-f10fc3b9"], "data": ["movies"], "pooling": ["last"], "layers": [4, 5, 6]}
    for rescale in (True, False):
        table = stores.frame(
            deep(store, measures=["transfer"], bootstrap=0, rescale=rescale, min_class=10, **spec).results
        )
        for label, metric in (("certificate", "balanced_accuracy"), ("rating", "r2")):
            given = the_problem(store, label, runs=["demo-f10fc3b9"], data=["movies"], min_class=10)
            fold, source, target = given.folds.assignment, *(states_of(store, given, k, "last@prompt") for k in (5, 6))
            said, mean = np.empty(len(fold)), np.empty(len(fold))
            if label == "rating":
                alphas = ridge.cross_validate(source, given.y[:, None], fold).alpha[:, 0]
            else:
                count = len(given.classes)
                alphas = logistic.cross_validate(source, given.y[:, None], count, fold, given.folds.inner).penalty[:, 0]
            for k in range(5):
                own, other = StandardScaler().fit(source[fold != k]), StandardScaler().fit(target[fold != k])
                model = (
                    Ridge(alphas[k]) if label == "rating" else LogisticRegression(C=alphas[k], tol=1e-8, max_iter=9999)
                )
                model.fit(own.transform(source[fold != k]), given.y[fold != k])
                said[fold == k] = model.predict((other if rescale else own).transform(target[fold == k]))
                mean[fold == k] = given.y[fold != k].mean()
            if label == "rating":
                expected = 1 - ((given.y - said) ** 2).sum() / ((given.y - mean) ** 2).sum()
                assert expected == pytest.approx(r2_score(given.y, said), abs=0.1)
            else:
                expected = balanced_accuracy_score(given.y, said)
            found = value(table, label=label, metric=metric, layer=5, other_layer=6, group="transfer")
            assert found == pytest.approx(expected, abs=1e-6 if label == "rating" else 0.02)
            same = value(table, label=label, metric=metric, layer=5, other_layer=5, group="transfer")
            assert same == pytest.approx(value(table, label=label, metric=metric, layer=5), abs=1e-9)


def test_a_scaled_layer_is_read_as_well_and_a_turned_one_backwards(tmp_path: Path) -> None:
    first = stores.planted(N, WIDTH, 1, 0, signal())[0]
    planted(tmp_path / "s", {0: first, 1: 10 * first + 5, 2: -first})
    store = stores.opened(tmp_path / "s")
    table = stores.frame(deep(store, labels=["rating"], measures=["transfer"]).results)
    own = value(table, metric="r2", layer=0)
    assert value(table, metric="r2", layer=0, other_layer=1, group="transfer") == pytest.approx(own, abs=1e-4)
    assert value(table, metric="r2", layer=0, other_layer=2, group="transfer") < -1
    strict = stores.frame(deep(store, labels=["rating"], measures=["transfer"], rescale=False).results)
    assert value(strict, metric="r2", layer=0, other_layer=1, group="transfer") < -10


def test_transfer_between_runs(tmp_path: Path) -> None:
    states = stores.planted(N, WIDTH, LAYERS, BEST, signal())
    a = planted(tmp_path / "s", states)
    b = planted(tmp_path / "s", {layer: x * np.float32(2) for layer, x in states.items()}, model="double")
    table = stores.frame(deep(stores.opened(tmp_path / "s"), labels=["rating"], measures=["transfer_runs"]).results)
    for layer in range(LAYERS):
        own = value(table, run=a.id, metric="r2", layer=layer)
        where = {"layer": layer, "other_layer": layer, "group": "transfer", "metric": "r2"}
        assert value(table, run=a.id, other_run=b.id, **where) == pytest.approx(own, abs=1e-4)
        assert value(table, run=b.id, other_run=a.id, **where) == pytest.approx(own, abs=1e-4)


def test_probes_cannot_be_read_on_another_width_or_on_other_rows(tmp_path: Path) -> None:
    planted(tmp_path / "s")
    with pytest.raises(AnalysisError, match="needs two runs"):
        deep(stores.opened(tmp_path / "s"), labels=["rating"], measures=["transfer_runs"])
    planted(tmp_path / "s", stores.planted(N, WIDTH + 2, LAYERS, BEST, signal()), model="wide")
    with pytest.raises(
        AnalysisError, match=r"a probe of toy-\w+ \(width 12\) cannot read states of wide-\w+ \(width 14\)"
    ):
        deep(stores.opened(tmp_path / "s"), labels=["rating"], measures=["transfer_runs"])
    assert deep(stores.opened(tmp_path / "s"), labels=["rating"], measures=["transfer"]).results.num_rows
    planted(tmp_path / "other")
    run = stores.new_run(tmp_path / "other", model="half", width=WIDTH, layers=LAYERS)
    stores.put_rows(run, frame()[:90], TEXTS[:90], LABELS)
    stores.put_states(
        run, TEXTS[:90], {FEATURE: {k: x[:90] for k, x in stores.planted(N, WIDTH, LAYERS, BEST, signal()).items()}}
    )
    notes = stores.Notes()
    with pytest.raises(AnalysisError, match="no two runs hold the same rows"):
        deep(stores.opened(tmp_path / "other"), notes, labels=["rating"], measures=["transfer_runs"])
    assert any("hold different rows" in note for note in notes.notes)


def test_controls_that_are_none(tmp_path: Path) -> None:
    director = [f"d{k % 30}" for k in range(N)]
    planted(tmp_path / "s", director=director, same=["x"] * N)
    store = stores.opened(tmp_path / "s")
    with pytest.raises(AnalysisError, match="no column 'directer': did you mean 'director'"):
        deep(store, labels=["good"], measures=["selectivity"], control_by="directer")
    with pytest.raises(AnalysisError, match="have the same same"):
        deep(store, labels=["good"], measures=["selectivity"], control_by="same")
    with pytest.raises(AnalysisError, match="on both sides of a fold"):
        deep(store, labels=["good"], measures=["selectivity"], control_by="director", group_by="director")
    by_prompt = stores.frame(deep(store, labels=["good"], measures=["selectivity"], control_by="prompt").results)
    for layer in range(LAYERS):
        assert abs(value(by_prompt, metric="balanced_accuracy", layer=layer, group="control-prompt") - 0.5) < 0.2


def test_a_split_is_honoured(tmp_path: Path) -> None:
    run = stores.new_run(tmp_path / "s", width=WIDTH, layers=LAYERS)
    split = ["train" if k < 100 else "test" for k in range(N)]
    stores.put_rows(run, frame(split=split), TEXTS, LABELS, split="split")
    stores.put_states(run, TEXTS, {FEATURE: stores.planted(N, WIDTH, LAYERS, BEST, signal())})
    outcome = deep(stores.opened(tmp_path / "s"), labels=["kind"])
    table, scores = stores.frame(outcome.results), stores.frame(outcome.sample_scores)
    assert set(table.filter(metric="v_information")["n"]) == {50}
    assert set(table.filter(metric="mdl")["n"]) == {N}
    assert set(scores["row"]) == set(range(100, N))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"measures": "mld"}, "mld"),
        ({"fractions": [0.5, 0.1, 1.0]}, "fractions must rise and end in 1"),
        ({"fractions": [0.5]}, "fractions must rise and end in 1"),
        ({"converged": 0}, "converged"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        validate(ProbeDepthSpec, settings, where="analyze")
