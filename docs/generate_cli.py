"""Writes docs/cli.md from the command line's own help: `python docs/generate_cli.py`. A test keeps the two equal."""

from pathlib import Path
from typing import Any

import click

from layercache.cli import cli

PAGE = Path(__file__).with_name("cli.md")
_WIDTH: dict[str, Any] = {"max_content_width": 100, "terminal_width": 100}


def reference() -> str:
    """Return the whole page."""
    parts = ["# Command line\n\nGenerated from `--help` by `python docs/generate_cli.py`.\n"]
    top = click.Context(cli, info_name="layercache", **_WIDTH, **cli.context_settings)
    parts.append(f"```\n{cli.get_help(top).rstrip()}\n```\n")
    for name in cli.list_commands(top):
        command = cli.get_command(top, name)
        assert command is not None
        # Under its parent, as when it is called: the help option's names come from there.
        context = click.Context(command, info_name=name, parent=top, **_WIDTH)
        parts.append(f"## layercache {name}\n\n```\n{command.get_help(context).rstrip()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
