"""Loads a model: first its skeleton, which costs nothing and says what there is to capture, then its weights.

The skeleton is the same class on torch's `meta` device. A run whose every number is in the store already
never goes further than that.
"""

import importlib.util
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers import AutoTokenizer

from layercache.errors import ModelError
from layercache.extract import adapter, quantize, structure
from layercache.extract.checkpoint import Checkpoint, first_line, load_hint, quiet
from layercache.extract.structure import Structure

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_QUANTISED_EXTRA = re.compile(r"\.weight\.|\.SCB$|scales?$|scale_inv$")
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_SANE_LENGTH = 10_000_000
"""A tokenizer without a limit says 1e30."""


@dataclass(frozen=True)
class Plan:
    """How a model is going to be run, known before its weights are read.

    Attributes:
        structure: of the skeleton; its modules hold no numbers.
        device: where batches are made; with a `device_map`, the first of several.
        max_memory: bytes that the weights may take of each device, where a `device_map` spreads them.
        attention: the kernel, `eager`, `sdpa`, `flex_attention` or `flash_attention_2`.
        context: tokens the model can see; None when nothing limits it.
        position_offset: what the model adds to a token's position (RoBERTa counts from its padding id + 1).
        quantized: `int8` or `nf4` where the weights are quantised as they are read; None where they are taken as they are.
        quantization: what transformers is told of that.
        compiled: torch compiles every block.
    """

    checkpoint: Checkpoint
    structure: Structure
    with_head: bool
    device: torch.device
    dtype: torch.dtype
    attention: str
    context: int | None
    position_offset: int
    quantized: str | None = None
    quantization: Any = None
    compiled: bool = False
    device_map: str | None = None
    max_memory: Mapping[int | str, int] | None = None

    @property
    def name(self) -> str:
        """What the store calls the model: its name, and how it is quantised."""
        return self.checkpoint.name if self.quantized is None else f"{self.checkpoint.name}-{self.quantized}"

    @property
    def dtype_name(self) -> str:
        """The dtype in a recipe's words: `float32`."""
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Feed:
    """How prompts are put together for a model. The self-check takes the first way that changes no number.

    Attributes:
        left: the side padding is on.
        positions: position ids are given; otherwise the model counts by itself.
        together: which prompts share a batch: of any length (`padded`), only of equal length (`equal`,
            no padding at all), or none (`alone`).
    """

    left: bool = False
    positions: bool = True
    together: Literal["padded", "equal", "alone"] = "padded"

    def __str__(self) -> str:
        padded = f"padded on the {'left' if self.left else 'right'}"
        how = {"padded": padded, "equal": "in batches of equal length", "alone": "one prompt at a time"}
        return how[self.together] + ("" if self.positions else ", positions left to the model")


@dataclass(frozen=True)
class Model:
    """A model on its device, in evaluation mode, its parts, and how prompts are fed to it.

    Attributes:
        quantized: which modules bitsandbytes quantised, as `quantize.describe` says it; None where it did not.
    """

    plan: Plan
    module: nn.Module
    structure: Structure
    quantized: dict[str, Any] | None = None
    feed: Feed = Feed()

    @property
    def devices(self) -> set[torch.device]:
        """The devices its layers run on; what is kept on disk runs on the CPU or the first GPU."""
        places = set(getattr(self.module, "hf_device_map", {}).values()) - {"disk"}
        numbered = {f"{self.plan.device.type}:{place}" if isinstance(place, int) else place for place in places}
        return {torch.device(place) for place in numbered} | {self.plan.device}


def plan(
    checkpoint: Checkpoint,
    *,
    device: str,
    dtype: str,
    attn: str,
    quantized: str | None = None,
    compiled: bool = False,
    device_map: str | None = None,
    max_memory: Mapping[int | str, int] | None = None,
) -> Plan:
    """Decide how a model is run and find its parts, without its weights.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`. `auto` is the first GPU, else the CPU.
        dtype: `auto` is the checkpoint's on a GPU, and where it comes quantised, and float32 on a CPU.
        attn: `auto`, `eager`, `sdpa`, `flex_attention`, `flash_attention_2`. `auto` is what transformers chooses.
        quantized: `int8` or `nf4`; None for the checkpoint's own weights.
        compiled: let torch compile every block.
        device_map: `auto`, `balanced`, `sequential`: layers on several devices; None for all on `device`.
        max_memory: what of each device the weights may take; None for what is free.

    Raises:
        ModelError: the device is not there, the kernel does not fit, the model has no stack of blocks, it cannot
            be quantised or loaded as it is quantised, or its adapter is for another model.
    """
    if device_map is not None and device != "auto":
        raise ModelError(f"device {device} and device_map {device_map} exclude each other: give one of them")
    place = _device(device)
    chosen = _dtype(checkpoint, place, dtype)
    _check_attention(attn, place, chosen)
    quantize.check(checkpoint, quantized, place)
    if compiled and (quantized is not None or quantize.own_method(checkpoint) is not None):
        raise ModelError(
            "--compile does not go with quantised weights: torch would compile every layer again and again"
        )
    with quiet(), torch.device("meta"):
        try:
            skeleton = _auto(checkpoint).from_config(
                checkpoint.config, dtype=chosen, trust_remote_code=checkpoint.remote_code, **_attention(attn)
            )
        except Exception as error:
            raise ModelError(f"model {checkpoint.name}: {load_hint(error)}") from error
    found = structure.analyse(skeleton, checkpoint.config)
    settings = None if quantized is None else quantize.settings(quantized, skeleton, found, chosen)
    if checkpoint.adapter is not None:
        found = _adapted(skeleton, checkpoint, found, place)
    offset = _position_offset(found.base)
    return Plan(
        checkpoint=checkpoint,
        structure=found,
        with_head=checkpoint.has_head,
        device=place,
        dtype=chosen,
        attention=str(getattr(skeleton.config, "_attn_implementation", None) or "eager"),
        context=_context(checkpoint.config, offset),
        position_offset=offset,
        quantized=quantized,
        quantization=settings,
        compiled=compiled,
        device_map=device_map,
        max_memory=max_memory,
    )


def load(plan: Plan) -> Model:
    """Read a model's weights.

    Raises:
        ModelError: they cannot be read, do not fit the model, or parts of the model are not among them (a
            head that is missing would be random numbers, and is refused).
    """
    checkpoint = plan.checkpoint
    # transformers puts quantised weights on a GPU, where there is one, unless it is told.
    told = plan.device.type != "cpu" or plan.quantization is not None or quantize.own_method(checkpoint) is not None
    placement: dict[str, Any] = {"device_map": {"": plan.device}} if told else {}
    if plan.device_map is not None:
        placement = {"device_map": plan.device_map}
        if plan.max_memory:
            # transformers writes into what it is given.
            placement["max_memory"] = dict(plan.max_memory)
    if plan.quantization is not None:
        placement["quantization_config"] = plan.quantization
    with quiet():
        try:
            module, info = _auto(checkpoint).from_pretrained(
                checkpoint.folder,
                config=checkpoint.config,
                dtype=plan.dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=checkpoint.remote_code,
                output_loading_info=True,
                **_attention(plan.attention),
                **placement,
            )
        except torch.OutOfMemoryError as error:
            raise ModelError(f"model {checkpoint.name} does not fit in the memory of {plan.device}") from error
        except Exception as error:
            raise ModelError(f"model {checkpoint.name}: {load_hint(error)}") from error
    _refuse_missing(checkpoint, module, set(info["missing_keys"]))
    quantize.settle(module)
    if checkpoint.adapter is not None:
        adapter.attach(module, checkpoint.adapter, _base_name(checkpoint), plan.device)
    module.eval().requires_grad_(False)
    found = structure.analyse(module, module.config)
    if plan.compiled:
        for block in found.blocks:
            # The block's own computation alone: hooks on the block stay outside, where they see every call.
            block.forward = torch.compile(block.forward, dynamic=True)
    return Model(plan, module, found, quantize.describe(module))


@contextmanager
def compile_errors(plan: Plan) -> Iterator[None]:
    """Turn what torch's compiler raises, at a block's first call, into a ModelError."""
    try:
        yield
    except RuntimeError as error:
        if not is_compiler_error(error):
            raise
        remedy = "leave --compile out" if plan.compiled else f"use another --attn than {plan.attention}"
        cause = first_line(getattr(error, "inner_exception", error))
        raise ModelError(f"model {plan.checkpoint.name} cannot be compiled: {cause}; {remedy}") from error


def is_compiler_error(error: Exception) -> bool:
    """Tell what torch's compiler raises from what a model does."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Read a model's tokenizer.

    Raises:
        ModelError: it is not there, is broken, or cannot say which characters a token stands for.
    """
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                checkpoint.folder, trust_remote_code=checkpoint.remote_code, local_files_only=True
            )
        except Exception as error:
            lost = not any((checkpoint.folder / name).is_file() for name in _TOKENIZERS)
            why = "tokenizer.json is not there" if lost else first_line(error)
            raise ModelError(f"model {checkpoint.name}: its tokenizer cannot be read: {why}") from error
    if not getattr(tokenizer, "is_fast", False) or tokenizer.vocab_size == 0:
        raise ModelError(f"model {checkpoint.name}: it has no fast tokenizer (tokenizer.json), which spans need")
    return tokenizer


def context_length(plan: Plan, tokenizer: Any) -> int | None:
    """Return how many tokens a prompt may have: the model's limit, or the tokenizer's when that is lower."""
    limits = [n for n in (plan.context, tokenizer.model_max_length) if n is not None and 0 < n < _SANE_LENGTH]
    return int(min(limits)) if limits else None


def vocabulary(plan: Plan) -> int | None:
    """Return how many tokens a model has embeddings for; None where it has no such table."""
    get: Any = getattr(plan.structure.base, "get_input_embeddings", None)
    try:
        rows = getattr(get(), "num_embeddings", None)
    except (TypeError, AttributeError, NotImplementedError):
        return None
    return rows if isinstance(rows, int) else None


def _auto(checkpoint: Checkpoint) -> Any:
    """Return transformers' class for the kind of model that a checkpoint holds."""
    return getattr(transformers, checkpoint.auto_class)


def _attention(attn: str) -> dict[str, str]:
    return {} if attn == "auto" else {"attn_implementation": attn}


def _check_attention(attn: str, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse what transformers would fetch from the hub or fall back from."""
    if attn != "flash_attention_2":
        return
    if importlib.util.find_spec("flash_attn") is None:
        raise ModelError("--attn flash_attention_2 needs the package flash-attn, which is not installed; use sdpa")
    if device.type != "cuda" or dtype == torch.float32:
        raise ModelError(
            f"--attn flash_attention_2 needs a GPU and 16 bits, and this run is {str(dtype).removeprefix('torch.')} on"
            f" {device.type}: use sdpa, or --dtype bfloat16 on a GPU"
        )


def _adapted(skeleton: nn.Module, checkpoint: Checkpoint, bare: Structure, device: torch.device) -> Structure:
    """Check an adapter on the skeleton, so that one for another model is refused before anything is stored."""
    assert checkpoint.adapter is not None
    with quiet():
        adapter.attach(skeleton, checkpoint.adapter, _base_name(checkpoint), device)
    found = structure.analyse(skeleton, checkpoint.config)
    if (found.names, found.norm_name, found.n_layers) != (bare.names, bare.norm_name, bare.n_layers):
        raise ModelError(
            f"adapter {checkpoint.adapter.name} changes which parts the model has; merge it into the model's weights"
        )
    return found


def _base_name(checkpoint: Checkpoint) -> str:
    assert checkpoint.adapter is not None
    return checkpoint.name.removesuffix(f"+{checkpoint.adapter.name}")


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {device!r} is not there: use cpu, or leave it at auto") from error
    return torch.device("cuda:0") if device == "cuda" else place


def _dtype(checkpoint: Checkpoint, device: torch.device, dtype: str) -> torch.dtype:
    asked = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}.get(dtype)
    own = quantize.own_method(checkpoint)
    if own is not None:
        # transformers leaves what is not quantised in such a checkpoint as it is, whatever dtype it is asked for.
        stored = _stored_dtype(checkpoint)
        if asked not in (None, stored):
            name = str(stored).removeprefix("torch.")
            raise ModelError(f"model {checkpoint.name} comes quantised ({own}), and runs in {name}: leave --dtype out")
        return stored
    if asked is not None:
        return asked
    return torch.float32 if device.type == "cpu" else _stored_dtype(checkpoint)


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Return the most frequent dtype of the files; a configuration may have been copied from elsewhere."""
    # What belongs to quantised weights (`….weight.absmax`, `….SCB`) has a dtype of its own.
    stored = {name: kind for name, kind in checkpoint.tensors.items() if not _QUANTISED_EXTRA.search(name)}
    kinds = [_DTYPES[kind] for kind in stored.values() if kind in _DTYPES]
    return max(set(kinds), key=kinds.count) if kinds else torch.float32


def _position_offset(base: nn.Module) -> int:
    """Return what must be added to positions counted from 0: RoBERTa's table starts after its padding id."""
    for name, module in base.named_modules():
        if "position" in name and type(module) is nn.Embedding and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0


def _context(config: Any, offset: int) -> int | None:
    text = config.get_text_config()
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx"):
        value = getattr(text, key, None)
        if isinstance(value, int) and value > 0:
            return value - offset
    return None


def _refuse_missing(checkpoint: Checkpoint, module: nn.Module, missing: set[str]) -> None:
    """Refuse weights that lack something; a pooler is never run, so it may be missing."""
    lost = sorted(name for name in missing if "pooler" not in name)
    if not lost:
        return
    prefix = f"{getattr(module, 'base_model_prefix', '')}."
    if checkpoint.has_head and not any(name.startswith(prefix) for name in lost):
        raise ModelError(
            f"model {checkpoint.name}: its weights have no language-model head ({lost[0]} is missing), which would be"
            " random numbers: use --lens none with the model saved without its head"
        )
    raise ModelError(f"model {checkpoint.name}: its weights lack {lost[0]} and {len(lost) - 1} more: fetch them again")
