"""Checks, before a run, that a model's states and lens are what they are taken for. Costs a few tiny passes.

    hooks     every layer captured equals the model's own `output_hidden_states`, once each, all finite
    batch     a prompt alone equals itself in a batch, beside longer prompts and others of its own length
    lens      the lens at layer L equals the model's own logits

What a batch may be depends on the model: many recurrent ones are only right with padding on the right, some
with no padding at all. The first way to feed it that changes no number is taken. A model that fails is
refused: wrong positions or a layer off by one give plausible numbers.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from layercache.errors import ModelError
from layercache.extract.batching import Batch, collate, is_out_of_memory
from layercache.extract.checkpoint import first_line
from layercache.extract.forward import RESID, Collect, Forward, Rows, inputs
from layercache.extract.model import Feed, Model, is_compiler_error
from layercache.extract.tokenize import Sample, sample_id
from layercache.extract.unembed import Unembedding, logits_of

_LONGEST = 24
_TOLERANCE: dict[torch.dtype, dict[str, float]] = {torch.float32: {"eager": 5e-5, "sdpa": 5e-4}}
_TOLERANCE_16_BIT = 2e-2
"""Twice the noise of four blocks. Wrong positions or a wrong layer differ by tens of percent."""
_TOLERANCE_INT8 = 1e-1
"""Of padding alone, at four blocks: int8 takes columns in 16 bits by what any row of the batch holds. Four times the
largest difference that models of nine architectures and the demo model show (2.4e-2); alone, they repeat exactly."""

_CLOSING = "; layercache cannot read this model right"

States = dict[int, torch.Tensor]
"""Layer → float32 [n, d] of one prompt."""


@dataclass(frozen=True)
class CheckResult:
    """The largest relative differences found, the tolerances they were held to, and what follows from them.

    Attributes:
        padding_tolerance: that of padding, which is larger under int8.
        captured: layers captured, each once and finite.
        feed: how prompts are to be fed to the model.
        why: what fails when they are fed as usual; None where nothing does.
        own_code: the lens must run the model's own code, since the linear head alone is not its output.
    """

    hooks: float
    padding: float
    lens: float | None
    tolerance: float
    padding_tolerance: float
    captured: int
    feed: Feed
    why: str | None
    own_code: bool

    def as_json(self) -> dict[str, Any]:
        """Return what was found, for a shard's provenance."""
        plain = {"captured": self.captured, "batches": str(self.feed), "lens_own_code": self.own_code}
        numbers = {
            "hooks": self.hooks,
            "padding": self.padding,
            "lens": self.lens,
            "tolerance": self.tolerance,
            "padding_tolerance": self.padding_tolerance,
        }
        return {name: None if value is None else float(f"{value:.3g}") for name, value in numbers.items()} | plain


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


def check(
    model: Model, samples: Sequence[Sample], pad_id: int, unembedding: Unembedding | None, *, left: bool = False
) -> CheckResult:
    """Check a model on short pieces of the data.

    Args:
        samples: at least one; their tokens are used, cut short.
        unembedding: the lens to check; None where no lens is wanted.
        left: the padding side to prefer.

    Returns:
        What was found; differences are relative L2 per token, the largest over tokens in float32 and the
        median over tokens in 16 bits, where single tokens jump.

    Raises:
        ModelError: a check failed; names it, the layer and both numbers.
    """
    try:
        return _check(model, pieces_of(samples), pad_id, unembedding, left=left)
    except ModelError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise ModelError(
                f"{_opening(model)}memory runs out on prompts of {_LONGEST} tokens: use a smaller model or dtype"
            ) from error
        if is_compiler_error(error):
            raise
        # Whatever a model nobody has seen raises, it cannot be read.
        raise ModelError(f"{_opening(model)}it cannot be run on text alone: {first_line(error)}") from error


def _check(
    model: Model, pieces: list[Sample], pad_id: int, unembedding: Unembedding | None, *, left: bool
) -> CheckResult:
    failed: ModelError | None = None
    alone: dict[bool, _Alone] = {}
    for feed in _feeds(model, left=left):
        fed = replace(model, feed=feed)
        try:
            if feed.positions not in alone:
                alone[feed.positions] = _alone(fed, pieces, pad_id, with_logits=unembedding is not None)
            here = alone[feed.positions]
            padding = _batched(fed, pieces, here.states, pad_id)
        except ModelError as error:
            failed = failed or error
            continue
        lens, own_code = (None, False) if unembedding is None else _lens(model, unembedding, here)
        why = None if failed is None else str(failed).removeprefix(_opening(model)).removesuffix(_CLOSING)
        return CheckResult(
            hooks=here.hooks,
            padding=padding,
            lens=lens,
            tolerance=_tolerance(model),
            padding_tolerance=padding_tolerance(model),
            captured=len(here.states[0]),
            feed=feed,
            why=why,
            own_code=own_code,
        )
    raise failed or ModelError(f"{_opening(model)}there is no way to feed it")


def _feeds(model: Model, *, left: bool) -> list[Feed]:
    """List the ways to feed a model, the best first: padded on the side preferred; at worst, one prompt at a time."""
    padded = [Feed(left), Feed(not left), Feed(positions=False), Feed(left=True, positions=False)]
    feeds = [*padded, *(Feed(positions=p, together=t) for t in ("equal", "alone") for p in (True, False))]
    takes = "position_ids" in inspect.signature(model.structure.base.forward).parameters
    return [feed for feed in feeds if takes or feed.positions]


@dataclass(frozen=True)
class _Alone:
    """The short and the long piece, each run alone: their states, and the long one's logits [n, V]."""

    states: list[States]
    logits: torch.Tensor | None
    hooks: float


def _alone(model: Model, pieces: list[Sample], pad_id: int, *, with_logits: bool) -> _Alone:
    """Capture two pieces alone, and hold the longer against what the model says of itself."""
    states = [captured(model, [piece], pad_id)[0] for piece in pieces[:2]]
    for layer, name in model.structure.layers:
        if not states[1][layer].isfinite().all():
            raise ModelError(
                f"{_opening(model)}its states are not finite from layer {layer} ({name}) on: the weights are broken,"
                f" or {model.plan.dtype_name} is too narrow for them"
            )
    own, final, logits = _own(model, _batch(model, pieces[1:2], pad_id), with_logits=with_logits)
    return _Alone(states, logits, _hooks(model, states[1], own, final))


def captured(model: Model, pieces: list[Sample], pad_id: int) -> list[States]:
    """Return every layer's states of pieces run as one batch."""
    keep = _Keep([layer for layer, _ in model.structure.layers])
    Forward(model, [keep]).run(_batch(model, pieces, pad_id))
    return [{layer: kept[row] for layer, kept in keep.states.items()} for row in range(len(pieces))]


def _hooks(model: Model, found: States, own: list[torch.Tensor], final: torch.Tensor | None) -> float:
    """Compare captured layers with the model's own, in whichever of the known orders those are."""
    failed: ModelError | None = None
    last, top = model.structure.n_layers, model.structure.layers[-1][0]
    orders = [[*range(last), top], [*range(1, last + 1), top]]  # Mamba leaves the embeddings out.
    if final is not None:
        own, orders = [*own, final], [[*range(last + 1), top]]
    for layers in orders if len(own) == len(orders[0]) else []:
        # OPT projects to another width after its final norm; there the last state has nothing to compare with.
        pairs = {k: state for k, state in zip(layers, own, strict=True) if state.shape == found[k].shape}
        try:
            return _compare("a layer against the model's own", pairs, found, model, _tolerance(model))
        except ModelError as error:
            failed = failed or error
    raise failed or ModelError(
        f"{_opening(model)}{last} blocks were found, the model itself reports {len(own) - 1}{_CLOSING}"
    )


def _batched(model: Model, pieces: list[Sample], alone: list[States], pad_id: int) -> float:
    """Compare two pieces in a batch with themselves alone: one that gets padded, one beside another of its length."""
    feed = model.feed
    if feed.together == "alone":
        return 0.0
    start = 0 if feed.together == "padded" else 1
    together = captured(model, pieces[start:], pad_id)
    said = [f"padding on the {'left' if feed.left else 'right'}", "a batch"]
    pairs = zip(said[start:], alone[start:], together[: len(pieces) - 1 - start], strict=True)
    loose = padding_tolerance(model)
    return max(_compare(what, expected, found, model, loose) for what, expected, found in pairs)


def _lens(model: Model, unembedding: Unembedding, alone: _Alone) -> tuple[float, bool]:
    """Compare the lens at the last layer with the logits; where the head alone is not enough, with the model's code."""
    if alone.logits is None:
        raise ModelError(f"{_opening(model)}its output has no logits; use --lens none")
    if alone.logits.isnan().any():
        raise ModelError(f"{_opening(model)}its logits are not numbers: the weights of its head are broken")
    state = alone.states[1][model.structure.n_layers]
    difference = math.nan
    for own_code in (False, True):
        lens = unembedding if unembedding.own_code == own_code else Unembedding(model, own_code=own_code)
        if unembedding.own_code and not own_code:
            continue
        with torch.inference_mode():
            found = lens(state).double()
        # A constant added to all logits changes no probability, and would hide a difference in the others.
        expected = alone.logits.to(found.device).double()
        difference = relative_difference(
            expected - expected.mean(-1, keepdim=True), found - found.mean(-1, keepdim=True), model
        )
        if difference <= _tolerance(model):
            return difference, own_code
    raise _failed(model, "the lens at the last layer against the model's own logits", difference, _tolerance(model))


def _compare(what: str, expected: States, found: States, model: Model, tolerance: float) -> float:
    worst = 0.0
    for layer, state in expected.items():
        difference = relative_difference(state, found[layer], model)
        if not difference <= tolerance:
            raise _failed(model, f"{what}, layer {layer}", difference, tolerance)
        worst = max(worst, difference)
    return worst


def relative_difference(expected: torch.Tensor, found: torch.Tensor, model: Model) -> float:
    """Return the relative L2 difference a token of states [tokens, d]: the largest, or in 16 bits the median, since single
    tokens jump; infinite where the shapes differ.
    """
    if expected.shape != found.shape:
        return math.inf
    expected, found = expected.cpu().double(), found.cpu().double()
    each = (expected - found).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-12)
    worst = each.max() if model.plan.dtype == torch.float32 else each.median()
    return float(worst)


def _own(
    model: Model, batch: Batch, *, with_logits: bool
) -> tuple[list[torch.Tensor], torch.Tensor | None, torch.Tensor | None]:
    """Run one prompt as anyone would, without explicit positions.

    Returns:
        The model's hidden states; its final one where that is not the last of them (CLIP); its logits.
    """
    module: Callable[..., Any] = model.module if with_logits else model.structure.base
    given = inputs(model, batch)
    given.pop("position_ids", None)
    with torch.inference_mode():
        out = module(**given, output_hidden_states=True)
    logits = logits_of(out)
    if getattr(out, "hidden_states", None) is None:
        raise ModelError(f"{_opening(model)}it does not report hidden states of its own to check against")
    tokens = batch.input_ids.shape[1]
    states = [state.reshape(tokens, -1).float() for state in out.hidden_states]
    final = getattr(out, "last_hidden_state", None)
    if final is not None and (
        final.numel() != states[-1].numel() or torch.equal(final.reshape(tokens, -1), states[-1])
    ):
        final = None
    return states, None if final is None else final.reshape(tokens, -1).float(), None if logits is None else logits[0]


def pieces_of(samples: Sequence[Sample]) -> list[Sample]:
    """Cut a short piece and a longer one from the data, so that the short one gets padded, and turn the longer round."""
    longest = max(samples, key=len)
    tokens = longest.tokens[:_LONGEST] if len(longest) > 1 else np.repeat(longest.tokens, 2)
    return [_piece(part) for part in (tokens[: max(1, len(tokens) // 2)], tokens, tokens[::-1])]


def _piece(tokens: np.ndarray) -> Sample:
    special = np.zeros(len(tokens), dtype=bool)
    return Sample(sample_id(tokens.tolist(), {}, None), "", tokens, special, {}, {}, None, 0)


def _batch(model: Model, pieces: list[Sample], pad_id: int) -> Batch:
    plan = model.plan
    return collate(pieces, plan.device, pad_id=pad_id, position_offset=plan.position_offset, left=model.feed.left)


def _tolerance(model: Model) -> float:
    """Return the difference allowed. In 16 bits every block adds its own rounding, so it grows as their root."""
    known = _TOLERANCE.get(model.plan.dtype)
    if known is None:
        return _TOLERANCE_16_BIT * max(1.0, math.sqrt(model.structure.n_layers / 4))
    return known.get(model.plan.attention, max(known.values()))


def padding_tolerance(model: Model) -> float:
    """Return the relative difference that other rows of a batch may make."""
    tolerance = _tolerance(model)
    if model.quantized is None or not model.quantized["batch_dependent"]:
        return tolerance
    return max(tolerance, _TOLERANCE_INT8 * max(1.0, math.sqrt(model.structure.n_layers / 4)))


def _failed(model: Model, what: str, found: float, tolerance: float) -> ModelError:
    return ModelError(f"{_opening(model)}{what} differs by {found:.2g} (allowed {tolerance:.0e}){_CLOSING}")


def _opening(model: Model) -> str:
    return f"self-check of {model.plan.checkpoint.name} failed: "
