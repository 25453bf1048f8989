"""The engine: independent work in this process or on Ray gives the same, in order, and fails in one line."""

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from command import Call

from layercache import engine
from layercache.errors import AnalysisError, LayercacheError

on_ray = pytest.mark.xdist_group("ray")
installed = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")


def test_items_are_done_here_one_at_a_time_when_asked_for() -> None:
    done: list[int] = []
    found = engine.each(lambda item: done.append(item) or 2 * item, range(5), what="doubling")
    assert next(found) == 0
    assert done == [0]
    assert list(found) == [2, 4, 6, 8]
    assert engine.cluster() is None
    assert engine.cores() == os.cpu_count()


def test_the_local_engine_takes_no_address() -> None:
    with pytest.raises(LayercacheError, match="add --engine ray"), engine.on("local", "auto"):
        pass
    with pytest.raises(LayercacheError, match=r"no engine 'spark': use one of local, ray"), engine.on("spark"):
        pass


def test_without_ray_the_message_says_how_to_get_it(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "store").mkdir()
    done = call("extract", "demo", "--engine", "ray")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: the engine ray is not installed: pip install 'layercache[ray]'\n"
    assert not list((tmp_path / "store").iterdir())


def test_options_that_do_not_go_together_are_refused(call: Call) -> None:
    done = call("extract", "demo", "--workers", "2")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "--workers 2 goes with --engine ray" in done.err
    done = call("run", "demo", "--engine", "ray", "--devices", "cpu,cpu")
    assert done.code == 2
    assert "exclude each other" in done.err
    done = call("extract", "demo", "--address", "auto")
    assert done.code == 2
    assert "add --engine ray" in done.err


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where connections are taken and nothing is said."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        held: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        for one in held:
            one.close()


@installed
@pytest.mark.parametrize("address", ["nonsense", "host:port", "127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_an_address_where_nobody_answers_is_one_line_at_once(address: str, call: Call) -> None:
    done = call("extract", "demo", "--engine", "ray", "--address", address)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert address in done.err


@installed
def test_a_server_that_is_no_cluster_is_given_up(silent: int, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_JOIN", 1.0)
    done = call("analyze", "probe", "--engine", "ray", "--address", f"127.0.0.1:{silent}", "--store", SAMPLE)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert f"no Ray cluster answers at 127.0.0.1:{silent} (nothing that speaks for a cluster within 1 s)" in done.err


SAMPLE = Path(__file__).parents[2] / "store"


@on_ray
def test_work_on_ray_comes_back_in_order_from_other_processes(ray_here: None) -> None:
    def where(item: int) -> tuple[int, int, int]:
        return item, os.getpid(), engine.cores()

    with engine.on("ray") as cluster:
        assert cluster is not None
        assert cluster.cpus == 2
        found = list(engine.each(where, range(20), what="asking"))
    assert [item for item, _, _ in found] == list(range(20))
    assert os.getpid() not in {process for _, process, _ in found}
    assert {cores for _, _, cores in found} == {1}
    assert engine.cluster() is None


@on_ray
def test_the_users_errors_come_back_as_they_are_and_others_as_others(ray_here: None) -> None:
    def fail(item: int) -> int:
        if item == 3:
            raise AnalysisError("three cannot be done")
        if item == 9:
            raise ZeroDivisionError("a mistake of ours")
        return item

    with engine.on("ray"):
        found = engine.each(fail, range(9), what="failing")
        assert [next(found) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(AnalysisError) as error:
            next(found)
        assert (type(error.value), str(error.value)) == (AnalysisError, "three cannot be done")
        with pytest.raises(ZeroDivisionError):
            list(engine.each(fail, [9], what="failing"))


@installed
def test_ray_is_started_again_where_the_machine_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray gives itself half a minute to start, and says by a bare Exception that it took longer."""
    import ray

    begun: list[object] = []

    def init(*_: object, **__: object) -> None:
        begun.append(True)
        if len(begun) < needed:
            raise Exception("The current node timed out during startup.\nThis could happen")

    ended: list[object] = []
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    needed = 3
    assert engine._connect(None, 2, None)
    assert (len(begun), len(ended)) == (3, 2)
    begun.clear()
    needed = 4
    with pytest.raises(LayercacheError) as error:
        engine._connect(None, 2, None)
    assert len(begun) == 3
    assert str(error.value).startswith(
        "Ray could not be started on this machine (The current node timed out during startup. This could happen): run"
    )


@on_ray
def test_a_piece_that_ends_while_another_has_failed_harms_nothing(ray_here: None) -> None:
    """Cancelling a piece that is just ending makes Ray abort this process, so none is cancelled."""

    def work(item: int) -> int:
        if item == 0:
            raise AnalysisError("the first cannot be done")
        return item

    with engine.on("ray"):
        for _ in range(20):
            with pytest.raises(AnalysisError, match="the first cannot be done"):
                list(engine.each(work, range(8), what="failing"))


@on_ray
def test_a_process_that_dies_is_replaced_and_one_that_keeps_dying_is_given_up(
    ray_here: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def die_once(item: int) -> int:
        mark = tmp_path / str(item)
        if item % 3 == 0 and not mark.exists():
            mark.touch()
            os._exit(1)
        return item

    def die(item: int) -> Any:
        os._exit(1)

    with engine.on("ray"):
        assert list(engine.each(die_once, range(6), what="dying")) == list(range(6))
        assert {mark.name for mark in tmp_path.iterdir()} == {"0", "3"}
        with pytest.raises(LayercacheError, match=r"^dying: Ray lost the process that did it 4 times"):
            list(engine.each(die, [0], what="dying"))
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
