"""A named query without a row says why, on stderr: what it reads was not captured or not analysed, and what does that."""

import re
from pathlib import Path

import pytest
from command import Call

from layercache import listing, queries
from layercache.cli import COMMANDS

TITLED = [query.name for query in queries.list_queries()]


@pytest.fixture
def bare(call: Call, films: Path) -> Call:
    """A store with states at one pooling, and nothing else that a query reads."""
    made = call(
        *("extract", "-q", "--store", "s", "--model", "demo", "--data", films, "--prompt", "{title}"),
        *("--limit", 3, "--pooling", "last", "--lens", "none", "--layers", 1),
    )
    assert made.code == 0, made.err
    return call


@pytest.mark.parametrize("form", ["csv", "json", "table"])
def test_a_query_of_text_that_no_run_generated(bare: Call, form: str) -> None:
    done = bare("sql", "--store", "s", "--query", "text_by_layer", "--format", form)
    assert done.code == 0
    assert done.err == (
        "query text_by_layer reads the table generations, and no run of this store generated text: `layercache extract"
        " --generate-layers all` lets every layer write, `--generate-answer` the last\n"
    )
    assert "generated text" not in done.out
    assert form != "json" or done.json == []


def test_every_query_without_a_row_says_why(bare: Call) -> None:
    full = {"runs", "prompt_lengths", "norms_by_layer"}
    for name in TITLED:
        done = bare("sql", "--store", "s", "--query", name, "--format", "csv")
        rows = done.out.count("\n") - 1
        assert (done.code, rows > 0) == (0, name in full), name
        if name in full:
            assert done.err == ""
            continue
        assert done.err.count("\n") == 1, name
        assert done.err.startswith(f"query {name}"), name
        for command in re.findall(r"`layercache (\w+)", done.err):
            assert command in COMMANDS
        assert "`" in done.err or name in {"absent", "cosine_neighbours"}, name


def test_parameters_that_find_nothing_are_not_explained_away(bare: Call) -> None:
    done = bare("sql", "--store", "s", "--query", "absent", "--param", "run=x", "--format", "csv")
    assert (done.out.count("\n"), done.err) == (1, "")


def test_a_store_without_a_run(tmp_path: Path, bare: Call) -> None:
    for path in Path("s").glob("run=*"):
        path.rename(tmp_path / "elsewhere")
    said = listing.why_empty(Path("s"), queries.load_query("runs"), False)
    assert said == "query runs: the store holds no run yet: `layercache extract` makes one"
