"""The reducer of hidden states: mean, max, first and last over spans, many at once.

All means of a layer are one product of a weight matrix [B, means, T] with the states [B, T, d]; first
and last are one gather. Everything is float32 from there on, and is rounded on the device.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from layercache.extract.batching import Batch
from layercache.extract.precision import round_mantissa
from layercache.extract.tokenize import Sample
from layercache.outputs import WHOLE_PROMPT, Feature, Hidden

_TOKEN_POOLINGS = ("first", "last")


def token_mask(sample: Sample, span: str) -> np.ndarray:
    """Return which of a sample's tokens `mean` and `max` read: the span's, without special ones; bool [n]."""
    mask = np.zeros(len(sample), dtype=bool)
    if span in sample.spans:
        start, end = sample.spans[span]
        mask[start:end] = ~sample.special[start:end]
    return mask


def token_position(sample: Sample, feature: Feature) -> int | None:
    """Return the token that `first` or `last` means; None where the span is not there.

    Over the prompt these are the first and last of all real tokens, special and chat-template ones
    included; over another span, of the span's own.
    """
    if feature.span == WHOLE_PROMPT:
        start, end = 0, len(sample)
    elif feature.span in sample.spans:
        start, end = sample.spans[feature.span]
    else:
        return None
    return start if feature.how == "first" else end - 1


def absent_reason(sample: Sample, feature: Feature) -> str | None:
    """Say why a sample has no row for a pooling or position; None when it has one."""
    if feature.how in _TOKEN_POOLINGS:
        there = token_position(sample, feature) is not None
    else:
        there = bool(token_mask(sample, feature.span).any())
    return None if there else sample.absent.get(feature.span, "empty span")


class HiddenReducer:
    """Pools states into the table `hidden`.

    Args:
        layers: output → the layers wanted.
        bits: mantissa bits that vectors keep.
    """

    table = "hidden"

    def __init__(self, layers: dict[Hidden, list[int]], bits: int) -> None:
        self.bits = bits
        self.wants = frozenset((output.site, layer) for output, numbers in layers.items() for layer in numbers)
        self._at: dict[tuple[str, int], list[Feature]] = {}
        for site, layer in self.wants:
            here = [o.pooling for o, numbers in layers.items() if o.site == site and layer in numbers]
            self._at[site, layer] = sorted(here, key=lambda f: (_kind(f), str(f)))
        self._pools: dict[tuple[Feature, ...], _Pool] = {}
        self._states: list[torch.Tensor] = []
        self._keys: list[tuple[str, int, _Pool]] = []

    def start(self, batch: Batch) -> None:
        """Work out which tokens every pooling reads."""
        distinct = {tuple(features) for features in self._at.values()}
        self._pools = {features: _Pool(features, batch) for features in distinct}
        self._states, self._keys = [], []

    def take(self, site: str, layer: int, hidden: torch.Tensor, batch: Batch) -> None:
        """Pool one state for every feature wanted there."""
        pool = self._pools[tuple(self._at[site, layer])]
        self._states.append(pool(hidden))
        self._keys.append((site, layer, pool))

    def finish(self, batch: Batch) -> dict[str, Any]:
        """Round on the device, copy once, and name the rows."""
        first = self._states[0].device
        states = round_mantissa(torch.cat([state.to(first) for state in self._states]), self.bits).cpu().numpy()
        ids = pa.array([sample.id for sample in batch.samples])
        self._states = []
        return {
            "sample_id": ids.take(pa.array(np.concatenate([pool.samples for _, _, pool in self._keys]))),
            "site": _repeat([site for site, _, _ in self._keys], self._keys),
            "layer": np.concatenate([np.full(len(pool.samples), layer, np.int32) for _, layer, pool in self._keys]),
            "pooling": pa.concat_arrays([pool.names for _, _, pool in self._keys]),
            "position": pa.concat_arrays([pool.positions for _, _, pool in self._keys]),
            "vector": states,
        }


def _kind(feature: Feature) -> int:
    return ("mean", "max", *_TOKEN_POOLINGS).index(feature.how)


def _repeat(values: Sequence[str], keys: Iterable[tuple[str, int, "_Pool"]]) -> pa.Array:
    sizes = [len(pool.samples) for _, _, pool in keys]
    return pa.array(values).take(pa.array(np.repeat(np.arange(len(sizes)), sizes)))


class _Pool:
    """Several poolings of one batch: called with a state, it returns float32 [rows, d].

    Attributes:
        samples: int64 [rows], every row's sample within the batch.
        names, positions: every row's pooling, and token position where it is that of one token.
    """

    def __init__(self, features: tuple[Feature, ...], batch: Batch) -> None:
        self._means = _Masks([f for f in features if f.how == "mean"], batch)
        self._maxes = _Masks([f for f in features if f.how == "max"], batch)
        singles = [f for f in features if f.how in _TOKEN_POOLINGS]
        found = [(f, i, token_position(s, f)) for f in singles for i, s in enumerate(batch.samples)]
        there = [(f, i, place) for f, i, place in found if place is not None]
        device = batch.starts.device
        self._rows = torch.tensor([i for _, i, _ in there], dtype=torch.int64, device=device)
        self._columns = torch.tensor([p for _, _, p in there], dtype=torch.int64, device=device)
        self._columns += batch.starts[self._rows]
        self._any = bool(there)
        pooled = [*self._means.there, *self._maxes.there]
        self.samples = np.array([i for _, i in pooled] + [i for _, i, _ in there], dtype=np.int64)
        self.names = pa.array([str(f) for f, _ in pooled] + [str(f) for f, _, _ in there], pa.string())
        self.positions = pa.array([None] * len(pooled) + [p for _, _, p in there], pa.int32())

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        parts = []
        here = hidden.device  # A model may be spread over several.
        if self._means.there:
            means = torch.bmm(self._means.weights.to(here), hidden.float())
            parts.append(means.transpose(0, 1).flatten(0, 1)[self._means.index.to(here)])
        if self._maxes.there:
            values = hidden.float()
            most = [
                values.masked_fill(~mask[:, :, None], float("-inf")).amax(dim=1) for mask in self._maxes.masks.to(here)
            ]
            parts.append(torch.cat(most)[self._maxes.index.to(here)])
        if self._any:
            parts.append(hidden[self._rows.to(here), self._columns.to(here)].float())
        return torch.cat(parts) if parts else hidden.new_zeros((0, hidden.shape[-1]), dtype=torch.float32)


class _Masks:
    """Which tokens several features read in a batch.

    Attributes:
        there: (feature, sample) that have tokens, feature by feature.
        index: int64, where those are in a result [features * B, d].
        masks: bool [features, B, T].
        weights: float32 [B, features, T], rows summing to 1.
    """

    def __init__(self, features: list[Feature], batch: Batch) -> None:
        rows, columns = batch.input_ids.shape
        masks = np.zeros((len(features), rows, columns), dtype=bool)
        starts = batch.starts.tolist()
        for f, feature in enumerate(features):
            for i, sample in enumerate(batch.samples):
                masks[f, i, starts[i] : starts[i] + len(sample)] = token_mask(sample, feature.span)
        counts = masks.sum(axis=2)
        self.there = [(features[f], int(i)) for f, i in zip(*np.nonzero(counts), strict=True)]
        device = batch.starts.device
        self.index = torch.from_numpy(np.flatnonzero(counts)).to(device)
        self.masks = torch.from_numpy(masks).to(device)
        weights = masks / np.maximum(counts, 1)[:, :, None]
        self.weights = torch.from_numpy(weights.astype(np.float32).transpose(1, 0, 2).copy()).to(device)
