"""Groups samples into batches with little padding, in an order that leaves a stopped run nearly unbiased.

A window of the next fifty batches' worth of samples, in data order, is sorted by length and cut into
batches; the batches then run in a seeded shuffled order.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch

from layercache.errors import ModelError
from layercache.extract import quantize
from layercache.extract.copies import to_device
from layercache.extract.model import Plan
from layercache.extract.tokenize import Sample

WINDOW = 50
"""Batches a window is worth; with one of 50, padding is within 4 % of a global sort."""
MAX_ROWS = 512
"""Prompts of a batch, however short they are."""
_MOST_TOKENS = {"cpu": 1024, "cuda": 65536}
"""A CPU is no faster with larger batches, and smaller ones are padded less."""
CPU_SHARED_BY = [1]
"""Processes that run a model on this machine's CPU at the same time, each with its share of the memory."""
_MEMORY_SHARE, _MEASURED_SHARE = 0.4, 0.8
"""Of the free memory: what a batch may take by an estimate, and by what smaller batches were seen to take."""


@dataclass
class Budget:
    """Padded tokens a batch may hold; shrinks when memory runs out."""

    tokens: int
    rows: int = MAX_ROWS
    equal: bool = False
    """Only prompts of one length share a batch, for models that padding changes."""

    def halve(self, used: int) -> None:
        """Take half of what a batch that did not fit used.

        Raises:
            ModelError: there is nothing left to halve.
        """
        if self.tokens <= 1:
            raise ModelError("memory runs out even for one token at a time: use a smaller model or dtype")
        self.tokens = max(1, min(self.tokens, used) // 2)


@dataclass(frozen=True)
class Batch:
    """Samples side by side, padded, on the model's device.

    Attributes:
        input_ids, attention_mask, position_ids: int64 [B, T].
        starts: int64 [B], column of every sample's first token (0 with padding on the right); on the host.
        lengths: int64 [B]; on the host.
    """

    samples: list[Sample]
    input_ids: torch.Tensor = field(repr=False)
    attention_mask: torch.Tensor = field(repr=False)
    position_ids: torch.Tensor = field(repr=False)
    starts: npt.NDArray[np.int64] = field(repr=False)
    lengths: npt.NDArray[np.int64] = field(repr=False)

    @property
    def device(self) -> torch.device:
        """Where the model's input is."""
        return self.input_ids.device


def windows(samples: Sequence[Sample], budget: Budget, seed: int) -> Iterator[list[list[Sample]]]:
    """Yield windows of batches; a window is planned with the budget of the moment."""
    rng = np.random.default_rng(seed)
    start = 0
    while start < len(samples):
        stop, tokens, rows = start, 0, 0
        while stop < len(samples) and (
            (tokens < WINDOW * budget.tokens and rows < WINDOW * budget.rows) or stop == start
        ):
            tokens += len(samples[stop])
            rows += 1
            stop += 1
        batches = split(samples[start:stop], budget)
        yield [batches[i] for i in rng.permutation(len(batches))]
        start = stop


def split(samples: Sequence[Sample], budget: Budget) -> list[list[Sample]]:
    """Sort samples by length and cut them into batches within the budget; one that is over it runs alone."""
    batches: list[list[Sample]] = []
    for sample in sorted(samples, key=lambda one: (-len(one), one.id)):
        # Sorted longest first, so a batch is as wide as its first sample.
        here = batches[-1] if batches else []
        fits = here and len(here) < budget.rows and (len(here) + 1) * len(here[0]) <= budget.tokens
        if fits and (len(here[0]) == len(sample) or not budget.equal):
            here.append(sample)
        else:
            batches.append([sample])
    return batches


def padded(samples: Sequence[Sample]) -> int:
    """Count the tokens of a batch, padding included."""
    return max(len(sample) for sample in samples) * len(samples)


def collate(samples: list[Sample], device: torch.device, *, pad_id: int, position_offset: int, left: bool) -> Batch:
    """Pad samples to one width. Positions count real tokens, so both padding sides give the same states."""
    lengths = np.array([len(sample) for sample in samples], dtype=np.int64)
    width = int(lengths.max())
    starts = width - lengths if left else np.zeros_like(lengths)
    ids = np.full((len(samples), width), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, (sample, start) in enumerate(zip(samples, starts, strict=True)):
        ids[row, start : start + len(sample)] = sample.tokens
        mask[row, start : start + len(sample)] = 1
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0) + position_offset
    inputs = [to_device(array, device) for array in (ids, mask, positions)]
    return Batch(samples, inputs[0], inputs[1], inputs[2], starts, lengths)


def automatic(plan: Plan, longest: int, devices: Iterable[torch.device] | None = None, *, reserved: int = 0) -> Budget:
    """Choose a budget from the free memory and the model's size.

    On a CPU this is a cap that has to hold, since running out of memory there ends the process; on a GPU
    it is a start that `fitted` puts right, and that is halved when memory runs out.

    Args:
        longest: tokens of the longest sample, which decides what attention takes.
        devices: those the model runs on, where that is not only the plan's; the fullest one counts.
        reserved: bytes that something else is going to take: the lens, weights that are not read yet.
    """
    free = min(map(free_bytes, devices or [plan.device])) - reserved
    return Budget(max(1, min(most_tokens(plan), int(free * _MEMORY_SHARE / token_bytes(plan, longest)))))


def fitted(plan: Plan, small: tuple[int, int], large: tuple[int, int]) -> int:
    """Choose the tokens of a batch from what two batches took at their peak.

    Args:
        small, large: padded tokens of a batch and the bytes it took; what does not grow with tokens is told
            apart by the two.
    """
    slope = max((large[1] - small[1]) / max(large[0] - small[0], 1), 1.0)
    fixed = max(small[1] - slope * small[0], 0.0)
    return max(1, min(most_tokens(plan), int((free_bytes(plan.device) * _MEASURED_SHARE - fixed) / slope)))


def most_tokens(plan: Plan) -> int:
    """Return the tokens of a batch beyond which the device gets no faster."""
    return _MOST_TOKENS.get(plan.device.type, _MOST_TOKENS["cpu"])


def affordable(plan: Plan, each: int) -> int:
    """Return how many things of `each` bytes the free memory holds, with the share kept back that a batch leaves."""
    return int(free_bytes(plan.device) * _MEMORY_SHARE / max(each, 1))


def token_bytes(plan: Plan, longest: int) -> int:
    """Estimate the bytes one padded token needs while a block runs."""
    config: Any = plan.checkpoint.config.get_text_config()
    width = plan.structure.width
    inner = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * width
    inner = max(inner) if isinstance(inner, (list, tuple)) else inner
    heads = getattr(config, "num_attention_heads", None) or 1
    attention = 2 * heads * longest if plan.attention == "eager" else 0
    element = torch.empty(0, dtype=plan.dtype).element_size()
    # int8 keeps a float16 copy of a layer's input and sums in int32; an adapter's own path is in float32.
    special = quantize.is_int8(plan.checkpoint, plan.quantization) or plan.checkpoint.adapter is not None
    copies = 8 * max(inner, width) if special else 0
    # A float32 copy of the state is made for pooling and norms; the rest is in the model's dtype.
    return int((8 * width + 3 * inner + attention) * element + 2 * width * 4 + copies)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell running out of memory from other failures; a CPU allocator says it in words only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "not enough memory" in str(error)
    )


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return int(psutil.virtual_memory().available) // CPU_SHARED_BY[0]
