"""Extracts in processes that start at once and may be killed: forked from one that has loaded the libraries.

    python nursery.py STORE DATA MODEL kill COUNT SEED     kill -9 COUNT extractions at random moments
    python nursery.py STORE DATA MODEL race START:LIMIT …  extractions of parts of the data, all at once

Both end by extracting everything that is still missing, without disturbance; and all of it once more into a store
called `whole` beside the other.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from layercache import dataset
from layercache.extract.run import extract
from layercache.progress import Progress
from layercache.recipe import DataSpec, ExtractSpec, ModelSpec
from layercache.store.verify import verify


def work(store: Path, data: Path, model: str) -> None:
    """Extract, with a shard for every batch: a run of seconds then has many moments to be killed at."""
    loaded = dataset.load(DataSpec(source=str(data), template="{prompt}"))
    spec = ExtractSpec(batch_tokens=256, lens=["last"], self_check=False)
    extract(ModelSpec(model=model), loaded, spec, store, Progress(), shard_seconds=0)


def forked(store: Path, data: Path, model: str) -> int:
    """Start an extraction; return its process id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work(store, data, model)
            status = 0
        finally:
            # Nothing of the parent is to be run a second time.
            os._exit(status)
    return child


def ended_well(child: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def kill(store: Path, data: Path, model: str, count: int, seed: int, usual: float) -> None:
    rng = random.Random(seed)
    for _ in range(count):
        child = forked(store, data, model)
        time.sleep(rng.uniform(0, usual / 2))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        problems = verify(store, deep=True) if store.exists() else []
        assert problems == [], problems


def race(store: Path, data: Path, model: str, parts: list[str]) -> None:
    lines = data.read_text().splitlines()
    children = []
    for part in parts:
        start, limit = map(int, part.split(":"))
        # Of one name, as when several people run the same command with another --limit.
        folder = data.parent / part
        folder.mkdir()
        (folder / data.name).write_text("\n".join(lines[start : start + limit]))
        children.append(forked(store, folder / data.name, model))
    ended = [ended_well(child) for child in children]
    assert all(ended), ended


if __name__ == "__main__":
    store, data, model, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    started = time.monotonic()
    assert ended_well(forked(store.with_name("whole"), data, model))
    if what == "kill":
        kill(store, data, model, int(sys.argv[5]), int(sys.argv[6]), time.monotonic() - started)
    else:
        race(store, data, model, sys.argv[5:])
    assert ended_well(forked(store, data, model))
