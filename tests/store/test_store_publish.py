"""Publishing: whole or not at all, whatever fails and whoever else is writing."""

import errno
import itertools
import multiprocessing
import os
import re
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.synchronize import Barrier
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from crash_points import KilledError, failing_at
from store_builder import LAST, LAYERS, LENS, MEAN, make_run, put_shard, sample_id

from layercache.errors import StoreError
from layercache.recipe import Label
from layercache.store import encode, publish, reader, recipes, results
from layercache.store.layout import Run
from layercache.store.rows import put_rows
from layercache.store.verify import verify
from layercache.store.writer import check_writable

FRAME = pl.DataFrame({"row": [0, 1], "sample_id": [sample_id(0), sample_id(1)], "rating": [1.0, 2.0]})
OUTCOME = results.Outcome(
    pa.table({"run": ["r"], "data": ["d"], "analysis": ["probe"], "metric": ["r2"], "value": [0.5]})
)
NEW = {MEAN: LAYERS, LAST: [0], LENS: [0, 1], "tokens": None}


def rows_action(run: Run) -> None:
    put_rows(run, FRAME, data="films", source="films.csv", labels=[Label("rating", "number")])


ACTIONS: dict[str, Callable[[Run], object]] = {
    "shard": lambda run: put_shard(run, range(3, 6), {MEAN: [0], "tokens": None}),
    "run": lambda run: make_run(run.store, chat=True),
    "rows": rows_action,
    "recipe": lambda run: recipes.save(run.store, {"name": "movies", "models": ["demo"]}),
    "result": lambda run: results.save(run.store, "probe", {"folds": 5}, ["a"], OUTCOME),
}


def state(store: Path) -> dict[str, object]:
    """Everything that a reader sees of a store."""
    opened = reader.open(store)
    return {
        "runs": [run.id for run in opened.runs()],
        "shards": {run.id: [shard.name for shard in opened.shards(run)] for run in opened.runs()},
        "rows": {run.id: [info.path.name for info in opened.data(run)] for run in opened.runs()},
        "recipes": recipes.load_all(store),
        "results": [info.path.name for info in results.listing(store)],
    }


@pytest.mark.parametrize("dead", [False, True], ids=["error", "killed"])
@pytest.mark.parametrize("action", ACTIONS)
def test_after_a_failure_anywhere_the_store_holds_the_old_or_the_new(tmp_path: Path, action: str, dead: bool) -> None:
    base = make_run(tmp_path / "base")
    put_shard(base, range(3))
    old = state(base.store)
    done = shutil.copytree(base.store, tmp_path / "done")
    ACTIONS[action](reader.open(done).run(base.id))
    new = state(done)
    assert new != old
    seen = []
    for call in itertools.count():
        store = shutil.copytree(base.store, tmp_path / f"try{call}")
        run = reader.open(store).run(base.id)
        with failing_at(call, dead=dead) as counter, suppress(StoreError, KilledError):
            ACTIONS[action](run)
        if next(counter) <= call:
            break
        seen.append(state(store) == new)
        assert seen[-1] or state(store) == old, f"neither old nor new after call {call}"
        ACTIONS[action](run)
        assert state(store) == new
        assert verify(store, deep=True) == []
        shutil.rmtree(store)
    assert len(seen) > 5
    assert not seen[0]


def race(store: Path, barrier: Barrier, salt: int) -> None:
    run = make_run(store)
    barrier.wait(60)
    put_shard(run, range(40), NEW, salt=salt)


def test_of_several_processes_publishing_the_same_shard_one_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    store = tmp_path / "store"
    workers = [context.Process(target=race, args=(store, barrier, salt)) for salt in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(90)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    opened = reader.open(store)
    (run,) = opened.runs()
    assert len(opened.shards(run)) == 1
    assert verify(store, deep=True) == []
    assert list((store / ".tmp").iterdir()) == []
    assert opened.matrix(run, 0).values.shape == (40, 8)


def test_of_many_threads_renaming_onto_one_place_one_wins(tmp_path: Path) -> None:
    final = tmp_path / "there" / "thing"
    barrier = threading.Barrier(8)
    won: list[int] = []

    def work(number: int) -> None:
        with publish.staging(tmp_path) as folder:
            publish.write_file(folder / "content", str(number).encode())
            barrier.wait(30)
            if publish.publish_folder(folder, final):
                won.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(final / "content").read_text()] == [str(number) for number in won]


def test_everything_is_forced_to_the_disk_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    log: list[str] = []
    fsync, rename = os.fsync, os.rename

    def spy_fsync(handle: int) -> None:
        log.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def spy_rename(source: Path, target: Path) -> None:
        log.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "rename", spy_rename)
    put_shard(run, range(3), NEW)
    start = log.index("manifest.json")
    assert sorted(log[:start]) == [f"{table}.parquet" for table in ("hidden", "lens", "samples", "tokens")]
    staged, parent, rename_mark, condition = log[start + 1 :]
    assert len(staged) > 32
    assert (parent, rename_mark, condition) == (run.path.name, "rename", "condition=clean")


def test_directories_are_readable_by_others(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        run = make_run(tmp_path / "store")
        put_shard(run, range(2))
    finally:
        os.umask(before)
    for path in run.path.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)


def one_line(failure: pytest.ExceptionInfo[StoreError]) -> str:
    (line,) = str(failure.value).splitlines()
    return line


@pytest.mark.parametrize("action", ["shard", "run", "rows", "recipe"])
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full: free some space and run the same command again"),
        (errno.EROFS, "the file system is read-only: choose another --store"),
        (errno.EACCES, "permission denied: choose another --store"),
    ],
)
def test_errors_of_the_file_system_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, number: int, words: str
) -> None:
    run = make_run(tmp_path)

    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError) as failure:
        ACTIONS[action](run)
    assert words in one_line(failure)
    assert one_line(failure).startswith(f"cannot write {tmp_path}")


@pytest.mark.parametrize("after", [0, 3, 40])
def test_a_full_disk_while_encoding_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    run = make_run(tmp_path)
    write = encode._HashingFile.write
    calls = itertools.count()

    def fail(self: encode._HashingFile, data: bytes) -> int:
        if next(calls) >= after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)

    monkeypatch.setattr(encode._HashingFile, "write", fail)
    with pytest.raises(StoreError) as failure:
        put_shard(run, range(3), NEW)
    assert "the disk is full" in one_line(failure)
    assert reader.open(tmp_path).shards(run) == []
    assert list((tmp_path / ".tmp").iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_device_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the disk is full"), publish.one_line_errors(tmp_path):
        publish.write_file(Path("/dev/full"), b"x")


def test_a_store_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for store, words in ((tmp_path / "file", "is a file, not a store"), (tmp_path / "file" / "s", "is a file")):
        for action in (check_writable, make_run):
            with pytest.raises(StoreError, match=words) as failure:
                action(store)
            one_line(failure)
    (tmp_path / "store" / ".tmp").mkdir(parents=True)
    (tmp_path / "store" / "recipes").write_text("x")
    with pytest.raises(StoreError, match="part of the path is a file") as failure:
        recipes.save(tmp_path / "store", {"name": "movies"})
    one_line(failure)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_store_where_nobody_may_write_is_one_line() -> None:
    with pytest.raises(StoreError, match="cannot write /proc/layercache-test") as failure:
        make_run(Path("/proc/layercache-test"))
    one_line(failure)


def test_permission_denied_is_found_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(StoreError, match=f"permission denied in {re.escape(str(tmp_path))}: choose"):
        check_writable(tmp_path / "new")


def test_a_directory_of_other_things_is_not_made_a_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match="holds other things and is not a store"):
        make_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_frozen_store_is_not_written(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    put_shard(run, range(3))
    (tmp_path / "FROZEN").write_text("the sample store;\nuse --store DIR\n")
    before = sorted(tmp_path.rglob("*"))
    for name, action in ACTIONS.items():
        if name == "result":
            assert action(run) is None
        else:
            with pytest.raises(StoreError, match=r"is frozen: the sample store; use --store DIR$"):
                action(run)
    with pytest.raises(StoreError, match="is frozen"):
        check_writable(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    assert reader.open(tmp_path).frozen
    assert reader.open(tmp_path).matrix(run, 0).values.shape == (3, 8)


def test_a_file_system_that_cannot_sync_directories_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def only_files(handle: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{handle}")).is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", only_files)
    put_shard(make_run(tmp_path), range(3))
    assert verify(tmp_path, deep=True) == []
