"""Moves what `verify` found damaged out of the way, so that the store reads again and `extract` makes it anew.

Nothing is deleted: it lies in `<store>/.quarantine/<when>/`, under the path it had, until `gc` is asked.
"""

import errno
import os
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from layercache.store.layout import CONDITION, MANIFEST, QUARANTINE, RECIPES, RESULTS, ROWS, RUN, RUN_FILE, SHARD
from layercache.store.publish import check_not_frozen, move, one_line_errors
from layercache.store.shard_checks import NOT_LISTED, Problem


class Moved(NamedTuple):
    """Something that was moved, and where to."""

    path: Path
    to: Path


def repair(store: Path, problems: Iterable[Problem]) -> list[Moved]:
    """Move what the problems are about into the store's quarantine: a shard, a `run.json`, a file, a result.

    A run whose `run.json` was moved is not there until the same model and settings are extracted again, or
    until the file is put back; its shards stay where they are.

    Raises:
        StoreError: the store is frozen or cannot be written.
    """
    check_not_frozen(store)
    moved: list[Moved] = []
    area = store / QUARANTINE / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    for path in dict.fromkeys(unit for problem in problems if (unit := _unit(store, problem)) is not None):
        target = area / path.relative_to(store)
        with one_line_errors(path):
            if not path.is_symlink() and not path.exists():
                continue
            move(path, target)
        moved.append(Moved(path, target))
    return moved


def _unit(store: Path, problem: Problem) -> Path | None:
    """Return what has to go for a problem to be gone; None where moving something would not help."""
    if os.strerror(errno.EACCES) in problem.what:
        return None  # What may not be read need not be damaged.
    parts = problem.path.relative_to(store).parts
    if problem.what == NOT_LISTED or parts[0] == RECIPES:
        return problem.path
    if parts[0] == RESULTS:
        return store.joinpath(*parts[:2])
    if not parts[0].startswith(RUN):
        return None
    if len(parts) == 1:
        # A run without its settings: what shards it has are whole, and of use once the settings are back.
        empty = not any(problem.path.glob(f"{CONDITION}*/{SHARD}*/{MANIFEST}"))
        return problem.path if empty or problem.path.is_symlink() else None
    if parts[1] == RUN_FILE or parts[1] == ROWS or not parts[1].startswith(CONDITION):
        return problem.path
    return store.joinpath(*parts[:3])
