"""What the demo model says and holds, by plain transformers: texts, states at the last prompt token, the logit lens."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from layercache.demo.datasets import TEMPLATES, Row

BATCH = 64
"""Prompts of a batch."""
Array = npt.NDArray[np.float32]


class Loaded:
    """A demo model with its tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")

    def cut_after(self, block: int) -> "Loaded":
        """The same model without the blocks after this one: what it would say there, through norm and head."""
        cut = copy.copy(self)
        cut.model = copy.deepcopy(self.model)
        cut.model.base_model.layers = cut.model.base_model.layers[:block]
        cut.model.config.num_hidden_layers = block
        return cut

    def batches(self, prompts: list[str]) -> list[Any]:
        """Left-padded inputs."""
        groups = [prompts[i : i + BATCH] for i in range(0, len(prompts), BATCH)]
        return [self.tokenizer(group, return_tensors="pt", padding=True) for group in groups]


def prompts_of(name: str, rows: list[Row]) -> list[str]:
    """The prompts of a data set's rows."""
    return [TEMPLATES[name].format(**row) for row in rows]


@torch.no_grad()
def answers(loaded: Loaded, prompts: list[str], new_tokens: int = 24) -> list[str]:
    """The greedy continuation of every prompt."""
    found: list[str] = []
    for batch in loaded.batches(prompts):
        ids = loaded.model.generate(**batch, max_new_tokens=new_tokens, do_sample=False)
        texts = loaded.tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        found += [text.strip() for text in texts]
    return found


def final_norm(model: Any) -> Any:
    """The norm after the last block, which transformers calls differently in its state-space models."""
    return getattr(model.base_model, "norm", None) or model.base_model.norm_f


@torch.no_grad()
def states(loaded: Loaded, prompts: list[str], pooling: str = "last") -> Array:
    """The residual stream before the final norm as (layers 0…L, prompts, width), at the last token or its mean.

    Read as the modules' outputs: a state-space model's `hidden_states` begin after block 1.
    """
    seen: list[torch.Tensor] = []
    parts = [loaded.model.get_input_embeddings(), *loaded.model.base_model.layers]
    hooks = [part.register_forward_hook(lambda _, __, output: seen.append(output)) for part in parts]
    found = []
    for batch in loaded.batches(prompts):
        seen.clear()
        loaded.model(**batch)
        layers = torch.stack(seen)
        if pooling == "last":
            found.append(layers[:, :, -1])
        else:
            mask = batch["attention_mask"] * (batch["input_ids"] != loaded.tokenizer.bos_token_id)
            weights = (mask / mask.sum(1, keepdim=True))[None, :, :, None]
            found.append((layers * weights).sum(2))
    for hook in hooks:
        hook.remove()
    return np.asarray(torch.cat(found, 1).numpy(), np.float32)


@torch.no_grad()
def lens_entropy(loaded: Loaded, prompts: list[str]) -> Array:
    """The entropy in nats of final norm and head applied to every layer's last position, (layers, prompts)."""
    logits = loaded.model.lm_head(final_norm(loaded.model)(torch.from_numpy(states(loaded, prompts))))
    logprobs = logits.log_softmax(-1)
    return np.asarray(-(logprobs.exp() * logprobs).sum(-1).numpy(), np.float32)


@torch.no_grad()
def yes_share(loaded: Loaded, prompts: list[str]) -> Array:
    """The probability of " true" against " false" as the next token."""
    choice = [loaded.tokenizer.encode(word, add_special_tokens=False)[0] for word in (" true", " false")]
    logits = [loaded.model(**batch).logits[:, -1, choice] for batch in loaded.batches(prompts)]
    return np.asarray(torch.cat(logits).softmax(-1)[:, 0].numpy(), np.float32)


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L, F1 over words."""
    a, b = text.lower().split(), reference.lower().split()
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return 2 * float(table[-1, -1]) / (len(a) + len(b)) if a and b else 0.0
