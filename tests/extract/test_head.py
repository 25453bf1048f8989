"""The head kept beside a run, and the lens without the model: held against extraction's own rows, which torch made."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from layercache.errors import AnalysisError, ModelError, StoreError
from layercache.extract import checkpoint, head, model
from layercache.extract.run import extract
from layercache.extract.summary import Summary
from layercache.extract.unembed import Unembedding
from layercache.head import Head
from layercache.progress import Progress
from layercache.recipe import ExtractSpec, ModelSpec
from layercache.store import head as heads
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


@pytest.mark.parametrize(("kind", "changes"), KINDS)
@pytest.mark.parametrize(("dtype", "bits"), [("float32", 23), ("bfloat16", 10)])
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
