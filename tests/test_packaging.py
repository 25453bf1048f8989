"""What ships, and what it needs: a built wheel finds its resources, and the laptop side knows no torch."""

import json
import pkgutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import layercache
from layercache import resources

ROOT = Path(__file__).parents[1]
GPU_SIDE = ("layercache.extract", "layercache.demo.")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_code_recipes_queries_and_the_demo_model(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for kind in ("pipelines", "queries"):
        for name in resources.names(kind):
            assert any(entry.startswith(f"layercache/_resources/{kind}/{name}.") for entry in names)
    assert "layercache/py.typed" in names
    assert "layercache/demo/weights/final/model.safetensors" in names
    assert not [entry for entry in names if entry.split("/")[0] in {"tests", "store", "queries", "pipelines"}]


def test_an_installed_wheel_finds_its_resources(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import json, layercache\nfrom layercache import resources\n"
        "print(json.dumps([layercache.__file__, resources.names('pipelines'), resources.names('queries'),"
        " str(resources.find('pipelines', 'demo'))]))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=tmp_path)
    file, pipelines, queries, demo = json.loads(done.stdout)
    assert file.startswith(str(tmp_path))
    assert pipelines == resources.names("pipelines")
    assert queries == resources.names("queries")
    assert demo.startswith(str(tmp_path))


def _laptop_modules() -> list[str]:
    found = [info.name for info in pkgutil.walk_packages(layercache.__path__, "layercache.")]
    return [name for name in found if not name.startswith(GPU_SIDE) and not name.endswith("__main__")]


def test_the_laptop_side_imports_without_torch(
    laptop: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    modules = _laptop_modules()
    assert {"layercache.analyze.probe", "layercache.store.reader", "layercache.report", "layercache.demo"} <= set(
        modules
    )
    script = (
        "import importlib, importlib.util\n"
        "assert importlib.util.find_spec('torch') is None and importlib.util.find_spec('transformers') is None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print('imported')"
    )
    done = laptop(script, cwd=tmp_path)
    assert done.stdout.strip() == "imported", done.stderr


def test_starting_the_command_line_imports_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "polars", "duckdb", "pyarrow", "sklearn", "altair", "pydantic", "numpy", "rich"]
    script = f"import sys, click; from layercache.cli import COMMANDS, cli; [cli.get_command(click.Context(cli), name) for name in COMMANDS]; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
