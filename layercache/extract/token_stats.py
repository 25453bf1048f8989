"""The reducer of statistics over a prompt's tokens: one number a sample, layer and metric, of the residual stream.

A new statistic is a name in `outputs.STATISTICS` and one entry of `_METRICS`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from layercache.extract.batching import Batch
from layercache.extract.forward import RESID, Absent
from layercache.extract.pooling import batch_mask, ordinary
from layercache.outputs import Stats, sink_cutoff

_NOT_FINITE = "states that are not numbers"


class Metric(NamedTuple):
    """A statistic of states float32 [B, T, d] over the tokens of a mask bool [B, T].

    `of` returns float64 [B]; NaN where a sample has no value, and `reason` says why that can be. `cutoff` is the
    multiple of the median norm above which a token is an attention sink; only statistics of sinks read it.
    """

    of: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    reason: str


def _norm(states: torch.Tensor, mask: torch.Tensor, _cutoff: float) -> torch.Tensor:
    """Return the mean L2 norm of the tokens."""
    norms = torch.linalg.vector_norm(states, dim=-1).double().masked_fill(~mask, 0.0)
    total: torch.Tensor = norms.sum(dim=1)
    return total / mask.sum(dim=1)


def _max_norm(states: torch.Tensor, mask: torch.Tensor, _cutoff: float) -> torch.Tensor:
    """Return the largest L2 norm of a token."""
    norms: torch.Tensor = torch.linalg.vector_norm(states, dim=-1).double()
    return norms.masked_fill(~mask, float("-inf")).amax(dim=1).masked_fill(~mask.any(dim=1), float("nan"))


def _sinks(states: torch.Tensor, mask: torch.Tensor, cutoff: float) -> torch.Tensor:
    """Count the attention sinks among the tokens: what `mean-sinks@prompt` leaves out."""
    found = (mask & ~ordinary(states, mask, cutoff)).sum(dim=1).double()
    return found.masked_fill(~mask.any(dim=1), float("nan"))


_METRICS: dict[str, Metric] = {
    "norm": Metric(_norm, _NOT_FINITE),
    "max_norm": Metric(_max_norm, _NOT_FINITE),
    "sinks": Metric(_sinks, _NOT_FINITE),
}


class TokenStatsReducer:
    """Computes statistics over tokens into the table `token_stats`.

    Args:
        layers: output → the layers wanted.
    """

    table = "token_stats"

    def __init__(self, layers: dict[Stats, list[int]]) -> None:
        self.layers = layers
        self.wants = frozenset((RESID, layer) for numbers in layers.values() for layer in numbers)
        self.absent: list[Absent] = []
        self._values: list[torch.Tensor] = []
        self._keys: list[tuple[Stats, int]] = []
        self._mask = torch.empty(0, dtype=torch.bool)

    def start(self, batch: Batch) -> None:
        """Find the tokens that count: the prompt's, special ones left out."""
        feature = next(iter(self.layers)).feature
        self._mask = torch.from_numpy(batch_mask(batch, feature)).to(batch.starts.device)
        self._values, self._keys = [], []

    def take(self, site: str, layer: int, hidden: torch.Tensor, batch: Batch) -> None:
        """Compute every statistic wanted at a layer."""
        # Apple's GPU has no float64.
        states = (hidden.cpu() if hidden.device.type == "mps" else hidden).float()
        for output, numbers in self.layers.items():
            if layer in numbers:
                metric, cutoff = _metric(output)
                self._values.append(metric.of(states, self._mask.to(states.device), cutoff))
                self._keys.append((output, layer))

    def finish(self, batch: Batch) -> dict[str, Any]:
        """Copy the numbers and name the rows; where there is none, say why."""
        values = torch.stack(self._values).cpu().numpy()
        self._values = []
        lacking = np.argwhere(np.isnan(values) & self._mask.any(dim=1).cpu().numpy())
        gaps = [(batch.samples[sample].id, self._keys[key][0]) for key, sample in lacking]
        self.absent = [Absent(one, str(output), _metric(output)[0].reason) for one, output in dict.fromkeys(gaps)]
        key, sample = np.nonzero(~np.isnan(values))
        return {
            "sample_id": pa.array([one.id for one in batch.samples]).take(pa.array(sample)),
            "layer": np.array([layer for _, layer in self._keys], dtype=np.int32)[key],
            "metric": pa.array([output.metric for output, _ in self._keys]).take(pa.array(key)),
            "value": values[key, sample],
        }


def _metric(output: Stats) -> tuple[Metric, float]:
    """Return a statistic and its cut-off: `sinks6` is `sinks` with a cut-off of 6."""
    cutoff = sink_cutoff(output.metric)
    return (_METRICS[output.metric], 0.0) if cutoff is None else (_METRICS["sinks"], cutoff)
