"""A hostile query through the real command, and a store from someone else that tries to reach other files."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
import store_builder as build
from command import Call

from layercache.errors import QueryError, StoreError
from layercache.recipe import Label
from layercache.store import reader, results, sql, writer
from layercache.store.verify import verify

ESCAPE = "\x1b]0;owned\x07\x1b[2J</script>"


def make(path: Path) -> Path:
    run = build.make_run(path)
    build.put_shard(run, range(3), {build.MEAN: build.LAYERS, "tokens": None})
    ids = [build.sample_id(number) for number in range(3)]
    frame = pl.DataFrame({"row": range(3), "sample_id": ids, "a\"b'c": ["x"] * 3, "text": [ESCAPE] * 3})
    writer.put_rows(run, frame, data="films", source="made", labels=[Label("text", "text")])
    row = {"run": run.id, "data": "films", "analysis": "probe", "metric": "mse", "value": 1.0}
    results.save(path, "probe", {}, [], results.Outcome(pa.Table.from_pylist([row])))
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("attacks") / "store")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    "query",
    [
        "COPY (SELECT 1) TO 'out.csv'",
        "ATTACH 'out.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "EXPORT DATABASE 'out'",
        "CREATE TABLE t AS SELECT 1",
        "SET memory_limit = '1TB'",
        "PRAGMA database_list",
        "CALL pragma_version()",
        "SELECT 1; SELECT 2",
        "FROM '/etc/passwd'",
        "FROM glob('/*')",
        "FROM read_text('/etc/passwd')",
        "FROM read_parquet('{store}/run=*/condition=*/shard=*/hidden.parquet')",
        "FROM 'http://127.0.0.1:9/x.parquet'",
        "SELECT getenv('HOME')",
        "SELECT current_setting('secret_directory')",
        "SHOW secret_directory",
        "FROM query",
        "FROM Path",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO 'out.csv'",
        'SELECT "\x1b[31m" FROM runs',
    ],
)
def test_the_command_refuses_in_one_line(store: Path, call: Call, tmp_path: Path, query: str) -> None:
    before = contents(store)
    called = call("sql", query.format(store=store), "--store", store)
    assert (called.code, called.out) == (2, ""), called
    assert called.err.startswith("error: ")
    assert len(called.err.splitlines()) == 1
    assert called.err.rstrip("\n").isprintable()
    assert contents(store) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELECT count(*) FROM range(100000) a, range(100000) b, range(100000) c", "took longer than 1 s"),
        (
            "WITH RECURSIVE a(x) AS (SELECT 1 UNION ALL SELECT x % 7 FROM a) SELECT count(*) FROM a",
            "took longer than 1 s",
        ),
        ("SELECT length(repeat('x', 3000000000))", "more than 100 MB of memory"),
        (
            "SELECT list_aggregate(list_transform(range(100000), lambda x: repeat('x', 100000)), 'string_agg', '')",
            "memory",
        ),
        ("SELECT string_agg(repeat('x', 1000000), '') FROM range(100000)", "memory"),
    ],
)
def test_the_command_stops_what_takes_too_much(store: Path, call: Call, query: str, words: str) -> None:
    called = call("sql", query, "--store", store, "--timeout", 1 if "longer" in words else 30, "--memory", "100MB")
    assert (called.code, called.out) == (2, ""), called
    assert words in called.err
    assert len(called.err.splitlines()) == 1


@pytest.mark.parametrize("form", ["table", "markdown", "json", "jsonl"])
def test_text_of_the_data_cannot_act_on_a_terminal(store: Path, call: Call, form: str) -> None:
    called = call(
        "sql",
        'SELECT text, "a""b\'c", prompt FROM rows JOIN samples USING (sample_id)',
        "--store",
        store,
        "--format",
        form,
    )
    assert called.code == 0, called
    assert not {"\x1b", "\x07"} & set(called.out)
    assert "a\"b'c" in called.out.replace('\\"', '"')


LINKS: dict[str, Callable[[Path], Path]] = {
    "a file of a shard": lambda store: next(store.rglob("hidden.parquet")),
    "a manifest": lambda store: next(store.rglob("shard=*/manifest.json")),
    "a shard": lambda store: next(store.rglob("shard=*")),
    "a condition": lambda store: next(store.rglob("condition=*")),
    "a run": lambda store: next(store.glob("run=*")),
    "run.json": lambda store: next(store.glob("run=*/run.json")),
    "the rows": lambda store: next(store.glob("run=*/rows/*.parquet")),
    "the folder of rows": lambda store: next(store.glob("run=*/rows")),
}


@pytest.mark.parametrize("what", sorted(LINKS))
def test_a_link_out_of_the_store_is_not_followed(tmp_path: Path, what: str) -> None:
    store = make(tmp_path / "store")
    path = LINKS[what](store)
    outside = tmp_path / "outside"
    shutil.move(path, outside)
    path.symlink_to(outside)
    opened = reader.Store(store)
    for read in (
        lambda: sql.run_query(store, "SELECT * FROM hidden, rows"),
        lambda: opened.sql("SELECT * FROM hidden, rows"),
        lambda: (opened.matrix("tiny", 0), opened.rows("tiny", "films")),
    ):
        with pytest.raises(StoreError, match="is a symbolic link, which a store must not hold") as caught:
            read()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert any("symbolic link" in problem.what for problem in verify(store))


def test_results_behind_a_link_are_not_read(tmp_path: Path) -> None:
    store = make(tmp_path / "store")
    assert sql.run_query(store, "FROM results").num_rows == 1
    (table,) = store.glob("results/*/results.parquet")
    shutil.move(table, tmp_path / "outside")
    table.symlink_to(tmp_path / "outside")
    assert sql.run_query(store, "FROM results").num_rows == 0


def test_the_store_itself_may_be_reached_by_a_link(tmp_path: Path) -> None:
    store = make(tmp_path / "store")
    link = tmp_path / "link"
    link.symlink_to(store)
    assert sql.run_query(link, "SELECT count(*) AS n FROM hidden").to_pylist() == [{"n": 12}]


def test_columns_that_are_called_like_sql(tmp_path: Path) -> None:
    run = build.make_run(tmp_path / "store")
    names = ['"; DROP VIEW runs; --', "'", "a\nb", "$x", "`", "SELECT", "{}", "\x1b[31m"]
    ids = [build.sample_id(0)]
    build.put_shard(run, range(1))
    frame = pl.DataFrame({"row": [0], "sample_id": ids, **{name: [name] for name in names}})
    writer.put_rows(run, frame, data='it\'s; "data"', source="made", labels=[Label(names[0], "category")])
    table = sql.run_query(tmp_path / "store", "SELECT * EXCLUDE (run, data, row, sample_id, split) FROM rows")
    assert table.to_pylist() == [{name: name for name in names}]
    labels = sql.run_query(tmp_path / "store", "SELECT data, name, text FROM labels").to_pylist()
    assert labels == [{"data": 'it\'s; "data"', "name": names[0], "text": names[0]}]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_is_dead_when_its_time_is_over(store: Path) -> None:
    def children() -> set[str]:
        return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())

    before = children()
    with pytest.raises(QueryError, match="took longer"):
        sql.run_query(store, "SELECT count(*) FROM range(100000) a, range(100000) b, range(100000) c", timeout=0.8)
    assert children() <= before


def test_parameters_are_values_and_never_text_of_the_query(store: Path, call: Call) -> None:
    evil = "x' OR 1 = 1; COPY (SELECT 1) TO 'out.csv'; --"
    called = call("sql", "SELECT $a AS a", "--param", f"a={evil}", "--store", store, "--format", "json")
    assert called.json == [{"a": evil}]
    named = call("sql", "--query", "top_tokens", "--param", f"sample={evil}", "--store", store, "--format", "json")
    assert (named.code, named.json) == (0, [])
    number = call("sql", "--query", "top_tokens", "--param", f"k={evil}", "--store", store)
    assert (number.code, number.out) == (2, "")
    assert "parameter k is a number" in number.err


def test_json_without_end_is_one_line(tmp_path: Path) -> None:
    store = make(tmp_path / "store")
    (path,) = store.glob("run=*/run.json")
    path.write_text("[" * 200_000)
    with pytest.raises(StoreError, match="cannot be read"):
        reader.open(store)
