"""Bad input: one clear line on stderr, exit code 2, nothing half-written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import Call, Called

PROMPT = "Title: {title}\nDescription: {description}"


def _refused(called: Called, *words: str) -> None:
    assert called.code == 2, called
    lines = [line for line in called.err.splitlines() if line.strip()]
    assert len(lines) == 1, called.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in called.err
    for word in words:
        assert word in lines[0], lines[0]
    assert called.out == ""


def _extract(call: Call, films: Path, *arguments: object, prompt: str = PROMPT, model: object = "demo") -> Called:
    return call("extract", "-q", "--store", "s", "--model", model, "--data", films, "--prompt", prompt, *arguments)


def _nothing_written() -> None:
    assert not Path("s").exists() or not list(Path("s").rglob("*.parquet")), list(Path("s").rglob("*"))


def test_no_such_model_folder(call: Call, films: Path) -> None:
    _refused(_extract(call, films, model="./no/such/model"), "no/such/model")
    _nothing_written()


def _copy_of_demo(to: Path) -> Path:
    from layercache import demo

    shutil.copytree(demo.model_path("demo"), to)
    return to


def test_a_model_folder_without_weights(call: Call, films: Path, tmp_path: Path) -> None:
    folder = _copy_of_demo(tmp_path / "bare")
    (folder / "model.safetensors").unlink()
    _refused(_extract(call, films, model=folder), "weights")
    _nothing_written()


def test_pickle_only_weights(call: Call, films: Path, tmp_path: Path) -> None:
    folder = _copy_of_demo(tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    _refused(_extract(call, films, model=folder), "safetensors")
    _nothing_written()


def test_truncated_weights(call: Call, films: Path, tmp_path: Path) -> None:
    folder = _copy_of_demo(tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    _refused(_extract(call, films, model=folder), "cut")
    _nothing_written()


def test_a_model_folder_without_a_tokenizer(call: Call, films: Path, tmp_path: Path) -> None:
    folder = _copy_of_demo(tmp_path / "mute")
    for path in folder.glob("*token*"):
        path.unlink()
    _refused(_extract(call, films, model=folder), "tokenizer")
    _nothing_written()


def test_unknown_demo_model(call: Call, films: Path) -> None:
    _refused(_extract(call, films, model="demo:late"), "no demo model 'demo:late': did you mean 'demo:")


@pytest.mark.parametrize(
    ("prompt", "arguments", "words"),
    [
        ("{titel}", (), ("template", "titel", "did you mean 'title'")),
        (PROMPT, ("--label", "rating"), ("rating", "KIND")),
        (PROMPT, ("--label", "title:number"), ("title", "row 0 (line 2 of films.csv)", "Film 0")),
        (PROMPT, ("--pooling", "median"), ("pooling", "median")),
        (PROMPT, ("--pooling", "mean@director"), ("director", "title")),
        (PROMPT, ("--lens", "last@director"), ("director", "title")),
        (PROMPT, ("--lens", "middle"), ("lens position", "middle")),
        (PROMPT, ("--sites", "heads"), ("site", "heads")),
        (PROMPT, ("--layers", "0,99"), ("99",)),
        (PROMPT, ("--dtype", "int3"), ("dtype",)),
        (PROMPT, ("--device", "abacus"), ("abacus",)),
        (PROMPT, ("--limit", "0"), ("limit",)),
        (PROMPT, ("--chat",), ("chat template",)),
        (PROMPT + " long" * 5000, (), ("row 0 (line 2 of films.csv) has", "--truncate")),
    ],
)
def test_settings_that_do_not_fit(
    call: Call, films: Path, prompt: str, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    _refused(_extract(call, films, *arguments, prompt=prompt), *words)
    _nothing_written()


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("none.csv", None, "no data file"),
        ("empty.csv", "", "is empty"),
        ("cut.csv", "title,description\na,b\nc\n", "line 3"),
    ],
)
def test_data_that_cannot_be_read(call: Call, tmp_path: Path, name: str, content: str | None, word: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    _refused(_extract(call, tmp_path / name), word)
    _nothing_written()


def test_a_store_path_that_cannot_be_written(call: Call, films: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for store in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/layercache")):
        _refused(
            call("extract", "-q", "--store", store, "--model", "demo", "--data", films, "--prompt", "{title}"),
            str(store),
        )
    assert (tmp_path / "file").read_text() == ""


def test_a_frozen_store_refuses_writers(call: Call, films: Path) -> None:
    store = Path(__file__).parents[1] / "store"
    before = sorted(str(path) for path in store.rglob("*"))
    _refused(
        call("extract", "-q", "--store", store, "--model", "demo", "--data", films, "--prompt", "{title}"),
        "frozen",
        "--store",
    )
    _refused(call("report", "--store", store), "frozen", "-o")
    assert sorted(str(path) for path in store.rglob("*")) == before


def test_a_store_of_a_newer_format(call: Call, films: Path) -> None:
    assert _extract(call, films, "--limit", 2).code == 0
    for path in Path("s").glob("run=*/run.json"):
        table = json.loads(path.read_text())
        path.write_text(json.dumps({**table, "format": 2}))
    _refused(_extract(call, films), "format 2")
    _refused(call("ls", "--store", "s"), "format 2")
    _refused(call("sql", "--store", "s", "SELECT 1"), "format 2")


@pytest.mark.parametrize(
    "command", [("ls",), ("show", "x"), ("analyze", "probe"), ("report",), ("sql", "SELECT 1"), ("verify",)]
)
def test_no_store_there(call: Call, command: tuple[str, ...]) -> None:
    _refused(call(*command, "--store", "nowhere"), "nowhere")
    assert not Path("nowhere").exists()


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELEC 1", ("syntax", "SELEC")),
        ("SELECT * FROM hiden", ("hiden", "hidden")),
        ("SELECT 1; SELECT 2", ("one",)),
        ("COPY (SELECT 1) TO 'x.csv'", ("SELECT",)),
        ("SELECT * FROM read_csv('/etc/passwd')", ()),
    ],
)
def test_sql_that_is_refused(call: Call, films: Path, query: str, words: tuple[str, ...]) -> None:
    assert _extract(call, films, "--limit", 2).code == 0
    _refused(call("sql", "--store", "s", query), *words)


def test_probes_that_cannot_be_fitted(call: Call, films: Path, tmp_path: Path) -> None:
    lines = films.read_text().replace("PG", "U").replace(",15,", ",U,")
    (tmp_path / "one.csv").write_text(lines)
    assert _extract(call, tmp_path / "one.csv", "--label", "certificate:category").code == 0
    _refused(call("analyze", "-q", "--store", "s", "probe"), "certificate", "class")
    shutil.rmtree("s")
    assert _extract(call, films, "--limit", 3, "--label", "rating:number").code == 0
    _refused(call("analyze", "-q", "--store", "s", "probe"), "rating", "folds")


def test_a_query_of_an_analysis_that_was_not_made(call: Call, films: Path) -> None:
    """The table is empty, as it is for a query of a data set that has no such rows; what to run is said beside it."""
    assert _extract(call, films, "--label", "rating:number").code == 0
    empty = call("sql", "--store", "s", "--query", "probe_scores", "--format", "csv")
    assert empty.code == 0
    assert empty.out.count("\n") == 1
    said = "query probe_scores reads results of probe, and the store has none: run `layercache analyze probe` first\n"
    assert empty.err == said
    assert call("analyze", "-q", "--store", "s", "probe", "--bootstrap", 0, "--folds", 2).code == 0
    made = call("sql", "--store", "s", "--query", "probe_scores", "--format", "csv")
    assert (made.err, made.out.count("\n") > 1) == ("", True)
    none = call("sql", "--store", "s", "--query", "probe_scores", "--param", "label=other", "--format", "csv")
    assert (none.err, none.out.count("\n")) == ("", 1)


def test_names_that_are_not_there(call: Call, films: Path) -> None:
    assert _extract(call, films, "--limit", 6, "--label", "rating:number").code == 0
    _refused(call("show", "nonsense", "--store", "s"), "nonsense")
    _refused(call("analyze", "--store", "s", "prob"), "prob", "probe")
    _refused(call("analyze", "-q", "--store", "s", "probe", "--labels", "ratin"), "ratin", "rating")
    _refused(call("sql", "--store", "s", "--query", "nonsense"), "nonsense")
    _refused(call("sql", "--store", "s", "--query", "runs", "--param", "x"), "NAME=VALUE")
    _refused(call("plot", "nonsense", "-o", "x.svg", "--store", "s"), "nonsense")
    _refused(call("nonsense"), "nonsense")
    _refused(call("extract", "--nonsense"), "nonsense")
    _refused(call("extract"), "--model")
    _refused(call("run", "no-such-recipe"), "no-such-recipe")


def test_settings_of_how_a_model_is_run(call: Call, films: Path) -> None:
    _refused(
        _extract(call, films, "--quantize", "int3"),
        "extract.quantize",
        "'int3' is not one of int8, nf4; did you mean 'int8'?",
    )
    _refused(_extract(call, films, "--reference", "-1"), "extract.reference")
    _refused(_extract(call, films, "--attn", "magic"), "extract.attn", "flash_attention_2")
    _refused(_extract(call, films, "--adapter", "./no/such/adapter"), "no/such/adapter", "no such folder")
    _refused(_extract(call, films, "--model", "demo:early", "--adapter", "x"), "--adapter goes with one --model")
    _nothing_written()


def _questions(*gold: object) -> Path:
    path = Path("questions.jsonl")
    rows = [{"question": f"Who made Film {n}?", "gold": one, "subject": "x"} for n, one in enumerate(gold)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def _answered(call: Call, path: Path, *arguments: object) -> Called:
    return _extract(call, path, "--generate-answer", "--answer", "gold", *arguments, prompt="Q: {question}\nA:")


def test_an_answer_column_that_is_no_list(call: Call) -> None:
    _refused(_answered(call, _questions({"text": "a"})), "did you mean 'gold.text'")
    _refused(
        _answered(call, _questions("a", 7)),
        "answers column 'gold', row 1 (line 2 of questions.jsonl)",
        "7 is not a list",
    )
    _refused(_answered(call, _questions("[a, b]")), "row 0", "opens like a list and is none")
    _nothing_written()


def test_answers_asked_for_wrongly(call: Call) -> None:
    path = _questions(["a"])
    _refused(_answered(call, path, "--generate-layers", "3"), "generate_answer and generate_layers are two runs")
    _refused(_answered(call, path, "--choice", " yes"), "without generate_answer")
    _refused(_answered(call, path, "--span", "subject"), "COLUMN@FIELD")
    _refused(_answered(call, path, "--span", "subject@answer"), "the template has no field 'answer'")
    _refused(_answered(call, path, "--pooling", "last@subject"), "the template has no field 'subject'")
    _refused(_answered(call, path, "--max-new-tokens", "100000"), "do not fit")
    _nothing_written()


def test_all_answers_of_one_class(call: Call) -> None:
    made = _answered(call, _questions(*(["never said"] for _ in range(12))), "--json")
    assert made.code == 0, made.err
    assert json.loads(made.out)[0]["answers"]["wrong"] == 12
    _refused(call("analyze", "text", "-q", "--store", "s", "--answer", "gold"), "no run holds generated text")
    _refused(
        call("analyze", "probe", "-q", "--store", "s", "--label", "correct"), "'correct'", "all 12 rows have the class"
    )


def test_the_balance_of_answers_is_told(call: Call) -> None:
    arguments = ("extract", "--store", "s", "--model", "demo", "--data", "demo:qa", "--generate-answer", "--limit", 6)
    made = call(*arguments, "--answer", "golden_answers", "--json")
    balance = json.loads(made.out)[0]["answers"]
    assert sum(balance.values()) == 6
    told = call(*arguments, "--answer", "golden_answers")
    assert (told.out + told.err).count(f"answers of 6 rows: {balance['correct']} correct") == 1
    assert balance["unlabelled"] == 0
    assert "6 with no accepted answer to go by" in call(*arguments).out
    # Six prompts and, beside them, six samples of prompt and answer.
    (listed,) = json.loads(call("ls", "--store", "s", "--json").out)
    assert (listed["samples"], listed["prompts"]) == (6, 6)
    clean = json.loads(call("show", listed["run"], "--store", "s", "--json").out)["conditions"]["clean"]
    assert (clean["samples"], clean["prompts answered"]) == (6, 6)
    tokens = "SELECT count(*) AS n FROM tokens"
    assert clean["tokens"] == json.loads(call("sql", tokens, "--store", "s", "--format", "json").out)[0]["n"]


def _in_a_shell(words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", words.replace("layercache", f'"{sys.executable}" -m layercache')],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_streams_that_are_closed(call: Call, films: Path, tmp_path: Path) -> None:
    assert _extract(call, films).code == 0
    for words in ("ls --store s", "sql --store s 'SELECT 1'"):
        found = _in_a_shell(f"layercache {words} >&-", tmp_path)
        assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
    assert _in_a_shell("layercache ls --store none 0>&- 1>&- 2>&-", tmp_path).returncode == 2
    # A file that got the number of a closed stream would be written into by whatever prints.
    found = _in_a_shell("layercache init films.csv -o made.toml 0>&- 1>&- 2>&-; cat made.toml", tmp_path)
    assert found.stdout.startswith("# A study of films.csv")


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    for words in ("ls", "sql 'SELECT 1'", "run movies"):
        (tmp_path / "gone").mkdir()
        found = _in_a_shell(f"rmdir ../gone; layercache {words}", tmp_path / "gone")
        assert found.returncode == 2
        assert found.stderr == "error: the folder that this was called in has been removed: change to another\n"
