"""int8 and 4-bit weights: the numbers are those of transformers and bitsandbytes called as their documents show."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from layercache.errors import ModelError
from layercache.extract import batching, checkpoint, model, quantize
from layercache.extract.run import extract
from layercache.extract.summary import Summary
from layercache.progress import Progress
from layercache.recipe import ExtractSpec, ModelSpec
from layercache.store import reader

from .conftest import TEXTS, make_data
from .reference import Reference, close

bnb = pytest.importorskip("bitsandbytes")

SPEC = ExtractSpec(batch_tokens=1, precision=23, pooling=["mean", "last"])
CONFIGS = {
    "int8": BitsAndBytesConfig(load_in_8bit=True),
    "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
}


def run(folder: Path | str, store: Path, spec: ExtractSpec = SPEC, **settings: Any) -> Summary:
    return extract(ModelSpec(model=str(folder), **settings), make_data(), spec, store, Progress())


def by_hand(module: torch.nn.Module) -> None:
    """Make 4-bit layers plain ones whose weights are looked up in the NF4 table, block by block.

    bitsandbytes' own kernel for CPUs is wrong for rows that are no multiple of 64 (these models').
    """
    for name, layer in list(module.named_modules()):
        if type(layer).__name__ != "Linear4bit":
            continue
        state = layer.weight.quant_state
        packed = layer.weight.data.reshape(-1).long()
        indices = torch.stack([packed >> 4, packed & 15], dim=1).reshape(-1)[: state.shape.numel()]
        scales = state.absmax.repeat_interleave(state.blocksize)[: len(indices)]
        plain = torch.nn.Linear(state.shape[1], state.shape[0], bias=layer.bias is not None)
        plain.weight.data = (state.code[indices] * scales).reshape(state.shape)
        if layer.bias is not None:
            plain.bias = layer.bias
        module.set_submodule(name, plain)


def expected(folder: Path, kind: str, method: str) -> list[Any]:
    """Every prompt's states by transformers."""
    reference = Reference(folder, kind)
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=CONFIGS[method]).eval()
    if method == "nf4":
        by_hand(own)
    reference.model = own
    reference.norm = own.get_submodule("transformer.ln_f" if kind == "gpt2" else "model.norm")
    return [reference.run(text) for text in TEXTS]


def compare(store: Path, summary: Summary, passed: list[Any], *, noise: float = 2e-5) -> None:
    opened = reader.open(store)
    ids = opened.rows(summary.run, "data")["sample_id"].to_list()
    for layer in range(len(passed[0].states)):
        for pooling in ("last", "mean"):
            matrix = opened.matrix(summary.run, layer, pooling)
            for one, reference in zip(ids, passed, strict=True):
                states = reference.states[layer]
                state = states[-1] if pooling == "last" else states[~reference.special].mean(0)
                close(matrix.values[list(matrix.sample_ids).index(one)], state, bits=23, noise=noise)


@pytest.mark.parametrize("method", ["int8", "nf4"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_numbers_are_those_of_transformers(
    kind: str, method: str, models_of: Callable[..., Path], tmp_path: Path
) -> None:
    folder = models_of(kind)
    summary = run(folder, tmp_path / "s", quantize=method)
    compare(tmp_path / "s", summary, expected(folder, kind, method))
    spec = reader.open(tmp_path / "s").run(summary.run).spec
    assert spec["quantization"]["method"] == method
    assert spec["dtype"] == "float32"
    run(folder, tmp_path / "s")  # the same model as it is: another run, other numbers
    runs = reader.open(tmp_path / "s").runs()
    assert len(runs) == 2
    bare, small = (reader.open(tmp_path / "s").matrix(one.id, 3, "last").values for one in runs)
    assert np.abs(bare - small).max() > 1e-3 * np.abs(bare).max()


def test_the_demo_model_quantised(tmp_path: Path) -> None:
    from layercache.demo import model_path

    folder = model_path("demo")
    runs = {run("demo", tmp_path / "s").run}
    for method, noise in (("int8", 2e-5), ("nf4", 2e-5)):
        summary = run("demo", tmp_path / "s", quantize=method)
        compare(tmp_path / "s", summary, expected(folder, "llama", method), noise=noise)
        runs.add(summary.run)
    assert len(runs) == 3


def test_what_is_quantised_is_said(models_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = models_of("bert")
    summary = run(folder, tmp_path / "s", quantize="int8")
    provenance = reader.open(tmp_path / "s").shards(summary.run)[0].provenance
    modules = provenance["quantized"]["modules"]
    assert sum(modules.values()) == 18
    assert all(name.startswith("bert.encoder.layer.*.") for name in modules)  # nothing of the head
    assert provenance["batch_dependent"] is True
    assert provenance["bitsandbytes"] == bnb.__version__
    assert any("18 linear layers are quantised" in note and "batch_dependent" in note for note in summary.notes)
    four = run(folder, tmp_path / "s", quantize="nf4")
    provenance = reader.open(tmp_path / "s").shards(four.run)[0].provenance
    assert (provenance["quantized"]["kind"], provenance["batch_dependent"]) == ("nf4", False)
    plain = run(folder, tmp_path / "s")
    assert not {"quantized", "batch_dependent"} & set(reader.open(tmp_path / "s").shards(plain.run)[0].provenance)


def test_int8_depends_on_the_batch_and_nf4_does_not(models_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = models_of("gemma2")
    for method, low, high in (("int8", 1e-4, 0.1), ("nf4", 0.0, 1e-5)):
        found = []
        for tokens in (1, 4096):
            store = tmp_path / f"{method}-{tokens}"
            summary = run(folder, store, SPEC.model_copy(update={"batch_tokens": tokens}), quantize=method)
            found.append((summary.run, reader.open(store).matrix(summary.run, 2, "last").values))
        (one, alone), (many, together) = found
        assert one == many  # how they are batched is not part of what a run is
        difference = np.linalg.norm(alone - together, axis=1) / np.linalg.norm(alone, axis=1)
        assert low <= difference.max() < high


@pytest.mark.parametrize("shape", [(48, 32), (128, 352), (7, 33), (64, 64), (6, 10)])
def test_four_bit_weights_are_dequantised_block_by_block(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(shape[1], shape[0], bias=True, compute_dtype=torch.float32, quant_type="nf4")
    weight = torch.randn(shape)
    layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=False).to("cpu")
    holder = torch.nn.Sequential(layer).eval()
    quantize.settle(holder)
    plain = torch.nn.Sequential(layer)
    states = torch.randn(5, shape[1])
    with torch.no_grad():
        found = holder(states)
        by_hand(plain)
        torch.testing.assert_close(found, plain(states))
        error = (plain[0].weight - weight).norm() / weight.norm()
    assert error < 0.1  # NF4 of normal values
    assert layer.weight.quant_state.shape == torch.Size(shape)


@pytest.mark.parametrize("method", ["int8", "nf4"])
def test_models_saved_quantised_load_as_they_are(method: str, models_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = models_of("llama", hidden_size=64, intermediate_size=128, head_dim=16)
    saved = tmp_path / "saved"
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=CONFIGS[method])
    own.save_pretrained(saved)
    for path in folder.glob("tokenizer*"):
        (saved / path.name).write_bytes(path.read_bytes())
    summary = run(saved, tmp_path / "s")
    provenance = reader.open(tmp_path / "s").shards(summary.run)[0].provenance
    assert provenance["quantized"]["kind"] == method
    assert provenance["batch_dependent"] is (method == "int8")
    spec = reader.open(tmp_path / "s").run(summary.run).spec
    assert spec["quantization"] is None  # the weights and their configuration say it
    assert spec["dtype"] == "bfloat16"  # though the files hold more float32 statistics than weights
    reference = Reference(folder, "llama")
    reference.model = AutoModelForCausalLM.from_pretrained(saved).eval()
    for layer in reference.model.modules():
        # bitsandbytes' kernels for CPUs with AVX512-BF16 are not those of other machines.
        layer.support_avx512bf16_for_cpu = False
    reference.norm = reference.model.get_submodule("model.norm")
    compare(tmp_path / "s", summary, [reference.run(text) for text in TEXTS], noise=1e-2)
    with pytest.raises(ModelError, match="runs in bfloat16: leave --dtype out"):
        run(saved, tmp_path / "t", dtype="float32")
    with pytest.raises(ModelError, match=r"is quantised already \(bitsandbytes\): leave --quantize out"):
        run(saved, tmp_path / "t", quantize="int8")
    with pytest.raises(ModelError, match="comes quantised"):
        run(saved, tmp_path / "t", SPEC.model_copy(update={"reference": 1}))
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quantised with gptq, which cannot be run here"),
        ({"quant_method": "awq", "bits": 4}, "quantised with awq, which cannot be run here"),
        ({"quant_method": "nonsense"}, "quantised with nonsense, which cannot be run here: Unknown quantization"),
    ],
)
def test_other_quantised_models_are_refused(
    settings: dict[str, Any], match: str, models_of: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in models_of("llama").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    with pytest.raises(ModelError, match=match) as caught:
        run(folder, tmp_path / "s")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("package", ["bitsandbytes", "accelerate"])
def test_a_package_that_is_not_there(
    package: str, models_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelError, match=rf"^--quantize int8 needs {package}: pip install 'layercache\[extract\]'$"):
        run(models_of("llama"), tmp_path / "s", quantize="int8")
    assert not (tmp_path / "s").exists()


def test_a_model_overrides_the_recipe(models_of: Callable[..., Path], tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"quantize": "nf4", "layers": [1], "lens": []})
    first = run(models_of("llama"), tmp_path / "s", spec)
    second = run(models_of("llama"), tmp_path / "s", spec, quantize="int8")
    store = reader.open(tmp_path / "s")
    methods = [store.run(one.run).spec["quantization"]["method"] for one in (first, second)]
    assert methods == ["nf4", "int8"]


def test_a_self_check_still_finds_wrong_padding_under_int8(
    models_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from layercache.extract import selfcheck

    given = selfcheck.inputs

    def unmasked(*args: Any) -> dict[str, Any]:
        found = given(*args)
        return found | {"attention_mask": torch.ones_like(found["attention_mask"])}

    monkeypatch.setattr("layercache.extract.forward.inputs", unmasked)
    summary = run(models_of("bert"), tmp_path / "s", quantize="int8")
    assert any("in batches of equal length, since padding on the right" in note for note in summary.notes)


def test_int8_and_adapters_take_more_memory_a_token(models_of: Callable[..., Path]) -> None:
    found = checkpoint.find(str(models_of("llama")))
    plain, four, eight = (
        model.plan(found, device="cpu", dtype="float32", attn="eager", quantized=how) for how in (None, "nf4", "int8")
    )
    bytes_of = [batching.token_bytes(plan, 10) for plan in (plain, four, eight)]
    assert bytes_of[0] == bytes_of[1] < bytes_of[2]
