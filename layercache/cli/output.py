"""What commands print: JSON, tables as wide as the terminal, notes and progress on stderr."""

import json
import shutil
import sys
from typing import Any

import click


def reporter(quiet: bool) -> Any:
    """Return what a stage reports to; nothing is heard of it when `quiet`."""
    from layercache.progress import Progress, TerminalProgress

    return Progress() if quiet else TerminalProgress()


def named(text: str) -> str:
    """Name stores in buckets by their URLs; without having imported what knows them, no text speaks of one."""
    mirror = sys.modules.get("layercache.store.mirror")
    return text if mirror is None else str(mirror.told(text))


def width() -> int | None:
    """The terminal's width; None, for tables in full, where stdout is not one."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_json(value: Any) -> None:
    """Print a value as JSON; paths and dates as text."""
    click.echo(named(json.dumps(value, indent=2, ensure_ascii=False, default=str)))


def say_extracted(summaries: list[Any], progress: Any) -> None:
    """Note what was extracted."""
    for summary in summaries:
        progress.note(str(summary))


def say_analysed(analysed: list[Any], progress: Any) -> None:
    """Print what the analyses found."""
    from layercache.analyze.summary import summarise

    for one in analysed:
        if one.cached:
            progress.note(f"{one.kind}: nothing has changed, read from {named(str(one.path))}")
        elif one.path is None:
            progress.note(f"{one.kind}: the store takes no results, they are only shown")
        click.echo(summarise(one.results))
