"""Extraction on Ray: Ray Data hands parts of the work to a pool of actors, each of which loads a model once.

    driver: plan → parts that lack something → a Ray Data set of them → one summary a model and data set
    actor:  the same `extract` as on one machine, on its part; publishes to the store itself, returns what it did

Only the data set's rows, the parts' names and the summaries cross between processes: what is captured goes to the store,
which every machine has to see under one path. A process that dies is replaced, and its part goes on with what is missing.
"""

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from layercache import __version__, engine
from layercache.dataset import Dataset
from layercache.engine import RETRIES, Cluster, Node
from layercache.errors import LayercacheError, ModelError
from layercache.extract import run
from layercache.extract.ray_worker import EVERY, Crew, Orders, Outcome, Tally, Worker
from layercache.extract.summary import Done, Summary, united
from layercache.parts import Part, Work
from layercache.progress import Once, Progress, Task
from layercache.recipe import ExtractSpec, ModelSpec
from layercache.store import mirror
from layercache.store.publish import staging

_FINER = 4
"""Parts a worker gets, where all are equally fast."""
_ROUNDS = 2
"""What is drawn from all samples needs every prompt's answer first, and is missing once more then."""
Pairs = Sequence[tuple[Dataset, ModelSpec]]


def extract(
    pairs: Pairs,
    spec: ExtractSpec,
    store: Path,
    progress: Progress,
    workers: int | None = None,
    part: Part | None = None,
) -> list[Summary]:
    """Run what is missing on the cluster that `engine.on` has connected to.

    Args:
        pairs: data sets and models.
        workers: processes that hold a model; when not given one on every GPU, or on every machine where there is none.
        part: run only the samples of this part.

    Returns:
        A summary a pair: what all workers did.

    Raises:
        LayercacheError: a worker failed, and said why; or kept dying. What is published is safe.
    """
    here = engine.cluster()
    assert here is not None
    crew = choose(here, spec, workers)
    store = store.resolve()
    done: list[list[Done]] = [[] for _ in pairs]
    before: list[int] | None = None
    said = Once(progress)
    with _orders(pairs, spec, store, crew, part) as orders:
        for _ in range(_ROUNDS):
            planned = _where_models_run(_plan, orders)
            before = before or [sum(work.samples for work in works) for works in planned]
            jobs = [(pair, work) for pair, works in enumerate(planned) for work in works if work.passes]
            if not jobs:
                break
            for pair, summary in _run(jobs, orders, said):
                done[pair].append(Done(summary, time.monotonic()))
                for note in summary.notes:
                    said.note(note)
        # Nothing is missing now but what parts share: rows with every answer, the head.
        last = _where_models_run(_finish, orders)
    return [
        united(whole, several, count)
        for whole, several, count in zip(last, done, before or [0] * len(pairs), strict=True)
    ]


def choose(here: Cluster, spec: ExtractSpec, workers: int | None = None) -> Crew:
    """Settle how many workers there are and what each gets: a GPU, or its share of the processors.

    Raises:
        ModelError: the settings name a single device.
        LayercacheError: the cluster has no room for so many workers.
    """
    if spec.device not in ("auto", "cpu", "cuda"):
        raise ModelError(f"device {spec.device} and --engine ray exclude each other: workers have a device each")
    on_gpus = here.gpus > 0 and spec.device != "cpu"
    having = [node for node in here.nodes if node.gpus] if on_gpus else here.nodes
    # A model that is spread over GPUs gets all of a machine.
    gpus = (min(node.gpus for node in having) if spec.device_map else 1) if on_gpus else 0

    def room(cpus: int) -> int:
        return sum(_fit(node, cpus, gpus) for node in having)

    count = workers or (room(1) if gpus else len(having))
    cpus = next((one for one in range(max(node.cpus for node in having), 0, -1) if room(one) >= count), 0)
    if not cpus:
        what = f"{here.gpus} GPUs" if gpus else f"{here.cpus} processors"
        raise LayercacheError(f"--workers {count}: the Ray cluster has {what}, room for {room(1)} workers")
    return Crew(count, cpus, gpus, max(1, -(-count // len(having))))


def _fit(node: Node, cpus: int, gpus: int) -> int:
    return min(node.cpus // cpus, node.gpus // gpus) if gpus else node.cpus // cpus


@contextmanager
def _orders(pairs: Pairs, spec: ExtractSpec, store: Path, crew: Crew, part: Part | None) -> Iterator[Orders]:
    import ray

    shared = {id(data): ray.put(data) for data, _ in pairs}
    tally = ray.remote(num_cpus=0)(Tally).remote()
    models, data = [model for _, model in pairs], [shared[id(data)] for data, _ in pairs]
    try:
        # A folder that is there for as long as this takes: who does not see it sees another store. A bucket is the same
        # from everywhere.
        with staging(store) if mirror.of(store) is None else nullcontext() as mark:
            yield Orders(__version__, spec, models, data, part, mirror.name(store), mark, crew, tally)
    finally:
        ray.kill(tally)


def _where_models_run(function: "Callable[[Orders, Worker], list[Any]]", orders: Orders) -> list[Any]:
    """Call a function where the device is of the workers' kind, since dtype and kernel, and so the run, go by it."""
    import ray

    if not orders.crew.gpus or torch.cuda.is_available():
        return function(orders, Worker(orders))
    call = ray.remote(num_cpus=orders.crew.cpus, num_gpus=orders.crew.gpus, max_retries=RETRIES)(_do)
    try:
        found: list[Any] = ray.get(call.remote(function, orders)).get()
    except ray.exceptions.RayError as error:
        raise engine.died("extract", error) from error
    return found


def _do(function: "Callable[[Orders, Worker], list[Any]]", orders: Orders) -> Outcome:
    worker = Worker(orders)
    return worker.told(lambda: function(orders, worker))


def _plan(orders: Orders, worker: "Worker") -> list[list[Work]]:
    count = max(1, -(-_FINER * orders.crew.workers // len(orders.models)))
    return [
        run.plan(model, worker.data(pair), orders.spec, worker.store, count, part=orders.part, kept=worker.kept)
        for pair, model in enumerate(orders.models)
    ]


def _finish(orders: Orders, worker: "Worker") -> list[Summary]:
    return [
        run.extract(model, worker.data(pair), orders.spec, worker.store, Progress(), part=orders.part, kept=worker.kept)
        for pair, model in enumerate(orders.models)
    ]


def _run(jobs: list[tuple[int, Work]], orders: Orders, progress: Progress) -> Iterator[tuple[int, Summary]]:
    """Let the pool run parts; yield what became of them, as they come."""
    import ray.data

    crew = orders.crew
    items = [{"pair": pair, "part": str(work.part)} for pair, work in jobs]
    total = sum(work.passes for _, work in jobs)
    passes = {(pair, str(work.part)): work.passes for pair, work in jobs}
    with _quiet(), progress.task(f"extract on {crew.workers} workers", total, "passes") as task:
        outcomes = ray.data.from_items(items, override_num_blocks=len(items)).map(
            Worker,
            fn_constructor_args=[orders],
            # No part waits for a busy actor while another one is idle. Ray Data replaces an actor that dies, and gives
            # its part to be done again, without end: who counts is the tally.
            compute=ray.data.ActorPoolStrategy(size=min(crew.workers, len(items)), max_tasks_in_flight_per_actor=1),
            num_cpus=crew.cpus,
            num_gpus=crew.gpus or None,
        )
        with _Watch(orders.tally, passes, task) as watch:
            try:
                for row in outcomes.iter_rows():
                    summary = Summary.from_json(Outcome(*json.loads(row["outcome"])).get())
                    watch.finished(row["pair"], row["part"])
                    yield int(row["pair"]), summary
            except ray.exceptions.RayError as error:
                raise engine.died("extract", error) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray Data from showing bars and plans of its own; its log file has all of it."""
    from ray.data import DataContext

    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)

    context = DataContext.get_current()
    settings = {"enable_progress_bars": False, "print_on_execution_start": False}
    before = {name: getattr(context, name) for name in settings}
    try:
        for name, value in settings.items():
            setattr(context, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


class _Watch:
    """Reads the tally now and then, and moves the driver's one bar; a context."""

    def __init__(self, tally: Any, passes: dict[tuple[int, str], int], task: Task) -> None:
        self._tally, self._passes, self._task = tally, passes, task
        self._finished: set[tuple[int, str]] = set()
        self._shown: Counter[str] = Counter()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._end.set()
        self._thread.join()
        if kind is None:
            self._show()

    def finished(self, pair: int, part: str) -> None:
        """Count all of a part."""
        self._finished.add((pair, part))

    def _watch(self) -> None:
        while not self._end.wait(EVERY):
            self._show()

    def _show(self) -> None:
        import ray

        try:
            told = ray.get(self._tally.read.remote(), timeout=5)
        except ray.exceptions.RayError:
            told = {}
        done: Counter[str] = Counter()
        for part, most in self._passes.items():
            counts = told.get(part, {})
            passes = most if part in self._finished else min(most, counts.get("", 0))
            done.update({**counts, "": passes})
        # A part that is begun again is counted again, which takes nothing back from the bar.
        more = {name: max(0, count - self._shown[name]) for name, count in done.items()}
        if any(more.values()):
            self._shown.update(more)
            self._task.advance(more.pop("", 0), **more)
