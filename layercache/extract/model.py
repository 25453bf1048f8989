"""Loads a model: first its skeleton, which costs nothing and says what there is to capture, then its weights.

The skeleton is the same class on torch's `meta` device. A run whose every number is in the store already
never goes further than that.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers import AutoTokenizer

from layercache.errors import ModelError
from layercache.extract import structure
from layercache.extract.checkpoint import Checkpoint, first_line, load_hint, quiet
from layercache.extract.structure import Structure

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_SANE_LENGTH = 10_000_000
"""A tokenizer without a limit says 1e30."""


@dataclass(frozen=True)
class Plan:
    """How a model is going to be run, known before its weights are read.

    Attributes:
        structure: of the skeleton; its modules hold no numbers.
        device: where batches are made; with a `device_map`, the first of several.
        attention: the kernel, `eager` or `sdpa`.
        context: tokens the model can see; None when nothing limits it.
        position_offset: what the model adds to a token's position (RoBERTa counts from its padding id + 1).
    """

    checkpoint: Checkpoint
    structure: Structure
    with_head: bool
    device: torch.device
    dtype: torch.dtype
    attention: str
    context: int | None
    position_offset: int
    device_map: str | None = None

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
    """A model on its device, in evaluation mode, its parts, and how prompts are fed to it."""

    plan: Plan
    module: nn.Module
    structure: Structure
    feed: Feed = Feed()

    @property
    def devices(self) -> set[torch.device]:
        """The devices its layers run on; what is kept on disk runs on the CPU or the first GPU."""
        places = set(getattr(self.module, "hf_device_map", {}).values()) - {"disk"}
        numbered = {f"{self.plan.device.type}:{place}" if isinstance(place, int) else place for place in places}
        return {torch.device(place) for place in numbered} | {self.plan.device}


def plan(checkpoint: Checkpoint, *, device: str, dtype: str, attn: str, device_map: str | None = None) -> Plan:
    """Decide how a model is run and find its parts, without its weights.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`. `auto` is the first GPU, else the CPU.
        dtype: `auto` is the checkpoint's on a GPU and float32 on a CPU.
        attn: `auto`, `eager`, `sdpa`. `auto` is what transformers chooses.
        device_map: `auto`, `balanced`, `sequential`: layers on several devices; None for all on `device`.

    Raises:
        ModelError: the device is not there, the kernel does not fit, or the model has no stack of blocks.
    """
    if device_map is not None and device != "auto":
        raise ModelError(f"device {device} and device_map {device_map} exclude each other: give one of them")
    place = _device(device)
    chosen = _dtype(checkpoint, place, dtype)
    with quiet(), torch.device("meta"):
        try:
            skeleton = _auto(checkpoint).from_config(
                checkpoint.config, dtype=chosen, trust_remote_code=checkpoint.remote_code, **_attention(attn)
            )
        except Exception as error:
            raise ModelError(f"model {checkpoint.name}: {load_hint(error)}") from error
    found = structure.analyse(skeleton, checkpoint.config)
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
        device_map=device_map,
    )


def load(plan: Plan) -> Model:
    """Read a model's weights.

    Raises:
        ModelError: they cannot be read, do not fit the model, or parts of the model are not among them (a
            head that is missing would be random numbers, and is refused).
    """
    checkpoint = plan.checkpoint
    placement: dict[str, Any] = {} if plan.device.type == "cpu" else {"device_map": {"": plan.device}}
    if plan.device_map is not None:
        placement = {"device_map": plan.device_map}
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
    module.eval().requires_grad_(False)
    return Model(plan, module, structure.analyse(module, module.config))


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
            raise ModelError(f"model {checkpoint.name}: its tokenizer cannot be read: {first_line(error)}") from error
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
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    if device.type == "cpu":
        return torch.float32
    # The files say what the weights are; a configuration may have been copied from elsewhere.
    kinds = [_DTYPES[kind] for kind in checkpoint.tensors.values() if kind in _DTYPES]
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
