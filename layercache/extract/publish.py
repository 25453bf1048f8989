"""Publishes full shards behind the model's back: few threads, none waiting, every error comes back."""

import os
import queue
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

from layercache import interrupts
from layercache.extract.forward import Absent
from layercache.extract.sample_tables import sample_columns, token_columns
from layercache.extract.tokenize import Sample
from layercache.extract.words import Words
from layercache.outputs import TOKENS
from layercache.store.layout import CLEAN, Run
from layercache.store.writer import Shard

SHARD_BYTES = 256 * 2**20
SHARD_SECONDS = 60.0
"""When a shard is published, whichever is first: bytes it holds in memory, seconds since it was begun."""
_MOST_THREADS = 4


class ShardLimits(NamedTuple):
    """A shard is published when it holds so many bytes or is so many seconds old."""

    nbytes: int = SHARD_BYTES
    seconds: float = SHARD_SECONDS


class Publisher:
    """Threads that publish shards. Use as a context manager.

    Leaving the context normally waits for what is being published and raises the first error of a thread;
    leaving it by an exception lets that be published and keeps that exception.

    Args:
        threads: shards published at the same time, and so held in memory beside the one that is being filled.
            A shard's states are encoded by one core, which is slower than a GPU makes them.

    Attributes:
        published: the conditions and names of the shards that are there now.
    """

    def __init__(self, threads: int | None = None) -> None:
        n = threads or max(1, min(_MOST_THREADS, (os.cpu_count() or 1) // 4))
        self._queue: queue.SimpleQueue[Shard | None] = queue.SimpleQueue()
        self._free = threading.Semaphore(n)
        self._error: BaseException | None = None
        self.published: set[tuple[str, str | None]] = set()
        self._threads = [
            threading.Thread(target=self._work, name=f"layercache-publisher-{i}", daemon=True) for i in range(n)
        ]

    def __enter__(self) -> "Publisher":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        if error is None:
            self.check()

    def put(self, shard: Shard) -> None:
        """Hand a shard over; waits while every thread is busy.

        Raises:
            LayercacheError: an earlier shard could not be published.
        """
        self.check()
        self._free.acquire()
        self._queue.put(shard)

    def check(self) -> None:
        """Raise the threads' first error, if there was one."""
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (shard := self._queue.get()) is not None:
            # After an error the queue is still emptied, so that nobody waits for ever.
            if self._error is None:
                try:
                    self.published.add((shard.condition, shard.publish()))
                except BaseException as error:
                    self._error = error
            del shard  # Not kept in memory until the next one comes.
            self._free.release()


class ShardWriter:
    """Collects batches into shards and closes them by size and time.

    Args:
        outputs: what the batches hold.
        words: token ids as text.
        limits: when a shard closes.
        condition: how the samples are run.
    """

    def __init__(
        self,
        run: Run,
        outputs: dict[str, list[int] | None],
        publisher: Publisher,
        words: Words,
        *,
        provenance: dict[str, Any],
        allow_nonfinite: bool,
        limits: ShardLimits,
        condition: str = CLEAN,
    ) -> None:
        self._run, self._outputs, self._publisher, self._words = run, outputs, publisher, words
        self._provenance, self._allow_nonfinite = provenance, allow_nonfinite
        self._limits, self._condition = limits, condition
        self._shard: Shard | None = None
        self._opened = 0.0

    def add(
        self,
        samples: Sequence[Sample],
        tables: Sequence[tuple[str, dict[str, Any]]],
        lacking: Sequence[Absent] = (),
    ) -> None:
        """Add a batch's samples and the rows made of them; `lacking` are those whose states gave no row."""
        self._publisher.check()
        if self._shard is None:
            self._shard = Shard(
                self._run,
                self._outputs,
                condition=self._condition,
                provenance=self._provenance,
                allow_nonfinite=self._allow_nonfinite,
            )
            self._opened = time.monotonic()
        # Samples without their states would be published as they are, and never be made again.
        with interrupts.held_back():
            self._shard.add("samples", sample_columns(samples, list(self._outputs), lacking))
            if TOKENS in self._outputs:
                self._shard.add(TOKENS, token_columns(samples, self._words))
            for table, columns in tables:
                if columns:
                    self._shard.add(table, columns)
        if self._shard.nbytes >= self._limits.nbytes or time.monotonic() - self._opened >= self._limits.seconds:
            self.close()

    def close(self) -> None:
        """Hand over what is collected."""
        if self._shard is not None:
            with interrupts.held_back():
                shard, self._shard = self._shard, None
                self._publisher.put(shard)
