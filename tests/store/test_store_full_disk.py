"""A full disk: one line that says so, what is published stays, and gc can remove all that is left lying."""

import errno
import itertools
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from crash_points import failing_at
from store_builder import LAST, LAYERS, LENS, MEAN, fill, make_run, put_shard, sample_id
from test_store_crashes import compact_all, merge_other, overlapping, seen

import layercache
from layercache.errors import StoreError
from layercache.store import cleanup, reader
from layercache.store.verify import verify
from layercache.store.writer import Shard


def publish(store: Path) -> None:
    (run,) = reader.open(store).runs()
    put_shard(run, range(20, 30), {MEAN: LAYERS, LAST: [0], LENS: [0, 1], "tokens": None})


def attempt(act: Callable[[Path], None], store: Path) -> str | None:
    """Return what an attempt says when it fails."""
    try:
        act(store)
    except StoreError as error:
        return str(error)
    return None


@pytest.mark.parametrize("act", [publish, merge_other, compact_all], ids=["shard", "merge", "compact"])
def test_a_full_disk_at_any_call_is_one_line(tmp_path: Path, act: Callable[[Path], None]) -> None:
    overlapping(tmp_path / "other")
    base = tmp_path / "base"
    run = overlapping(base) if act is not merge_other else make_run(base)
    old = seen(base)
    # Removing a directory needs no space, so only the calls that write are made to fail.
    for call in itertools.count(step=3):
        store = shutil.copytree(base, tmp_path / "try")
        with failing_at(call, dead=False, number=errno.ENOSPC) as counter:
            said = attempt(act, store)
        if next(counter) <= call:
            break
        assert said is None or "the disk is full: free some space and run the same command again" in said
        assert said is None or "\n" not in said
        assert {**seen(store), **old}.keys() == seen(store).keys()
        assert verify(store) == []
        cleanup.collect(store, older_than=0)
        assert not any((store / ".tmp").iterdir())
        shutil.rmtree(store)
    assert call > 20
    assert run.path.exists()


def limited(store: Path, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    try:
        publish(store)
        pipe.send("published")
    except StoreError as error:
        pipe.send(str(error))


def test_a_limit_on_the_size_of_files_is_one_line(tmp_path: Path) -> None:
    overlapping(tmp_path)
    old = seen(tmp_path)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=limited, args=(tmp_path, there))
    child.start()
    said = here.recv()
    child.join()
    assert "larger than this process may write" in said
    assert "\n" not in said
    assert seen(tmp_path) == old
    assert verify(tmp_path, deep=True) == []
    cleanup.collect(tmp_path, older_than=0)
    assert list((tmp_path / ".tmp").iterdir()) == []
    publish(tmp_path)
    assert verify(tmp_path, deep=True) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no /dev/full")
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_an_answer_that_no_disk_takes_is_one_line(tmp_path: Path, form: str) -> None:
    overlapping(tmp_path)
    command = [sys.executable, "-m", "layercache", "sql", "FROM samples", "--store", str(tmp_path), "--format", form]
    environment = {**os.environ, "PYTHONPATH": str(Path(layercache.__file__).parents[1])}
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert (done.returncode, done.stderr) == (2, "error: cannot write the output: the disk is full\n")


def test_a_store_that_is_removed_while_it_is_written_is_one_line(tmp_path: Path) -> None:
    store = tmp_path / "store"
    run = make_run(store)
    shard = Shard(run, {MEAN: LAYERS}, provenance={})
    fill(shard, [sample_id(number) for number in range(3)], {MEAN: LAYERS}, 0)
    store.rename(tmp_path / "away")
    with pytest.raises(StoreError, match=r"its folder has been removed meanwhile: run the same command again$"):
        shard.publish()
    # The same command begins with the run.
    run = make_run(store)
    put_shard(run, range(3), {MEAN: LAYERS})
    assert verify(store, deep=True) == []
    assert reader.open(store).count_samples(run) == 3
