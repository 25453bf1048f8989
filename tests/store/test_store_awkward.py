"""A store under a strange path, in tiny pieces, where nothing may be written, reads like any other."""

from pathlib import Path

import pyarrow as pa
import pytest
from crash_points import failing_at
from store_builder import LAST, LAYERS, LENS, MEAN, content, make_run, put_shard

from layercache import listing
from layercache.errors import StoreError
from layercache.store import compact, encode, numbers, reader, results, scores
from layercache.store.verify import verify

OUTPUTS = {MEAN: LAYERS, LAST: [0], LENS: [0, 1], "tokens": None}


def fill(store: Path) -> None:
    run = make_run(store)
    for start in (0, 4):
        put_shard(run, range(start, start + 6), OUTPUTS, salt=start)


def test_a_strange_path_and_tiny_row_groups_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "plain")
    monkeypatch.setattr(encode, "ROW_GROUP_BYTES", 100)
    strange = tmp_path / """it's a "store" [1] {x} é%20*?"""
    fill(strange)
    assert content(strange) == content(tmp_path / "plain")
    assert verify(strange, deep=True) == []
    opened = reader.open(strange)
    compact.compact(opened, opened.runs()[0], "clean")
    assert content(strange) == content(tmp_path / "plain")


def test_reading_writes_nothing(tmp_path: Path) -> None:
    fill(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with failing_at(0, dead=True):
        found = content(tmp_path)
        assert len(listing.runs(reader.open(tmp_path))) == 1
        assert verify(tmp_path, deep=True) == []
    assert found == content(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_results_under_a_strange_path_and_damaged_ones(tmp_path: Path) -> None:
    store = tmp_path / "[1] *{x}?"
    run = make_run(store)
    row = {"run": run.id, "data": "d", "analysis": "probe", "metric": "accuracy"}
    score = pa.Table.from_pylist([row | {"row": 0, "sample_id": "a", "value": 1.0}])
    path = results.save(store, "probe", {}, [], results.Outcome(pa.Table.from_pylist([row | {"value": 0.5}]), score))
    assert path is not None
    assert numbers.newest(store)["value"].to_list() == [0.5]
    assert scores.newest(store, "probe", "accuracy")["value"].to_list() == [1.0]
    assert scores.of(store, {"label": None})[0]["value"].to_list() == [1.0]
    for name in ("results", "sample_scores"):
        file = path / f"{name}.parquet"
        file.write_bytes(bytes(file.stat().st_size))
    for read in (numbers.newest, lambda at: scores.newest(at, "probe", "accuracy"), lambda at: scores.of(at, {})):
        with pytest.raises(StoreError, match=r"\.parquet cannot be read \(.*delete .*/probe-\w+, it can be made again"):
            read(store)
