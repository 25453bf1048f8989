"""Reading from Python and in a notebook: states beside labels, lazy scans, what a cell shows."""

from html.parser import HTMLParser
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import store_builder as build
from query_store import CERTIFICATES, GENRES, GOOD, IDS, LAYERS, RATINGS, Held
from query_store import build as build_held

from layercache.errors import StoreError
from layercache.recipe import Label
from layercache.store import reader, scan
from layercache.store.schema import TABLES, Column
from layercache.store.writer import Shard, open_run, put_rows


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    return build_held(tmp_path_factory.mktemp("notebook") / "store")


def test_states_beside_a_number(held: Held) -> None:
    found = reader.open(held.path).matrix("toy", 2, label="rating")
    rows = np.flatnonzero(~np.isnan(RATINGS))
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.labels, RATINGS[rows])
    np.testing.assert_array_equal(found.values, held.states[2][rows])
    assert found.sample_ids.tolist() == [IDS[row] for row in rows]
    assert (found.values.dtype, found.labels.dtype) == (np.float32, np.float64)
    assert found.values.flags.c_contiguous


def test_states_beside_a_boolean_a_category_and_a_list(held: Held) -> None:
    store = reader.open(held.path)
    good = store.matrix("toy", 0, "mean", label="good", data="films")
    assert (good.labels.dtype, good.labels.tolist()) == (np.bool_, GOOD)
    assert store.matrix("toy", 0, label="certificate").labels.tolist() == [one for one in CERTIFICATES if one]
    assert store.matrix("toy", 0, label="genres").labels.tolist() == ["\n".join(one) for one in GENRES if one]


def test_labels_belong_to_rows_and_states_to_samples(tmp_path: Path) -> None:
    run = build.make_run(tmp_path)
    build.put_shard(run, range(3))
    ids = [build.sample_id(number) for number in (2, 0, 2, 9)]
    frame = pl.DataFrame({"row": [0, 1, 2, 3], "sample_id": ids, "y": [1.0, 2.0, 3.0, 4.0]})
    for data in ("a", "b"):
        put_rows(run, frame, data=data, source="made", labels=[Label("y", "number")])
    store = reader.open(tmp_path)
    found = store.matrix(run, 1, label="y", data="a")
    assert found.sample_ids.tolist() == ids[:3]  # sample 9 has no state
    assert found.labels.tolist() == [1.0, 2.0, 3.0]
    np.testing.assert_array_equal(found.values[0], found.values[2])
    np.testing.assert_array_equal(found.values[1], build.state(ids[1], "resid", "mean@prompt", 1))
    with pytest.raises(StoreError, match="label 'y' is in a, b: choose one with data="):
        store.matrix(run, 1, label="y")
    with pytest.raises(StoreError, match="has no label 'z': its data sets have a: y, b: y"):
        store.matrix(run, 1, label="z")


def test_a_scan_is_the_view_of_that_name(held: Held) -> None:
    store = reader.open(held.path)
    for table in TABLES:
        frame = store.scan(table).collect()
        view = pl.from_arrow(store.sql(f"SELECT * FROM {table}"))
        assert isinstance(view, pl.DataFrame)
        assert frame.columns == view.columns
        assert (
            frame.sort("sample_id", *[c for c in ("layer",) if c in frame.columns]).to_dicts()
            == view.sort("sample_id", *[c for c in ("layer",) if c in view.columns]).to_dicts()
        )
    with pytest.raises(StoreError, match="no table 'rows' to scan"):
        store.scan("rows")


def test_a_scan_counts_once_what_two_shards_hold(tmp_path: Path) -> None:
    run = build.make_run(tmp_path)
    build.put_shard(run, range(6), {build.MEAN: [0, 1], "tokens": None}, salt=1)
    build.put_shard(run, range(4, 9), {build.MEAN: [1, 2], build.LAST: [0]}, salt=2)
    build.put_shard(run, range(2), condition="other")
    store = reader.open(tmp_path)
    for table in ("hidden", "tokens", "samples"):
        frame = store.scan(table).collect().to_arrow()
        query = f"SELECT * FROM {table}"
        with duckdb.connect() as connection:
            scanned = connection.from_arrow(frame).order("ALL").fetchall()
        with store.connect() as connection:
            viewed = connection.sql(f"{query} ORDER BY ALL").fetchall()
        assert scanned == viewed


def test_a_scan_reads_runs_of_two_widths(tmp_path: Path) -> None:
    narrow = build.make_run(tmp_path)
    build.put_shard(narrow, range(2))
    wide = open_run(tmp_path, {"w": 3}, model="wide", layers=[(0, "e")], width=3, final_layer=0)
    shard = Shard(wide, {build.MEAN: [0]}, provenance={})
    build.add_samples(shard, ["a" * 24])
    columns = {"sample_id": ["a" * 24], "site": ["resid"], "layer": [0], "pooling": ["mean@prompt"]}
    shard.add("hidden", {**columns, "vector": np.float32([[3, 4, 12]])})
    shard.publish()
    store = reader.open(tmp_path)
    assert store.scan("hidden").collect().schema["vector"] == pl.List(pl.Float32)
    one = store.scan("hidden", "wide").collect()
    assert one.schema["vector"] == pl.Array(pl.Float32, 3)
    assert one["vector"].to_list() == [[3, 4, 12]]
    # The functions of DuckDB for arrays want one width, which a cast gives of one run.
    query = "SELECT array_distance(vector::FLOAT[3], [0, 0, 0]::FLOAT[3]) FROM hidden WHERE starts_with(run, 'wide')"
    assert store.sql(query).column(0).to_pylist() == [13.0]


def test_a_scan_of_one_layer_opens_one_run_and_skips_other_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        build.put_shard(build.make_run(tmp_path, name, n=name), range(20))
    opened: list[str] = []
    original = pl.scan_parquet
    monkeypatch.setattr(
        scan.pl, "scan_parquet", lambda files, **settings: opened.extend(map(str, files)) or original(files, **settings)
    )
    lazy = reader.open(tmp_path).scan("hidden", "two").filter(pl.col("layer") == 2)
    assert len(opened) == 1
    assert "run=two" in opened[0]
    # The filter is part of the reading of the file, whose row groups hold one layer each.
    assert 'SELECTION: col("layer") == 2' in lazy.explain()
    groups = pq.ParquetFile(opened[0]).metadata
    assert groups.num_row_groups == len(build.LAYERS)
    assert lazy.collect()["layer"].unique().to_list() == [2]


def test_a_scan_fills_columns_that_came_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.put_shard(build.make_run(tmp_path), range(2))
    table = TABLES["hidden"]
    later = Column("n_more", pa.int32(), True, "a nullable column of a newer version")
    monkeypatch.setitem(TABLES, "hidden", table._replace(columns=(*table.columns, later)))
    assert reader.open(tmp_path).scan("hidden").collect()["n_more"].to_list() == [None] * 2 * len(build.LAYERS)


class Tags(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_a_store_in_a_notebook(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\x1b[31m"
    path = tmp_path / "<img src=x>"
    run = build.make_run(path, evil)
    build.put_shard(run, range(2))
    page = Tags()
    page.feed(reader.open(path)._repr_html_())
    assert page.tags <= {"p", "code", "table", "thead", "tbody", "tr", "th", "td"}
    assert "<script>alert(1)</script>\\x1b[31m" in page.text
    assert run.id in page.text


def test_differences_of_states(held: Held) -> None:
    query = """
        SELECT a.layer, minus(b.vector, a.vector) AS step, minus(a.vector, NULL) AS none FROM hidden a
        JOIN hidden b ON b.sample_id = a.sample_id AND b.layer = a.layer + 1 WHERE a.sample_id = ? ORDER BY a.layer
    """
    table = reader.open(held.path).sql(query, [IDS[1]])
    states = held.states[:, 1].astype(float)
    np.testing.assert_array_equal(table["step"].to_pylist(), np.diff(states, axis=0))
    assert table["none"].to_pylist() == [None] * (LAYERS - 1)
