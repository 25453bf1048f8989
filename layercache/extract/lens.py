"""The logit lens: what every layer's state would predict, compared with what the model predicts in the end.

The states at the positions asked for are kept until the last layer has run, because every number of
`to_final` needs the final distribution. Logits are made and reduced in chunks; (layers × positions ×
vocabulary) never exists at once.

With z the logits of a layer, p = softmax(z), f the final layer's p, all in nats:

    logsumexp = log Σ exp z        entropy = -Σ p log p        target_rank = |{v : z_v > z_target}|
    kl_to_final = KL(p ‖ f) = Σ p (log p - log f)
    js_to_final = ½ KL(p ‖ m) + ½ KL(f ‖ m), m = (p + f) / 2    (= H(m) - ½ H(p) - ½ H(f))
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from layercache.extract.batching import Batch
from layercache.extract.choices import Choices, Rest
from layercache.extract.copies import HostCopy, to_device
from layercache.extract.forward import RESID, Collect, Rows
from layercache.extract.pooling import token_range
from layercache.extract.tokenize import Sample
from layercache.extract.unembed import Unembedding
from layercache.extract.words import Words
from layercache.outputs import Lens
from layercache.store.schema import TABLES

_CHUNK_ELEMENTS = 1 << 24
_STATISTICS_ELEMENTS = 1 << 19
"""Logits whose statistics are taken together; small enough to stay in a CPU's cache."""
_BLOCK = 128
_LOG2_E = 1.4426950408889634
_TINY = 1e-38
_FLOOR = -10_000.0
"""A log-probability whose exponential is 0; keeps 0 · log 0 a number where a logit is -inf."""


@dataclass
class Reading:
    """What the lens says of some states, one row each, on the host.

    Attributes:
        entropy, logsumexp, kl_to_final, js_to_final: float32 [n], nats.
        top_ids, top_logprobs: [n, k], best first.
        target_logprob, target_rank: [n]; meaningless where there is no target.
        agrees: bool [n], the most probable token is the final layer's.
        choice_logprobs: float32 [n, c], of c more tokens.
    """

    entropy: np.ndarray
    logsumexp: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray
    target_logprob: np.ndarray
    target_rank: np.ndarray
    kl_to_final: np.ndarray
    js_to_final: np.ndarray
    agrees: np.ndarray
    choice_logprobs: np.ndarray


@dataclass(frozen=True)
class _Place:
    """A position of a sample of the batch that the lens reads."""

    lens: Lens
    row: int
    position: int
    target: int | None


_Statistics = tuple[torch.Tensor, ...]
"""The fields of `Reading` on the device."""


class LensReducer:
    """Reads the lens at chosen positions into the table `lens`.

    Args:
        layers: output → the layers wanted, of 0…L.
        final_layer: L.
        unembedding: the model's tail.
        words: token ids as text.
        choices: the answers that outputs with choices score.
    """

    table = "lens"

    def __init__(
        self,
        layers: dict[Lens, list[int]],
        final_layer: int,
        unembedding: Unembedding,
        words: Words,
        choices: Choices | None = None,
    ) -> None:
        self.layers = layers
        self.choices = choices
        self.unembedding = unembedding
        self.words = words
        # The final layer's distribution is always needed, stored or not.
        wanted = {layer for numbers in layers.values() for layer in numbers} | {final_layer}
        self.wants = frozenset((RESID, layer) for layer in wanted)
        self._places: list[_Place] = []
        self._states: dict[int, torch.Tensor] = {}

    def start(self, batch: Batch) -> None:
        """Find the positions to read, and the token that follows each."""
        self._places = [
            _Place(lens, row, position, following(sample, position))
            for lens in self.layers
            for row, sample in enumerate(batch.samples)
            for position in range(*(token_range(sample, lens.position) or (0, 0)))
        ]
        rows = np.array([place.row for place in self._places], dtype=np.int64)
        columns = np.array([place.position for place in self._places], dtype=np.int64) + batch.starts[rows]
        self._rows, self._columns = to_device(rows, batch.device), to_device(columns, batch.device)
        self._states = {}

    def take(self, site: str, layer: int, hidden: torch.Tensor, batch: Batch) -> None:
        """Keep a copy of the states [B, T, d] at the positions read: float32 [places, d], where the unembedding is."""
        rows, columns = self._rows.to(hidden.device), self._columns.to(hidden.device)
        self._states[layer] = hidden[rows, columns].float().to(self.unembedding.device)

    def finish(self, batch: Batch) -> Collect:
        """Unembed every layer's states; the rows are named when they are collected."""
        places = self._places
        if not places:
            return lambda: Rows({})
        layers = sorted(layer for _, layer in self.wants)
        follow = to_device(np.array([place.target or 0 for place in places], dtype=np.int64), self.unembedding.device)
        states = torch.stack([self._states[layer] for layer in layers])
        self._states = {}
        firsts = self._first_tokens(batch)
        reading = read(self.unembedding, states, follow, max(lens.top_k for lens in self.layers), firsts)
        rest = {} if self.choices is None else self.choices.rest
        return lambda: Rows(self._columns_of(reading(), places, layers, batch, rest))

    def _first_tokens(self, batch: Batch) -> torch.Tensor:
        """Return the first token of every choice at every place, int64 [places, c]; 0 where none is scored."""
        found = np.zeros((len(self._places), 0 if self.choices is None else len(self.choices.texts)), dtype=np.int64)
        for n, place in enumerate(self._places):
            if self.choices is not None and place.lens.choices:
                found[n] = self.choices.first_tokens(batch.samples[place.row])
        return to_device(found, self.unembedding.device)

    def _choices_column(
        self, first: np.ndarray, owners: list[_Place], layer: np.ndarray, batch: Batch, rest: Rest
    ) -> pa.Array:
        """Return the scores of the choices at every row, NULL where none are scored; `first` is float32 [rows, c]."""
        scored = np.array([bool(place.lens.choices) for place in owners], dtype=bool)
        if self.choices is None or not scored.any():
            return pa.nulls(len(owners), TABLES["lens"].columns[-1].type)
        samples = [batch.samples[place.row] for place in owners if place.lens.choices]
        return self.choices.column(first[scored], samples, layer[scored], scored, rest)

    def _columns_of(
        self, reading: Reading, places: list[_Place], layers: list[int], batch: Batch, rest: Rest
    ) -> dict[str, Any]:
        flat = np.array([layer in self.layers[place.lens] for layer in layers for place in places], dtype=bool)
        layer = np.repeat(np.array(layers, dtype=np.int32), len(places))[flat]
        place = np.tile(np.arange(len(places)), len(layers))[flat]
        take, owners = pa.array(place), [places[n] for n in place.tolist()]
        targets = pa.array([one.target for one in places], pa.int32()).take(take)
        missing = targets.is_null()
        ks = np.array([one.lens.top_k for one in places], dtype=np.int64)[place]
        ids, logprobs = _ragged(reading.top_ids[flat], ks), _ragged(reading.top_logprobs[flat], ks)
        return {
            "sample_id": pa.array([batch.samples[one.row].id for one in places], pa.string()).take(take),
            "output": pa.array([str(one.lens) for one in places], pa.string()).take(take),
            "layer": layer,
            "position": pa.array([one.position for one in places], pa.int32()).take(take),
            "position_name": pa.array([str(one.lens.position) for one in places], pa.string()).take(take),
            "entropy": reading.entropy[flat],
            "logsumexp": reading.logsumexp[flat],
            "top_ids": ids,
            "top_tokens": pa.ListArray.from_arrays(ids.offsets, self.words.texts(ids.values.to_numpy())),
            "top_logprobs": logprobs,
            "target_id": targets,
            "target_logprob": pa.array(reading.target_logprob[flat], mask=missing.to_numpy(zero_copy_only=False)),
            "target_rank": pa.array(reading.target_rank[flat], mask=missing.to_numpy(zero_copy_only=False)),
            "kl_to_final": reading.kl_to_final[flat],
            "js_to_final": reading.js_to_final[flat],
            "agrees_with_final": reading.agrees[flat],
            "choices": self._choices_column(reading.choice_logprobs[flat], owners, layer, batch, rest),
        }


def following(sample: Sample, position: int) -> int | None:
    """Return the token the lens follows at a position: the sample's own next one; at the prompt's end the declared target."""
    if position + 1 == sample.prompt_length:
        return sample.target
    return int(sample.tokens[position + 1]) if position + 1 < len(sample) else None


def read(
    unembedding: Unembedding,
    states: torch.Tensor,
    targets: torch.Tensor,
    top_k: int,
    choices: torch.Tensor | None = None,
) -> Callable[[], Reading]:
    """Read the lens at every layer of some positions.

    Args:
        states: float32 [layers, n, d], before the final norm; the last is that of layer L.
        targets: int64 [n], any valid id where there is no target.
        choices: int64 [n, c], more tokens whose log-probability is wanted.

    Returns:
        What waits for the rows, in the order layer, then position.
    """
    followed = targets[:, None] if choices is None else torch.cat([targets[:, None], choices], dim=1)
    layers, n, width = states.shape
    elements = _CHUNK_ELEMENTS if states.device.type == "cpu" else 4 * _CHUNK_ELEMENTS
    rows = max(1, elements // unembedding.vocabulary)
    per_layer: list[list[_Statistics]] = [[] for _ in range(layers)]
    for start in range(0, n, rows):
        here = slice(start, min(n, start + rows))
        # As many layers at once as fit, since one tall product reads the unembedding once; the last ones
        # first, since all are compared with the very last.
        group = max(1, rows // (here.stop - start))
        final = None
        for stop in range(layers, 0, -group):
            part = states[max(0, stop - group) : stop, here]
            logits = unembedding(part.reshape(-1, width)).view(len(part), here.stop - start, -1)
            final = final or _Final(logits[-1])
            for layer, one in zip(range(stop - len(part), stop), logits, strict=True):
                found = _statistics(one, final, followed[here], top_k)
                # Against itself the final layer is 0, which sums of rounded products are only nearly.
                per_layer[layer].append(found if layer < layers - 1 else _without_divergence(found))
    flat = [piece for pieces in per_layer for piece in pieces]
    columns = [HostCopy(torch.cat(column)) for column in zip(*flat, strict=True)]
    return lambda: Reading(*(column.numpy() for column in columns))


def _without_divergence(found: _Statistics) -> _Statistics:
    names = [field.name for field in fields(Reading)]
    zero = {names.index("kl_to_final"), names.index("js_to_final")}
    return tuple(torch.zeros_like(column) if i in zero else column for i, column in enumerate(found))


def working_bytes(device: torch.device) -> int:
    """Return the memory that the lens works in, beside the states it reads: logits and what is made of them."""
    return 4 * _CHUNK_ELEMENTS * (4 if device.type == "cpu" else 4 * 9)


class _Final:
    """The final layer's distributions of some positions: log-probabilities, entropy and best token."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logp = torch.log_softmax(logits, dim=-1).clamp_min_(_FLOOR)
        self.p = self.logp.exp()
        self.entropy = -_dot(self.p, self.logp)
        self.best = logits.argmax(dim=-1)


def _statistics(logits: torch.Tensor, final: _Final, followed: torch.Tensor, top_k: int) -> _Statistics:
    """Return the fields of `Reading` for logits [n, V], in chunks of rows; `followed` are target and choices [n, 1 + c]."""
    step = max(1, _STATISTICS_ELEMENTS // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    pieces = []
    for start in range(0, len(logits), step):
        rows = slice(start, start + step)
        pieces.append(_rows_statistics(logits[rows], final, rows, followed[rows], top_k))
    return tuple(torch.cat(column) for column in zip(*pieces, strict=True))


def _rows_statistics(z: torch.Tensor, final: _Final, rows: slice, followed: torch.Tensor, top_k: int) -> _Statistics:
    top, top_ids = _top(z, min(top_k, z.shape[1]))
    best = top[:, :1]
    chosen = z.gather(1, followed)
    target = chosen[:, :1]
    # Written as floats: summing booleans is several times slower on a CPU, and counts below 2^24 are exact.
    above = torch.gt(z, target, out=torch.empty_like(z)).sum(dim=1)
    shifted = (z - best).clamp_min_(_FLOOR)
    p = (shifted * _LOG2_E).exp2_()
    total = p.sum(dim=1, keepdim=True)
    log_total = total.log()
    p /= total
    # Σ p log p = Σ p (z - max) - log Σ exp(z - max)
    entropy = log_total[:, 0] - _dot(p, shifted)
    kl = -entropy - _dot(p, final.logp[rows])
    mixture = p.add_(final.p[rows]).mul_(0.5)
    js = -_dot(mixture, mixture.clamp_min(_TINY).log_()) - 0.5 * (entropy + final.entropy[rows])
    logsumexp = best + log_total
    return (
        entropy,
        logsumexp[:, 0],
        top_ids.to(torch.int32),
        top - logsumexp,
        (target - logsumexp)[:, 0],
        above.to(torch.int32),
        kl.clamp_min(0),
        js.clamp_min(0),
        top_ids[:, 0] == final.best[rows],
        chosen[:, 1:] - logsumexp,
    )


def _top(z: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k largest of every row, best first.

    The k largest stand in the k blocks of columns with the largest maxima, so only those are searched; on
    a CPU this is several times faster than `topk` over the vocabulary.
    """
    n, columns = z.shape
    blocks = columns // _BLOCK
    if z.device.type != "cpu" or blocks < 4 * k:
        return torch.topk(z, k, dim=1)
    whole = z[:, : blocks * _BLOCK].view(n, blocks, _BLOCK) if z.is_contiguous() else None
    if whole is None:
        return torch.topk(z, k, dim=1)
    chosen = torch.topk(whole.amax(dim=2), k, dim=1).indices
    places = (chosen[:, :, None] * _BLOCK + torch.arange(_BLOCK)).flatten(1)
    rest = torch.arange(blocks * _BLOCK, columns).expand(n, -1)
    places = torch.cat([places, rest], dim=1)
    values, where = torch.topk(z.gather(1, places), k, dim=1)
    return values, places.gather(1, where)


def _dot(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the product of every row of `left` with that of `right`."""
    return (left * right).sum(dim=-1)


def _ragged(values: np.ndarray, sizes: np.ndarray) -> pa.ListArray:
    """Make lists of the first `sizes[i]` columns of every row."""
    sizes = np.minimum(sizes, values.shape[1])
    kept = values[np.arange(values.shape[1]) < sizes[:, None]]
    return pa.ListArray.from_arrays(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32), kept)
