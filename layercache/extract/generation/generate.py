"""Text generated from every layer: the final norm and the head on a layer's state choose the next token.

Layer L is the model's own text; layer k's is what the model would say if its blocks ended there, each new
token going through blocks 1…k only.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from layercache.errors import DataError, ModelError
from layercache.extract import batching
from layercache.extract.batching import Batch, Budget
from layercache.extract.checkpoint import first_line
from layercache.extract.forward import Collect, Rows
from layercache.extract.generation import sampling
from layercache.extract.generation.full_passes import FullPasses
from layercache.extract.generation.narrow import Unsupported
from layercache.extract.generation.sampling import Settings
from layercache.extract.generation.sweep_check import TRIPS, choose, slow
from layercache.extract.model import Model, Plan
from layercache.extract.tokenize import Sample, Samples
from layercache.extract.unembed import Unembedding

_MOST_ROWS = {"cpu": 256, "cuda": 4096}
"""Rows of a batch; more make a CPU no faster."""


@dataclass
class Generated:
    """One sample's text from one layer; log-probabilities and entropies in nats, a number a token."""

    sample: Sample
    layer: int
    token_ids: list[int] = field(default_factory=list)
    token_logprobs: list[float] = field(default_factory=list)
    token_entropies: list[float] = field(default_factory=list)
    finish_reason: str = "length"


class Generate:
    """Generates batches' texts into the table `generations`; used as a `Forward` is.

    Args:
        layers: the exits, 0…L.
        checked: samples that the sweep is tried on before it is used.
        allow_nonfinite: keep texts of states that give no probabilities instead of refusing them.

    Attributes:
        note: why generation is slow; None when it is not.
        on_step: called with the number of tokens of every step.

    Raises:
        ModelError: the model has no head.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Any,
        settings: Settings,
        layers: Sequence[int],
        checked: Sequence[Sample],
        *,
        pad_id: int,
        allow_nonfinite: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.settings, self.layers = model, tokenizer, settings, list(layers)
        self.allow_nonfinite = allow_nonfinite
        self.unembedding = Unembedding(model, final_norm=settings.final_norm)
        self.full = FullPasses(model, pad_id)
        self.engine, self.note = choose(model, checked, self.layers, pad_id)
        self.on_step: Callable[[int], None] = lambda _tokens: None

    def run(self, batch: Batch) -> list[tuple[str, Collect]]:
        """Generate from one batch's samples.

        Raises:
            ModelError: a layer's logits are not finite, and that is not allowed.
            torch.OutOfMemoryError: the batch is too large.
        """
        columns = self._columns(self._texts(batch.samples, self.layers))
        return [("generations", lambda: Rows(columns))]

    def _texts(self, samples: list[Sample], layers: Sequence[int]) -> list[Generated]:
        try:
            return self.decode(samples, layers)
        except (Unsupported, MemoryError, *TRIPS) as error:
            too_large = batching.is_out_of_memory(error)
            if too_large and (len(samples) > 1 or len(layers) == 1):
                raise
            if not too_large and self.engine is self.full:
                raise
            if not too_large:
                self.engine, self.note = self.full, slow(first_line(error))
        if not too_large:
            return self.decode(samples, layers)
        # One prompt with all its exits is too much: half of them at a time, each half a sweep of its own.
        half = len(layers) // 2
        return self._texts(samples, layers[half:]) + self._texts(samples, layers[:half])

    @torch.inference_mode()
    def decode(self, samples: list[Sample], layers: Sequence[int]) -> list[Generated]:
        """Generate the texts of some samples from some layers, deepest layer first."""
        try:
            return self._decode(samples, layers)
        finally:
            self.engine.forget()

    def _decode(self, samples: list[Sample], layers: Sequence[int]) -> list[Generated]:
        settings = self.settings
        rows = [Generated(sample, layer) for layer in sorted(layers, reverse=True) for sample in samples]
        alive, states = rows, self.engine.start(samples, layers)
        uniform = self._uniforms(samples, len(rows) // len(samples))
        for step in range(settings.max_new_tokens):
            here = None if uniform is None else uniform[:, step]
            drawn = sampling.draw(self.unembedding, states, settings, here)
            keep = self._append(alive, drawn)
            if not keep or step + 1 == settings.max_new_tokens:
                break
            index = torch.tensor(keep, dtype=torch.int64, device=states.device)
            uniform = None if uniform is None else uniform[index]
            alive = [alive[i] for i in keep]
            states = self.engine.step(drawn.tokens[index], keep)
        return rows

    def _append(self, rows: list[Generated], drawn: sampling.Drawn) -> list[int]:
        """Add a token to every row; return the rows that go on."""
        tokens, logprobs, entropies = (column.tolist() for column in drawn)
        keep = []
        for index, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if not math.isfinite(entropies[index]) and not self.allow_nonfinite:
                raise ModelError(
                    f"layer {row.layer} of sample {row.sample.id} gives no finite logits to generate from: use --dtype"
                    " float32 or bfloat16, or --allow-nonfinite"
                )
            row.token_ids.append(token)
            row.token_logprobs.append(logprobs[index])
            row.token_entropies.append(entropies[index])
            if token in self.settings.eos:
                row.finish_reason = "eos"
            elif self._stopped(row.token_ids):
                row.finish_reason = "stop"
            else:
                keep.append(index)
        self.on_step(len(rows))
        return keep

    def _stopped(self, tokens: list[int]) -> bool:
        """Tell whether a string that ends a text has just been completed."""
        if not self.settings.stop:
            return False
        # A token stands for a byte at least, and the last character may be unfinished.
        window = max(len(one.encode()) for one in self.settings.stop) + 4
        end = self._text(tokens[-window:])
        return any(one in end for one in self.settings.stop)

    def _text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _uniforms(self, samples: list[Sample], exits: int) -> torch.Tensor | None:
        """Return the numbers that rows are drawn with, float64 [rows, max_new_tokens]; the same at every exit."""
        if self.settings.temperature == 0:
            return None
        numbers = sampling.uniforms([sample.id for sample in samples], self.settings)
        return torch.from_numpy(np.tile(numbers, (exits, 1)).astype(np.float32)).to(self.model.plan.device)

    def _columns(self, rows: list[Generated]) -> dict[str, Any]:
        ends = [len(row.token_ids) - (row.finish_reason == "eos") for row in rows]
        texts = [self._text(row.token_ids[:end]) for row, end in zip(rows, ends, strict=True)]
        for one in self.settings.stop:
            texts = [text.partition(one)[0] for text in texts]
        return {
            "sample_id": [row.sample.id for row in rows],
            "output": [str(self.settings.output)] * len(rows),
            "layer": [row.layer for row in rows],
            "text": texts,
            "token_ids": [row.token_ids for row in rows],
            "token_logprobs": [row.token_logprobs for row in rows],
            "token_entropies": [row.token_entropies for row in rows],
            "finish_reason": [row.finish_reason for row in rows],
        }


def check_model(plan: Plan, layers: Sequence[int], option: str = "--generate-layers") -> None:
    """Refuse to generate where the model cannot, or from layers it does not have.

    Args:
        option: what asks for the text, for the message.

    Raises:
        ModelError: no head, a head that predicts masked tokens, or a layer that is not in 0…L.
    """
    name, last = plan.checkpoint.name, plan.structure.n_layers
    if not plan.with_head:
        raise ModelError(f"model {name} has no language-model head, so it generates no text: leave out {option}")
    if plan.checkpoint.masked:
        raise ModelError(f"model {name} predicts masked tokens, so it generates no text: leave out {option}")
    unknown = [layer for layer in layers if not 0 <= layer <= last]
    if unknown:
        raise ModelError(
            f"model {name} generates from layers 0 to {last}, not from {unknown[0]}: change --generate-layers"
        )


def check_room(samples: Samples, max_new_tokens: int, context: int | None, place: Callable[[int], str]) -> None:
    """Refuse prompts that leave the model no room for the text asked for.

    Raises:
        DataError: names the first such row, as `place` does, and its tokens.
    """
    if context is None:
        return
    for row, sample_id in enumerate(samples.of_row):
        tokens = 0 if sample_id is None else len(samples.distinct[sample_id])
        if tokens + max_new_tokens > context:
            raise DataError(
                f"{place(row)} has {tokens:,} tokens, and {max_new_tokens:,} new ones do not fit into the {context:,} that"
                " the model sees: use a lower --max-new-tokens, or shorten the prompt"
            )


def budget(plan: Plan, longest: int, layers: Sequence[int], max_new_tokens: int, most: int | None) -> Budget:
    """Choose how many prompts are generated from at once.

    Args:
        longest: tokens of the longest prompt.
        most: padded tokens a batch may hold at most, where the user said so.
    """
    # Exit k's row takes room in the caches of blocks 1…k.
    tokens = longest + max_new_tokens
    each = tokens * (sum(layers) * cache_bytes(plan) + batching.token_bytes(plan, tokens))
    rows = batching.affordable(plan, each)
    rows = max(1, min(rows, _MOST_ROWS.get(plan.device.type, _MOST_ROWS["cpu"]) // len(layers)))
    return Budget(min(rows * longest, most or rows * longest), rows)


def cache_bytes(plan: Plan) -> int:
    """Return the bytes that a token's keys and values take in one block (of the attention that takes most)."""
    config: Any = plan.checkpoint.config.get_text_config()
    width, heads = plan.structure.width, getattr(config, "num_attention_heads", None)
    each = getattr(config, "head_dim", None)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    here = kv_heads * each if isinstance(kv_heads, int) and isinstance(each, int) else width
    return 2 * here * torch.empty(0, dtype=plan.dtype).element_size()
