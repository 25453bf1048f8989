"""`--shard`, `plan` and `--devices`: processes that share the work end as one run, also where some of them fail."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command import Call

import layercache
from layercache import parts
from layercache.errors import ModelError
from layercache.extract import crew, devices
from layercache.extract.summary import Done, Summary, united
from layercache.recipe import ExtractSpec

from .test_parts_of_runs import check_same

CROWD = Path(__file__).parents[1] / "crowd.py"
RECIPE = """
name = "parts"
models = [{model}]
[[data]]
name = "films"
source = {source}
template = "{{what}}: {{text}}"
answers = "answer"
labels = ["year:number"]
[extract]
{settings}
"""
PLAIN = """
layers = [0, 2, 4]
lens = ["last"]
stats = ["curvature"]
save_head = true
conditions = ["knockout-what", "patch-what"]
"""
ANSWERS = """
layers = [1, 3]
pooling = ["last@answer"]
generate_answer = true
max_new_tokens = 3
conditions = ["patch-what", "answer-only"]
"""


@pytest.fixture
def recipe(tmp_path: Path, models_of: Callable[..., Path]) -> Callable[[str], str]:
    """Write a recipe with a name that a shell would trip over."""
    rows = [
        {"what": f"Film {n % 9} of {n}", "text": f"about {n * 7 % 50} boats", "year": 1900 + n, "answer": "boats"}
        for n in range(24)
    ]

    def write(settings: str) -> str:
        (tmp_path / "films.jsonl").write_text("\n".join(map(json.dumps, rows)))
        path = tmp_path / 'it\'s $(odd) & "quoted".toml'
        model, source = (json.dumps(str(one)) for one in (models_of("llama"), tmp_path / "films.jsonl"))
        path.write_text(RECIPE.format(model=model, source=source, settings=settings))
        return path.name

    return write


@pytest.fixture(autouse=True)
def _found_by_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let other processes find this package and this interpreter's `layercache`, and share two cores."""
    monkeypatch.setenv("PYTHONPATH", str(Path(layercache.__file__).parents[1]))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def crowd(commands: list[list[str]]) -> None:
    """Run commands at once, each in a process of its own; none may fail."""
    done = subprocess.run(
        [sys.executable, str(CROWD)], input=json.dumps(commands), capture_output=True, text=True, check=True
    )
    for code, errors in json.loads(done.stdout):
        assert code == 0, errors


def test_four_processes_make_one_run_in_one_store_or_in_stores_of_their_own(
    call: Call, recipe: Callable[[str], str], tmp_path: Path
) -> None:
    name = recipe(PLAIN)
    assert call("extract", name, "--store", "whole").code == 0
    planned: Any = call("plan", name, "--shards", 4, "--format", "json", "--store", "shared").json
    assert [one["shard"] for one in planned] == ["0/4", "1/4", "2/4", "3/4"]
    whole: Any = call("extract", name, "--store", "empty", "--dry-run", "--json").json
    assert sum(one["samples"] for one in planned) == whole[0]["samples"] == 24
    assert sum(one["passes"] for one in planned) == whole[0]["forward_passes"]
    assert sum(one["tokens"] for one in planned) == whole[0]["tokens"]
    assert [one["files"] for one in planned] == [["head"], [], [], []]
    own = [
        [f"--store=own-{one['index']}" if word.startswith("--store=") else word for word in one["command"]]
        for one in planned
    ]
    crowd([*(one["command"] for one in planned), *own])
    check_same(tmp_path / "shared", tmp_path / "whole")
    assert call("merge", *(f"own-{index}" for index in range(4)), "--store", "merged").code == 0
    check_same(tmp_path / "merged", tmp_path / "whole")
    for made in ("shared", "merged"):
        for what in ("run=*/run.json", "run=*/rows/*", "run=*/head-*.safetensors", "recipes/*"):
            (found,), (expected,) = (list((tmp_path / store).glob(what)) for store in (made, "whole"))
            assert found.name == expected.name
            assert found.read_bytes() == expected.read_bytes()
        none = call("plan", name, "--shards", 4, "--store", made)
        assert (none.code, none.out) == (0, "")
        assert none.err == "nothing is missing: there is no job to run\n"
        assert call("plan", name, "--shards", 4, "--store", made, "--format", "json").json == []


def test_a_plan_lists_what_is_missing_and_its_commands_run_as_they_are(
    call: Call, recipe: Callable[[str], str], tmp_path: Path
) -> None:
    name = recipe("layers = [1, 2]\nconditions = ['repeat-0.5']")
    assert call("extract", name, "--shard", "4/4").code == 0
    assert call("extract", name, "--shard", "2/4").code == 0
    # Of part 2 what it was under one condition goes; which shard it is its samples say.
    for shard in (tmp_path / "store").glob("run=*/condition=repeat-0.5/shard=*"):
        (first, *_) = pq.read_table(shard / "samples.parquet")["sample_id"].to_pylist()
        if parts.number(first, 4) == 2:
            shutil.rmtree(shard)
    planned: Any = call("plan", name, "--shards", 4, "--format", "json").json
    assert [one["index"] for one in planned] == [1, 2, 3]
    assert [one["passes"] / one["samples"] for one in planned] == [2, 1, 2]
    slurm = call("plan", name, "--shards", 4, "--format", "slurm")
    assert "#SBATCH --array=1-3\n" in slurm.out
    (tmp_path / "job.sh").write_text(slurm.out)
    subprocess.run(["bash", "job.sh"], check=True, env={**os.environ, "SLURM_ARRAY_TASK_ID": "2"})
    lines = call("plan", name, "--shards", 4)
    assert len(lines.out.splitlines()) == 2
    assert lines.err.splitlines()[0].startswith("part 1/4: ")
    subprocess.run(["sh", "-c", lines.out.splitlines()[0]], check=True, capture_output=True)
    left: Any = call("plan", name, "--shards", 4, "--format", "json").json
    assert [one["index"] for one in left] == [3]


def test_new_labels_alone_are_a_job_without_a_pass(call: Call, recipe: Callable[[str], str]) -> None:
    name = recipe("layers = [1]")
    assert call("extract", name).code == 0
    (job,) = call("plan", name, "--shards", 3, "--set", "data.0.labels=year:category", "--format", "json").json  # type: ignore[misc]
    assert (job["index"], job["passes"], job["files"]) == (0, 0, ["rows"])


def test_two_devices_do_the_rest_when_a_process_dies_and_the_same_command_ends_the_run(
    call: Call, recipe: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = recipe(ANSWERS)
    assert call("extract", name, "--store", "whole").code == 0
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, signal, sys\n"
        "from layercache.extract import device_worker\n"
        "work = device_worker.extract\n"
        "def once(*given, **named):\n"
        "    try:\n"
        f"        os.close(os.open({str(tmp_path / 'dead')!r}, os.O_CREAT | os.O_EXCL))\n"
        "    except FileExistsError:\n"
        "        return work(*given, **named)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "device_worker.extract = once\n"
        "device_worker.main()\n"
    )
    monkeypatch.setattr(crew, "WORKER", (str(script),))
    failed = call("extract", name, "--devices", "cpu,cpu")
    assert failed.code == 2
    last = failed.err.strip().splitlines()[-1]
    assert last.startswith("error: cpu (part "), failed.err
    assert "its process was ended by SIGKILL, as when memory runs out; the other parts are done" in last
    left: Any = call("plan", name, "--shards", 8, "--format", "json").json
    part = last.partition("(part ")[2].partition(")")[0]
    assert part in [one["shard"] for one in left]
    assert next(one["samples"] for one in left if one["shard"] == part) > 0
    done = call("extract", name, "--devices", "cpu,cpu", "--json")
    assert done.code == 0, done.err
    (summary,) = done.json  # type: ignore[misc]
    assert summary["new_answers"] == next(one["samples"] for one in left if one["shard"] == part)
    assert (summary["samples"], summary["waiting"], summary["part"]) == (24, [], None)
    check_same(tmp_path / "store", tmp_path / "whole")
    bars = [line for line in done.err.splitlines() if line.startswith("extract films on 2 devices: ")]
    assert bars, done.err
    assert call("plan", name, "--shards", 8).out == ""


def test_ctrl_c_ends_every_process(
    call: Call, recipe: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "worker.py"
    # What a worker does when it is told to stop, without what takes long to load.
    script.write_text(
        "import os, signal, sys, threading\n"
        "sys.stdin.readline()\n"
        f"open(os.path.join({str(tmp_path)!r}, f'{{os.getpid()}}.pid'), 'w').close()\n"
        "try:\n"
        "    signal.pause()\n"
        "except KeyboardInterrupt:\n"
        "    os._exit(130)\n"
    )
    monkeypatch.setattr(crew, "WORKER", (str(script),))
    name = recipe("layers = [1]")

    def interrupt() -> None:
        until = time.monotonic() + 60
        while len(list(tmp_path.glob("*.pid"))) < 2 and time.monotonic() < until:
            threading.Event().wait(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    stopped = call("extract", name, "--devices", "cpu,cpu")
    watcher.join()
    assert stopped.code == 130
    assert "interrupted: " in stopped.err
    assert "go on with: layercache extract " in stopped.err
    processes = [int(path.stem) for path in tmp_path.glob("*.pid")]
    assert len(processes) == 2
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


@pytest.mark.parametrize(
    ("given", "settings", "why"),
    [
        (["abacus"], {}, "device 'abacus' is none"),
        (["cuda:7"], {}, "device cuda:7 is not there: this machine has 2 GPUs"),
        (["cuda:0", "cpu"], {}, "of one kind"),
        (["cuda:0", "cuda:1", "cuda:0"], {}, "cuda:0 is given twice"),
        (["meta"], {}, "device meta cannot be used"),
        (["cpu", "cpu"], {"device": "cpu"}, "--devices and device cpu exclude each other"),
        (["cpu"], {"device_map": "auto"}, "--devices and device_map auto exclude each other"),
    ],
)
def test_devices_that_cannot_be_used_are_refused_before_anything_starts(
    given: list[str], settings: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ModelError, match=why):
        devices.check(given, ExtractSpec(**settings))


def test_devices_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert devices.names(["all"]) == ["cuda:0", "cuda:1"]
    devices.check(["cuda:0", "cuda:1"], ExtractSpec())
    devices.check(["all"], ExtractSpec())
    devices.check(["cpu", "cpu", "cpu"], ExtractSpec())
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ModelError, match="there is no GPU"):
        devices.check(["all"], ExtractSpec())


def test_a_run_that_was_shared_takes_the_time_in_which_anybody_was_at_it() -> None:
    def done(seconds: float, at: float) -> Done:
        return Done(Summary("run", "model", "data", samples=4, forward_passes=1, seconds=seconds), at)

    whole = Summary("run", "model", "data", samples=4, seconds=0.5)
    # From 10 to 14 on two devices, which overlap or follow at once; then from 20 to 23, one within the other.
    parts = [done(3, 13), done(2, 12), done(1, 14), done(3, 23), done(1, 22)]
    found = united(whole, parts, 4)
    assert found.seconds == pytest.approx(4 + 3 + 0.5)
    assert found.forward_passes == 5
    assert united(whole, [], 0).seconds == 0.5


@pytest.mark.parametrize("text", ["0/0", "5/4", "a/b", "-1/4"])
def test_a_shard_that_is_none_is_refused(call: Call, text: str, tmp_path: Path) -> None:
    refused = call("extract", "demo", "--shard", text)
    assert refused.code == 2
    assert refused.err.startswith("error: shard ")
    assert refused.err.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_a_study_is_not_done_by_parts(call: Call) -> None:
    refused = call("run", "demo", "--shard", "1/4")
    assert refused.code == 2
    assert "`layercache extract demo --shard 1/4` for every part" in refused.err


def test_devices_are_read_from_the_command_line(call: Call) -> None:
    refused = call("extract", "demo", "--devices", "cpu,,cpu")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "give devices separated by commas" in refused.err
