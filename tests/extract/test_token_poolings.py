"""Single tokens, means with special tokens, means without sinks and token statistics, against NumPy by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from layercache.errors import AnalysisError, DataError, RecipeError
from layercache.extract import budgets, publish, run, token_metrics
from layercache.extract.pooling import ordinary
from layercache.extract.run import extract
from layercache.outputs import parse_pooling, parse_statistic, sink_cutoff, with_cutoff
from layercache.progress import Progress
from layercache.recipe import ExtractSpec, ModelSpec, ProbeSpec, validate
from layercache.store import reader, verify
from layercache.token_statistics import STATISTICS, Statistic

from .conftest import TEXTS, make_data
from .reference import Passed, Reference, close
from .test_states import ROWS, TEMPLATE, Extracted, run_kind

KINDS = ["llama", "gpt2", "gemma2", "opt", "bert"]
POOLINGS = ["token", "token@title", "mean+special", "mean+special@text", "mean-sinks1.1", "mean-sinks1.1@text"]
SETTINGS: dict[str, Any] = {"pooling": POOLINGS, "stats": ["norm", "max_norm", "sinks1.1"], "lens": [], "precision": 23}


@pytest.fixture(scope="module", params=["right", "left"])
def extracted(
    request: pytest.FixtureRequest, models_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Extracted]:
    done: dict[str, Extracted] = {}

    def get(kind: str) -> Extracted:
        if kind not in done:
            with pytest.MonkeyPatch.context() as patch:
                pad_on(patch, request.param)
                done[kind] = run_kind(models_of(kind), kind, tmp_path_factory.mktemp(kind) / "s", **SETTINGS)
        return done[kind]

    return get


def pad_on(patch: pytest.MonkeyPatch, side: str) -> None:
    from layercache.extract import model

    load = model.load_tokenizer

    def sided(*args: Any, **kwargs: Any) -> Any:
        tokenizer = load(*args, **kwargs)
        tokenizer.padding_side = side
        return tokenizer

    patch.setattr(model, "load_tokenizer", sided)


def tokens_of(passed: Passed, spans: dict[str, tuple[int, int]], span: str) -> list[int]:
    if span == "prompt":
        return list(range(len(passed.ids)))
    return passed.within(*spans[span]) if span in spans else []


def small(states: np.ndarray, passed: Passed, cutoff: float) -> np.ndarray:
    """Tokens that are no sinks, bool [n]."""
    norms = np.linalg.norm(states.astype(np.float64), axis=1)
    plain = np.sort(norms[~passed.special])
    return norms <= cutoff * plain[(len(plain) - 1) // 2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("span", ["prompt", "title"])
def test_every_token_is_a_row(kind: str, span: str, extracted: Callable[[str], Extracted]) -> None:
    got = extracted(kind)
    for layer in (one.layer for one in got.run.layers):
        matrix = got.store.matrix(got.run, layer, f"token@{span}")
        expected = [
            (one, position, passed.states[layer, position])
            for one, (passed, spans) in sorted(got.passed.items())
            for position in tokens_of(passed, spans, span)
        ]
        assert matrix.sample_ids.tolist() == [one for one, _, _ in expected]
        assert matrix.positions is not None
        assert matrix.positions.tolist() == [position for _, position, _ in expected]
        close(matrix.values, np.stack([state for _, _, state in expected]), bits=23)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("span", ["prompt", "text"])
def test_a_mean_with_special_tokens(kind: str, span: str, extracted: Callable[[str], Extracted]) -> None:
    got = extracted(kind)
    for layer in (one.layer for one in got.run.layers):
        matrix = got.store.matrix(got.run, layer, f"mean+special@{span}")
        own = {
            one: passed.states[layer, tokens_of(passed, spans, span)].mean(0)
            for one, (passed, spans) in got.passed.items()
        }
        assert matrix.positions is None
        close(matrix.values, np.stack([own[one] for one in matrix.sample_ids]), bits=23)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("span", ["prompt", "text"])
def test_a_mean_without_sinks(kind: str, span: str, extracted: Callable[[str], Extracted]) -> None:
    got = extracted(kind)
    query = "SELECT sample_id, layer, vector, n_excluded FROM hidden WHERE pooling = ?"
    rows = got.store.sql(query, [f"mean-sinks1.1@{span}"]).to_pylist()
    gone = 0
    for passed, spans in got.passed.values():
        for states in passed.states:
            plain = [i for i in tokens_of(passed, spans, span) if not passed.special[i]]
            gone += not small(states, passed, 1.1)[plain].any()
    # A span of nothing but sinks has no mean.
    assert len(rows) == len(TEXTS) * len(got.run.layers) - gone
    for row in rows:
        passed, spans = got.passed[row["sample_id"]]
        states = passed.states[row["layer"]]
        plain = [i for i in tokens_of(passed, spans, span) if not passed.special[i]]
        kept = [i for i in plain if small(states, passed, 1.1)[i]]
        assert row["n_excluded"] == len(plain) - len(kept)
        close(np.array([row["vector"]]), states[kept].mean(0)[None], bits=23)
    assert sum(row["n_excluded"] for row in rows) > 0
    others = got.store.sql("SELECT count(n_excluded) AS n FROM hidden WHERE NOT starts_with(pooling, 'mean-sinks')")
    assert others.to_pylist() == [{"n": 0}]


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_over_tokens(kind: str, extracted: Callable[[str], Extracted]) -> None:
    got = extracted(kind)
    rows = got.store.sql("SELECT * FROM token_stats").to_pylist()
    assert len(rows) == 3 * len(TEXTS) * len(got.run.layers)
    for row in rows:
        passed, _ = got.passed[row["sample_id"]]
        states = passed.states[row["layer"]]
        norms = np.linalg.norm(states.astype(np.float64), axis=1)[~passed.special]
        left_out = ~small(states, passed, 1.1)[~passed.special]
        expected = {"norm": norms.mean(), "max_norm": norms.max(), "sinks1.1": left_out.sum()}[row["metric"]]
        assert row["value"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_store_is_whole(kind: str, extracted: Callable[[str], Extracted]) -> None:
    got = extracted(kind)
    assert verify.verify(got.store.path, deep=True) == []
    samples = got.store.samples(got.run)
    gaps = {(gap["output"], gap["reason"]) for gaps in samples["absent"].to_list() for gap in gaps}
    gaps.discard(("hidden:resid:mean-sinks1.1@text", "only attention sinks"))
    assert gaps == {("hidden:resid:token@title", "empty span")}


@pytest.mark.parametrize("site", ["attn_out", "mlp_out"])
def test_sublayers_have_them_too(site: str, models_of: Callable[..., Path], tmp_path: Path) -> None:
    got = run_kind(models_of("llama"), "llama", tmp_path / "s", **{**SETTINGS, "sites": [site], "stats": []})
    for layer in (1, 2, 3):
        tokens = got.store.matrix(got.run, layer, "token", site=site)
        means = got.store.matrix(got.run, layer, "mean-sinks1.1", site=site)
        for one, mean in zip(means.sample_ids, means.values, strict=True):
            states, passed = tokens.values[tokens.sample_ids == one], got.passed[str(one)][0]
            kept = small(states, passed, 1.1) & ~passed.special
            close(mean[None], states[kept].mean(0)[None], bits=23)


def test_the_default_cutoff_finds_a_massive_token(models_of: Callable[..., Path], tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(models_of("llama"), tmp_path / "model"))
    reference = Reference(folder, "llama")
    (first,) = {reference.tokenizer(text)["input_ids"][1] for text in ("Short one.",)}
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][first] *= 100
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    rows = [{"head": "S", "text": "hort one."}, {"head": "A", "text": " film"}]
    spec = ExtractSpec(
        pooling=["mean-sinks", "mean-sinks@head", "mean"], stats=["sinks"], lens=[], layers=[0, 1], precision=23
    )
    data = make_data(rows, "{head}{text}")
    summary = extract(ModelSpec(model=str(folder)), data, spec, tmp_path / "s", Progress())
    store = reader.open(tmp_path / "s")
    ids = store.rows(summary.run, "data")["sample_id"].to_list()
    passed = Reference(folder, "llama").run("Short one.")
    assert passed.ids[1] == first
    found = store.sql(
        "SELECT n_excluded, vector FROM hidden WHERE sample_id = ? AND layer = 1 AND pooling = ?",
        [ids[0], "mean-sinks@prompt"],
    )
    (row,) = found.to_pylist()
    assert row["n_excluded"] == 1
    close(np.array([row["vector"]]), passed.states[1, 2:].mean(0)[None], bits=23)
    counts = store.sql("SELECT sample_id, value FROM token_stats WHERE metric = 'sinks' AND layer = 1").to_pylist()
    assert {one["sample_id"]: one["value"] for one in counts} == {ids[0]: 1.0, ids[1]: 0.0}
    # A span of nothing but sinks has no mean, and says so.
    assert store.matrix(summary.run, 1, "mean-sinks@head").sample_ids.tolist() == [ids[1]]
    assert summary.absent == {"hidden:resid:mean-sinks@head": {"only attention sinks": 1}}
    assert verify.verify(tmp_path / "s", deep=True) == []
    assert extract(ModelSpec(model=str(folder)), data, spec, tmp_path / "s", Progress()).forward_passes == 0


def test_of_two_tokens_the_lower_norm_is_the_median() -> None:
    states = torch.tensor([[[1000.0], [1.0], [9.0]], [[3.0], [2.0], [4.0]]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert ordinary(states, mask, 5.0)[mask].tolist() == [False, True, True, True, True]
    assert ordinary(states, mask, 1.0)[1].tolist() == [True, True, False]


def test_a_statistic_without_a_value_is_a_row_less_with_its_reason(
    models_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_five(tokens: token_metrics.Tokens, _statistic: Statistic) -> torch.Tensor:
        return torch.where(tokens.counts >= 5, tokens.states.double().sum((1, 2)), token_metrics.UNDEFINED)

    monkeypatch.setitem(token_metrics.METRICS, "norm", token_metrics.Metric(of_five, "fewer than five tokens"))
    spec = ExtractSpec(pooling=["mean"], lens=[], stats=["norm"])
    summary = extract(ModelSpec(model=str(models_of("llama"))), make_data(), spec, tmp_path / "s", Progress())
    store = reader.open(tmp_path / "s")
    samples = store.samples(summary.run)
    short = set(samples.filter(pl.col("n_tokens") < 6)["sample_id"])
    assert 0 < len(short) < len(TEXTS)
    assert summary.absent == {"stats:norm": {"fewer than five tokens": len(short)}}
    rows = store.sql("SELECT DISTINCT sample_id FROM token_stats").to_pylist()
    assert {row["sample_id"] for row in rows} == set(samples["sample_id"]) - short
    assert verify.verify(tmp_path / "s", deep=True) == []


def test_every_statistic_has_a_function() -> None:
    assert set(token_metrics.METRICS) == set(STATISTICS)


def test_precision_layers_and_resume(models_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = str(models_of("gpt2"))

    def go(**settings: Any) -> Any:
        spec = ExtractSpec(**{"lens": [], "pooling": ["token"], "stats": ["norm"], "precision": 7, **settings})
        return extract(ModelSpec(model=folder), make_data(), spec, tmp_path / "s", Progress())

    assert go(layers=[1]).forward_passes == len(TEXTS)
    summary = go(layers=[1, 3])
    assert summary.forward_passes == len(TEXTS)
    assert go(layers=[3, 1]).forward_passes == 0
    assert go(layers=[1, 3], pooling=["token", "token@text"], stats=["norm", "sinks"]).forward_passes == len(TEXTS)
    store = reader.open(tmp_path / "s")
    kept = store.matrix(summary.run, 3, "token").values.view(np.uint32) & np.uint32((1 << 16) - 1)
    assert not kept.any()
    assert verify.verify(tmp_path / "s", deep=True) == []
    assert {(one.pooling, tuple(one.layers)) for one in store.features(summary.run)} == {
        ("token@prompt", (1, 3)),
        ("token@text", (1, 3)),
    }


def test_sizes_are_foreseen(models_of: Callable[..., Path], tmp_path: Path) -> None:
    # Equal beginnings have equal states, which take next to no room.
    rows = [{"text": f"{i}{j} {text}"} for i in range(20) for j, text in enumerate(TEXTS)]
    spec = ExtractSpec(pooling=["token"], layers=[1, 2, 3], lens=[], stats=list(STATISTICS))
    args = (ModelSpec(model=str(models_of("llama"))), make_data(rows), spec, tmp_path / "s", Progress())
    planned = extract(*args, dry_run=True)
    done = extract(*args)
    (shard,) = reader.open(tmp_path / "s").shards(done.run)
    assert planned.estimate["hidden"] == pytest.approx(shard.files["hidden.parquet"].bytes, rel=0.15)
    assert planned.estimate["token_stats"] == pytest.approx(shard.files["token_stats.parquet"].bytes, rel=0.08)


def test_batches_of_single_tokens_are_no_larger_than_a_shard(
    models_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 5 layers of 32 float32 are 640 bytes a token.
    monkeypatch.setattr(budgets, "SHARD_BYTES", 64 * 640)
    spec = ExtractSpec(pooling=["token"], lens=[])
    summary = extract(
        ModelSpec(model=str(models_of("llama"))), make_data(), spec, tmp_path / "s", Progress(), shard_bytes=64 * 640
    )
    assert summary.batches > 1
    assert summary.padded_tokens / summary.batches <= 64
    shards = reader.open(tmp_path / "s").shards(summary.run)
    assert 2 <= len(shards) <= summary.batches
    assert publish.SHARD_BYTES == 256 * 2**20


def test_chat_prompts_keep_the_templates_tokens(models_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = models_of("llama")
    spec = ExtractSpec(pooling=["token", "mean+special"], lens=[], layers=[2], precision=23)
    summary = extract(ModelSpec(model=str(folder)), make_data(chat=True), spec, tmp_path / "s", Progress())
    store = reader.open(tmp_path / "s")
    reference = Reference(folder, "llama")
    texts = {row["sample_id"]: row["prompt"] for row in store.samples(summary.run).to_dicts()}
    own = {one: reference.run(text, add_special_tokens=False).states[2] for one, text in texts.items()}
    tokens, means = (store.matrix(summary.run, 2, how) for how in ("token", "mean+special"))
    close(tokens.values, np.concatenate([own[one] for one in sorted(own)]), bits=23)
    close(means.values, np.stack([own[one].mean(0) for one in sorted(own)]), bits=23)


def test_probes_leave_single_tokens_out(models_of: Callable[..., Path], tmp_path: Path) -> None:
    from layercache.analyze import select

    data, model = make_data(ROWS, TEMPLATE), ModelSpec(model=str(models_of("llama")))
    extract(model, data, ExtractSpec(pooling=["token"], lens=[]), tmp_path / "s", Progress())
    store = reader.open(tmp_path / "s")
    run_held = store.runs()[0]
    with pytest.raises(AnalysisError, match="holds only states of single tokens"):
        select.features(store, run_held, ProbeSpec())
    extract(model, data, ExtractSpec(pooling=["mean"], lens=[]), tmp_path / "s", Progress())
    assert [one.pooling for one in select.features(store, run_held, ProbeSpec())] == ["mean@prompt"]
    with pytest.raises(AnalysisError, match="token@prompt is one row a token"):
        select.features(store, run_held, ProbeSpec(pooling=["token", "mean"]))


def test_names_of_cutoffs() -> None:
    spec = ExtractSpec(
        pooling=["mean-sinks", "mean-sinks5@text", "mean-sinks8"], stats=["sinks", "norm"], sink_cutoff=6
    )
    assert [str(output) for output in spec.outputs()] == [
        "hidden:resid:mean-sinks6@prompt",
        "hidden:resid:mean-sinks@text",
        "hidden:resid:mean-sinks8@prompt",
        "lens:last@prompt:top10",
        "stats:sinks6",
        "stats:norm",
    ]
    assert [str(one) for one in ExtractSpec(pooling=["mean-sinks"], lens=[]).outputs()] == [
        "hidden:resid:mean-sinks@prompt"
    ]
    assert (sink_cutoff("mean-sinks"), sink_cutoff("sinks2.5"), sink_cutoff("mean")) == (5.0, 2.5, None)
    assert with_cutoff("mean-sinks6.0", 5.0) == "mean-sinks6"
    for text in ("mean-sinks0.5", "mean-sinksx", "sinks", "tokens", "mean+"):
        with pytest.raises(RecipeError):
            parse_pooling(text)
    for text in ("sinks0.5", "mean-sinks", "curved", ""):
        with pytest.raises(RecipeError):
            parse_statistic(text)
    with pytest.raises(RecipeError, match="sink_cutoff"):
        validate(ExtractSpec, {"sink_cutoff": 0.5}, "extract")


def test_a_span_that_no_prompt_has(models_of: Callable[..., Path], tmp_path: Path) -> None:
    spec = ExtractSpec(pooling=["token@nothing"])
    with pytest.raises(DataError, match="no field 'nothing'"):
        run.extract(ModelSpec(model=str(models_of("llama"))), make_data(), spec, tmp_path / "s", Progress())
