"""What generation is asked to do, and how the next token is drawn from logits.

Greedy takes the most probable token. Sampling divides the logits by the temperature, keeps the `top_k` most
probable tokens, of these the fewest whose probabilities reach `top_p` (Holtzman et al. 2020, The Curious Case
of Neural Text Degeneration), and inverts their cumulative distribution at a uniform number that depends only
on the sample, the seed and how many tokens came before. So a text does not depend on the other rows of its
batch, and every layer of a sample is drawn with the same numbers.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from layercache.errors import ModelError
from layercache.extract.checkpoint import Checkpoint, first_line
from layercache.extract.unembed import Unembedding
from layercache.outputs import Generation
from layercache.recipe import ExtractSpec
from layercache.store.layout import digest

_CHUNK_ELEMENTS = 1 << 24
"""Logits made at a time; several float32 copies of them exist."""
_FLOOR = -10_000.0
"""A log-probability whose exponential is 0; keeps 0 · log 0 a number where a logit is -inf."""


@dataclass(frozen=True)
class Settings:
    """Everything a generated text depends on beside the run: what the hash in an output's name is taken over.

    Attributes:
        stop: strings that end a text, sorted.
        temperature: 0 is greedy; then the next three change nothing and are None.
        final_norm: the model's final norm is applied before the head.
        eos: token ids that end a text, sorted.
    """

    max_new_tokens: int
    stop: tuple[str, ...]
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int | None
    final_norm: bool
    eos: tuple[int, ...]

    @classmethod
    def of(cls, spec: ExtractSpec, checkpoint: Checkpoint) -> "Settings":
        """Read the settings that a recipe and a model's generation configuration give."""
        sampled = spec.temperature > 0
        return cls(
            max_new_tokens=spec.max_new_tokens,
            stop=tuple(sorted(set(spec.stop))),
            temperature=spec.temperature,
            top_k=spec.sample_top_k if sampled else None,
            top_p=spec.sample_top_p if sampled else None,
            seed=spec.generate_seed if sampled else None,
            final_norm=not spec.no_final_norm,
            eos=end_tokens(checkpoint),
        )

    @property
    def output(self) -> Generation:
        """The output with these settings."""
        return Generation(digest(self.as_json())[:8])

    def as_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self) | {"stop": list(self.stop), "eos": list(self.eos)}


class Drawn(NamedTuple):
    """The next token of every row: its id, log-probability, and the distribution's entropy, each [n]."""

    tokens: torch.Tensor
    logprobs: torch.Tensor
    entropies: torch.Tensor


def end_tokens(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Return the ids that end a text: those of `generation_config.json`, else of the model's configuration.

    Raises:
        ModelError: the file cannot be read.
    """
    path = checkpoint.folder / "generation_config.json"
    found: Any = None
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError) as error:
            raise ModelError(f"model {checkpoint.name}: {path.name} cannot be read: {first_line(error)}") from error
    if found is None:
        found = getattr(checkpoint.config.get_text_config(), "eos_token_id", None)
    ids = found if isinstance(found, (list, tuple)) else [found]
    return tuple(sorted({one for one in ids if isinstance(one, int)}))


def uniforms(sample_ids: Sequence[str], settings: Settings) -> np.ndarray:
    """Return the numbers in [0, 1) that samples are drawn with, float64 [samples, max_new_tokens]."""
    seeds = [hashlib.sha256(f"{settings.seed}:{one}".encode()).digest() for one in sample_ids]
    draws = [np.random.default_rng(list(seed)).random(settings.max_new_tokens) for seed in seeds]
    return np.stack(draws)


def draw(
    unembedding: Unembedding, states: torch.Tensor, settings: Settings, uniform: torch.Tensor | None = None
) -> Drawn:
    """Choose the next token of every row.

    Args:
        states: float32 [n, d], before the final norm.
        uniform: [n] in [0, 1); not needed when greedy.

    Returns:
        int64 and two float32 tensors [n], on the states' device. Log-probability and entropy (nats) are of
        softmax(logits): before the temperature, and before anything is left out.
    """
    rows = max(1, _CHUNK_ELEMENTS // unembedding.vocabulary)
    parts = []
    for start in range(0, len(states), rows):
        here = slice(start, start + rows)
        parts.append(_draw(unembedding(states[here]), settings, None if uniform is None else uniform[here]))
    return Drawn(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _draw(logits: torch.Tensor, settings: Settings, uniform: torch.Tensor | None) -> Drawn:
    logp = torch.log_softmax(logits, dim=-1)
    entropy = -(logp.exp() * logp.clamp_min(_FLOOR)).sum(dim=-1)
    if settings.temperature == 0:
        tokens = logits.argmax(dim=-1)
    else:
        assert uniform is not None
        tokens = _sampled(logits / settings.temperature, settings.top_k, settings.top_p, uniform)
    return Drawn(tokens, logp.gather(1, tokens[:, None])[:, 0], entropy)


def _sampled(scores: torch.Tensor, top_k: int | None, top_p: float | None, uniform: torch.Tensor) -> torch.Tensor:
    """Invert the cumulative distribution, most probable token first; equal scores go by token id."""
    ordered, ids = torch.sort(scores, dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered, ids = ordered[:, :top_k], ids[:, :top_k]
    p = torch.softmax(ordered, dim=-1)
    before = p.cumsum(dim=-1) - p
    if top_p is not None:
        p = p.masked_fill(before >= top_p, 0.0)
        p[:, 0] = p[:, 0].clamp_min(torch.finfo(p.dtype).tiny)
    reached = p.cumsum(dim=-1)
    # Rounding may leave the last sum under the number: then the last token that was kept.
    last = (p > 0).sum(dim=-1) - 1
    place = (reached <= uniform[:, None].to(p.dtype) * reached[:, -1:]).sum(dim=-1)
    return ids.gather(1, torch.minimum(place, last)[:, None])[:, 0]
