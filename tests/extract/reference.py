"""The slow, obvious way: one prompt at a time, transformers' own outputs, pooled and unembedded by hand."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

FINAL_NORM = {
    "gpt2": "transformer.ln_f",
    "gptj": "transformer.ln_f",
    "gpt_neo": "transformer.ln_f",
    "phi": "model.final_layernorm",
    "bloom": "transformer.ln_f",
    "falcon": "transformer.ln_f",
    "mpt": "transformer.norm_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "opt": "model.decoder.final_layer_norm",
    "modernbert": "model.final_norm",
    "bert": None,
    "roberta": None,
    "distilbert": None,
    "electra": None,
    "albert": None,
}
"""Where it is not `model.norm`."""


@dataclass
class Passed:
    """One prompt through one model.

    Attributes:
        states: float32 [layers, n, d]; L+1 is the last where the model has a final norm.
        logits: float32 [n, vocabulary] or None.
        special: bool [n].
        offsets: character range of every token.
    """

    states: np.ndarray
    logits: np.ndarray | None
    ids: list[int]
    special: np.ndarray
    offsets: list[tuple[int, int]]

    def within(self, start: int, end: int) -> list[int]:
        """Tokens that share a character with [start, end)."""
        return [i for i, (a, b) in enumerate(self.offsets) if set(range(a, b)) & set(range(start, end))]


class Reference:
    """A model as transformers loads it."""

    def __init__(self, folder: Path, kind: str, *, auto: Any = None, attn: str | None = None) -> None:
        masked = FINAL_NORM.get(kind, "") is None or kind == "modernbert"
        auto = auto or (AutoModelForMaskedLM if masked else AutoModelForCausalLM)
        self.model = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation=attn).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.norm = None
        path = FINAL_NORM.get(kind, "model.norm")
        if path is not None and auto is not AutoModel:
            self.norm = self.model.get_submodule(path)

    def run(self, text: str, *, add_special_tokens: bool = True, max_length: int | None = None) -> Passed:
        """Run one prompt alone, with no padding and no explicit positions."""
        out = self.tokenizer(
            text,
            add_special_tokens=add_special_tokens,
            return_offsets_mapping=True,
            truncation=max_length is not None,
            max_length=max_length,
        )
        ids = out["input_ids"]
        states, logits = self.run_ids(ids)
        special = np.isin(ids, self.tokenizer.all_special_ids)
        return Passed(states, logits, ids, special, [tuple(pair) for pair in out["offset_mapping"]])

    def run_ids(self, ids: list[int]) -> tuple[np.ndarray, np.ndarray | None]:
        """Run tokens as they are: the states [layers, n, d] and the logits."""
        kept: list[torch.Tensor] = []
        handle = None
        if self.norm is not None:
            handle = self.norm.register_forward_pre_hook(lambda _m, args: kept.append(args[0].clone()))
        with torch.no_grad():
            found = self.model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        if handle is not None:
            handle.remove()
        states = [state.reshape(len(ids), -1).float().numpy() for state in found.hidden_states]
        if kept:
            # transformers gives the last state after the final norm: put the one before it in its place.
            states.insert(len(states) - 1, kept[-1].reshape(len(ids), -1).float().numpy())
        width = states[0].shape[1]
        logits = found.logits[0].float().numpy() if hasattr(found, "logits") else None
        return np.stack([state for state in states if state.shape[1] == width]), logits


def close(stored: np.ndarray, expected: np.ndarray, *, bits: int = 10, noise: float = 2e-5) -> None:
    """Assert that stored vectors are the expected ones, rounded to `bits` mantissa bits, within the noise floor."""
    assert stored.shape == expected.shape
    allowed = np.abs(expected) * 2.0 ** -(bits + 1) + noise * np.abs(expected).max(axis=-1, keepdims=True)
    worst = (np.abs(stored - expected) - allowed).max()
    assert worst <= 0, f"{worst} above what rounding and noise allow"


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """In float64."""
    logits = logits.astype(np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))
