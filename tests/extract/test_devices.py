"""A model whose layers are on several devices: real ones where there are, stand-ins where there are not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from layercache.errors import ModelError, RecipeError
from layercache.extract import batching, checkpoint, model, placement, selfcheck
from layercache.extract.batching import collate
from layercache.extract.forward import Forward
from layercache.extract.lens import LensReducer
from layercache.extract.model import Model
from layercache.extract.pooling import HiddenReducer
from layercache.extract.run import extract
from layercache.extract.tokenize import Sample, tokenize
from layercache.extract.unembed import Unembedding
from layercache.extract.words import Words
from layercache.outputs import Hidden, Lens, parse_pooling, parse_position
from layercache.progress import Progress
from layercache.recipe import ExtractSpec, ModelSpec, validate
from layercache.store import reader

from .conftest import make_data, make_tokenizer


@pytest.fixture
def samples() -> list[Sample]:
    found = tokenize(make_data().prompts, make_tokenizer(), chat=False, context=None, truncate=False)
    return list(found.distinct.values())


def load(folder: Path, **settings: Any) -> Model:
    plan = model.plan(checkpoint.find(str(folder)), device="auto", dtype="auto", attn="auto", **settings)
    return model.load(plan)


def run(loaded: Model, samples: list[Sample]) -> dict[str, dict[str, Any]]:
    layers = [layer for layer, _ in loaded.structure.layers]
    poolings = [Hidden("resid", parse_pooling(how)) for how in ("mean", "max", "first", "last")]
    reducers = [
        HiddenReducer(dict.fromkeys(poolings, layers), 23),
        LensReducer(
            {Lens(parse_position("last"), 5): layers[:-1]},
            loaded.structure.n_layers,
            Unembedding(loaded),
            Words(make_tokenizer()),
        ),
    ]
    batch = collate(samples, loaded.plan.device, pad_id=0, position_offset=0, left=False)
    return {table: collect().columns for table, collect in Forward(loaded, reducers).run(batch)}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_layers_kept_on_disk_give_the_same_numbers(
    kind: str, models_of: Callable[..., Path], samples: list[Sample], tmp_path: Path
) -> None:
    whole = load(models_of(kind))
    expected = run(whole, samples)
    other = load(models_of(kind))
    accelerate.disk_offload(other.module, str(tmp_path), execution_device=torch.device("cpu"))
    spread = replace(other, structure=model.structure.analyse(other.module, other.module.config))
    assert spread.structure.head is not None
    assert spread.structure.head.weight.is_meta
    assert selfcheck.check(spread, samples, 0, Unembedding(spread)).lens == pytest.approx(0, abs=1e-5)
    found = run(spread, samples)
    np.testing.assert_allclose(found["hidden"]["vector"], expected["hidden"]["vector"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["lens"]["entropy"], expected["lens"]["entropy"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_device_map_changes_no_number(kind: str, models_of: Callable[..., Path], tmp_path: Path) -> None:
    data = make_data()
    matrices = []
    for device_map in (None, "auto"):
        spec = ExtractSpec(device_map=device_map, layers=[0, 3])
        summary = extract(ModelSpec(model=str(models_of(kind))), data, spec, tmp_path / str(device_map), Progress())
        opened = reader.open(tmp_path / str(device_map))
        matrices.append(opened.matrix(opened.run(summary.run), 3, "mean").values)
        assert opened.shards(opened.run(summary.run))[0].provenance["device_map"] == device_map
    np.testing.assert_array_equal(*matrices)
    assert len({path.name for path in tmp_path.glob("*/run=*")}) == 1, "how many devices is not what a run is"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_model_that_memory_does_not_hold_is_read_from_the_disk_and_says_the_same(
    kind: str, models_of: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_data()
    bound = ["cpu=170KB"]
    matrices, entropies = [], []
    for name, settings in {"whole": {}, "bound": {"device_map": "auto", "max_memory": bound}}.items():
        spec = ExtractSpec(layers=[0, 2, 3, 4], **settings)  # type: ignore[arg-type]
        summary = extract(ModelSpec(model=str(models_of(kind))), data, spec, tmp_path / name, Progress())
        opened = reader.open(tmp_path / name)
        matrices.append([opened.matrix(opened.run(summary.run), layer, "mean").values for layer in (0, 2, 3, 4)])
        entropies.append(opened.sql("SELECT entropy FROM lens ORDER BY sample_id, layer")["entropy"].to_numpy())
        assert any("are on the disk" in note for note in summary.notes) == (name == "bound")
        assert opened.run(summary.run).id == summary.run
    np.testing.assert_allclose(*matrices, rtol=2.0**-10, atol=1e-4)
    np.testing.assert_allclose(*entropies, rtol=1e-4, atol=1e-4)
    assert len({path.name for path in tmp_path.glob("*/run=*")}) == 1, "where layers lie is not what a run is"
    head = ExtractSpec(layers=[0], save_head=True, device_map="auto", max_memory=bound)
    with pytest.raises(ModelError, match="is kept on the disk, not in memory, so it cannot be saved"):
        extract(ModelSpec(model=str(models_of(kind))), data, head, tmp_path / "head", Progress())


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"max_memory": ["cpu=1GB"]}, "give device_map too"),
        ({"device_map": "auto", "max_memory": ["tpu=1GB"]}, "names no device"),
        ({"device_map": "auto", "max_memory": ["cpu=much"]}, "is not a size"),
        ({"device_map": "somewhere"}, "'somewhere' is not one of auto, balanced, sequential"),
    ],
)
def test_a_device_map_that_cannot_be_is_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        validate(ExtractSpec, settings, where="extract")


def test_the_memory_of_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert placement.limits(["0=1GB", "1=2GiB", "cpu=3MB"]) == {0: 10**9, 1: 2**31, "cpu": 3 * 10**6}
    with pytest.raises(ModelError, match="max_memory 2=1GB: this machine has 2 GPUs, counted from 0"):
        placement.limits(["2=1GB"])


def test_a_device_and_a_device_map_are_one_too_many(models_of: Callable[..., Path]) -> None:
    found = checkpoint.find(str(models_of("llama")))
    with pytest.raises(ModelError, match="device cpu and device_map auto exclude each other"):
        model.plan(found, device="cpu", dtype="auto", attn="auto", device_map="auto")


def test_the_fullest_device_decides_the_budget(models_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(models_of("llama"))
    loaded.module.hf_device_map = {"model.layers.0": "cuda:0", "model.layers.1": "cuda:1", "lm_head": "disk"}
    devices = loaded.devices
    assert devices == {torch.device("cuda:0"), torch.device("cuda:1"), torch.device("cpu")}
    free = {torch.device("cuda:0"): 10**9, torch.device("cuda:1"): 10**6, torch.device("cpu"): 10**9}
    monkeypatch.setattr(batching, "free_bytes", free.__getitem__)
    each = batching.token_bytes(loaded.plan, 10)
    assert batching.automatic(loaded.plan, 10, devices).tokens == int(10**6 * 0.4 / each)


class Devices(TorchFunctionMode):
    """Makes tensors say that they are on devices this machine lacks, and refuses what would mix two of them."""

    @staticmethod
    def of(tensor: torch.Tensor) -> torch.device:
        return getattr(tensor, "place", torch.device("cpu"))

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function == torch.Tensor.device.__get__:
            return self.of(args[0])
        tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
        name = getattr(function, "__name__", "")
        place = kwargs.pop("device", None)
        place = None if place is None else torch.device(place)
        if name == "to" and isinstance(args[1], torch.device):
            place, args = args[1], (args[0].detach().clone(), *args[2:])
            return self.put(args[0], place)
        if name == "cpu":
            return self.put(args[0].detach().clone(), torch.device("cpu"))
        places = {self.of(one) for one in tensors if one.dim()}
        if len(places) > 1:
            raise RuntimeError(f"{name}: all tensors must be on the same device, found {places}")
        out = function(*args, **kwargs)
        place = place or next(iter(places), torch.device("cpu"))
        return tree_map(lambda one: self.put(one, place) if isinstance(one, torch.Tensor) else one, out)

    @staticmethod
    def put(tensor: torch.Tensor, place: torch.device) -> torch.Tensor:
        tensor.place = place  # type: ignore[attr-defined]
        return tensor


def test_the_stand_in_refuses_to_mix_devices() -> None:
    with Devices():
        one, two = torch.ones(2), torch.ones(2).to(torch.device("cuda:1"))
        assert two.device == torch.device("cuda:1")
        assert (two + two).device == torch.device("cuda:1")
        with pytest.raises(RuntimeError, match="same device"):
            one + two
        with pytest.raises(RuntimeError, match="same device"):
            two[torch.tensor([0])]


def test_states_are_reduced_on_the_device_they_appear_on(samples: list[Sample]) -> None:
    batch = collate(samples, torch.device("cpu"), pad_id=0, position_offset=0, left=True)
    rows, columns = batch.input_ids.shape
    states = {layer: torch.randn(rows, columns, 4) for layer in (0, 1, 2)}
    poolings = {Hidden("resid", parse_pooling(how)): [0, 1, 2] for how in ("mean", "max", "first", "last")}

    def reduce(places: list[str]) -> np.ndarray:
        reducer = HiddenReducer(poolings, 23)
        reducer.start(batch)
        for layer, state in states.items():
            reducer.take("resid", layer, state.to(torch.device(places[layer])), batch)
        found: np.ndarray = reducer.finish(batch)().columns["vector"]
        return found

    with Devices():
        spread = reduce(["cpu", "cuda:0", "cuda:1"])
    np.testing.assert_array_equal(spread, reduce(["cpu", "cpu", "cpu"]))


def test_the_lens_runs_on_the_device_of_the_head(samples: list[Sample], models_of: Callable[..., Path]) -> None:
    loaded = load(models_of("llama"))
    batch = collate(samples, torch.device("cpu"), pad_id=0, position_offset=0, left=False)
    rows, columns = batch.input_ids.shape
    states = {layer: torch.randn(rows, columns, 32) for layer in range(4)}

    def read(places: list[str], head: str) -> np.ndarray:
        unembedding = Unembedding(loaded)
        unembedding.device = torch.device(head)
        for parameter in [*unembedding._norm.parameters(), loaded.structure.head.weight]:  # type: ignore[union-attr]
            Devices.put(parameter, torch.device(head))
        lens = {Lens(parse_position("last"), 5): [0, 1, 2, 3]}
        reducer = LensReducer(lens, 3, unembedding, Words(make_tokenizer()))
        reducer.start(batch)
        for layer, state in states.items():
            reducer.take("resid", layer, state.to(torch.device(places[layer])), batch)
        found: np.ndarray = reducer.finish(batch)().columns["kl_to_final"]
        return found

    with Devices():
        spread = read(["cpu", "cuda:0", "cuda:1", "cuda:1"], "cuda:1")
    np.testing.assert_array_equal(spread, read(["cpu"] * 4, "cpu"))
