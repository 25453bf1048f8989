"""The job lists that `plan` prints: what is in them, and that every word comes out of a shell as it went in."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from layercache import jobs
from layercache.errors import RecipeError
from layercache.jobs import Command
from layercache.parts import Part, Work

HOSTILE = 'it\'s $(touch hit) `touch hit`; touch hit & "$HOME" \\ *#!~ ünï'
COMMAND = Command(f"-{HOSTILE}/-x.toml", (f"title={HOSTILE}", "--set=a\tb", ""), f"-{HOSTILE}/store", 6)
WORKS = [Work(Part(index, 6), 10, 12, 1000 * index, 2_000_000) for index in (0, 2, 3)]


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """An environment in which `layercache` keeps the words that it is called with."""
    program = tmp_path / "bin" / "layercache"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf \'%s\\0\' layercache "$@" > "$KEPT"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "KEPT": str(tmp_path / "kept")}


def called(command: list[str], shell: dict[str, str], tmp_path: Path, **more: str) -> list[str]:
    subprocess.run(command, check=True, env={**shell, **more}, cwd=tmp_path)
    assert not (tmp_path / "hit").exists()
    return (tmp_path / "kept").read_bytes().decode().split("\0")[:-1]


def test_a_line_is_the_command_whatever_is_in_its_words(shell: dict[str, str], tmp_path: Path) -> None:
    lines = jobs.sh(COMMAND, WORKS).split("\n")
    assert len(lines) == 3
    for line, work in zip(lines, WORKS, strict=True):
        words = called(["sh", "-c", line], shell, tmp_path)
        assert words == COMMAND.words(str(work.part.index))
        assert words[-1] == COMMAND.recipe
        assert words[2:4] == [f"--shard={work.part}", f"--store={COMMAND.store}"]


@pytest.mark.parametrize("index", [0, 2, 3])
def test_a_script_for_slurm_is_the_command_of_its_index(shell: dict[str, str], tmp_path: Path, index: int) -> None:
    (tmp_path / "job").write_text(jobs.slurm(COMMAND, WORKS))
    words = called(["bash", str(tmp_path / "job")], shell, tmp_path, SLURM_ARRAY_TASK_ID=str(index))
    assert words == COMMAND.words(str(index))


def test_a_script_for_slurm_opens_with_its_array_and_a_name_of_plain_letters() -> None:
    lines = jobs.slurm(COMMAND, WORKS).split("\n")
    assert lines[:3] == ["#!/bin/bash", "#SBATCH --job-name=layercache-x", "#SBATCH --array=0,2,3"]
    assert lines[3] == "# part 0/6: 10 samples in 12 passes, 0 tokens, about 2.0 MB"
    assert sum(line.startswith("#SBATCH") for line in lines) == 2


def test_a_line_break_is_quoted_in_a_script_and_refused_where_a_command_is_a_line(
    shell: dict[str, str], tmp_path: Path
) -> None:
    command = COMMAND.__class__("movies", ("title=a\n#SBATCH --uid=0\nb",), "store", 6)
    (tmp_path / "job").write_text(jobs.slurm(command, WORKS))
    assert called(["bash", str(tmp_path / "job")], shell, tmp_path, SLURM_ARRAY_TASK_ID="2") == command.words("2")
    with pytest.raises(RecipeError, match="line break"):
        jobs.sh(command, WORKS)


@pytest.mark.parametrize(
    ("indices", "text"), [([0, 2, 3], "0,2,3"), ([0, 1, 2, 3, 7, 9, 10, 11], "0-3,7,9-11"), ([5], "5")]
)
def test_an_array_is_exactly_the_parts(indices: list[int], text: str) -> None:
    works = [Work(Part(index, 20), passes=1) for index in indices]
    assert f"#SBATCH --array={text}" in jobs.slurm(COMMAND, works).split("\n")


def test_json_says_what_each_job_takes() -> None:
    listed = json.loads(jobs.as_json(COMMAND, WORKS))
    assert [one["index"] for one in listed] == [0, 2, 3]
    assert listed[1] == {
        "shard": "2/6",
        "index": 2,
        "count": 6,
        "samples": 10,
        "passes": 12,
        "tokens": 2000,
        "bytes": 2_000_000,
        "files": [],
        "command": COMMAND.words("2"),
    }


def test_what_several_models_lack_adds_up_and_what_is_complete_is_left_out() -> None:
    one = [Work(Part(0, 3), 1, 2, 3, 4), Work(Part(1, 3)), Work(Part(2, 3), files=("head",), bytes=5)]
    other = [Work(Part(0, 3), 10, 20, 30, 40, ("head",)), Work(Part(1, 3)), Work(Part(2, 3), 1, 1, 1, 1, ("head",))]
    assert jobs.combined([one, other]) == [
        Work(Part(0, 3), 11, 22, 33, 44, ("head",)),
        Work(Part(2, 3), 1, 1, 1, 6, ("head",)),
    ]
    assert (
        jobs.told(jobs.combined([one, other])[1])
        == "part 2/3: 1 samples in 1 passes, 1 tokens, about 6 bytes, and the head"
    )
