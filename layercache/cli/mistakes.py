"""Turns what the user got wrong into one line on stderr and exit code 2."""

import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import NoReturn

import click

from layercache import nearest
from layercache.cli.output import named

EXIT = 2
"""What the command line exits with where the user can mend it."""


def fail(message: str) -> NoReturn:
    """Print `error: message` and leave."""
    label = click.style("error:", fg="red", bold=True) if coloured() else "error:"
    click.echo(f"{label} {one_line(named(message))}", err=True)
    sys.exit(EXIT)


def coloured() -> bool:
    """Tell whether stderr takes colours: a terminal that is not dumb, and nobody set NO_COLOR (no-color.org)."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def one_line(message: str) -> str:
    """Put a message on one line; what it quotes of data must not act on the terminal."""
    line = " ".join(message.split())
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in line)


def told(error: click.ClickException) -> str:
    """Say what click found wrong, what was perhaps meant, and which help says more."""
    context = getattr(error, "ctx", None)
    see = f" (see {context.command_path} --help)" if context else ""
    if isinstance(error, click.NoSuchOption) and context is not None:
        known = [name for param in context.command.get_params(context) for name in param.opts if name.startswith("--")]
        close = nearest.nearest(error.option_name, known)
        meant = f": did you mean {close[0]}?" if close else ""
        return f"no option {error.option_name}{meant}{see}"
    if isinstance(error, click.BadParameter) and error.param is not None:
        return error.format_message().rstrip(".") + _choice(error.param) + see
    return error.format_message() + see


def _choice(param: click.Parameter) -> str:
    """Say which choice was perhaps meant by what was typed for an option that has choices."""
    if not isinstance(param.type, click.Choice):
        return ""
    typed = _typed(param, sys.argv)
    close = nearest.nearest(typed, map(str, param.type.choices)) if typed else []
    return f": did you mean {close[0]!r}?" if close else ""


def _typed(param: click.Parameter, words: Sequence[str]) -> str:
    for before, word in pairwise(words):
        if before in param.opts:
            return word
    return next((word.partition("=")[2] for word in words if word.partition("=")[0] in param.opts), "")
