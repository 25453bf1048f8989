"""The lens: numbers against NumPy on logits, targets, top tokens, and the norm applied once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from layercache import analyze, queries
from layercache.errors import AnalysisError, ModelError
from layercache.extract import lens as lens_module
from layercache.extract.run import extract
from layercache.progress import Progress
from layercache.recipe import EntropySpec, ExtractSpec, ModelSpec
from layercache.store import reader, sql

from .conftest import TEXTS, make_data
from .reference import Reference, log_softmax


def read_lens(folder: Path, store: Path, data: Any = None, **settings: Any) -> tuple[pl.DataFrame, dict[str, str]]:
    data = data or make_data()
    summary = extract(ModelSpec(model=str(folder)), data, ExtractSpec(**settings), store, Progress())
    opened = reader.open(store)
    ids = opened.rows(summary.run, "data")["sample_id"].to_list()
    frame = pl.from_arrow(opened.sql("SELECT * FROM lens ORDER BY sample_id, output, layer, position"))
    assert isinstance(frame, pl.DataFrame)
    return frame, {one: prompt.text for one, prompt in zip(ids, data.prompts, strict=True)}


@pytest.mark.parametrize("kind", ["llama", "gemma2", "cohere", "granite"])
def test_every_layer_is_what_the_models_own_tail_makes_of_it(
    kind: str, models_of: Callable[..., Path], tmp_path: Path
) -> None:
    frame, texts = read_lens(models_of(kind), tmp_path / "s", top_k=5)
    reference = Reference(models_of(kind), kind)
    for (sample_id,), rows in frame.group_by("sample_id"):
        passed = reference.run(texts[str(sample_id)])
        final = log_softmax(passed.logits[-1])
        assert rows["layer"].to_list() == [0, 1, 2, 3]
        for row in rows.iter_rows(named=True):
            with torch.no_grad():
                # The model's own tail: its norm, then its own forward code with the blocks' work replaced.
                normed = reference.norm(torch.from_numpy(passed.states[row["layer"], -1:]))
                logits = tail(reference.model, normed)[0].numpy()
            logp = log_softmax(logits)
            p, mixture = np.exp(logp), (np.exp(logp) + np.exp(final)) / 2
            js = 0.5 * (p * (logp - np.log(mixture))).sum()
            js += 0.5 * (np.exp(final) * (final - np.log(mixture))).sum()
            expected = {
                "entropy": -(p * logp).sum(),
                "logsumexp": np.log(np.exp(logits.astype(np.float64)).sum()),
                "kl_to_final": (p * (logp - final)).sum(),
                "js_to_final": js,
            }
            for name, value in expected.items():
                assert row[name] == pytest.approx(value, rel=1e-4, abs=2e-5), name
            assert row["top_ids"] == np.argsort(-logp, kind="stable")[:5].tolist()
            np.testing.assert_allclose(row["top_logprobs"], -np.sort(-logp)[:5], rtol=1e-4, atol=1e-4)
            assert row["agrees_with_final"] == (logp.argmax() == final.argmax())


def tail(model: Any, normed: torch.Tensor) -> torch.Tensor:
    logits = model.lm_head(normed).float() * getattr(model.config, "logit_scale", 1.0)
    logits = logits / getattr(model.config, "logits_scaling", 1.0)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


def test_soft_cap_changes_the_entropy_and_is_applied(models_of: Callable[..., Path], tmp_path: Path) -> None:
    frame, texts = read_lens(models_of("gemma2"), tmp_path / "s")
    reference = Reference(models_of("gemma2"), "gemma2")
    row = frame.filter(pl.col("layer") == 3).row(0, named=True)
    passed = reference.run(texts[row["sample_id"]])
    with torch.no_grad():
        raw = reference.model.lm_head(reference.norm(torch.from_numpy(passed.states[3, -1:])))[0].numpy()
    without = log_softmax(raw)
    assert abs(row["entropy"] + (np.exp(without) * without).sum()) > 0.05
    assert int(without.argmax()) == row["top_ids"][0]


def test_layers_and_positions_asked_for_are_the_rows_stored(models_of: Callable[..., Path], tmp_path: Path) -> None:
    frame, _ = read_lens(models_of("llama"), tmp_path / "s", lens=["last", "first@text"], layers=[1, 4], top_k=3)
    assert frame["layer"].unique().to_list() == [1]
    assert sorted(frame["output"].unique()) == ["lens:first@text:top3", "lens:last@prompt:top3"]
    assert frame["top_ids"].list.len().unique().to_list() == [3]
    assert len(frame) == 2 * len(TEXTS)


@pytest.mark.parametrize("template", ["{text}", "{text}: "])
def test_declared_target_is_followed_at_the_last_position(
    template: str, models_of: Callable[..., Path], tmp_path: Path
) -> None:
    folder = models_of("llama")
    rows = [{"text": "It rains", "answer": "the lamps"}, {"text": "Why", "answer": ""}]
    data = make_data(rows, template, target="answer")
    frame, texts = read_lens(folder, tmp_path / "s", data, lens=["last", "first@text"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reference = Reference(folder, "llama")
    prompt = tokenizer(data.prompts[0].text)["input_ids"]
    if template == "{text}":
        whole = tokenizer("It rains the lamps")["input_ids"]
        assert whole[: len(prompt)] == prompt
        expected = whole[len(prompt)]
    else:
        # The prompt's last space would grow together with the target, which counts alone then.
        assert tokenizer("It rains: the lamps")["input_ids"][: len(prompt)] != prompt
        expected = tokenizer("the lamps", add_special_tokens=False)["input_ids"][0]
    last = frame.filter(pl.col("position_name") == "last@prompt")
    assert len(last) == 2 * 4
    for row in last.iter_rows(named=True):
        text = texts[row["sample_id"]]
        target = expected if text.startswith("It rains") else None
        assert row["target_id"] == target
        if target is not None and row["layer"] == 3:
            logits = reference.run(text).logits[-1]
            assert row["target_rank"] == int((logits > logits[target]).sum())
            assert row["target_logprob"] == pytest.approx(log_softmax(logits)[target], rel=1e-4, abs=1e-4)
    for row in frame.filter(pl.col("position_name") == "first@text").iter_rows(named=True):
        ids = tokenizer(texts[row["sample_id"]])["input_ids"]
        assert row["target_id"] == ids[row["position"] + 1]


def test_top_tokens_are_the_decoded_ids(models_of: Callable[..., Path], tmp_path: Path) -> None:
    frame, _ = read_lens(models_of("llama"), tmp_path / "s", top_k=4)
    tokenizer = AutoTokenizer.from_pretrained(models_of("llama"))
    for row in frame.iter_rows(named=True):
        assert row["top_tokens"] == [tokenizer.decode([one]) for one in row["top_ids"]]


def test_top_k_is_at_most_the_vocabulary(models_of: Callable[..., Path], tmp_path: Path) -> None:
    frame, _ = read_lens(models_of("gpt2"), tmp_path / "s", top_k=1000)
    assert frame["top_ids"].list.len().unique().to_list() == [320]
    np.testing.assert_allclose(np.exp(np.array(frame["top_logprobs"].to_list())).sum(1), 1, rtol=1e-5)


def test_ids_beyond_the_tokenizer_decode_to_nothing(models_of: Callable[..., Path], tmp_path: Path) -> None:
    frame, _ = read_lens(models_of("llama", vocab_size=384), tmp_path / "s", top_k=384)
    for row in frame.head(3).iter_rows(named=True):
        assert all(text == "" for one, text in zip(row["top_ids"], row["top_tokens"], strict=True) if one >= 320)


def test_a_head_that_is_more_than_linear_runs_the_models_own_code(
    models_of: Callable[..., Path], tmp_path: Path
) -> None:
    frame, texts = read_lens(models_of("bert"), tmp_path / "s")
    reference = Reference(models_of("bert"), "bert")
    for row in frame.filter(pl.col("layer") == 1).iter_rows(named=True):
        state = torch.from_numpy(reference.run(texts[row["sample_id"]]).states[1, -1:])
        with torch.no_grad():
            logp = log_softmax(reference.model.cls(state)[0].numpy())
        assert row["entropy"] == pytest.approx(-(np.exp(logp) * logp).sum(), rel=1e-4, abs=1e-4)


def test_lens_of_a_model_without_a_head_is_refused(models_of: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--lens none"):
        read_lens(models_of("bert", headless=True), tmp_path / "s")
    with pytest.raises(ModelError, match="--lens none"):
        read_lens(models_of("llama", headless=True), tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("shape", [(3, 1000), (2, 5000), (5, 4 * 128 * 10), (1, 32_000)])
@pytest.mark.parametrize("k", [1, 7, 10])
def test_block_search_finds_what_topk_finds(shape: tuple[int, int], k: int) -> None:
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    z[0, -3:] = 50.0 + torch.arange(3)
    values, places = lens_module._top(z, k)
    expected, where = torch.topk(z, k, dim=1)
    assert torch.equal(values, expected)
    assert torch.equal(z.gather(1, places), expected)
    assert torch.equal(places, where)


class Tail:
    """A linear unembedding."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | float = 0.0) -> None:
        self.weight, self.bias, self.vocabulary = weight, bias, len(weight)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return states @ self.weight.T + self.bias


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(5, 7, 16, generator=generator)
    weight = torch.randn(600, 16, generator=generator)
    targets = torch.randint(0, 600, (7,), generator=generator)

    unembedding: Any = Tail(weight)
    whole = lens_module.read(unembedding, states, targets, 4)()
    monkeypatch.setattr(lens_module, "_CHUNK_ELEMENTS", 1300)
    monkeypatch.setattr(lens_module, "_STATISTICS_ELEMENTS", 700)
    parts = lens_module.read(unembedding, states, targets, 4)()
    for name in vars(whole):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=1e-5)


def test_infinite_gaps_between_logits_stay_numbers() -> None:
    """A token with logit -inf (a masked vocabulary) has probability 0, not NaN."""
    weight = torch.eye(6)
    states = torch.tensor([[[1.0, 2.0, 3.0, 0.0, 0.0, 0.0]]])
    masked = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, float("-inf")])
    reading = lens_module.read(Tail(weight, masked), states, torch.tensor([0]), 2)()
    p = np.exp([1.0, 2.0, 3.0, 0.0, 0.0])
    p /= p.sum()
    assert reading.entropy[0] == pytest.approx(-(p * np.log(p)).sum(), abs=1e-5)
    assert reading.kl_to_final[0] == reading.js_to_final[0] == 0


def test_mixed_precision_unembedding_is_float32(models_of: Callable[..., Path]) -> None:
    from layercache.extract.unembed import _product

    weight = torch.randn(300, 16).bfloat16()
    states = torch.randn(4, 16)
    torch.testing.assert_close(_product(weight)(states), states @ weight.float().T)
    model = AutoModelForCausalLM.from_pretrained(models_of("llama"))
    assert model.lm_head.weight.dtype == torch.float32


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_the_lens_at_every_token(kind: str, models_of: Callable[..., Path], tmp_path: Path) -> None:
    """One row a token; at the last layer it is the model's own loss of every next token."""
    folder = models_of(kind)
    frame, texts = read_lens(folder, tmp_path / "s", lens=["token", "last"], top_k=2)
    reference = Reference(folder, kind)
    for (sample_id,), rows in frame.filter(pl.col("position_name") == "token@prompt").group_by("sample_id"):
        passed = reference.run(texts[str(sample_id)])
        final = rows.filter(pl.col("layer") == 3).sort("position")
        assert final["position"].to_list() == list(range(len(passed.ids)))
        logp = log_softmax(passed.logits)
        np.testing.assert_allclose(final["entropy"], -(np.exp(logp) * logp).sum(-1), rtol=1e-4, atol=1e-4)
        assert final["target_id"].to_list() == [*passed.ids[1:], None]
        expected = logp[np.arange(len(passed.ids) - 1), passed.ids[1:]]
        np.testing.assert_allclose(final["target_logprob"].to_list()[:-1], expected, rtol=1e-4, atol=1e-4)
    # Where both are read they agree, and a row a token is no row a sample for who wants one.
    both = frame.join(frame, on=["sample_id", "layer", "position"]).filter(
        (pl.col("position_name") == "last@prompt") & (pl.col("position_name_right") == "token@prompt")
    )
    assert len(both) == 4 * len(TEXTS)
    np.testing.assert_allclose(both["entropy"], both["entropy_right"], rtol=1e-5)
    opened = reader.open(tmp_path / "s")
    query = queries.load_query("lens_by_token")
    map_ = sql.query(opened, query.sql, query.bind({"prompt": "lazy dog"})).to_pylist()
    own = reference.run(TEXTS[0])
    assert [row["position"] for row in map_ if row["layer"] == 2] == list(range(len(own.ids)))
    tokens = AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(own.ids)
    assert [row["token"].strip() for row in map_ if row["layer"] == 0][1:] == [one.strip("Ġ") for one in tokens[1:]]
    outcome = analyze.analyze(opened, EntropySpec(bootstrap=0), Progress())
    assert set(outcome.results["position"].to_pylist()) == {"last@prompt"}
    with pytest.raises(AnalysisError, match="one row a token"):
        analyze.analyze(opened, EntropySpec(positions=["token"]), Progress())
