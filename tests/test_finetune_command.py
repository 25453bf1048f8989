"""Fine-tuning through the command line: adapters trained, extracted, analysed and reported by one command."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
from command import Call, Called

pytest.importorskip("trl")
sys.path.insert(0, str(Path(__file__).parent))

from extract.conftest import make_model

RECIPE = """
models = ["MODEL"]

[[data]]
source = "DATA"
template = "{passage} {question}"
labels = ["answer:boolean"]
group_by = "passage"

[finetune]
label = "answer"
alpha = [0, 4]
r = [1, 2]
learning_rate = 5e-3
batch_size = 8

[extract]
pooling = ["mean", "last"]
choices = [" true", " false"]

[[analyze]]
kind = "probe"
labels = ["answer"]
bootstrap = 20
keep = false

[[analyze]]
kind = "choices"
bootstrap = 20

[[analyze]]
kind = "compare"
bootstrap = 20
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A recipe on a tiny model and sixty questions, three a passage."""
    model = make_model("llama", tmp_path / "tiny")
    things = ("ship", "map", "lamp", "moon")
    rows = [
        {
            "passage": f"Film {i // 3}: a {things[i // 3 % 4]}.",
            "question": f"Is it {things[i % 4]} {i}?",
            "answer": things[i // 3 % 4] == things[i % 4],
        }
        for i in range(60)
    ]
    data = tmp_path / "questions.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    recipe = tmp_path / "tiny-study.toml"
    recipe.write_text(RECIPE.replace("MODEL", str(model)).replace("DATA", str(data)))
    return recipe


def table(called: Called) -> list[dict[str, object]]:
    return [json.loads(line) for line in called.out.splitlines()]


def test_one_command_trains_extracts_analyses_and_reports(study: Path, call: Call) -> None:
    planned = call("finetune", study, "--store", "s", "--dry-run", "--format", "jsonl")
    assert (planned.code, table(planned)) == (0, []), planned.err
    foreseen = call("run", study, "--store", "s", "--dry-run")
    assert "2 adapters are not trained yet, and left out" in foreseen.err
    assert foreseen.out.splitlines()[-1] == "then: analyze probe, choices, compare, and write the report"
    assert not Path("s-adapters").exists()
    ran = call("run", study, "--store", "s")
    assert ran.code == 0, ran.err
    assert "systems [95 % interval]" in ran.out
    assert "What adapting changed" in Path("s/report.html").read_text()
    runs = json.loads(call("ls", "--json", "--store", "s").out)
    assert sorted(run["model"] for run in runs) == ["tiny", "tiny+r1-a4-lr0.005-s0", "tiny+r2-a4-lr0.005-s0"]
    # The store and the grid speak of the same rows: those tested on.
    found = call("finetune", study, "--store", "s", "--format", "jsonl")
    assert "2 of 2 adapters are there already" in found.err
    lines = table(found)
    # Of equals the surest, by a plain sort.
    best = min(
        (line for line in lines if line["trained"]),
        key=lambda one: (-one["validation_accuracy"], one["validation_nll"]),
    )  # type: ignore[operator]
    said = f"rows to validate on: {best['adapter']}, accuracy {best['validation_accuracy']:.3f} there"
    assert said in found.err.splitlines()[-1]
    assert re.search(rf"chosen of 2 adapters by the \d+ rows to validate on: tiny-{best['adapter']}, accuracy", ran.out)
    assert [line["adapter"] for line in lines if line["trained"]] == ["r1-a4-lr0.005-s0", "r2-a4-lr0.005-s0"]
    query = (
        "SELECT run, value, n FROM results WHERE analysis = 'compare' AND metric = 'accuracy' AND \"group\" = 'model'"
    )
    stored = table(call("sql", query, "--store", "s", "--format", "jsonl"))
    for line in stored:
        own = next(
            one for one in lines if str(line["run"]).startswith(f"tiny-{one['adapter']}") or one["adapter"] == "base"
        )
        if "-r" in str(line["run"]):
            own = next(one for one in lines if str(one["adapter"]) in str(line["run"]))
        assert (line["value"], line["n"]) == (pytest.approx(own["test_accuracy"]), own["test_rows"])
    again = call("extract", study, "--store", "s")
    assert again.out.count("nothing to do: 0 forward passes") == 3
    # A larger grid trains what is new, and an extraction takes what is there.
    more = call("extract", study, "--store", "s", "--set", "finetune.alpha=4,8")
    assert "2 adapters are not trained yet, and left out: `layercache finetune` trains them" in more.err


def test_what_is_wrong_is_one_line(study: Path, call: Call) -> None:
    for setting, words in (
        ("finetune.targets=nothing", "finetune.targets 'nothing' does not fit tiny"),
        ("finetune.label=reply", "has no column 'reply'"),
        ("finetune.r=0", "finetune.r.0: 0 is out of range: it must be at least 1"),
        ("finetune.test=0.95", "their shares must be below 1 together"),
        ('extract.choices=[" true", " true, sir"]', "' true' open those of ' true, sir'"),
        ("finetune.data=films", "say which data set adapters are trained on: questions"),
    ):
        called = call("finetune", study, "--store", "s", "--set", setting)
        assert (called.code, called.out) == (2, ""), setting
        assert words in called.err.splitlines()[-1], called.err
    refused = call("finetune", "movies", "--store", "s")
    assert (refused.code, refused.out) == (2, "")
    assert "recipe movies has no table [finetune]" in refused.err
    assert not Path("s").exists()
    assert not Path("s-adapters").exists()


def test_boolq_itself_goes_all_the_way(study: Path, call: Call) -> None:
    folder = os.environ.get("LAYERCACHE_DATA")
    if folder is None or not (Path(folder) / "boolq.jsonl").is_file():
        pytest.skip("set LAYERCACHE_DATA to a folder with boolq.jsonl")
    # Every 41st row: the file is in the order of its answers.
    lines = (Path(folder) / "boolq.jsonl").read_text().splitlines()[::41]
    Path("boolq.jsonl").write_text("\n".join(lines))
    settings = ("models=demo", "data.source=boolq.jsonl", "extract.truncate=true", "finetune.r=2", "finetune.alpha=4")
    flags = [part for setting in settings for part in ("--set", setting)]
    ran = call("run", study, "--store", "s", *flags)
    assert ran.code == 0, ran.err
    query = "SELECT max(value) AS best FROM results WHERE analysis = 'compare' AND metric = 'accuracy'"
    (line,) = table(call("sql", query, "--store", "s", "--format", "jsonl"))
    # The demo model knows nothing of this world, and of a dozen rows chance is wide.
    assert 0.1 <= float(str(line["best"])) <= 1.0
