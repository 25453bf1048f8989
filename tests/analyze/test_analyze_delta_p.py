"""ΔP against plain loops of scikit-learn and NumPy, and what it says of a planted effect and of pure noise."""

from pathlib import Path
from typing import NamedTuple

import delta_stores as worlds
import numpy as np
import polars as pl
import probe_stores as stores
import pytest
from delta_stores import BLIND, LAYERS, PLANTED, POOLING, World, build, delta_p, one
from scipy.special import expit, logit
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler

from layercache import study
from layercache.analyze import bootstrap, delta_p_effect, logistic, metrics
from layercache.analyze import folds as folding
from layercache.analyze.summary import summarise
from layercache.errors import AnalysisError
from layercache.progress import Progress
from layercache.recipe import DeltaPSpec

KEY = ["condition", "layer", "group", "metric", "other_layer"]
KNOCKOUT, CONTROL = "knockout-subject", "control-subject"


class Reference(NamedTuple):
    """What plain scikit-learn gives: folds, and log-odds by condition, [layers, n]."""

    folds: folding.Folds
    logits: dict[str, np.ndarray]


def reference(world: World, conditions=PLANTED) -> Reference:
    """Fit every fold with a scaler and a logistic regression, C by log loss on the held-back part."""
    y = world.right.astype(int)
    groups = world.frame()["subject"].to_list()
    folds = folding.make(world.texts, label="correct", count=5, seed=0, group_by=groups, classes=y)
    logits = {name: np.empty((LAYERS, world.n)) for name in ("clean", *conditions)}
    for layer in range(LAYERS):
        states = {"clean": world.states[layer], **{name: make(world, layer) for name, make in conditions.items()}}
        for fold in range(5):
            fitted = folds.assignment != fold
            scaler = StandardScaler().fit(states["clean"][fitted].astype(float))
            z = scaler.transform(states["clean"][fitted].astype(float))
            back = folds.inner[fitted] == folds.inner[fitted].min()
            losses: list[float] = []
            for c in logistic.PENALTIES:
                front = LogisticRegression(C=c, max_iter=2000).fit(z[~back], y[fitted][~back])
                losses.append(log_loss(y[fitted][back], front.predict_proba(z[back])))
                if losses[-1] > min(losses):
                    break
            c = logistic.PENALTIES[int(np.argmin(losses))]
            model = LogisticRegression(C=c, tol=1e-6, max_iter=2000).fit(z, y[fitted])
            for name, x in states.items():
                logits[name][layer, ~fitted] = model.decision_function(scaler.transform(x[~fitted].astype(float)))
    return Reference(folds, logits)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory):
    store, world = build(tmp_path_factory.mktemp("delta") / "store")
    notes = stores.Notes()
    found = delta_p(store, notes, repeats=2)
    return store, world, notes, stores.frame(found.results), stores.frame(found.sample_scores)


@pytest.fixture(scope="module")
def expected(planted) -> Reference:
    return reference(planted[1])


def test_what_is_said_and_counted(planted):
    _, world, notes, table, scores = planted
    right = int(world.right.sum())
    assert notes.notes == [
        f"{world.run.id}, toy, correct, {POOLING}: {right} of {world.n} answers are right ({right / world.n:.0%}),"
        f" {world.n - right} say they do not know"
    ]
    assert notes.done == notes.total
    plain = {name.replace("_minus_control", "").replace("_minus_answer_anchored", "") for name in table["metric"]}
    assert plain <= set(metrics.METRICS)
    assert {"delta_p", "flip", "p_correct", "correct", "dont_know", "anchored"} == set(scores["metric"])
    assert set(scores["metric"]) <= set(metrics.METRICS)
    assert table.filter(pl.struct(KEY).is_duplicated()).is_empty()
    assert one(table, metric="answer_correct", layer=None)["value"] == pytest.approx(world.right.mean())
    assert one(table, metric="dont_know_rate", layer=None)["value"] == pytest.approx(1 - world.right.mean())


@pytest.mark.parametrize("name", ["clean", *PLANTED])
def test_the_same_folds_probe_reads_clean_and_changed_states(planted, expected, name):
    scores = planted[4].filter(metric="p_correct", condition=name).sort("layer", "row")
    found = scores["value"].to_numpy().reshape(LAYERS, -1)
    np.testing.assert_allclose(found, expit(expected.logits[name]), atol=2e-3)
    assert scores["sample_id"].to_list()[: planted[1].n] == [stores.sample_id(text) for text in planted[1].texts]


@pytest.mark.parametrize("name", list(PLANTED))
def test_delta_p_is_that_of_the_clean_prediction(planted, expected, name):
    table, scores = planted[3:]
    clean, changed = expit(expected.logits["clean"]), expit(expected.logits[name])
    said = clean > 0.5
    delta = 100 * (np.where(said, changed, 1 - changed) - np.where(said, clean, 1 - clean))
    flip = said != (changed > 0.5)
    own = scores.filter(condition=name).sort("layer", "row")
    np.testing.assert_allclose(own.filter(metric="delta_p")["value"].to_numpy().reshape(LAYERS, -1), delta, atol=0.3)
    for layer in range(LAYERS):
        place = {"condition": name, "layer": layer, "group": "all", "other_layer": None}
        assert one(table, **place, metric="delta_p")["value"] == pytest.approx(delta[layer].mean(), abs=0.05)
        assert one(table, **place, metric="flip_rate")["value"] == pytest.approx(
            flip[layer].mean(), abs=2 / len(said[0])
        )
    assert one(table, condition=name, layer=0, group="all", metric="flip_rate", other_layer=None)["n"] == planted[1].n


def test_the_difference_from_the_control_is_paired(planted):
    """The interval is that of a bootstrap, over subjects, of the difference of each sample."""
    _, world, _, table, scores = planted
    rng = np.random.default_rng(1)
    groups = np.arange(world.n) // 3
    for metric, stored in (("delta_p", "delta_p"), ("flip_rate", "flip")):
        values = [
            scores.filter(metric=stored, condition=name, layer=2).sort("row")["value"].to_numpy()
            for name in (KNOCKOUT, CONTROL)
        ]
        difference = values[0] - values[1]
        sums = np.bincount(groups, difference)
        means = [sums[rng.integers(len(sums), size=len(sums))].sum() / world.n for _ in range(3000)]
        found = one(table, condition=KNOCKOUT, layer=2, metric=f"{metric}_minus_control")
        assert found["value"] == pytest.approx(difference.mean())
        width = np.subtract(*np.percentile(means, [97.5, 2.5]))
        assert found["high"] - found["low"] == pytest.approx(width, rel=0.35)
        assert (found["group"], found["n"]) == ("all", world.n)


def test_the_planted_knockout_is_found_and_the_control_is_not(planted):
    table = planted[3]
    for condition, sign in ((KNOCKOUT, 1), ("patch-subject", 1)):
        flips = one(table, condition=condition, layer=2, metric="flip_rate_minus_control")
        assert sign * flips["low"] > 0.1
        assert one(table, condition=condition, layer=2, metric="delta_p_minus_control")["high"] < -10
        # Nothing has acted on the embedding.
        assert one(table, condition=condition, layer=0, metric="flip_rate_minus_control")["value"] == 0
    assert table.filter(pl.col("metric").str.ends_with("_minus_control"), condition="answer-only").is_empty()


@pytest.mark.parametrize("planted_effect", [0.0, 1.5])
def test_paired_intervals_cover_the_true_difference(planted_effect: float):
    """Of 200 worlds with the same effect, about 95 in 100 intervals hold the difference that many samples give."""

    def drawn(rng: np.random.Generator, n: int) -> list[np.ndarray]:
        clean = rng.normal(0, 3, n)
        shared = rng.standard_normal(n)
        control = clean + shared + rng.standard_normal(n)
        return [clean, control - planted_effect * np.sign(clean), control + 0.3 * rng.standard_normal(n)]

    def difference(clean: np.ndarray, changed: np.ndarray, control: np.ndarray, count: int, seed: int):
        effects = [delta_p_effect.effect(clean[None], values[None]).delta_p for values in (changed, control)]
        resamples = bootstrap.draw(np.arange(len(clean)), count, seed)
        return delta_p_effect.minus(*(delta_p_effect.averages(values, resamples)[0] for values in effects))

    truth = difference(*drawn(np.random.default_rng(99), 400_000), 1, 0).value
    found = [difference(*drawn(np.random.default_rng(seed), 150), 200, seed) for seed in range(200)]
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert 0.89 < covered < 0.99
    if planted_effect:
        assert truth < -5
        assert np.mean([one.high < 0 for one in found]) > 0.9


def test_noise_alone_draws_the_figure_of_the_study(tmp_path: Path):
    """The flipped fall far, the others do not, and nothing depends on the question."""
    store, _ = build(tmp_path / "store", BLIND)
    table = stores.frame(delta_p(store).results)

    def value(group: str, condition: str = KNOCKOUT) -> float:
        return one(table, condition=condition, layer=2, group=group, metric="delta_p", other_layer=2)["value"]

    assert value("question_anchored") < -60
    assert abs(value("answer_anchored")) < 3
    # So does the control, and so does the simulated floor, which is fitted to the flip rate alone.
    assert value("question_anchored", CONTROL) < -60
    assert value("noise_question_anchored") == pytest.approx(value("question_anchored"), abs=5)
    assert abs(value("noise_answer_anchored")) < 3
    difference = one(table, condition=KNOCKOUT, layer=2, metric="delta_p_minus_control")
    assert difference["low"] <= 0 <= difference["high"]


def test_groups_are_those_of_one_layer_or_of_each(planted, expected):
    store, _, _, table, scores = planted
    said = {name: expected.logits[name] > 0 for name in expected.logits}
    at = int(np.argmax([one(table, condition="clean", layer=k, metric="auc")["value"] for k in range(LAYERS)]))
    assert at == 2
    each = stores.frame(delta_p(store, anchor="per-layer", noise=0, conditions=[KNOCKOUT, CONTROL]).results)
    delta = scores.filter(metric="delta_p", condition=KNOCKOUT).sort("layer", "row")["value"].to_numpy()
    delta = delta.reshape(LAYERS, -1)
    for layer in range(LAYERS):
        for frame, made in ((table, at), (each, layer)):
            flipped = said[KNOCKOUT][made] != said["clean"][made]
            for group, member in (("question_anchored", flipped), ("answer_anchored", ~flipped)):
                where = {"condition": KNOCKOUT, "layer": layer, "group": group, "metric": "delta_p"}
                if member.any():
                    found = one(frame, **where, other_layer=made)
                    assert found["value"] == pytest.approx(delta[layer, member].mean(), abs=0.3)
                    assert found["n"] == pytest.approx(member.sum(), abs=2)
    stated = stores.frame(delta_p(store, anchor_layer=3, noise=0, conditions=[KNOCKOUT, CONTROL]).results)
    assert set(stated.filter(group="question_anchored")["other_layer"]) == {3}
    groups = scores.filter(metric="anchored", condition=KNOCKOUT).sort("row")
    assert groups["layer"].unique().to_list() == [2]
    assert (groups["text"] == "question_anchored").to_list() == (groups["value"] == 1).to_list()
    assert (groups["value"].to_numpy() == (said[KNOCKOUT][2] != said["clean"][2])).mean() > 0.99


def test_other_changes_are_grouped_by_the_knockout_and_the_control_by_itself(planted):
    table, scores = planted[3:]

    def by_row(metric: str, condition: str) -> np.ndarray:
        return scores.filter(metric=metric, condition=condition, layer=2).sort("row")["value"].to_numpy()

    for condition, leader in (("answer-only", KNOCKOUT), ("patch-subject", KNOCKOUT), (CONTROL, CONTROL)):
        flipped = by_row("flip", leader) == 1
        for metric, stored in (("delta_p", "delta_p"), ("flip_rate", "flip")):
            found = one(table, condition=condition, layer=2, group="question_anchored", metric=metric)
            assert found["value"] == pytest.approx(by_row(stored, condition)[flipped].mean())
            assert found["n"] == flipped.sum()


def test_the_probe_is_ranked_within_kinds_and_its_calibration_is_told(planted, expected):
    _, world, _, table, _ = planted
    folds, y = expected.folds.assignment, world.right.astype(int)
    for layer in range(LAYERS):
        p = expit(expected.logits["clean"][layer])
        areas = [roc_auc_score(y[folds == fold], p[folds == fold]) for fold in range(5)]
        within = [
            np.mean(
                [
                    roc_auc_score(y[rows], p[rows])
                    for fold in range(5)
                    if (rows := (world.kind == kind) & (folds == fold)).any()
                ]
            )
            for kind in range(3)
        ]
        bins = np.minimum((p * 10).astype(int), 9)
        ece = sum((bins == at).mean() * abs(p[bins == at].mean() - y[bins == at].mean()) for at in set(bins))
        for metric, value in (
            ("auc", np.mean(areas)),
            ("auc_within_kind", np.mean(within)),
            ("brier", np.mean((p - y) ** 2)),
            ("ece", ece),
        ):
            found = one(table, condition="clean", layer=layer, metric=metric, group=None)
            assert found["value"] == pytest.approx(value, abs=0.02 if metric == "ece" else 4e-3), metric
            assert found["low"] < found["value"] < found["high"] or metric == "ece"
            assert found["n"] == world.n


def test_a_probe_that_knows_only_the_kind_ranks_nothing_within_it(tmp_path: Path):
    """Layer 1 says nothing but which kind a question is of; kinds differ in how many answers are right."""
    world = World(seed=3)
    world.right = np.random.default_rng(5).random(world.n) < np.array([0.05, 0.5, 0.95])[world.kind]
    world.states[1] = np.random.default_rng(6).standard_normal(world.states[1].shape) * 0.3
    world.states[1][:, :3] += 4 * np.eye(3)[world.kind]
    store, _ = build(tmp_path / "store", {KNOCKOUT: worlds.shaken(0.1, 1)}, world=world)
    table = stores.frame(delta_p(store, layers=[1], noise=0).results)
    assert one(table, condition="clean", metric="auc")["value"] > 0.8
    within = one(table, condition="clean", metric="auc_within_kind")
    assert within["low"] < 0.5 < within["high"]


def test_no_sample_is_scored_by_a_probe_that_saw_its_prompt_or_subject(tmp_path: Path):
    """Labels are coin tosses, each sample's state is its own mark, and samples of a subject are the same: a probe that saw
    one of them would know the others."""
    rng = np.random.default_rng(0)
    world = World(seed=1)
    coins = np.repeat(rng.random(world.n // 3) < 0.5, 3)
    world.right = coins
    marks = np.repeat(rng.standard_normal((world.n // 3, worlds.WIDTH)), 3, axis=0)
    world.states = np.array([marks * 3] * LAYERS, dtype=np.float32)
    store, _ = build(tmp_path / "store", {KNOCKOUT: worlds.shaken(0.1, 1)}, world=world)
    tied = stores.frame(delta_p(store, layers=[1], noise=0).results)
    assert one(tied, condition="clean", metric="auc")["value"] < 0.62
    # Doubled rows share a prompt, and so a fold, with no column that ties them.
    double = World(seed=2, n=120)
    double.right = rng.random(120) < 0.5
    run = stores.new_run(tmp_path / "twice", width=worlds.WIDTH, layers=LAYERS)
    texts = [text for text in double.texts for _ in range(2)]
    frame = pl.DataFrame({"correct": np.repeat(double.right, 2)})
    stores.put_rows(run, frame, texts, ["correct:boolean"])
    for condition in ("clean", KNOCKOUT):
        made = {("resid", POOLING): {1: double.states[1]}}
        stores.put_states(run, double.texts, made, condition=condition)
    outcome = delta_p(stores.opened(tmp_path / "twice"), noise=0)
    pairs = stores.frame(outcome.sample_scores).filter(metric="p_correct", condition="clean").sort("row")["value"]
    assert pairs.to_numpy()[::2].tolist() == pairs.to_numpy()[1::2].tolist()
    assert one(stores.frame(outcome.results), condition="clean", metric="auc")["value"] < 0.65


def test_samples_without_a_control_are_left_out_of_the_comparison_alone(tmp_path: Path):
    store, world = build(tmp_path / "store", lacking={CONTROL: 30})
    notes = stores.Notes()
    found = delta_p(store, notes, layers=[2], noise=0, conditions=[KNOCKOUT, CONTROL])
    table, scores = stores.frame(found.results), stores.frame(found.sample_scores)
    for condition, metric in ((KNOCKOUT, "delta_p"), (CONTROL, "delta_p"), (KNOCKOUT, "delta_p_minus_control")):
        assert one(table, condition=condition, metric=metric, group="all")["n"] == world.n - 30
    assert one(table, metric="left_out")["value"] == 30
    assert one(table, condition="clean", metric="auc")["n"] == world.n
    assert len(scores.filter(metric="delta_p", condition=KNOCKOUT)) == world.n
    gone = "30 of 330 rows without states under knockout-subject and control-subject, left out of it"
    assert any(gone in note for note in notes.notes)
    own = [one(table, condition=name, metric="flip_rate", group="all")["value"] for name in (KNOCKOUT, CONTROL)]
    assert one(table, metric="flip_rate_minus_control")["value"] == pytest.approx(own[0] - own[1])


def test_a_knockout_that_leaves_nothing_to_draw_a_control_from(tmp_path: Path):
    store, world = build(
        tmp_path / "store", {"knockout-prompt": PLANTED[KNOCKOUT], "answer-only": PLANTED["answer-only"]}
    )
    notes = stores.Notes()
    table = stores.frame(delta_p(store, notes, layers=[2], noise=0).results)
    assert one(table, condition="knockout-prompt", group="all", metric="delta_p")["n"] == world.n
    assert table.filter(pl.col("metric").str.ends_with("_minus_control")).is_empty()
    assert any("knockout-prompt has no control stored" in note for note in notes.notes)


def test_the_knowledge_boundary(planted):
    _, world, _, table, scores = planted
    flipped = scores.filter(metric="flip", condition=KNOCKOUT, layer=2).sort("row")["value"].to_numpy() == 1
    popularity = np.log1p(np.arange(world.n) % 40)
    for metric, values in (
        ("answer_correct", world.right),
        ("dont_know_rate", ~world.right),
        ("log_popularity", popularity),
    ):
        groups = {"all": flipped | True, "question_anchored": flipped, "answer_anchored": ~flipped}
        for group, member in groups.items():
            found = one(table, condition=KNOCKOUT, group=group, metric=metric)
            assert found["value"] == pytest.approx(values[member].mean())
            assert (found["n"], found["layer"]) == (member.sum(), 2)
        found = one(table, condition=KNOCKOUT, group="question_anchored", metric=f"{metric}_minus_answer_anchored")
        assert found["value"] == pytest.approx(values[flipped].mean() - values[~flipped].mean())
        assert found["low"] < found["value"] < found["high"]


def test_the_knowledge_boundary_of_noise_is_what_its_flips_are_expected_to_know(tmp_path: Path):
    """Beside it the closed form: a sample with log-odds m flips with probability Φ(−|m| / sd)."""
    store, world = build(tmp_path / "store", BLIND)
    found = delta_p(store, layers=[2], noise=2000, bootstrap=0)
    table, scores = stores.frame(found.results), stores.frame(found.sample_scores)
    p = scores.filter(metric="p_correct", condition="clean", layer=2).sort("row")["value"].to_numpy()
    margin, rate = np.abs(logit(p)), one(table, condition=KNOCKOUT, group="all", metric="flip_rate")["value"]
    sizes = np.geomspace(1e-3, 1e3, 20_001)
    sd = sizes[np.argmin([abs(norm.cdf(-margin / size).mean() - rate) for size in sizes])]
    flips = norm.cdf(-margin / sd)
    popularity = np.log1p(np.arange(world.n) % 40)
    for metric, values in (("answer_correct", world.right.astype(float)), ("log_popularity", popularity)):
        flipped, kept = np.average(values, weights=flips), np.average(values, weights=1 - flips)
        for group, expected in (("noise_question_anchored", flipped), ("noise_answer_anchored", kept)):
            drawn = one(table, condition=KNOCKOUT, group=group, metric=metric)
            assert drawn["value"] == pytest.approx(expected, rel=0.01)
            assert drawn["low"] < drawn["value"] < drawn["high"]
        where = {"condition": KNOCKOUT, "group": "noise_question_anchored"}
        difference = one(table, metric=f"{metric}_minus_answer_anchored", **where)
        assert difference["value"] == pytest.approx(flipped - kept, abs=0.02 * abs(flipped))
        assert difference["n"] == world.n


def test_small_groups_are_named_and_marked(tmp_path: Path):
    """A knockout that hardly changes anything flips few; a label of another name is called by it."""
    frame = World().frame().rename({"correct": "ok"})
    gentle = {KNOCKOUT: worlds.shaken(0.15, 1), CONTROL: worlds.shaken(0.15, 2)}
    store, world = build(tmp_path / "store", gentle, frame=frame, labels=("ok:boolean", "dont_know:boolean"))
    notes = stores.Notes()
    table = stores.frame(delta_p(store, notes, layers=[2], labels=["ok"], noise=5).results)
    n = one(table, condition=KNOCKOUT, group="question_anchored", metric="delta_p")["n"]
    assert 0 < n < 30
    said = f"{KNOCKOUT}: only {n} samples are question-anchored: below 30 their average says little"
    assert any(said in note for note in notes.notes)
    assert not any("are answer-anchored" in note for note in notes.notes)
    assert any(f"{int(world.right.sum())} of {world.n} rows have the label ok true" in note for note in notes.notes)
    shown = summarise(table)
    assert f" n={n}!" in shown
    assert f" n={world.n - n}" in shown
    assert f" n={world.n - n}!" not in shown
    assert "flipped: question-anchored; ! fewer than 30 samples" in shown
    assert "question_anchored" not in shown
    assert "noise_question" not in shown


def test_a_mended_list_of_answers_changes_the_labels_without_a_forward_pass(tmp_path: Path):
    world = World()
    wrong = [
        [f"answer {index}", "I don't know"] if index % 10 == 0 else [f"answer {index}"] for index in range(world.n)
    ]
    frame = world.frame().with_columns(answers=pl.Series(wrong))
    store, _ = build(tmp_path / "store", frame=frame)
    mended = (np.arange(world.n) % 10 == 0) | world.right
    found = stores.frame(delta_p(store, layers=[2], noise=0).sample_scores)
    assert found.filter(metric="correct").sort("row")["value"].to_list() == mended.astype(float).tolist()
    # The stored label is what counts where no accepted answers are kept.
    stored, _ = build(tmp_path / "without", frame=frame.drop("answers"))
    found = stores.frame(delta_p(stored, layers=[2], noise=0).sample_scores)
    assert found.filter(metric="correct").sort("row")["value"].to_list() == world.right.astype(float).tolist()


def test_another_label_and_a_column_of_accepted_answers(tmp_path: Path):
    world = World()
    frame = world.frame().rename({"answers": "golden"}).with_columns(correct=pl.lit(True), easy=world.right)
    store, _ = build(tmp_path / "store", frame=frame, labels=("correct:boolean", "easy:boolean"))
    for settings in ({"labels": ["easy"]}, {"answers": ["golden"]}):
        found = stores.frame(delta_p(store, layers=[2], noise=0, **settings).sample_scores)
        assert found.filter(metric="correct").sort("row")["value"].to_list() == world.right.astype(float).tolist()
    with pytest.raises(AnalysisError, match="correct: all 330 answers are right, so there is nothing to tell apart"):
        delta_p(store)
    with pytest.raises(AnalysisError, match="no column 'gold': did you mean 'golden'"):
        delta_p(store, answers=["gold"])


def test_the_cache_is_of_every_condition(tmp_path: Path):
    store, world = build(tmp_path / "store", {name: PLANTED[name] for name in (KNOCKOUT, CONTROL)})
    spec = DeltaPSpec(bootstrap=10, noise=5, repeats=0, layers=[2])
    first, second = (study.analyze(store.path, [spec], Progress())[0] for _ in range(2))
    assert (first.cached, second.cached) == (False, True)
    stores.put_states(world.run, world.texts, {("resid", POOLING): {2: world.states[2]}}, condition="answer-only")
    (third,) = study.analyze(store.path, [spec], Progress())
    assert not third.cached
    assert "answer-only" in set(stores.frame(third.results)["condition"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"conditions": ["knockout-subjekt"]},
            "no condition 'knockout-subjekt' is stored.*did you mean 'knockout-subject'",
        ),
        ({"conditions": [CONTROL]}, "control-subject is the control of a condition that is not named"),
        ({"labels": ["truth"]}, "no boolean label 'truth' .it has correct:boolean, dont_know:boolean"),
        ({"anchor_layer": 9}, "anchor_layer 9 is not probed: the layers are 0, 1, 2, 3"),
        ({"pooling": ["mean@prompt"]}, "has no pooling 'mean@prompt'"),
        ({"layers": [7]}, "has no layer 7 of last@exact_answer"),
        ({"kind_by": "sort"}, "kind_by: data set toy has no column 'sort'"),
        ({"min_class": 200}, "157 right and 173 wrong answers are too few for a probe, 200 of each are needed"),
    ],
)
def test_bad_input_is_named(planted, settings, message):
    with pytest.raises(AnalysisError, match=message):
        delta_p(planted[0], **settings)


def test_nothing_to_compare_with(tmp_path: Path):
    store, world = build(tmp_path / "store", {})
    with pytest.raises(AnalysisError, match="no run holds a knockout-…, patch-… or answer-only pass to compare"):
        delta_p(store)
    other, _ = build(
        tmp_path / "number", frame=world.frame().with_columns(correct=1.5).drop("answers"), labels=("correct:number",)
    )
    with pytest.raises(AnalysisError, match="label 'correct' of toy is a number: ΔP needs a boolean one"):
        delta_p(other)


def test_the_command(tmp_path: Path, call):
    path = tmp_path / "store"
    build(path, {name: PLANTED[name] for name in (KNOCKOUT, CONTROL)})
    few = ("--layers", 2, "--bootstrap", 20, "--noise", 5, "--repeats", 0, "--store", path)
    found = call("analyze", "delta_p", "--anchor", "per-layer", "--anchor-layer", 2, "--kind-by", "kind", *few)
    assert found.code == 0
    assert f"toy, toy, correct at {POOLING}: {KNOCKOUT} [95 % interval]" in found.out
    assert "answers are right" in found.err
    listed = call("sql", "--query", "delta_p", "--format", "csv", "--store", path)
    assert [line.split(",")[5] for line in listed.out.splitlines()[1:]] == [CONTROL, KNOCKOUT]
    for wrong, said in (
        (("--anchor", "sometimes"), "'sometimes' is not one of fixed, per-layer"),
        (("--conditions", "patch-x"), "no condition 'patch-x'"),
    ):
        refused = call("analyze", "delta_p", *wrong, *few)
        assert (refused.code, refused.out) == (2, "")
        assert said in refused.err
        assert len(refused.err.splitlines()) == 1
