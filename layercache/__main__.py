"""Where the program begins: `layercache`, and `python -m layercache`.

Ctrl-C while the command line itself is being imported ends in one line, too; from then on `cli.stopping` watches, until
all is done.
"""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType


def main() -> None:
    """Run the command line."""
    # A shell that starts a program in the background lets it ignore Ctrl-C, and so it should.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)
    try:
        from layercache.cli import main as run

        run()
    except SystemExit as ended:
        if signal.getsignal(signal.SIGINT) is _stop:
            _let_end(ended.code)
        raise


def _let_end(code: object) -> None:
    """Let Ctrl-C end the process with the exit code that is due: what libraries do at the end need not be waited for."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    number = code if isinstance(code, int) else int(code is not None)
    signal.signal(signal.SIGINT, lambda _number, _frame: os._exit(number))


def _stop(_number: int, _frame: FrameType | None) -> None:
    """End at once: nothing has been begun that could be left half done."""
    # Not through a file of Python's: it may be in the middle of writing to it.
    with suppress(OSError):
        os.write(2, b"interrupted: nothing was begun; run the same command again\n")
    os._exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
