"""Every architecture × dtype × preferred padding side: states of all layers and the lens, alone and in a ragged batch.

The reference is transformers' own `output_hidden_states` and logits of one prompt at a time in the same dtype.
What was covered is printed as a table at the end of the session (see `conftest.py`).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from layercache.extract import batching, checkpoint, model
from layercache.extract.batching import Budget, collate
from layercache.extract.forward import Forward
from layercache.extract.model import Model
from layercache.extract.selfcheck import _Keep, check
from layercache.extract.tokenize import Sample, tokenize
from layercache.extract.unembed import Unembedding

from .conftest import CONFIGS, MASKED, make_data, make_model, make_tokenizer
from .tiny import tiny_config

EXTRA = ("qwen3_moe", "mamba", "mamba2", "falcon_mamba", "jamba", "zamba2", "recurrent_gemma", "bamba", "falcon_h1")
KINDS = sorted({*CONFIGS, *EXTRA, "nemotron_h", "rwkv"})
COLLECTED_AFTER_BLOCKS = ("mamba", "mamba2", "falcon_mamba", "rwkv")
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Relative; of the worst token in float32, of the median one in bfloat16, where routing and rounding let some jump."""


def prompts(kind: str) -> list[Sample]:
    tokenizer = make_tokenizer(encoder=kind in MASKED)
    found = tokenize(make_data().prompts[:5], tokenizer, chat=False, context=None, truncate=False)
    return list(found.distinct.values())


def captured(loaded: Model, samples: list[Sample]) -> list[list[torch.Tensor]]:
    """Every sample's states, by layer, captured in batches as the model's feed says."""
    layers = [layer for layer, _ in loaded.structure.layers]
    feed = loaded.feed
    budget = Budget(1000, rows=1 if feed.together == "alone" else 100, equal=feed.together == "equal")
    found: dict[str, list[torch.Tensor]] = {}
    for members in batching.split(samples, budget):
        keep = _Keep(layers)
        batch = collate(
            members, loaded.plan.device, pad_id=0, position_offset=loaded.plan.position_offset, left=feed.left
        )
        Forward(loaded, [keep]).run(batch)
        for i, sample in enumerate(members):
            found[sample.id] = [keep.states[layer][i] for layer in layers]
    return [found[sample.id] for sample in samples]


def own(loaded: Model, sample: Sample, kind: str) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    """The model's states by our layers, and its logits, of one prompt alone."""
    ids = torch.tensor([sample.tokens.tolist()])
    with torch.no_grad():
        out = loaded.module(input_ids=ids, output_hidden_states=True)
    states = [state.reshape(len(sample), -1).float() for state in out.hidden_states]
    last, top = loaded.structure.n_layers, loaded.structure.layers[-1][0]
    layers = [*range(1, last + 1), top] if kind in COLLECTED_AFTER_BLOCKS else [*range(last), top]
    logits = out.logits if hasattr(out, "logits") else out.prediction_logits
    return dict(zip(layers, states, strict=True)), logits[0].float()


def difference(found: torch.Tensor, expected: torch.Tensor, dtype: str) -> float:
    each = (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-9)
    return float(each.max() if dtype == "float32" else each.median())


@pytest.fixture(scope="module")
def folders(models_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind in CONFIGS:
            return models_of(kind)
        if kind not in made:
            made[kind] = make_model(kind, tmp_path_factory.mktemp(kind), config=tiny_config(kind))
        return made[kind]

    return get


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_states_and_lens_alone_and_in_a_batch(
    kind: str, dtype: str, folders: Callable[[str], Path], record_property: Callable[[str, Any], None]
) -> None:
    plan = model.plan(checkpoint.find(str(folders(kind))), device="cpu", dtype=dtype, attn="auto")
    loaded = model.load(plan)
    samples = prompts(kind)
    unembedding = Unembedding(loaded)
    expected = [own(loaded, sample, kind) for sample in samples]
    cells: dict[str, str] = {}
    for side in ("right", "left"):
        found = check(loaded, samples, 0, unembedding, left=side == "left")
        fed = replace(loaded, feed=found.feed)
        lens = Unembedding(loaded, own_code=True) if found.own_code else unembedding
        worst = {"alone": 0.0, "batched": 0.0, "lens": 0.0}
        together = captured(fed, samples)
        for i, sample in enumerate(samples):
            states, logits = expected[i]
            alone = captured(fed, [sample])[0]
            for layer, state in states.items():
                if state.shape[1] == alone[layer].shape[1]:
                    worst["alone"] = max(worst["alone"], difference(alone[layer], state, dtype))
                    worst["batched"] = max(worst["batched"], difference(together[i][layer], state, dtype))
            with torch.inference_mode():
                read = lens(together[i][loaded.structure.n_layers])
            centred = [one - one.mean(-1, keepdim=True) for one in (read, logits)]
            worst["lens"] = max(worst["lens"], difference(*centred, dtype))
        assert max(worst.values()) <= TOLERANCE[dtype], (side, worst)
        assert np.isfinite(list(worst.values())).all()
        how = "equal" if fed.feed.together == "equal" else "alone" if fed.feed.together == "alone" else None
        cells[side] = how or ("left" if fed.feed.left else "right") + ("" if fed.feed.positions else "*")
    record_property("matrix", f"{kind}|{dtype}|{cells['right']}|{cells['left']}|states lens")
