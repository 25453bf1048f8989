"""Extraction on Ray: two workers make what one process makes, whatever happens to them on the way."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from command import Call
from extract.test_parts_of_runs import check_same

from layercache import dataset, engine, study
from layercache.engine import Cluster, Node
from layercache.errors import LayercacheError, ModelError, StoreError
from layercache.extract import on_ray
from layercache.extract.ray_worker import Crew
from layercache.progress import Progress, Task
from layercache.recipe import DataSpec, ExtractSpec, ModelSpec, Recipe, build
from layercache.store import cleanup

pytestmark = [
    pytest.mark.xdist_group("ray"),
    # Ray Data sets its own deprecated settings when it copies them.
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"),
]

SETTINGS: dict[str, Any] = {
    "name": "small",
    "models": ["demo", "demo:early"],
    "data": {"source": "demo:movies", "labels": ["rating:number"], "limit": 60},
    "extract": {"layers": [0, 3, 6], "conditions": ["random-0.25"], "save_head": True},
}


@pytest.fixture(scope="module")
def asked() -> Recipe:
    return build(SETTINGS)


@pytest.fixture(scope="module")
def whole(asked: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that one process makes."""
    path = tmp_path_factory.mktemp("whole") / "store"
    study.extract(asked, path, Progress())
    return path


class Seen(Progress):
    """What the driver shows; `on_advance` is called with the passes done so far."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.bars: list[tuple[str, int]] = []
        self.done = 0
        self.on_advance = lambda: None

    @contextmanager
    def task(self, title: str, total: int, unit: str = "samples") -> Iterator[Task]:
        self.bars.append((title, total))
        seen = self

        class Counting(Task):
            def advance(self, amount: int = 1, **counts: int) -> None:
                seen.done += amount
                seen.on_advance()

        yield Counting()

    def note(self, text: str) -> None:
        self.notes.append(text)


def workers() -> list[psutil.Process]:
    """The actors of the pool: descendants of this process that Ray calls so."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::MapWorker"):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def test_two_workers_make_what_one_process_makes_though_one_is_killed(
    asked: Recipe, whole: Path, ray_here: None, tmp_path: Path
) -> None:
    seen, killed = Seen(), []

    def kill() -> None:
        if not killed and seen.done < 240:
            killed.append(workers()[0])
            killed[0].send_signal(signal.SIGKILL)

    seen.on_advance = kill
    with engine.on("ray"):
        done = study.extract(asked, tmp_path / "store", seen, workers=2)
        assert killed
        assert not killed[0].is_running()
        check_same(tmp_path / "store", whole)
        # 60 prompts, each clean and under one condition, of two models.
        assert seen.bars == [("extract on 2 workers", 240)]
        assert seen.done == 240
        assert [(one.samples, one.cached, one.part) for one in done] == [(60, 0, None)] * 2
        assert all(one.head_bytes and one.conditions[0].condition == "random-0.25" for one in done)
        # What the killed process was writing is left for `gc`, which takes it.
        cleanup.collect(tmp_path / "store", older_than=0)
        assert not list((tmp_path / "store" / ".tmp").iterdir())
        again = Seen()
        done = study.extract(asked, tmp_path / "store", again, workers=2)
        assert again.bars == []
        assert [(one.forward_passes, one.cached) for one in done] == [(0, 60)] * 2


def test_the_command_line_extracts_what_is_missing(call: Call, whole: Path, ray_here: None, tmp_path: Path) -> None:
    flags = ("--model", "demo", "--data", "demo:movies", "--label", "rating:number", "--layers", "0,3,6")
    flags += ("--condition", "random-0.25", "--store", tmp_path / "store")
    assert call("extract", *flags, "--limit", "40").code == 0
    done = call("extract", *flags, "--limit", "60", "--engine", "ray", "--workers", "2", "--json")
    assert done.code == 0, done.err
    (summary,) = done.json  # type: ignore[misc]
    assert (summary["samples"], summary["cached"], summary["new_samples"]) == (60, 40, 20)
    assert summary["forward_passes"] == 40
    lines = done.err.splitlines()
    assert lines[-1].startswith("extract on 2 workers: 40/40 passes")
    assert all(line.startswith("extract on 2 workers: ") for line in lines)


def small(tmp_path: Path, **settings: Any) -> tuple[Any, ExtractSpec, Path]:
    data = dataset.load(DataSpec(source="demo:movies", limit=8))
    return [(data, ModelSpec(model="demo"))], ExtractSpec(**{"layers": [0], **settings}), tmp_path / "store"


def between(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Change something once the work is planned, before workers begin."""
    begin = on_ray._run

    def changed(jobs: Any, orders: Any, progress: Progress) -> Any:
        change(orders)
        return begin(jobs, orders, progress)

    monkeypatch.setattr(on_ray, "_run", changed)


@pytest.mark.parametrize("lost", ["model", "store", "version", "bug"])
def test_what_is_wrong_on_a_worker_is_one_line_that_names_it(
    lost: str, ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = f"on worker {os.uname().nodename}: "

    def change(orders: Any) -> None:
        if lost == "model":
            orders.models = [ModelSpec(model=str(tmp_path / "gone"))]
        elif lost == "store":
            orders.mark = tmp_path / "elsewhere"
        elif lost == "version":
            orders.version = "0.0.1"
        else:
            orders.spec = None

    between(monkeypatch, change)
    kind, text = {
        "model": (ModelError, "put its folder at the same path on every machine"),
        "store": (StoreError, "every machine has the same folder under the same path"),
        "version": (LayercacheError, "0.0.1 where the command was given"),
        "bug": (RuntimeError, "AttributeError"),
    }[lost]
    with engine.on("ray"), pytest.raises(kind) as error:
        on_ray.extract(*small(tmp_path), Progress(), 1)
    assert str(error.value).startswith(here.strip() if lost == "bug" else here)
    assert text in str(error.value)
    assert ("\n" in str(error.value)) == (lost == "bug")
    assert not list((tmp_path / "store").glob("run=*/condition=*/shard=*"))


def test_a_part_that_kills_its_workers_is_given_up(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Deadly(list):  # type: ignore[type-arg]
        def __getitem__(self, place: Any) -> Any:
            os._exit(1)

    between(monkeypatch, lambda orders: setattr(orders, "models", Deadly()))
    monkeypatch.setattr(on_ray, "_FINER", 1)
    with engine.on("ray"), pytest.raises(LayercacheError, match=r"that runs part 0/1 died 4 times"):
        on_ray.extract(*small(tmp_path), Progress(), 1)
    assert capfd.readouterr() == ("", "")


def test_workers_get_a_gpu_each_or_their_share_of_the_processors() -> None:
    plain = ExtractSpec()
    one, two = Cluster([Node(2, 0)]), Cluster([Node(8, 0), Node(8, 0), Node(4, 0)])
    assert on_ray.choose(one, plain) == Crew(1, 2, 0, 1)
    assert on_ray.choose(one, plain, 2) == Crew(2, 1, 0, 2)
    assert on_ray.choose(two, plain) == Crew(3, 4, 0, 1)
    assert on_ray.choose(two, plain, 6) == Crew(6, 2, 0, 2)
    gpus = Cluster([Node(16, 4), Node(8, 4), Node(32, 0)])
    assert on_ray.choose(gpus, plain) == Crew(8, 2, 1, 4)
    assert on_ray.choose(gpus, plain, 3) == Crew(3, 8, 1, 2)
    assert on_ray.choose(gpus, ExtractSpec(device_map="auto")) == Crew(2, 8, 4, 1)
    assert on_ray.choose(gpus, ExtractSpec(device="cpu"), 4).gpus == 0
    with pytest.raises(LayercacheError, match="--workers 3: the Ray cluster has 2 processors, room for 2 workers"):
        on_ray.choose(one, plain, 3)
    with pytest.raises(LayercacheError, match="--workers 9: the Ray cluster has 8 GPUs, room for 8 workers"):
        on_ray.choose(gpus, plain, 9)
    with pytest.raises(ModelError, match="device cuda:1 and --engine ray exclude each other"):
        on_ray.choose(gpus, ExtractSpec(device="cuda:1"))


def test_the_driver_does_not_import_ray_unless_it_is_asked_for() -> None:
    import subprocess

    code = "import layercache.extract.on_ray, sys; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
