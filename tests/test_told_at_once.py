"""What is wrong is told at once and alone: before torch is imported, and without the notes of work that is not done."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from command import Call

import layercache as lc
from layercache.progress import Notes, Task, held

WRONG = [
    (("--prompt", "{titel}"), "template names a column 'titel' that is not there; did you mean 'title'?"),
    (("--label", "ratng:number"), "label names a column 'ratng' that is not there; did you mean 'rating'?"),
    (("--label", "title:number"), "label 'title', row 0 (line 2 of films.csv): 'Film 0' is not a number"),
    (
        ("--pooling", "mean@titel"),
        "the template has no field 'titel'; did you mean 'title'? its spans are prompt, title",
    ),
    (("--lens", "last@titel"), "the template has no field 'titel'; did you mean 'title'?"),
    (("--pooling", "medain"), "unknown pooling 'medain': did you mean 'mean'? use one of"),
    (("--condition", "knockout-titel"), "did you mean knockout-title?"),
    (("--condition", "control-title", "--control-from", "titel"), "control_from needs a span 'titel'"),
    (("--split", "nowhere"), "split names a column 'nowhere'"),
]
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from layercache import cli
for words in {commands!r}:
    sys.argv = ["layercache", *words]
    try:
        cli.main()
    except SystemExit as stop:
        print(stop.code)
"""


def _said(commands: list[list[str]], folder: Path) -> tuple[list[str], list[str]]:
    """Call commands in a process that cannot import torch; return what they said, and how they ended."""
    code = WITHOUT_TORCH.format(commands=commands)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60)
    return done.stderr.splitlines(), done.stdout.split()


def test_what_is_wrong_with_data_is_told_before_torch_is_imported(films: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "films.toml"
    recipe.write_text(
        f'models = "demo"\n[data]\nsource = "{films}"\ntemplate = "{{title}}"\nlabels = ["rating:number"]\n'
    )
    options = [
        "--store",
        "s",
        "--model",
        "demo",
        "--data",
        str(films),
        "--prompt",
        "{title}",
        "--label",
        "rating:number",
    ]
    commands = [["extract", *options, *words] for words, _ in WRONG]
    commands += [["extract", *options, *WRONG[0][0], "--dry-run"]]
    settings = ["--store", "s", "--set", "extract.pooling=mean@titel"]
    commands += [["run", str(recipe), *settings], ["run", str(recipe), *settings, "--dry-run"]]
    commands += [["plan", str(recipe), *settings, "--shards", "2"]]
    lines, ends = _said([*commands, ["extract", *options]], tmp_path)
    expected = [*(said for _, said in WRONG), WRONG[0][1], *([WRONG[3][1]] * 3)]
    # One line each, and only where nothing else is wrong is torch missed: it is not there.
    assert len(lines) == len(commands) + 1, lines
    assert ends == ["2"] * (len(commands) + 1)
    for line, said in zip(lines, expected):
        assert line.startswith("error: ")
        assert said in line
    assert "error: extraction needs t" in lines[-1]
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("words", [("--model", "./no/such/model"), ("--layers", "0,99"), ("--truncate", "--chat")])
def test_an_error_stands_alone_where_nothing_was_done(call: Call, films: Path, words: tuple[str, ...]) -> None:
    """The films have notes: a rating is empty, and stands in the prompt."""
    options = ("--data", films, "--prompt", "{title} {rating}", "--label", "rating:number", "--store", "s")
    model = () if "--model" in words else ("--model", "demo")
    refused = call("extract", *options, *model, *words)
    assert refused.code == 2
    assert len(refused.err.splitlines()) == 1, refused.err
    assert call("extract", *options, "--model", "demo", "--dry-run").err.count("stands in the template") == 1


def test_notes_are_kept_until_work_begins_or_has_ended() -> None:
    class Tasks(Notes):
        def task(self, title: str, total: int, unit: str = "samples"):  # type: ignore[no-untyped-def]
            self.note(title)
            return super().task(title, total, unit)

    said = Tasks()
    with suppress(KeyError), held(said) as progress:
        progress.note("kept back")
        raise KeyError
    assert said.texts == []
    with held(said) as progress, held(progress) as inner:
        inner.note("first")
        assert said.texts == []
        with inner.task("work", 1) as task:
            assert isinstance(task, Task)
            inner.note("second")
            assert said.texts == ["first", "work", "second"]
    with held(said) as progress:
        progress.note("last")
    assert said.texts == ["first", "work", "second", "last"]


def test_a_study_says_what_it_would_do(call: Call, films: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "films.toml"
    recipe.write_text(
        f'models = ["demo", "demo:early"]\n[data]\nsource = "{films}"\ntemplate = "{{title}}"\nlabels = ["rating:number"]\n'
        '[[analyze]]\nkind = "compare"\n[[analyze]]\nkind = "entropy"\n'
    )
    told = call("run", recipe, "--store", "s", "--dry-run")
    assert told.code == 0, told.err
    assert told.out.count("would run 40 samples") == 2
    assert told.out.splitlines()[-1] == "then: analyze entropy, compare, and write the report"
    assert told.out.startswith(call("extract", recipe, "--store", "s", "--dry-run", "-q").out.split(" would take")[0])
    asked = call("run", recipe, "--store", "s", "--dry-run", "--json").json
    assert [one["forward_passes"] for one in asked["extracted"]] == [40, 40]  # type: ignore[index]
    assert asked["to_analyse"] == ["entropy", "compare"]  # type: ignore[index]
    assert not Path("s").exists()


def test_progress_names_the_data_and_the_model(call: Call, films: Path) -> None:
    options = ("--data", films, "--prompt", "{title}", "--store", "s", "--model", "demo", "--model", "demo:early")
    said = call("extract", *options, "--limit", 3, "--generate-layers", "6", "--max-new-tokens", 1).err
    for what in ("extract films, demo: 3/3", "extract films, demo-early: 3/3", "generate films, demo-early: 3/3"):
        assert what in said


def test_a_run_is_told_in_a_line(call: Call, films: Path, tmp_path: Path) -> None:
    assert (
        call("extract", "--data", films, "--prompt", "<{title}", "--store", "s", "--model", "demo", "--limit", 5).code
        == 0
    )
    (run,) = lc.open("s").runs()
    parts = "model demo, data films, samples 5, conditions clean, layers 0 to 7 (7 after the final norm), width 128"
    assert str(run) == f"{run.id}: {parts}, dtype float32"
    shown = run._repr_html_()
    assert f"<th>run</th><td>{run.id}</td>" in shown
    assert "<th>samples</th><td>5</td>" in shown
    assert repr(run).startswith("Run(store=")
    Path("s").rename("moved")
    assert str(run) == f"{run.id}: model demo, layers 0 to 7 (7 after the final norm), width 128, dtype float32"
