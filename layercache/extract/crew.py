"""Processes that do the parts they are handed, one on each device, and what becomes of one that fails."""

import contextlib
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from layercache.errors import LayercacheError
from layercache.extract.summary import Summary
from layercache.parts import Part
from layercache.progress import Progress, Task
from layercache.recipe import Recipe

WORKER = ("-m", "layercache.extract.device_worker")
"""What the interpreter is to run on each device."""
_LOOK = 0.5
"""Seconds between looks for Ctrl-C."""
_PATIENCE = 60.0
"""Seconds that a process has to publish what it has run, once it is told to stop."""


class Job(NamedTuple):
    """A part of one model on one data set, by its place among the pairs."""

    pair: int
    part: Part


class _Worker:
    """A process on one device, its standard output read by a thread."""

    def __init__(self, place: str, events: "queue.SimpleQueue[tuple[_Worker, dict[str, Any]]]") -> None:
        self.place = place
        self.job: Job | None = None
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self.process = subprocess.Popen(
            [sys.executable, *WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            encoding="utf-8",
            # Ctrl-C reaches this process alone, which passes it on once.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(events,), daemon=True)
        self._reader.start()

    def _read(self, events: "queue.SimpleQueue[tuple[_Worker, dict[str, Any]]]") -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            events.put((self, json.loads(line)))
        self.process.wait()
        events.put((self, {"ended": self.process.returncode}))

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message; a process that has ended is heard of by its end."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def close(self) -> None:
        """Let the process end by itself."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def end(self) -> None:
        """Wait for the process, and let go of what it was heard by."""
        self.process.wait()
        self.close()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.errors.close()

    def last_words(self) -> str:
        """Return the last line that the process wrote to its standard error."""
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


class Crew:
    """The processes of all devices; a context, which leaves none of them running."""

    def __init__(self, study: Recipe, store: Path, places: Sequence[str], task: Task, progress: Progress) -> None:
        self._events: queue.SimpleQueue[tuple[_Worker, dict[str, Any]]] = queue.SimpleQueue()
        self._opening = {
            # Which settings were left at their defaults is part of what they say.
            "recipe": study.model_copy(update={"analyze": []}).model_dump(mode="json", exclude_unset=True),
            "store": str(store),
            "shared_by": sum(place == "cpu" for place in places) or 1,
        }
        self._places, self._task, self._progress = places, task, progress
        self._workers: list[_Worker] = []
        self.failures: list[str] = []

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """Ask every process to stop, and end those that do not."""
        alive = [one for one in self._workers if one.process.poll() is None]
        for one in alive:
            if kind is None:
                one.close()
            else:
                one.process.send_signal(signal.SIGINT)
        until = time.monotonic() + _PATIENCE
        try:
            for one in alive:
                one.process.wait(max(0.0, until - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            for one in alive:
                one.process.kill()
        for one in self._workers:
            one.end()

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Summary]]:
        """Do every job on the first device that is free for it; yield what was done as it is heard of.

        Raises:
            LayercacheError: a job failed.
        """
        waiting = deque(jobs)
        for place in self._places[: len(jobs)]:
            worker = _Worker(place, self._events)
            self._workers.append(worker)
            worker.tell({**self._opening, "device": place})
            self._hand(worker, waiting)
        busy = {id(worker) for worker in self._workers}
        while busy:
            worker, event = self._next()
            if "advance" in event:
                self._task.advance(event["advance"], **event["counts"])
            elif "note" in event:
                self._progress.note(event["note"])
            elif "summary" in event:
                assert worker.job is not None
                done, worker.job = worker.job, None
                self._hand(worker, waiting)
                yield done, Summary.from_json(event["summary"])
            elif "error" in event:
                self._fail(worker, event["error"])
            elif "ended" in event:
                busy.discard(id(worker))
                if worker.job is not None:
                    self._fail(worker, _why(event["ended"], worker))
        if self.failures:
            raise LayercacheError(_told(self.failures, len(waiting)))

    def _next(self) -> "tuple[_Worker, dict[str, Any]]":
        """Wait for an event, and look up now and then: Ctrl-C may have reached another thread than this one."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._events.get(timeout=_LOOK)

    def _hand(self, worker: _Worker, waiting: "deque[Job]") -> None:
        """Give a process its next job, or let it end."""
        if waiting:
            worker.job = waiting.popleft()
            worker.tell({"pair": worker.job.pair, "part": str(worker.job.part)})
        else:
            worker.close()

    def _fail(self, worker: _Worker, why: str) -> None:
        part = f" (part {worker.job.part})" if worker.job is not None else ""
        self.failures.append(f"{worker.place}{part}: {why}")
        worker.job = None
        worker.close()


def _why(code: int, worker: _Worker) -> str:
    """Say how a process ended that had more to do."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", as when memory runs out" if -code == signal.SIGKILL else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with code {code}: {worker.last_words()}"


def _told(failures: Sequence[str], left: int) -> str:
    more = f" (and {len(failures) - 1} devices more)" if len(failures) > 1 else ""
    rest = f"{left:,} parts are left" if left else "the other parts are done"
    return f"{failures[0]}{more}; {rest}, and the same command again does what is missing"
