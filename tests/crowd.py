"""Runs commands in processes of their own, all at once: forked from one that has loaded the libraries.

    python crowd.py < commands.json        a list of lists of words; the first word is not looked at

Prints a JSON list of [exit code, standard error] in the order of the commands.
"""

import importlib
import json
import os
import sys
import tempfile

from layercache import cli

for _name in ("transformers.models.llama.modeling_llama", "layercache.extract.run", "layercache.study", "pandas"):
    # What takes longest, once for all.
    importlib.import_module(_name)


def forked(words: list[str], errors: int) -> int:
    """Start a command; return its process id."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(errors, 2)
        sys.argv = words
        code = 1
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        finally:
            # Nothing of the parent is to be run a second time.
            sys.stderr.flush()
            os._exit(code)
    return child


def main() -> None:
    """Run every command at once, and say how each ended."""
    ended = []
    commands = json.load(sys.stdin)
    files = [tempfile.TemporaryFile() for _ in commands]  # noqa: SIM115 - a process writes into each
    children = [forked(words, file.fileno()) for words, file in zip(commands, files, strict=True)]
    for child, file in zip(children, files, strict=True):
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        file.seek(0)
        ended.append([code, file.read().decode()])
    print(json.dumps(ended))


if __name__ == "__main__":
    main()
