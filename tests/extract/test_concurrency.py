"""Extraction that is killed, and extraction of the same run by several processes: one store, whole, nothing twice."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import layercache
from layercache.store.verify import verify

NURSERY = Path(__file__).parents[1] / "nursery.py"
PROMPTS = [f"Film {n}: a story about {n * 7 % 50} people and {n * 3 % 11} boats." for n in range(30)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "films.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": text}) for text in PROMPTS))
    return path


def nursery(*arguments: object) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(layercache.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, str(NURSERY), *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr


def check_equal(store: Path, whole: Path) -> None:
    """Compare two stores of one run: equal keys, values within the noise of batching; nothing counts twice."""
    assert verify(store, deep=True) == []
    one, other = layercache.open(store), layercache.open(whole)
    (run,), (same,) = one.runs(), other.runs()
    assert run.hash == same.hash
    assert one.samples(run).drop("absent").equals(other.samples(same).drop("absent"))
    for layer in range(run.final_layer + 2):
        for pooling in ("mean", "last"):
            a, b = one.matrix(run, layer, pooling), other.matrix(same, layer, pooling)
            assert a.sample_ids.tolist() == b.sample_ids.tolist()
            # The noise floor of float32 on a CPU and one unit in the last place of a 10-bit mantissa.
            np.testing.assert_allclose(a.values, b.values, rtol=2.0**-10, atol=1e-4)
    keys = "SELECT sample_id, layer, output, position FROM lens ORDER BY ALL"
    assert one.sql(keys).equals(other.sql(keys))
    twice = "SELECT count(*) AS n FROM (SELECT sample_id, layer, pooling FROM hidden GROUP BY ALL HAVING count(*) > 1)"
    assert one.sql(twice).to_pylist() == [{"n": 0}]


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.torture)])
def test_killed_at_random_moments_it_ends_as_if_undisturbed(
    tmp_path: Path, data: Path, models_of: Callable[..., Path], kills: int
) -> None:
    nursery(tmp_path / "store", data, models_of("llama"), "kill", kills, kills)
    check_equal(tmp_path / "store", tmp_path / "whole")


@pytest.mark.parametrize(
    "parts",
    [
        ["0:30", "0:20", "10:20"],
        pytest.param([f"{start}:{24 - start}" for start in range(8)], marks=pytest.mark.torture),
    ],
    ids=len,
)
def test_several_processes_extracting_one_run_make_one_store(
    tmp_path: Path, data: Path, models_of: Callable[..., Path], parts: list[str]
) -> None:
    nursery(tmp_path / "store", data, models_of("llama"), "race", *parts)
    check_equal(tmp_path / "store", tmp_path / "whole")
