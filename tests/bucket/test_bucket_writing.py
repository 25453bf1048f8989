"""Several writers, killed writers, refused writers: a shard is there whole or not at all, and once."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import store_builder as build
import writing
from served import Refusal, Server

import layercache
from layercache.errors import StoreError
from layercache.store import cleanup, compact, mirror, results, verify
from layercache.store.removal import carry_out, plan
from layercache.store.writer import check_writable

WRITING = Path(writing.__file__)
LOST = Refusal("503 Service Unavailable", "SlowDown")
DENIED = Refusal("403 Forbidden", "AccessDenied", "no")


def start(server: Server, cache: Path, *arguments: object) -> "subprocess.Popen[str]":
    """Start a writer or reader in a process, on a machine, of its own."""
    return subprocess.Popen(
        [sys.executable, str(WRITING), *map(str, arguments)],
        env={**os.environ, **server.environment, "LAYERCACHE_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip()


def manifests(url: str) -> list[str]:
    bucket = mirror.of(mirror.attach(url))
    assert bucket is not None
    return [one.key for chunk in bucket.client.objects() for one in chunk if one.key.endswith("/manifest.json")]


def keys(url: str) -> list[str]:
    bucket = mirror.of(mirror.attach(url))
    assert bucket is not None
    return [one.key for chunk in bucket.client.objects() for one in chunk if not one.key.startswith(".tmp/")]


def killed_before_its_manifest(server: Server, url: str, cache: Path) -> None:
    """Run a writer that is killed (SIGKILL) when its data is in the bucket and it is about to put the manifest."""
    holder: list[subprocess.Popen[str]] = []
    ready = threading.Event()

    def kill(method: str, path: str, query: str) -> Refusal | None:
        if method != "PUT" or not path.endswith("/manifest.json"):
            return None
        ready.wait(30)
        holder[0].send_signal(signal.SIGKILL)
        holder[0].wait(30)
        return LOST

    server.hook = kill
    holder.append(start(server, cache, "publish", url, 0))
    ready.set()
    holder[0].communicate(timeout=120)
    server.hook = None
    assert holder[0].returncode == -signal.SIGKILL


def refused_its_manifest(server: Server, url: str) -> None:
    """Leave in the bucket what a killed writer leaves."""
    server.hook = lambda method, path, query: DENIED if method == "PUT" and path.endswith("/manifest.json") else None
    with pytest.raises(StoreError, match="permission denied"):
        writing.publish(url, 0)
    server.hook = None


def test_a_writer_killed_before_the_manifest_leaves_no_shard_and_the_next_completes(
    server: Server, url: str, tmp_path: Path
) -> None:
    killed_before_its_manifest(server, url, tmp_path / "killed")
    left = [key for key in keys(url) if key.endswith(".parquet")]
    assert sorted(key.rpartition("/")[2] for key in left) == ["hidden.parquet", "lens.parquet", "samples.parquet"]
    opened = layercache.open(url)
    assert [opened.conditions(run) for run in opened.runs()] == [[]]
    assert verify.verify(opened.path, deep=True) == []
    # The next writer's states are others in the last digits (here: altogether); what is there is taken over.
    writing.publish(url, 1)
    opened = layercache.open(url)
    assert len(manifests(url)) == 1
    assert verify.verify(opened.path, deep=True) == []
    matrix = opened.matrix("org/tiny", 2)
    expected = [build.state(one, "resid", "mean@prompt", 2, 0) for one in matrix.sample_ids.tolist()]
    assert len(expected) == len(writing.NUMBERS)
    assert (matrix.values == expected).all()


def test_gc_removes_what_a_killed_writer_left_when_it_is_old_enough(server: Server, url: str) -> None:
    refused_its_manifest(server, url)
    root = mirror.attach(url)
    kept = cleanup.collect(root)
    assert kept.removed == []
    assert any("without a manifest, kept: younger than" in one.what for one in kept.kept)
    gone = cleanup.collect(root, older_than=0)
    assert "without a manifest" in [one.what for one in gone.removed]
    assert [key.rpartition("/")[2] for key in keys(url)] == ["run.json"]
    writing.publish(url, 1)
    assert layercache.open(url).count_samples("org/tiny") == len(writing.NUMBERS)


def test_a_leftover_that_does_not_fit_is_not_taken_over(server: Server, url: str) -> None:
    refused_its_manifest(server, url)
    bucket = mirror.of(mirror.attach(url))
    assert bucket is not None
    hidden = next(key for key in keys(url) if key.endswith("hidden.parquet"))
    bucket.client.put(hidden, b"no Parquet at all")
    with pytest.raises(StoreError, match=r"leftover hidden.parquet of another writer that does not fit"):
        writing.publish(url, 1)
    assert manifests(url) == []
    cleanup.collect(bucket.root, older_than=0)
    writing.publish(url, 1)
    assert verify.verify(bucket.root, deep=True) == []


def test_of_two_racing_writers_one_manifest_counts_and_fits_its_data(server: Server, url: str, tmp_path: Path) -> None:
    build.make_run(mirror.attach(url))
    gate = threading.Barrier(2, timeout=60)
    passed: list[str] = []

    def together(method: str, path: str, query: str) -> Refusal | None:
        # Both have put (or found) every data file, and neither its manifest.
        if method == "PUT" and path.endswith("/manifest.json"):
            passed.append(path)
            gate.wait()
        return None

    server.hook = together
    writers = [start(server, tmp_path / f"machine {salt}", "publish", url, salt) for salt in (0, 1)]
    names = {finish(writer) for writer in writers}
    server.hook = None
    assert len(passed) == 2
    assert len(names) == 1
    assert len(manifests(url)) == 1
    opened = layercache.open(url)
    assert verify.verify(opened.path, deep=True) == []
    assert opened.count_samples("org/tiny") == len(writing.NUMBERS)
    values = opened.matrix("org/tiny", 1).values
    each = [[build.state(build.sample_id(n), "resid", "mean@prompt", 1, s) for n in writing.NUMBERS] for s in (0, 1)]
    assert any((values == one).all() for one in each)


def test_a_writer_that_lost_to_a_damaged_shard_says_so(server: Server, url: str) -> None:
    writing.publish(url, 0)
    opened = layercache.open(url)
    bucket = mirror.of(opened.path)
    assert bucket is not None
    key = next(key for key in keys(url) if key.endswith("hidden.parquet"))
    data = bytearray(bucket.client.get(key))
    data[100] ^= 1
    bucket.client.put(key, bytes(data))
    with pytest.raises(StoreError, match="is in the way and damaged"):
        writing.publish(url, 0)


def test_uploads_are_repeated(server: Server, url: str) -> None:
    run = build.make_run(mirror.attach(url))
    refused: list[str] = []

    def first_fails(method: str, path: str, query: str) -> Refusal | None:
        if method == "PUT" and path not in refused:
            refused.append(path)
            return LOST
        return None

    server.hook = first_fails
    build.put_shard(run, range(3), writing.OUTPUTS)
    assert {path.rpartition("/")[2] for path in refused} == {
        "manifest.json",
        "hidden.parquet",
        "lens.parquet",
        "samples.parquet",
    }
    assert verify.verify(layercache.open(url).path, deep=True) == []


def test_the_data_is_there_before_the_manifest(server: Server, url: str) -> None:
    run = build.make_run(mirror.attach(url))
    server.requests.clear()
    build.put_shard(run, range(3), writing.OUTPUTS)
    puts = [one.path.rpartition("/")[2] for one in server.of("PUT")]
    assert puts[-1] == "manifest.json"
    assert sorted(puts[:-1]) == ["hidden.parquet", "lens.parquet", "samples.parquet"]


def test_a_mirror_keeps_no_bytes_of_what_was_written(server: Server, url: str) -> None:
    run = build.make_run(mirror.attach(url))
    name = build.put_shard(run, range(200), {build.MEAN: build.LAYERS})
    path = run.path / "condition=clean" / f"shard={name}" / "hidden.parquet"
    assert path.stat().st_size > 4096
    assert path.stat().st_blocks == 0
    assert layercache.open(url).count_samples(run) == 200


def test_compact_gc_and_rm_change_the_bucket(server: Server, url: str) -> None:
    root = mirror.attach(url)
    run = build.make_run(root)
    for start_at in (0, 5, 8):
        build.put_shard(run, range(start_at, start_at + 5), writing.OUTPUTS)
    before = build.content(root)
    compact.compact(layercache.open(url), run, "clean")
    assert build.content(root) == before
    assert len(manifests(url)) == 4
    cleanup.collect(root, older_than=0)
    assert len(manifests(url)) == 1
    assert build.content(root) == before
    opened = layercache.open(url)
    carry_out(root, plan(opened, opened.run("org/tiny")))
    assert keys(url) == []
    with pytest.raises(StoreError, match=r"^no store at s3://"):
        layercache.open(url)


def test_a_bucket_that_may_only_be_read(server: Server, url: str) -> None:
    import pyarrow as pa

    root = mirror.attach(url)
    run = build.make_run(root)
    build.put_shard(run, range(3))
    server.hook = lambda method, path, query: DENIED if method in {"PUT", "POST", "DELETE"} else None
    with pytest.raises(StoreError, match="permission denied"):
        check_writable(root)
    with pytest.raises(StoreError, match="permission denied"):
        build.put_shard(run, range(3, 5))
    line = {"run": run.id, "data": "films", "analysis": "probe", "metric": "accuracy", "value": 0.5}
    # An analysis of a store that takes no results is only shown.
    assert results.save(root, "probe", {}, [], results.Outcome(pa.Table.from_pylist([line]))) is None
    with pytest.raises(StoreError, match="permission denied"):
        carry_out(root, plan(layercache.open(url), run))
    assert layercache.open(url).count_samples(run) == 3
