"""What all commands have in common: help by example, hints, quiet and JSON, colours, completion."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from command import Call

from layercache import progress, recipe, report
from layercache.cli import COMMANDS, cli, completion
from layercache.errors import RecipeError

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "store"


def _command(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


def _examples(name: str) -> list[str]:
    """Return the lines of a command's help that call it."""
    text = (_command(name).help or "").replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip().startswith(f"layercache {name}")]


def _parses(words: list[str]) -> None:
    command = _command(words[0])
    with click.Context(cli, info_name="layercache", obj={}, **cli.context_settings) as top:
        command.make_context(words[0], words[1:], parent=top)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_teaches_by_an_example_that_parses(name: str) -> None:
    shown = _examples(name)
    if name == "completion":
        shown = [f"layercache completion {shell}" for shell in ("bash", "zsh", "fish")]
        assert all(line in (_command(name).help or "") for line in shown)
    assert shown
    for line in shown:
        _parses(_alone(shlex.split(line, comments=True))[1:])


def _alone(words: list[str]) -> list[str]:
    """Return a command without what its output is passed on to."""
    return words[: next((at for at, word in enumerate(words) if word in ("|", ">", "&&", ";")), len(words))]


def _whole_lines(block: str) -> Iterator[str]:
    """Yield the lines of a shell session, those that are continued or leave a quote open joined."""
    line = ""
    for more in block.replace("\\\n", " ").splitlines():
        line = f"{line}\n{more}" if line else more.strip()
        try:
            shlex.split(line, comments=True)
        except ValueError:
            continue
        yield line
        line = ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("analize",), "no command 'analize': did you mean 'analyze'?"),
        (("ls", "--stor", "x"), "no option --stor: did you mean --store? (see "),
        (("ls", "--xyzzyq"), "no option --xyzzyq (see"),
        (("sql", "SELECT 1", "--format", "tabel"), "did you mean 'table'?"),
        (("sql", "SELECT 1", "--format=jsn"), "did you mean 'json'?"),
        (("run", "moovies"), "no recipe 'moovies': did you mean 'movies'?"),
        (("run", "demo", "--set", "extract.poolling=last"), "extract.poolling: unknown key: did you mean 'pooling'?"),
        (("run", "demo", "--set", "extrakt.pooling=last"), "extrakt: unknown key: did you mean 'extract'?"),
        (("sql", "--query", "entropy_by_layr", "--store", SAMPLE), "did you mean 'entropy_by_layer'?"),
        (("analyze", "prob", "--store", SAMPLE), "unknown analysis 'prob': did you mean 'probe'?"),
        (("analyze", "probe", "--labels", "ratng", "--store", SAMPLE), "did you mean 'rating'?"),
        (("plot", "agrement", "-o", "x.svg", "--store", SAMPLE), "no plot 'agrement': did you mean 'agreement'?"),
        (("init", "demo:moves"), "no demo data set 'moves': did you mean 'movies'?"),
        (
            ("analyze", "probe", "--workers", 2, "--store", SAMPLE),
            "--workers goes with extract and run: an analysis takes",
        ),
    ],
)
def test_what_was_perhaps_meant(call: Call, words: tuple[object, ...], said: str) -> None:
    done = call(*words)
    assert done.code == 2
    assert said in done.err
    assert len(done.err.splitlines()) == 1
    assert done.out == ""


def test_a_run_that_was_perhaps_meant(call: Call) -> None:
    named = [run["model"] for run in call("ls", "--json", "--store", SAMPLE).json]  # type: ignore[attr-defined]
    done = call("show", f"{named[0]}x", "--store", SAMPLE)
    assert f"did you mean {named[0]!r}?" in done.err


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"dtype": "float23"}, "extract.dtype: 'float23' is not one of auto, float32, bfloat16, float16; did you mean"),
        ({"precision": 11}, "extract.precision: 11 is not one of 7, 10, 23"),
        ({"layers": "x,y"}, "extract.layers: 'x,y': give layer numbers separated by commas (0,4,8), or all"),
        ({"layers": True}, "extract.layers: True: give layer numbers"),
        ({"top_k": 0}, "extract.top_k: 0 is out of range: it must be at least 1"),
        ({"augment": 5000}, "extract.augment: 5000 is out of range: it must be at most 1,000"),
        ({"top_k": "x"}, "extract.top_k: 'x' is not a whole number"),
        ({"compile": "x"}, "extract.compile: 'x' is not true or false"),
        ({"temperature": "hot"}, "extract.temperature: 'hot' is not a number"),
        ({"pooling": 3}, "extract.pooling: 3 is not a list"),
        (5, "extract: 5 is not a table"),
    ],
)
def test_settings_are_refused_in_words(table: object, said: str) -> None:
    with pytest.raises(RecipeError) as refused:
        recipe.build({"name": "x", "models": "demo", "data": {"source": "demo:movies"}, "extract": table})
    assert str(refused.value).startswith(f"settings: {said}")
    assert "Input should" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"analyze": [{"kind": "prob"}]}, "analyze.0.kind: 'prob' is not one of probe, probe_depth"),
        ({"analyze": [{}]}, "analyze.0: needs a kind"),
        ({"analyze": [{"kind": "text", "metrics": "bleuu"}]}, "analyze.0.metrics.0: 'bleuu' is not one of bleu"),
        ({"analyze": [{"kind": "probe", "labls": "x"}]}, "analyze.0.labls: unknown key: did you mean 'labels'?"),
        ({"models": []}, "models: it is empty: give at least one"),
        ({"name": "a b"}, "name: 'a b' is no name: use letters"),
        ({"data": {}}, "data.0.source: is missing"),
    ],
)
def test_other_tables_are_refused_in_words(change: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError) as refused:
        recipe.build({"name": "x", "models": "demo", "data": {"source": "demo:movies"}, **change})
    assert str(refused.value).startswith(f"settings: {said}")


def test_a_kind_of_label_that_was_perhaps_meant() -> None:
    with pytest.raises(RecipeError, match="did you mean a:number"):
        recipe.parse_label("a:numbr")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_commands_that_print_have_json_and_those_that_note_have_quiet(name: str) -> None:
    options = {option for param in _command(name).params for option in param.opts}
    assert "--json" in options or name in {"completion", "plan"}  # plan prints a script, and --format json too
    # These write nothing to stderr but errors.
    assert "--quiet" in options or name in {"completion", "doctor", "lens", "plot", "report", "show", "sql"}


def test_json_of_commands_with_a_format(call: Call) -> None:
    asked = ("sql", "SELECT 1 AS one", "--store", SAMPLE)
    assert call(*asked, "--json").json == call(*asked, "--format", "json").json == [{"one": 1}]
    assert "exclude each other" in call(*asked, "--json", "--format", "csv").err
    assert {"name", "title"} == set(call("sql", "--list", "--json").json[0])  # type: ignore[index]


def test_json_of_commands_that_write(call: Call) -> None:
    drawn = call("plot", "agreement", "-o", "a.svg", "--store", SAMPLE, "--json")
    assert drawn.json == {"plot": "a.svg"}, drawn
    exported = call("export", "--sql", "SELECT 1 AS one", "-o", "one.csv", "--store", SAMPLE, "--json", "-q")
    assert exported.json == {"out": "one.csv", "rows": 1}
    assert exported.err == ""
    verified = call("verify", "--store", SAMPLE, "-q")
    assert (verified.code, verified.out, verified.err) == (0, "", "")


def test_errors_are_coloured_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from layercache.cli import mistakes

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert not mistakes.coloured()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert mistakes.coloured()
    monkeypatch.setenv("TERM", "dumb")
    assert not mistakes.coloured()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not mistakes.coloured()


class _Terminal:
    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


def test_a_bar_that_is_left_ends_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    stream = _Terminal()
    with progress.TerminalProgress(stream).task("work", 10, "steps") as task:  # type: ignore[arg-type]
        task._every = 0.0  # type: ignore[attr-defined]
        task.advance(3)
        assert not stream.text.endswith("\n")
    assert stream.text.endswith("\n")
    assert "work: 3/10" in stream.text
    shown = re.sub(r"\x1b\[2K|[\r\n]", "", stream.text)
    assert len(shown) <= 39
    monkeypatch.setenv("TERM", "dumb")
    stream = _Terminal()
    with progress.TerminalProgress(stream).task("work", 1, "steps") as task:  # type: ignore[arg-type]
        task.advance()
    assert "\x1b" not in stream.text
    assert "left" in stream.text


def test_a_note_takes_the_place_of_a_bar_and_the_bar_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    stream = _Terminal()
    shown = progress.TerminalProgress(stream)  # type: ignore[arg-type]
    with shown.task("work", 10, "steps") as task:
        task._every = 0.0  # type: ignore[attr-defined]
        task.advance(3)
        shown.note("a note")
        assert stream.text.endswith("\r\x1b[2Ka note\n")
        task.advance(4)
        assert "work: 7/10" in stream.text.rpartition("\n")[2]
    shown.note("another")
    assert stream.text.endswith("left\nanother\n")


def test_work_is_shown_once_it_has_taken_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    now = 100.0
    monkeypatch.setattr(progress, "SHORT", 1.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    stream = _Terminal()
    with progress.Patient(progress.TerminalProgress(stream)).task("work", 4, "steps") as task:  # type: ignore[arg-type]
        now += 0.5
        task.advance(1, tokens=10)
        task.advance(1, tokens=20)
        assert stream.text == ""
        now += 0.5
        task.advance(2, tokens=70)
    assert stream.text == "work: 4/4 steps, 4.0 steps/s, 100 tokens/s, 0:00 left\n"
    stream = _Terminal()
    with progress.Patient(progress.TerminalProgress(stream)).task("work", 1, "steps") as task:  # type: ignore[arg-type]
        task.advance()
    assert stream.text == ""


def _completed(*words: str) -> list[str]:
    *before, typed = words
    found = ShellComplete(cli, {}, "layercache", "_LAYERCACHE_COMPLETE").get_completions(before, typed)
    return [item.value for item in found if item.type == "plain"]


def test_completion_knows_what_the_store_holds(monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    runs = call("ls", "--json", "--store", SAMPLE).json
    ids = [run["run"] for run in runs]  # type: ignore[attr-defined]
    assert set(ids) <= set(_completed("show", "--store", str(SAMPLE), ""))
    monkeypatch.setenv("LAYERCACHE_STORE", str(SAMPLE))
    assert set(ids) <= set(_completed("show", ""))
    assert _completed("analyze", "probe", "--labels", "rat") == ["rating"]
    assert _completed("analyze", "probe", "--labels", "x,rat") == ["x,rating"]
    assert "movies" in _completed("lens", "demo", "--data", "")
    assert "clean" in _completed("lens", "demo", "--condition", "")
    assert _completed("sql", "--query", "entropy_by_l") == ["entropy_by_layer"]
    assert _completed("export", "--query", "best") == ["best_layer"]
    assert "movies" in _completed("run", "mov")
    assert _completed("analyze", "del") == ["delta_p"]
    assert _completed("plot", "agr") == ["agreement"]
    assert _completed("an") == ["analyze"]
    assert "--labels" in _completed("analyze", "--la")
    assert "demo:movies" in _completed("init", "demo:m")


@pytest.mark.parametrize("store", ["nowhere", "/proc/1/root", "a\0b", ""])
def test_completion_never_raises(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (("show", "--store", store, ""), ("analyze", "--store", store, "--labels", "r")):
        assert _completed(*words) == []


def test_completion_survives_a_damaged_store(tmp_path: Path) -> None:
    (tmp_path / "run=x").mkdir()
    (tmp_path / "run=x" / "run.json").write_text("{")
    assert _completed("show", "--store", str(tmp_path), "") == []


def test_the_names_that_completion_knows_are_those_there_are() -> None:
    assert set(completion.PLOTS) == set(report.PLOTS)
    assert set(completion.KINDS) == set(recipe.ANALYSES)


def test_the_scripts_and_the_protocol(call: Call) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_LAYERCACHE_COMPLETE" in call("completion", shell).out
    assert call("completion", "tcsh").code == 2
    asked = {"_LAYERCACHE_COMPLETE": "bash_complete", "COMP_WORDS": "layercache sql --query entropy_by_l"}
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from layercache.cli import main; sys.argv[0] = 'layercache'; main()"],
        env={**os.environ, **asked, "COMP_CWORD": "3"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "plain,entropy_by_layer", done.stderr
