"""A shell whose `layercache` is this very process: pages run as they are typed, and torch is imported once.

Bash runs a page's text, pipes, loops and all. Its `layercache` is a few lines of Python that send their words, folder and
environment here, where the command line is called, and hand back what it printed.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any
from unittest import mock

from command import Call, Called

ROOT = Path(__file__).parents[2]
Change = Callable[[list[str]], list[str]]

_CLIENT = """
import os, sys
from multiprocessing.connection import Client
with Client(os.environ["PAGES_ADDRESS"]) as here:
    here.send((sys.argv[1:], os.getcwd(), dict(os.environ)))
    code, out, err = here.recv()
sys.stdout.buffer.write(out)
sys.stderr.buffer.write(err)
sys.exit(code)
"""
_SCRIPT = """
set -o pipefail
if [ -f {state} ]; then . {state}; fi
export PAGES_ADDRESS="$0"
{{ {text}
}}
code=$?
wait
export -p > {state}
exit $code
"""
"""A command of the page, after what the earlier ones exported; what it left in the background is waited for."""


class Shell:
    """Runs a page's commands in a folder, each in the environment that the one before left behind.

    Args:
        folder: where they run.
        call: calls the command line in this process.
        change: what is called in place of a command line's words.
        environment: variables beside those of this process.
    """

    def __init__(self, folder: Path, call: Call, change: Change, environment: dict[str, str] | None = None) -> None:
        self.folder, self._call, self._change = folder, call, change
        self._bin = folder / ".bin"
        self._bin.mkdir(exist_ok=True)
        (self._bin / "client.py").write_text(_CLIENT)
        self.program("layercache", f'exec "{sys.executable}" -S "{self._bin}/client.py" "$@"')
        self.program("python", f'exec "{sys.executable}" "$@"')
        self._environment = {
            **os.environ,
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "NO_COLOR": "1",
            **(environment or {}),
        }

    def program(self, name: str, script: str) -> None:
        """Put a program of a few lines of shell before all others of that name."""
        path = self._bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def run(self, text: str) -> Called:
        """Run a command, and answer its calls of `layercache` until it ends."""
        script = _SCRIPT.format(state=f"'{self._bin}/state'", text=text)
        with (
            Listener(backlog=16) as listener,
            open(self._bin / "out", "w+") as out,
            open(self._bin / "err", "w+") as err,
        ):
            streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
            process = subprocess.Popen(
                ["bash", "-c", script, listener.address], cwd=self.folder, env=self._environment, **streams
            )
            watch = threading.Thread(target=_tell_the_end, args=(process, listener.address))
            watch.start()
            try:
                while self._answer(listener):
                    pass
            finally:
                process.kill()
                watch.join()
            out.seek(0)
            err.seek(0)
            return Called(process.returncode, out.read(), err.read())

    def _answer(self, listener: Listener) -> bool:
        with listener.accept() as caller:
            asked = caller.recv()
            if asked is None:
                return False
            self._serve(caller, *asked)
            return True

    def _serve(self, caller: Connection, words: list[str], folder: str, environment: dict[str, str]) -> None:
        here = Path.cwd()
        try:
            os.chdir(folder)
            with mock.patch.dict(os.environ, environment, clear=True):
                called = self._call(*self._change(words))
        finally:
            os.chdir(here)
        caller.send((called.code, called.out.encode(), called.err.encode()))


def _tell_the_end(process: "subprocess.Popen[bytes]", address: str) -> None:
    process.wait()
    try:
        with Client(address) as here:
            here.send(None)
    except OSError:
        pass  # Nobody listens any more: an error has ended the run.
