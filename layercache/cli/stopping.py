"""Ctrl-C and SIGTERM: one line that says what is safe and which command goes on; no traceback, exit code 130 or 143.

The first signal raises KeyboardInterrupt, so that what is running can finish a shard; the second ends the process at
once, which loses what is not published and harms nothing: whatever a store shows was published whole.
"""

import atexit
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from layercache.interrupts import SIGNALS

_SHARDS = "the {shards} published in {store} {are} safe"
_SAFE = {
    "analyze": "the analyses that were finished are kept in {store}",
    "compact": _SHARDS,
    "export": "the store is only read; what is not finished was not written",
    "extract": _SHARDS,
    "finetune": "the adapters that were finished are safe",
    "gc": "what was not removed is as it was",
    "import": _SHARDS,
    "merge": _SHARDS,
    "pull": _SHARDS,
    "push": "what was copied whole is safe where it is, and {store} is only read",
    "rm": "what was not removed is as it was",
    "run": _SHARDS + ", and so are finished analyses",
    "verify": "nothing is left half done, and what --repair moved away extract makes again",
}
"""What a command that was stopped leaves behind; one that is not here writes nothing, or nothing that is half done."""


_ending: list[int] = []


@atexit.register
def _end() -> None:
    """End with the code that was said: an interruption that went through `exec` makes Python end by the signal itself."""
    if _ending:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(_ending[0])


class Watch:
    """Signals of one call of the command line.

    Attributes:
        number: the first signal that came; None before.
        session: `store` and `command`, as soon as they are known.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.session: dict[str, Any] = {}

    def stop(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.number is not None:
            self._say()
            os._exit(128 + number)
        self.number = number
        raise KeyboardInterrupt

    def leave(self, *, ending: bool = False) -> NoReturn:
        """Say what is safe, and raise SystemExit with the signal's exit code; `ending`: whatever else happens, end with it."""
        self._say()
        code = 128 + (self.number or signal.SIGINT)
        if ending:
            _ending.append(code)
        sys.exit(code)

    def _say(self) -> None:
        name, store = self.session.get("command", ""), self.session.get("store")
        safe = _SAFE.get(name, "nothing is left half done")
        n = _count(store) if "{shards}" in safe else 0
        if n is None:
            said = f"what was published in {store} is safe"
        elif n == 0 and "{shards}" in safe:
            said = "nothing was published yet"
        else:
            said = safe.format(shards=f"{n:,} shard{'s' * (n != 1)}", are="is" if n == 1 else "are", store=store)
        with suppress(OSError, ValueError):
            sys.stderr.write(f"interrupted: {said}; go on with: {command(sys.argv)}\n")
            sys.stderr.flush()


@contextmanager
def watched() -> Iterator[Watch]:
    """Watch for SIGINT and SIGTERM; in a thread, which gets no signals, do nothing."""
    watch = Watch()
    main = threading.current_thread() is threading.main_thread()
    # A shell that starts a program in the background lets it ignore Ctrl-C, and so it should.
    mine = [one for one in SIGNALS if main and signal.getsignal(one) not in (signal.SIG_IGN, None)]
    before = {one: signal.signal(one, watch.stop) for one in mine}
    try:
        yield watch
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def shell_takes_over() -> None:
    """Let an interactive shell handle Ctrl-C by itself, which stops a query and not the program."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def command(words: Sequence[str]) -> str:
    """Write a command line so that it can be pasted into a shell, on one line whatever it holds."""
    name = Path(words[0]).name.removesuffix(".exe")
    called = ["python", "-m", "layercache"] if name == "__main__.py" else [name]
    return " ".join([*called, *map(_quoted, words[1:])])


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    # Line breaks and what acts on a terminal: bash's, zsh's and ksh's $'…'.
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(one if one.isprintable() else _escape(one) for one in escaped) + "'"


def _escape(one: str) -> str:
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(one) or "".join(
        f"\\x{byte:02x}" for byte in one.encode("utf-8", "surrogateescape")
    )


def _count(store: Path | None) -> int | None:
    """Count the shards of a store; None where that cannot be said."""
    try:
        from layercache.store import names

        return names.count_shards(store) if store is not None else 0
    except Exception:  # Whatever happens here must not hide that the program was stopped.
        return None
