"""Models that cannot be used are refused in one line; what can be known without weights is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file

from layercache import training_steps
from layercache.errors import ModelError
from layercache.extract import checkpoint, model
from layercache.extract.run import extract
from layercache.progress import Progress
from layercache.recipe import ExtractSpec, ModelSpec

from .conftest import make_data


@pytest.fixture
def folder(models_of: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(models_of("llama"), tmp_path / "model"))


def refused(target: Any, match: str, tmp_path: Path, **settings: Any) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        extract(ModelSpec(model=str(target)), make_data(), ExtractSpec(**settings), tmp_path / "store", Progress())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_missing_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "there is no such folder", tmp_path)
    refused("./nowhere", "there is no such folder", tmp_path)


def test_a_file_is_not_a_model(tmp_path: Path, folder: Path) -> None:
    refused(folder / "config.json", "is a file; give the folder", tmp_path)


def test_hub_name_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(checkpoint, "snapshot_download", unreachable)
    refused("some-org/some-model", "not in the hub's cache and the hub cannot be reached", tmp_path)
    refused("gpt2-nowhere", "there is no such folder", tmp_path)


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        (errors.GatedRepoError, "is gated: accept its terms"),
        (errors.RevisionNotFoundError, "has no revision v9"),
        (errors.RepositoryNotFoundError, "no such model on the hub"),
        (errors.LocalEntryNotFoundError, "hub cannot be reached"),
    ],
)
def test_what_the_hub_refuses(kind: type[Exception], match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise kind.__new__(kind)

    monkeypatch.setattr(checkpoint, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=match):
        checkpoint.find("some-org/some-model", "v9")


def test_hub_models_are_read_from_the_fetched_folder(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def fetch(name: str, **kwargs: Any) -> str:
        asked.update(kwargs, name=name)
        return str(folder)

    monkeypatch.setattr(checkpoint, "snapshot_download", fetch)
    found = checkpoint.find("some-org/some-model", "v1")
    assert (found.name, asked["name"], asked["revision"]) == ("some-model-v1", "some-org/some-model", "v1")
    assert not any("bin" in pattern or ".py" in pattern for pattern in asked["allow_patterns"])


def test_checkpoints_of_a_local_training_run_are_revisions(tmp_path: Path, folder: Path) -> None:
    for step in (20, 100):
        shutil.copytree(folder, tmp_path / "my-run" / f"checkpoint-{step}")
    found = checkpoint.find(str(tmp_path / "my-run"), "checkpoint-20")
    assert (found.name, found.folder.name) == ("my-run-checkpoint-20", "checkpoint-20")
    assert training_steps.training_step(found.name) == ("my-run", 20)
    with pytest.raises(ModelError, match="no checkpoint checkpoint-7: it holds checkpoint-20, checkpoint-100"):
        checkpoint.find(str(tmp_path / "my-run"), "checkpoint-7")
    with pytest.raises(ModelError, match=r"give one of them \(checkpoint-20, checkpoint-100\)"):
        checkpoint.find(str(tmp_path / "my-run"))
    with pytest.raises(ModelError, match="no checkpoint v1: it holds no checkpoints"):
        checkpoint.find(str(folder), "v1")


def test_a_revision_of_the_demo_model_is_one_of_its_checkpoints(tmp_path: Path) -> None:
    assert checkpoint.find("demo", "early").folder == checkpoint.find("demo:early").folder
    with pytest.raises(ModelError, match="no demo model 'demo:v1'"):
        checkpoint.find("demo", "v1")


@pytest.mark.parametrize("name", ["demo:nonsense", "demo:"])
def test_unknown_demo_model(name: str, tmp_path: Path) -> None:
    refused(name, "no demo model", tmp_path)


def test_no_config(tmp_path: Path, folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, "has no config.json", tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
def test_broken_config(text: str, tmp_path: Path, folder: Path) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refused(folder, "config.json", tmp_path)


def test_unknown_architecture(tmp_path: Path, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "nonsense"}))
    refused(folder, "nonsense", tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "nonsense"}, "a value that cannot be used .*nonsense"),
        ({"num_attention_heads": 0}, "a value that cannot be used .*zero"),
        ({"hidden_size": "32"}, "'hidden_size': .*expected int"),
    ],
)
def test_a_configuration_that_does_not_fit(changes: dict[str, Any], said: str, tmp_path: Path, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    refused(folder, said, tmp_path)


def test_weights_of_other_shapes_than_the_configuration_says(tmp_path: Path, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 600}))
    with pytest.raises(ModelError, match="its weights have other shapes than"):
        extract(ModelSpec(model=str(folder)), make_data(), ExtractSpec(), tmp_path / "store", Progress())


def test_a_folder_without_a_tokenizer(tmp_path: Path, folder: Path) -> None:
    for path in folder.glob("tok*"):
        path.unlink()
    refused(folder, "its tokenizer cannot be read: tokenizer.json is not there", tmp_path)


def test_no_weights(tmp_path: Path, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, "has no weights", tmp_path)


def test_pickles_are_never_read(tmp_path: Path, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    refused(folder, "convert them to safetensors", tmp_path)


@pytest.mark.parametrize("damage", ["cut", "long", "garbage", "empty"])
def test_broken_weights(damage: str, tmp_path: Path, folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    broken = {"cut": content[:-10], "long": content + b"x", "garbage": b"\xff" * 100, "empty": b""}
    path.write_bytes(broken[damage])
    refused(folder, "broken or cut off", tmp_path)


def test_a_lost_part_of_split_weights(tmp_path: Path, folder: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copy(folder / "model.safetensors", folder / "model-1.safetensors")
    refused(folder, r"lacks model-2\.safetensors \(1 of 2", tmp_path)
    (folder / "model.safetensors.index.json").write_text("{")
    refused(folder, "index.json cannot be read", tmp_path)


def test_no_tokenizer(tmp_path: Path, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    refused(folder, "tokenizer", tmp_path)


def test_broken_tokenizer(tmp_path: Path, folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    refused(folder, "tokenizer cannot be read", tmp_path)


def _drop(folder: Path, *names: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if name not in names}
    assert len(kept) == len(tensors) - len(names)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def _store_refused(folder: Path, match: str, tmp_path: Path, **settings: Any) -> None:
    with pytest.raises(ModelError, match=match):
        extract(ModelSpec(model=str(folder)), make_data(), ExtractSpec(**settings), tmp_path / "store", Progress())


def test_a_head_that_is_not_in_the_weights_is_never_made_up(tmp_path: Path, folder: Path) -> None:
    _drop(folder, "lm_head.weight")
    _store_refused(folder, r"no language-model head \(lm_head.weight is missing\)", tmp_path)


def test_tied_heads_are_there(models_of: Callable[..., Path], tmp_path: Path) -> None:
    tied = models_of("llama", tie_word_embeddings=True)
    assert "lm_head.weight" not in checkpoint.find(str(tied)).tensors
    data = make_data()
    assert extract(ModelSpec(model=str(tied)), data, ExtractSpec(), tmp_path / "s", Progress()).forward_passes


def test_a_missing_tensor_of_a_block(tmp_path: Path, folder: Path) -> None:
    _drop(folder, "model.layers.1.mlp.up_proj.weight", "model.norm.weight")
    _store_refused(folder, r"lack model\.layers\.1\.mlp\.up_proj\.weight and 1 more", tmp_path, lens=[])


def test_tensors_of_another_shape(tmp_path: Path, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(7)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _store_refused(folder, "model", tmp_path)


def test_no_stack_of_blocks_is_refused() -> None:
    from transformers import LlamaConfig

    from layercache.extract import structure

    with pytest.raises(ModelError, match="no stack of blocks"):
        structure.analyse(torch.nn.Linear(2, 2), LlamaConfig(hidden_size=8, num_attention_heads=2))


def test_encoder_decoders_are_refused(tmp_path: Path, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "bart", "is_encoder_decoder": True}))
    refused(folder, "encoder-decoder", tmp_path)


def test_device_that_is_not_there(tmp_path: Path, folder: Path) -> None:
    refused(folder, "device 'cuda:7' is not there", tmp_path, device="cuda:7")
    refused(folder, "device 'toaster' is not there", tmp_path, device="toaster")


def test_kernel_that_is_not_supported(tmp_path: Path, models_of: Callable[..., Path]) -> None:
    refused(models_of("bloom"), "--attn eager", tmp_path, attn="sdpa")


@pytest.mark.parametrize("layers", [[5], [-1], [0, 99]])
def test_unknown_layers_name_the_range(layers: list[int], tmp_path: Path, folder: Path) -> None:
    refused(folder, "its layers are 0 to 4", tmp_path, layers=layers)


def test_what_is_known_without_weights(models_of: Callable[..., Path]) -> None:
    found = checkpoint.find(str(models_of("llama")))
    plan = model.plan(found, device="cpu", dtype="auto", attn="auto")
    assert (plan.dtype_name, plan.attention, plan.context) == ("float32", "sdpa", 128)
    assert plan.structure.layers[0] == (0, "embeddings")
    assert plan.structure.layers[1] == (1, "model.layers.0")
    assert plan.structure.layers[-1] == (4, "model.norm")
    assert all(parameter.is_meta for parameter in plan.structure.base.parameters())
    eager = model.plan(found, device="cpu", dtype="bfloat16", attn="eager")
    assert (eager.dtype_name, eager.attention) == ("bfloat16", "eager")


def test_context_of_models_that_count_otherwise(models_of: Callable[..., Path]) -> None:
    def context(kind: str) -> tuple[int | None, int]:
        plan = model.plan(checkpoint.find(str(models_of(kind))), device="cpu", dtype="auto", attn="auto")
        return plan.context, plan.position_offset

    assert context("roberta") == (127, 1)
    assert context("bert") == (128, 0)
    assert context("opt") == (128, 0)
    assert context("gpt2") == (128, 0)
    assert context("bloom")[0] is None


def test_nothing_is_said_on_stderr(
    models_of: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = str(models_of("gpt2"))
    capfd.readouterr()  # Making the model may say something.
    extract(ModelSpec(model=model), make_data(), ExtractSpec(), tmp_path / "s", Progress())
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
