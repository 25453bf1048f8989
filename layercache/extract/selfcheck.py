"""Checks, before a run, that a model's states and lens are what they are taken for. Costs four tiny passes.

    hooks     every layer captured equals the model's own `output_hidden_states`
    padding   a prompt alone equals itself padded in a batch, on either side
    lens      the lens at layer L equals the model's own logits

A model that fails is refused: wrong positions or a layer off by one give plausible numbers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from layercache.errors import ModelError
from layercache.extract.batching import Batch, collate
from layercache.extract.forward import RESID, Collect, Forward, Rows, inputs
from layercache.extract.model import Model
from layercache.extract.tokenize import Sample, sample_id
from layercache.extract.unembed import Unembedding, logits_of

_LONGEST = 24
_TOLERANCE: dict[torch.dtype, dict[str, float]] = {torch.float32: {"eager": 5e-5, "sdpa": 5e-4}}
_TOLERANCE_16_BIT = 2e-2
"""Twice the noise of four blocks. Wrong positions or a wrong layer differ by tens of percent."""
_TOLERANCE_INT8 = 1e-1
"""Of padding alone, at four blocks: int8 takes columns in 16 bits by what any row of the batch holds. Four times the
largest difference that models of nine architectures and the demo model show (2.4e-2); alone, they repeat exactly."""


@dataclass(frozen=True)
class CheckResult:
    """The largest relative differences found, and the tolerances they were held to; padding has its own under int8."""

    hooks: float
    padding: float
    lens: float | None
    tolerance: float
    padding_tolerance: float

    def as_json(self) -> dict[str, float | None]:
        """Return the numbers, for a shard's provenance."""
        return {name: None if value is None else float(f"{value:.3g}") for name, value in vars(self).items()}


class _Keep:
    """A reducer that keeps every state, real tokens only: layer → float32 [sample][n, d]."""

    table = ""

    def __init__(self, layers: Sequence[int]) -> None:
        self.wants = frozenset((RESID, layer) for layer in layers)
        self.states: dict[int, list[torch.Tensor]] = {}

    def start(self, batch: Batch) -> None:
        self.states = {}

    def take(self, site: str, layer: int, hidden: torch.Tensor, batch: Batch) -> None:
        self.states[layer] = [
            hidden[row, start : start + len(sample)].float().clone()
            for row, (sample, start) in enumerate(zip(batch.samples, batch.starts.tolist(), strict=True))
        ]

    def finish(self, batch: Batch) -> Collect:
        return lambda: Rows({})


def check(model: Model, samples: Sequence[Sample], pad_id: int, unembedding: Unembedding | None) -> CheckResult:
    """Check a model on two short pieces of the data.

    Args:
        samples: at least one; their tokens are used, cut short.
        unembedding: the lens to check; None where no lens is wanted.

    Returns:
        What was found; differences are relative L2 per token, the largest over tokens in float32 and the
        median over tokens in 16 bits, where single tokens jump.

    Raises:
        ModelError: a check failed; names it, the layer and both numbers.
    """
    one, two = _pieces(samples)
    layers = [layer for layer, _ in model.structure.layers]
    tolerance = _tolerance(model)

    def states(pieces: list[Sample], *, left: bool = False) -> dict[int, torch.Tensor]:
        keep = _Keep(layers)
        Forward(model, [keep]).run(_batch(model, pieces, pad_id, left=left))
        return {layer: kept[0] for layer, kept in keep.states.items()}

    alone = states([one])
    own, logits = _own(model, _batch(model, [one], pad_id), with_logits=unembedding is not None)
    hooks = _hooks(model, alone, own, tolerance)
    loose = _padding_tolerance(model, tolerance)
    padding = max(
        _compare(f"padding on the {side}", alone, states([one, two], left=left), loose, model)
        for side, left in (("right", False), ("left", True))
    )
    lens = None
    if unembedding is not None and logits is not None:
        with torch.inference_mode():
            found = unembedding(alone[model.structure.n_layers])
        # A constant added to all logits changes no probability, and would hide a difference in the others.
        lens = _difference(logits - logits.mean(-1, keepdim=True), found - found.mean(-1, keepdim=True), model)
        if not lens <= tolerance:
            raise _failed(model, "the lens at the last layer against the model's own logits", lens, tolerance)
    return CheckResult(hooks, padding, lens, tolerance, loose)


def _hooks(model: Model, alone: dict[int, torch.Tensor], own: list[torch.Tensor], tolerance: float) -> float:
    """Compare captured layers with the model's own; the last of those is after the final norm where there is one."""
    last = model.structure.n_layers
    if len(own) != last + 1:
        raise ModelError(
            f"self-check of {model.plan.checkpoint.name}: {last} blocks were found, the model itself reports"
            f" {len(own) - 1}; layercache cannot read this model"
        )
    final = last if model.structure.final_norm is None else last + 1
    named = {**{layer: own[layer] for layer in range(last)}, final: own[last]}
    # OPT projects to another width after its final norm; there the last state has nothing to compare with.
    same = {layer: state for layer, state in named.items() if state.shape == alone[layer].shape}
    return _compare("a layer against the model's own", same, alone, tolerance, model)


def _compare(
    what: str, expected: dict[int, torch.Tensor], found: dict[int, torch.Tensor], tolerance: float, model: Model
) -> float:
    worst = 0.0
    for layer, state in expected.items():
        difference = _difference(state, found[layer], model)
        if not difference <= tolerance:
            raise _failed(model, f"{what}, layer {layer}", difference, tolerance)
        worst = max(worst, difference)
    return worst


def _difference(expected: torch.Tensor, found: torch.Tensor, model: Model) -> float:
    """Return the relative L2 difference a token: the largest, or in 16 bits the median, since single tokens jump."""
    expected, found = expected.cpu().double(), found.cpu().double()
    each = (expected - found).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-12)
    worst = each.max() if model.plan.dtype == torch.float32 else each.median()
    return float(worst)


def _own(model: Model, batch: Batch, *, with_logits: bool) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """Run the model as anyone would, without explicit positions: its hidden states and logits of one prompt."""
    module: Callable[..., Any] = model.module if with_logits else model.structure.base
    given = inputs(model, batch)
    given.pop("position_ids", None)
    with torch.inference_mode():
        out = module(**given, output_hidden_states=True)
    logits = logits_of(out)
    states = [state.reshape(batch.input_ids.shape[1], -1).float() for state in out.hidden_states]
    return states, None if logits is None else logits[0].float()


def _pieces(samples: Sequence[Sample]) -> tuple[Sample, Sample]:
    """Cut a short piece and a longer one from the data, so that the short one gets padded."""
    longest = max(samples, key=len)
    tokens = longest.tokens[:_LONGEST] if len(longest) > 1 else np.repeat(longest.tokens, 2)
    return _piece(tokens[: max(1, len(tokens) // 2)]), _piece(tokens)


def _piece(tokens: np.ndarray) -> Sample:
    special = np.zeros(len(tokens), dtype=bool)
    return Sample(sample_id(tokens.tolist(), {}, None), "", tokens, special, {}, {}, None, 0)


def _batch(model: Model, pieces: list[Sample], pad_id: int, *, left: bool = False) -> Batch:
    plan = model.plan
    return collate(pieces, plan.device, pad_id=pad_id, position_offset=plan.position_offset, left=left)


def _tolerance(model: Model) -> float:
    """Return the difference allowed. In 16 bits every block adds its own rounding, so it grows as their root."""
    known = _TOLERANCE.get(model.plan.dtype)
    if known is None:
        return _TOLERANCE_16_BIT * max(1.0, math.sqrt(model.structure.n_layers / 4))
    return known.get(model.plan.attention, max(known.values()))


def _padding_tolerance(model: Model, tolerance: float) -> float:
    if model.quantized is None or not model.quantized["batch_dependent"]:
        return tolerance
    return max(tolerance, _TOLERANCE_INT8 * max(1.0, math.sqrt(model.structure.n_layers / 4)))


def _failed(model: Model, what: str, found: float, tolerance: float) -> ModelError:
    return ModelError(
        f"self-check of {model.plan.checkpoint.name} failed: {what} differs by {found:.2g} (allowed {tolerance:.0e});"
        " layercache cannot read this model right"
    )
