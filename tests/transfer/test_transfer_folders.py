"""Push and pull between folders: whole, in part, again, and stopped in between."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import full_store
import numpy as np
import pytest
from command import Call
from full_store import check_layers, files
from store_builder import LAST, LAYERS, LENS, MEAN, content, sample_id

from layercache import transfer
from layercache.errors import StoreError
from layercache.store import cleanup, compact, head, reader, recipes, results
from layercache.store.layout import Run
from layercache.store.selection import Selection
from layercache.store.verify import verify


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_store.make(tmp_path_factory.mktemp("made") / "store").store


@pytest.fixture
def source(tmp_path: Path, made: Path) -> Run:
    return reader.open(shutil.copytree(made, tmp_path / "source")).run("org/tiny")


def test_a_whole_store_arrives_byte_for_byte(tmp_path: Path, source: Run) -> None:
    target = tmp_path / "target"
    done = transfer.push(source.store, str(target))
    assert files(target) == files(source.store)
    assert (done.runs, done.shards, done.there, done.files, done.results) == (2, 7, 0, 4, 2)
    shards = [path for path in files(target) if "shard=" in path and path.endswith(".parquet")]
    rows = sum(
        json.loads(path.read_bytes())["files"][name]["rows"]
        for path in target.rglob("shard=*/manifest.json")
        for name in json.loads(path.read_bytes())["files"]
    )
    assert len(shards) > 7
    assert done.rows == rows
    again = transfer.pull(str(source.store), target)
    assert (again.runs, again.shards, again.there, again.files, again.bytes) == (0, 0, 7, 0, 0)


def test_two_layers_of_one_pooling_are_what_they_are_in_the_source(tmp_path: Path, source: Run) -> None:
    target = tmp_path / "target"
    asked = Selection(outputs=("mean@prompt",), layers=(1, 3))
    done = transfer.pull(str(source.store), target, asked)
    assert verify(target, deep=True) == []
    check_layers(source.store, target, source, [1, 3])
    opened = reader.open(target)
    # Sample 30 has a state at layer 1 and none at layer 3; sample 20 counts as the smaller of two names says.
    assert sample_id(30) in opened.matrix(source.id, 1).sample_ids
    assert sample_id(30) not in opened.matrix(source.id, 3).sample_ids
    assert [f.layers for f in opened.features(source.id)] == [[1, 3]]
    assert opened.sql("SELECT count(*) AS n FROM tokens")["n"][0].as_py() == 0
    assert opened.overlaps(source.id) == []
    assert opened.labels(source.id, "films").equals(reader.open(source.store).labels(source.id, "films"))
    assert recipes.load_all(target) == recipes.load_all(source.store)
    assert head.read(opened.run(source.id)).width == 8
    assert len(results.listing(target)) == 2
    provenance = [shard.provenance for shard in opened.shards(source.id)]
    taken = {name for one in provenance for name in one["taken_from"]}
    assert taken == {shard.name for shard in reader.open(source.store).shards(source.id)}
    assert {one["host"] for one in provenance} == {"test", "gaps"}
    before = files(target)
    again = transfer.pull(str(source.store), target, asked)
    assert (again.shards, again.bytes) == (0, 0)
    assert files(target) == before
    assert done.shards == len([path for path in before if path.endswith("manifest.json") and "shard=" in path])


def test_taking_the_same_again_gives_the_same_bytes(tmp_path: Path, source: Run) -> None:
    for name in ("a", "b"):
        transfer.pull(str(source.store), tmp_path / name, Selection(layers=(0, 2), tables=("hidden", "tokens")))
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_other_layers_come_later_and_only_they(tmp_path: Path, source: Run) -> None:
    target, store = tmp_path / "target", str(source.store)
    transfer.pull(store, target, Selection(tables=("hidden",), outputs=("mean",), layers=(1,)))
    more = Selection(tables=("hidden",), outputs=("mean",), layers=(1, 2))
    said = transfer.pull(store, target, more, dry_run=True)
    alone = transfer.pull(store, tmp_path / "alone", Selection(tables=("hidden",), outputs=("mean",), layers=(2,)))
    assert 0 < said.bytes < alone.bytes * 1.2
    transfer.pull(store, target, more)
    held = [shard.outputs for shard in reader.open(target).shards(source.id)]
    assert {str(one) for one in held} >= {str({MEAN: [1]}), str({MEAN: [2]})}
    check_layers(source.store, target, source, [1, 2])
    # What came in parts, compact joins; what is there then is not brought again.
    opened = reader.open(target)
    compact.compact(opened, opened.run(source.id), "clean")
    cleanup.collect(target, older_than=0)
    assert verify(target, deep=True) == []
    check_layers(source.store, target, source, [1, 2])
    assert transfer.pull(store, target, more).bytes == 0
    transfer.pull(store, target)
    assert content(target) == content(source.store)
    assert verify(target, deep=True) == []


def test_every_table_can_be_had_alone(tmp_path: Path, source: Run) -> None:
    one = reader.open(source.store)
    for table in ("samples", "tokens", "lens", "hidden"):
        target = tmp_path / table
        transfer.pull(str(source.store), target, Selection(tables=(table,)))
        assert verify(target, deep=True) == []
        other = reader.open(target)
        for name in {table, "samples"}:
            columns = "* EXCLUDE absent" if table == "samples" else "*"
            these = f"SELECT run, condition, sample_id FROM {table}"
            query = f"SELECT {columns} FROM {name} WHERE (run, condition, sample_id) IN ({these}) ORDER BY ALL"
            assert other.sql(query).to_pylist() == one.sql(query).to_pylist()
        there = {path.name for path in target.rglob("shard=*/*.parquet")}
        assert there == {"samples.parquet", f"{table}.parquet"}
        assert not (target / "recipes").exists()
        assert list(target.glob("run=*/head-*")) == list(target.glob("run=*/rows")) == []
    for table, pattern in (
        ("rows", "run=*/rows/*"),
        ("heads", "run=*/head-*"),
        ("recipes", "recipes/*"),
        ("results", "results/*/*"),
    ):
        target = tmp_path / table
        transfer.pull(str(source.store), target, Selection(tables=(table,)))
        assert list(target.rglob("shard=*")) == []
        assert len(list(target.glob(pattern))) == len(list(source.store.glob(pattern))) > 0
        assert verify(target, deep=True) == []


def test_of_a_data_set_only_its_samples_come(tmp_path: Path, source: Run) -> None:
    target = tmp_path / "target"
    transfer.pull(str(source.store), target, Selection(data=("films",)))
    assert verify(target, deep=True) == []
    opened = reader.open(target)
    assert opened.samples(source.id)["sample_id"].to_list() == [sample_id(number) for number in (0, 1, 2, 7)]
    assert [info.name for info in opened.data(source.id)] == ["films"]
    mine = reader.open(source.store).matrix(source.id, 2, label="rating", data="films")
    theirs = opened.matrix(source.id, 2, label="rating", data="films")
    assert np.array_equal(mine.values, theirs.values)
    assert mine.labels.tolist() == theirs.labels.tolist()


def test_runs_and_conditions_are_chosen(tmp_path: Path, source: Run) -> None:
    target = tmp_path / "target"
    done = transfer.pull(str(source.store), target, Selection(runs=("org/tiny",), conditions=("knockout-question",)))
    opened = reader.open(target)
    assert [run.model for run in opened.runs()] == ["org/tiny"]
    assert opened.conditions(source.id) == ["knockout-question"]
    assert done.shards == 1
    # Wanted as it is, the shard is copied byte for byte.
    for path, data in files(target).items():
        assert (source.store / path).read_bytes() == data
    assert {info.inputs[0].split("/")[0] for info in results.listing(target)} == {source.id}


def test_a_dry_run_says_what_comes_and_writes_nothing(tmp_path: Path, source: Run, call: Call) -> None:
    target = tmp_path / "target"
    arguments = ("pull", source.store, "--store", target, "--tables", "hidden", "--layers", "0,2", "--json")
    said = call(*arguments, "--dry-run")
    assert said.code == 0
    assert not target.exists()
    done = call(*arguments, "--quiet")
    assert done.err == ""
    one, other = json.loads(said.out), json.loads(done.out)
    assert {**one, "dry_run": False} == other
    rows = sum(
        info["rows"]
        for path in target.rglob("shard=*/manifest.json")
        for info in json.loads(path.read_bytes())["files"].values()
    )
    # Rows that do not count are looked at, too, where two shards share samples.
    assert rows <= one["rows"] <= rows * 1.3
    n = len(list(target.rglob("shard=*/manifest.json")))
    assert other["shards"] == n > 1
    part = ("--tables", "hidden", "--layers", "0,2")
    for verb, option in (("would copy", "--dry-run"), ("copied", "--quiet")):
        assert call("pull", source.store, "--store", target, *part, option).out == (
            f"{source.store} to {target}: {verb} 0 bytes, 0 rows, in 0 shards ({n} were there), 0 files, 0 results; new"
            " runs: 0\n"
        )
    pushed = call("push", target, "--store", source.store, *part, "--json")
    assert (pushed.json["shards"], pushed.json["there"]) == (0, n)  # type: ignore[index]
    # Of more than is there, what is there counts beside what is new.
    more = call("push", target, "--store", source.store, "--tables", "hidden", "--json", "--dry-run").json
    assert more["shards"] > 0  # type: ignore[index]


CUT = """
import os, sys
from pathlib import Path
from layercache import transfer
from layercache.store import merge, publish, writer
from layercache.store.selection import Selection

left = int(sys.argv[3])
real = publish.publish_folder

def publish_folder(staged, final):
    global left
    left -= 1
    if left < 0:
        os._exit(9)
    return real(staged, final)

merge.publish_folder = writer.publish_folder = publish_folder
transfer.pull(sys.argv[1], Path(sys.argv[2]), Selection(layers=(0, 1)) if sys.argv[4] == "part" else Selection())
"""


@pytest.mark.parametrize(("how", "stop"), [("part", 4), ("whole", 6)])
def test_a_pull_that_was_killed_goes_on(tmp_path: Path, source: Run, how: str, stop: int) -> None:
    target = tmp_path / "target"
    run = [sys.executable, "-c", CUT, str(source.store), str(target), str(stop), how]
    assert subprocess.run(run, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode == 9
    assert verify(target, deep=True) == []
    before = files(target)
    asked = Selection(layers=(0, 1)) if how == "part" else Selection()
    transfer.pull(str(source.store), target, asked)
    cleanup.collect(target, older_than=0)
    after = files(target)
    assert {path: after[path] for path in before} == before
    transfer.pull(str(source.store), tmp_path / "at-once", asked)
    assert after == files(tmp_path / "at-once")
    assert list((target / ".tmp").iterdir()) == []


def test_damage_in_what_is_read_is_found(tmp_path: Path, source: Run) -> None:
    for path in source.store.rglob("hidden.parquet"):
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 1
        path.write_bytes(data)
    with pytest.raises(StoreError, match=r"hidden\.parquet: its sha256 is not the manifest's: run `layercache verify"):
        transfer.pull(str(source.store), tmp_path / "whole")
    with pytest.raises(StoreError, match=r"hidden\.parquet cannot be read .*run `layercache verify --deep`"):
        transfer.pull(str(source.store), tmp_path / "part", Selection(outputs=("hidden",), layers=(0, 1, 2)))
    for name in ("whole", "part"):
        assert verify(tmp_path / name, deep=True) == []


BAD = {
    "a run": (("--run", "org/tinny"), "no run 'org/tinny' in {store}: did you mean 'org/tiny'?"),
    "a condition": (
        ("--condition", "knockout-qestion"),
        "no condition 'knockout-qestion': did you mean 'knockout-question'?",
    ),
    "a data set": (("--data", "flims"), "no data set 'flims': did you mean 'films'?"),
    "a table": (("--tables", "hiden,lens"), "no table 'hiden': did you mean 'hidden'?"),
    "an output": (("--outputs", "meen@prompt"), "no output 'meen@prompt': did you mean 'mean@prompt'?"),
    "a layer": (("--layers", "2,9"), "no layer 9 in what is asked for: it has layers 0, 1, 2, 3"),
    "a layer of an output": (
        ("--layers", "3", "--run", "org/other"),
        "no layer 3 in what is asked for: it has layers 0, 1",
    ),
    "layers that are none": (("--layers", "a"), "--layers 'a': give numbers separated by commas (0,4,8)"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_not_there_is_said_in_one_line(tmp_path: Path, source: Run, call: Call, what: str) -> None:
    options, message = BAD[what]
    said = call("pull", source.store, "--store", tmp_path / "target", *options)
    assert (said.code, said.out, said.err) == (2, "", f"error: {message.format(store=source.store)}\n")
    assert not (tmp_path / "target").exists()
    assert call("push", tmp_path / "target", "--store", source.store, *options).code == 2
    assert not (tmp_path / "target").exists()


def test_bad_places(tmp_path: Path, source: Run, call: Call) -> None:
    frozen = shutil.copytree(source.store, tmp_path / "frozen")
    (frozen / "FROZEN").write_text("leave it")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    for arguments, message in (
        (("push", source.store, "--store", source.store), "are the same store: give another --store"),
        (("pull", source.store / ".." / "source", "--store", source.store), "are the same store"),
        (("push", frozen, "--store", source.store), "is frozen: leave it"),
        (("pull", source.store, "--store", frozen), "is frozen: leave it"),
        (("pull", tmp_path / "none"), "no store at"),
        (("pull", tmp_path / "other"), "is not a store"),
        (("push", tmp_path / "other", "--store", source.store), "holds other things and is not a store"),
        (("push", "ftp://host/x", "--store", source.store), "ftp"),
        (("push", "hf://user/name", "--store", source.store), "give hf://datasets/USER/NAME"),
        (("push", "hf://datasets/user/../name", "--store", source.store), "give hf://datasets/USER/NAME"),
    ):
        said = call(*arguments)
        assert said.code == 2, arguments
        assert message in said.err
        assert said.err.count("\n") == 1
    assert transfer.pull(str(frozen), tmp_path / "of-frozen").shards == 7


def test_progress_says_bytes_and_rate(tmp_path: Path, source: Run, call: Call) -> None:
    said = call("push", tmp_path / "target", "--store", source.store)
    last = said.err.splitlines()[-1]
    assert last.startswith(f"copy to {tmp_path / 'target'}: ")
    assert " kB, " in last
    assert " kB/s, " in last
    done, total = last.partition(": ")[2].partition(" kB")[0].split("/")
    assert done == total


def test_lens_and_results_are_those_of_the_source(tmp_path: Path, source: Run) -> None:
    target = tmp_path / "target"
    transfer.pull(str(source.store), target, Selection(outputs=("lens", LAST), layers=(2, 3)))
    one, other = reader.open(source.store), reader.open(target)
    for query in (
        "SELECT * FROM lens WHERE layer >= 2 ORDER BY ALL",
        "SELECT * FROM results ORDER BY ALL",
        "SELECT * FROM labels ORDER BY ALL",
    ):
        assert other.sql(query).to_pylist() == one.sql(query).to_pylist()
    ask = {"layers": [2, 3], "pooling": "last@prompt", "top_k": 2}
    assert one.lens(source.id, **ask).sort_by("sample_id").equals(other.lens(source.id, **ask).sort_by("sample_id"))
    assert LENS in {output for shard in other.shards(source.id) for output in shard.outputs}
    assert LAYERS != [2, 3]
