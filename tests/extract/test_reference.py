"""The noise that `--reference` measures is what a comparison by hand finds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from layercache.errors import ModelError
from layercache.extract import reference
from layercache.extract.run import extract
from layercache.extract.summary import Summary
from layercache.progress import Progress
from layercache.recipe import ExtractSpec, ModelSpec
from layercache.store import reader

from .conftest import TEXTS, make_data
from .reference import Reference

SPEC = ExtractSpec(batch_tokens=64, reference=8, lens=[], precision=23, pooling=["last"])


def run(folder: Path, store: Path, progress: Progress | None = None, **changes: Any) -> Summary:
    spec = SPEC.model_copy(update=changes)
    return extract(ModelSpec(model=str(folder)), make_data(), spec, store, progress or Progress())


def measured(store: Path, summary: Summary) -> dict[str, Any]:
    found: dict[str, Any] = reader.open(store).shards(summary.run)[0].provenance["reference"]
    return found


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_the_noise_of_bfloat16_by_hand(kind: str, models_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = models_of(kind)
    summary = run(folder, tmp_path / "s", dtype="bfloat16", batch_tokens=1)
    found = measured(tmp_path / "s", summary)
    slow = Reference(folder, kind, attn="eager")
    store = reader.open(tmp_path / "s")
    ids = store.rows(summary.run, "data")["sample_id"].to_list()
    exact = {one: slow.run(text).states for one, text in zip(ids, TEXTS, strict=True)}
    assert found["samples"] == 8
    assert found["layers"] == [one.layer for one in store.run(summary.run).layers]
    for layer, median, most in zip(found["layers"], found["median"], found["max"], strict=True):
        matrix = store.matrix(summary.run, layer, "last")
        each = [
            np.linalg.norm(value - exact[one][layer, -1]) / np.linalg.norm(exact[one][layer, -1])
            for one, value in zip(matrix.sample_ids, matrix.values, strict=True)
        ]
        assert median == pytest.approx(np.median(each), rel=0.01)
        assert most == pytest.approx(max(each), rel=0.01)
    assert 1e-3 < max(found["median"]) < 5e-2


def test_the_noise_of_batching_alone(models_of: Callable[..., Path], tmp_path: Path) -> None:
    said: list[str] = []

    class Notes(Progress):
        def note(self, text: str) -> None:
            said.append(text)

    folder = models_of("llama")
    summary = run(folder, tmp_path / "s", Notes(), attn="eager", batch_tokens=4096, reference=3)
    found = measured(tmp_path / "s", summary)
    assert found["samples"] == 3
    assert 0 < max(found["max"]) < 2e-6
    assert said == summary.notes
    assert said[0].startswith("reference: states of 3 samples differ from float32 by")
    alone = run(folder, tmp_path / "alone", attn="eager", batch_tokens=1)
    assert max(measured(tmp_path / "alone", alone)["max"]) == 0
    assert alone.run == summary.run  # measuring is no part of what a run is


@pytest.mark.parametrize(("method", "low", "high"), [("int8", 1e-3, 0.2), ("nf4", 2e-2, 1.0)])
def test_quantised_weights_are_compared_with_the_models_own(
    method: str, low: float, high: float, models_of: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    summary = run(models_of("llama"), tmp_path / "s", quantize=method)
    found = measured(tmp_path / "s", summary)
    assert found["max"][0] == 0  # embeddings are not quantised
    assert low < max(found["median"]) < high


def test_an_adapter_stays(models_of: Callable[..., Path], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from .test_adapter import train

    folder = models_of("llama")
    adapter = train(folder, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), tmp_path / "a")
    asked = ModelSpec(model=str(folder), adapter=str(adapter))
    summary = extract(asked, make_data(), SPEC, tmp_path / "s", Progress())
    assert max(measured(tmp_path / "s", summary)["max"]) < 1e-5


def test_the_choice_is_seeded_and_only_of_what_is_missing(models_of: Callable[..., Path], tmp_path: Path) -> None:
    def names(count: int, seed: int, *, backwards: bool = False) -> list[str]:
        order = samples[::-1] if backwards else samples
        return [one.id for one in reference.choose(order, count, seed)]

    from layercache.extract.tokenize import tokenize

    from .conftest import make_tokenizer

    found = tokenize(make_data().prompts, make_tokenizer(), chat=False, context=None, truncate=False)
    samples = list(found.distinct.values())
    assert names(3, 0) == names(3, 0, backwards=True) != names(3, 1)
    assert len(names(100, 0)) == len(samples)
    assert names(0, 0) == []
    run(models_of("llama"), tmp_path / "s")
    again = run(models_of("llama"), tmp_path / "s")
    assert (again.forward_passes, again.notes) == (0, [])


def test_memory_that_cannot_hold_float32(
    models_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        available = 1000

    monkeypatch.setattr(reference.psutil, "virtual_memory", lambda: Full)
    with pytest.raises(ModelError, match=r"--reference needs the model in float32 \(\d+\.\d kB\), which does not fit"):
        run(models_of("llama"), tmp_path / "s")


def test_running_out_of_memory_is_said(
    models_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: Any, batch: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(reference.Forward, "run", never)
    with pytest.raises(ModelError, match="does not fit in the memory of cpu: leave it out"):
        run(models_of("llama"), tmp_path / "s", self_check=False)
