"""On a CUDA device: the same numbers as on the CPU, and the memory that is measured. Run by `pytest -m gpu`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from layercache.extract.copies import HostCopy, to_device
from layercache.extract.run import extract
from layercache.progress import Progress
from layercache.recipe import ExtractSpec, ModelSpec
from layercache.store import reader

from .conftest import make_data

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_copies_are_whole() -> None:
    device = torch.device("cuda:0")
    for n in (1, 1000, 10_000_000):
        values = np.random.default_rng(n).standard_normal(n).astype(np.float32)
        there = to_device(values, device)
        copy = HostCopy(there * 2)
        there.zero_()
        np.testing.assert_array_equal(copy.numpy(), values * 2)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "bert"])
def test_states_and_lens_are_those_of_the_cpu(kind: str, models_of: Callable[..., Path], tmp_path: Path) -> None:
    data = make_data()
    runs = []
    for device in ("cpu", "cuda"):
        spec = ExtractSpec(pooling=["mean", "max", "last", "token"], device=device, precision=23, attn="eager")
        model = ModelSpec(model=str(models_of(kind)), dtype="float32")
        summary = extract(model, data, spec, tmp_path / device, Progress())
        runs.append((reader.open(tmp_path / device), summary.run))
    assert runs[0][1] == runs[1][1]
    for pooling in ("mean", "max", "last", "token"):
        for layer in (0, 1, 3):
            left, right = (store.matrix(run, layer, pooling) for store, run in runs)
            assert left.sample_ids.tolist() == right.sample_ids.tolist()
            np.testing.assert_allclose(left.values, right.values, rtol=1e-3, atol=1e-3)
    query = "SELECT entropy, kl_to_final FROM lens ORDER BY sample_id, layer"
    left, right = (store.sql(query).to_pydict() for store, _ in runs)
    for name in left:
        np.testing.assert_allclose(left[name], right[name], rtol=1e-3, atol=1e-3)


def test_the_budget_is_measured(models_of: Callable[..., Path], tmp_path: Path) -> None:
    spec = ExtractSpec(device="cuda")
    model = ModelSpec(model=str(models_of("llama")))
    planned = extract(model, make_data(), spec, tmp_path / "s", Progress(), dry_run="measure")
    assert planned.tokens_per_second > 0
    assert 0 < planned.memory_bytes < torch.cuda.get_device_properties(0).total_memory
