"""What an actor of the pool is told and does, in `extract.on_ray`, and how it says how far it is."""

import json
import platform
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from layercache import __version__, errors, parts
from layercache.dataset import Dataset
from layercache.engine import RETRIES
from layercache.errors import LayercacheError, ModelError, StoreError
from layercache.parts import Part
from layercache.progress import Notes, Task
from layercache.recipe import ExtractSpec, ModelSpec

if TYPE_CHECKING:
    from layercache.extract.kept import Kept
    from layercache.extract.summary import Summary

EVERY = 0.5
"""Seconds between two reports of progress."""


class Crew(NamedTuple):
    """Workers, and what each has: processors, GPUs; and how many of them a machine's memory is shared by."""

    workers: int
    cpus: int
    gpus: int
    shared_by: int


@dataclass
class Orders:
    """What every worker is told: what to run, by the place among the pairs, and where to.

    `store` is a path, or the URL of a place in a bucket; `mark` a folder in it that whoever sees the same store sees.
    """

    version: str
    spec: ExtractSpec
    models: list[ModelSpec]
    data: list[Any]
    part: Part | None
    store: str
    mark: Path | None
    crew: Crew
    tally: Any


class Outcome(NamedTuple):
    """What a piece of work gave, or the error that it ended with: its class's name and arguments."""

    value: Any
    error: str = ""
    arguments: tuple[Any, ...] = ()

    def get(self) -> Any:
        """Return the value, or raise the error."""
        if not self.error:
            return self.value
        kinds = {"OSError": OSError, "RuntimeError": RuntimeError, **vars(errors)}
        raise kinds[self.error](*self.arguments)


class Worker:
    """Runs parts, one after the other, with the model that it has loaded; an actor of the pool."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._data: tuple[Any, Dataset] | None = None
        self._seen: set[int] = set()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Run one part; what is the user's to mend is returned, since Ray would make a traceback of it."""
        outcome = self.told(lambda: self._part(int(row["pair"]), row["part"]).as_json())
        return {**row, "outcome": json.dumps(outcome)}

    @cached_property
    def kept(self) -> "Kept":
        """What the parts that this worker runs share."""
        from layercache.extract.kept import Kept

        return Kept()

    @cached_property
    def store(self) -> Path:
        """Where the store is on this machine."""
        from layercache.store import mirror

        return mirror.located(self._orders.store)

    def told(self, work: Callable[[], Any]) -> Outcome:
        """Return what a piece of work gave, or the error that it ended with."""
        here = platform.node()
        try:
            return Outcome(work())
        except LayercacheError as error:
            return Outcome(None, type(error).__name__, (f"on worker {here}: {error}",))
        except OSError as error:
            return Outcome(None, "OSError", (error.errno, error.strerror, error.filename and str(error.filename)))
        except Exception:
            return Outcome(None, "RuntimeError", (f"on worker {here}:\n{traceback.format_exc()}",))

    def data(self, pair: int) -> Dataset:
        """Return the data set of a pair; the last one is kept."""
        import ray

        wanted = self._orders.data[pair]
        if self._data is None or self._data[0] != wanted:
            self._data = wanted, ray.get(wanted)
        return self._data[1]

    def _part(self, pair: int, part: str) -> "Summary":
        import ray

        orders = self._orders
        # Before all else, so that whatever ends the process is counted.
        begun = ray.get(orders.tally.begin.remote((pair, part)))
        if begun > RETRIES + 1:
            raise LayercacheError(
                f"the process that runs part {part} died {begun - 1} times; where it ran out of memory use fewer workers"
                " or a smaller batch_tokens. The same command does the rest"
            )
        import torch

        from layercache.extract import batching, run

        model = orders.models[pair]
        batching.CPU_SHARED_BY[0] = orders.crew.shared_by
        torch.set_num_threads(orders.crew.cpus)
        if pair not in self._seen:
            self._look(model)
            self._seen.add(pair)
        told = _Told(orders.tally, (pair, part))
        return run.extract(
            model, self.data(pair), orders.spec, self.store, told, part=parts.parse(part), kept=self.kept
        )

    def _look(self, model: ModelSpec) -> None:
        """See that this machine has what the driver has."""
        from layercache.extract import job

        orders = self._orders
        if orders.version != __version__:
            raise LayercacheError(
                f"layercache {__version__} is installed, and {orders.version} where the command was given: install the"
                " same on every machine"
            )
        if orders.mark is not None and not orders.mark.is_dir():
            raise StoreError(
                f"the store {orders.store} is not the one of the machine where the command was given: put it where"
                " every machine has the same folder under the same path"
            )
        try:
            job.find(model, orders.spec)
        except ModelError as error:
            raise ModelError(
                f"{error}; every worker has to find the model under that name: put its folder at the same path on every"
                " machine, or on a disk that they share"
            ) from error


class Tally:
    """Counts what workers have run of every part; an actor of its own."""

    def __init__(self) -> None:
        self._done: dict[tuple[int, str], Counter[str]] = {}
        self._begun: Counter[tuple[int, str]] = Counter()

    def begin(self, part: tuple[int, str]) -> int:
        """Count a part from nothing: it is begun, or begun again; return how often that was."""
        self._done[part] = Counter()
        self._begun[part] += 1
        return self._begun[part]

    def add(self, part: tuple[int, str], counts: dict[str, int]) -> None:
        """Add to a part."""
        self._done[part].update(counts)

    def read(self) -> dict[tuple[int, str], dict[str, int]]:
        """Return the counts of every part that was begun."""
        return {part: dict(counts) for part, counts in self._done.items()}


class _Told(Notes, Task):
    """A worker's progress, which the tally is told of now and then."""

    def __init__(self, tally: Any, part: tuple[int, str]) -> None:
        super().__init__()
        self._tally, self._part = tally, part
        self._new: Counter[str] = Counter()
        self._last = time.monotonic()

    @contextmanager
    def task(self, title: str, total: int, unit: str = "samples") -> Iterator[Task]:
        """Open a piece of work: one of the part's."""
        yield self

    def advance(self, amount: int = 1, **counts: int) -> None:
        """Count units done."""
        self._new.update({"": amount, **counts})
        if time.monotonic() - self._last >= EVERY:
            self._tally.add.remote(self._part, dict(self._new))
            self._new, self._last = Counter(), time.monotonic()
