"""How far a run's states are from the same model's in float32: the noise of its dtype, kernels, weights and batches.

A few samples are run again one at a time, in float32, with eager attention and weights that are not quantised
(an adapter stays), and the state of every layer at their last token is compared with the run's own, in batches
as the run makes them. The two models are never in memory together; the float32 one takes 4 bytes a parameter.
"""

import gc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import torch

from layercache.errors import ModelError
from layercache.extract import model, quantize
from layercache.extract.batching import Batch, collate, is_out_of_memory
from layercache.extract.checkpoint import quiet
from layercache.extract.copies import to_device
from layercache.extract.forward import RESID, Collect, Forward, Rows
from layercache.extract.model import Plan
from layercache.extract.tokenize import Sample
from layercache.quantities import in_words


class LastTokens:
    """A reducer that keeps every layer's state at a sample's last token, in float32 on the host."""

    table = ""

    def __init__(self, layers: Sequence[int]) -> None:
        self.wants = frozenset((RESID, layer) for layer in layers)
        self._kept: dict[int, dict[str, torch.Tensor]] = {layer: {} for layer in layers}

    def start(self, batch: Batch) -> None:
        """Need nothing."""

    def take(self, site: str, layer: int, hidden: torch.Tensor, batch: Batch) -> None:
        """Copy the state of the last real token of every row of [B, T, d], as float32 [d]."""
        rows = torch.arange(len(batch.samples), device=hidden.device)
        last = to_device(batch.starts + batch.lengths - 1, hidden.device)
        states = hidden[rows, last].float().cpu()
        self._kept[layer] |= {sample.id: state for sample, state in zip(batch.samples, states, strict=True)}

    def finish(self, batch: Batch) -> Collect:
        """Store nothing."""
        return lambda: Rows({})

    def stacked(self, samples: Sequence[Sample]) -> dict[int, torch.Tensor]:
        """Return layer → float32 [samples, d]."""
        return {layer: torch.stack([kept[one.id] for one in samples]) for layer, kept in self._kept.items()}


def check(plan: Plan) -> None:
    """Refuse a model that has no weights to compare with.

    Raises:
        ModelError: the checkpoint itself is quantised.
    """
    own = quantize.own_method(plan.checkpoint)
    if own is not None:
        raise ModelError(
            f"model {plan.checkpoint.name} comes quantised ({own}), so there are no other weights that --reference"
            " could compare it with"
        )


def choose(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """Choose samples at random, the same whatever order they come in."""
    distinct = {sample.id: sample for sample in samples}
    names = sorted(distinct)
    picked = np.random.default_rng(seed).choice(len(names), size=min(count, len(names)), replace=False)
    return [distinct[names[i]] for i in sorted(picked)]


def states(plan: Plan, samples: Sequence[Sample]) -> dict[int, torch.Tensor]:
    """Run samples alone through the model in float32, unquantised, with eager attention.

    Returns:
        Layer → float32 [samples, d], every layer's state at the last token.

    Raises:
        ModelError: the model does not fit in memory in float32.
    """
    exact = replace(plan, dtype=torch.float32, attention="eager", quantization=None, compiled=False)
    _check_memory(exact)
    loaded = model.load(exact)
    keep = LastTokens([layer for layer, _ in loaded.structure.layers])
    forward = Forward(loaded, [keep])
    try:
        with quiet():
            for sample in samples:
                offset = exact.position_offset
                forward.run(collate([sample], exact.device, pad_id=0, position_offset=offset, left=False))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(_too_large(exact)) from error
    del loaded, forward
    gc.collect()
    if exact.device.type == "cuda":
        torch.cuda.empty_cache()
    return keep.stacked(samples)


def differences(found: dict[int, torch.Tensor], expected: dict[int, torch.Tensor]) -> dict[str, Any]:
    """Return relative L2 differences ‖found - expected‖ / ‖expected‖ by layer: median and largest over samples.

    Args:
        found, expected: layer → states [samples, d], samples in one order.
    """
    layers = sorted(expected)
    each = [
        (found[layer].double() - expected[layer].double()).norm(dim=-1)
        / expected[layer].double().norm(dim=-1).clamp_min(1e-12)
        for layer in layers
    ]
    return {
        "samples": len(each[0]),
        "against": "float32, eager, not quantised, one sample at a time",
        "state": "last token",
        "layers": layers,
        "median": [float(f"{np.median(one.numpy()):.3g}") for one in each],
        "max": [float(f"{float(one.max()):.3g}") for one in each],
    }


def note(measured: dict[str, Any]) -> str:
    """Say in one line how far a run is from its reference."""
    worst = int(np.argmax(measured["max"]))
    return (
        f"reference: states of {measured['samples']:,} samples differ from float32 by {max(measured['median']):.1e}"
        f" (median, worst layer), at most {measured['max'][worst]:.1e} (layer {measured['layers'][worst]})"
    )


def _check_memory(plan: Plan) -> None:
    """On a CPU, refuse what would end the process; a GPU says so itself."""
    if plan.device.type == "cpu" and psutil.virtual_memory().available < _bytes(plan):
        raise ModelError(_too_large(plan))


def _bytes(plan: Plan) -> int:
    return 4 * sum(parameter.numel() for parameter in plan.structure.base.parameters())


def _too_large(plan: Plan) -> str:
    return (
        f"--reference needs the model in float32 ({in_words(_bytes(plan))}), which does not fit in the memory of"
        f" {plan.device}: leave it out"
    )
