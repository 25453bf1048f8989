"""Takes a model's tail as plain numbers, and holds them against the model's own tail before they are believed.

What kind of norm it is and what epsilon it adds is measured on the module, whatever its class is called: of
random vectors x the output is regressed, element by element, on the normalised x.
"""

import copy
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from layercache.errors import ModelError
from layercache.extract.model import Model, Plan
from layercache.extract.structure import Structure
from layercache.extract.unembed import Unembedding
from layercache.extract.words import Words
from layercache.head import Head, Linear, Norm

_VECTORS = 16
_BIG, _SMALL = 1e3, 1e-6
"""Scales of vectors beside which an epsilon is nothing, and which are nothing beside an epsilon."""
_SCALES = (1e-3, 1.0, 30.0, 1e4)
_NO_EPS = 1e-15
_FITS = 1e-4
"""Relative difference that a norm of another kind, or one that does more, exceeds many times over."""
_EXACT, _MIXED = 1e-4, 2e-2
"""The same for logits: in float32, and where a GPU's product of 16-bit numbers rounds the normed state to 16 bits."""
_PIECE_BYTES = 30
"""Of a token's text and piece, and of their offsets; measured on vocabularies of 4,000 to 150,000."""
_WIDTH = {"F32": 4, "F16": 2, "BF16": 2}


def check_plan(plan: Plan) -> None:
    """Refuse, before the weights are read, a head that cannot be saved.

    Raises:
        ModelError: there is none, or it is more than a norm, a projection and one linear layer.
    """
    if not plan.with_head:
        raise ModelError(f"model {plan.checkpoint.name} has no language-model head to save: leave out --save-head")
    _unembedding(plan.structure, plan.checkpoint.name)


def _unembedding(structure: Structure, name: str) -> nn.Linear:
    if structure.head is None or not isinstance(structure.projection, nn.Linear | None):
        raise _refused(name, "its head is more than a final norm and one linear layer")
    return structure.head


def estimated_bytes(plan: Plan, tokenizer: Any) -> int:
    """Return about what a model's saved head takes on the disk."""
    structure = plan.structure
    parts = (structure.final_norm, structure.projection, structure.head)
    numbers = sum(parameter.numel() for part in parts if part is not None for parameter in part.parameters())
    kinds = [kind for kind in plan.checkpoint.tensors.values() if kind in _WIDTH]
    commonest = max(set(kinds), key=kinds.count) if kinds else "F32"
    width = min(_WIDTH[commonest], plan.dtype.itemsize)
    return numbers * width + _PIECE_BYTES * len(tokenizer)


@torch.inference_mode()
def build(model: Model, tokenizer: Any) -> Head:
    """Take a model's tail, checked on random states.

    Raises:
        ModelError: it is more than can be saved.
    """
    check_plan(model.plan)
    name, structure = model.plan.checkpoint.name, model.structure
    tail = [part for part in (structure.final_norm, structure.projection, structure.head) if part is not None]
    if any(parameter.is_meta for part in tail for parameter in part.parameters()):
        raise _refused(name, "its final norm or its head is kept on the disk, not in memory")
    norm = None if structure.final_norm is None else _norm(structure.final_norm, structure.width, name)
    projection = structure.projection
    # Of the loaded model: an adapter may have wrapped what the skeleton showed bare.
    unembedding = _linear(_unembedding(structure, name), name)
    ids = np.arange(len(unembedding.weight))
    head = Head(
        norm=norm,
        projection=_linear(projection, name) if isinstance(projection, nn.Linear) else None,
        unembedding=unembedding,
        softcap=structure.softcap,
        scale=structure.scale,
        texts=Words(tokenizer).texts(ids),
        pieces=_pieces(tokenizer, len(ids)),
    )
    generator = np.random.default_rng(0)
    for scale in _SCALES:
        check(head, model, scale * generator.standard_normal((_VECTORS, structure.width), dtype=np.float32))
    return head


@torch.inference_mode()
def check(head: Head, model: Model, states: np.ndarray) -> None:
    """Hold a head's logits of states, float32 [n, d], against those of extraction.

    Raises:
        ModelError: they differ.
    """
    expected = Unembedding(model)(torch.from_numpy(states).to(model.plan.device)).cpu().numpy()
    difference = _difference(expected, head.logits(states))
    allowed = _EXACT if model.plan.dtype == torch.float32 or model.plan.device.type == "cpu" else _MIXED
    if not difference <= allowed:
        what = f"without the model its logits differ by {difference:.2g} (allowed {allowed:.0e})"
        raise _refused(model.plan.checkpoint.name, what)


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    """Return the largest relative difference of a row, a constant added to all logits aside."""
    expected, found = (
        x.astype(np.float64) - x.mean(axis=1, keepdims=True, dtype=np.float64) for x in (expected, found)
    )
    sizes = np.maximum(np.linalg.norm(expected, axis=1), 1e-12)
    return float((np.linalg.norm(expected - found, axis=1) / sizes).max())


def _norm(module: nn.Module, width: int, name: str) -> Norm:
    """Find out what a norm does."""
    own = copy.deepcopy(module).cpu().double()
    x = np.random.default_rng(1).standard_normal((_VECTORS, width))

    def run(states: np.ndarray) -> np.ndarray:
        return np.asarray(own(torch.from_numpy(states)).detach().double().numpy())

    kinds: tuple[Literal["rms", "layer"], ...] = ("rms", "layer")
    for kind in kinds:
        factor, shift, left = _regress(_normalised(kind, _BIG * x, 0.0), run(_BIG * x))
        if left <= _FITS:
            weight, add_one = _parameter(module, factor, name)
            bias = None if np.abs(shift).max() <= _FITS * np.abs(factor).max() else _bias(module, shift, name)
            return Norm(kind, _epsilon(kind, x, run, factor, shift), weight, bias, add_one)
    raise _refused(name, f"its final norm ({type(module).__name__}) is neither an RMS norm nor a layer norm")


def _normalised(kind: str, x: np.ndarray, eps: float) -> np.ndarray:
    centred = x - x.mean(axis=1, keepdims=True) if kind == "layer" else x
    return np.asarray(centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + eps))


def _regress(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Fit y = factor · x + shift in every column; return both and the largest difference left, relative to y's size."""
    centred = x - x.mean(axis=0)
    factor = (centred * y).sum(axis=0) / (centred**2).sum(axis=0)
    shift = y.mean(axis=0) - factor * x.mean(axis=0)
    left = np.abs(factor * x + shift - y).max() / max(np.abs(y).max(), 1e-30)
    return factor, shift, float(left)


def _epsilon(
    kind: str, x: np.ndarray, run: Callable[[np.ndarray], np.ndarray], factor: np.ndarray, shift: np.ndarray
) -> float:
    """Measure epsilon on vectors that are nothing beside it, then on ones of its own size, where a bias drowns less."""
    eps, scale = 0.0, _SMALL
    for _ in range(2):
        small = scale * x
        centred = small - small.mean(axis=1, keepdims=True) if kind == "layer" else small
        y, expected = run(small) - shift, factor * centred
        ratio = (y * expected).sum(axis=1) / (expected**2).sum(axis=1)
        eps = float((1 / ratio**2 - (centred**2).mean(axis=1)).mean())
        scale = max(_SMALL, np.sqrt(max(eps, 0.0)))
    # Six digits: what the measurement is good for, and what turns it into the number that was meant.
    return float(f"{eps:.6g}") if eps > _NO_EPS else 0.0


def _parameter(module: nn.Module, factor: np.ndarray, name: str) -> tuple[np.ndarray | None, bool]:
    """Find the parameter that is the measured factor, or one less than it."""
    for add_one in (False, True):
        found = _matching(module, factor - add_one, np.abs(factor).max())
        if found is not None:
            return _array(found), add_one
    if np.abs(factor - 1).max() <= _FITS:
        return None, False
    raise _refused(name, f"its final norm ({type(module).__name__}) multiplies by what is none of its parameters")


def _bias(module: nn.Module, shift: np.ndarray, name: str) -> np.ndarray:
    found = _matching(module, shift, np.abs(shift).max())
    if found is None:
        raise _refused(name, f"its final norm ({type(module).__name__}) adds what is none of its parameters")
    return _array(found)


def _matching(module: nn.Module, measured: np.ndarray, size: float) -> torch.Tensor | None:
    for parameter in module.parameters():
        if parameter.shape == measured.shape:
            values = parameter.detach().cpu().double().numpy()
            if np.abs(values - measured).max() <= _FITS * size:
                return parameter
    return None


def _linear(module: nn.Linear, name: str) -> Linear:
    if not module.weight.is_floating_point() or module.weight.is_meta:
        raise _refused(name, "its head is kept in integers or not in memory")
    return Linear(_array(module.weight), None if module.bias is None else _array(module.bias))


def _array(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor's numbers in the narrowest type that holds them exactly; bfloat16's bits as uint16."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype not in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
        # A checkpoint of 16 bits that is run in float32.
        for dtype in (torch.bfloat16, torch.float16):
            narrow = tensor.to(dtype)
            if torch.equal(narrow.float(), tensor):
                tensor = narrow
                break
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.view(torch.uint16).numpy())
    return np.asarray(tensor.numpy())


def _pieces(tokenizer: Any, n: int) -> pa.Array:
    """Return how the tokenizer writes every id; empty for one that it does not have."""
    known = min(n, len(tokenizer))
    pieces = tokenizer.convert_ids_to_tokens(list(range(known)))
    return pa.array([*(piece or "" for piece in pieces), *[""] * (n - known)], pa.string())


def _refused(name: str, what: str) -> ModelError:
    return ModelError(f"model {name}: {what}, so it cannot be saved: leave out --save-head")
