"""Every stored vector and lens number of every architecture, against one prompt at a time by hand."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModel

from layercache.extract.run import extract
from layercache.progress import Progress
from layercache.recipe import ExtractSpec, ModelSpec
from layercache.store import reader

from .conftest import CONFIGS, TEXTS, make_data
from .reference import Passed, Reference, close, log_softmax

ROWS = [{"title": "" if i == 2 else f"No. {i}", "text": text} for i, text in enumerate(TEXTS)]
TEMPLATE = "Title: {title}\n{text} End"
POOLINGS = ["mean", "max", "first", "last", "mean@text", "max@title", "first@text", "last@title"]
KINDS = sorted(CONFIGS)


@dataclass
class Extracted:
    store: reader.Store
    run: Any
    passed: dict[str, tuple[Passed, dict[str, tuple[int, int]]]]
    reference: Reference


def run_kind(folder: Path, kind: str, store: Path, **settings: Any) -> Extracted:
    data = make_data(ROWS, TEMPLATE)
    spec = ExtractSpec(**({"pooling": POOLINGS, "lens": ["last", "last@text"], "batch_tokens": 256} | settings))
    summary = extract(ModelSpec(model=str(folder)), data, spec, store, Progress())
    assert summary.forward_passes == summary.samples == len(TEXTS)
    opened = reader.open(store)
    reference = Reference(folder, kind, attn=None if spec.attn == "auto" else spec.attn)
    ids = opened.rows(summary.run, "data")["sample_id"].to_list()
    passed = {one: (reference.run(prompt.text), prompt.spans) for one, prompt in zip(ids, data.prompts, strict=True)}
    return Extracted(opened, opened.run(summary.run), passed, reference)


@pytest.fixture(scope="module")
def extracted(models_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Extracted]:
    done: dict[str, Extracted] = {}

    def get(kind: str) -> Extracted:
        if kind not in done:
            done[kind] = run_kind(models_of(kind), kind, tmp_path_factory.mktemp(f"store-{kind}") / "s")
        return done[kind]

    return get


def pooled(states: np.ndarray, passed: Passed, spans: dict[str, tuple[int, int]], pooling: str) -> np.ndarray | None:
    """Pool [n, d] by hand; None where the span has no token."""
    how, _, span = pooling.partition("@")
    span = span or "prompt"
    if span == "prompt":
        tokens = list(range(len(passed.ids)))
        plain = [i for i in tokens if not passed.special[i]]
    elif span in spans:
        tokens = passed.within(*spans[span])
        plain = [i for i in tokens if not passed.special[i]]
    else:
        return None
    if how == "mean":
        return states[plain].astype(np.float64).mean(0)
    if how == "max":
        return states[plain].max(0)
    return states[tokens[0] if how == "first" else tokens[-1]]


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_the_models_own(kind: str, extracted: Callable[[str], Extracted]) -> None:
    got = extracted(kind)
    layers = len(next(iter(got.passed.values()))[0].states)
    assert [one.layer for one in got.run.layers] == list(range(layers))
    for pooling in POOLINGS:
        for layer in range(layers):
            matrix = got.store.matrix(got.run, layer, pooling)
            expected = {
                one: value
                for one, (passed, spans) in got.passed.items()
                if (value := pooled(passed.states[layer], passed, spans, pooling)) is not None
            }
            assert list(matrix.sample_ids) == sorted(expected)
            close(matrix.values, np.stack([expected[one] for one in sorted(expected)]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_lens_at_the_last_layer_is_the_models_own_output(kind: str, extracted: Callable[[str], Extracted]) -> None:
    got = extracted(kind)
    frame = pl.from_arrow(got.store.sql("SELECT * FROM lens WHERE layer = ?", [got.run.final_layer]))
    assert isinstance(frame, pl.DataFrame)
    assert len(frame) == 2 * len(TEXTS)
    for row in frame.iter_rows(named=True):
        passed, spans = got.passed[row["sample_id"]]
        tokens = range(len(passed.ids)) if row["position_name"] == "last@prompt" else passed.within(*spans["text"])
        assert row["position"] == tokens[-1]
        logp = log_softmax(passed.logits[row["position"]])
        np.testing.assert_allclose(row["entropy"], -(np.exp(logp) * logp).sum(), rtol=1e-4, atol=1e-4)
        assert row["top_ids"][0] == int(logp.argmax())
        np.testing.assert_allclose(row["top_logprobs"], np.sort(logp)[::-1][:10], rtol=1e-4, atol=1e-4)
        assert row["kl_to_final"] == pytest.approx(0, abs=1e-5)
        assert row["js_to_final"] == pytest.approx(0, abs=1e-5)
        assert row["agrees_with_final"]
        if row["position"] + 1 < len(passed.ids):
            assert row["target_id"] == passed.ids[row["position"] + 1]
            assert row["target_logprob"] == pytest.approx(logp[row["target_id"]], rel=1e-4, abs=1e-4)
        else:
            assert row["target_id"] is row["target_logprob"] is row["target_rank"] is None


def test_headless_encoder_has_states_and_no_final_norm(models_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = models_of("bert", headless=True)
    data = make_data()
    summary = extract(ModelSpec(model=str(folder)), data, ExtractSpec(lens=[]), tmp_path / "s", Progress())
    store = reader.open(tmp_path / "s")
    reference = Reference(folder, "bert", auto=AutoModel)
    assert [one.layer for one in store.run(summary.run).layers] == [0, 1, 2, 3]
    ids = store.rows(summary.run, "data")["sample_id"].to_list()
    for layer in range(4):
        matrix = store.matrix(summary.run, layer, "last")
        own = {one: reference.run(text).states[layer, -1] for one, text in zip(ids, TEXTS, strict=True)}
        close(matrix.values, np.stack([own[one] for one in matrix.sample_ids]))


def test_opt_with_a_projection_after_its_norm(models_of: Callable[..., Path], tmp_path: Path) -> None:
    got = run_kind(models_of("opt", word_embed_proj_dim=16), "opt", tmp_path / "s")
    frame = got.store.sql(
        "SELECT sample_id, position, entropy FROM lens WHERE layer = 3 AND position_name = 'last@prompt'"
    )
    for row in frame.to_pylist():
        logp = log_softmax(got.passed[row["sample_id"]][0].logits[-1])
        assert row["entropy"] == pytest.approx(-(np.exp(logp) * logp).sum(), abs=1e-4)
    # Its state after the norm is as wide as the others; what transformers calls the last state is not.
    assert got.store.matrix(got.run, 4).values.shape == (len(TEXTS), 32)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side_and_kernel_change_nothing(
    side: str, attn: str, models_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from layercache.extract import model

    load = model.load_tokenizer

    def sided(checkpoint: Any) -> Any:
        tokenizer = load(checkpoint)
        tokenizer.padding_side = side
        return tokenizer

    monkeypatch.setattr(model, "load_tokenizer", sided)
    got = run_kind(models_of("gpt2"), "gpt2", tmp_path / "s", attn=attn)
    assert got.run.spec["attention"] == attn
    for layer in range(5):
        for pooling in ("mean", "last", "first"):
            matrix = got.store.matrix(got.run, layer, pooling)
            expected = [
                pooled(got.passed[one][0].states[layer], *got.passed[one], pooling) for one in matrix.sample_ids
            ]
            close(matrix.values, np.stack(expected))


@pytest.mark.parametrize("bits", [7, 23])
def test_precision_is_what_was_asked(bits: int, models_of: Callable[..., Path], tmp_path: Path) -> None:
    got = run_kind(models_of("llama"), "llama", tmp_path / "s", precision=bits)
    matrix = got.store.matrix(got.run, 3, "last")
    expected = np.stack([got.passed[one][0].states[3, -1] for one in matrix.sample_ids])
    close(matrix.values, expected, bits=bits)
    kept = matrix.values.view(np.uint32) & np.uint32((1 << (23 - bits)) - 1)
    assert not kept.any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "bert"])
def test_16_bit_models_run(kind: str, dtype: str, models_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = models_of(kind)
    summary = extract(ModelSpec(model=str(folder)), make_data(), ExtractSpec(dtype=dtype), tmp_path / "s", Progress())
    store = reader.open(tmp_path / "s")
    run = store.run(summary.run)
    assert run.spec["dtype"] == dtype
    reference = Reference(folder, kind)
    ids = store.rows(run, "data")["sample_id"].to_list()
    matrix = store.matrix(run, 2, "mean")
    own = {one: reference.run(text) for one, text in zip(ids, TEXTS, strict=True)}
    expected = np.stack([own[one].states[2][~own[one].special].mean(0) for one in matrix.sample_ids])
    difference = np.linalg.norm(matrix.values - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert difference.max() < (0.1 if dtype == "bfloat16" else 0.02)
    assert torch.isfinite(torch.from_numpy(matrix.values)).all()
