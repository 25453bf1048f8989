"""The same content is the same model; anything that changes a number is another."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from layercache import content
from layercache.extract import fingerprint


@pytest.fixture
def weights(models_of: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copy(models_of("llama") / "model.safetensors", tmp_path / "w.safetensors"))


def test_file_hash_is_sha256_and_is_remembered(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert content.file_sha256(weights) == expected
    assert expected in content.cache_file().read_text()
    monkeypatch.setattr(content.hashlib, "sha256", None)
    assert content.file_sha256(weights) == expected


def test_a_change_of_the_same_size_is_seen(weights: Path) -> None:
    before = content.file_sha256(weights)
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    info = weights.stat()
    weights.write_bytes(changed)
    os.utime(weights, ns=(info.st_atime_ns, info.st_mtime_ns + 1))
    assert content.file_sha256(weights) != before


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"x": 3}', "\x00\xff"])
def test_a_broken_cache_is_only_empty(damage: str, weights: Path) -> None:
    expected = content.file_sha256(weights)
    content.cache_file().write_text(damage)
    assert content.file_sha256(weights) == expected


def test_a_wrong_entry_for_other_files_does_no_harm(weights: Path) -> None:
    content.cache_file().parent.mkdir(parents=True, exist_ok=True)
    content.cache_file().write_text(json.dumps({f"{weights}|1|2|3": "0" * 64}))
    assert content.file_sha256(weights) == hashlib.sha256(weights.read_bytes()).hexdigest()
    # What the file was before is forgotten.
    assert all("|1|2|3" not in key for key in json.loads(content.cache_file().read_text()))


def test_a_cache_that_cannot_be_written(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert content.file_sha256(weights) == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_names_and_order_of_weight_files_do_not_count(weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "a.safetensors"
    other.write_bytes(b"other")
    renamed = Path(shutil.copy(weights, tmp_path / "zzz.safetensors"))
    assert fingerprint.weights_sha256((weights, other)) == fingerprint.weights_sha256((other, renamed))
    assert fingerprint.weights_sha256((weights,)) != fingerprint.weights_sha256((weights, other))


def test_configuration_without_what_changes_no_number() -> None:
    config = {"hidden_size": 8, "rope": {"theta": 1.0}}
    noisy = config | {"_name_or_path": "x", "transformers_version": "9", "torch_dtype": "float16", "dtype": "float32"}
    assert fingerprint.config_sha256(config) == fingerprint.config_sha256(noisy)
    assert fingerprint.config_sha256(config) != fingerprint.config_sha256(config | {"hidden_size": 9})
    assert fingerprint.config_sha256(config) != fingerprint.config_sha256(config | {"rope": {"theta": 2.0}})


def test_tokenizer_without_padding_and_truncation(models_of: Callable[..., Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models_of("llama"))
    before = fingerprint.tokenizer_sha256(tokenizer)
    tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=2)
    assert fingerprint.tokenizer_sha256(tokenizer) == before
    tokenizer.add_tokens(["zzz"])
    assert fingerprint.tokenizer_sha256(tokenizer) != before
