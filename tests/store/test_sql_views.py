"""The SQL views: what they hold, in every store, whatever its path."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import store_builder as build

from layercache.errors import QueryError, StoreError
from layercache.recipe import parse_label
from layercache.store import numbers as stored_numbers
from layercache.store import reader, results, sql, verify, views
from layercache.store.layout import Run
from layercache.store.schema import LABELS, RESULTS, SAMPLE_SCORES, TABLES
from layercache.store.writer import Shard, open_run, put_rows

ALL = {build.MEAN: build.LAYERS, build.LAST: build.LAYERS, build.LENS: [0, 1, 2], "tokens": None}


def ask(store: Path, query: str, params: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
    table = sql.query(reader.open(store), query, params)
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def rows_of(run: Run, frame: pl.DataFrame, labels: tuple[str, ...] = (), data: str = "d") -> None:
    put_rows(run, frame, data=data, source="made", labels=[parse_label(text) for text in labels])


def frame(n: int = 2, **columns: Any) -> pl.DataFrame:
    return pl.DataFrame({"row": range(n), "sample_id": [build.sample_id(k) for k in range(n)], **columns})


def test_every_view_is_there_in_an_empty_store(tmp_path: Path) -> None:
    declared = {name: ["run", "condition", *(c.name for c in table.columns)] for name, table in TABLES.items()}
    declared["labels"] = ["run", *(column.name for column in LABELS)]
    declared["results"] = [column.name for column in RESULTS]
    declared["sample_scores"] = [column.name for column in SAMPLE_SCORES]
    with reader.open(tmp_path).connect() as connection:
        for name in views.VIEWS:
            relation = connection.sql(f"SELECT * FROM {name}")
            assert relation.fetchall() == []
            assert relation.columns == declared.get(name, relation.columns)
            assert relation.columns[0] == "run"


def test_types_do_not_depend_on_whether_there_are_rows(tmp_path: Path) -> None:
    run = build.make_run(tmp_path / "full")
    build.put_shard(run, range(3), ALL)
    rows_of(run, frame(rating=[1.0, 2.0]), ("rating:number",))
    _put_result(tmp_path / "full", run)
    (tmp_path / "empty").mkdir()
    full, empty = (reader.open(tmp_path / name).connect() for name in ("full", "empty"))
    for name in views.VIEWS:
        types = {tuple(line[:2]) for line in full.execute(f"DESCRIBE {name}").fetchall()}
        expected = {tuple(line[:2]) for line in empty.execute(f"DESCRIBE {name}").fetchall()}
        expected -= {("vector", "FLOAT[]")}
        assert expected <= types, name
    full.close()
    empty.close()


def _put_result(store: Path, run: Run, value: float = 1.0, inputs: str = "i", metric: str = "mse", **spec: Any) -> None:
    row = {"run": run.id, "data": "d", "analysis": "probe", "metric": metric, "value": value}
    rows = [{**row, "layer": layer} for layer in spec.get("layers", [0])]
    scores = [{**one, "row": 0, "sample_id": build.sample_id(0), "text": inputs} for one in rows]
    outcome = results.Outcome(pa.Table.from_pylist(rows), pa.Table.from_pylist(scores))
    results.save(store, "probe", {"spec": "a", **spec}, [inputs], outcome)


def test_states_are_those_written(tmp_path: Path) -> None:
    run = build.make_run(tmp_path)
    build.put_shard(run, range(3), {build.MEAN: build.LAYERS})
    build.put_shard(run, range(3, 5), {build.MEAN: build.LAYERS}, condition="knockout-question")
    found = ask(tmp_path, "SELECT run, condition, sample_id, site, layer, pooling, position, vector FROM hidden")
    assert len(found) == 5 * len(build.LAYERS)
    for run_id, condition, sample, site, layer, pooling, position, vector in found:
        assert (run_id, site, pooling, position) == (run.id, "resid", "mean@prompt", None)
        assert condition == ("clean" if int(sample, 16) < 3 else "knockout-question")
        np.testing.assert_array_equal(np.float32(vector), build.state(sample, site, pooling, layer))


def test_runs_shards_and_layers(tmp_path: Path) -> None:
    run = build.make_run(tmp_path, note='it\'s "quoted"\n')
    name = build.put_shard(run, range(3), ALL)
    spec = {"weights": "w", "note": 'it\'s "quoted"\n'}
    assert ask(tmp_path, "SELECT * EXCLUDE (spec) FROM runs") == [
        (run.id, "org/tiny", run.hash, build.WIDTH, len(build.LAYERS), build.LAYERS[-1])
    ]
    assert json.loads(ask(tmp_path, "SELECT spec FROM runs")[0][0]) == spec
    assert ask(tmp_path, "SELECT spec ->> 'note' FROM runs") == [(spec["note"],)]
    assert ask(tmp_path, "SELECT * FROM layers") == [(run.id, n, f"model.layers.{n}") for n in build.LAYERS]
    ((*names, n_samples, size, outputs, host, provenance),) = ask(
        tmp_path, "SELECT run, condition, shard, n_samples, bytes, outputs, host, provenance FROM shards"
    )
    files = (run.path / "condition=clean" / f"shard={name}").glob("*.parquet")
    assert (names, n_samples, size) == ([run.id, "clean", name], 3, sum(file.stat().st_size for file in files))
    assert (sorted(outputs), host, json.loads(provenance)) == (sorted(ALL), "test", {"host": "test"})


ODD_PATHS = [
    "it's [1] *?",
    'a "b" $c{d};e, --',
    "naïve-模型\n%20~",
    "run=x/condition=y/layer=3",
    "s3:",
    "back\\slash",
    "back\\sl[a]sh *?",
]


@pytest.mark.parametrize("name", ODD_PATHS)
def test_a_store_may_be_anywhere(tmp_path: Path, name: str) -> None:
    store = tmp_path / name / "store"
    run = build.make_run(store)
    build.put_shard(run, range(2), {build.MEAN: [0, 3]})
    rows_of(run, frame(rating=[1.0, 2.0]), ("rating:number",), data='my films\' "best" [1]*')
    _put_result(store, run)
    # A neighbour that a wildcard in the path would match too.
    build.put_shard(build.make_run(tmp_path / "it's 1 axb" / "store"), range(5))
    query = """
        SELECT (SELECT count(*) FROM hidden WHERE run = $run AND layer = 3), (SELECT count(*) FROM samples),
               (SELECT sum(rating) FROM rows), (SELECT any_value(data) FROM labels), (SELECT sum(value) FROM results)
    """
    expected = (2, 2, 3.0, 'my films\' "best" [1]*', 1.0)
    assert ask(store, query, {"run": run.id}) == [expected]
    fenced = sql.run_query(store, query, params={"run": run.id})
    assert tuple(fenced.to_pylist()[0].values()) == expected


def test_a_pattern_that_could_match_something_else_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "a\\b[1]" / "store"
    build.put_shard(build.make_run(store), range(2))
    assert ask(store, "SELECT count(*) FROM samples") == [(2,)]
    # DuckDB would take this one for the other.
    build.put_shard(build.make_run(tmp_path / "a" / "b1" / "store"), range(5))
    for read in (lambda: ask(store, "FROM samples"), lambda: sql.run_query(store, "FROM samples")):
        with pytest.raises(StoreError, match=r"holds a backslash and one of \* \? \[, .*: rename it"):
            read()
    assert len(reader.open(store).samples("tiny")) == 2


def test_a_relative_store_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.put_shard(build.make_run(tmp_path / "store"), range(2))
    monkeypatch.chdir(tmp_path)
    assert ask(Path("store"), "SELECT count(*) FROM samples") == [(2,)]
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert sql.run_query(Path("../store"), "SELECT count(*) AS n FROM samples").to_pylist() == [{"n": 2}]
    (tmp_path / "link").symlink_to(tmp_path / "store")
    assert sql.run_query(Path("../link"), "SELECT count(*) AS n FROM samples").to_pylist() == [{"n": 2}]


def _scan(store: Path, query: str) -> dict[str, Any]:
    """Return what DuckDB says of the Parquet scan of a query it has run."""
    plan = json.loads(ask(store, f"EXPLAIN (ANALYZE, FORMAT json) {query}")[0][1])
    left = list(plan["operator"])
    while left:
        node = left.pop()
        if node["type"] == "TABLE_SCAN":
            return dict(node)
        left.extend(node.get("children", []))
    raise AssertionError(plan)


def test_only_the_layer_asked_for_is_read(tmp_path: Path) -> None:
    run = build.make_run(tmp_path)
    other = build.make_run(tmp_path, weights="v")
    outputs = {build.MEAN: build.LAYERS, build.LAST: build.LAYERS}
    for numbers in (range(20), range(20, 40)):
        build.put_shard(run, numbers, outputs)
        build.put_shard(other, numbers, outputs)
    scan = _scan(tmp_path, "SELECT sum(vector[1]) FROM hidden WHERE layer = 3 AND pooling = 'mean@prompt'")
    assert (scan["row_groups_scanned"], scan["total_row_groups_to_scan"]) == (4, 4 * 2 * len(build.LAYERS))
    where = f"run = '{run.id}' AND condition = 'clean' AND layer = 3 AND pooling = 'mean@prompt'"
    scan = _scan(tmp_path, f"SELECT sum(vector[1]) FROM hidden WHERE {where}")
    # The other run's files are not even opened.
    assert (scan["row_groups_scanned"], scan["total_row_groups_to_scan"]) == (2, 2 * 2 * len(build.LAYERS))


def test_what_two_shards_hold_counts_once(tmp_path: Path) -> None:
    run = build.make_run(tmp_path)
    names = [
        build.put_shard(run, range(6), {build.MEAN: [0, 1], "tokens": None, build.LENS: [0]}, salt=1),
        build.put_shard(run, range(3, 9), {build.MEAN: [1, 2], "tokens": None, build.LENS: [0, 1]}, salt=2),
        build.put_shard(run, [4, 10], {build.MEAN: [1], build.LAST: [1]}, salt=3),
    ]
    salts = {name: salt for salt, name in enumerate(names, start=1)}
    held = {
        names[0]: (set(range(6)), {0, 1}),
        names[1]: (set(range(3, 9)), {1, 2}),
        names[2]: ({4, 10}, {1}),
    }
    expected = {}
    for name in sorted(names, reverse=True):
        numbers, layers = held[name]
        expected |= {(build.sample_id(number), layer): salts[name] for number in numbers for layer in layers}
    found = ask(tmp_path, "SELECT sample_id, layer, vector FROM hidden WHERE pooling = 'mean@prompt'")
    assert len(found) == len(expected)
    for sample, layer, vector in found:
        state = build.state(sample, "resid", "mean@prompt", layer, expected[sample, layer])
        np.testing.assert_array_equal(np.float32(vector), state)
    assert ask(tmp_path, "SELECT count(*) FROM hidden WHERE pooling = 'last@prompt'") == [(2,)]
    distinct = "count(*) = count(DISTINCT (sample_id, {})), count(*)"
    assert ask(tmp_path, f"SELECT {distinct.format('position')} FROM tokens") == [(True, 9 * 4)]
    assert ask(tmp_path, f"SELECT {distinct.format('layer')} FROM lens") == [(True, 9 + 6)]
    assert ask(tmp_path, f"SELECT {distinct.format('prompt')} FROM samples") == [(True, 10)]
    # The layer is still found without reading the others.
    scan = _scan(tmp_path, "SELECT sum(vector[1]) FROM hidden WHERE layer = 2")
    assert scan["row_groups_scanned"] <= 2


def test_views_agree_with_the_reader_where_shards_overlap(tmp_path: Path) -> None:
    run = build.make_run(tmp_path)
    for salt, numbers in enumerate((range(7), range(2, 9), range(5, 12)), start=1):
        build.put_shard(run, numbers, {build.MEAN: build.LAYERS[salt - 1 :]}, salt=salt)
    store = reader.open(tmp_path)
    for layer in build.LAYERS:
        matrix = store.matrix(run, layer)
        table = sql.query(
            store, "SELECT sample_id, vector FROM hidden WHERE layer = $layer ORDER BY 1", {"layer": layer}
        )
        assert table["sample_id"].to_pylist() == matrix.sample_ids.tolist()
        np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.float32), matrix.values)


def test_samples_say_what_is_absent_from_any_shard(tmp_path: Path) -> None:
    run = build.make_run(tmp_path)
    ids = [build.sample_id(number) for number in range(3)]
    for output, gone in ((build.MEAN, ids[0]), (build.LAST, ids[0]), ("hidden:resid:mean@answer", ids[1])):
        shard = Shard(run, {output: [0]}, provenance={})
        build.add_samples(shard, ids, {gone: [(output, "empty span")]})
        build.add_hidden(shard, [name for name in ids if name != gone], output, [0])
        shard.publish()
    found = dict(ask(tmp_path, "SELECT sample_id, [gap.output FOR gap IN absent] FROM samples"))
    assert {name: set(gone) for name, gone in found.items()} == {
        ids[0]: {build.MEAN, build.LAST},
        ids[1]: {"hidden:resid:mean@answer"},
        ids[2]: set(),
    }
    store = reader.open(tmp_path)
    frame = pl.from_arrow(sql.query(store, "SELECT * EXCLUDE (run, condition, absent) FROM samples ORDER BY sample_id"))
    assert isinstance(frame, pl.DataFrame)
    assert frame.equals(store.samples(run).drop("absent"))


def test_states_are_of_fixed_size_where_there_is_one_width(tmp_path: Path) -> None:
    build.put_shard(build.make_run(tmp_path), range(2))
    assert ask(tmp_path, "SELECT DISTINCT typeof(vector) FROM hidden") == [(f"FLOAT[{build.WIDTH}]",)]
    wide = open_run(tmp_path, {"w": 3}, model="wide", layers=[(0, "e")], width=3, final_layer=0)
    shard = Shard(wide, {build.MEAN: [0]}, provenance={})
    build.add_samples(shard, ["a" * 24])
    columns = {"sample_id": ["a" * 24], "site": ["resid"], "layer": [0], "pooling": ["mean@prompt"]}
    shard.add("hidden", {**columns, "vector": np.float32([[3, 4, 12]])})
    shard.publish()
    assert ask(tmp_path, "SELECT DISTINCT typeof(vector) FROM hidden") == [("FLOAT[]",)]
    assert ask(tmp_path, "SELECT norm(vector) FROM hidden WHERE starts_with(run, 'wide')") == [(13.0,)]


def test_runs_of_several_widths_have_a_typed_view_each(tmp_path: Path) -> None:
    run = build.make_run(tmp_path, "Tiny-3.2 (b)")
    build.put_shard(run, range(3), {build.MEAN: build.LAYERS}, salt=1)
    build.put_shard(run, range(2, 5), {build.MEAN: build.LAYERS}, salt=2)
    store = reader.open(tmp_path)
    assert views.names(store) == views.VIEWS, "with one width `hidden` itself is typed"
    wide = open_run(tmp_path, {"w": 3}, model="wide", layers=[(0, "e")], width=3, final_layer=0)
    shard = Shard(wide, {build.MEAN: [0]}, provenance={})
    build.add_samples(shard, ["a" * 24, "b" * 24])
    columns = {
        "sample_id": ["a" * 24, "b" * 24],
        "site": ["resid"] * 2,
        "layer": [0] * 2,
        "pooling": ["mean@prompt"] * 2,
    }
    shard.add("hidden", {**columns, "vector": np.float32([[3, 4, 12], [0, 0, 1]])})
    shard.publish()
    narrow, of_wide = views.names(store)[len(views.VIEWS) :]
    assert narrow == f"hidden_tiny_3_2_b_{run.hash[:8]}"
    assert of_wide == f"hidden_wide_{wide.hash[:8]}"
    assert ask(tmp_path, f"SELECT DISTINCT typeof(vector) FROM {narrow}") == [(f"FLOAT[{build.WIDTH}]",)]
    # What DuckDB's functions of arrays say; every one of them refuses a list.
    query = f"SELECT array_distance(a.vector, b.vector) FROM {of_wide} a, {of_wide} b WHERE a.sample_id < b.sample_id"
    assert ask(tmp_path, query) == [(pytest.approx((3**2 + 4**2 + 11**2) ** 0.5),)]
    with pytest.raises(QueryError, match="array_distance"):
        ask(tmp_path, query.replace(of_wide, "hidden"))
    assert sql.run_query(tmp_path, query).num_rows == 1
    # The same rows as those of the run in `hidden`, what is held twice counted once.
    for name, one in ((narrow, run), (of_wide, wide)):
        rows = "sample_id, condition, layer, pooling, vector::FLOAT[] AS vector"
        assert ask(tmp_path, f"SELECT {rows} FROM {name} ORDER BY ALL") == ask(
            tmp_path, f"SELECT {rows} FROM hidden WHERE run = '{one.id}' ORDER BY ALL"
        )
    assert {narrow, of_wide} < set(sql.run_query(tmp_path, "SHOW TABLES")["name"].to_pylist())
    with store.connect() as connection:
        assert connection.execute(f"SELECT count(*) FROM {of_wide}").fetchone() == (2,)
    with pytest.raises(QueryError, match=f"did you mean {of_wide}"):
        sql.run_query(tmp_path, f"FROM {of_wide[:-1]}")


def test_typed_views_of_runs_called_alike_are_two(tmp_path: Path) -> None:
    wide = open_run(tmp_path, {"w": 3}, model="wide", layers=[(0, "e")], width=3, final_layer=0)
    one, other = tmp_path / "run=a-b", tmp_path / "run=a_b"
    build.make_run(tmp_path).path.rename(one)
    wide.path.rename(other)
    assert views.names(reader.open(tmp_path))[len(views.VIEWS) :] == ("hidden_a_b", "hidden_a_b_")
    assert ask(tmp_path, "SELECT count(*) FROM hidden_a_b, hidden_a_b_") == [(0,)]


@pytest.mark.parametrize("kind", ["FLOAT[16]", "FLOAT[]"])
def test_macros(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    # Far from zero and long, so that sums in single precision would be wrong in the fifth digit.
    a, b = (rng.standard_normal((2, 16)) * 3 + 1000).astype(np.float32)
    query = (
        f"SELECT cosine(a, b), dot(a, b), norm(a), l2(a, b) FROM (SELECT CAST($a AS {kind}) a, CAST($b AS {kind}) b)"
    )
    ((cosine, dot, norm, distance),) = ask(tmp_path, query, {"a": a.tolist(), "b": b.tolist()})
    x, y = a.astype(float), b.astype(float)
    assert cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-12)
    assert dot == pytest.approx(x @ y, rel=1e-12)
    assert norm == pytest.approx(np.linalg.norm(x), rel=1e-12)
    assert distance == pytest.approx(np.linalg.norm(x - y), rel=1e-9)
    nulls = (
        f"SELECT cosine(a, b), dot(a, b), norm(a), l2(a, b) FROM (SELECT CAST(NULL AS {kind}) a, CAST($b AS {kind}) b)"
    )
    assert ask(tmp_path, nulls, {"b": b.tolist()}) == [(None, None, None, None)]
    minus = f"SELECT minus(CAST($a AS {kind}), CAST($b AS {kind}))"
    ((difference,),) = ask(tmp_path, minus, {"a": a.tolist(), "b": b.tolist()})
    np.testing.assert_array_equal(difference, x - y)
    with pytest.raises(QueryError, match="minus: states of 2 and 1 elements"):
        ask(tmp_path, "SELECT minus([1, 2], [3])", {})


def test_rows_of_several_runs_are_united_by_name(tmp_path: Path) -> None:
    one, two = build.make_run(tmp_path), build.make_run(tmp_path, weights="v")
    rows_of(one, frame(score=[1, 2], when=["x", "y"], tags=[["a"], ["b", "c"]]), data="a")
    rows_of(two, frame(score=["high", None], extra=[True, False]), data="b")
    rows_of(two, frame(score=[1.5, 2.5], tags=[None, ["d"]]), data="c")
    columns = "run, data, row, sample_id, split, score, when, tags, extra"
    first, second, *others = ask(
        tmp_path, f"SELECT {columns.replace('when', chr(34) + 'when' + chr(34))} FROM rows ORDER BY data, row"
    )
    assert first == (one.id, "a", 0, build.sample_id(0), None, "1", "x", ["a"], None)
    assert second[5:] == ("2", "y", ["b", "c"], None)
    assert [row[5:] for row in others] == [
        ("high", None, None, True),
        (None, None, None, False),
        ("1.5", None, None, None),
        ("2.5", None, ["d"], None),
    ]


@pytest.mark.parametrize(
    ("one", "two", "kind", "expected"),
    [
        ([1, 2], [0.5, None], "DOUBLE", [0.5, 1.0, 2.0]),
        ([1, 2], [True, False], "VARCHAR", ["1", "2", "false", "true"]),
        ([1, 2], ["x", "y"], "VARCHAR", ["1", "2", "x", "y"]),
        ([["a"], ["b"]], ["x", "y"], "VARCHAR", ["[a]", "[b]", "x", "y"]),
        ([1, 2], [3, 4], "BIGINT", [1, 2, 3, 4]),
        ([None, None], [3, 4], "VARCHAR", ["3", "4"]),
    ],
)
def test_a_column_of_two_types_has_one_in_the_view(
    tmp_path: Path, one: list[Any], two: list[Any], kind: str, expected: list[Any]
) -> None:
    run = build.make_run(tmp_path)
    rows_of(run, frame(value=one), data="one")
    rows_of(run, frame(value=two), data="two")
    assert ask(tmp_path, "SELECT DISTINCT typeof(value) FROM rows") == [(kind,)]
    assert ask(tmp_path, "SELECT value FROM rows WHERE value IS NOT NULL ORDER BY 1") == [(v,) for v in expected]


def test_users_columns_may_be_called_anything(tmp_path: Path) -> None:
    names = [
        "filename",
        "file_row_number",
        "c0",
        "Run",
        "a",
        "A",
        'we"ird',
        "it's",
        "sample_ID",
        "select",
        "é\n",
        "A_1",
    ]
    run = build.make_run(tmp_path)
    rows_of(run, frame(**{name: [f"{name} 0", f"{name} 1"] for name in names}), (f"{names[5]}:category",))
    with reader.open(tmp_path).connect() as connection:
        relation = connection.sql("SELECT * FROM rows ORDER BY row")
        shown = relation.columns[5:]
        assert len({name.lower() for name in relation.columns}) == len(relation.columns)
        assert shown == [
            "filename",
            "file_row_number",
            "c0",
            "Run_1",
            "a",
            "A_1",
            'we"ird',
            "it's",
            "sample_ID_1",
            "select",
            "é\n",
            "A_1_1",
        ]
        assert relation.fetchall()[1][5:] == tuple(f"{name} 1" for name in names)
    assert ask(tmp_path, "SELECT name, text FROM labels ORDER BY row") == [("A", "A 0"), ("A", "A 1")]


def test_newest_rows_count(tmp_path: Path) -> None:
    run = build.make_run(tmp_path)
    rows_of(run, frame(rating=[1.0, 2.0]), ("rating:number",))
    rows_of(run, frame(rating=[1.0, 9.0]), ("rating:number",))
    assert ask(tmp_path, "SELECT rating FROM rows ORDER BY row") == [(1.0,), (9.0,)]
    assert ask(tmp_path, "SELECT number FROM labels ORDER BY row") == [(1.0,), (9.0,)]


def test_labels_are_those_of_the_reader(tmp_path: Path) -> None:
    run = build.make_run(tmp_path)
    table = pl.DataFrame(
        {
            "row": range(4),
            "sample_id": [*(build.sample_id(k) for k in range(3)), None],
            "rating": [1.5, None, 3.0, 4.0],
            "year": [1990, 1991, None, 1993],
            "good": [True, False, None, True],
            "genres": [["a", "b\nc"], [], None, ["d"]],
            "code": [7, 8, 9, 10],
            "share": [0.1, 1e20, 2.0, 3.0],
            "note": ["", "it's", None, "x"],
        }
    )
    labels = (
        "rating:number",
        "year:number",
        "good:boolean",
        "genres:category",
        "code:category",
        "share:text",
        "note:text",
    )
    rows_of(run, table, labels)
    store = reader.open(tmp_path)
    expected = store.labels(run, "d").sort("name", "row")
    found = pl.from_arrow(sql.query(store, "SELECT * EXCLUDE (run) FROM labels ORDER BY name, row"))
    assert isinstance(found, pl.DataFrame)
    assert found.filter(pl.col("name") != "share").equals(expected.filter(pl.col("name") != "share"))
    # The same numbers; how many zeros are written out is each engine's own way.
    assert found.filter(name="share")["text"].cast(float).equals(expected.filter(name="share")["text"].cast(float))


def test_newest_result_of_everything_asked_counts(tmp_path: Path) -> None:
    run = build.make_run(tmp_path)
    _put_result(tmp_path, run, 1.0, "old")
    _put_result(tmp_path, run, 2.0, "new")
    _put_result(tmp_path, run, 3.0, "b", metric="r2", spec="b")
    assert ask(tmp_path, 'SELECT value, "group" FROM results ORDER BY value') == [(2.0, None), (3.0, None)]
    assert ask(tmp_path, "SELECT text, value FROM sample_scores ORDER BY text") == [("b", 3.0), ("new", 2.0)]


def test_of_two_analyses_that_say_the_same_the_newer_counts(tmp_path: Path) -> None:
    def told() -> list[Any]:
        return ask(tmp_path, "SELECT layer, value FROM results ORDER BY ALL")

    run = build.make_run(tmp_path)
    _put_result(tmp_path, run, 1.0, layers=[0, 1, 2])
    # Other layers were asked for: what it says counts, what it does not say stays.
    _put_result(tmp_path, run, 2.0, layers=[2])
    assert told() == [(0, 1.0), (1, 1.0), (2, 2.0)]
    assert ask(tmp_path, "SELECT layer, value FROM sample_scores ORDER BY ALL") == told()
    frame = stored_numbers.newest(tmp_path).sort("layer")
    assert list(zip(frame["layer"], frame["value"], strict=True)) == told()
    # The same was asked in another way: all of it is replaced.
    _put_result(tmp_path, run, 3.0, layers=[0, 1, 2], folds=3)
    assert told() == [(0, 3.0), (1, 3.0), (2, 3.0)]
    # What is asked for again counts again.
    first = results.find(tmp_path, "probe", {"spec": "a", "layers": [0, 1, 2]}, ["i"])
    assert first is not None
    results.renew(tmp_path, first)
    assert told() == [(0, 1.0), (1, 1.0), (2, 1.0)]
    assert list(verify.verify(tmp_path, deep=True)) == []
    before = (first / "manifest.json").read_bytes()
    results.renew(tmp_path, first)
    assert (first / "manifest.json").read_bytes() == before


def test_sums_of_integers_are_integers(tmp_path: Path) -> None:
    store = reader.open(tmp_path)
    table = sql.query(store, "SELECT sum(range) AS a, CAST(2 AS HUGEINT) ** 0 AS b FROM range(4)")
    assert table.schema.field("a").type == pa.int64()
    assert table["a"].to_pylist() == [6]
    large = sql.query(store, "SELECT CAST('170141183460469231731687303715884105727' AS HUGEINT) // 1000 AS a")
    assert large["a"].to_pylist()[0] == 170141183460469231731687303715884105


def test_errors_of_trusted_queries_are_one_line(tmp_path: Path) -> None:
    store = reader.open(tmp_path)
    with pytest.raises(QueryError, match=r'^Referenced column "lyer" not found .*"layer".*$'):
        sql.query(store, "SELECT lyer FROM lens")
    with pytest.raises(QueryError, match="syntax error"):
        sql.query(store, "SELEC 1")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    run = build.make_run(tmp_path)
    name = build.put_shard(run, range(3))
    path = run.path / "condition=clean" / f"shard={name}" / "hidden.parquet"
    content = path.read_bytes()
    path.write_bytes(b"x" * len(content))
    with pytest.raises(QueryError, match=r"hidden\.parquet.*layercache verify"):
        ask(tmp_path, "SELECT * FROM hidden")
    with pytest.raises(QueryError, match=r"hidden\.parquet.*layercache verify"):
        sql.run_query(tmp_path, "SELECT * FROM hidden")
    assert ask(tmp_path, "SELECT count(*) FROM samples") == [(3,)]
    path.write_bytes(content[:-1])
    with pytest.raises(StoreError, match=r"hidden\.parquet is damaged"):
        ask(tmp_path, "SELECT * FROM hidden")


def test_only_named_views_are_made(tmp_path: Path) -> None:
    run = build.make_run(tmp_path)
    name = build.put_shard(run, range(3))
    (run.path / "condition=clean" / f"shard={name}" / "manifest.json").write_text("{")
    assert ask(tmp_path, "SELECT count(*) FROM runs") == [(1,)]
    with pytest.raises(StoreError):
        ask(tmp_path, "SELECT count(*) FROM shards")


def test_half_written_and_foreign_files_are_not_read(tmp_path: Path) -> None:
    run = build.make_run(tmp_path)
    build.put_shard(run, range(3))
    half = run.path / "condition=clean" / "shard=s0000000000000000"
    half.mkdir()
    (half / "hidden.parquet").write_bytes(b"PAR1 half")
    (run.path / "rows").mkdir()
    (run.path / "rows" / "stray.parquet").write_bytes(b"PAR1 half")
    (tmp_path / "results" / "probe-00000000").mkdir(parents=True)
    (tmp_path / "results" / "probe-00000000" / "results.parquet").write_bytes(b"PAR1 half")
    for name in views.VIEWS:
        ask(tmp_path, f"SELECT * FROM {name}")
    assert ask(tmp_path, "SELECT count(*) FROM hidden") == [(3 * len(build.LAYERS),)]


@pytest.mark.torture
def test_a_thousand_shards_are_one_scan(tmp_path: Path) -> None:
    runs = [build.make_run(tmp_path), build.make_run(tmp_path, weights="v")]
    for number in range(1000):
        build.put_shard(runs[number % 2], [2 * number, 2 * number + 1])
    assert ask(tmp_path, "SELECT count(*) FROM hidden WHERE layer = 2") == [(2000,)]
    start = time.perf_counter()
    query = "SELECT run, count(*) AS n FROM hidden JOIN samples USING (run, condition, sample_id) GROUP BY run"
    table = sql.run_query(tmp_path, f"{query} ORDER BY run", timeout=300)
    assert table.to_pylist() == [{"run": run.id, "n": 4000} for run in sorted(runs, key=lambda run: run.id)]
    # About two seconds on two idle cores; a SELECT a shard takes minutes.
    assert time.perf_counter() - start < 30
