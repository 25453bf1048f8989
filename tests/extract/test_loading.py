"""Ways to run a model that change its numbers at most by noise: kernels, compiled blocks, the hub's cache."""

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from layercache.errors import ModelError
from layercache.extract import provenance
from layercache.extract.run import extract
from layercache.extract.summary import Summary
from layercache.progress import Progress
from layercache.recipe import ExtractSpec, ModelSpec
from layercache.store import reader

from .conftest import TEXTS, make_data
from .reference import close

SPEC = ExtractSpec(batch_tokens=64, lens=["last"], precision=23)


def run(folder: Path | str, store: Path, **changes: Any) -> Summary:
    spec = SPEC.model_copy(update=changes)
    return extract(ModelSpec(model=str(folder)), make_data(), spec, store, Progress())


def difference(store: Path, one: Summary, other: Summary) -> float:
    """The largest relative difference between two runs' states, a vector."""
    opened = reader.open(store)
    worst = 0.0
    for named in opened.run(one.run).layers:
        left, right = (opened.matrix(each.run, named.layer, "mean") for each in (one, other))
        assert list(left.sample_ids) == list(right.sample_ids)
        each = np.linalg.norm(left.values - right.values, axis=1) / np.linalg.norm(left.values, axis=1)
        worst = max(worst, float(each.max()))
    return worst


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_attention_kernels_differ_by_noise_and_are_other_runs(
    kind: str, models_of: Callable[..., Path], tmp_path: Path
) -> None:
    eager, sdpa = (run(models_of(kind), tmp_path / "s", attn=attn) for attn in ("eager", "sdpa"))
    assert eager.run != sdpa.run
    assert 0 < difference(tmp_path / "s", eager, sdpa) < 5e-5
    specs = [reader.open(tmp_path / "s").run(one.run).spec["attention"] for one in (eager, sdpa)]
    assert specs == ["eager", "sdpa"]
    assert run(models_of(kind), tmp_path / "s", attn="auto").run == sdpa.run


def test_where_how_much_at_once_and_on_which_machine_do_not_count(
    models_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(models_of("llama"), tmp_path / "one")
    elsewhere = Path(shutil.copytree(models_of("llama"), tmp_path / "another name"))
    monkeypatch.setattr(provenance.socket, "gethostname", lambda: "another-host")
    second = run(elsewhere, tmp_path / "two", batch_tokens=4096, seed=3)
    assert second.run.rpartition("-")[2] == first.run.rpartition("-")[2]
    one, two = (reader.open(tmp_path / name) for name in ("one", "two"))
    assert two.shards(second.run)[0].provenance["host"] == "another-host"
    for layer in range(5):
        left, right = one.matrix(first.run, layer, "last"), two.matrix(second.run, layer, "last")
        order = [list(right.sample_ids).index(name) for name in left.sample_ids]
        close(right.values[order], left.values, bits=23)


def test_flash_attention_that_is_not_there(
    models_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from layercache.extract import model

    monkeypatch.setattr(model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="needs the package flash-attn, which is not installed"):
        run(models_of("llama"), tmp_path / "s", attn="flash_attention_2")
    monkeypatch.setattr(model.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ModelError, match="needs a GPU and 16 bits, and this run is float32 on cpu"):
        run(models_of("llama"), tmp_path / "s", attn="flash_attention_2", device="cpu")
    assert not (tmp_path / "s").exists()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile without a C compiler: torch traces the blocks and runs what it traced."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


@pytest.mark.usefixtures("traced")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_blocks_give_the_same_numbers(models_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = models_of("llama", num_hidden_layers=2)
    plain, compiled = (run(folder, tmp_path / "s", compile=each, self_check=not each) for each in (False, True))
    assert plain.run != compiled.run
    assert difference(tmp_path / "s", plain, compiled) < 1e-5
    store = reader.open(tmp_path / "s")
    assert store.run(compiled.run).spec["compile"] is True
    assert "compile" not in store.run(plain.run).spec
    assert store.shards(compiled.run)[0].provenance["compile"] is True


def test_what_cannot_be_compiled_is_said(
    models_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise ValueError("no C compiler")

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=broken))
    with pytest.raises(ModelError, match=r"cannot be compiled: .*no C compiler.*; leave --compile out") as caught:
        run(models_of("llama"), tmp_path / "s", compile=True)
    assert "\n" not in str(caught.value)


def test_what_compiling_does_not_go_with(models_of: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="site mlp_out is inside the blocks that --compile makes one piece of"):
        run(models_of("llama"), tmp_path / "s", compile=True, sites=["resid", "mlp_out"])
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ModelError, match="--compile does not go with quantised weights"):
        run(models_of("llama"), tmp_path / "s", compile=True, quantize="int8")
    assert not (tmp_path / "s").exists()


@pytest.mark.torture
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_compiled_to_machine_code(kind: str, models_of: Callable[..., Path], tmp_path: Path) -> None:
    torch._dynamo.reset()
    plain, compiled = (run(models_of(kind), tmp_path / "s", compile=each) for each in (False, True))
    assert difference(tmp_path / "s", plain, compiled) < 5e-5


@pytest.mark.torture
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_flex_attention(models_of: Callable[..., Path], tmp_path: Path) -> None:
    torch._dynamo.reset()
    plain, flex = (run(models_of("llama"), tmp_path / "s", attn=each) for each in ("eager", "flex_attention"))
    assert plain.run != flex.run
    assert difference(tmp_path / "s", plain, flex) < 5e-5


def hub_cache(folder: Path, root: Path, name: str = "some-org/tiny-llama") -> Path:
    """Lay a model out as the hub's cache does: refs, snapshots of links, blobs."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    top = root / f"models--{name.replace('/', '--')}"
    for part in ("refs", "blobs", f"snapshots/{commit}"):
        (top / part).mkdir(parents=True)
    (top / "refs" / "main").write_text(commit)
    for path in folder.iterdir():
        blob = top / "blobs" / f"blob-{path.name}"
        shutil.copy(path, blob)
        (top / "snapshots" / commit / path.name).symlink_to(Path("../../blobs") / blob.name)
    return root


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache of the test's own, and no network: what `HF_HUB_OFFLINE=1 HF_HUB_CACHE=…` sets."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_hub_name_in_the_cache(models_of: Callable[..., Path], tmp_path: Path, offline: Path) -> None:
    folder = models_of("llama")
    hub_cache(folder, offline)
    found = run("some-org/tiny-llama", tmp_path / "s")
    assert (found.model, found.forward_passes) == ("tiny-llama", len(TEXTS))
    local = run(folder, tmp_path / "s")
    assert (local.run, local.forward_passes) == (found.run, 0)
    asked = ModelSpec(model="some-org/tiny-llama", revision="v2")
    with pytest.raises(ModelError, match="not in the hub's cache"):
        extract(asked, make_data(), SPEC, tmp_path / "s", Progress())


@pytest.mark.usefixtures("offline")
def test_a_hub_name_that_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        run("some-org/other-model", tmp_path / "s")
    assert str(caught.value) == (
        "model some-org/other-model: there is no such folder, it is not in the hub's cache and the hub cannot be reached"
    )
    assert not (tmp_path / "s").exists()
