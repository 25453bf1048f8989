"""Shards are published behind the model's back: how many at a time, and where their errors go."""

import threading
from typing import Any, cast

import pytest

from layercache.errors import StoreError
from layercache.extract.publish import Publisher


class _Shard:
    """Stands for a shard whose publication can be held up, or fails."""

    def __init__(self, error: BaseException | None = None, gate: threading.Event | None = None) -> None:
        self.error, self.gate = error, gate
        self.begun, self.done = threading.Event(), threading.Event()

    condition = "clean"

    def publish(self) -> str:
        self.begun.set()
        if self.gate is not None:
            assert self.gate.wait(30)
        if self.error is not None:
            raise self.error
        self.done.set()
        return f"s{id(self):016x}"


def _put(publisher: Publisher, shard: _Shard) -> None:
    publisher.put(cast(Any, shard))


def test_leaving_waits_for_every_shard() -> None:
    shards = [_Shard() for _ in range(5)]
    with Publisher(2) as publisher:
        for shard in shards:
            _put(publisher, shard)
    assert all(shard.done.is_set() for shard in shards)
    assert publisher.published == {("clean", shard.publish()) for shard in shards}


@pytest.mark.parametrize("threads", [1, 3])
def test_no_more_shards_are_held_than_there_are_threads(threads: int) -> None:
    gate = threading.Event()
    shards = [_Shard(gate=gate) for _ in range(threads + 1)]
    with Publisher(threads) as publisher:
        for shard in shards[:threads]:
            _put(publisher, shard)
            assert shard.begun.wait(30)
        late = threading.Thread(target=_put, args=(publisher, shards[threads]))
        late.start()
        late.join(0.1)
        assert late.is_alive(), "one more shard was taken while every thread was busy"
        gate.set()
        late.join(30)
    assert all(shard.done.is_set() for shard in shards)


def test_the_first_error_reaches_whoever_comes_next_and_nothing_is_published_after_it() -> None:
    bad, later = _Shard(StoreError("the disk is full")), _Shard()

    def work() -> None:
        with Publisher(1) as publisher:
            _put(publisher, bad)
            assert bad.begun.wait(30)
            _put(publisher, later)

    with pytest.raises(StoreError, match="disk is full"):
        work()
    assert not later.done.is_set()


def test_an_error_of_the_caller_is_kept_and_what_was_handed_over_is_published() -> None:
    shard = _Shard()

    def work() -> None:
        with Publisher(1) as publisher:
            _put(publisher, shard)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert shard.done.is_set()
