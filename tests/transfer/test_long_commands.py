"""Long commands: what they show while they work, and what is left where a signal stops them in the middle."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import full_store
import pytest
from command import Call
from full_store import files
from store_builder import content

from layercache import exchange, progress
from layercache.cli.stopping import command
from layercache.store import cleanup, compact, reader
from layercache.store.verify import verify

STOPPED = Path(__file__).with_name("stopped.py")
SAMPLE = Path(__file__).parents[2] / "store"
_LINE = re.compile(r"(.+): ([\d,]+)/([\d,]+) (\w+), [\d,.]+ (\w+)/s, \d+:\d\d left")
SHARDS = r"(the (1 shard published in \w+ is|\d+ shards published in \w+ are) safe|nothing was published yet)"
MOMENTS = ((signal.SIGKILL, 1), (signal.SIGINT, 1), (signal.SIGKILL, 2))
"""A command is killed, stopped when it is given again, and killed once more further on."""


def _nothing(folder: Path) -> None:
    """What is made of a command that writes nothing, or needs nothing before it."""


class Case(NamedTuple):
    """A command in a folder with a store called `source`.

    Attributes:
        shows: of its bar: how the title begins, and the unit.
        made: what it makes, to compare with what it makes when nothing stops it.
        safe: what is said of a stop, as a regular expression.
        before: makes what has to be there.
    """

    words: str
    shows: tuple[str, str]
    safe: str
    made: Callable[[Path], object] = _nothing
    before: Callable[[Path], object] = _nothing


def copied(folder: Path) -> object:
    return files(folder / "all")


def rows(folder: Path) -> object:
    return content(folder / "source")


def cleaned(folder: Path) -> object:
    return sorted(path.partition("shard=")[0] for path in files(folder / "source")), rows(folder)


def exported(folder: Path) -> object:
    return files(folder / "out")


def imported(folder: Path) -> object:
    return content(folder / "back")


def page(folder: Path) -> object:
    return re.sub(r"Made by layercache .* UTC", "", (folder / "out.html").read_text())


def compact_all(folder: Path) -> None:
    opened = reader.open(folder / "source")
    for run in opened.runs():
        for condition in opened.conditions(run):
            compact.compact(opened, run, condition)


def export(folder: Path) -> None:
    exchange.export_run(reader.open(folder / "source"), "org/other", folder / "out", "npy")


PUSHED = "what was copied whole is safe where it is, and source is only read"
VERIFIED = "nothing is left half done, and what --repair moved away extract makes again"
NOTHING = "nothing is left half done"
CASES = {
    "merge": Case("merge source --store all", ("merge source", "kB"), SHARDS, copied),
    "pull": Case("pull source --store all", ("copy to all", "kB"), SHARDS, copied),
    "push": Case("push all --store source", ("copy to all", "kB"), PUSHED, copied),
    "push a part": Case("push all --layers 1,2 --store source", ("copy to all", "kB"), PUSHED, copied),
    "compact": Case("compact --store source", ("compact ", "kB"), SHARDS, rows),
    "gc": Case(
        "gc --older-than 0 --store source",
        ("remove from source", "things"),
        "what was not removed is as it was",
        cleaned,
        compact_all,
    ),
    "verify": Case("verify --deep --store source", ("verify source", "kB"), VERIFIED),
    "a quick verify": Case("verify --store source", ("verify source", "shards"), VERIFIED),
    "export": Case(
        "export org/other -o out --format npy --store source",
        ("export other-", "arrays"),
        "the store is only read; what is not finished was not written",
        exported,
    ),
    "import": Case("import out --store back", ("read", "kB"), SHARDS, imported, export),
    "lens": Case("lens org/tiny --store source", ("lens of tiny-", "positions"), NOTHING),
    "report": Case(f"report -o out.html --samples 2 --store {SAMPLE}", ("report", "sections"), NOTHING, page),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_store.make(tmp_path_factory.mktemp("made") / "store").store


def prepared(folder: Path, made: Path, name: str) -> Path:
    shutil.copytree(made, folder / "source")
    CASES[name].before(folder)
    return folder


@pytest.fixture(scope="module")
def stopped(made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[tuple[int, str]]]]:
    """Of every case its folder, and how the command ended at each of the moments."""
    folders = {name: prepared(tmp_path_factory.mktemp("stopped"), made, name) for name in CASES}
    given = [
        [str(folder), ["layercache", *CASES[name].words.split()], number, at]
        for name, folder in folders.items()
        for number, at in MOMENTS
    ]
    done = subprocess.run([sys.executable, str(STOPPED)], input=json.dumps(given), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ended = iter(json.loads(done.stdout))
    return {name: (folder, [tuple(next(ended)) for _ in MOMENTS]) for name, folder in folders.items()}


@pytest.mark.parametrize("name", CASES)
def test_long_work_shows_how_far_it_is(
    name: str, made: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done, the rate and the time left; nothing with --quiet."""
    case = CASES[name]
    monkeypatch.setattr(progress, "SHORT", 0.0)
    for quiet in ([], ["--quiet"]):
        monkeypatch.chdir(prepared(tmp_path / f"q{len(quiet)}", made, name))
        done = call(*case.words.split(), *quiet)
        assert done.code == 0, done.err
        lines = [match for line in done.err.splitlines() if (match := _LINE.fullmatch(line))]
        own = [line for line in lines if line[1].startswith(case.shows[0]) and line[4] == line[5] == case.shows[1]]
        assert (not own and done.err == "") if quiet else own[-1][2] == own[-1][3]


@pytest.mark.parametrize("name", CASES)
def test_what_a_signal_stops_the_same_command_ends(
    name: str,
    stopped: dict[str, tuple[Path, list[tuple[int, str]]]],
    made: Path,
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C says in one line what is safe and how to go on; after SIGKILL, too, the same command ends the work."""
    case = CASES[name]
    folder, (killed, told, later) = stopped[name]
    assert killed[0] == -signal.SIGKILL
    assert later[0] in (-signal.SIGKILL, 0)
    assert told[0] == 130, told[1]
    assert "Traceback" not in told[1]
    (line,) = [line for line in told[1].splitlines() if "interrupted" in line]
    safe, _, again = line.partition("; go on with: ")
    assert again == command(["layercache", *case.words.split()])
    assert re.fullmatch(f"interrupted: {case.safe}", safe), safe
    whole = prepared(tmp_path / "whole", made, name)
    for place in (whole, folder):
        monkeypatch.chdir(place)
        done = call(*case.words.split())
        assert done.code == 0 or (place == folder and later[0] == 0 and "exists: choose another" in done.err)
    assert case.made(folder) == case.made(whole)
    for store in (folder / one for one in ("source", "all", "back")):
        if store.exists():
            assert verify(store, deep=True) == []
            cleanup.collect(store, older_than=0)
            assert list((store / ".tmp").glob("*")) == []


def test_of_short_work_nothing_is_shown(
    made: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SHORT", 1e9)
    monkeypatch.chdir(prepared(tmp_path / "work", made, "merge"))
    done = call(*CASES["merge"].words.split())
    assert "done" in done.err
    assert not any(map(_LINE.fullmatch, done.err.splitlines()))
