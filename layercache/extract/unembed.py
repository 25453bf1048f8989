"""From a state to logits: the model's own final norm, unembedding, soft-cap and scale, in float32."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import nn
from torch.nn import functional
from transformers.utils import ModelOutput

from layercache.errors import ModelError
from layercache.extract.model import Model

_CAST_ELEMENTS = 1 << 26
"""Elements of a 16-bit unembedding made float32 at a time, where the device has no mixed product."""


class Unembedding:
    """Applies a model's tail to states of any layer up to L, before the final norm.

    Most heads are one linear layer, and run here in float32 whatever the model's dtype. A head that does
    more (BERT's) is the model's own code, in the model's dtype, with its blocks replaced by the state.

    Args:
        model: a model with a head.
        own_code: use the model's own code even where the head is linear.
        final_norm: apply the model's final norm first, as the model does.

    Attributes:
        vocabulary: logits of one state.
        device: where it runs, which is the head's.

    Raises:
        ModelError: the model has no head.
    """

    def __init__(self, model: Model, *, own_code: bool = False, final_norm: bool = True) -> None:
        structure = model.structure
        if not model.plan.with_head:
            raise ModelError(no_head(model.plan.checkpoint.name))
        self.model = model
        self.own_code = own_code or structure.head is None
        norm, projection = structure.final_norm if final_norm else None, structure.projection
        self._norm = None if norm is None else _copy(norm).float()
        self._projection = None if projection is None else _copy(projection).float()
        self.device = model.plan.device
        self._softcap, self._scale = structure.softcap, structure.scale
        self.vocabulary = int(model.plan.checkpoint.config.get_text_config().vocab_size)
        if structure.head is not None:
            self.vocabulary = structure.head.out_features
            # What accelerate keeps on disk is read once.
            head = _copy(structure.head) if structure.head.weight.is_meta else structure.head
            self._bias = None if head.bias is None else head.bias.float()
            self._product = _product(head.weight)
            self.device = head.weight.device
        for part in (self._norm, self._projection):
            if part is not None:
                part.to(self.device)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Return logits, float32 [n, vocabulary], for states [n, d] in float32."""
        states = states.to(self.device)
        if self._norm is not None:
            states = self._norm(states)
        if self._projection is not None:
            states = self._projection(states)
        if self.own_code:
            return self._through_model(states)
        logits = self._product(states)
        if self._bias is not None:
            logits += self._bias
        if self._scale != 1.0:
            logits *= self._scale
        if self._softcap is not None:
            logits = torch.tanh(logits.div_(self._softcap)).mul_(self._softcap)
        return logits

    def _through_model(self, states: torch.Tensor) -> torch.Tensor:
        module, base = self.model.module, self.model.structure.base
        state = states.to(self.model.plan.dtype)[:, None, :]
        tokens = torch.zeros(len(states), 1, dtype=torch.int64, device=states.device)
        with _replaced(base, _Output(last_hidden_state=state)):
            out = module(input_ids=tokens)
        logits = logits_of(out)
        if logits is None:
            raise ModelError(f"{type(module).__name__}: its head cannot be run alone; use --lens none")
        return logits[:, 0].float()


@dataclass
class _Output(ModelOutput):  # type: ignore[misc]
    """What a base model gives: its last state, and nothing for whatever else a head passes on."""

    last_hidden_state: torch.Tensor | None = None

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _copy(module: nn.Module) -> Any:
    """Copy one layer with its weights, wherever accelerate keeps them, and without what it does around a call."""
    with align_module_device(module):
        # Its hook may hold the weights of the whole model.
        copied = copy.deepcopy(module, {id(module.__dict__.get("_hf_hook")): None})
    for name in ("forward", "_old_forward", "_hf_hook"):
        copied.__dict__.pop(name, None)
    return copied


def logits_of(output: Any) -> torch.Tensor | None:
    """Return the logits [B, T, V] of a model's output, whatever they are called; None where it has none."""
    found = getattr(output, "logits", None)
    return found if found is not None else getattr(output, "prediction_logits", None)


def no_head(name: str) -> str:
    """Say that a model has no head for the lens."""
    return f"model {name} has no language-model head, so there is no logit lens: use --lens none"


@contextmanager
def _replaced(base: nn.Module, output: Any) -> Iterator[None]:
    """Make a module return `output` whatever it is called with."""
    own = base.__dict__.get("forward")  # accelerate puts its own there
    base.forward = lambda *_args, **_kwargs: output
    try:
        yield
    finally:
        del base.forward
        if own is not None:
            base.forward = own


def _product(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Choose how states [n, d] in float32 meet the unembedding [V, d] for a float32 result."""
    if weight.dtype == torch.float32:
        return lambda states: functional.linear(states, weight)
    if weight.is_cuda and _mixed_works(weight):
        # The model itself rounds its normed state to 16 bits here; what must not be rounded is the sum.
        return lambda states: torch.mm(states.to(weight.dtype), weight.T, out_dtype=torch.float32)

    def chunked(states: torch.Tensor) -> torch.Tensor:
        rows = max(1, _CAST_ELEMENTS // weight.shape[1])
        parts = [functional.linear(states, part.float()) for part in torch.split(weight, rows)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    return chunked


def _mixed_works(weight: torch.Tensor) -> bool:
    """Tell whether this torch multiplies 16-bit matrices into a float32 result on this device."""
    try:
        small = weight[:8]
        torch.mm(small, small.T, out_dtype=torch.float32)
    except (TypeError, RuntimeError):
        return False
    return True
