"""Fixtures that several folders share: the command line called in this process, and a small demo store."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextvars import copy_context
from importlib.util import find_spec
from pathlib import Path

import pytest
from command import Call, Called

import layercache
from layercache import cli, progress

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def _all_work_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no command show progress because the machine is busy: what it prints is then the same every time."""
    monkeypatch.setattr(progress, "SHORT", float("inf"))


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Call `layercache` with arguments, in this process, from an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Called:
        monkeypatch.setattr(sys, "argv", ["layercache", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        sys.stdout.flush()
        out, err = capfd.readouterr()
        return Called(code, out, err)

    return run


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Forty made-up films with a rating, a certificate, an empty cell here and there, and a doubled row."""
    path = tmp_path / "films.csv"
    lines = ["title,year,certificate,rating,description"]
    for number in range(40):
        certificate = ("U", "PG", "15")[number % 3]
        rating = "" if number == 7 else f"{3 + number % 5}.{number % 10}"
        year = "" if number == 5 else str(1950 + number)
        lines.append(
            f'Film {number},{year},{certificate},{rating},"A story of {number} people,\nand {certificate} things."'
        )
    lines.append(lines[1])
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """A Ray of two processors on this machine, for all tests that ask for it; they use it inside `engine.on("ray")`."""
    # Found, not imported: what Ray prints is settled where it is imported first, which is to be the engine.
    if find_spec("ray") is None:
        pytest.skip("ray is not installed")
    from layercache import engine

    # Entered in a context of its own, so that the tests that come after work in their own process.
    context, started = copy_context(), engine.on("ray", "local", cpus=2)
    context.run(started.__enter__)
    yield
    context.run(started.__exit__, None, None, None)


LEFT_OUT = (
    "layercache",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "peft",
    "bitsandbytes",
    "trl",
    "psutil",
    "functorch",
)


@pytest.fixture(scope="session")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run a script with arguments in an environment that has no torch and no transformers."""
    site = tmp_path_factory.mktemp("laptop") / "site-packages"
    site.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if entry.name.split("-")[0].split(".")[0] not in LEFT_OUT and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    # An editable install leaves a folder of that name with the shipped files, not the package.
    (site / "layercache").symlink_to(Path(layercache.__file__).parent)

    def run(script: str, *arguments: object, cwd: Path) -> "subprocess.CompletedProcess[str]":
        # -S leaves the real site-packages out of the path.
        command = [sys.executable, "-S", "-c", script, *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=cwd, env={**os.environ, "PYTHONPATH": str(site)}
        )

    return run
