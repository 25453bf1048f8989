"""Merging: stores of several machines become one, nothing is lost, nothing counts twice."""

import json
import shutil
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from store_builder import LAST, LAYERS, MEAN, content, make_head, make_run, put_shard, sample_id

from layercache.errors import StoreError
from layercache.recipe import Label
from layercache.store import cleanup, compact, head, reader, recipes, results
from layercache.store.layout import Run
from layercache.store.merge import merge
from layercache.store.rows import put_rows
from layercache.store.verify import verify


def put_films(run: Run, ratings: list[float]) -> None:
    frame = pl.DataFrame(
        {"row": range(len(ratings)), "sample_id": [sample_id(n) for n in range(len(ratings))], "rating": ratings}
    )
    put_rows(run, frame, data="films", source="films.csv", labels=[Label("rating", "number")])


def put_result(store: Path, run: Run, value: float) -> None:
    table = pa.table({"run": [run.id], "data": ["d"], "analysis": ["probe"], "metric": ["r2"], "value": [value]})
    results.save(store, "probe", {"folds": 5}, reader.open(store).input_names(run), results.Outcome(table))


def files(store: Path) -> dict[str, bytes]:
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and ".tmp" not in path.parts
    }


@pytest.fixture
def machines(tmp_path: Path) -> tuple[Path, Path]:
    """Two stores of one model under two names: samples 0-5 and 4-9, and a run that only the second has."""
    a, b = make_run(tmp_path / "a", "org/tiny"), make_run(tmp_path / "b", "/models/mine")
    put_shard(a, range(3), {MEAN: LAYERS, "tokens": None}, salt=1)
    put_shard(a, range(3, 6), {MEAN: LAYERS, "tokens": None}, salt=1)
    put_shard(b, range(4, 10), {MEAN: LAYERS, LAST: [0]}, salt=2)
    put_shard(b, range(4, 6), {MEAN: [0]}, condition="knockout-question", salt=2)
    put_shard(make_run(tmp_path / "b", "org/other", weights="v"), range(4))
    put_films(a, [1.0, 2.0])
    put_films(b, [1.0, 2.0])
    put_films(b, [1.0, 3.0])
    for one in (a, b):
        head.write(one, make_head())
        recipes.save(one.store, {"name": "movies", "models": [one.model]})
        put_result(one.store, one, 0.5)
    return a.store, b.store


def test_runs_of_equal_hash_fuse_and_overlaps_count_once(tmp_path: Path, machines: tuple[Path, Path]) -> None:
    target = tmp_path / "all"
    done = [merge(store, target) for store in machines]
    assert [one.runs for one in done] == [1, 1]
    assert [one.shards for one in done] == [2, 3]
    assert verify(target, deep=True) == []
    opened = reader.open(target)
    run = opened.run("org/tiny")
    assert opened.matrix(run, 1).sample_ids.tolist() == [sample_id(number) for number in range(10)]
    assert [one.outputs for one in opened.overlaps(run)] == [{"samples": None, MEAN: LAYERS}]
    assert opened.conditions(run) == ["clean", "knockout-question"]
    assert opened.labels(run, "films")["number"].to_list() == [1.0, 3.0]
    assert head.read(run).texts == make_head().texts
    assert len(opened.runs()) == 2
    # The second result names a run that is called otherwise here.
    assert [info.inputs[0].split("/")[0] for info in results.listing(target)] == [run.id]
    assert any("left out: its run is called otherwise here" in note for note in done[1].notes)
    said = "both stores hold rows of data set films, and not the same: films-000001-"
    assert any(note.startswith(said) and "no forward pass" in note for note in done[1].notes)


def test_a_second_merge_changes_nothing(tmp_path: Path, machines: tuple[Path, Path]) -> None:
    target = tmp_path / "all"
    for store in machines:
        merge(store, target)
    before = files(target)
    for store in machines:
        again = merge(store, target)
        assert (again.runs, again.shards, again.files, again.bytes) == (0, 0, 0, 0)
    assert files(target) == before
    assert merge(target, tmp_path / "copy").shards == 5
    assert content(tmp_path / "copy") == content(target)


def test_the_order_of_merging_changes_no_key(tmp_path: Path, machines: tuple[Path, Path]) -> None:
    for name, order in (("ab", machines), ("ba", machines[::-1])):
        for store in order:
            merge(store, tmp_path / name)
    one, other = (reader.open(tmp_path / name) for name in ("ab", "ba"))
    for run in one.runs():
        (same,) = (r for r in other.runs() if r.hash == run.hash)
        assert one.samples(run).equals(other.samples(same))
        assert one.matrix(run, 0).values.tobytes() == other.matrix(same, 0).values.tobytes()
    assert verify(tmp_path / "ba", deep=True) == []


def test_of_two_shards_of_one_name_the_one_that_is_there_stays(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    assert put_shard(a, range(3), salt=1) == put_shard(b, range(3), salt=2)
    before = content(tmp_path / "a")
    assert merge(tmp_path / "b", tmp_path / "a").there == 1
    assert content(tmp_path / "a") == before


def test_what_was_compacted_on_one_side_is_not_doubled(tmp_path: Path, machines: tuple[Path, Path]) -> None:
    a = shutil.copytree(machines[0], tmp_path / "compacted")
    opened = reader.open(a)
    compact.compact(opened, opened.run("org/tiny"), "clean")
    cleanup.collect(a, older_than=0)
    before = content(a)
    assert merge(machines[0], a).shards == 0
    assert content(a) == before
    merge(a, machines[0])
    assert content(machines[0]) == before
    assert len(reader.open(machines[0]).shards("org/tiny")) == 1
    assert verify(machines[0], deep=True) == []


def test_runs_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    file = b.path / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_bytes()), "width": 9}))
    with pytest.raises(StoreError, match="have the same settings but another width"):
        merge(tmp_path / "b", tmp_path / "a")
    assert make_run(tmp_path / "a") == a


def test_a_damaged_shard_is_not_merged_and_the_rest_is_kept(tmp_path: Path, machines: tuple[Path, Path]) -> None:
    good, target = shutil.copytree(machines[0], tmp_path / "good"), tmp_path / "all"
    shard = sorted(machines[0].glob("run=*/condition=clean/shard=*"))[1]
    data = bytearray((shard / "hidden.parquet").read_bytes())
    data[64] ^= 1
    (shard / "hidden.parquet").write_bytes(data)
    with pytest.raises(StoreError, match=r"hidden\.parquet: its sha256 is not .*--deep --repair` on .*/a, then"):
        merge(machines[0], target)
    assert verify(target, deep=True) == []
    assert list((target / ".tmp").iterdir()) == []
    assert merge(good, target).there == 1
    assert content(target) == content(good)


def test_a_store_cannot_be_merged_into_itself_or_a_frozen_one(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    with pytest.raises(StoreError, match="are the same store"):
        merge(tmp_path / "a", tmp_path / "b" / ".." / "a")
    (tmp_path / "a" / "FROZEN").write_text("no")
    with pytest.raises(StoreError, match="is frozen: no"):
        merge(tmp_path / "b", tmp_path / "a")
    assert merge(tmp_path / "a", tmp_path / "b").runs == 0
