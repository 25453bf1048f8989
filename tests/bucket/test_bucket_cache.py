"""The cache of fetched ranges: whatever happens to it, what is read is right."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import store_builder as build
import writing
from served import Server
from test_bucket_writing import finish, start

import layercache
from layercache.errors import StoreError
from layercache.store import files, head, mirror
from layercache.store.remote import ranged
from layercache.store.remote.blocks import BLOCK, BlockFile, Cache, Span, aligned
from layercache.store.remote.ranged import RemoteFile


def test_a_block_is_there_only_when_its_bytes_are(tmp_path: Path) -> None:
    size = 5 * BLOCK + 100
    data = np.random.default_rng(0).bytes(size)
    file = BlockFile(tmp_path / "blocks", size)
    everything = Span(0, size)
    assert file.read(everything)[1] == [everything]
    file.write(2 * BLOCK, data[2 * BLOCK : 4 * BLOCK])
    file.write(5 * BLOCK, data[5 * BLOCK :])
    found, missing = file.read(everything)
    assert missing == [Span(0, 2 * BLOCK), Span(4 * BLOCK, 5 * BLOCK)]
    assert bytes(found[2 * BLOCK : 4 * BLOCK]) == data[2 * BLOCK : 4 * BLOCK]
    assert bytes(found[5 * BLOCK :]) == data[5 * BLOCK :]
    # A machine that lost power may keep the checksum of a block and lose its bytes, or one bit of them.
    with (tmp_path / "blocks").open("r+b") as other:
        other.seek(2 * BLOCK)
        other.write(bytes(BLOCK))
        other.seek(3 * BLOCK + 7)
        other.write(bytes([data[3 * BLOCK + 7] ^ 1]))
    assert file.read(everything)[1] == [Span(0, 5 * BLOCK)]
    file.close()


def test_what_another_process_removes_is_never_read_as_zeros(tmp_path: Path) -> None:
    path, data = tmp_path / "blocks", b"x" * BLOCK
    first, second = BlockFile(path, BLOCK), None
    first.write(0, data)
    path.unlink()
    second = BlockFile(path, BLOCK)
    assert second.read(Span(0, BLOCK))[1] == [Span(0, BLOCK)]
    assert first.read(Span(0, BLOCK)) == (bytearray(data), [])
    for one in (first, second):
        one.close()


def test_a_block_of_zeros_is_kept_like_any_other(tmp_path: Path) -> None:
    file = BlockFile(tmp_path / "blocks", 2 * BLOCK)
    file.write(0, bytes(2 * BLOCK))
    assert file.read(Span(0, 2 * BLOCK))[1] == []
    file.close()


def test_spans_are_widened_to_blocks_and_joined() -> None:
    spans = [Span(5000, 5001), Span(10, 20), Span(4095, 4097), Span(9 * BLOCK, 9 * BLOCK + 3)]
    assert list(aligned(spans, 9 * BLOCK + 5)) == [Span(0, 2 * BLOCK), Span(9 * BLOCK, 9 * BLOCK + 5)]
    assert list(aligned(spans, 10 * BLOCK, gap=7 * BLOCK)) == [Span(0, 10 * BLOCK)]


def test_any_ranges_in_any_order_are_the_objects_bytes(server: Server, url: str) -> None:
    root = mirror.attach(url)
    bucket = mirror.of(root)
    assert bucket is not None
    rng = np.random.default_rng(1)
    data = rng.bytes(300_001)
    key = "run=x/condition=clean/shard=y/hidden.parquet"
    bucket.client.put(key, data)
    with files.open_binary(root / key) as file:
        for _ in range(60):
            start, length = int(rng.integers(0, len(data))), int(rng.integers(0, 40_000))
            file.seek(start)
            assert file.read(length) == data[start : start + length]
        assert file.seek(-5, 2) == len(data) - 5
        assert file.read() == data[-5:]
        assert file.read() == b""
    server.requests.clear()
    with files.open_binary(root / key) as file:
        assert file.read() == data
    assert server.fetched <= len(data)


def test_a_small_cache_stays_small_and_answers_stay_right(
    server: Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build.make_run(mirror.attach(url))
    for first in range(0, 200, 50):
        build.put_shard(run, range(first, first + 50), {build.MEAN: build.LAYERS, build.LAST: build.LAYERS})
    expected = writing.read(url)
    cache = Cache(ranged.cache().folder, 0)
    sizes = [size for _, size, _ in cache._files()]
    # What was read last has room in any case; what was read before it has not.
    bound = max(sizes) * 3 // 2
    assert sum(sizes) > 2 * bound
    cache.sweep()
    assert list(cache._files()) == []
    monkeypatch.setenv("LAYERCACHE_CACHE_SIZE", f"{bound}B")
    assert writing.read(url) == expected
    ranged.cache().sweep()
    assert 0 < sum(size for _, size, _ in cache._files()) <= bound
    assert writing.read(url) == expected


def test_many_processes_read_through_one_small_cache(server: Server, url: str, tmp_path: Path) -> None:
    run = build.make_run(mirror.attach(url))
    for first in range(0, 40, 20):
        build.put_shard(run, range(first, first + 20), {build.MEAN: build.LAYERS})
    expected = writing.read(url)
    os.environ["LAYERCACHE_CACHE_SIZE"] = "12kB"
    try:
        readers = [start(server, tmp_path / "shared", "read", url) for _ in range(2)]
    finally:
        del os.environ["LAYERCACHE_CACHE_SIZE"]
    assert {finish(reader) for reader in readers} == {expected}


def test_a_head_is_read_through_a_cache_that_has_no_room_for_it(
    server: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head is mapped from a file of the cache, which may go as soon as it is there, or before."""
    run = build.make_run(mirror.attach(url))
    head.write(run, build.make_head())
    expected = build.make_head().unembedding.weight.tobytes()
    monkeypatch.setenv("LAYERCACHE_CACHE_SIZE", "1B")
    for _ in range(2):
        assert head.read(layercache.open(url).run("org/tiny")).unembedding.weight.tobytes() == expected

    def emptied(method: str, path: str, query: str) -> None:
        # As another process does that makes room, also of what is being fetched.
        if method == "GET" and "head-" in path:
            Cache(ranged.cache().folder, 0).sweep()

    monkeypatch.setenv("LAYERCACHE_CACHE_SIZE", "1MB")
    server.hook = emptied
    assert head.read(layercache.open(url).run("org/tiny")).unembedding.weight.tobytes() == expected


def test_reading_goes_on_while_the_cache_is_emptied(server: Server, url: str) -> None:
    run = build.make_run(mirror.attach(url))
    head.write(run, build.make_head())
    for first in range(0, 60, 20):
        build.put_shard(run, range(first, first + 20), {build.MEAN: build.LAYERS, build.LENS: build.LAYERS})
    expected = writing.read(url), head.read(run).unembedding.weight.tobytes()
    cache, end = Cache(ranged.cache().folder, 0), threading.Event()

    def empty() -> None:
        while not end.is_set():
            cache.sweep()

    thread = threading.Thread(target=empty)
    thread.start()
    try:
        for _ in range(3):
            found = writing.read(url), head.read(layercache.open(url).run("org/tiny")).unembedding.weight.tobytes()
            assert found == expected
        assert layercache.open(url).sql("SELECT count(*) AS n FROM lens")["n"][0].as_py() == 60 * len(build.LAYERS)
    finally:
        end.set()
        thread.join()


def test_no_thread_of_arrow_reads_a_file_of_pythons(server: Server, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is still at it when the interpreter ends makes the process abort though its work is done."""
    writing.publish(url, 0)
    threads: set[int] = set()
    before = RemoteFile.read

    def read(self: RemoteFile, size: int | None = -1) -> bytes:
        threads.add(threading.get_ident())
        return before(self, size)

    monkeypatch.setattr(RemoteFile, "read", read)
    path = next(layercache.open(url).path.rglob("hidden.parquet"))
    with files.open_parquet(path) as file:
        whole = file.read()
        groups = list(range(file.num_row_groups))
        assert file.read_row_groups(groups).equals(whole)
        assert file.read_row_group(0).num_rows > 0
    assert threads == {threading.get_ident()}


def test_a_cache_that_cannot_be_written_is_named(server: Server, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    writing.publish(url, 0)
    opened = layercache.open(url)
    monkeypatch.setenv("LAYERCACHE_CACHE_SIZE", "a lot")
    with pytest.raises(StoreError, match=r"^LAYERCACHE_CACHE_SIZE: 'a lot' is not a size"):
        opened.matrix("org/tiny", 1)
    monkeypatch.setenv("LAYERCACHE_CACHE", "/proc/nowhere")
    with pytest.raises(StoreError, match=r"^cannot write the cache /proc/nowhere.*set LAYERCACHE_CACHE"):
        layercache.open(url)
