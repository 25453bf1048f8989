"""Writes docs/cli.md from the command line's own help: `python docs/generate_cli.py`. A test keeps the two equal."""

from pathlib import Path

import click

from layercache.cli import cli

PAGE = Path(__file__).with_name("cli.md")


def reference() -> str:
    """Return the whole page."""
    parts = ["# Command line\n\nGenerated from `--help` by `python docs/generate_cli.py`.\n"]
    parts.append(f"```\n{_help(cli, 'layercache')}\n```\n")
    for name, command in sorted(cli.commands.items()):
        parts.append(f"## layercache {name}\n\n```\n{_help(command, f'layercache {name}')}\n```\n")
    return "\n".join(parts)


def _help(command: click.Command, path: str) -> str:
    context = click.Context(command, info_name=path, max_content_width=100, terminal_width=100)
    return command.get_help(context).rstrip()


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
