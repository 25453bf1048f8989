"""A model that is not what it is taken for is refused, with what failed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from layercache.errors import ModelError
from layercache.extract import checkpoint, model, selfcheck
from layercache.extract.model import Model
from layercache.extract.selfcheck import check
from layercache.extract.tokenize import Sample, tokenize
from layercache.extract.unembed import Unembedding

from .conftest import make_data, make_tokenizer


def load(folder: Path, *, attn: str = "auto", dtype: str = "auto") -> Model:
    return model.load(model.plan(checkpoint.find(str(folder)), device="cpu", dtype=dtype, attn=attn))


@pytest.fixture
def samples() -> list[Sample]:
    found = tokenize(make_data().prompts, make_tokenizer(), chat=False, context=None, truncate=False)
    return list(found.distinct.values())


def go(loaded: Model, samples: list[Sample], **kw: Any) -> selfcheck.CheckResult:
    return check(loaded, samples, 0, Unembedding(loaded, **kw))


@pytest.mark.parametrize(("attn", "tolerance"), [("eager", 5e-5), ("sdpa", 5e-4)])
def test_a_good_model_passes(
    attn: str, tolerance: float, models_of: Callable[..., Path], samples: list[Sample]
) -> None:
    result = go(load(models_of("llama"), attn=attn), samples)
    assert result.tolerance == tolerance
    assert max(result.hooks, result.padding, result.lens or 0) < 1e-5


def test_the_models_own_code_gives_the_same_lens(models_of: Callable[..., Path], samples: list[Sample]) -> None:
    loaded = load(models_of("gemma2"))
    assert go(loaded, samples, own_code=True).lens == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("kind", "lost"), [("gemma2", {"softcap": None}), ("granite", {"scale": 1.0})])
def test_a_soft_cap_or_scale_of_an_unknown_name_is_left_to_the_models_own_code(
    kind: str, lost: dict[str, Any], models_of: Callable[..., Path], samples: list[Sample]
) -> None:
    whole = load(models_of(kind))
    assert not go(whole, samples).own_code
    loaded = replace(whole, structure=replace(whole.structure, **lost))
    found = go(loaded, samples)
    assert found.own_code
    assert found.lens == pytest.approx(0, abs=1e-5)


def test_a_lens_that_no_code_makes_right_is_refused(models_of: Callable[..., Path], samples: list[Sample]) -> None:
    loaded = load(models_of("llama"))
    head = loaded.module.lm_head
    head.register_forward_hook(lambda _m, _args, out: out * torch.arange(1, out.shape[1] + 1)[:, None])
    with pytest.raises(ModelError, match="the lens at the last layer"):
        go(loaded, samples)


def test_normalising_twice_is_refused(models_of: Callable[..., Path], samples: list[Sample]) -> None:
    loaded = load(models_of("llama"))
    norm = loaded.structure.final_norm
    assert norm is not None
    loaded = replace(loaded, structure=replace(loaded.structure, final_norm=torch.nn.Sequential(norm, norm)))
    with pytest.raises(ModelError, match="states were captured"):
        go(loaded, samples)


def test_a_wrong_norm_is_refused(models_of: Callable[..., Path], samples: list[Sample]) -> None:
    loaded = load(models_of("llama"))
    block: Any = loaded.structure.blocks[0]
    loaded = replace(loaded, structure=replace(loaded.structure, final_norm=block.input_layernorm))
    with pytest.raises(ModelError):
        go(loaded, samples)


def test_missing_blocks_are_refused(models_of: Callable[..., Path], samples: list[Sample]) -> None:
    loaded = load(models_of("llama"))
    structure = replace(loaded.structure, blocks=loaded.structure.blocks[:2], n_layers=2)
    with pytest.raises(ModelError, match="2 blocks were found, the model itself reports 3"):
        check(replace(loaded, structure=structure), samples, 0, None)


def test_wrong_positions_are_left_to_the_model(models_of: Callable[..., Path], samples: list[Sample]) -> None:
    loaded = load(models_of("roberta"))
    assert loaded.plan.position_offset == 1
    found = go(replace(loaded, plan=replace(loaded.plan, position_offset=0)), samples)
    assert not found.feed.positions
    assert "layer 0" in str(found.why)


def test_a_model_that_ignores_the_padding_mask_gets_no_padding(
    models_of: Callable[..., Path], samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(models_of("bert"))
    given = selfcheck.inputs

    def unmasked(*args: Any) -> dict[str, Any]:
        found = given(*args)
        return found | {"attention_mask": torch.ones_like(found["attention_mask"])}

    monkeypatch.setattr("layercache.extract.forward.inputs", unmasked)
    found = check(loaded, samples, 0, None)
    assert (found.feed.together, found.padding) == ("equal", pytest.approx(0, abs=1e-5))
    assert str(found.why).startswith("padding on the right, layer 1 differs by")


def test_a_model_whose_states_depend_on_the_batch_runs_alone(
    models_of: Callable[..., Path], samples: list[Sample]
) -> None:
    loaded = load(models_of("llama"))
    block: Any = loaded.structure.blocks[1]
    run = block.forward
    block.forward = lambda hidden, *args, **kwargs: run(hidden, *args, **kwargs) * len(hidden)
    found = check(loaded, samples, 0, None)
    assert found.feed.together == "alone"


def test_states_of_a_model_that_is_never_the_same_are_refused(
    models_of: Callable[..., Path], samples: list[Sample]
) -> None:
    loaded = load(models_of("llama"))
    block: Any = loaded.structure.blocks[1]
    run = block.forward
    block.forward = lambda hidden, *args, **kwargs: run(hidden, *args, **kwargs) + torch.rand(())
    with pytest.raises(ModelError, match="a layer against the model's own, layer 2 differs"):
        check(loaded, samples, 0, None)


@pytest.mark.parametrize("lengths", [[1], [2, 1], [60]])
def test_any_data_will_do(lengths: list[int], models_of: Callable[..., Path], samples: list[Sample]) -> None:
    longest = max(samples, key=len)
    few = [replace(longest, tokens=longest.tokens[:n], special=longest.special[:n]) for n in lengths]
    assert go(load(models_of("gpt2")), few).padding < 1e-5


def test_a_block_that_runs_twice_is_noticed(models_of: Callable[..., Path], samples: list[Sample]) -> None:
    loaded = load(models_of("llama"))
    block: Any = loaded.structure.blocks[1]
    run = block.forward
    block.forward = lambda *args, **kwargs: run(run(*args, **kwargs), **kwargs)
    check(loaded, samples, 0, None)  # Twice within is the model's own business; its block's output counts.
    twice = loaded.structure.blocks[0]
    own = loaded.structure.blocks[2]
    structure = replace(loaded.structure, blocks=(twice, twice, own))
    with pytest.raises(ModelError):
        check(replace(loaded, structure=structure), samples, 0, None)
