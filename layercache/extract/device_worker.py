"""The process on one device: reads parts to run from its standard input, says on its standard output how it goes.

    python -m layercache.extract.device_worker      started by `layercache.extract.devices`, and of use to nobody else

Lines of JSON. In: the recipe, the store and the device, then a part a line. Out: progress and notes, and for every part
a summary or, as the last line, an error.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch

from layercache import parts, study
from layercache.errors import LayercacheError
from layercache.extract import batching
from layercache.extract.kept import Kept
from layercache.extract.run import extract
from layercache.progress import Progress, Task
from layercache.recipe import Recipe


class _Piped(Progress, Task):
    """Progress as lines of JSON; every task is a part of the parent's one."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def say(self, **event: Any) -> None:
        """Write an event."""
        print(json.dumps(event), file=self._out, flush=True)

    @contextmanager
    def task(self, title: str, total: int, unit: str = "samples") -> Iterator[Task]:
        """Open a piece of work."""
        yield self

    def advance(self, amount: int = 1, **counts: int) -> None:
        """Report units done."""
        self.say(advance=amount, counts=counts)

    def note(self, text: str) -> None:
        """Report a note."""
        self.say(note=text)


def main() -> None:
    """Run parts until there are no more, or one fails."""
    # What a library prints must not come between the lines.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    progress = _Piped(out)
    try:
        _work(progress)
    except LayercacheError as error:
        progress.say(error=str(error))
        sys.exit(2)
    except (KeyboardInterrupt, BrokenPipeError):
        # What has been run is published; without a parent nobody waits for the rest.
        os._exit(130)


def _work(progress: _Piped) -> None:
    opening = json.loads(sys.stdin.readline())
    asked = Recipe.model_validate(opening["recipe"])
    spec = asked.extract.model_copy(update={"device": opening["device"]})
    shared_by = opening["shared_by"]
    if shared_by > 1:
        batching.CPU_SHARED_BY[0] = shared_by
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, torch.get_num_threads() // shared_by))
    store, kept = Path(opening["store"]), Kept()
    # The parent has said what there is to say of the data.
    pairs = study.pairs(asked, store, Progress())
    for line in sys.stdin:
        job = json.loads(line)
        data, model = pairs[job["pair"]]
        summary = extract(model, data, spec, store, progress, part=parts.parse(job["part"]), kept=kept)
        progress.say(summary=summary.as_json())


if __name__ == "__main__":
    main()
