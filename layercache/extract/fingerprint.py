"""What makes a run a run: hashes of everything that changes a number.

Paths and names are not part of it, so a copy of a model elsewhere is the same model.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from layercache.content import file_sha256
from layercache.store.layout import digest

_VOLATILE = {
    "_name_or_path",
    "_commit_hash",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "attn_implementation",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "use_cache",
    "output_hidden_states",
    "output_attentions",
}
"""Keys of a configuration that change no number, or that the run's own settings replace."""

_ADAPTER_VOLATILE = {
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "auto_mapping",
    "task_type",
    "peft_version",
}
"""The same of an adapter's configuration."""


def weights_sha256(files: tuple[Path, ...]) -> str:
    """Hash the content of weight files, whatever they are called and wherever they are.

    Returns:
        sha256 over the files' own sha256, sorted.

    Raises:
        OSError: a file cannot be read.
    """
    with ThreadPoolExecutor(max_workers=min(len(files), os.cpu_count() or 1)) as pool:
        return digest(sorted(pool.map(file_sha256, files)))


def config_sha256(raw_config: dict[str, Any]) -> str:
    """Hash a model's `config.json` without the keys that change no number."""
    return digest(_without_volatile(raw_config))


def adapter_sha256(raw_config: dict[str, Any], weights: Path) -> str:
    """Hash an adapter: the content of its weights and `adapter_config.json` without the keys that change no number.

    Its lists name modules; PEFT writes them in any order. A key without a value is as good as none, since every
    version of PEFT writes those it knows.

    Raises:
        OSError: the weights cannot be read.
    """
    config = {
        key: sorted(value, key=str) if isinstance(value, list) else value
        for key, value in raw_config.items()
        if key not in _ADAPTER_VOLATILE and value is not None
    }
    return digest({"config": config, "weights": file_sha256(weights)})


def tokenizer_sha256(tokenizer: Any) -> str:
    """Hash a fast tokenizer: its whole pipeline and its special tokens, not its padding or truncation."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend.pop("padding", None)
    backend.pop("truncation", None)
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    return digest({"backend": backend, "special": special, "truncation_side": tokenizer.truncation_side})


def text_sha256(text: str) -> str:
    """Hash a text."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_volatile(item) for key, item in value.items() if key not in _VOLATILE}
    if isinstance(value, list):
        return [_without_volatile(item) for item in value]
    return value
