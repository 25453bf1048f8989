"""Models with int8 or 4-bit weights: those quantised here (bitsandbytes), and those that come quantised.

    int8   LLM.int8 (Dettmers et al. 2022): 8-bit products, columns with a value of 6 or more in 16 bits
    nf4    4-bit NormalFloat (Dettmers et al. 2023), blocks of 64, no double quantisation, products in the run's dtype

Only linear layers inside the blocks are quantised: embeddings, norms and heads stay as they are.
"""

import copy
import importlib
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AutoHfQuantizer

from layercache.errors import ModelError
from layercache.extract.checkpoint import Checkpoint, first_line, quiet
from layercache.extract.structure import Structure

_LAYERS = ("Linear8bitLt", "Linear4bit")
"""bitsandbytes' classes, by name: it is not imported where nothing is quantised."""
_SETTINGS: dict[str, dict[str, Any]] = {
    "int8": {"load_in_8bit": True, "llm_int8_threshold": 6.0},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False},
}


def own_method(checkpoint: Checkpoint) -> str | None:
    """Return what a checkpoint is quantised with already (`bitsandbytes`, `gptq`, `fp8`), or None."""
    settings = checkpoint.raw_config.get("quantization_config")
    return str(settings.get("quant_method") or "bitsandbytes") if isinstance(settings, dict) else None


def is_int8(checkpoint: Checkpoint, asked: BitsAndBytesConfig | None) -> bool:
    """Tell whether a model will run with int8 weights, quantised here or already."""
    if asked is not None:
        return bool(asked.load_in_8bit)
    own = checkpoint.raw_config.get("quantization_config")
    return isinstance(own, dict) and bool(own.get("load_in_8bit"))


def check(checkpoint: Checkpoint, method: str | None, device: torch.device) -> None:
    """Refuse, before any weight is read, what cannot be quantised or loaded here.

    Raises:
        ModelError: a package is not installed, the device cannot run it, or the checkpoint is quantised already.
    """
    own = own_method(checkpoint)
    if own is not None:
        if method is not None:
            raise ModelError(f"model {checkpoint.name} is quantised already ({own}): leave --quantize out")
        if own == "bitsandbytes":
            _need_packages(f"model {checkpoint.name} is quantised with bitsandbytes and")
        _check_own(checkpoint, own, device)
    elif method is not None:
        _need_packages(f"--quantize {method}")


def settings(method: str, skeleton: nn.Module, structure: Structure, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return the configuration that quantises the linear layers inside the blocks, and nothing else.

    Raises:
        ModelError: the blocks have no linear layer.
    """
    stack = structure.names[0].rpartition(".")[0]
    linear = [
        name for name, module in skeleton.named_modules() if type(module) is nn.Linear or isinstance(module, Conv1D)
    ]
    outside = [name for name in linear if not name.startswith(f"{stack}.")]
    if len(outside) == len(linear):
        raise ModelError(f"{type(skeleton).__name__}: its blocks have no linear layer that --quantize could take")
    # transformers takes these for regular expressions, and an empty list for none of its own choosing either.
    skip = [f"{re.escape(name)}$" for name in outside]
    extra = {"bnb_4bit_compute_dtype": dtype} if method == "nf4" else {}
    return BitsAndBytesConfig(**_SETTINGS[method], **extra, llm_int8_skip_modules=skip)


def identity(method: str | None) -> dict[str, Any] | None:
    """Return what of `--quantize` changes numbers, for a run's spec; the dtype is there already."""
    return None if method is None else {"method": method, "library": "bitsandbytes", **_SETTINGS[method]}


def describe(module: nn.Module) -> dict[str, Any] | None:
    """Say which modules of a loaded model are quantised; None where bitsandbytes quantised none.

    Returns:
        `kind` (`int8`, `nf4`, `fp4`); `modules`, names with `*` for the block's number, and how many of each; `batch_dependent`.
    """
    found = [(name, str(getattr(one.weight, "quant_type", "int8"))) for name, one in _quantised(module)]
    if not found:
        return None
    names = Counter(re.sub(r"\.\d+(?=\.)", ".*", name) for name, _ in found)
    kinds = sorted({kind for _, kind in found})
    return {"kind": ", ".join(kinds), "modules": dict(sorted(names.items())), "batch_dependent": "int8" in kinds}


def note(described: dict[str, Any]) -> str:
    """Tell the user what is quantised, and that int8 makes a sample's numbers depend on its batch."""
    modules: dict[str, int] = described["modules"]
    names = ", ".join(name.rpartition("*.")[2] for name in modules)
    text = f"{described['kind']}: {sum(modules.values())} linear layers are quantised ({names})"
    if described["batch_dependent"]:
        text += "; what else is in a batch changes a sample's numbers a little (batch_dependent in the manifests)"
    return text


def settle(module: nn.Module) -> None:
    """Make 4-bit layers on a CPU compute what they do on any other device, in place.

    bitsandbytes 0.50 dequantises rows that are not a multiple of 64 wrongly on CPUs with AVX-512 (32, 96, 352:
    a quarter of the norm is lost), and on those with AVX512-BF16 computes in bfloat16 whatever was asked.
    Rows of one block are always right.
    """
    for _, layer in _quantised(module):
        if type(layer).__name__ == "Linear4bit" and layer.weight.device.type == "cpu":
            layer.forward = partial(_linear4bit, layer)


def _linear4bit(layer: Any, states: torch.Tensor) -> torch.Tensor:
    """Apply a 4-bit layer: dequantise, then one product, all in the layer's compute dtype."""
    dtype = layer.compute_dtype or states.dtype
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return functional.linear(states.to(dtype), _dequantised(layer, dtype), bias).to(states.dtype)


def _dequantised(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return a 4-bit layer's weight [out, in]."""
    from bitsandbytes import functional as kernels

    state = copy.copy(layer.weight.quant_state)
    shape, elements, block = state.shape, state.shape.numel(), state.blocksize
    state.dtype = dtype
    state.shape = torch.Size((elements // block, block) if elements % block == 0 else (elements, 1))
    return kernels.dequantize_4bit(layer.weight.data, state).reshape(shape)  # type: ignore[no-any-return]


def _quantised(module: nn.Module) -> Iterator[tuple[str, Any]]:
    # PEFT has classes of the same names that wrap these.
    for name, one in module.named_modules():
        if type(one).__name__ in _LAYERS and type(one).__module__.startswith("bitsandbytes"):
            yield name.replace(".base_layer", ""), one


def _need_packages(what: str) -> None:
    for package in ("bitsandbytes", "accelerate"):
        try:
            with quiet():
                importlib.import_module(package)
        except ImportError as error:
            raise ModelError(f"{what} needs {package}: pip install 'layercache[extract]'") from error


def _check_own(checkpoint: Checkpoint, method: str, device: torch.device) -> None:
    """Ask transformers whether it can load a checkpoint that is quantised already."""
    with quiet():
        try:
            quantizer = AutoHfQuantizer.from_config(dict(checkpoint.raw_config["quantization_config"]))
            quantizer.validate_environment(device_map={"": str(device)})
        except Exception as error:
            raise ModelError(
                f"model {checkpoint.name} is quantised with {method}, which cannot be run here: {first_line(error)}"
            ) from error
