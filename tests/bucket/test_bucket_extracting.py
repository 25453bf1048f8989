"""Extraction into a bucket by several processes: parts, devices and workers on Ray make what one process makes on a disk."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from command import Call
from extract.test_parts_of_runs import check_same
from served import Refusal, Server

import layercache
from layercache.store import mirror

RECIPE = """
name = "films"
models = ["demo", "demo:early"]
[[data]]
source = "demo:movies"
labels = ["rating:number"]
limit = 12
[extract]
layers = [0, 6]
save_head = true
conditions = ["random-0.25"]
"""


@pytest.fixture(autouse=True)
def _found_by_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(layercache.__file__).parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def whole(call: Call, tmp_path: Path) -> Path:
    """What one process makes on a disk, beside the recipe."""
    (tmp_path / "films.toml").write_text(RECIPE)
    done = call("extract", "films.toml", "--store", "whole")
    assert done.code == 0, done.err
    return tmp_path / "whole"


def elsewhere(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the mirror of a bucket as a machine has it that has never seen it."""
    monkeypatch.setenv("LAYERCACHE_CACHE", str(tmp_path / "other machine"))
    return mirror.attach(url)


def test_parts_and_devices_fill_a_bucket(
    server: Server, url: str, call: Call, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = ("plan", "films.toml", "--shards", "3", "--store", url)
    first: Any = call(*plan, "--format", "json").json
    assert [one["shard"] for one in first] == ["0/3", "1/3", "2/3"]
    assert all(f"--store={url}" in one["command"] for one in first)
    assert call(*first[1]["command"][1:]).code == 0
    left = call(*plan)
    assert [line.partition("--shard=")[2][:3] for line in left.out.splitlines()] == ["0/3", "2/3"]
    assert all(url in line for line in left.out.splitlines())
    assert str(tmp_path / "cache") not in left.out + left.err
    done = call("extract", "films.toml", "--devices", "cpu,cpu", "--store", url, "--json")
    assert done.code == 0, done.err
    summaries: Any = done.json
    assert [one["samples"] - one["cached"] for one in summaries] == [sum(one["samples"] for one in first[::2]) // 2] * 2
    assert summaries[0]["seconds"] != summaries[1]["seconds"], "each run says its own time"
    assert call(*plan).out == ""
    check_same(elsewhere(url, monkeypatch, tmp_path), whole)


def test_a_device_that_may_not_write_the_bucket_is_one_line(
    server: Server, url: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "films.toml").write_text(RECIPE.replace(', "demo:early"', ""))

    def no_shards(method: str, path: str, query: str) -> Refusal | None:
        refused = method == "PUT" and "/shard=" in path
        return Refusal("403 Forbidden", "AccessDenied", "no") if refused else None

    server.hook = no_shards
    done = call("extract", "films.toml", "--devices", "cpu", "--store", url)
    assert (done.code, done.out) == (2, "")
    last = done.err.splitlines()[-1]
    assert last.startswith("error: cpu (part 0/")
    assert "permission denied" in last
    assert url in last
    server.hook = None
    assert call("extract", "films.toml", "--devices", "cpu", "--store", url).code == 0


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
@pytest.mark.xdist_group("ray")
def test_workers_on_ray_fill_a_bucket(
    server: Server, url: str, call: Call, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command in a process of its own: the Ray that it starts inherits what leads to the bucket."""
    words = ["extract", "films.toml", "--engine", "ray", "--workers", "2", "--store", url, "--json"]
    done = subprocess.run([sys.executable, "-m", "layercache", *words], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert [(one["samples"], one["cached"]) for one in json.loads(done.stdout)] == [(12, 0)] * 2
    assert call("plan", "films.toml", "--shards", "3", "--store", url).out == ""
    check_same(elsewhere(url, monkeypatch, tmp_path), whole)
