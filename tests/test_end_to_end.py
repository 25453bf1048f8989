"""The main job through the command line: extract once, ask often, lose nothing when killed."""

import json
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from command import Call

import layercache
from layercache import demo
from layercache.store.verify import verify

KIND = 'kind = "probe"\nfolds = 2\nbootstrap = 10'
PROMPT = "Title: {title}\nYear: {year}\nDescription: {description}"


def _extract(call: Call, data: Path, *arguments: object) -> dict[str, Any]:
    labels = ("--label", "certificate:category", "--label", "rating:number")
    called = call(
        "extract",
        "-q",
        "--json",
        "--store",
        "s",
        "--model",
        "demo",
        "--data",
        data,
        "--prompt",
        PROMPT,
        *labels,
        *arguments,
    )
    assert called.code == 0, called.err
    (summary,) = json.loads(called.out)
    return dict(summary)


def test_what_the_rows_lack_is_said_once(call: Call, films: Path) -> None:
    """By a run, whose data and whose analysis both see it; and by an analysis of its own."""
    assert call("init", films, "-q").code == 0
    table = tomllib.loads(Path("films.toml").read_text())
    assert "rating:number" in table["data"]["labels"]
    fast = ("--set", "data.labels=rating:number", "--set", "extract.layers=0", "--set", "extract.lens=", "--store", "s")
    analyses = ("probe", "--labels", "rating", "--folds", 2, "--bootstrap", 11, "--store", "s")
    Path("films.toml").write_text(Path("films.toml").read_text().replace('kind = "entropy"', KIND))
    ran = call("run", "films.toml", *fast)
    assert ran.code == 0, ran.err
    lacking = "films: rating: 1 of 41 rows have no value and are left out of its probe"
    assert [line for line in ran.err.splitlines() if "rating" in line] == [lacking]
    assert lacking in call("analyze", *analyses).err.splitlines()


def test_an_empty_column_of_prompts_is_not_listed(call: Call, films: Path) -> None:
    _extract(call, films, "--layers", "0")
    (run,) = json.loads(call("ls", "--store", "s", "--json").out)
    assert run["prompts"] is None
    header = call("ls", "--store", "s").out.splitlines()[0].split()
    assert header == [name for name in run if name != "prompts"]
    _extract(call, films, "--layers", "0", "--generate-answer", "--max-new-tokens", 1)
    assert "prompts" in call("ls", "--store", "s").out.splitlines()[0].split()


def test_only_what_is_new_is_run(call: Call, films: Path) -> None:
    first = _extract(call, films)
    assert first["samples"] == 40, "the doubled row shares a sample"
    assert first["forward_passes"] == 40
    assert _extract(call, films)["forward_passes"] == 0

    text = films.read_text()
    rows = "".join(f"New {n},2001,U,5.0,Something new {n}.\n" for n in range(10))
    films.write_text(text + rows)
    assert _extract(call, films)["forward_passes"] == 10

    lines = films.read_text().replace(",description", ",description,good").splitlines(keepends=True)
    labelled = pl.read_csv(films).with_columns(good=pl.Series([n % 2 == 0 for n in range(51)]))
    labelled.write_csv(films)
    assert lines
    assert _extract(call, films, "--label", "good:boolean")["forward_passes"] == 0

    before = set(Path("s").rglob("hidden.parquet"))
    again = _extract(call, films, "--label", "good:boolean", "--pooling", "mean,last,max")
    assert again["forward_passes"] == 50
    new = set(Path("s").rglob("hidden.parquet")) - before
    assert new
    for path in new:
        assert pl.read_parquet(path)["pooling"].unique().to_list() == ["max@prompt"]


def test_a_layer_at_a_time_gives_the_same_store(call: Call, films: Path) -> None:
    assert _extract(call, films, "--layers", "0,3")["forward_passes"] == 40
    assert _extract(call, films, "--layers", "0,3")["forward_passes"] == 0
    assert _extract(call, films)["forward_passes"] == 40
    store = layercache.open("s")
    (run,) = store.runs()
    for layer in range(run.final_layer + 2):
        assert len(store.matrix(run, layer).sample_ids) == 40
    counts = store.sql(
        "SELECT count(*) AS n, count(DISTINCT (sample_id, layer, pooling)) AS keys FROM hidden"
    ).to_pylist()
    assert counts == [{"n": 40 * 2 * (run.final_layer + 2), "keys": 40 * 2 * (run.final_layer + 2)}]


def test_every_answer_comes_without_the_model(
    call: Call, films: Path, tmp_path: Path, laptop: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    _extract(call, films)
    script = "import sys; from layercache.cli import main; sys.argv[0] = 'layercache'; main()"
    commands = [
        ["analyze", "probe", "--folds", "3", "--bootstrap", "50"],
        ["analyze", "entropy", "--bootstrap", "50"],
        ["sql", "SELECT count(*) AS n FROM hidden", "--format", "csv"],
        ["sql", "--query", "entropy_by_layer"],
        ["report", "-o", "r.html"],
        ["ls"],
        ["show", layercache.open("s").runs()[0].id],
        ["verify", "--deep"],
    ]
    for command in commands:
        done = laptop(script, *command, "--store", "s", cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
        assert done.stdout or command[0] == "verify"
    refused = laptop(
        script, "extract", "--store", "s", "--model", "demo", "--data", films, "--prompt", PROMPT, cwd=tmp_path
    )
    assert refused.returncode == 2
    assert "layercache[extract]" in refused.stderr.splitlines()[-1]


def test_analyses_are_kept_and_read_back(call: Call, films: Path) -> None:
    _extract(call, films)
    first = call("analyze", "probe", "--folds", "3", "--bootstrap", "50", "--store", "s")
    assert first.code == 0, first.err
    assert "certificate" in first.out
    again = call("analyze", "probe", "--folds", "3", "--bootstrap", "50", "--store", "s")
    assert "nothing has changed" in again.err
    assert again.out == first.out
    rows = layercache.open("s").sql("SELECT DISTINCT label FROM results ORDER BY label").to_pylist()
    assert [row["label"] for row in rows] == ["certificate", "rating"]


def test_sql_and_numpy_agree(call: Call, films: Path) -> None:
    _extract(call, films)
    store = layercache.open("s")
    (run,) = store.runs()
    for layer in (0, 3, run.final_layer):
        matrix = store.matrix(run, layer, "last@prompt")
        expected = np.linalg.norm(matrix.values.astype(np.float64), axis=1)
        query = f"SELECT sample_id, norm(vector) AS norm FROM hidden WHERE layer = {layer} AND pooling = 'last@prompt' ORDER BY sample_id"
        called = call("sql", query, "--store", "s", "--format", "json")
        answer = json.loads(called.out)
        assert [row["sample_id"] for row in answer] == sorted(matrix.sample_ids.tolist())
        order = np.argsort(matrix.sample_ids)
        np.testing.assert_allclose([row["norm"] for row in answer], expected[order], rtol=1e-5)


# Shards of one batch each: a run of seconds then has many moments of publishing to be killed at.
EXTRACT = """
import sys
from pathlib import Path
from layercache import dataset
from layercache.extract.run import extract
from layercache.progress import Progress
from layercache.recipe import DataSpec, ExtractSpec, ModelSpec
data = dataset.load(DataSpec(source=sys.argv[2], template="{prompt}"))
extract(ModelSpec(model="demo"), data, ExtractSpec(batch_tokens=512), Path(sys.argv[1]), Progress(), shard_seconds=0)
"""


def _start(store: Path, data: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", EXTRACT, str(store), str(data)])


def _shards(path: Path) -> int:
    return len(list(path.glob("run=*/condition=*/shard=*/manifest.json")))


def _content(path: Path) -> tuple[list[tuple[str, int, str]], np.ndarray, list[Any]]:
    store = layercache.open(path)
    (run,) = store.runs()
    keys, values = [], []
    for pooling in ("mean@prompt", "last@prompt"):
        for layer in range(run.final_layer + 2):
            matrix = store.matrix(run, layer, pooling)
            keys += [(str(name), layer, pooling) for name in matrix.sample_ids]
            values.append(matrix.values)
    lens = store.sql("SELECT sample_id, layer, entropy FROM lens ORDER BY ALL").to_pylist()
    return keys, np.concatenate(values), lens


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    prompts = [str(row["question"]) for row in demo.rows("qa")][:300]
    data = tmp_path / "questions.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": text}) for text in prompts))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _start(whole, data).wait() == 0
    published = 0
    for _ in range(2):
        process = _start(killed, data)
        while process.poll() is None and _shards(killed) <= published:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        published = _shards(killed)
        assert verify(killed, deep=True) == [], "what is published is whole at any moment"
    store = layercache.open(killed)
    assert 0 < len(store.samples(store.runs()[0])) < len(set(prompts)), "killed in the middle"
    assert _start(killed, data).wait() == 0
    keys, values, lens = _content(killed)
    expected_keys, expected_values, expected_lens = _content(whole)
    assert keys == expected_keys
    # The noise floor of float32 on a CPU plus one unit in the last place of a 10-bit mantissa.
    np.testing.assert_allclose(values, expected_values, rtol=2.0**-10, atol=1e-4)
    assert [(row["sample_id"], row["layer"]) for row in lens] == [
        (row["sample_id"], row["layer"]) for row in expected_lens
    ]
    np.testing.assert_allclose([row["entropy"] for row in lens], [row["entropy"] for row in expected_lens], atol=1e-4)


def test_ctrl_c_says_how_to_resume(tmp_path: Path) -> None:
    data = tmp_path / "questions.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": f"Question {n} " * 60}) for n in range(3000)))
    command = [sys.executable, "-m", "layercache", "extract", "--store", str(tmp_path / "s"), "--model", "demo"]
    process = subprocess.Popen([*command, "--data", str(data), "--prompt", "{prompt}"], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "s").glob("run=*/run.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert b"go on with: python -m layercache extract " in stderr
    assert b"Traceback" not in stderr


def test_the_study_of_text_from_every_layer(call: Call) -> None:
    settings = ["data.0.limit=16", "data.1.limit=24", "extract.max_new_tokens=16", "report.samples=1"]
    settings += [f"analyze.{n}.bootstrap=50" for n in (0, 1)]
    arguments = ["run", "layer_generation", "-q", "--json", "--store", "s"]
    arguments += [part for setting in settings for part in ("--set", setting)]
    first = call(*arguments)
    assert first.code == 0, first.err
    done = json.loads(first.out)
    assert len({one["run"].rpartition("-")[2] for one in done["extracted"]}) == 4, (
        "two templates, in full and in 4 bits"
    )
    assert Path(done["report"]).stat().st_size > 10_000
    again = json.loads(call(*arguments).out)
    assert [one["forward_passes"] for one in again["extracted"]] == [0, 0, 0, 0]
    assert all(one["cached"] for one in again["analysed"])

    def scores(where: str) -> dict[int, float]:
        query = f"SELECT layer, value FROM results WHERE data = 'instructions' AND {where} AND layer IS NOT NULL ORDER BY layer"
        rows = json.loads(call("sql", query, "--store", "s", "--format", "json").out)
        return {row["layer"]: row["value"] for row in rows}

    full = "run IN (SELECT run FROM runs WHERE model = 'demo')"
    for metric in ("rouge_l", "bleu", "bertscore_f1"):
        found = scores(f"metric = '{metric}' AND {full}")
        assert found[6] == max(found.values())
        assert found[6] > found[1]
    quantised = "run IN (SELECT run FROM runs WHERE model = 'demo-nf4')"
    assert scores(f"metric = 'rouge_l_minus_other' AND {quantised}"), "4 bits against none, paired"


def test_the_study_of_truth(call: Call) -> None:
    settings = ["data.0.limit=400", "analyze.0.bootstrap=200", "analyze.0.repeats=1", "report.samples=1"]
    arguments = ["run", "truth_pathways", "-q", "--json", "--store", "s"]
    arguments += [part for setting in settings for part in ("--set", setting)]
    first = call(*arguments)
    assert first.code == 0, first.err
    (extracted,) = json.loads(first.out)["extracted"]
    assert extracted["forward_passes"] > 5 * 390, "a clean pass and five changed ones"
    again = json.loads(call(*arguments).out)
    assert [one["forward_passes"] for one in again["extracted"]] == [0]
    assert all(one["cached"] for one in again["analysed"])
    assert call("verify", "--deep", "--store", "s").code == 0

    def rows(query: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(call("sql", query, "--store", "s", "--format", "json").out)
        return found

    query = "SELECT layer, value, low FROM results WHERE condition = 'knockout-subject' AND metric = '{}' AND {} ORDER BY layer"
    flips = rows(query.format("flip_rate_minus_control", "\"group\" = 'all'"))
    assert [row["layer"] for row in flips] == list(range(8))
    assert flips[0]["value"] == 0, "nothing is cut before the first block"
    assert max(row["low"] for row in flips) > 0, "knocking out the subject says more than knocking out other tokens"
    # What is kept a sample gives the averages.
    kept = rows(
        "SELECT layer, avg(value) AS value, count(*) AS n FROM sample_scores WHERE condition = 'knockout-subject'"
        " AND metric = 'delta_p' GROUP BY layer ORDER BY layer"
    )
    mean = rows(query.format("delta_p", "\"group\" = 'all'"))
    assert [row["value"] for row in kept] == pytest.approx([row["value"] for row in mean], abs=0.5)
    right = rows("SELECT avg(value) AS value, count(*) AS n FROM sample_scores WHERE metric = 'correct'")[0]
    labelled = rows("SELECT avg(number) AS value FROM labels WHERE name = 'correct'")[0]
    assert right["n"] == 400
    assert right["value"] == pytest.approx(labelled["value"])
