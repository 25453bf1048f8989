"""The reducer of statistics over a prompt's tokens: one number a sample, layer and metric, of the residual stream.

A new statistic is a name in `layercache.token_statistics` and one entry of `token_metrics.METRICS`.
"""

from collections import defaultdict
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from layercache.extract.batching import Batch
from layercache.extract.copies import HostCopy, to_device
from layercache.extract.forward import RESID, Absent, Collect, Rows
from layercache.extract.pooling import batch_mask
from layercache.extract.spectrum import Spectra, Values
from layercache.extract.token_metrics import METRICS, NOISE, UNDEFINED, Metric, Tokens, no_spectrum
from layercache.outputs import Stats
from layercache.token_statistics import CENTRE, FIRST, Statistic, parse

_FEW, _NOT_FINITE = "fewer than three tokens", "states that are not numbers"


class _Asked(NamedTuple):
    """An output, as it is computed."""

    output: Stats
    statistic: Statistic
    metric: Metric

    @property
    def least(self) -> int:
        """Tokens that a sample must have."""
        return self.metric.least + (FIRST in self.statistic.options)

    @property
    def prepared(self) -> frozenset[str]:
        """The options with which the tokens' spectrum is taken."""
        return self.statistic.options | ({CENTRE} if self.statistic.metric == "first_pc_share" else set())


class _Spectrum(NamedTuple):
    """Numbers that are on their way from a thread, and which rows they are for."""

    rows: list[int]
    values: Values


class TokenStatsReducer:
    """Computes statistics over tokens into the table `token_stats`.

    Args:
        layers: output → the layers wanted.
    """

    table = "token_stats"

    def __init__(self, layers: dict[Stats, list[int]]) -> None:
        self.wants = frozenset((RESID, layer) for numbers in layers.values() for layer in numbers)
        self._at: dict[int, list[_Asked]] = defaultdict(list)
        for output, numbers in layers.items():
            statistic = parse(output.metric)
            for layer in numbers:
                self._at[layer].append(_Asked(output, statistic, METRICS[statistic.metric]))
        self._feature = next(iter(layers)).feature
        self._spectra = Spectra() if any(parse(output.metric).spectral for output in layers) else None
        self._values: list[torch.Tensor] = []
        self._keys: list[tuple[_Asked, int]] = []
        self._waiting: list[_Spectrum] = []
        self._counts: np.ndarray = np.empty(0, dtype=np.int64)
        self._places = _Places(np.zeros((0, 0), dtype=bool), torch.device("cpu"))

    def start(self, batch: Batch) -> None:
        """Find the tokens that count: the prompt's, special ones left out."""
        mask = batch_mask(batch, self._feature)
        self._counts, self._places = mask.sum(axis=1), _Places(mask, batch.device)
        self._values, self._keys, self._waiting = [], [], []

    def take(self, site: str, layer: int, hidden: torch.Tensor, batch: Batch) -> None:
        """Compute every statistic wanted of the states [B, T, d] of a layer; start on those that take a spectrum."""
        if not self._counts.any():
            return
        # Apple's GPU has no float64.
        tokens = self._places.read(hidden.cpu() if hidden.device.type == "mps" else hidden)
        spectral: dict[frozenset[str], list[int]] = defaultdict(list)
        asked = self._at[layer]
        taken = {one.prepared for one in asked if one.statistic.spectral}
        finite = tokens.trace.isfinite()
        for one in asked:
            # Order 2 is read from a spectrum that is taken anyway.
            if one.metric.of is None or (one.statistic.metric == "prompt_entropy" and one.prepared in taken):
                spectral[one.prepared].append(len(self._keys))
                value = no_spectrum(tokens.made(one.prepared, torch.float64))
            else:
                value = one.metric.of(tokens, one.statistic)
            self._values.append(torch.where(finite, value, torch.nan))
            self._keys.append((one, layer))
        for options, rows in spectral.items():
            self._waiting.append(_Spectrum(rows, self._spectrum(tokens.made(options, torch.float64), options, rows)))

    def _spectrum(self, made: Tokens, options: frozenset[str], rows: list[int]) -> Values:
        assert self._spectra is not None
        counts = self._counts - (FIRST in options)
        width = made.states.shape[2]
        # Eigenvalues of what is not finite are refused; such samples are NaN already.
        gram = made.gram.masked_fill(~made.trace.isfinite()[:, None, None], 0.0)
        sizes = counts.clip(min=0) if made.by_token else np.full_like(counts, width)
        return self._spectra.take(gram, sizes, counts.clip(0, width), [self._keys[row][0].statistic for row in rows])

    def finish(self, batch: Batch) -> Collect:
        """Start the copy of the numbers; the rows are named when they are collected, and spectra are waited for then."""
        keys, waiting, counts = self._keys, self._waiting, self._counts
        if not self._values:
            return lambda: Rows({})
        first = self._values[0].device  # A model may be spread over several.
        values = HostCopy(torch.stack([value.to(first) for value in self._values]))
        self._values, self._waiting = [], []

        def collect() -> Rows:
            found = np.array(values.numpy(), dtype=np.float64)
            for one in waiting:
                # What has no spectrum is NaN or UNDEFINED already, the rest 0.
                found[one.rows] += one.values()
            return _rows(found, keys, counts, batch)

        return collect


class _Places:
    """Where the tokens that count stand in a padded batch.

    Args:
        mask: bool [B, T].
    """

    def __init__(self, mask: np.ndarray, device: torch.device) -> None:
        counts = mask.sum(axis=1)
        most = int(counts.max(initial=0))
        # A stable sort puts a row's tokens first, in their order.
        columns = np.argsort(~mask, axis=1, kind="stable")[:, :most]
        self._there = to_device(np.arange(most)[None] < counts[:, None], device)
        self._columns = to_device(columns, device)
        self._whole = bool(len(counts)) and most > 0 and bool((counts == most).all())
        start = int(columns[0, 0]) if self._whole else 0
        self._slice = slice(start, start + most)
        self._straight = self._whole and bool((columns == np.arange(start, start + most)).all())

    def read(self, hidden: torch.Tensor) -> Tokens:
        """Return the tokens of states [B, T, d]."""
        there = self._there.to(hidden.device)
        noise = NOISE * torch.finfo(hidden.dtype).eps
        if self._straight:
            return Tokens(hidden[:, self._slice].float(), there, noise)
        rows = torch.arange(len(there), device=hidden.device)[:, None]
        states = hidden[rows, self._columns.to(hidden.device)].float()
        return Tokens(states if self._whole else states.masked_fill_(~there[:, :, None], 0.0), there, noise)


def _rows(values: np.ndarray, keys: list[tuple[_Asked, int]], counts: np.ndarray, batch: Batch) -> Rows:
    """Name the rows of float64 [keys, B]; where a sample with tokens has none, say why."""
    few = counts[None] < np.array([one.least for one, _ in keys])[:, None]
    lacking = (few | np.isnan(values) | (values == UNDEFINED)) & (counts > 0)
    gaps = []
    for n, one in np.argwhere(lacking).tolist():
        asked, value = keys[n][0], values[n, one]
        reason = _FEW if few[n, one] else (_NOT_FINITE if np.isnan(value) else asked.metric.reason(asked.statistic))
        gaps.append(Absent(batch.samples[one].id, str(asked.output), reason))
    key, sample = np.nonzero(~lacking & (counts > 0))
    columns = {
        "sample_id": pa.array([one.id for one in batch.samples]).take(pa.array(sample)),
        "layer": np.array([layer for _, layer in keys], dtype=np.int32)[key],
        "metric": pa.array([one.output.metric for one, _ in keys]).take(pa.array(key)),
        "value": values[key, sample],
    }
    return Rows(columns, list(dict.fromkeys(gaps)))
