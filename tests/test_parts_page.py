"""The page about parts: every command that it shows is one."""

import re
import shlex
from pathlib import Path

import click
import pytest

from layercache.cli import cli
from layercache.recipe import load

PAGE = (Path(__file__).parents[1] / "docs" / "parts.md").read_text()
SHOWN = re.findall(r"layercache (?:extract|plan|run|merge) [^\n|>&`'\]]+", PAGE)


def test_the_page_shows_commands() -> None:
    assert len(SHOWN) >= 15


@pytest.mark.parametrize("line", dict.fromkeys(SHOWN))
def test_a_command_of_the_page_is_taken_as_it_is(line: str) -> None:
    line = line.strip().replace("$JOB_COMPLETION_INDEX", "0").replace("${SLURM_ARRAY_TASK_ID}", "2").replace("$i", "1")
    _, name, *words = shlex.split(line)
    top = click.Context(cli, info_name="layercache", **cli.context_settings)
    command = cli.get_command(top, name)
    assert command is not None
    if line.endswith("--shard I/N"):
        return
    context = command.make_context(name, words, parent=top)
    recipe = context.params.get("recipe_name")
    if recipe is not None:
        load(recipe, context.params["settings"])
