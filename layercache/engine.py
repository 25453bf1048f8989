"""Where independent pieces of work are done: in this process, or on Ray.

    with engine.on("ray", "auto"):
        for found in engine.each(fit, layers, what="probe"):
            ...

Code that loops over independent items calls `each` and does not ask where it runs. Ray is imported only when it is asked for.
"""

import os
import platform
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from layercache.errors import LayercacheError

Name = Literal["local", "ray"]
NAMES: tuple[str, ...] = get_args(Name)
I = TypeVar("I")  # noqa: E741
R = TypeVar("R")

OBJECT_STORE = 200 * 2**20
"""Bytes of shared memory that a Ray started here has: what crosses it is small."""
_DIAL, _JOIN = 5.0, 40.0
"""Seconds in which a cluster has to take a connection, and to take a driver in."""
RETRIES = 3
"""Times that a piece of work is done again when the process that did it dies."""
_STARTS = 3
"""Times that Ray is started here before it is given up: it gives itself half a minute, too little for a busy machine."""
_AHEAD = 2
"""Pieces handed over for every processor, so that none waits for the next one."""
_JOINING = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')"


class Node(NamedTuple):
    """A machine's processors and GPUs, as Ray counts them."""

    cpus: int
    gpus: int


class Cluster(NamedTuple):
    """The machines that Ray offers."""

    nodes: list[Node]

    @property
    def cpus(self) -> int:
        """Processors of all machines."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        """GPUs of all machines."""
        return sum(node.gpus for node in self.nodes)


_cluster: ContextVar[Cluster | None] = ContextVar("cluster", default=None)
_cores: ContextVar[int | None] = ContextVar("cores", default=None)
_kept: tuple[str, Callable[[Any], Any]] | None = None
"""On a worker: the function of the last piece of work, so that what it has read is not read again for the next."""


def cluster() -> Cluster | None:
    """Return the Ray cluster that work is done on; None where it is done in this process."""
    return _cluster.get()


def cores() -> int:
    """Return how many processors this process may use: all of them, on a worker of Ray those it was given."""
    return _cores.get() or os.cpu_count() or 1


def each(function: Callable[[I], R], items: Iterable[I], *, what: str) -> Iterator[R]:
    """Apply a function to items that are independent of one another; yield what it returns, in their order.

    In this process an item is done when it is asked for. On Ray items are done ahead, on as many processors as there are, one
    each; the function is shipped once, pickled by value, so it should hold a `Store`, which is opened again by its path,
    rather than what is in one. What a process that dies was doing is done again.

    Args:
        function: takes one item; must change nothing that another call sees.
        items: small and picklable.
        what: what is done, for the message where it cannot be.

    Raises:
        LayercacheError: the function's own errors come as they are; or the processes that do an item keep dying.
    """
    here = _cluster.get()
    if here is None:
        return map(function, items)
    import ray

    shared = ray.put(function)
    call = ray.remote(num_cpus=1, max_retries=RETRIES)(_call)
    # Begun at once, not when the first result is asked for.
    begun = (call.remote([shared], item, platform.node()) for item in items)
    return _in_order(deque(islice(begun, _AHEAD * here.cpus)), begun, what)


def _in_order(waiting: deque[Any], further: Iterator[Any], what: str) -> Iterator[Any]:
    # What was begun when one fails is let be: cancelling a piece in the moment that it ends makes Ray abort this process
    # (a check in its C++ fails), and no more than a few for every processor are under way.
    while waiting:
        found = _taken(waiting[0], what)
        waiting.popleft()
        waiting.extend(islice(further, 1))
        yield found


def _taken(result: Any, what: str) -> Any:
    import ray

    try:
        found, error = ray.get(result)
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as lost:
        raise died(what, lost) from lost
    if error is not None:
        raise error
    return found


def _call(shared: list[Any], item: Any, driver: str) -> tuple[Any, LayercacheError | None]:
    """Do one item on a worker. The user's errors are returned: what Ray raises is a traceback."""
    import ray

    global _kept
    name = shared[0].hex()
    if _kept is None or _kept[0] != name:
        _kept = (name, ray.get(shared[0]))
    _cores.set(1)
    try:
        return _kept[1](item), None
    except LayercacheError as error:
        here = platform.node()
        return None, error if here == driver else type(error)(f"on worker {here}: {error}")


def died(what: str, error: Exception) -> LayercacheError:
    """Say that processes of Ray keep dying over a piece of work."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return LayercacheError(
        f"{what}: Ray lost the process that did it {RETRIES + 1} times ({reason}); if it ran out of memory use fewer"
        " workers. What is published is safe, and the same command does the rest"
    )


@contextmanager
def on(
    name: str, address: str | None = None, *, cpus: int | None = None, temp: Path | None = None
) -> Iterator[Cluster | None]:
    """Let `each` work elsewhere for a while.

    Args:
        name: `local`, this process; or `ray`.
        address: of a running cluster: `auto` (the one on this machine), `host:6379` from a machine that belongs to it,
            `ray://host:10001` from one that does not. Without one that of the variable RAY_ADDRESS; where there is none
            either, Ray is started on this machine and stopped again.
        cpus: processors that a Ray started here counts; all when not given.
        temp: where a Ray started here puts its logs and sockets; a short path. RAY_TMPDIR, else /tmp/ray, when not given.

    Raises:
        LayercacheError: an unknown name, Ray is not installed, or no cluster answers.
    """
    if name not in NAMES:
        raise LayercacheError(f"no engine {name!r}: use one of {', '.join(NAMES)}")
    if name == "local":
        if address is not None:
            raise LayercacheError(f"--address {address} is of a Ray cluster: add --engine ray")
        yield None
        return
    ours = _connect(address or os.environ.get("RAY_ADDRESS") or None, cpus, temp)
    try:
        token = _cluster.set(_look())
        try:
            yield _cluster.get()
        finally:
            _cluster.reset(token)
    finally:
        if ours:
            import ray

            ray.shutdown()


def _look() -> Cluster:
    import ray

    alive = [one["Resources"] for one in ray.nodes() if one["Alive"]]
    nodes = [Node(int(one.get("CPU", 0)), int(one.get("GPU", 0))) for one in alive]
    found = Cluster([node for node in nodes if node.cpus])
    if not found.nodes:
        raise LayercacheError("no machine of the Ray cluster offers a processor: add one with `ray start`")
    return found


def _connect(address: str | None, cpus: int | None, temp: Path | None) -> bool:
    """Connect to a cluster or start one; return whether that is ours to end."""
    # Settled when Ray is imported: it sends nothing home, and prints nothing of workers on stdout, which is for data.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
    except ImportError as error:
        raise LayercacheError("the engine ray is not installed: pip install 'layercache[ray]'") from error
    if address is not None and address != "local":
        # Also where this process is connected already: a name that leads nowhere is a mistake in any case.
        _dial(address)
        _rehearse(address)
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None or address == "local":
        started = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
        _start(temp, {**started, **quiet})
        return True
    with _hushed():
        ray.init(address, **quiet)
    return True


def _start(temp: Path | None, settings: dict[str, Any]) -> None:
    """Start Ray on this machine.

    Raises:
        LayercacheError: it does not come up.
    """
    import ray

    for attempt in range(_STARTS):
        try:
            with _hushed():
                ray.init("local", _temp_dir=None if temp is None else str(temp.resolve()), **settings)
            return
        except Exception as error:  # Ray says so by an error of no class of its own.
            reason = " ".join(str(error).split())
            if attempt == _STARTS - 1:
                raise LayercacheError(
                    f"Ray could not be started on this machine ({reason}): run the same command when it is less busy, or"
                    " without --engine ray"
                ) from error
            ray.shutdown()


@contextmanager
def _hushed() -> Iterator[None]:
    """Throw away what is written to standard error by other than Python: Ray greets there."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _dial(address: str) -> None:
    """See whether anything takes a connection at host:port; `auto` has to be asked."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise LayercacheError(f"--address {address!r} is none of a Ray cluster: auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_DIAL).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(error)) from error


def _rehearse(address: str) -> None:
    """Join the cluster in a process that can be stopped: Ray waits for minutes, or ends the process that it is in."""
    try:
        done = subprocess.run([sys.executable, "-c", _JOINING, address], capture_output=True, text=True, timeout=_JOIN)
    except subprocess.TimeoutExpired as error:
        raise _unreachable(address, f"nothing that speaks for a cluster within {_JOIN:.0f} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise _unreachable(address, lines[-1].strip() if lines else f"exit code {done.returncode}")


def _unreachable(address: str, reason: str) -> LayercacheError:
    return LayercacheError(
        f"no Ray cluster answers at {address} ({reason}): start one with `ray start --head`, use ray://HOST:10001 from a"
        " machine that is not part of it, or leave --address out to start one here"
    )
