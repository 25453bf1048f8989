"""The head kept beside a run, and the lens without the model: held against extraction's own rows, which torch made."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import layercache.head
from layercache.analyze import lens as lenses
from layercache.errors import ModelError
from layercache.extract import checkpoint, head, model
from layercache.extract.run import extract
from layercache.extract.summary import Summary
from layercache.progress import Progress
from layercache.recipe import ExtractSpec, ModelSpec
from layercache.store import reader
from layercache.store.verify import verify

from .conftest import MASKED, TEXTS, make_data

SPEC: dict[str, Any] = {"pooling": ["mean", "last", "first@text"], "lens": ["last", "first@text"], "save_head": True}
KINDS = [
    ("llama", {}),
    ("gpt2", {}),
    ("gemma2", {}),
    ("opt", {}),
    ("opt", {"word_embed_proj_dim": 16}),
    ("granite", {}),
    ("cohere", {}),
    ("phi", {}),
    ("llama", {"vocab_size": 384}),
]
KEYS = ["layer", "sample_id", "position"]


def run(folder: Path, store: Path, data: Any = None, **changes: Any) -> Summary:
    spec = ExtractSpec(**(SPEC | changes))
    return extract(ModelSpec(model=str(folder)), data or make_data(), spec, store, Progress())


def frame(table: Any) -> pl.DataFrame:
    found = pl.from_arrow(table)
    assert isinstance(found, pl.DataFrame)
    return found


def both(store: Path, pooling: str = "last@prompt", **asked: Any) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The lens of the laptop and the one that extraction stored, in the same order."""
    opened = reader.open(store)
    (one,) = opened.runs()
    stored = frame(opened.sql("SELECT * FROM lens WHERE position_name = ?", [pooling])).sort(KEYS)
    return frame(opened.lens(one, pooling=pooling, **asked)), stored


def distance(here: pl.DataFrame, stored: pl.DataFrame) -> dict[str, float]:
    """The largest differences from extraction's numbers, and the share of layers' best tokens that differ."""
    names = ["entropy", "logsumexp", "target_logprob", "kl_to_final", "js_to_final"]
    found = {name: float((here[name] - stored[name]).abs().max() or 0) for name in names}
    kept = [dict(zip(*row)) for row in zip(here["top_ids"].to_list(), here["top_logprobs"].to_list())]
    were = [dict(zip(*row)) for row in zip(stored["top_ids"].to_list(), stored["top_logprobs"].to_list())]
    common = [abs(a[token] - b[token]) for a, b in zip(kept, were) for token in a.keys() & b.keys()]
    found["top_logprobs"] = max(common)
    found["left_top"] = sum(len(b.keys() - a.keys()) for a, b in zip(kept, were)) / sum(map(len, were))
    found["other_best"] = sum(a[0] != b[0] for a, b in zip(here["top_ids"], stored["top_ids"])) / len(were)
    return found


def load(folder: Path, dtype: str = "float32") -> tuple[model.Model, Any]:
    found = checkpoint.find(str(folder))
    return model.load(model.plan(found, device="cpu", dtype=dtype, attn="auto")), model.load_tokenizer(found)


@pytest.mark.parametrize(
    ("kind", "changes", "dtype", "bits"),
    [(*kind, "float32", 23) for kind in KINDS] + [(*kind, "bfloat16", 10) for kind in KINDS[:7]],
)
def test_states_stored_exactly_give_extractions_numbers(
    kind: str, changes: dict[str, Any], dtype: str, bits: int, models_of: Callable[..., Path], tmp_path: Path
) -> None:
    """A bfloat16 model's states of one token have 7 mantissa bits, so that the default 10 lose nothing."""
    summary = run(models_of(kind, **changes), tmp_path / "s", dtype=dtype, precision=bits)
    assert summary.head_bytes > 0
    for pooling in ("last@prompt", "first@text"):
        here, stored = both(tmp_path / "s", pooling)
        same = ["run", "condition", *KEYS, "output", "position_name", "target_id"]
        assert here.select(same).equals(stored.select(same))
        found = distance(here, stored)
        assert max(found.values()) < 3e-5, found
        assert here["top_tokens"].list.first().equals(stored["top_tokens"].list.first())
        assert here["agrees_with_final"].equals(stored["agrees_with_final"])
        assert here["target_rank"].equals(stored["target_rank"])
    assert verify(tmp_path / "s", deep=True) == []


@pytest.mark.parametrize(("bits", "allowed"), [(10, 0.02), (7, 0.16)])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "cohere"])
def test_rounded_states_are_off_by_what_the_rounding_allows(
    kind: str, bits: int, allowed: float, models_of: Callable[..., Path], tmp_path: Path
) -> None:
    run(models_of(kind), tmp_path / "s", precision=bits)
    found = distance(*both(tmp_path / "s"))
    assert 1e-5 < found["top_logprobs"] < allowed
    assert found["entropy"] < allowed
    assert found["left_top"] < 0.1


def test_the_lens_is_what_the_models_own_tail_makes_of_the_stored_states(
    models_of: Callable[..., Path], tmp_path: Path
) -> None:
    """Against transformers' modules and float64 NumPy, on states as they are stored; also with L + 1."""
    run(models_of("gemma2"), tmp_path / "s", precision=7)
    opened = reader.open(tmp_path / "s")
    (one,) = opened.runs()
    reference = AutoModelForCausalLM.from_pretrained(models_of("gemma2"), dtype=torch.float32).eval()
    here = frame(opened.lens(one, [1, 3, 4], top_k=4, targets=[7, 300]))
    assert len(here) == 3 * len(TEXTS) * 2
    logp: dict[int, np.ndarray] = {}
    for layer in (1, 3, 4):
        states = torch.from_numpy(opened.matrix(one, layer, "last").values)
        with torch.no_grad():
            logits = reference.lm_head(reference.model.norm(states) if layer < 4 else states).double().numpy()
        logits = np.tanh(logits / 3.0) * 3.0
        logp[layer] = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        rows = here.filter(pl.col("layer") == layer)
        assert rows["sample_id"].to_list() == np.repeat(opened.matrix(one, layer, "last").sample_ids, 2).tolist()
        assert rows["target_id"].to_list() == [7, 300] * len(TEXTS)
        p = np.exp(logp[layer])
        first = rows.gather_every(2)
        np.testing.assert_allclose(first["entropy"], -(p * logp[layer]).sum(1), atol=1e-5)
        assert first["top_ids"].to_list() == np.argsort(-logits, axis=1, kind="stable")[:, :4].tolist()
        np.testing.assert_allclose(rows["target_logprob"], logp[layer][:, [7, 300]].reshape(-1), atol=2e-5)
        ranks = [(logits > logits[:, [token]]).sum(1) for token in (7, 300)]
        assert rows["target_rank"].to_list() == np.stack(ranks, 1).reshape(-1).tolist()
    middle = here.filter(pl.col("layer") == 1).gather_every(2)
    p, q = np.exp(logp[1]), np.exp(logp[3])
    np.testing.assert_allclose(middle["kl_to_final"], (p * (logp[1] - logp[3])).sum(1), atol=1e-5)
    log_mean = np.log((p + q) / 2)
    js = 0.5 * (p * (logp[1] - log_mean)).sum(1) + 0.5 * (q * (logp[3] - log_mean)).sum(1)
    np.testing.assert_allclose(middle["js_to_final"], js, atol=1e-5)
    assert middle["agrees_with_final"].to_list() == (logp[1].argmax(1) == logp[3].argmax(1)).tolist()
    tokenizer = AutoTokenizer.from_pretrained(models_of("gemma2"))
    assert here["target_token"].to_list()[:2] == [tokenizer.decode([7]), tokenizer.decode([300])]


def test_after_the_final_norm_nothing_is_normed_again(models_of: Callable[..., Path], tmp_path: Path) -> None:
    """Where only L + 1 is stored it is what others are compared with."""
    run(models_of("gpt2"), tmp_path / "s", precision=23)
    run(models_of("gpt2"), tmp_path / "t", precision=23, layers=[1, 4], lens=[])
    both_stored, one_stored = reader.open(tmp_path / "s"), reader.open(tmp_path / "t")
    whole = frame(both_stored.lens(both_stored.runs()[0], [1, 3, 4]))
    last = whole.filter(pl.col("layer") == 4)
    np.testing.assert_allclose(last["entropy"], whole.filter(pl.col("layer") == 3)["entropy"], atol=1e-5)
    assert last["agrees_with_final"].all()
    part = frame(one_stored.lens(one_stored.runs()[0], [1, 4]))
    for name in ("kl_to_final", "js_to_final", "entropy", "target_logprob"):
        np.testing.assert_allclose(part[name], whole.filter(pl.col("layer") != 3)[name], atol=2e-5)
    assert frame(one_stored.lens(one_stored.runs()[0]))["layer"].unique().to_list() == [1]


def test_a_final_layer_that_is_not_stored_leaves_nulls(models_of: Callable[..., Path], tmp_path: Path) -> None:
    """For samples that lack it; here two data sets of one run overlap in part."""
    folder, rows = models_of("llama"), [{"text": text} for text in TEXTS]
    run(folder, tmp_path / "s", make_data(rows[:5]), layers=[0, 2])
    run(folder, tmp_path / "s", make_data(rows[3:], name="more"), layers=[2, 3])
    opened = reader.open(tmp_path / "s")
    (one,) = opened.runs()
    here = frame(opened.lens(one))
    counts = dict(here.group_by("layer").len().iter_rows())
    assert counts == {0: 5, 2: 8, 3: 5}
    missing = here.filter(pl.col("kl_to_final").is_null())
    assert len(missing) == 3 + 3
    assert missing["agrees_with_final"].null_count() == missing["js_to_final"].null_count() == 6
    assert missing["entropy"].null_count() == 0


def test_chunks_change_nothing(models_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(models_of("opt", word_embed_proj_dim=16), tmp_path / "s")
    whole, _ = both(tmp_path / "s")
    for name, size in (("_STATE_BYTES", 3000), ("_LOGITS", 2000)):
        monkeypatch.setattr(lenses, name, size)
    monkeypatch.setattr(layercache.head, "_CAST_ELEMENTS", 700)
    parts, _ = both(tmp_path / "s")
    exact = [name for name in whole.columns if whole.schema[name] in (pl.String, pl.Int32, pl.Boolean)]
    assert parts.select(exact).equals(whole.select(exact))
    assert max(distance(parts, whole).values()) < 1e-5


def test_saving_it_later_runs_nothing(
    models_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama = models_of("llama")
    first = run(llama, tmp_path / "s", save_head=False)
    planned = extract(ModelSpec(model=str(llama)), make_data(), ExtractSpec(**SPEC), tmp_path / "s", Progress(), True)
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("shard=*/*")}
    later = run(llama, tmp_path / "s")
    assert (later.run, later.forward_passes, later.bytes) == (first.run, 0, 0)
    assert later.head_bytes == pytest.approx(sum(planned.estimate.values()), rel=0.1)
    assert "saved" in str(later)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("shard=*/*")} == shards
    at_once = run(llama, tmp_path / "t")
    (a,), (b,) = ((tmp_path / name).glob("run=*/head-*") for name in "st")
    assert a.name == b.name
    assert at_once.head_bytes == later.head_bytes

    def fail(*_: Any) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr(model, "load", fail)
    assert run(llama, tmp_path / "s").head_bytes == 0


def test_a_run_without_a_lens_can_keep_its_head(models_of: Callable[..., Path], tmp_path: Path) -> None:
    run(models_of("llama"), tmp_path / "s", lens=[])
    run(models_of("llama"), tmp_path / "t", precision=23)
    opened, other = reader.open(tmp_path / "s"), reader.open(tmp_path / "t")
    (shard,) = opened.shards(opened.runs()[0])
    assert shard.provenance["self_check"]["lens"] is not None, "what is saved has to be what the model does"
    here = frame(opened.lens(opened.runs()[0]))
    stored = frame(other.sql("SELECT * FROM lens WHERE position_name = 'last@prompt'")).sort(KEYS)
    assert distance(here, stored)["entropy"] < 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_checkpoints_keep_their_precision(
    dtype: torch.dtype, models_of: Callable[..., Path], tmp_path: Path
) -> None:
    """Whatever they are run in; and any reader of safetensors sees what FORMAT.md says."""
    folder = tmp_path / "m"
    AutoModelForCausalLM.from_pretrained(models_of("cohere"), dtype=dtype).save_pretrained(folder)
    AutoTokenizer.from_pretrained(models_of("cohere")).save_pretrained(folder)
    run(folder, tmp_path / "s", dtype="float32", precision=23)
    (path,) = (tmp_path / "s").glob("run=*/head-*")
    assert path.name == f"head-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.safetensors"
    found = load_file(path)
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    assert found["unembedding.weight"].dtype == dtype
    assert torch.equal(found["unembedding.weight"], own.lm_head.weight)
    assert torch.equal(found["norm.weight"], own.model.norm.weight)
    offsets, utf8 = found["texts.offsets"].tolist(), bytes(found["texts.utf8"].tolist())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for token in (1, 65, 300):
        assert utf8[offsets[token] : offsets[token + 1]].decode() == tokenizer.decode([token])
    assert max(distance(*both(tmp_path / "s")).values()) < 3e-5


@pytest.mark.parametrize("kind", MASKED)
def test_heads_that_are_more_are_refused_before_anything_is_written(
    kind: str, models_of: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="leave out --save-head"):
        run(models_of(kind), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_models_without_a_head_have_none_to_save(models_of: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no language-model head to save"):
        run(models_of("llama", headless=True), tmp_path / "s", lens=[])
    assert not (tmp_path / "s").exists()


class Rms(nn.Module):
    """An RMS norm, or one that does something else as well."""

    def __init__(self, eps: float, *, add_one: bool = False, shift: float = 0.0, power: float = 0.5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.alpha = nn.Parameter(torch.rand(32, generator=generator) + (0 if add_one else 0.5))
        self.eps, self.add_one, self.shift, self.power = eps, add_one, shift, power

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float()
        x = x * (x.pow(2).mean(-1, keepdim=True) + self.eps).pow(-self.power)
        return x * (self.add_one + self.alpha.float()) + self.shift


def unaffine(eps: float) -> nn.Module:
    return nn.LayerNorm(32, eps=eps, elementwise_affine=False)


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-8, 1.1920929e-07, 1e-6, 1e-5, 1e-3, 0.5])
@pytest.mark.parametrize("make", [Rms, lambda e: Rms(e, add_one=True), lambda e: nn.LayerNorm(32, eps=e), unaffine])
def test_norms_are_measured(eps: float, make: Callable[[float], nn.Module]) -> None:
    module = make(eps)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.3, 1.4)
    found = head._norm(module, 32, "x")
    assert found.kind == ("rms" if isinstance(module, Rms) else "layer")
    assert found.eps == pytest.approx(eps, rel=1e-5, abs=1e-15)
    assert found.add_one == getattr(module, "add_one", False)
    for scale in (1e-6, 1e-3, 1.0, 1e3):
        states = scale * np.random.default_rng(3).standard_normal((5, 32), dtype=np.float32)
        with torch.no_grad():
            expected = module.double()(torch.from_numpy(states).double()).numpy()
        np.testing.assert_allclose(found(states), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "module", [Rms(1e-5, shift=0.3), Rms(1e-5, power=0.4), nn.Tanh(), nn.GroupNorm(2, 32), nn.Identity()]
)
def test_other_norms_are_refused(module: nn.Module) -> None:
    with pytest.raises(ModelError, match="its final norm"):
        head._norm(module, 32, "x")


def test_a_head_that_is_not_the_models_is_not_believed(models_of: Callable[..., Path]) -> None:
    loaded, tokenizer = load(models_of("gemma2"))
    built = head.build(loaded, tokenizer)
    states = np.random.default_rng(0).standard_normal((4, 32), dtype=np.float32)
    head.check(built, loaded, states)
    assert built.norm is not None
    for change in (
        {"softcap": None},
        {"norm": replace(built.norm, add_one=False)},
        {"norm": replace(built.norm, eps=0.01)},
    ):
        with pytest.raises(ModelError, match="its logits differ by"):
            head.check(replace(built, **change), loaded, states)
