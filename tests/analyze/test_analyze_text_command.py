"""Text scores from the outside: the command line, SQL, evaluate's own loader, a machine without torch or the extra."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sacrebleu
import text_stores
from command import Call
from text_stores import OUTPUT, PROMPTS, TEXTS

from layercache.analyze import evaluate_modules

MODULES = Path(evaluate_modules.__path__[0])


def test_analyze_text_and_ask_for_it_with_sql(call: Call, tmp_path: Path) -> None:
    run = text_stores.text_store(tmp_path / "s")
    done = call("analyze", "text", "--store", "s", "--metrics", "bleu,exact_match", "--bootstrap", 10)
    assert done.code == 0, done.err
    assert "scores of text by layer" in done.out
    assert (
        "nothing has changed"
        in call("analyze", "text", "--store", "s", "--metrics", "bleu,exact_match", "--bootstrap", 10).err
    )
    found = call("sql", "--store", "s", "--query", "text_scores", "--param", "metric=exact_match", "--format", "jsonl")
    rows = [json.loads(line) for line in found.out.splitlines()]
    assert [(row["layer"], row["output"], row["label"], row["n"]) for row in rows] == [
        (layer, OUTPUT, "answers", len(PROMPTS)) for layer in range(3)
    ]
    assert rows[2]["value"] == 6 / 8
    asked = ("--param", "prompt=wrote EMMA", "--param", f"run={run.id}")
    found = call("sql", "--store", "s", "--query", "text_by_layer", *asked, "--format", "jsonl")
    rows = [json.loads(line) for line in found.out.splitlines()]
    assert [(row["layer"], row["name"], row["text"], row["tokens"]) for row in rows] == [
        (layer, f"block.{layer}", TEXTS[layer][1], len(TEXTS[layer][1])) for layer in range(3)
    ]
    assert [row["mean_logprob"] for row in rows] == [None, -0.5, -0.5]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--metrics", "blue"), "metrics"),
        (("--metrics", "bertscore_f1"), "--bertscore-model"),
        (("--bertscore-model", "./nowhere"), "'./nowhere' cannot be loaded"),
        (("--answer", "answr"), "did you mean 'answers'"),
        (("--correct", "luck"), "correct"),
        (("--outputs", "generation:x"), "no generated output 'generation:x'"),
    ],
)
def test_mistakes_are_one_line(call: Call, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    text_stores.text_store(tmp_path / "s")
    done = call("analyze", "-q", "text", "--store", "s", *arguments)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert words in done.err
    assert not (tmp_path / "s" / "results").exists()


def test_answer_names_the_references_when_extracting(call: Call, films: Path) -> None:
    common = ("extract", "-q", "--store", "s", "--model", "demo", "--data", films, "--prompt", "{title}", "--limit", 3)
    assert call(*common).code == 0
    again = call(*common, "--answer", "certificate", "--answer", "year", "--json")
    assert json.loads(again.out)[0]["forward_passes"] == 0, "a new reference costs no forward pass"
    shown = json.loads(call("show", "demo", "--store", "s", "--json").out)
    assert shown["data"]["films"]["reference"] == "certificate, year"
    assert "reference names a column 'x'" in call(*common, "--answer", "x").err


def test_evaluate_loads_the_modules_by_path_without_a_network(tmp_path: Path) -> None:
    script = f"""
import evaluate, socket
def refuse(*_): raise AssertionError("the network was asked")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
texts, references = ["the cat sat on the mat", "a dog"], [["the cat sat on a mat", "the mat"], ["a dog barked"]]
for name in ("bleu", "chrf", "rouge"):
    print(evaluate.load({str(MODULES)!r} + f"/{{name}}.py").compute(predictions=texts, references=references)[
        {{"rouge": "rouge_l"}}.get(name, name)])
"""
    homes = {"HF_HOME": str(tmp_path), "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_EVALUATE_OFFLINE": "1"}
    environment = {**os.environ, **homes, "PYTHONPATH": str(MODULES.parents[2])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    bleu, chrf, rouge = map(float, done.stdout.split())
    texts = ["the cat sat on the mat", "a dog"]
    streams = [["the cat sat on a mat", "a dog barked"], ["the mat", None]]
    assert bleu == pytest.approx(sacrebleu.corpus_bleu(texts, streams).score)
    assert chrf == pytest.approx(sacrebleu.corpus_chrf(texts, streams).score)
    assert rouge == pytest.approx((10 / 12 + 4 / 5) / 2)


def test_without_torch_and_with_nothing_left_on_the_disk(
    laptop: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text_stores.text_store(tmp_path / "s")
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(home))
    for name in ("HF_HOME", "HF_MODULES_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    script = """
import sys
from layercache import cli
try:
    sys.argv = ["layercache", "analyze", "-q", "text", "--store", "s", "--bootstrap", "5", *sys.argv[1:]]
    cli.main()
finally:
    assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    done = laptop(script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "token_f1" in done.stdout
    assert [path.name for path in home.rglob("*")] == []
    done = laptop(script, "--bertscore-model", "minilm", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: BERTScore needs torch: pip install 'layercache[text,extract]'"


@pytest.mark.parametrize("missing", ["evaluate", "sacrebleu"])
def test_without_the_extra(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    text_stores.text_store(tmp_path / "s")
    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    for name in ("bleu", "chrf", "rouge"):
        monkeypatch.delitem(sys.modules, f"layercache.analyze.evaluate_modules.{name}", raising=False)
    done = call("analyze", "-q", "text", "--store", "s")
    assert done.code == 2
    assert done.err == f"error: scoring text needs {missing}: pip install 'layercache[text]'\n"
    plain = call("analyze", "-q", "text", "--store", "s", "--metrics", "exact_match,distinct_1", "--bootstrap", 5)
    assert plain.code == 0, "what needs no library is computed without them"
