"""The parts of ΔP alone: pairing of conditions, the noise floor, the uses of the groups, what the model says itself."""

from pathlib import Path

import delta_stores as worlds
import numpy as np
import polars as pl
import probe_stores as stores
import pytest
from delta_stores import LAYERS, World, build, delta_p, one
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from layercache.analyze import delta_p_detect, delta_p_noise, logistic
from layercache.analyze import folds as folding
from layercache.analyze.delta_p_conditions import Change, changes
from layercache.analyze.scaling import one_thread_each
from layercache.errors import AnalysisError
from layercache.store import writer
from layercache.store.layout import Run

STORED = [
    "clean",
    "answer-only",
    "augment-1",
    "control-patch-subject-0011aabb",
    "control-subject",
    "control-subject-layers-2-4",
    "knockout-deadbeef",
    "knockout-subject",
    "knockout-subject-layers-2-4",
    "patch-subject",
]


def test_changes_are_paired_with_their_controls():
    assert changes(STORED, None) == [
        Change("knockout-deadbeef", None, "knockout-deadbeef"),
        Change("knockout-subject", "control-subject", "knockout-subject"),
        Change("knockout-subject-layers-2-4", "control-subject-layers-2-4", "knockout-subject-layers-2-4"),
        Change("answer-only", None, "knockout-deadbeef"),
        Change("patch-subject", "control-patch-subject-0011aabb", "knockout-subject"),
    ]
    asked = ["patch-subject", "augment-1"]
    assert changes(STORED, asked) == [
        Change("augment-1", None, "augment-1"),
        Change("patch-subject", "control-patch-subject-0011aabb", "patch-subject"),
    ]


def test_of_several_controls_one_is_named():
    stored = ["clean", "knockout-subject", "control-subject-00000001", "control-subject-00000002"]
    with pytest.raises(AnalysisError, match="has several controls, control-subject-00000001, control-subject-00000002"):
        changes(stored, None)
    assert changes(stored, ["knockout-subject", "control-subject-00000002"])[0].control == "control-subject-00000002"
    exact = changes([*stored, "control-subject"], None)
    assert exact[0].control == "control-subject"


@pytest.mark.parametrize("rate", [0.02, 0.2, 0.45])
def test_noise_flips_as_many_as_the_condition(rate: float):
    clean = np.random.default_rng(0).normal(0.5, 3, 4000)
    size = delta_p_noise.scale(clean, rate)
    noisy = clean + size * np.random.default_rng(1).standard_normal((200, 4000))
    assert ((noisy > 0) != (clean > 0)).mean() == pytest.approx(rate, abs=2e-3)
    assert delta_p_noise.scale(clean, 0.0) == 0
    assert delta_p_noise.scale(clean, 0.9) == delta_p_noise.scale(clean, delta_p_noise.CEILING)


def test_the_floor_is_that_of_a_plain_simulation():
    """Fixed groups: noise of a layer is as strongly tied to that of the layer of the groups as the condition's own is."""
    rng = np.random.default_rng(0)
    clean = rng.normal(0, 3, (3, 3000))
    shared = rng.standard_normal(3000)
    change = np.array([2 * shared, 1.5 * shared + rng.standard_normal(3000), 2 * rng.standard_normal(3000)])
    own = delta_p_noise.Change(clean, change)
    found = list(delta_p_noise.floors(own, None, 0, 60, 3))
    rates = ((clean + change > 0) != (clean > 0)).mean(axis=1)
    ties = [1.0, 1.5 / np.hypot(1.5, 1), 0.0]
    z = rng.standard_normal((60, 3000))
    sizes = [delta_p_noise.scale(clean[k], rates[k]) for k in range(3)]
    group = (clean[0] + sizes[0] * z > 0) != (clean[0] > 0)
    for k in range(3):
        noisy = clean[k] + sizes[k] * (ties[k] * z + np.sqrt(1 - ties[k] ** 2) * rng.standard_normal(z.shape))
        sign = np.where(clean[k] > 0, 1, -1)
        delta = 100 * (expit(sign * noisy) - expit(sign * clean[k]))
        for at, expected in enumerate((delta.mean(), delta[group].mean(), delta[~group].mean())):
            assert found[k].delta_p[at].mean() == pytest.approx(expected, abs=1.5)
        assert found[k].flip_rate[0].mean() == pytest.approx(rates[k], abs=0.01)
    assert found[0].flip_rate[1].mean() == 1
    assert found[2].delta_p[1].mean() == pytest.approx(found[2].delta_p[2].mean(), abs=2)


def test_groups_of_another_conditions_noise_are_independent_of_its_own():
    rng = np.random.default_rng(0)
    clean = rng.normal(0, 3, (1, 2000))
    own, other = (delta_p_noise.Change(clean, size * rng.standard_normal((1, 2000))) for size in (2, 3))
    (floor,) = delta_p_noise.floors(own, other, 0, 50, 1)
    # Samples near the threshold flip under both, and no more than that.
    assert 0.1 < floor.flip_rate[1].mean() < 0.6
    assert floor.size[1].mean() == pytest.approx(2000 * other.flip_rate[0], rel=0.1)


def _detected(seed: int = 0):
    """Two kinds of samples that say the truth along opposite directions, and a third direction that tells them apart."""
    rng = np.random.default_rng(seed)
    n = 500
    right, depends = rng.random(n) < 0.5, rng.random(n) < 0.5
    x = rng.standard_normal((n, 8))
    x[:, 0] += 1.2 * np.where(right, 1, -1)
    x[:, 1] += 1.5 * np.where(right, 1, -1) * np.where(depends, 1, -1)
    x[:, 2] += 2.5 * np.where(depends, 1, -1)
    changed = x.copy()
    changed[depends, 0] -= 2.4 * np.where(right, 1, -1)[depends]
    folds = folding.make(
        [str(i) for i in range(n)], label="correct", count=5, seed=seed, classes=right.astype(np.int64)
    )
    return x.astype(np.float32), changed.astype(np.float32), right.astype(np.int64), depends, folds


def test_the_gate_and_the_experts_are_fitted_on_the_other_folds_alone():
    x, changed, y, _, folds = _detected()
    with one_thread_each() as pool:
        fitted = delta_p_detect.fit_folds(x, changed, y, folds, pool)
        pathway = delta_p_detect.foretell(x, fitted, folds, pool)
        mixed = delta_p_detect.mix(x, y, fitted, folds, pool)
        plain = delta_p_detect.plain(x, fitted, folds)
    fold = 3
    held = folds.assignment == fold
    assert np.isnan(fitted[fold].flipped[held]).all()
    # The same by hand: cross-fit inside the fold's fitted part, then the gate, then an expert a group.
    flipped = np.full(len(y), np.nan)
    penalty = logistic.fit_chosen(x[~held], y[~held], 2, folds.inner[~held])[1]
    for part in range(folding.INNER_FOLDS):
        own, others = ~held & (folds.inner == part), ~held & (folds.inner != part)
        scaler = StandardScaler().fit(x[others])
        model = LogisticRegression(C=penalty, tol=1e-6).fit(scaler.transform(x[others]), y[others])
        flipped[own] = model.predict(scaler.transform(x[own])) != model.predict(scaler.transform(changed[own]))
    np.testing.assert_array_equal(fitted[fold].flipped[~held], flipped[~held])
    gate = expit(
        logistic.fit_chosen(x[~held], flipped[~held].astype(int), 2, folds.inner[~held])[0].scores(x[held])[:, 0]
    )
    experts = []
    for group in (1, 0):
        own = flipped == group
        experts.append(expit(logistic.fit_chosen(x[own], y[own], 2, folds.inner[own])[0].scores(x[held])[:, 0]))
    np.testing.assert_allclose(expit(pathway[held]), gate, atol=1e-6)
    np.testing.assert_allclose(mixed[held], gate * experts[0] + (1 - gate) * experts[1], atol=1e-6)
    # What held-out labels say must not matter: turned round, nothing that scores the fold changes.
    other = y.copy()
    other[held] = 1 - other[held]
    with one_thread_each() as pool:
        again = delta_p_detect.fit_folds(x, changed, other, folds, pool)
        np.testing.assert_array_equal(delta_p_detect.mix(x, other, again, folds, pool)[held], mixed[held])
        np.testing.assert_array_equal(delta_p_detect.foretell(x, again, folds, pool)[held], pathway[held])
    assert roc_auc_score(y, mixed) > roc_auc_score(y, plain) + 0.03


def test_nobody_flips_and_the_mixture_is_the_plain_probe():
    x, _, y, _, folds = _detected()
    with one_thread_each() as pool:
        fitted = delta_p_detect.fit_folds(x, x, y, folds, pool)
        mixed = delta_p_detect.mix(x, y, fitted, folds, pool)
    plain = expit(delta_p_detect.plain(x, fitted, folds))
    # The gate gives the empty group next to nothing; the other's expert has seen all samples.
    np.testing.assert_allclose(mixed, plain, atol=1e-3)


def put_generations(world: World, logprobs: list[list[float]], reasons: list[str]) -> None:
    shard = writer.Shard(world.run, {"generation:0123abcd": [LAYERS - 1]}, provenance={})
    prompts = [f"prompt {index}" for index in range(world.n)]
    shard.add("samples", stores.samples(prompts, {}))
    shard.add(
        "generations",
        {
            "sample_id": [stores.sample_id(text) for text in prompts],
            "output": ["generation:0123abcd"] * world.n,
            "layer": [LAYERS - 1] * world.n,
            "text": ["answer"] * world.n,
            "token_ids": [[1] * len(line) for line in logprobs],
            "token_logprobs": logprobs,
            "token_entropies": [[0.5] * len(line) for line in logprobs],
            "finish_reason": reasons,
        },
    )
    shard.publish()


def put_choices(run: Run, texts: list[str], p_true: np.ndarray) -> None:
    output = "lens:last@prompt:top3:choices-0123abcd"
    n = len(texts)
    shard = writer.Shard(run, {output: [LAYERS - 1]}, provenance={})
    shard.add("samples", stores.samples(texts, {}))
    scored = [
        [
            {"choice": " True", "first_logprob": float(np.log(p / 2)), "logprob": float(np.log(p / 2))},
            {"choice": " false", "first_logprob": -9.0, "logprob": float(np.log((1 - p) / 2))},
        ]
        for p in p_true
    ]
    plain = {name: [0.5] * n for name in ("entropy", "logsumexp", "kl_to_final", "js_to_final")}
    shard.add(
        "lens",
        {
            **plain,
            "sample_id": [stores.sample_id(text) for text in texts],
            "output": [output] * n,
            "layer": [LAYERS - 1] * n,
            "position": [3] * n,
            "position_name": ["last@prompt"] * n,
            "top_ids": [[1]] * n,
            "top_tokens": [["a"]] * n,
            "top_logprobs": [[-1.0]] * n,
            "agrees_with_final": [True] * n,
            "choices": scored,
        },
    )
    shard.publish()


def test_detection_beside_what_the_model_says_itself(tmp_path: Path):
    world = World(seed=4)
    frame = world.frame().drop("answers")
    build(tmp_path / "store", world=world, frame=frame)
    rng = np.random.default_rng(8)
    p_true = expit(rng.normal(0, 1, world.n) + np.where(world.right, 0.7, -0.7))
    lengths = rng.integers(1, 5, world.n)
    logprobs = [list(-rng.gamma(1 if right else 2, 1, length)) for right, length in zip(world.right, lengths)]
    reasons = ["length" if index % 2 else "eos" for index in range(world.n)]
    # What ended a text is no part of it, however improbable.
    written = [line if reason == "length" else [*line, -50.0] for line, reason in zip(logprobs, reasons)]
    put_generations(world, written, reasons)
    put_choices(world.run, world.texts, p_true)
    table = stores.frame(delta_p(stores.opened(tmp_path / "store"), repeats=3, noise=0).results)
    detected = table.filter(pl.col("metric").str.starts_with("detection_auc"))
    systems = {"probe", "mixture", "p_true", "mean_logprob", "min_logprob"}
    assert set(detected["group"]) == systems
    assert set(detected["n"]) == {world.n, 3}
    folds = folding.make(
        world.texts,
        label="correct",
        count=5,
        seed=0,
        group_by=frame["subject"].to_list(),
        classes=world.right.astype(np.int64),
    )
    deals = [folds, *(folding.again(folds, world.texts, world.right.astype(np.int64), seed) for seed in (1, 2))]
    for system, score in (
        ("p_true", p_true),
        ("mean_logprob", np.array([np.mean(line) for line in logprobs])),
        ("min_logprob", np.array([np.min(line) for line in logprobs])),
    ):
        each = [
            np.mean([roc_auc_score(world.right[rows], score[rows]) for rows in (how.assignment == f for f in range(5))])
            for how in deals
        ]
        found = one(detected, group=system, metric="detection_auc")
        assert (found["value"], found["layer"]) == (pytest.approx(np.mean(each), abs=1e-6), None)
        assert one(detected, group=system, metric="detection_auc_sd")["value"] == pytest.approx(np.std(each, ddof=1))
    probe, mixture = (one(detected, group=name, metric="detection_auc") for name in ("probe", "mixture"))
    assert probe["layer"] == mixture["layer"] == 2
    assert probe["value"] > 0.95
    difference = one(detected, group="p_true", metric="detection_auc_minus_probe")
    assert difference["high"] < 0
    assert detected.filter(group="probe", metric="detection_auc_minus_probe").is_empty()


def test_p_true_of_prompts_that_ask_for_it(tmp_path: Path):
    """Another run of the model holds prompts that ask, row for row, whether the answer is true."""
    world = World(seed=4)
    build(tmp_path / "store", world=world, frame=world.frame().drop("answers"))
    asking = writer.open_run(
        tmp_path / "store",
        {"model": "toy", "template": "asks"},
        model="toy",
        layers=[(layer, f"block.{layer}") for layer in range(LAYERS)],
        width=worlds.WIDTH,
        final_layer=LAYERS - 1,
    )
    texts = [f"Is this true? {text}" for text in world.texts]
    order = np.random.default_rng(0).permutation(world.n)
    p_true = np.where(world.right, 0.8, 0.3)
    stores.put_rows(asking, pl.DataFrame({"x": range(world.n)}), texts, [], data="asked")
    put_choices(asking, [texts[at] for at in order], p_true[order])
    store = stores.opened(tmp_path / "store")
    table = stores.frame(delta_p(store, repeats=1, noise=0, layers=[2], data=["toy"], p_true="asked").results)
    assert one(table, group="p_true", metric="detection_auc")["value"] == 1
    notes = stores.Notes()
    with pytest.raises(AnalysisError, match="p_true: no run of toy has data set 'asks': did you mean 'asked'"):
        delta_p(store, notes, repeats=1, data=["toy"], p_true="asks")
    assert notes.total == 0, "it is said before any fit"


def test_pathway_prediction_stands_beside_the_margin(tmp_path: Path):
    """Which samples depend on the question can be read at layer 1, and nowhere else."""
    world = World(seed=2)
    world.states[1, :, 0] += 3 * np.where(world.dependent, 1, -1)
    store, _ = build(
        tmp_path / "store", {"knockout-subject": worlds.cut(1, 2.0)}, world=world, frame=world.frame().drop("answers")
    )
    table = stores.frame(delta_p(store, repeats=1, noise=0, anchor_layer=2).results)
    told = {layer: one(table, group="pathway", layer=layer, metric="auc") for layer in range(LAYERS)}
    assert told[1]["low"] > 0.8
    assert abs(told[0]["value"] - 0.5) < 0.1
    assert set(table.filter(group="pathway")["other_layer"]) == {2}
    margin = one(table, group="pathway_margin", metric="auc")
    assert (margin["layer"], margin["n"]) == (2, world.n)
    assert table.filter(metric="detection_auc_sd").is_empty()


def test_dealing_again_keeps_groups_together():
    groups = [f"subject {index // 4}" for index in range(100)]
    texts = [str(index) for index in range(100)]
    classes = (np.arange(100) % 3 == 0).astype(np.int64)
    folds = folding.make(texts, label="x", count=5, seed=0, group_by=groups, classes=classes)
    again = folding.again(folds, texts, classes, 1)
    assert not np.array_equal(again.assignment, folds.assignment)
    for start in range(0, 100, 4):
        assert len(set(again.assignment[start : start + 4])) == 1
    split = ["train"] * 60 + ["test"] * 40
    honoured = folding.make(texts, label="x", count=5, seed=0, group_by=groups, split=split, classes=classes)
    assert np.array_equal(folding.again(honoured, texts, classes, 1).assignment, honoured.assignment)
