"""`layercache doctor`: what it finds is what is there; it downloads nothing and exits 2 for a model that cannot work."""

import re
import shutil
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from command import Call

from layercache import demo, doctor

ROOT = Path(__file__).parents[1]


def _examined(call: Call, *words: object, code: int = 0) -> Any:
    done = call("doctor", "--json", *words)
    assert (done.code, done.err) == (code, "")
    return done.json


def test_packages_and_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[\[><=~! ]", one)[0] for one in requirements} - {"layercache"}

    assert set(doctor.CORE) == names(project["dependencies"])
    extras = {name: names(listed) for name, listed in project["optional-dependencies"].items()}
    assert {name: set(listed) for name, listed in doctor.EXTRAS.items()} == {
        name: listed for name, listed in extras.items() if listed
    }


def test_what_is_there(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERCACHE_STORE", str(ROOT / "store"))
    monkeypatch.setenv("HF_TOKEN", "very-secret")
    found = _examined(call)
    assert found["packages"]["pyarrow"] == metadata.version("pyarrow")
    assert found["devices"][-1]["device"] == "cpu"
    assert found["devices"][-1]["auto_dtype"] == "float32"
    assert 0 < found["devices"][-1]["free_bytes"] < found["devices"][-1]["memory_bytes"]
    store = found["store"]
    assert (store["format"], store["frozen"], store["exists"]) == (1, True, True)
    shards = list((ROOT / "store").glob("run=*/condition=*/shard=*/manifest.json"))
    assert (store["runs"], store["shards"]) == (len(list((ROOT / "store").glob("run=*"))), len(shards))
    assert abs(store["free_bytes"] / shutil.disk_usage(ROOT).free - 1) < 0.1
    assert found["environment"]["LAYERCACHE_STORE"] == str(ROOT / "store")
    assert found["environment"]["HF_TOKEN"] == "set"
    text = call("doctor").out
    assert "very-secret" not in text
    assert "frozen: yes" in text


def test_a_model_that_loads(call: Call) -> None:
    model = _examined(call, "--model", "demo")["model"]
    assert (model["loads"], model["problem"], model["class"]) == (True, None, "LlamaForCausalLM")
    assert (model["layers"], model["width"]) == (6, 128)
    weights = (demo.model_path("demo") / "model.safetensors").stat().st_size
    assert model["weight_bytes"] >= weights * 0.95  # stored in float32 or narrower, run in float32


def test_models_that_do_not(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "cut"
    shutil.copytree(demo.model_path("demo"), folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    for name, said in (
        ("no-such-org/no-such-model", "the hub's cache does not have it"),
        ("./nowhere", "there is no such folder"),
        ("demo:lat", "no demo model 'demo:lat'"),
        (str(folder), "broken or cut off"),
    ):
        model = _examined(call, "--model", name, code=2)["model"]
        assert not model["loads"]
        assert said in model["problem"]
    assert call("doctor", "--model", str(folder)).code == 2


def test_a_model_that_does_not_fit(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from layercache.extract import machine

    here = machine.devices()
    monkeypatch.setattr(machine, "devices", lambda: [{**one, "free_bytes": 1_000_000} for one in here])
    model = _examined(call, "--model", "demo", code=2)["model"]
    assert "1.0 MB free" in model["problem"]


def test_stores_in_any_state(call: Call, tmp_path: Path) -> None:
    assert _examined(call, "--store", "nowhere")["store"]["exists"] is False
    assert not Path("nowhere").exists()
    (tmp_path / "s").mkdir()
    assert _examined(call, "--store", "s")["store"]["runs"] == 0
    (tmp_path / "s" / "run=x").mkdir()
    (tmp_path / "s" / "run=x" / "run.json").write_text('{"format": 99}')
    assert "format 99" in _examined(call, "--store", "s")["store"]["problem"]
    (tmp_path / "file").write_text("x")
    assert "is a file" in _examined(call, "--store", "file")["store"]["problem"]


def test_without_torch(laptop: Any, tmp_path: Path) -> None:
    script = "import sys; from layercache.cli import main; sys.argv[0] = 'layercache'; main()"
    done = laptop(script, "doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "extraction is not installed: pip install 'layercache[extract]'" in done.stdout
    assert re.search(r"extract: .*missing .*torch.*: pip install 'layercache\[extract\]'", done.stdout)
    asked = laptop(script, "doctor", "--model", "demo", cwd=tmp_path)
    assert (asked.returncode, asked.stderr) == (2, "")
