"""The reducer of statistics over a prompt's tokens: one number a sample, layer and metric, of the residual stream.

A new statistic is a name in `outputs.STATISTICS` and one entry of `_METRICS`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from layercache.extract.batching import Batch
from layercache.extract.copies import HostCopy, to_device
from layercache.extract.forward import RESID, Absent, Collect, Rows
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
        self._values: list[torch.Tensor] = []
        self._keys: list[tuple[Stats, int]] = []
        self._mask = torch.empty(0, dtype=torch.bool)
        self._there: np.ndarray = np.empty(0, dtype=bool)

    def start(self, batch: Batch) -> None:
        """Find the tokens that count: the prompt's, special ones left out."""
        feature = next(iter(self.layers)).feature
        mask = batch_mask(batch, feature)
        self._there, self._mask = np.asarray(mask.any(axis=1)), to_device(mask, batch.device)
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

    def finish(self, batch: Batch) -> Collect:
        """Start the copy of the numbers; the rows are named when they are collected."""
        values, keys, there = HostCopy(torch.stack(self._values)), self._keys, self._there
        self._values = []
        return lambda: _rows(values.numpy(), keys, there, batch)


def _rows(values: np.ndarray, keys: list[tuple[Stats, int]], there: np.ndarray, batch: Batch) -> Rows:
    """Name the rows of float64 [keys, B]; where a sample with tokens has none, say why."""
    lacking = np.argwhere(np.isnan(values) & there)
    gaps = [(batch.samples[sample].id, keys[key][0]) for key, sample in lacking]
    key, sample = np.nonzero(~np.isnan(values))
    columns = {
        "sample_id": pa.array([one.id for one in batch.samples]).take(pa.array(sample)),
        "layer": np.array([layer for _, layer in keys], dtype=np.int32)[key],
        "metric": pa.array([output.metric for output, _ in keys]).take(pa.array(key)),
        "value": values[key, sample],
    }
    return Rows(columns, [Absent(one, str(out), _metric(out)[0].reason) for one, out in dict.fromkeys(gaps)])


def _metric(output: Stats) -> tuple[Metric, float]:
    """Return a statistic and its cut-off: `sinks6` is `sinks` with a cut-off of 6."""
    cutoff = sink_cutoff(output.metric)
    return (_METRICS[output.metric], 0.0) if cutoff is None else (_METRICS["sinks"], cutoff)
