"""Every named query on a small store, its numbers against NumPy; and the files' headers."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from query_store import (
    CERTIFICATES,
    CHANGED,
    CHOICES,
    ENDS,
    GENRES,
    GOOD,
    GOOD_ACCURACY,
    IDS,
    LAYERS,
    LENS,
    LOST,
    PROMPTS,
    RATING_MSE,
    RATINGS,
    SCORED,
    SPLITS,
    TOKENS,
    WRITTEN,
    Held,
    N,
    build,
    delta_p,
    put_quality,
    put_scores,
    put_statistics,
)

from layercache import queries
from layercache.errors import QueryError
from layercache.store import reader, results, sql
from layercache.store.schema import RESULTS, arrow_schema


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    return build(tmp_path_factory.mktemp("queries") / "store")


def answer(held: Held, name: str, **params: Any) -> list[dict[str, Any]]:
    query = queries.load_query(name)
    return sql.query(reader.open(held.path), query.sql, query.bind(params)).to_pylist()


def test_runs(held: Held) -> None:
    (row,) = answer(held, "runs")
    size = sum(path.stat().st_size for path in held.run.path.glob("condition=*/shard=*/*.parquet"))
    assert row == {
        "run": held.run.id,
        "model": "toy",
        "data": "films",
        "rows": N,
        "samples": N,
        "conditions": "clean",
        "layers": LAYERS,
        "width": 8,
        "bytes": size,
    }


def test_entropy_by_layer(held: Held) -> None:
    rows = answer(held, "entropy_by_layer")
    assert [row["layer"] for row in rows] == list(range(LAYERS))
    assert [row["name"] for row in rows] == [f"block.{layer}" for layer in range(LAYERS)]
    for name, expected in (
        ("entropy", held.entropy.mean(1)),
        ("median_entropy", np.median(held.entropy, axis=1)),
        ("target_logprob", held.logprobs[:, :, 1].mean(1)),
        ("kl_to_final", held.entropy.mean(1) / 2),
        ("agreement", held.agrees.mean(1)),
    ):
        np.testing.assert_allclose([row[name] for row in rows], expected, rtol=1e-6)
    assert {row["n"] for row in rows} == {N}
    assert answer(held, "entropy_by_layer", run="other") == []
    assert answer(held, "entropy_by_layer", condition="knockout") == []


def test_best_layer(held: Held) -> None:
    good, rating = answer(held, "best_layer")
    # Of equal scores the lower layer is named; neither the shuffled probe nor a share of bootstraps is a score.
    assert (good["label"], good["layer"], good["value"], good["layer_0"]) == ("good", 1, 0.75, GOOD_ACCURACY[0])
    assert (good["ties"], rating["ties"]) == (GOOD_ACCURACY.count(0.75) - 1, 0)
    assert good["baseline"] is None
    best = int(np.argmin(RATING_MSE))
    assert (rating["layer"], rating["value"], rating["layer_0"]) == (best, RATING_MSE[best], RATING_MSE[0])
    assert (rating["low"], rating["high"], rating["n"]) == pytest.approx((1.4, 1.6, N))
    assert (rating["baseline"], rating["baseline_value"]) == ("tf-idf", 3.0)
    assert [row["label"] for row in answer(held, "best_layer", label="rating")] == ["rating"]


def test_probe_scores(held: Held) -> None:
    rows = answer(held, "probe_scores", label="rating", metric="mse")
    assert [(row["system"], row["layer"], row["value"]) for row in rows] == [
        *(("probe", layer, value) for layer, value in enumerate(RATING_MSE)),
        ("mean", None, 5.0),
        ("tf-idf", None, 3.0),
    ]


def test_top_tokens_are_those_of_the_first_sample_or_the_one_asked_for(held: Held) -> None:
    rows = answer(held, "top_tokens")
    assert {row["sample_id"] for row in rows} == {IDS[0]}
    assert [row["tokens"] for row in rows] == [[f"a{k}", f"b{k}", f"c{k}"] for k in range(LAYERS)]
    np.testing.assert_allclose([row["probabilities"] for row in rows], np.exp(held.logprobs[:, 0]), atol=6e-5)
    asked = answer(held, "top_tokens", sample=IDS[4], k="2")
    assert {row["sample_id"] for row in asked} == {IDS[4]}
    assert all(len(row["tokens"]) == len(row["probabilities"]) == 2 for row in asked)
    np.testing.assert_array_equal(np.float32([row["entropy"] for row in asked]), held.entropy[:, 4])
    assert {row["sample_id"] for row in answer(held, "top_tokens", prompt="FILM 3")} == {IDS[3]}


def test_cosine_neighbours(held: Held) -> None:
    rows = answer(held, "cosine_neighbours", sample=IDS[2])
    states = held.states[:, 2].astype(float)
    norms = np.linalg.norm(states, axis=1)
    np.testing.assert_allclose([row["norm"] for row in rows], norms, rtol=1e-12)
    cosines = (states[1:] * states[:-1]).sum(1) / norms[1:] / norms[:-1]
    np.testing.assert_allclose([row["cosine"] for row in rows[1:]], cosines, rtol=1e-9)
    distances = np.linalg.norm(states[1:] - states[:-1], axis=1)
    np.testing.assert_allclose([row["distance"] for row in rows[1:]], distances, rtol=1e-9)
    assert [(row["previous_layer"], row["layer"]) for row in rows] == [(None, 0), (0, 1), (1, 2), (2, 3)]
    assert rows[0]["cosine"] is None
    assert {row["sample_id"] for row in answer(held, "cosine_neighbours")} == {IDS[0]}


def test_norms_by_layer(held: Held) -> None:
    rows = answer(held, "norms_by_layer")
    norms = np.linalg.norm(held.states.astype(float), axis=2)
    for name, expected in (
        ("mean", norms.mean(1)),
        ("median", np.median(norms, axis=1)),
        ("lowest", norms.min(1)),
        ("highest", norms.max(1)),
    ):
        np.testing.assert_allclose([row[name] for row in rows], expected, rtol=1e-12)
    assert [row["n"] for row in rows] == [N] * LAYERS


def test_statistics_over_tokens_by_layer(tmp_path: Path) -> None:
    held = build(tmp_path / "store")
    assert answer(held, "stats_by_layer") == answer(held, "prompt_entropy") == []
    values = put_statistics(held)
    rows = answer(held, "stats_by_layer")
    assert [(row["metric"], row["layer"]) for row in rows] == [(name, k) for name in values for k in range(LAYERS)]
    assert [row["depth"] for row in rows[:LAYERS]] == pytest.approx([0, 100 / 3, 200 / 3, 100])
    assert [row["n"] for row in rows[:LAYERS]] == [N - 1, N, N, N]
    check_shares(rows, np.concatenate(list(values.values())))
    assert {row["metric"] for row in answer(held, "stats_by_layer", metric="prompt")} == set(values) - {"curvature"}
    assert answer(held, "stats_by_layer", condition="repeat-0.5") == []


@pytest.mark.parametrize("by", ["raw", "n", "d", "min"])
def test_prompt_entropy(by: str, tmp_path: Path) -> None:
    held = build(tmp_path / "store")
    values = put_statistics(held)
    # One token is special; the prompt begins after it and may end before the sample does.
    tokens = np.minimum(np.array(TOKENS), ENDS) - 1
    shares = [
        value / most_entropy(int(n) - name.endswith("-first"), 8)[by]
        for name in values
        if name != "curvature"
        for of_layer in values[name]
        for value, n in zip(of_layer, tokens, strict=True)
    ]
    check_shares(answer(held, "prompt_entropy", by=by), np.array(shares).reshape(-1, N))


def most_entropy(tokens: int, width: int) -> dict[str, float]:
    """Return what an entropy of so many tokens of a width is divided by, in nats."""
    return {"raw": 1.0, "n": math.log(tokens), "d": math.log(width), "min": math.log(min(tokens, width))}


def check_shares(rows: list[dict[str, Any]], values: np.ndarray) -> None:
    """Hold the summaries of rows against values [rows, samples], NaN where there is none."""
    np.testing.assert_allclose([row["mean"] for row in rows], np.nanmean(values, axis=1))
    for name, quantile in (("low_tenth", 0.1), ("median", 0.5), ("high_tenth", 0.9)):
        np.testing.assert_allclose([row[name] for row in rows], np.nanquantile(values, quantile, axis=1))


@pytest.mark.parametrize("score", ["logprob", "first_logprob"])
def test_choice_by_layer(score: str, tmp_path: Path) -> None:
    held = build(tmp_path / "store")
    assert answer(held, "choice_by_layer") == []
    put_scores(held)
    values = (held.whole if score == "logprob" else held.first).astype(float)
    known = ~np.isnan(values).any(axis=(0, 2))
    assert known.sum() == (N - 1 if score == "logprob" else N)
    best = values[:, known].argmax(axis=2)
    right = best == np.array([0 if value else 1 for value in GOOD])[known]
    rows = answer(held, "choice_by_layer", label="good", score=score)
    assert [(row["layer"], row["choice"]) for row in rows] == [(k, text) for k in range(LAYERS) for text in CHOICES]
    np.testing.assert_allclose([row["share"] for row in rows], np.eye(2)[best].mean(1).ravel())
    np.testing.assert_allclose([row["mean_score"] for row in rows], values[:, known].mean(1).ravel(), rtol=1e-6)
    np.testing.assert_allclose([row["accuracy"] for row in rows], right.mean(1).repeat(2))
    assert {(row["output"], row["data"], row["n"], row["labelled"]) for row in rows} == {
        (SCORED, "films", known.sum(), known.sum())
    }
    plain = answer(held, "choice_by_layer", score=score)
    assert [row["share"] for row in plain] == [row["share"] for row in rows]
    assert {(row["data"], row["accuracy"]) for row in plain} == {(None, None)}
    assert answer(held, "choice_by_layer", run="other") == []
    # The position is held by two outputs now, and shown once.
    assert [row["layer"] for row in answer(held, "top_tokens")] == list(range(LAYERS))


@pytest.mark.parametrize(("asked", "layer"), [({}, 2), ({"layer": "1"}, 1), ({"layer": 3}, 3)])
def test_confident_wrong(held: Held, asked: dict[str, Any], layer: int) -> None:
    rows = answer(held, "confident_wrong", **asked)
    wrong = np.flatnonzero(held.correct[layer] == 0)
    order = wrong[np.argsort(-held.probability[layer, wrong])]
    assert [row["row"] for row in rows] == order.tolist()
    assert {row["layer"] for row in rows} == {layer}
    np.testing.assert_array_equal([row["probability"] for row in rows], held.probability[layer, order])
    assert [row["truth"] for row in rows] == [str(GOOD[row]).lower() for row in order]
    assert [row["predicted"] for row in rows] == [str(not GOOD[row]).lower() for row in order]
    assert [row["prompt"] for row in rows] == [PROMPTS[row] for row in order]
    assert answer(held, "confident_wrong", limit=1, **asked) == rows[:1]


def test_largest_errors(held: Held) -> None:
    rows = answer(held, "largest_errors")
    rated = np.flatnonzero(~np.isnan(RATINGS))
    layer = int(np.argmin((held.error[:, rated] ** 2).mean(1)))
    order = rated[np.argsort(-np.abs(held.error[layer, rated]))]
    assert [(row["row"], row["layer"]) for row in rows] == [(row, layer) for row in order]
    np.testing.assert_allclose([row["truth"] for row in rows], RATINGS[order], rtol=1e-12)
    np.testing.assert_array_equal([row["error"] for row in rows], held.error[layer, order])


def test_prediction_depth(held: Held) -> None:
    depths = [max([-1, *np.flatnonzero(~held.agrees[:, sample])]) + 1 for sample in range(N)]
    expected = [(depth, depths.count(depth)) for depth in sorted(set(depths))]
    rows = answer(held, "prediction_depth")
    assert [(row["depth"], row["n"]) for row in rows] == expected
    assert {row["output"] for row in rows} == {LENS}
    np.testing.assert_allclose([row["share"] for row in rows], [n / N for _, n in expected])
    np.testing.assert_allclose([row["share_so_far"] for row in rows], np.cumsum([n for _, n in expected]) / N)


def test_class_balance(held: Held) -> None:
    rows = answer(held, "class_balance")
    found = {(row["label"], row["split"], row["value"]): (row["n"], row["share"]) for row in rows}
    assert len(found) == len(rows)
    expected = {}
    values: dict[str, list[list[str]]] = {
        "certificate": [[value] if value else [] for value in CERTIFICATES],
        "genres": GENRES,
        "good": [[str(value).lower()] for value in GOOD],
    }
    for label, given in values.items():
        for split in set(SPLITS):
            labelled = [value for value, where in zip(given, SPLITS, strict=True) if where == split and value]
            for name in {name for value in labelled for name in value}:
                n = sum(name in value for value in labelled)
                expected[label, split, name] = (n, n / len(labelled))
    assert found == expected
    assert {row["label"] for row in answer(held, "class_balance", label="good")} == {"good"}


def test_absent(held: Held) -> None:
    (row,) = answer(held, "absent")
    assert (row["output"], row["reason"], row["samples"]) == ("hidden:resid:mean@answer", "empty span", 2)


def test_prompt_lengths(held: Held) -> None:
    (row,) = answer(held, "prompt_lengths")
    lengths = [4, 5, 6, 7, 8, 30]
    assert (row["shortest"], row["median"], row["longest"], row["tokens"]) == (4, 6.5, 30, 60)
    assert row["percentile_95"] == pytest.approx(np.quantile(lengths, 0.95))
    assert (row["samples"], row["cut"]) == (N, 1)


def test_text_by_layer(held: Held) -> None:
    rows = answer(held, "text_by_layer", prompt="film 4")
    assert [(row["layer"], row["text"], row["tokens"], row["finish_reason"]) for row in rows] == [
        (layer, f"text {layer} of 4", 3, "eos") for layer in range(LAYERS)
    ]
    np.testing.assert_allclose([row["mean_logprob"] for row in rows], held.logprobs[:, 4].mean(axis=1), rtol=1e-6)
    assert {row["mean_entropy"] for row in rows} == {1.5}
    assert {row["sample_id"] for row in answer(held, "text_by_layer")} == {IDS[0]}
    assert answer(held, "text_by_layer", output="generation:ff") == []


def test_text_scores(held: Held) -> None:
    rows = answer(held, "text_scores", metric="bleu")
    assert [(row["layer"], row["value"], row["label"], row["output"], row["n"]) for row in rows] == [
        (layer, float(layer), "genres", WRITTEN, N) for layer in range(LAYERS)
    ]
    assert len(answer(held, "text_scores")) == 2 * LAYERS
    assert answer(held, "text_scores", output="generation:ff") == []


def test_delta_p(held: Held) -> None:
    rows = answer(held, "delta_p")
    assert [(row["condition"], row["layer"]) for row in rows] == [
        (name, k) for name in sorted(CHANGED) for k in range(2)
    ]
    for row in rows:
        own = ("delta_p", "flip_rate")
        for name in (*own, *(f"{name}_minus_control" for name in own)):
            found = [row[name], row[f"{name}_low"], row[f"{name}_high"]]
            if name in own or row["condition"] == CHANGED[0]:
                value = delta_p(row["condition"], "all", name, row["layer"])
                assert found == [value, value - 1, value + 2], name
            else:
                assert found == [None] * 3
        assert row["n"] == N - row["layer"]
    assert answer(held, "delta_p", condition="knockout") == rows[2:]
    assert answer(held, "delta_p", run="other") == []


def test_delta_p_by_outcome(held: Held) -> None:
    rows = answer(held, "delta_p_by_outcome", condition=CHANGED[0])
    assert [(row["layer"], row["grouped_at"]) for row in rows] == [(0, 1), (1, 1)]
    for row in rows:
        for group in ("question_anchored", "answer_anchored", "noise_question_anchored", "noise_answer_anchored"):
            assert row[group] == delta_p(CHANGED[0], group, "delta_p", row["layer"])
        assert (row["n_question"], row["n_answer"]) == (N - row["layer"], N - row["layer"])
    assert len(answer(held, "delta_p_by_outcome")) == 4


def test_delta_p_samples(held: Held) -> None:
    rows = answer(held, "delta_p_samples")
    order = np.argsort(LOST)
    assert [row["row"] for row in rows] == order.tolist()
    assert [row["delta_p"] for row in rows] == LOST[order].tolist()
    assert [row["anchored"] == "question_anchored" for row in rows] == (LOST[order] < -50).tolist()
    assert [row["correct"] for row in rows] == [GOOD[at] for at in order]
    assert [row["prompt"] for row in rows] == [PROMPTS[at] for at in order]
    assert answer(held, "delta_p_samples", limit=2) == rows[:2]
    assert answer(held, "delta_p_samples", condition="patch-") == []


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Held, dict[str, np.ndarray]]:
    """A store of which the quality of states is known, and its statistics by condition, [layers, samples]."""
    held = build(tmp_path_factory.mktemp("quality") / "store")
    return held, put_quality(held)


def test_quality_by_layer(measured: tuple[Held, dict[str, np.ndarray]]) -> None:
    held, _ = measured
    rows = answer(held, "quality_by_layer", metric="dataset_entropy")
    assert [(row["layer"], row["value"], row["n"]) for row in rows] == [(k, 2.0 + k, N) for k in range(LAYERS)]
    assert [row["depth"] for row in rows] == pytest.approx([0, 100 / 3, 200 / 3, 100])
    assert {(row["model"], row["pooling"], row["group"]) for row in rows} == {("toy", "mean@prompt", None)}
    views = answer(held, "quality_by_layer", condition="augment", metric="infonce")
    assert [row["group"] for row in views] == [None] * LAYERS + ["chance"] * LAYERS + ["shuffled"] * LAYERS
    assert len(answer(held, "quality_by_layer")) == len(rows) + 2 * len(views) - LAYERS
    assert answer(held, "quality_by_layer", run="other") == []


def test_entropy_by_perturbation(measured: tuple[Held, dict[str, np.ndarray]]) -> None:
    held, values = measured
    rows = answer(held, "entropy_by_perturbation")
    order = [("clean", 0), ("random", 0.25), ("random", 0.5), ("truncate", 4)]
    assert [(row["kind"], row["strength"]) for row in rows] == [one for one in order for _ in range(LAYERS)]
    assert [row["layer"] for row in rows] == [*range(LAYERS)] * len(order)
    for row in rows:
        own, clean = values[row["condition"]][row["layer"]], values["clean"][row["layer"]]
        known = ~np.isnan(own)
        assert row["n"] == known.sum()
        assert row["mean"] == pytest.approx(own[known].mean())
        assert row["median"] == pytest.approx(np.median(own[known]))
        assert (row["q10"], row["q90"]) == pytest.approx(tuple(np.quantile(own[known], [0.1, 0.9])))
        assert row["change"] == pytest.approx(np.mean((own - clean)[known]))
    assert {row["layer"] for row in answer(held, "entropy_by_perturbation", layer="2")} == {2}
    assert answer(held, "entropy_by_perturbation", metric="curvature") == []


def test_layer_likeness(measured: tuple[Held, dict[str, np.ndarray]]) -> None:
    held, _ = measured
    rows = answer(held, "layer_likeness")
    inside = [row for row in rows if row["other_run"] is None]
    assert [(row["layer"], row["other_layer"]) for row in inside] == [
        (a, b) for a in range(LAYERS) for b in range(LAYERS) if a != b
    ]
    assert all(row["value"] == 1 / (1 + abs(row["layer"] - row["other_layer"])) for row in inside)
    assert [(row["other_run"], row["layer"], row["other_layer"]) for row in rows if row["other_run"]] == [("b", 1, 3)]
    assert answer(held, "layer_likeness", metric="mutual_knn") == []


def test_augmentation_invariance(measured: tuple[Held, dict[str, np.ndarray]]) -> None:
    held, _ = measured
    rows = answer(held, "augmentation_invariance", metric="infonce")
    assert [(row["layer"], row["value"], row["shuffled"], row["chance"]) for row in rows] == [
        (k, 0.5 + k, 3.0 + k, 2.0) for k in range(LAYERS)
    ]
    assert [(row["low"], row["high"]) for row in rows] == [(0.4 + k, 0.6 + k) for k in range(LAYERS)]
    both = answer(held, "augmentation_invariance")
    assert {row["metric"] for row in both} == {"infonce", "lidar"}
    assert {row["chance"] for row in both if row["metric"] == "lidar"} == {None}


LISTED = [query.name for query in queries.list_queries()]


def test_layer_choice(tmp_path: Path) -> None:
    held = build(tmp_path / "store")
    key = {"run": held.run.id, "data": "films", "analysis": "compare", "label": "good"}
    numbers = [
        ("picked_share", "curvature max", [0.2, 0.6]),
        ("picked_share", "curvature min", [1.0, 0.9]),
        ("picked_share", "last layer", [0.5, 0.7]),
        ("spearman_over_layers", "curvature", [-0.9, -0.5]),
    ]
    rows = [
        {**key, "metric": m, "group": g, "pooling": str(k), "value": v}
        for m, g, vs in numbers
        for k, v in enumerate(vs)
    ]
    table = pa.Table.from_pylist(rows, schema=arrow_schema(RESULTS))
    assert results.save(held.path, "compare", {"kind": "compare"}, [], results.Outcome(table))
    found = answer(held, "layer_choice", data="films")
    assert [row["rule"] for row in found] == ["curvature min", "last layer", "curvature max"]
    assert [row["mean_share"] for row in found] == pytest.approx([0.95, 0.6, 0.4])
    assert [row["worst_share"] for row in found] == pytest.approx([0.9, 0.5, 0.2])
    assert [row["cases"] for row in found] == [2, 2, 2]
    assert [row["mean_spearman"] for row in found] == [pytest.approx(-0.7), None, pytest.approx(-0.7)]
    assert (found[0]["least_spearman"], found[0]["most_spearman"]) == (-0.9, -0.5)
    assert answer(held, "layer_choice", data="other") == []


def test_lens_by_token_is_of_lenses_of_every_token(held: Held) -> None:
    """This store has none; the numbers are tested where one is made, in tests/extract/test_lens.py."""
    assert answer(held, "lens_by_token") == []


def test_every_listed_query_has_a_test_above() -> None:
    text = Path(__file__).read_text()
    assert [name for name in LISTED if f'answer(held, "{name}"' not in text] == []


@pytest.mark.parametrize("name", LISTED)
def test_query_runs_fenced_and_in_an_empty_store(tmp_path: Path, held: Held, name: str) -> None:
    query = queries.load_query(name)
    assert query.title
    assert query.about
    assert all(param.about for param in query.params.values())
    assert set(re.findall(r"\$(\w+)", query.sql)) == set(query.params)
    assert sql.query(reader.open(tmp_path), query.sql, query.bind({})).num_rows == 0
    fenced = sql.run_query(held.path, query.sql, params=query.bind({}))
    assert fenced.equals(sql.query(reader.open(held.path), query.sql, query.bind({})))


def test_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.sql"
    path.write_text(
        "-- title: Mine\n-- about: one\n-- about: two\n-- none: no row\n-- param: a = 'it''s -- x' -- first\n"
        "-- param: b = -1.5\n-- param: c = null -- third\n-- a comment\nSELECT $a, $b, $c -- param: not one\n"
    )
    query = queries.read_query(path)
    assert (query.name, query.title, query.about, query.none) == ("mine", "Mine", "one two", "no row")
    assert query.params == {
        "a": queries.Param("a", "it's -- x", "first"),
        "b": queries.Param("b", -1.5, ""),
        "c": queries.Param("c", None, "third"),
    }
    assert query.bind({"a": "7", "b": "7", "c": "7"}) == {"a": "7", "b": 7, "c": 7}
    assert query.bind({"a": "null", "b": "null", "c": "x"}) == {"a": "null", "b": None, "c": "x"}
    for wrong in ("x", "true", "1; DROP VIEW runs", ""):
        with pytest.raises(QueryError, match="parameter b is a number, not"):
            query.bind({"b": wrong})
    with pytest.raises(QueryError, match="has no parameter d: it has a, b, c"):
        query.bind({"d": 1})


def test_bad_header_and_unknown_query_are_one_line_errors(tmp_path: Path) -> None:
    path = tmp_path / "bad.sql"
    path.write_text("-- param: nothing\nSELECT 1\n")
    with pytest.raises(QueryError, match=r"bad\.sql: write a parameter as"):
        queries.read_query(path)
    with pytest.raises(QueryError, match="cannot read"):
        queries.read_query(tmp_path / "none.sql")
    with pytest.raises(QueryError, match="did you mean 'best_layer'"):
        queries.load_query("best_layers")
    with pytest.raises(QueryError, match="there are absent, "):
        queries.load_query("../../etc/passwd")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8),
        ("-2", -2),
        ("0.5", 0.5),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("007", "007"),
        ("1e5", "1e5"),
        ("1234567890123456789012", "1234567890123456789012"),
        ("", ""),
        ("mean@prompt", "mean@prompt"),
    ],
)
def test_typed_value(text: str, value: object) -> None:
    assert queries.parse_value(text) == value
    assert type(queries.parse_value(text)) is type(value)
