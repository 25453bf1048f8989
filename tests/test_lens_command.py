"""`layercache lens`: questions put to stored states after the model is gone."""

import csv
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from command import Call, Called

import layercache

PROMPT = "Title: {title}\nDescription: {description}\nCertificate:"


def extracted(call: Call, films: Path, *arguments: object) -> Called:
    called = call(
        *("extract", "-q", "--store", "s", "--model", "demo", "--data", films, "--prompt", PROMPT),
        *("--target", "certificate", "--pooling", "mean,last", *arguments),
    )
    assert called.code == 0, called.err
    return called


def answer(call: Call, *arguments: object) -> list[dict[str, Any]]:
    called = call("lens", "demo", "--store", "s", "--format", "json", *arguments)
    assert called.code == 0, called.err
    return list(json.loads(called.out))


def refused(called: Called, *words: str) -> None:
    assert (called.code, called.out) == (2, ""), called
    (line,) = called.err.splitlines()
    assert all(word in line for word in ("error: ", *words)), line


def test_means_by_layer_are_those_of_the_stored_lens(call: Call, films: Path) -> None:
    extracted(call, films, "--save-head", "--precision", 23)
    store = layercache.open("s")
    expected = store.sql(
        "SELECT layer, count(*) AS n, avg(entropy) AS entropy, avg(kl_to_final) AS kl_to_final,"
        " avg(agrees_with_final::INT) AS agrees_with_final, avg(target_logprob) AS target_logprob,"
        " avg(exp(target_logprob)) AS target_probability, median(target_rank) AS target_rank,"
        " mode(top_tokens[1] ORDER BY top_tokens[1]) AS top_token FROM lens GROUP BY layer ORDER BY layer"
    ).to_pylist()
    found = answer(call)
    assert len(found) == 7
    for row, other in zip(found, expected, strict=True):
        share = row.pop("top_share")
        assert 0 < share <= 1
        assert {name: row[name] for name in ("layer", "n", "target_rank")} == {
            name: other[name] for name in ("layer", "n", "target_rank")
        }
        if share > 0.5:
            assert row["top_token"] == other["top_token"]
        for name in ("entropy", "kl_to_final", "agrees_with_final", "target_logprob", "target_probability"):
            assert row[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), name


def test_tokens_are_followed_in_the_order_given(call: Call, films: Path) -> None:
    extracted(call, films, "--save-head")
    found = answer(call, "--token", " Teen", "--token", " Guidance", "--layers", "2,6")
    assert [(row["target_token"], row["layer"]) for row in found] == [
        (" Teen", 2),
        (" Teen", 6),
        (" Guidance", 2),
        (" Guidance", 6),
    ]
    each = answer(call, "--token", " Teen", "--layers", "6", "--per-sample", "--top-k", 3)
    assert len(each) == found[1]["n"] == 40
    assert np.mean([np.exp(row["target_logprob"]) for row in each]) == pytest.approx(
        found[1]["target_probability"], rel=1e-5
    )
    assert all(len(row["top_tokens"]) == 3 for row in each)
    again = answer(call, "--token-id", each[0]["target_id"], "--layers", "6", "--per-sample", "--top-k", 3)
    assert again == each


def test_one_sample_is_a_line_a_layer_in_every_format(call: Call, films: Path) -> None:
    extracted(call, films, "--save-head")
    sample = layercache.open("s").samples("demo")["sample_id"][3]
    rows = answer(call, "--sample", sample)
    assert [row["layer"] for row in rows] == list(range(7))
    assert {row["sample_id"] for row in rows} == {sample}
    asked = ("lens", "demo", "--store", "s", "--sample", sample, "--format")
    text = call(*asked, "csv").out
    assert len(list(csv.DictReader(io.StringIO(text)))) == 7
    assert [json.loads(line) for line in call(*asked, "jsonl").out.splitlines()] == rows
    assert call(*asked, "markdown").out.startswith("| run |")
    assert "top_tokens" in call(*asked, "table").out


def test_a_data_set_chooses_samples_and_tells_runs_of_a_model_apart(call: Call, films: Path, tmp_path: Path) -> None:
    extracted(call, films, "--save-head", "--limit", 6)
    extracted(call, films, "--save-head", "--limit", 2, "--name", "few")
    other = tmp_path / "other.csv"
    other.write_text("title\nOne\nTwo\n")
    call("extract", "-q", "--store", "s", "--model", "demo", "--data", other, "--prompt", "{title}", "--save-head")
    refused(call("lens", "demo", "--store", "s"), "could be any of")
    assert {row["n"] for row in answer(call, "--data", "other")} == {2}
    run = next(run.id for run in layercache.open("s").runs() if len(layercache.open("s").data(run)) == 2)
    called = call("lens", run, "--store", "s", "--data", "few", "--format", "json")
    assert {row["n"] for row in json.loads(called.out)} == {2}
    refused(call("lens", run, "--store", "s", "--data", "many"), "no rows of data set 'many'")


def test_questions_that_cannot_be_answered_say_why(call: Call, films: Path) -> None:
    extracted(call, films, "--limit", 3)
    refused(call("lens", "demo", "--store", "s"), "stored without its head", "--save-head")
    extracted(call, films, "--limit", 3, "--save-head")
    for arguments, words in (
        (("--pooling", "mean"), ("mean", "first, last, token")),
        (("--layers", "9"), ("has no layer 9", "0 to 7")),
        (("--layers", "x"), ("numbers separated by commas",)),
        (("--token", "Certificate nobody has"), ("no single token", "near ones are")),
        (("--token-id", "5000"), ("no token 5000",)),
        (("--sample", "nope"), ("no sample 'nope'",)),
        (("--top-k", "0"), ("top_k is 0",)),
    ):
        refused(call("lens", "demo", "--store", "s", *arguments), *words)
    refused(call("lens", "dmo", "--store", "s"), "did you mean 'demo'")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_needs_no_torch(
    dtype: str, call: Call, films: Path, tmp_path: Path, laptop: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    extracted(call, films, "--save-head", "--limit", 5, "--dtype", dtype)
    script = "import sys; from layercache.cli import main; sys.argv[0] = 'layercache'; main()"
    done = laptop(script, "lens", "demo", "--store", "s", "--per-sample", "--format", "csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    stored = layercache.open("s").sql("SELECT * FROM lens ORDER BY layer, sample_id").to_pylist()
    for row, other in zip(rows, stored, strict=True):
        assert float(row["entropy"]) == pytest.approx(other["entropy"], abs=5e-3)
    # States of a bfloat16 model lose nothing in ten bits.
    if dtype == "bfloat16":
        assert max(abs(float(row["entropy"]) - other["entropy"]) for row, other in zip(rows, stored)) < 3e-5


def test_a_parquet_answer_is_a_table(call: Call, films: Path, tmp_path: Path) -> None:
    extracted(call, films, "--save-head", "--limit", 2)
    out = tmp_path / "out.parquet"
    pq.write_table(layercache.open("s").lens("demo", [0, 6]), out)
    table = pq.read_table(out)
    assert table["layer"].to_pylist() == [0, 0, 6, 6]
    assert "target_token" in table.column_names
