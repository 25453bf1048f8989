"""Compaction: fewer shards, the same rows, at any moment."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_builder import (
    LAST,
    LAYERS,
    LENS,
    MEAN,
    Outputs,
    add_hidden,
    add_samples,
    content,
    fix_manifest,
    make_run,
    put_shard,
    sample_id,
)

from layercache.errors import StoreError
from layercache.store import cleanup, compact, coverage, encode, reader
from layercache.store.layout import Run
from layercache.store.verify import verify
from layercache.store.writer import Shard

FULL: Outputs = {MEAN: LAYERS, LAST: [0], LENS: [0, 1], "tokens": None}


def compacted(store: Path, size: int = compact.SHARD_BYTES) -> compact.Compacted:
    opened = reader.open(store)
    (run,) = opened.runs()
    return compact.compact(opened, run, "clean", size=size)


def names(store: Path) -> list[str]:
    opened = reader.open(store)
    return [shard.name for run in opened.runs() for shard in opened.shards(run)]


def test_small_shards_become_one_and_rows_stay_as_they_are(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    old = sorted(put_shard(run, range(start, start + 3), FULL, salt=start) for start in (0, 3, 6, 9))
    before = content(tmp_path)
    done = compacted(tmp_path)
    assert (done.shards, done.replaced, len(done.made)) == (4, 4, 1)
    assert names(tmp_path) == done.made
    assert content(tmp_path) == before
    assert verify(tmp_path, deep=True) == []
    (shard,) = reader.open(tmp_path).shards(run)
    assert shard.replaces == old
    assert compacted(tmp_path).made == []
    assert len(list(run.path.glob("condition=clean/shard=*"))) == 5, "the old ones stay until gc"


def test_what_is_held_twice_is_held_once_afterwards(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    put_shard(run, range(4), {MEAN: [0, 1, 2], "tokens": None}, salt=1)
    put_shard(run, range(2, 6), {MEAN: [1, 2, 3], LAST: [0]}, salt=2)
    put_shard(run, range(3, 9), {MEAN: [0, 3], LENS: [0], "tokens": None}, salt=3)
    before = content(tmp_path)
    compacted(tmp_path)
    assert content(tmp_path) == before
    opened = reader.open(tmp_path)
    assert opened.overlaps(run) == []
    assert verify(tmp_path, deep=True) == []
    # Samples that hold different outputs cannot share a shard: 0-1, 2, 3-5 and 6-8.
    assert sorted(shard.n_samples for shard in opened.shards(run)) == [1, 2, 3, 3]
    rows = Counter(
        row["sample_id"]
        for shard in opened.shards(run)
        for row in pq.read_table(shard.path / "samples.parquet", columns=["sample_id"], partitioning=None).to_pylist()
    )
    assert rows == {sample_id(number): 1 for number in range(9)}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sets(st.integers(0, 7), min_size=1, max_size=6),
            st.dictionaries(
                st.sampled_from([MEAN, LAST, LENS]),
                st.sets(st.sampled_from(LAYERS), min_size=1).map(sorted),
                min_size=1,
            ),
            st.booleans(),
        ),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from([1, 9_000, 40_000, compact.SHARD_BYTES]),
)
def test_any_shards_read_the_same_after_compaction(
    tmp_path: Path, plans: list[tuple[set[int], dict[str, list[int]], bool]], size: int
) -> None:
    store = tmp_path / "any"
    shutil.rmtree(store, ignore_errors=True)
    run = make_run(store)
    for salt, (numbers, layered, tokens) in enumerate(plans):
        put_shard(run, sorted(numbers), {**layered, **({"tokens": None} if tokens else {})}, salt=salt)
    before = content(store)
    compacted(store, size)
    assert content(store) == before
    assert reader.open(store).overlaps(run) == []
    cleanup.collect(store, older_than=0)
    assert content(store) == before
    assert verify(store, deep=True) == []
    assert {path.name.removeprefix("shard=") for path in run.path.glob("condition=*/shard=*")} == set(names(store))


def test_new_shards_are_of_about_the_size_asked_for(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for start in range(0, 60, 5):
        put_shard(run, range(start, start + 5), salt=1)
    total = sum(shard.path.joinpath("hidden.parquet").stat().st_size for shard in reader.open(tmp_path).shards(run))
    before = content(tmp_path)
    done = compacted(tmp_path, total // 3)
    assert 2 <= len(names(tmp_path)) <= 8
    assert done.replaced == 12
    assert content(tmp_path) == before
    assert verify(tmp_path, deep=True) == []


def test_row_groups_are_as_the_format_demands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "ROW_GROUP_BYTES", 400)
    run = make_run(tmp_path)
    for start in (0, 20):
        put_shard(run, range(start, start + 20), {MEAN: LAYERS, LAST: [0]})
    compacted(tmp_path)
    (shard,) = reader.open(tmp_path).shards(run)
    file = pq.ParquetFile(shard.path / "hidden.parquet")
    keys = file.read(columns=["pooling", "layer", "sample_id"]).to_pylist()
    assert [tuple(key.values()) for key in keys] == sorted(tuple(key.values()) for key in keys)
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=["pooling", "layer"])
        assert len(table) <= 400 // 32
        assert len(table.group_by(["pooling", "layer"]).aggregate([])) == 1


def put(run: Run, numbers: range, provenance: dict[str, object], absent: bool = False) -> str:
    shard = Shard(run, {MEAN: [0]}, provenance=provenance)
    ids = [sample_id(number) for number in numbers]
    add_samples(shard, ids, {ids[0]: [(MEAN, "empty span")]} if absent else {})
    add_hidden(shard, ids[1:] if absent else ids, MEAN, [0])
    name = shard.publish()
    assert name is not None
    return name


def test_where_the_rows_came_from_and_what_is_absent_are_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    first = put(run, range(3), {"host": "a", "dtype": "float32", "created": "2026-01-01"}, absent=True)
    second = put(run, range(3, 6), {"host": "b", "dtype": "float32", "created": "2026-01-02"})
    third = put(run, range(6, 9), {"host": "b", "dtype": "float32", "created": "2026-01-03"})
    compacted(tmp_path)
    fourth = put(run, range(9, 12), {"host": "b", "dtype": "float32", "created": "2026-01-04"})
    compacted(tmp_path)
    (shard,) = reader.open(tmp_path).shards(run)
    said = shard.provenance
    assert said["dtype"] == "float32"
    assert "host" not in said
    kinds = {one["host"]: one for one in said["compacted"]}
    assert kinds["a"] == {"shards": [first], "created": ["2026-01-01"] * 2, "host": "a", "dtype": "float32"}
    assert sorted(kinds["b"]["shards"]) == sorted([second, third, fourth])
    assert kinds["b"]["created"] == ["2026-01-02", "2026-01-04"]
    absent = reader.open(tmp_path).samples(run)["absent"].to_list()
    assert absent[0] == [{"output": MEAN, "reason": "empty span"}]
    assert verify(tmp_path, deep=True) == []


def test_a_damaged_shard_is_not_copied(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    put_shard(run, range(3))
    name = put_shard(run, range(3, 6))
    file = run.path / "condition=clean" / f"shard={name}" / "hidden.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match=r"its sha256 is not the manifest's: run `layercache verify --deep --repair`"):
        compacted(tmp_path)
    assert len(names(tmp_path)) == 2


def test_what_this_version_does_not_know_is_not_dropped(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    put_shard(run, range(3))
    put_shard(run, range(3, 6))
    for path in run.path.glob("condition=clean/shard=*"):
        file = path / "hidden.parquet"
        table = pq.read_table(file, partitioning=None)
        pq.write_table(table.append_column("norm", pa.array(np.ones(len(table)))), file)
        fix_manifest(path)
    assert verify(tmp_path, deep=True) == []
    with pytest.raises(StoreError, match=r"holds hidden\.parquet norm, unknown to this version"):
        compacted(tmp_path)


def test_a_reader_that_was_open_before_goes_on(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    put_shard(run, range(3), salt=1)
    put_shard(run, range(3, 6), salt=2)
    opened = reader.open(tmp_path)
    before = opened.matrix(run, 1)
    compacted(tmp_path)
    np.testing.assert_array_equal(opened.matrix(run, 1).values, before.values)
    cleanup.collect(tmp_path, older_than=0)
    np.testing.assert_array_equal(opened.matrix(run, 1).values, before.values)
    assert verify(tmp_path, deep=True) == []


READS: dict[str, Callable[[reader.Store], float]] = {
    "matrix": lambda store: float(store.matrix("tiny", 1).values.sum()),
    "scan": lambda store: float(store.scan("hidden").select(pl.col("vector").arr.sum().sum()).collect().item()),
    "sql": lambda store: float(store.sql("SELECT sum(list_sum(vector::FLOAT[])) AS x FROM hidden").to_pylist()[0]["x"]),
    "samples in sql": lambda store: float(store.sql("SELECT count(*) AS n FROM samples").to_pylist()[0]["n"]),
    "held": lambda store: float(len(store.held("tiny").holders)),
}


@pytest.mark.parametrize("name", READS)
def test_shards_compacted_while_they_are_read_count_once(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    put_shard(run, range(6), {MEAN: [0, 1]}, salt=1)
    put_shard(run, range(3, 9), {MEAN: [1, 2]}, salt=1)
    expected = READS[name](reader.open(tmp_path))
    original = reader.Store.shards
    waiting = [True]

    def shards(self: reader.Store, *asked: Any) -> list[Any]:
        found = original(self, *asked)
        if waiting and found:
            waiting.clear()
            compacted(tmp_path)
        return found

    monkeypatch.setattr(reader.Store, "shards", shards)
    assert READS[name](reader.open(tmp_path)) == pytest.approx(expected, rel=1e-5)
    assert not waiting
    assert len(names(tmp_path)) == 3


def test_what_is_published_while_garbage_is_looked_for_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    for start in (0, 3):
        put_shard(run, range(start, start + 3))
    compacted(tmp_path)
    original = coverage.listed

    def listed(folder: Path, opening: str = "") -> list[str]:
        found = original(folder, opening)
        put_shard(run, range(6, 9))
        return found

    monkeypatch.setattr(coverage, "listed", listed)
    gone = coverage.replaced(reader.open(tmp_path), run, "clean")
    assert [(one.lost, one.by is not None) for one in gone] == [(0, True)] * 2
    assert len(reader.open(tmp_path).shards(run)) == 2
