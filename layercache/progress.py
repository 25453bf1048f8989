"""Progress of long work: a bar on a terminal, a line now and then elsewhere, nothing when quiet.

Library code takes a `Progress` and never prints; the command line passes `TerminalProgress`.
"""

import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

_BAR = 24
"""Characters of a bar."""
SHORT = 1.0
"""Seconds of work that nobody needs to be told of."""


class Task:
    """One piece of long work. The base class is silent."""

    def advance(self, amount: int = 1, **counts: int) -> None:
        """Report `amount` more units done; `counts` are further totals to show as rates (`tokens=512`)."""


class Progress:
    """Where library code reports progress and notes. The base class is silent."""

    @contextmanager
    def task(self, title: str, total: int, unit: str = "samples") -> Iterator[Task]:
        """Open a piece of work of `total` units."""
        yield Task()

    def note(self, text: str) -> None:
        """Say one line that the user should see (a count of rows left out, a fallback chosen)."""


class Notes(Progress):
    """Keeps what is said, to be said elsewhere."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        """Keep one line."""
        self.texts.append(text)


class Once(Progress):
    """Passes on every note once, whoever says it; tasks as they are."""

    def __init__(self, inner: Progress) -> None:
        self._inner, self._said = inner, set[str]()
        self.task = inner.task  # type: ignore[method-assign]

    def note(self, text: str) -> None:
        """Say one line that was not said before."""
        if text not in self._said:
            self._said.add(text)
            self._inner.note(text)


class Patient(Progress):
    """Passes on notes as they are, and tasks once they have taken a second: for work that mostly ends at once."""

    def __init__(self, inner: Progress) -> None:
        self._inner = inner
        self.note = inner.note  # type: ignore[method-assign]

    @contextmanager
    def task(self, title: str, total: int, unit: str = "samples") -> Iterator[Task]:
        """Open a piece of work of `total` units."""
        with self._inner.task(title, total, unit) as task:
            yield _PatientTask(task)


class _PatientTask(Task):
    """Keeps what was done to itself for a second."""

    def __init__(self, inner: Task) -> None:
        self._inner = inner
        self._start = time.monotonic()
        self._amount = 0
        self._counts: Counter[str] = Counter()

    def advance(self, amount: int = 1, **counts: int) -> None:
        self._amount += amount
        self._counts.update(counts)
        if time.monotonic() - self._start >= SHORT:
            self._inner.advance(self._amount, **self._counts)
            self._amount = 0
            self._counts.clear()


@contextmanager
def in_bytes(progress: Progress, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Open a piece of work of `total` bytes, shown in the largest unit that still moves.

    Yields:
        What is told of bytes as they are done; at the end all of them are.
    """
    unit, size = ("MB", 10**6) if total >= 10**7 else ("kB", 10**3)
    units = -(-total // size)
    if not units:
        yield lambda nbytes: None
        return
    done = shown = 0
    with progress.task(title, units, unit=unit) as task:

        def moved(nbytes: int) -> None:
            nonlocal done, shown
            done += nbytes
            if (step := min(done, total) // size - shown) > 0:
                shown += step
                task.advance(step)

        yield moved
        # What was read of pieces is known to about a row group: at its end the work is whole.
        if shown < units:
            task.advance(units - shown)


class Held(Progress):
    """Keeps notes back until a task begins, and then passes on everything."""

    def __init__(self, inner: Progress) -> None:
        self._inner = inner
        self._kept: list[str] | None = []

    @contextmanager
    def task(self, title: str, total: int, unit: str = "samples") -> Iterator[Task]:
        """Say what was kept back, and open a piece of work."""
        self.release()
        with self._inner.task(title, total, unit) as task:
            yield task

    def note(self, text: str) -> None:
        """Keep one line, or say it."""
        if self._kept is None:
            self._inner.note(text)
        else:
            self._kept.append(text)

    def release(self) -> None:
        """Say what was kept back, and keep nothing from now on."""
        kept, self._kept = self._kept, None
        for text in kept or ():
            self._inner.note(text)


@contextmanager
def held(progress: Progress) -> Iterator[Progress]:
    """Keep notes back until work begins or has ended well: where nothing was done, an error stands alone."""
    inner = Held(progress)
    yield inner
    inner.release()


class _LineTask(Task):
    """Prints a line at the start of the work's end and every `every` seconds between."""

    def __init__(self, title: str, total: int, unit: str, stream: TextIO, every: float) -> None:
        self._title, self._total, self._unit, self._stream, self._every = title, total, unit, stream, every
        self._done = 0
        self._counts: dict[str, int] = {}
        self._start = self._last = time.monotonic()

    def advance(self, amount: int = 1, **counts: int) -> None:
        self._done += amount
        for name, count in counts.items():
            self._counts[name] = self._counts.get(name, 0) + count
        now = time.monotonic()
        if self._done >= self._total or now - self._last >= self._every:
            self._last = now
            self._show(now - self._start)

    def line(self, elapsed: float) -> str:
        """Return the text of one progress line after `elapsed` seconds."""
        seconds = max(elapsed, 1e-9)
        rates = [f"{self._done / seconds:,.1f} {self._unit}/s"]
        rates += [f"{count / seconds:,.0f} {name}/s" for name, count in self._counts.items()]
        left = (self._total - self._done) * seconds / max(self._done, 1)
        return f"{self._title}: {self._done:,}/{self._total:,} {self._unit}, {', '.join(rates)}, {_clock(left)} left"

    def _show(self, elapsed: float) -> None:
        print(self.line(elapsed), file=self._stream, flush=True)

    def clear(self) -> None:
        """Make room for another line."""

    def close(self) -> None:
        """End what is shown, also of work that was not finished."""


class _BarTask(_LineTask):
    """Rewrites one line on a terminal, never longer than the terminal is wide: a line that wraps cannot be rewritten."""

    _open = False

    def _show(self, elapsed: float) -> None:
        full = min(_BAR, _BAR * self._done // max(self._total, 1))
        text = f"{'━' * full}{'─' * (_BAR - full)} {self.line(elapsed)}"[: shutil.get_terminal_size().columns - 1]
        self._open = self._done < self._total
        print(f"\r\x1b[2K{text}", end="" if self._open else "\n", file=self._stream, flush=True)

    def clear(self) -> None:
        if self._open:
            print("\r\x1b[2K", end="", file=self._stream, flush=True)
            self._open = False

    def close(self) -> None:
        if self._open:
            print(file=self._stream, flush=True)
            self._open = False


class TerminalProgress(Progress):
    """Progress for the command line: always on stderr, animated only when stderr is a terminal that is not dumb."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._shown: _LineTask | None = None

    @contextmanager
    def task(self, title: str, total: int, unit: str = "samples") -> Iterator[Task]:
        """Open a piece of work of `total` units."""
        task: _LineTask
        if self._stream.isatty() and os.environ.get("TERM") != "dumb":
            task = _BarTask(title, total, unit, self._stream, every=0.1)
        else:
            task = _LineTask(title, total, unit, self._stream, every=10.0)
        before, self._shown = self._shown, task
        try:
            yield task
        finally:
            task.close()
            self._shown = before

    def note(self, text: str) -> None:
        """Print one line, in place of a bar that is drawn again below it."""
        if self._shown is not None:
            self._shown.clear()
        print(text, file=self._stream, flush=True)


def _clock(seconds: float) -> str:
    """Format a number of seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
