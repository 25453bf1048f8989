"""Runs commands that a signal stops in the middle of their work: forked from one process that has loaded the libraries.

    python stopped.py < commands.json        a list of [folder, words, signal, at]; the first word is not looked at

Each command is sent the signal, really, when it reports progress for the time `at` (from 1), or for the last time before.
Prints a JSON list of [exit code, standard error] in the order of the commands.
"""

import importlib
import json
import os
import sys
import tempfile

from layercache import cli, progress

for _name in ("layercache.store.merge", "layercache.exchange", "layercache.report", "layercache.hub.client"):
    importlib.import_module(_name)


def stopped(folder: str, words: list[str], number: int, at: int, errors: int) -> None:
    """Run a command in this process, which does not come back."""
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(errors, 2)
    sys.argv = words
    done = 0
    advance = progress._LineTask.advance

    def advance_and_stop(self: progress._LineTask, amount: int = 1, **more: int) -> None:
        nonlocal done
        done += 1
        advance(self, amount, **more)
        if done == at:
            os.kill(os.getpid(), number)

    progress._LineTask.advance = advance_and_stop  # type: ignore[method-assign]
    code = 1
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        # Nothing of the parent is to be run a second time.
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Run every command, one after the other, and say how each ended."""
    # Of work as short as a test's, too.
    progress.SHORT = 0.0
    ended = []
    for folder, words, number, at in json.load(sys.stdin):
        with tempfile.TemporaryFile() as errors:
            child = os.fork()
            if child == 0:
                stopped(folder, words, number, at, errors.fileno())
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            errors.seek(0)
            ended.append([code, errors.read().decode()])
    print(json.dumps(ended))


if __name__ == "__main__":
    main()
