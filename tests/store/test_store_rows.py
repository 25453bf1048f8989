"""Rows files, recipes and results: what surrounds the states."""

import errno
import hashlib
import json
import os
from datetime import date
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store_builder import make_run, put_shard, sample_id

from layercache.errors import QueryError, StoreError
from layercache.recipe import Label
from layercache.store import reader, recipes, results, schema
from layercache.store.layout import RowsInfo, Run
from layercache.store.rows import put_rows
from layercache.store.verify import verify

LABELS = [Label("rating", "number"), Label("good", "boolean"), Label("genre", "category"), Label("tags", "text")]
FRAME = pl.DataFrame(
    {
        "title": ["Alien", "Brazil", "Clue"],
        "row": [0, 1, 2],
        "sample_id": [sample_id(0), sample_id(1), None],
        "rating": [8.5, None, 7.0],
        "good": [True, False, None],
        "genre": pl.Series(["horror", None, "comedy"], dtype=pl.Categorical),
        "tags": [["space", "cat"], [], ["house"]],
        "year": pl.Series([1979, 1985, 1985], dtype=pl.Int16),
        "seen": [date(2020, 1, 2), None, None],
        "nothing": [None, None, None],
    }
)


def put(run: Run, frame: pl.DataFrame = FRAME, data: str = "films", **changes: object) -> Path:
    settings: dict[str, object] = {"source": "films.csv", "labels": LABELS, "group_by": "year", "target": "title"}
    return put_rows(run, frame, data=data, **{**settings, **changes})  # type: ignore[arg-type]


def test_rows_come_back_in_portable_types(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    path = put(run)
    store = reader.open(tmp_path)
    assert store.data(run) == [RowsInfo("films", LABELS, None, "year", "title", "films.csv", path)]
    frame = store.rows(run, "films")
    assert frame.columns[:4] == ["row", "sample_id", "split", "title"]
    assert frame.drop("split").equals(
        FRAME.select(frame.drop("split").columns).cast({"genre": pl.String, "nothing": pl.String})
    )
    assert frame["split"].null_count() == 3
    types = {field.name: str(field.type) for field in pq.read_schema(path)}
    assert types == {
        "row": "int64",
        "sample_id": "string",
        "split": "string",
        "title": "string",
        "rating": "double",
        "good": "bool",
        "genre": "string",
        "tags": "list<element: string>",
        "year": "int16",
        "seen": "date32[day]",
        "nothing": "string",
    }
    with duckdb.connect() as connection:
        found = connection.execute(f"SELECT title, tags, seen FROM read_parquet('{path}') ORDER BY row").fetchall()
    assert found[0] == ("Alien", ["space", "cat"], date(2020, 1, 2))
    assert path.name.endswith(f"-000000-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.parquet")


def test_labels_are_long_and_leave_out_what_is_not_there(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    put(run)
    frame = reader.open(tmp_path).labels(run, "films")
    assert dict(frame.schema) == {
        "data": pl.String,
        "row": pl.Int64,
        "sample_id": pl.String,
        "name": pl.String,
        "kind": pl.String,
        "number": pl.Float64,
        "text": pl.String,
    }
    assert frame.columns == [column.name for column in schema.LABELS]
    assert frame.select("row", "name", "number", "text").rows() == [
        (0, "rating", 8.5, None),
        (0, "good", 1.0, None),
        (1, "good", 0.0, None),
        (0, "genre", None, "horror"),
        (0, "tags", None, "space\ncat"),
        (1, "tags", None, ""),
    ]


def test_a_data_set_without_labels_has_an_empty_long_table(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    put(run, labels=[])
    frame = reader.open(tmp_path).labels(run, "films")
    assert frame.height == 0
    assert frame.columns == [column.name for column in schema.LABELS]


def test_the_same_content_writes_nothing_and_a_change_is_a_new_sequence(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    nan = FRAME.with_columns(rating=pl.Series([float("nan"), None, 7.0]))
    first = put(run, nan)
    assert put(run, nan) == first
    second = put(run)
    assert "-000001-" in second.name
    third = put(run, labels=LABELS[:1])
    assert "-000002-" in third.name
    fourth = put(run, nan)
    assert "-000003-" in fourth.name
    store = reader.open(tmp_path)
    assert store.data(run)[0].path == fourth
    assert store.data(run)[0].labels == LABELS
    assert len(list((run.path / "rows").iterdir())) == 4
    put(run, data="books")
    assert [info.name for info in store.data(run)] == ["books", "films"]
    assert store.input_names(run, ["films"]) == [f"{run.id}/rows/{fourth.name}"]
    assert len(store.input_names(run)) == 2
    assert verify(tmp_path, deep=True) == []


def test_of_two_files_with_one_number_the_larger_name_counts(tmp_path: Path) -> None:
    run, other = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    one, two = put(run), put(other, FRAME.head(1))
    (one.parent / two.name).write_bytes(two.read_bytes())
    assert reader.open(tmp_path / "a").data(run)[0].path.name == max(one.name, two.name)


@pytest.mark.parametrize(
    "name", ["my films", "a/b", "../up", "100%", "é-000001", "*", ".hidden", "x-000001-0123456789abcdef"]
)
def test_data_sets_may_have_any_name(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path)
    path = put(run, data=name)
    assert path.parent == run.path / "rows"
    store = reader.open(tmp_path)
    assert [info.name for info in store.data(run)] == [name]
    assert store.rows(run, name).height == 3
    with duckdb.connect() as connection:
        assert connection.execute("SELECT count(*) FROM read_parquet(?)", [str(path)]).fetchone() == (3,)


def test_wrong_rows_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with pytest.raises(StoreError, match="cannot be stored: give one of 1 to 200 letters"):
        put(run, data="é" * 90)
    with pytest.raises(StoreError, match="has no rows of data set 'films': it has none"):
        reader.open(tmp_path).rows(run, "films")
    for frame, words in (
        (FRAME.drop("sample_id"), r"missing columns \['sample_id'\]"),
        (FRAME.with_columns(run=1), r"reserved columns \['run'\]"),
        (FRAME.with_columns(row=pl.Series([0, None, 2])), "the column row holds a NULL"),
        (FRAME.drop("genre", "year"), r"missing columns \['genre', 'year'\]"),
    ):
        with pytest.raises(ValueError, match=words):
            put(run, frame)
    assert not (run.path / "rows").exists()
    bad = run.path / "rows" / "films-000000-0123456789abcdef.parquet"
    bad.parent.mkdir()
    bad.write_bytes(b"PAR1")
    store = reader.open(tmp_path)
    for action in (lambda: store.data(run), lambda: store.rows(run, "films"), lambda: put(run)):
        with pytest.raises(StoreError, match="run `layercache verify`") as failure:
            action()
        assert len(str(failure.value).splitlines()) == 1


def test_recipes_are_kept_by_name_and_the_newest_counts(tmp_path: Path) -> None:
    recipe = {"name": "movies", "models": ["demo"], "extract": {"layers": "all"}}
    first = recipes.save(tmp_path, recipe)
    assert recipes.save(tmp_path, dict(reversed(recipe.items()))) == first
    other = recipes.save(tmp_path, {**recipe, "models": ["gpt2"]})
    recipes.save(tmp_path, {"name": "books"})
    assert (first.name[:13], other.name[:13]) == ("movies-000000", "movies-000001")
    assert recipes.load_all(tmp_path) == [{"name": "books"}, {**recipe, "models": ["gpt2"]}]
    assert json.loads(other.read_bytes())["format"] == 1
    assert recipes.load_all(tmp_path / "nothing") == []
    assert verify(tmp_path, deep=True) == []
    other.write_text('{"format": 1}')
    with pytest.raises(StoreError, match="holds no recipe"):
        recipes.load_all(tmp_path)


TABLE = pa.table({"run": ["r"], "data": ["d"], "analysis": ["probe"], "layer": [3], "metric": ["r2"], "value": [0.5]})
SCORES = pa.table(
    {"run": ["r"], "data": ["d"], "analysis": ["probe"], "metric": ["loss"], "row": [0], "sample_id": ["a"]}
)
SPEC = {"folds": 5, "labels": None}


def test_a_result_is_found_by_what_it_was_computed_from(tmp_path: Path) -> None:
    outcome = results.Outcome(TABLE, SCORES, {"probe-0.safetensors": b"abc"})
    path = results.save(tmp_path, "probe", SPEC, ["b", "a"], outcome)
    assert path is not None
    assert path.parent == tmp_path / "results"
    assert results.find(tmp_path, "probe", {"labels": None, "folds": 5}, ["a", "b"]) == path
    for asked in (("entropy", SPEC, ["a", "b"]), ("probe", {**SPEC, "folds": 6}, ["a", "b"]), ("probe", SPEC, ["a"])):
        assert results.find(tmp_path, *asked) is None
    table = results.load(path)
    assert table.schema.equals(schema.arrow_schema(schema.RESULTS))
    assert table.select(TABLE.column_names).to_pylist() == TABLE.to_pylist()
    assert pq.read_schema(path / "sample_scores.parquet").equals(schema.arrow_schema(schema.SAMPLE_SCORES))
    assert (path / "probe-0.safetensors").read_bytes() == b"abc"
    (info,) = results.listing(tmp_path)
    assert (info.path, info.analysis, info.spec, info.inputs) == (path, "probe", SPEC, ["a", "b"])
    assert info.file("sample_scores.parquet") == path / "sample_scores.parquet"
    assert info.file("nothing") is None
    assert results.save(tmp_path, "probe", SPEC, ["a", "b"], outcome) == path
    assert reader.open(tmp_path).runs() == []
    assert verify(tmp_path, deep=True) == []


def test_the_newest_result_of_a_specification_is_listed(tmp_path: Path) -> None:
    outcome = results.Outcome(TABLE)
    old = results.save(tmp_path, "probe", SPEC, ["a"], outcome)
    new = results.save(tmp_path, "probe", SPEC, ["a", "b"], outcome)
    other = results.save(tmp_path, "probe", {"folds": 2}, ["a"], outcome)
    assert old != new
    assert {info.path for info in results.listing(tmp_path)} == {new, other}
    assert results.find(tmp_path, "probe", SPEC, ["a"]) == old


def test_a_damaged_result_is_computed_again(tmp_path: Path) -> None:
    path = results.save(tmp_path, "probe", SPEC, ["a"], results.Outcome(TABLE))
    assert path is not None
    (path / "results.parquet").write_bytes(b"")
    assert results.find(tmp_path, "probe", SPEC, ["a"]) is None
    assert results.listing(tmp_path) == []
    assert [problem.path for problem in verify(tmp_path)] == [path]
    with pytest.raises(StoreError, match="cannot be read"):
        results.load(path)
    again = results.save(tmp_path, "probe", SPEC, ["a"], results.Outcome(TABLE))
    assert again is not None
    assert again.name.startswith(path.name)
    assert results.find(tmp_path, "probe", SPEC, ["a"]) == again
    assert [info.path for info in results.listing(tmp_path)] == [again]


def test_a_result_that_shares_its_short_hash_keeps_apart(tmp_path: Path) -> None:
    path = results.save(tmp_path, "probe", SPEC, ["a"], results.Outcome(TABLE))
    other = results.save(tmp_path, "probe", SPEC, ["b"], results.Outcome(TABLE))
    assert path is not None
    assert other is not None
    path.rename(tmp_path / "aside")
    other.rename(path)
    assert results.find(tmp_path, "probe", SPEC, ["a"]) is None
    again = results.save(tmp_path, "probe", SPEC, ["a"], results.Outcome(TABLE))
    assert again is not None
    assert again.name.startswith(path.name)
    assert again != path
    assert results.find(tmp_path, "probe", SPEC, ["a"]) == again


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_on_a_read_only_file_system_results_are_only_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "mkdir", fail)
    assert results.save(tmp_path, "probe", SPEC, ["a"], results.Outcome(TABLE)) is None


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (results.Outcome(TABLE.drop(["metric"])), "column metric is missing or holds a NULL"),
        (results.Outcome(TABLE.append_column("colour", [[1]])), "columns colour are not declared"),
        (results.Outcome(TABLE, files={"../x": b""}), "give a plain one"),
        (results.Outcome(TABLE, files={"results.parquet": b""}), "that is not a table's"),
        (results.Outcome(TABLE, files={"manifest.json": b""}), "that is not a table's"),
    ],
)
def test_wrong_outcomes_are_refused(tmp_path: Path, outcome: results.Outcome, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        results.save(tmp_path, "probe", SPEC, [], outcome)
    assert list(tmp_path.iterdir()) == []


def test_own_queries_see_the_store(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    put_shard(run, range(3))
    put(run)
    store = reader.open(tmp_path)
    query = "SELECT title, count(*) AS n FROM rows JOIN hidden USING (run, sample_id) WHERE layer > ? GROUP BY title ORDER BY 1"
    assert store.sql(query, [1]).to_pylist() == [{"title": "Alien", "n": 2}, {"title": "Brazil", "n": 2}]
    with pytest.raises(QueryError) as failure:
        store.sql("SELECT nonsense FROM hidden")
    assert len(str(failure.value).splitlines()) == 1


def test_references_are_kept_with_the_rows_and_only_where_there_are_some(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    bare = put(run)
    assert b"reference" not in pq.read_schema(bare).metadata[b"layercache"]
    named = put(run, reference=["tags", "title"])
    assert named != bare
    assert put(run, reference=["tags", "title"]) == named
    (info,) = reader.open(tmp_path).data(run)
    assert info.reference == ("tags", "title")
    with pytest.raises(ValueError, match="missing columns"):
        put(run, reference=["no such column"])
