"""Every text model that transformers has, tiny and with random weights: right, or refused, never silently wrong.

    python -m tests.extract.test_sweep mamba xlnet      the table of some model types, with what failed

The reference knows nothing of layercache: one prompt at a time, transformers' own `output_hidden_states` and
logits. Which layer of ours each of its states is, is written down in `own_layers`.
"""

import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForMultimodalLM, AutoModelForTextEncoding
from transformers.models.auto import modeling_auto

from layercache.errors import LayercacheError
from layercache.extract.run import extract
from layercache.progress import Progress
from layercache.recipe import ExtractSpec, ModelSpec
from layercache.store import reader

from .conftest import TEXTS, make_data, make_tokenizer
from .reference import log_softmax
from .tiny import tiny_config

CAUSAL = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
MASKED = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
BARE = modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES
MULTIMODAL = modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
AUTO = {
    **dict.fromkeys(BARE, AutoModelForTextEncoding),
    **dict.fromkeys(MULTIMODAL, AutoModelForMultimodalLM),
    **dict.fromkeys(MASKED, AutoModelForMaskedLM),
    **dict.fromkeys(CAUSAL, AutoModelForCausalLM),
}
KINDS = sorted(AUTO)
FAST = {
    **dict.fromkeys(
        ("qwen3_moe", "rwkv", "jamba", "zamba2", "bamba", "falcon_h1", "nemotron_h", "recurrent_gemma"), ""
    ),
    **dict.fromkeys(("qwen3_next", "inkling_text", "esm", "longformer", "clip_text_model", "llava", "qwen2_vl"), ""),
    "t5gemma": "model is an encoder-decoder: its encoder is read",
    "mpnet": "prompts are run padded on the right, positions left to the model, since a layer against the model's own,"
    " layer 0 differs by",
}
"""Hybrids, shared blocks, vision towers larger than the text's, encoders of two: type → what is said of it."""
_LARGEST = 8_000_000
_TOLERANCE = 1e-3
"""Relative, of a stored vector (10 bits of mantissa are 5e-4 each) and absolute of a log-probability."""


class Outcome(NamedTuple):
    kind: str
    what: str
    why: str = ""


def own_layers(kind: str, n_own: int, last: int, has_norm: bool) -> list[int]:
    """Say which of our layers transformers' hidden states are; the last is after the final norm."""
    final = last + 1 if has_norm else last
    if kind in ("mamba", "falcon_mamba", "mamba2", "rwkv"):
        return [*range(1, last + 1), final]  # Collected after every block: the embeddings are not among them.
    if kind in ("clip_text_model", "tipsv2_text_model"):
        return [*range(last + 1)]  # Not tied to the output, so the last is before the final norm.
    assert n_own == last + 1
    return [*range(last), final]


def build(kind: str, folder: Path) -> tuple[Any, Any]:
    """Save a tiny model; return its auto class and the model, or raise what transformers raised."""
    auto = AUTO[kind]
    config = tiny_config(kind)
    if auto is AutoModelForTextEncoding:
        config.is_encoder_decoder = False
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in auto.from_config(config).parameters())
    if size > _LARGEST:
        raise ValueError(f"{size:,} parameters")
    torch.manual_seed(0)
    model = auto.from_config(config)
    for name, parameter in model.named_parameters():
        if "norm" in name.lower() or "ln_" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.float().save_pretrained(folder)
    make_tokenizer(encoder=kind in MASKED).save_pretrained(folder)
    return auto, auto.from_pretrained(folder, dtype=torch.float32).eval()


def sweep(kind: str, folder: Path) -> Outcome:
    """Extract one model type's states and lens and hold them against the model's own."""
    try:
        auto, model = build(kind, folder / "model")
    except Exception as error:
        return Outcome(kind, "not buildable", _line(error))
    store = folder / "store"
    spec = ExtractSpec(
        pooling=["mean", "first", "last"], lens=[] if auto is AutoModelForTextEncoding else ["last"], batch_tokens=128
    )
    try:
        summary = extract(ModelSpec(model=str(folder / "model")), make_data(), spec, store, Progress())
    except LayercacheError as error:
        return Outcome(kind, "refused", _line(error))
    except Exception as error:
        return Outcome(kind, "CRASHED", f"{type(error).__name__}: {_line(error)}")
    opened = reader.open(store)
    try:
        wrong = compare(kind, model, opened, opened.run(summary.run))
    except (RuntimeError, ValueError) as error:
        return Outcome(kind, "no reference", _line(error))
    return Outcome(kind, "WRONG" if wrong else "works", wrong or "; ".join(summary.notes))


def compare(kind: str, model: Any, store: Any, run: Any) -> str:
    """Return the first number that differs from the model's own, in words; empty when none does."""
    tokenizer = make_tokenizer(encoder=kind in MASKED)
    ids = store.rows(run, "data")["sample_id"].to_list()
    layers = [one.layer for one in run.layers]
    last = run.final_layer
    stored = {(layer, how): store.matrix(run, layer, how) for layer in layers for how in ("mean", "first", "last")}
    lens = pl.from_arrow(store.sql("SELECT * FROM lens WHERE layer = ?", [last]))
    for sample_id, text in zip(ids, TEXTS, strict=True):
        tokens = tokenizer(text)["input_ids"]
        with torch.no_grad():
            out = model(input_ids=torch.tensor([tokens]), output_hidden_states=True)
        own = [state.reshape(len(tokens), -1).float().numpy() for state in out.hidden_states]
        special = np.isin(tokens, tokenizer.all_special_ids)
        for layer, state in zip(own_layers(kind, len(own), last, max(layers) > last), own, strict=True):
            expected = {"mean": state[~special].mean(0), "first": state[0], "last": state[-1]}
            for how, vector in expected.items():
                matrix = stored[layer, how]
                found = matrix.values[list(matrix.sample_ids).index(sample_id)]
                if found.shape != vector.shape:
                    return f"layer {layer}: {found.shape[0]} elements where the model has {vector.shape[0]}"
                difference = np.linalg.norm(found - vector) / max(np.linalg.norm(vector), 1e-9)
                if not difference <= _TOLERANCE:
                    return f"layer {layer} {how}: {difference:.2g} off"
        for row in lens.filter(pl.col("sample_id") == sample_id).iter_rows(named=True):
            logp = log_softmax(out.logits[0, row["position"]].float().numpy())
            difference = np.abs(logp[row["top_ids"]] - row["top_logprobs"]).max()
            if not difference <= _TOLERANCE:
                return f"lens: a log-probability is {difference:.2g} off"
    return ""


def _line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error) or type(error).__name__)[:200]


def table(outcomes: list[Outcome]) -> str:
    """Write the outcomes for people, counts last."""
    lines = [f"{one.kind:28} {one.what:14} {one.why}".rstrip() for one in outcomes]
    counts = Counter(one.what for one in outcomes)
    return "\n".join([*lines, "", ", ".join(f"{what}: {count}" for what, count in sorted(counts.items()))])


@pytest.mark.parametrize("kind", FAST)
@pytest.mark.filterwarnings("default")
def test_architectures_with_something_of_their_own(kind: str, tmp_path: Path) -> None:
    outcome = sweep(kind, tmp_path)
    assert outcome.what == "works", outcome.why
    assert outcome.why.startswith(FAST[kind])
    assert bool(outcome.why) == bool(FAST[kind])


@pytest.mark.torture
@pytest.mark.filterwarnings("default")
def test_no_model_type_is_silently_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = [sweep(kind, tmp_path / kind) for kind in KINDS]
    with capsys.disabled():
        print("\n" + table(outcomes))
    assert [one for one in outcomes if one.what in ("WRONG", "CRASHED")] == []
    assert sum(one.what == "works" for one in outcomes) > len(outcomes) / 2


def main(kinds: list[str]) -> None:
    """Print the table of some model types."""
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds or KINDS:
            outcomes.append(sweep(kind, Path(folder) / kind))
            print(table(outcomes[-1:]).splitlines()[0], flush=True)
    print(table(outcomes).rpartition("\n")[2])


if __name__ == "__main__":
    main(sys.argv[1:])
