"""The tables of docs/scaling.md are what the script prints of the constants that were kept."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "scaling.md"
KEPT = json.loads((ROOT / "benchmarks" / "results" / "2026-11-21-scaling.json").read_text())["constants"]


@pytest.fixture(scope="module")
def scaling() -> Any:
    sys.path.append(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("scaling", ROOT / "benchmarks" / "scaling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def costs(scaling: Any) -> Any:
    return sys.modules["_costs"]


def test_every_table_is_what_its_command_prints(scaling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = PAGE.read_text()
    assert page.count("$ python benchmarks/scaling.py") == page.count("```") // 2 == 6
    assert scaling.filled(page) == page, "run: python benchmarks/scaling.py --page docs/scaling.md"
    assert scaling.filled(page.replace("2.39 TB", "2.40 TB")) == page


def test_bytes_are_those_of_a_store_that_is_there(scaling: Any, costs: Any, tmp_path: Path) -> None:
    """A store of other sizes than those measured, against the sum."""
    run = costs.make_run(tmp_path / "s")
    for first in range(0, 1500, 500):
        costs.put(run, first, 500)
    there = costs.table_bytes(tmp_path / "s")
    said = scaling.store_of(1500, scaling.Study(layers=costs.LAYERS, width=costs.WIDTH, shard_mb=1), KEPT)
    assert said.hidden == pytest.approx(there["hidden"], rel=0.02)
    assert said.lens == pytest.approx(there["lens"], rel=0.25)
    assert said.manifests / said.shards == pytest.approx(there["manifest"] / 3, rel=0.05)


def test_measuring_gives_every_constant(costs: Any, tmp_path: Path) -> None:
    found = costs.measure(tmp_path, costs.Sizes(50, 100, 2000, 8, 200))
    assert set(found) == set(KEPT)
    assert found["bytes_per_value_7"] < found["bytes_per_value_10"] < found["bytes_per_value_23"] < 4
