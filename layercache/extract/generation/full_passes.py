"""Text from every layer the slow way: a full pass over all tokens, for every layer and every new token.

Nothing is assumed of a model here that the self-check has not checked, so this is what the sweep is compared
with, and what models generate with that the sweep cannot run.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from layercache.extract.batching import Batch, collate
from layercache.extract.forward import RESID, Collect, Forward, Rows
from layercache.extract.model import Model
from layercache.extract.tokenize import Sample


class FullPasses:
    """Next-token states of many exits, each by passes of its own; used as `sweep.Sweep` is."""

    def __init__(self, model: Model, pad_id: int) -> None:
        self.model, self.pad_id = model, pad_id
        self._rows: list[tuple[int, Sample]] = []

    def start(self, samples: list[Sample], layers: Sequence[int]) -> torch.Tensor:
        """Return float32 [rows, d]: the last state of every (layer, sample), deepest layer first."""
        self._rows = [(layer, sample) for layer in sorted(set(layers), reverse=True) for sample in samples]
        return self._last()

    def step(self, tokens: torch.Tensor, keep: list[int]) -> torch.Tensor:
        """Add a token to every row that goes on; return their last states, float32 [kept, d]."""
        new = tokens.cpu().numpy()
        self._rows = [
            (layer, with_tokens(sample, token))
            for (layer, sample), token in zip((self._rows[i] for i in keep), new[:, None], strict=True)
        ]
        return self._last()

    def forget(self) -> None:
        """Let the rows go."""
        self._rows = []

    def states(self, samples: list[Sample], layer: int) -> list[torch.Tensor]:
        """Return a layer's states of some samples, float32 [n, d] each."""
        keep, plan, feed = _Keep(layer), self.model.plan, self.model.feed
        # A model that padding changes is run as it is: one prompt at a time.
        batches = [samples] if feed.together == "padded" else [[sample] for sample in samples]
        found = []
        for members in batches:
            batch = collate(
                members, plan.device, pad_id=self.pad_id, position_offset=plan.position_offset, left=feed.left
            )
            Forward(self.model, [keep]).run(batch)
            found += keep.states
        return found

    def _last(self) -> torch.Tensor:
        found = []
        for layer in dict.fromkeys(layer for layer, _ in self._rows):
            found += [states[-1] for states in self.states([s for k, s in self._rows if k == layer], layer)]
        return torch.stack(found)


class _Keep:
    """A reducer that keeps one layer's states of real tokens."""

    table = ""

    def __init__(self, layer: int) -> None:
        self.wants = frozenset({(RESID, layer)})
        self.states: list[torch.Tensor] = []

    def start(self, batch: Batch) -> None:
        self.states = []

    def take(self, site: str, layer: int, hidden: torch.Tensor, batch: Batch) -> None:
        ends = zip(batch.starts.tolist(), batch.lengths.tolist(), strict=True)
        hidden = hidden.float().to(batch.device)
        self.states = [hidden[row, start : start + n].clone() for row, (start, n) in enumerate(ends)]

    def finish(self, batch: Batch) -> Collect:
        return lambda: Rows({})


def with_tokens(sample: Sample, tokens: np.ndarray) -> Sample:
    """Return a sample with more tokens [n] at its end; only its tokens are of use."""
    return replace(
        sample,
        tokens=np.concatenate([sample.tokens, tokens.astype(sample.tokens.dtype)]),
        special=np.concatenate([sample.special, np.zeros(len(tokens), dtype=bool)]),
    )
