"""Finds a model's files and reads what can be known without loading its weights.

A model is a folder, a name on the Hugging Face hub (its files are fetched into the hub's own cache, or
taken from there when the network is not), or a demo model. Only safetensors weights are read: a pickle
can run code.
"""

import json
import logging
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import snapshot_download
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto import modeling_auto

from layercache.errors import ModelError
from layercache.extract import adapter as adapters
from layercache.extract.adapter import Adapter

_FETCH = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
_HEAD_ENDINGS = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForPreTraining")
_CAUSAL = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
_MASKED = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
_MULTIMODAL = modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
_WITH_ENCODER = modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES
"""Model type → the class transformers has for it; encoder-decoders of the last (T5) are read through their encoder."""


@dataclass(frozen=True)
class Checkpoint:
    """A model's files, found and listed; no weight is read yet.

    Attributes:
        name: what the model is called in the store, `demo`, with an adapter `demo+my-lora`, with a revision
            `pythia-70m-step512`.
        raw_config: `config.json` as it stands in the file.
        weights: the safetensors files, sorted by name.
        tensors: name of every tensor → its dtype in safetensors' words (`F32`, `BF16`).
        remote_code: the user allowed code that comes with the model.
        adapter: what PEFT trained on top of it.
    """

    name: str
    folder: Path
    config: PreTrainedConfig
    raw_config: dict[str, Any]
    weights: tuple[Path, ...]
    tensors: dict[str, str]
    remote_code: bool
    adapter: Adapter | None = None

    @property
    def architecture(self) -> str:
        """The class that wrote the checkpoint, or an empty text."""
        return str((self.raw_config.get("architectures") or [""])[0])

    @property
    def has_head(self) -> bool:
        """Whether the checkpoint says it comes with a language-model head."""
        if self.encoder_only:
            return False
        if self.architecture:
            return self.architecture.endswith(_HEAD_ENDINGS) or self._listed(_CAUSAL, _MASKED, _MULTIMODAL)
        return any(name.startswith(("lm_head.", "embed_out.", "cls.predictions.")) for name in self.tensors)

    @property
    def masked(self) -> bool:
        """Whether the head predicts masked tokens (BERT) rather than the next one."""
        if self._listed(_CAUSAL) and not self._listed(_MASKED):
            return False
        return self.architecture.endswith(("ForMaskedLM", "ForPreTraining")) or self._listed(_MASKED)

    @property
    def encoder_only(self) -> bool:
        """Whether this is an encoder-decoder of which only the encoder is read (T5)."""
        kind = self.config.model_type
        return kind in _WITH_ENCODER and kind in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

    @property
    def auto_class(self) -> str:
        """The name of the transformers class that loads it."""
        if self.encoder_only:
            return "AutoModelForTextEncoding"
        if not self.has_head:
            return "AutoModel"
        if self.masked:
            return "AutoModelForMaskedLM"
        # Gemma 3 and others with a vision tower are also listed as causal models; LLaVA is not.
        multimodal = self._listed(_MULTIMODAL) and not self._listed(_CAUSAL)
        return "AutoModelForMultimodalLM" if multimodal else "AutoModelForCausalLM"

    def _listed(self, *mappings: Mapping[str, Any]) -> bool:
        return any(self.architecture == mapping.get(self.config.model_type) for mapping in mappings)


def find(
    model: str, revision: str | None = None, *, adapter: str | None = None, trust_remote_code: bool = False
) -> Checkpoint:
    """Find a model's files and read its configuration.

    Args:
        model: a folder, a hub name, or a demo model (`demo`, `demo:early`, …).
        revision: branch, tag or commit of a hub model, or a subfolder of a local one (`checkpoint-500`).
        adapter: the folder of an adapter.
        trust_remote_code: run code that comes with the model.

    Raises:
        ModelError: nothing there, no configuration, no safetensors weights, or weights that are cut off; or
            no such adapter.
    """
    found = None if adapter is None else adapters.find(adapter)
    name, folder = _locate(model, revision, trust_remote_code)
    _refuse_adapter(model, folder)
    raw = _raw_config(folder)
    weights = _weight_files(folder)
    tensors: dict[str, str] = {}
    for path in weights:
        tensors |= _tensors(path)
    with quiet():
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        except Exception as error:
            raise ModelError(f"model {model}: {load_hint(error)}") from error
    name = name if found is None else f"{name}+{found.name}"
    checkpoint = Checkpoint(name, folder, config, raw, weights, tensors, trust_remote_code, found)
    if checkpoint.encoder_only:
        config.is_encoder_decoder = False
    elif getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"model {model} is an encoder-decoder ({config.model_type}), and transformers has no class for its encoder"
            " alone: layercache reads models that are one stack of blocks, and the encoders of T5 and its kin"
        )
    if getattr(config, "attention_type", None) == "block_sparse":
        raise ModelError(
            f"model {model}: its block-sparse attention turns into another one after a short prompt; set"
            ' "attention_type": "original_full" in its config.json'
        )
    return checkpoint


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries' notes and progress bars for a while; errors still arrive as exceptions."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    # bitsandbytes says at every product that it casts its input.
    kernels = logging.getLogger("bitsandbytes")
    level = kernels.level
    kernels.setLevel(logging.ERROR)
    try:
        yield
    finally:
        kernels.setLevel(level)
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """Return an exception's first line that says something, and what that opens; its kind when it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        lines[0] += f" {lines[1]}"
    return lines[0][:300].rstrip(".:") if lines else type(error).__name__


def load_hint(error: BaseException) -> str:
    """Say what a failed load needs, in one line."""
    if "does not support an attention implementation" in str(error):
        return "transformers has no such attention kernel for it; use --attn eager"
    if "trust_remote_code" in str(error):
        return "it needs code that comes with it; pass --trust-remote-code if you trust its author"
    if "ignore_mismatched_sizes" in str(error):
        return "its weights have other shapes than its config.json says"
    if isinstance(error, KeyError | ArithmeticError):
        return f"its config.json has a value that cannot be used ({type(error).__name__}: {first_line(error)})"
    return first_line(error)


def _locate(model: str, revision: str | None, trust_remote_code: bool) -> tuple[str, Path]:
    """Return what a model is called, its revision last, and the folder with its files."""
    if model == "demo" or model.startswith("demo:"):
        full = model if revision is None else f"{model}:{revision}"
        return full.replace(":", "-"), _demo(full)
    path = Path(model).expanduser()
    if path.is_dir():
        return _called(path.absolute().name or path.resolve().name, revision), _local(model, path, revision)
    if path.exists():
        raise ModelError(f"model {model} is a file; give the folder that holds config.json and the weights")
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ModelError(f"model {model}: there is no such folder")
    return _called(model.rpartition("/")[2], revision), _fetch(model, revision, trust_remote_code)


def _called(name: str, revision: str | None) -> str:
    return name if revision is None else f"{name}-{revision.replace('/', '_')}"


def _local(model: str, folder: Path, revision: str | None) -> Path:
    """Return a model's folder, or that of a checkpoint inside the folder of a training run."""
    wanted = folder if revision is None else folder / revision
    there = sorted((path.parent.name for path in folder.glob("*/config.json")), key=lambda name: (len(name), name))
    if (wanted / "config.json").is_file() or (revision is None and not there):
        return wanted
    if revision is None:
        raise ModelError(f"model {model} holds checkpoints and is none: give one of them ({', '.join(there)})")
    have = f"it holds {', '.join(there)}" if there else "it holds no checkpoints"
    raise ModelError(f"model {model} has no checkpoint {revision}: {have}")


def _demo(model: str) -> Path:
    from layercache import demo

    try:
        return demo.model_path(model)
    except KeyError as error:
        raise ModelError(str(error.args[0])) from error


def _fetch(model: str, revision: str | None, trust_remote_code: bool) -> Path:
    """Fetch a hub model into the hub's cache; without a network, take what the cache has."""
    from huggingface_hub import errors

    patterns = [*_FETCH, "*.py"] if trust_remote_code else _FETCH
    try:
        found = snapshot_download(model, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"])
    except errors.GatedRepoError as error:
        raise ModelError(
            f"model {model} is gated: accept its terms on the hub and log in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"model {model} has no revision {revision}") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ModelError(
            f"model {model}: there is no such folder, and no such model on the hub (or it is private)"
        ) from error
    except Exception as error:
        # Every kind of broken network ends here, and transports raise exceptions of their own.
        raise ModelError(
            f"model {model}: there is no such folder, it is not in the hub's cache and the hub cannot be reached"
        ) from error
    return Path(found)


def _refuse_adapter(model: str, folder: Path) -> None:
    """Refuse a folder with an adapter in it: transformers would apply it without being asked to."""
    if not (folder / "adapter_config.json").is_file():
        return
    if (folder / "config.json").is_file():
        raise ModelError(
            f"model {model} has an adapter among its files: copy the model without adapter_config.json, and give the"
            " adapter, if it is wanted, with --adapter"
        )
    raise ModelError(f"model {model} is an adapter: give the model it was trained on, and it with --adapter {model}")


def _raw_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"model {folder} has no config.json: give the folder that `save_pretrained` wrote")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"model {folder}: config.json cannot be read: {first_line(error)}") from error
    if not isinstance(raw, dict):
        raise ModelError(f"model {folder}: config.json is not a table")
    return raw


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """List the files of the weights: those the index names where there is one, else the one or all there are."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(f"model {folder}: {index.name} cannot be read: {first_line(error)}") from error
        lost = [name for name in names if not (folder / name).is_file()]
        if lost:
            raise ModelError(f"model {folder} lacks {lost[0]} ({len(lost)} of {len(names)} weight files are not there)")
        return tuple(folder / name for name in names)
    single = folder / "model.safetensors"
    if single.is_file():
        return (single,)
    if any(next(folder.glob(pattern), None) for pattern in _PICKLES):
        raise ModelError(
            f"model {folder} has weights only in a format that can run code: convert them to safetensors"
            " (load where you trust them, then `model.save_pretrained(folder)`)"
        )
    raise ModelError(f"model {folder} has no weights: model.safetensors is not there")


def _tensors(path: Path) -> dict[str, str]:
    """Read a safetensors file's header, and check that the file is as long as it says."""
    problem = f"model weights {path} are broken or cut off: fetch them again"
    try:
        with path.open("rb") as file:
            size = struct.unpack("<Q", file.read(8))[0]
            if size > path.stat().st_size:
                raise ModelError(problem)
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if 8 + size + end != path.stat().st_size:
            raise ModelError(problem)
        return {name: str(entry["dtype"]) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelError(problem) from error
