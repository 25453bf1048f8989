"""The reducer of hidden states: poolings of the tokens of spans, many at once.

All means of a layer are one product of a weight matrix [B, means, T] with the states [B, T, d]; single
tokens are one gather. Everything is float32 from there on, and is rounded on the device.

    mean          over the span's tokens, special ones left out
    mean+special  over all of them
    mean-sinks    as `mean`, without attention sinks: tokens whose L2 norm is above `outputs.SINK_CUTOFF` (or the
                  number in the pooling's name) times the median norm of the prompt's non-special tokens at that
                  layer, the lower of two middle ones; n_excluded says how many
    max           element-wise, over the tokens of `mean`
    first, last   one token
    token         every token, a row each

`first`, `last`, `token` and `mean+special` over the prompt mean all real tokens, special and chat-template ones
included, up to where a generated answer begins.
"""

import numpy as np
import pyarrow as pa
import torch

from layercache.extract.batching import Batch
from layercache.extract.copies import HostCopy, to_device
from layercache.extract.forward import Absent, Collect, Rows
from layercache.extract.precision import round_mantissa
from layercache.extract.tokenize import NOT_RUN, Sample
from layercache.outputs import WHOLE_PROMPT, Feature, Hidden, sink_cutoff

_TOKEN_POOLINGS = ("first", "last", "token")
_NOT_COUNTED, _NO_TOKEN_LEFT = -1, -2
"""In place of a number of excluded tokens: for poolings that exclude none, and where all were."""
ONLY_SINKS = "only attention sinks"


def token_mask(sample: Sample, span: str, *, special: bool = False) -> np.ndarray:
    """Return which of a sample's tokens a mean over a span reads: bool [n], `special` ones only if asked."""
    mask = np.zeros(len(sample), dtype=bool)
    found = _range(sample, span) if special else sample.spans.get(span)
    if found is not None:
        mask[slice(*found)] = True if special else ~sample.special[slice(*found)]
    return mask


def _range(sample: Sample, span: str) -> tuple[int, int] | None:
    """Return where a span's tokens are; over the prompt that is all real tokens before a generated answer."""
    if span == WHOLE_PROMPT and sample.absent.get(span) != NOT_RUN:
        return 0, sample.prompt_length
    return sample.spans.get(span)


def token_range(sample: Sample, feature: Feature) -> tuple[int, int] | None:
    """Return the tokens [start, end) that `first`, `last` or `token` means; None where the span is not there.

    Over the prompt these are of all real tokens, special and chat-template ones included; over another
    span, of the span's own.
    """
    found = _range(sample, feature.span)
    if found is None or feature.how == "token":
        return found
    start, end = found
    return (start, start + 1) if feature.how == "first" else (end - 1, end)


def absent_reason(sample: Sample, feature: Feature) -> str | None:
    """Say why a sample has no row for a pooling or position; None when it has one."""
    if feature.how in _TOKEN_POOLINGS:
        there = token_range(sample, feature) is not None
    else:
        there = bool(_mask(sample, feature).any())
    return None if there else sample.absent.get(feature.span, "empty span")


def n_rows(sample: Sample, feature: Feature) -> int:
    """Count the rows that a sample has at a layer: one, none, or one a token."""
    if absent_reason(sample, feature) is not None:
        return 0
    start, end = (token_range(sample, feature) if feature.how == "token" else None) or (0, 1)
    return end - start


def _mask(sample: Sample, feature: Feature) -> np.ndarray:
    return token_mask(sample, feature.span, special=feature.how == "mean+special")


def batch_mask(batch: Batch, feature: Feature) -> np.ndarray:
    """Return which of a batch's padded tokens a mean or `max` reads: bool [B, T]."""
    mask = np.zeros(tuple(batch.input_ids.shape), dtype=bool)
    for row, (sample, start) in enumerate(zip(batch.samples, batch.starts.tolist(), strict=True)):
        mask[row, start : start + len(sample)] = _mask(sample, feature)
    return mask


def ordinary(states: torch.Tensor, mask: torch.Tensor, cutoff: float) -> torch.Tensor:
    """Return which tokens are no attention sinks: norm at most `cutoff` times the sample's median.

    Args:
        states: float32 [B, T, d].
        mask: bool [B, T], the tokens whose median norm counts: of an even number the lower middle one, so that
            one sink among two tokens is found.

    Returns:
        bool [B, T]; means nothing for a sample without such tokens.
    """
    return small(torch.linalg.vector_norm(states, dim=-1), mask, cutoff)


def small(norms: torch.Tensor, mask: torch.Tensor, cutoff: float) -> torch.Tensor:
    """Return what `ordinary` does, of the tokens' norms [B, T]."""
    middle = (mask.sum(dim=1, keepdim=True) - 1).clamp_min(0) // 2
    return norms <= cutoff * norms.masked_fill(~mask, float("inf")).sort(dim=1).values.gather(1, middle)


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
            self._at[site, layer] = sorted(here)
        self._pools: dict[tuple[Feature, ...], _Pool] = {}
        self._states: list[torch.Tensor] = []
        self._excluded: list[torch.Tensor] = []
        self._keys: list[tuple[str, int, _Pool]] = []

    def start(self, batch: Batch) -> None:
        """Work out which tokens every pooling reads."""
        distinct = {tuple(features) for features in self._at.values()}
        self._pools = {features: _Pool(features, batch) for features in distinct}
        self._states, self._excluded, self._keys = [], [], []

    def take(self, site: str, layer: int, hidden: torch.Tensor, batch: Batch) -> None:
        """Pool the states [B, T, d] of a site and layer for every feature wanted there."""
        pool = self._pools[tuple(self._at[site, layer])]
        states, excluded = pool(hidden)
        self._states.append(states)
        self._excluded.append(excluded)
        self._keys.append((site, layer, pool))

    def finish(self, batch: Batch) -> Collect:
        """Round on the device and start the copies; the rows are named when they are collected."""
        first = self._states[0].device  # A model may be spread over several.
        states = HostCopy(round_mantissa(torch.cat([state.to(first) for state in self._states]), self.bits))
        excluded = HostCopy(torch.cat([one.to(first) for one in self._excluded]))
        keys = self._keys
        self._states, self._excluded = [], []
        return lambda: _rows(states.numpy(), excluded.numpy(), keys, batch)


def _rows(states: np.ndarray, excluded: np.ndarray, keys: list[tuple[str, int, "_Pool"]], batch: Batch) -> Rows:
    """Name the rows: states float32 [rows, d] and excluded tokens int32 [rows], pool after pool of `keys`."""
    ids = pa.array([sample.id for sample in batch.samples])
    sizes = np.array([len(pool.samples) for _, _, pool in keys])
    columns = {
        "sample_id": ids.take(pa.array(np.concatenate([pool.samples for _, _, pool in keys]))),
        "site": pa.array([site for site, _, _ in keys]).take(pa.array(np.repeat(np.arange(len(sizes)), sizes))),
        "layer": pa.array(np.repeat(np.array([layer for _, layer, _ in keys], dtype=np.int32), sizes)),
        "pooling": pa.concat_arrays([pool.names for _, _, pool in keys]),
        "position": pa.concat_arrays([pool.positions for _, _, pool in keys]),
        "n_excluded": pa.array(excluded, mask=excluded == _NOT_COUNTED),
    }
    gone = excluded == _NO_TOKEN_LEFT
    if not gone.any():
        return Rows({**columns, "vector": states})
    kept = {name: column.filter(pa.array(~gone)) for name, column in columns.items()}
    return Rows({**kept, "vector": states[~gone]}, _only_sinks(columns, gone))


def _only_sinks(columns: dict[str, pa.Array], gone: np.ndarray) -> list[Absent]:
    """Name the samples and outputs of the rows that are not there, each once."""
    rows = pa.table({name: columns[name].filter(pa.array(gone)) for name in ("sample_id", "site", "pooling")})
    names = [(row["sample_id"], f"hidden:{row['site']}:{row['pooling']}") for row in rows.to_pylist()]
    return [Absent(sample_id, output, ONLY_SINKS) for sample_id, output in dict.fromkeys(names)]


class _Pool:
    """Several poolings of one batch: called with a state, it returns float32 [rows, d] and int32 [rows] of what
    `n_excluded` says of each.

    Attributes:
        samples: int64 [rows], every row's sample within the batch.
        names, positions: every row's pooling, and token position where it is that of one token.
    """

    def __init__(self, features: tuple[Feature, ...], batch: Batch) -> None:
        means = [f for f in features if f.how in ("mean", "mean+special")]
        sinks = [(f, cutoff) for f in features if (cutoff := sink_cutoff(f.how)) is not None]
        self._means = _Masks(means, batch)
        self._maxes = _Masks([f for f in features if f.how == "max"], batch)
        self._sinks = _Masks([f for f, _ in sinks], batch)
        self._cutoffs = [cutoff for _, cutoff in sinks]
        prompt = Feature("mean", WHOLE_PROMPT)
        self._prompt = to_device(batch_mask(batch, prompt), batch.device) if sinks else None
        self._tokens = _Tokens([f for f in features if f.how in _TOKEN_POOLINGS], batch)
        parts: list[_Masks | _Tokens] = [self._means, self._maxes, self._sinks, self._tokens]
        self.samples = np.concatenate([part.samples for part in parts])
        self.names = pa.concat_arrays([part.names for part in parts])
        pooled = len(self.samples) - len(self._tokens.samples)
        self.positions = pa.concat_arrays([pa.nulls(pooled, pa.int32()), pa.array(self._tokens.places, pa.int32())])

    def __call__(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        here = hidden.device  # A model may be spread over several.
        parts = [hidden.new_zeros((0, hidden.shape[-1]), dtype=torch.float32)]
        excluded = torch.full((len(self.samples),), _NOT_COUNTED, dtype=torch.int32, device=here)
        if len(self._means.samples):
            parts.append(self._means.mean(hidden.float(), self._means.weights.to(here)))
        if len(self._maxes.samples):
            values = hidden.float()
            masks = self._maxes.masks.to(here)
            most = [values.masked_fill(~mask[:, :, None], float("-inf")).amax(dim=1) for mask in masks]
            parts.append(torch.cat(most)[self._maxes.index.to(here)])
        if len(self._sinks.samples):
            before = sum(len(part) for part in parts)
            means, left_out = self._without_sinks(hidden.float())
            parts.append(means)
            excluded[before : before + len(means)] = left_out
        if len(self._tokens.samples):
            parts.append(hidden[self._tokens.rows.to(here), self._tokens.columns.to(here)].float())
        return torch.cat(parts), excluded

    def _without_sinks(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._prompt is not None
        here = states.device
        masks, index = self._sinks.masks.to(here), self._sinks.index.to(here)
        small = {cutoff: ordinary(states, self._prompt.to(here), cutoff) for cutoff in set(self._cutoffs)}
        kept = torch.stack([mask & small[c] for mask, c in zip(masks, self._cutoffs, strict=True)])
        left = kept.sum(dim=2)
        weights = (kept / left.clamp_min(1)[:, :, None]).transpose(0, 1)
        left = left.flatten()[index]
        gone = masks.sum(dim=2).flatten()[index] - left
        gone = gone.masked_fill(left == 0, _NO_TOKEN_LEFT)
        return self._sinks.mean(states, weights), gone.to(torch.int32)


class _Tokens:
    """Which single tokens several features read in a batch, a row each.

    Attributes:
        samples: int64 [rows], every row's sample within the batch.
        names: every row's pooling.
        places: int64 [rows], token positions.
        rows, columns: int64, the same in the padded batch.
    """

    def __init__(self, features: list[Feature], batch: Batch) -> None:
        found = [
            (f, i, token_range(s, feature)) for f, feature in enumerate(features) for i, s in enumerate(batch.samples)
        ]
        there = [(f, i, *ends) for f, i, ends in found if ends is not None]
        which, samples, starts, ends = np.array(there, dtype=np.int64).reshape(-1, 4).T
        sizes = ends - starts
        self.samples = np.repeat(samples, sizes)
        self.names = pa.array([str(f) for f in features], pa.string()).take(pa.array(np.repeat(which, sizes)))
        first = np.repeat(np.cumsum(sizes) - sizes, sizes)
        self.places = np.repeat(starts, sizes) + np.arange(len(self.samples)) - first
        self.rows = to_device(self.samples, batch.device)
        self.columns = to_device(self.places + batch.starts[self.samples], batch.device)


class _Masks:
    """Which tokens several features read in a batch.

    Attributes:
        samples, names: the (feature, sample) that have tokens, feature by feature: the sample within the batch,
            the pooling.
        index: int64, where those are in a result [features * B, d].
        masks: bool [features, B, T].
        weights: float32 [B, features, T], rows summing to 1.
    """

    def __init__(self, features: list[Feature], batch: Batch) -> None:
        shape = (len(features), *batch.input_ids.shape)
        masks = np.array([batch_mask(batch, feature) for feature in features], dtype=bool).reshape(shape)
        counts = masks.sum(axis=2)
        which, self.samples = np.nonzero(counts)
        self.names = pa.array([str(f) for f in features], pa.string()).take(pa.array(which))
        self.index = to_device(np.flatnonzero(counts), batch.device)
        self.masks = to_device(masks, batch.device)
        weights = masks / np.maximum(counts, 1)[:, :, None]
        self.weights = to_device(weights.astype(np.float32).transpose(1, 0, 2), batch.device)

    def mean(self, states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return the weighted means, float32 [rows, d], of states [B, T, d]; weights float32 [B, features, T]."""
        return torch.bmm(weights, states).transpose(0, 1).flatten(0, 1)[self.index.to(states.device)]
