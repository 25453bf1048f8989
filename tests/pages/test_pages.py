"""Every command of every page runs, in the order of the page; what the page shows of its output is what it prints.

What pages need for it, and which commands cannot be run here, stands in `page_table.py`.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import page_output
import page_props
import page_reading
import pytest
from command import Call, Called
from page_reading import ROOT, Block, Command
from page_shell import Shell
from page_table import NEVER, PYTHON, QUICKLY, SCRIPT, SMALLER, STUDIES, TABLE, UNCHECKED, Page

from layercache import report
from layercache.cli import cli

TEXTS = {name: (ROOT / name).read_text() for name in page_reading.PAGES}


def _marks(name: str, page: Page) -> list[pytest.MarkDecorator]:
    # Pages that ask the same stores run in one process, one after the other.
    group = "ray" if page.needs == "ray" else "studies" if page.stores else name
    return [pytest.mark.xdist_group(group), *([pytest.mark.torture] if page.torture else [])]


RUN = [pytest.param(name, marks=_marks(name, page)) for name, page in TABLE.items()]


def test_the_table_speaks_of_every_page() -> None:
    assert sorted(TABLE) == sorted(page_reading.PAGES)


@pytest.mark.parametrize("name", TABLE)
def test_the_table_speaks_of_nothing_that_left_the_page(name: str) -> None:
    page, texts = TABLE[name], [one.text for one in page_reading.commands(TEXTS[name])]
    known = (
        *page.not_run,
        *page.exits,
        *page.about,
        *(one for one in page.shows.values() if " " in one and one[0] != "("),
    )
    assert [start for start in known if not any(text.startswith(start) for text in texts)] == []
    assert [part for part in page.instead if not any(part in text for text in texts)] == []
    titles = [one.title for one in page_reading.blocks(TEXTS[name]) if one.language == "text"]
    assert [start for start in page.shows if not any(title.startswith(start) for title in titles)] == []
    assert all(any(title.startswith(start) for start in page.shows) for title in titles), titles


def test_commands_that_never_run_stand_somewhere() -> None:
    texts = [one.text for text in TEXTS.values() for one in page_reading.commands(text)]
    assert [start for start in NEVER if not any(text.startswith(start) for text in texts)] == []


@pytest.mark.parametrize("name", TABLE)
def test_blocks_are_fenced_and_of_languages_that_are_known(name: str) -> None:
    blocks = page_reading.blocks(TEXTS[name])
    assert {block.language for block in blocks} <= {*page_reading.SHELL, "text", "python", "sql", "toml", "yaml"}
    assert page_reading.indented(TEXTS[name]) == [], "commands stand in fenced blocks"


@pytest.mark.parametrize("name", TABLE)
def test_every_command_of_the_page_is_one(name: str) -> None:
    """Run or not, options and their values are those that the command takes."""
    top = click.Context(cli, info_name="layercache", **cli.context_settings)
    for one in page_reading.commands(TEXTS[name]):
        words = shlex.split(one.text.replace("\\\n", " "), comments=True)
        ends = [at for at, word in enumerate(words) if word in {"|", "&&", "&"} or word.startswith(">")]
        words = words[1 : ends[0] if ends else None] if words[0] == "layercache" else ["--help"]
        if words[0].startswith("-"):
            continue
        command = cli.get_command(top, words[0])
        assert command is not None, one
        # A name alone is no call: `layercache export`.
        if one.is_mention and not any(word.startswith("-") for word in words):
            continue
        try:
            command.make_context(words[0], words[1:], parent=top)
        except click.exceptions.Exit:
            pass  # --help
        except click.ClickException as error:
            raise AssertionError(f"{name}:{one.line}: {one.text}: {error.format_message()}") from error


def _smaller(words: list[str], table: dict[str, str]) -> list[str]:
    # The jobs of a plan hold the settings of the plan, before a `--`.
    if "--" in words:
        return []
    recipe = words[0] in ("run", "extract") and not words[1].startswith("-")
    return shlex.split(f"{_of(table, ' '.join(words), '')} {UNCHECKED if recipe else ''}")


def _of(table: dict[str, Any], text: str, otherwise: Any = None) -> Any:
    return next((value for start, value in table.items() if text.startswith(start)), otherwise)


class Reader:
    """Somebody who types the commands of a page, in a folder that looks like a clone.

    Args:
        folder: an empty one.
        page: what the table says of the page.
        studies: a folder where stores of studies are kept for other pages.
    """

    def __init__(self, folder: Path, page: Page, call: Call, studies: Path, environment: dict[str, str]) -> None:
        self.page, self.folder, self.studies = page, folder, studies
        self.changed = False
        self.printed: list[tuple[Command, Called, bool]] = []
        """Commands, what became of them, and whether they were made smaller."""
        page_props.clone(folder)
        self.shell = Shell(folder, call, self._change, {"COLUMNS": "200", **environment})
        self._call = call

    def prepare(self) -> None:
        """Put there what the page takes for granted."""
        for name, line in self.page.programs.items():
            self.shell.program(name, line)
        for name in self.page.files:
            self._put(name, page_props.FILES[name])
        for name in self.page.stores:
            made = self._study(name)
            for path in (made, made.with_name(f"{name}-adapters")):
                if path.exists():
                    shutil.copytree(path, self.folder / path.name)
        for text in self.page.before:
            done = self.shell.run(text)
            assert done.code == 0, f"{text}\n{done.err}"

    def _put(self, name: str, make: Callable[[Path], None]) -> None:
        """Make a file or model once for all pages."""
        kept = self.studies / "files" / name
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            make(kept)
        place = self.folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if kept.is_dir():
            shutil.copytree(kept, place)
        else:
            shutil.copyfile(kept, place)

    def _study(self, name: str) -> Path:
        """Make the store of a study, by the command that pages give for it."""
        folder = self.studies / name
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            reader = Reader(folder, Page(), self._call, self.studies, {})
            done = reader.shell.run(STUDIES[name])
            assert done.code == 0, f"{STUDIES[name]}\n{done.err}"
            (folder / "done").write_text(done.out)
        return folder / name

    def _change(self, words: list[str]) -> list[str]:
        own = self.page.smaller
        more = _smaller(words, {**own, **{start: more for start, more in SMALLER.items() if start not in own}})
        self.changed |= bool(more)
        return [*words, *more]

    def run(self, one: Command) -> None:
        """Run a command as it is typed; it has to end well, and to have written what it was told to write."""
        text = one.text
        for part, other in self.page.instead.items():
            text = text.replace(part, other)
        study = next((name for name in self.page.stores if STUDIES[name] == shlex.join(shlex.split(text, True))), None)
        self.changed = False
        if study is not None:
            done = Called(0, (self.studies / study / "done").read_text(), "")
            self.changed = True
        else:
            store = _of(self.page.about, one.text, self.page.speaks_of if one.inline else "")
            done = self.shell.run(f"LAYERCACHE_STORE={store} {text}" if store else text)
        assert done.code == _of(self.page.exits, one.text, 0), f"{one.text}\n{done.out[-2000:]}\n{done.err[-3000:]}"
        self._check_written(text)
        self._check_again(one, done)
        self.printed.append((one, done, self.changed))

    def _check_written(self, text: str) -> None:
        """What a command was to write is there, and is what its name says."""
        for path in (self.folder / name for name in re.findall(r" -o (\S+)", text)):
            assert path.exists(), path
            assert path.suffix != ".svg" or path.read_text().startswith("<svg"), path
            assert path.suffix != ".html" or path.stat().st_size > 100_000, path

    def _check_again(self, one: Command, done: Called) -> None:
        """A study that is run a second time runs no forward pass."""
        if one.text.startswith("layercache run ") and any(one.text == other.text for other, _, _ in self.printed):
            assert "0 forward passes" in done.err or not done.err, done.err

    def check_shown(self, block: Block | Command, shown: str, start: str) -> None:
        """Hold what a page shows to what the command printed, or wrote into the file of that name."""
        if (self.folder / start).is_file():
            assert page_output.same(shown, (self.folder / start).read_text(), exact=False) == []
            return
        found = [(done, changed) for one, done, changed in self.printed if one.text.startswith(start)]
        assert found, f"{start} has not run"
        done, changed = found[-1]
        wrong = page_output.same(shown, f"{done.out}\n{done.err}", exact=not changed and not self.page.files)
        assert wrong == [], f"line {block.line}: `{start}` prints otherwise\n" + "\n".join(wrong)


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where stores, models and files that several pages need are kept."""
    return tmp_path_factory.mktemp("studies")


@pytest.mark.parametrize("name", RUN)
def test_every_command_of_a_page_runs(
    name: str,
    call: Call,
    tmp_path: Path,
    studies: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    page, text = TABLE[name], TEXTS[name]
    if not page.charts:
        monkeypatch.setattr(report, "write_charts", lambda *_: [])
    environment = request.getfixturevalue(page.needs) if page.needs else {}
    reader = Reader(tmp_path, page, call, studies, environment)
    reader.prepare()
    if page.recipe:
        page_props.own_recipe(name, tmp_path / page.recipe)
    for one in page_reading.commands(text):
        if not one.is_mention and _of({**page.not_run, **NEVER}, one.text) is None:
            reader.run(one)
            if one.shown:
                reader.check_shown(one, one.shown, one.text)
    for block in page_reading.blocks(text):
        start = _of(page.shows, block.title, "(")
        if block.language == "text" and not start.startswith("("):
            reader.check_shown(block, block.text, start)
    if name not in PYTHON:
        _run_python(text, tmp_path)


@pytest.mark.torture
@pytest.mark.parametrize("name", [name for name, page in TABLE.items() if SCRIPT in page.not_run.values()])
def test_a_script_runs(name: str, tmp_path: Path) -> None:
    """And prints a table of the shape that the page shows, where it shows one."""
    page = TABLE[name]
    (line,) = [start for start, reason in page.not_run.items() if reason == SCRIPT]
    command = [sys.executable, ROOT / line.removeprefix("python "), "--quick"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for block in page_reading.blocks(TEXTS[name]):
        if _of(page.shows, block.title) == QUICKLY:
            assert page_output.same(block.text, done.stdout, exact=False) == []


@pytest.mark.torture
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_runs_at_its_full_size(name: str, call: Call, tmp_path: Path) -> None:
    page_props.clone(tmp_path)
    done = Shell(tmp_path, call, lambda words: words).run(STUDIES[name])
    assert done.code == 0, done.err[-3000:]
    assert (tmp_path / name / "report.html").stat().st_size > 100_000


def _run_python(text: str, folder: Path) -> None:
    """Run the page's Python, where its commands have been."""
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in page_reading.blocks(text):
            if block.language == "python":
                exec(compile("\n" * block.line + block.text, "page", "exec"), names)
