"""A run done in parts: together they are what one run is, whoever does which and in which order."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layercache
from layercache import parts
from layercache.extract import model
from layercache.extract.kept import Kept
from layercache.extract.run import extract
from layercache.progress import Progress
from layercache.recipe import ExtractSpec, ModelSpec
from layercache.store.merge import merge
from layercache.store.verify import verify

from .conftest import make_data

ROWS = [{"what": f"Film {n % 9} of {n}", "text": f"a story about {n * 7 % 50} people and boats"} for n in range(24)]
TEMPLATE = "{what}: {text}"

KEYS = {
    "hidden": "SELECT condition, site, layer, pooling, position, sample_id FROM hidden ORDER BY ALL",
    "lens": "SELECT condition, output, layer, position, sample_id FROM lens ORDER BY ALL",
    "tokens": "SELECT condition, sample_id, position, token_id, text, spans FROM tokens ORDER BY ALL",
    "token_stats": "SELECT condition, sample_id, layer, metric FROM token_stats ORDER BY ALL",
    "samples": "SELECT condition, sample_id, prompt, n_tokens, spans, target_id, donor_id FROM samples ORDER BY ALL",
    "generations": "SELECT sample_id, output, layer, text, token_ids FROM generations ORDER BY ALL",
}


def check_same(store: Path, whole: Path) -> None:
    """Compare two stores of one run: equal keys in every table, values within the noise of batching, equal rows."""
    assert verify(store, deep=True) == []
    one, other = layercache.open(store), layercache.open(whole)
    assert [run.hash for run in one.runs()] == [run.hash for run in other.runs()]
    for table, query in KEYS.items():
        assert one.sql(query).equals(other.sql(query)), table
    states = "SELECT vector FROM hidden ORDER BY run, condition, site, layer, pooling, position, sample_id"
    found, expected = (np.stack(store.sql(states)["vector"].to_numpy(zero_copy_only=False)) for store in (one, other))
    # The noise floor of float32 on a CPU and one unit in the last place of a 10-bit mantissa.
    np.testing.assert_allclose(found, expected, rtol=2.0**-10, atol=1e-4)
    for run in one.runs():
        for info in one.data(run):
            assert one.rows(run, info.name).equals(other.rows(run, info.name)), info.name


def data() -> Any:
    return make_data(ROWS, TEMPLATE)


SPECS = {
    "plain": ExtractSpec(lens=["last"], stats=["mean_cosine", "prompt_entropy"], spectrum_sample=10),
    "conditions": ExtractSpec(
        layers=[0, 2],
        conditions=["knockout-what", "control-what", "patch-what", "control-patch-what", "repeat-0.5", "truncate-4"],
        augment=1,
    ),
    "answers": ExtractSpec(
        layers=[1, 3],
        generate_answer=True,
        max_new_tokens=4,
        pooling=["mean", "last@answer"],
        conditions=["answer-only", "knockout-what"],
    ),
}


@pytest.mark.parametrize("kind", SPECS)
def test_four_parts_in_one_store_are_one_run(
    kind: str, models_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, given, named = SPECS[kind], data(), ModelSpec(model=str(models_of("llama")))
    whole = extract(named, given, spec, tmp_path / "whole", Progress())
    loaded: list[Any] = []
    load = model.load
    monkeypatch.setattr(model, "load", lambda plan: loaded.append(plan) or load(plan))
    kept = Kept()
    done = [
        extract(named, given, spec, tmp_path / "store", Progress(), part=part, kept=kept)
        for part in map(parts.parse, ["3/4", "1/4", "4/4", "2/4"])
    ]
    assert len(loaded) == 1
    assert [one.part for one in done] == ["3/4", "1/4", "4/4", "2/4"]
    assert "in part 3/4" in str(done[0])
    assert all(0 < one.forward_passes < whole.forward_passes for one in done)
    assert not any(one.waiting for one in done)
    for counted in ("samples", "forward_passes", "tokens", "new_samples", "new_answers", "generated_tokens"):
        assert sum(getattr(one, counted) for one in done) == getattr(whole, counted), counted
    check_same(tmp_path / "store", tmp_path / "whole")


def test_stores_of_parts_merge_into_one_run_with_every_answer_in_its_rows(
    models_of: Callable[..., Path], tmp_path: Path
) -> None:
    spec, named = SPECS["answers"], ModelSpec(model=str(models_of("llama")))
    extract(named, data(), spec, tmp_path / "whole", Progress())
    kept, given = Kept(), data()
    for part in parts.every(3):
        store = tmp_path / f"own-{part.index}"
        extract(named, given, spec, store, Progress(), part=part, kept=kept)
        rows = layercache.open(store).rows(layercache.open(store).runs()[0], "data")
        assert rows["answer"].is_null().any()
    for turn in range(2):
        merged = [merge(tmp_path / f"own-{index}", tmp_path / "merged") for index in range(3)]
        assert not any(one.notes for one in merged)
        assert any(one.shards for one in merged) == (turn == 0)
        check_same(tmp_path / "merged", tmp_path / "whole")
    files = sorted((tmp_path / "merged").glob("run=*/rows/*"))
    assert len(files) == 3 + 2, "the second merge wrote rows again"
