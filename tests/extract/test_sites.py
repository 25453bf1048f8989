"""What attention and MLP add to the residual stream."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from layercache.errors import ModelError
from layercache.extract.run import extract
from layercache.progress import Progress
from layercache.recipe import ExtractSpec, ModelSpec
from layercache.store import reader

from .conftest import DECODERS, make_data
from .reference import Reference

SPEC = ExtractSpec(pooling=["last", "mean"], sites=["resid", "attn_out", "mlp_out"], lens=[], precision=23)
SCALED = {"granite": 0.5}


@pytest.mark.parametrize("kind", sorted(DECODERS))
def test_sublayers_add_up_to_the_residual_stream(kind: str, models_of: Callable[..., Path], tmp_path: Path) -> None:
    """In every pre-norm, sandwich-norm or parallel block, state = state before + attention + MLP."""
    summary = extract(ModelSpec(model=str(models_of(kind))), make_data(), SPEC, tmp_path / "s", Progress())
    store = reader.open(tmp_path / "s")
    for layer in range(1, 4):
        for pooling in ("last", "mean"):
            before, after = (store.matrix(summary.run, at, pooling).values for at in (layer - 1, layer))
            attention, mlp = (
                store.matrix(summary.run, layer, pooling, site=site).values for site in ("attn_out", "mlp_out")
            )
            added = (attention + mlp) * SCALED.get(kind, 1.0)
            np.testing.assert_allclose(before + added, after, atol=2e-5 * np.abs(after).max(), rtol=1e-4)
            assert np.abs(attention).max() > 1e-3
            assert np.abs(mlp).max() > 1e-3


def test_berts_sublayers_are_taken_before_the_residual_and_norm(models_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = models_of("bert")
    summary = extract(ModelSpec(model=str(folder)), make_data(), SPEC, tmp_path / "s", Progress())
    store = reader.open(tmp_path / "s")
    layer = Reference(folder, "bert").model.bert.encoder.layer[1]
    before, after, attention, mlp = (
        torch.from_numpy(store.matrix(summary.run, at, "last", site=site).values)
        for at, site in ((1, "resid"), (2, "resid"), (2, "attn_out"), (2, "mlp_out"))
    )
    with torch.no_grad():
        middle = layer.attention.output.LayerNorm(before + attention)
        torch.testing.assert_close(layer.output.LayerNorm(middle + mlp), after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["roberta", "electra", "distilbert", "modernbert"])
def test_other_encoders_have_their_sites(kind: str, models_of: Callable[..., Path], tmp_path: Path) -> None:
    summary = extract(ModelSpec(model=str(models_of(kind))), make_data(), SPEC, tmp_path / "s", Progress())
    features = reader.open(tmp_path / "s").features(summary.run)
    assert {(one.site, tuple(one.layers)) for one in features if one.site != "resid"} == {
        ("attn_out", (1, 2, 3)),
        ("mlp_out", (1, 2, 3)),
    }


def test_a_site_that_is_not_found_is_named(models_of: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="site attn_out: blocks of kind AlbertLayerGroup"):
        extract(ModelSpec(model=str(models_of("albert"))), make_data(), SPEC, tmp_path / "s", Progress())
