"""The jobs of a run that is done in parts: a script for Slurm, a command a line, or JSON.

    print(jobs.slurm(jobs.Command("movies", (), "store", 4), works))

Every command is quoted for a POSIX shell, whatever is in the names of recipes, stores and settings.
"""

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from layercache.errors import RecipeError
from layercache.parts import Part, Work
from layercache.quantities import consecutive, in_words

_INDEX = "${SLURM_ARRAY_TASK_ID}"


@dataclass(frozen=True)
class Command:
    """How a part of a recipe is extracted; `count` parts are everything."""

    recipe: str
    settings: tuple[str, ...]
    store: str
    count: int

    def words(self, index: str) -> list[str]:
        """Return the command's words; a value that begins with a dash stays a value."""
        given = [f"--store={self.store}", *(f"--set={setting}" for setting in self.settings)]
        return ["layercache", "extract", f"--shard={index}/{self.count}", *given, "--", self.recipe]


def combined(works: Iterable[Sequence[Work]]) -> list[Work]:
    """Add up what every part lacks over several models and data sets; parts that lack nothing are left out."""
    found: dict[Part, Work] = {}
    for one in (work for several in works for work in several if work):
        before = found.get(one.part, Work(one.part))
        found[one.part] = Work(
            one.part,
            before.samples + one.samples,
            before.passes + one.passes,
            before.tokens + one.tokens,
            before.bytes + one.bytes,
            tuple(dict.fromkeys((*before.files, *one.files))),
        )
    return sorted(found.values(), key=lambda work: work.part.index)


def told(work: Work) -> str:
    """Say in words what a job is going to do."""
    files = f", and the {' and the '.join(work.files)}" if work.files else ""
    return (
        f"part {work.part}: {work.samples:,} samples in {work.passes:,} passes, {work.tokens:,} tokens, about"
        f" {in_words(work.bytes)}{files}"
    )


def slurm(command: Command, works: Sequence[Work]) -> str:
    """Write a script for `sbatch`: an array of exactly the parts that lack something."""
    # The array's index stands outside quotes that would keep the shell from filling it in.
    words = [shlex.quote(word) for word in command.words("")]
    words[2] = f'"--shard={_INDEX}/{command.count}"'
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(command.recipe).stem).strip("-")[:40] or "recipe"
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name=layercache-{name}",
        f"#SBATCH --array={_ranges(work.part.index for work in works)}",
        *(f"# {told(work)}" for work in works),
        "set -eu",
        f"exec {' '.join(words)}",
    ]
    return "\n".join(lines)


def sh(command: Command, works: Sequence[Work]) -> str:
    """Write a command a line, for a shell or for GNU parallel.

    Raises:
        RecipeError: a name or a setting holds a line break.
    """
    lines = [shlex.join(command.words(str(work.part.index))) for work in works]
    if any({"\n", "\r"} & {*line} for line in lines):
        raise RecipeError(
            "a name or a setting holds a line break, so that its command is not one line: use --format json"
        )
    return "\n".join(lines)


def as_json(command: Command, works: Sequence[Work]) -> str:
    """Write a list of objects: what a job is to do, and its command's words."""
    listed = [
        {
            "shard": str(work.part),
            "index": work.part.index,
            "count": work.part.count,
            "samples": work.samples,
            "passes": work.passes,
            "tokens": work.tokens,
            "bytes": work.bytes,
            "files": list(work.files),
            "command": command.words(str(work.part.index)),
        }
        for work in works
    ]
    return json.dumps(listed, indent=2)


def _ranges(indices: Iterable[int]) -> str:
    """Write ascending numbers as Slurm does: 0,2,3 or, where more than two follow each other, 0-3."""
    runs = consecutive(indices)
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)


FORMATS = {"slurm": slurm, "sh": sh, "json": as_json}
