"""Other tools read a store with nothing of layercache."""

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from store_builder import LAST, LAYERS, LENS, MEAN, WIDTH, make_run, put_shard, sample_id, state

from layercache.recipe import Label
from layercache.store.layout import Run
from layercache.store.writer import put_rows

COUNT = 30
COLUMNS = ["sample_id", "site", "layer", "pooling", "position", "vector", "n_excluded"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = make_run(tmp_path_factory.mktemp("engines") / "store")
    outputs = {MEAN: LAYERS, LAST: [0], LENS: LAYERS, "tokens": None}
    put_shard(run, range(10), outputs)
    put_shard(run, range(10, COUNT), outputs)
    return run


def pattern(run: Run, table: str) -> str:
    return f"{run.store}/run=*/condition=*/shard=*/{table}.parquet"


def check(ids: list[str], vectors: np.ndarray) -> None:
    assert len(ids) == COUNT
    expected = {sample_id(n): state(sample_id(n), "resid", "mean@prompt", 2) for n in range(COUNT)}
    assert vectors.shape == (COUNT, WIDTH)
    for name, vector in zip(ids, vectors, strict=True):
        np.testing.assert_array_equal(vector.astype(np.float32), expected[name])


def test_duckdb(run: Run) -> None:
    query = """SELECT sample_id, vector, run, condition, typeof(shard) FROM read_parquet(?, hive_partitioning = true)
        WHERE layer = 2 AND pooling = 'mean@prompt'"""
    with duckdb.connect() as connection:
        rows = connection.execute(query, [pattern(run, "hidden")]).fetchall()
        kind = connection.execute(f"SELECT DISTINCT typeof(vector) FROM '{pattern(run, 'hidden')}'").fetchall()
        (length,) = connection.execute(
            f"SELECT sum(array_inner_product(vector::FLOAT[{WIDTH}], vector::FLOAT[{WIDTH}])) FROM '{pattern(run, 'hidden')}'"
        ).fetchone()
        layers = connection.execute(
            f"SELECT layer, avg(entropy), any_value(top_tokens) FROM '{pattern(run, 'lens')}' GROUP BY layer ORDER BY layer"
        ).fetchall()
    assert {row[2:] for row in rows} == {(run.id, "clean", "VARCHAR")}
    check([row[0] for row in rows], np.array([row[1] for row in rows], dtype=np.float32))
    assert kind == [("FLOAT[]",)] or kind == [(f"FLOAT[{WIDTH}]",)]
    assert length > 0
    assert [row[0] for row in layers] == LAYERS
    assert layers[0][2] == ["five", "six"]


def test_polars(run: Run) -> None:
    frame = (
        pl.scan_parquet(pattern(run, "hidden"), hive_partitioning=True)
        .filter((pl.col("layer") == 2) & (pl.col("pooling") == "mean@prompt"))
        .collect()
    )
    assert frame.schema["vector"] == pl.Array(pl.Float32, WIDTH)
    assert set(frame["run"]) == {run.id}
    check(frame["sample_id"].to_list(), frame["vector"].to_numpy())


def test_pyarrow_dataset(run: Run) -> None:
    files = sorted(str(path) for path in run.store.glob("run=*/condition=*/shard=*/hidden.parquet"))
    where = (ds.field("layer") == 2) & (ds.field("pooling") == "mean@prompt")
    table = ds.dataset(files).to_table(filter=where)
    assert table.column_names == COLUMNS
    vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(-1, WIDTH)
    check(table["sample_id"].to_pylist(), vectors)


def test_pandas(run: Run) -> None:
    files = sorted(run.store.glob("run=*/condition=*/shard=*/hidden.parquet"))
    frame = pd.concat([pd.read_parquet(path, engine="pyarrow", partitioning=None) for path in files])
    frame = frame[(frame["layer"] == 2) & (frame["pooling"] == "mean@prompt")]
    check(frame["sample_id"].tolist(), np.stack(frame["vector"].to_list()))


def test_rows_and_labels(run: Run) -> None:
    ids = [sample_id(n) for n in range(COUNT)]
    frame = pl.DataFrame({"row": range(COUNT), "sample_id": ids, "rating": [n / 4 for n in range(COUNT)]})
    path = str(put_rows(run, frame, data="films", source="made", labels=[Label("rating", "number")]))
    with duckdb.connect() as connection:
        by_duckdb = connection.execute("SELECT rating FROM read_parquet(?) ORDER BY row", [path]).fetchall()
    expected = frame["rating"].to_list()
    assert [value for (value,) in by_duckdb] == expected
    assert pl.read_parquet(path)["rating"].to_list() == expected
    assert pq.read_table(path, partitioning=None)["rating"].to_pylist() == expected
    assert pd.read_parquet(path, engine="pyarrow", partitioning=None)["rating"].tolist() == expected


@pytest.mark.parametrize("table", ["samples", "tokens", "hidden", "lens"])
def test_every_table_reads_the_same_in_three_engines(run: Run, table: str) -> None:
    for path in run.store.glob(f"run=*/condition=*/shard=*/{table}.parquet"):
        by_arrow = pq.read_table(path, partitioning=None).to_pylist()
        by_polars = pl.read_parquet(path, hive_partitioning=False).to_dicts()
        with duckdb.connect() as connection:
            query = f"SELECT * FROM read_parquet('{path}', hive_partitioning = false)"
            by_duckdb = connection.sql(query).to_arrow_table().to_pylist()
        assert by_arrow == _plain(by_duckdb) == _plain(by_polars)


def _plain(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{name: list(value) if isinstance(value, tuple) else value for name, value in row.items()} for row in rows]
