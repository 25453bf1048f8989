"""The command line: parse, call, print. No logic lives here, and nothing heavy is imported before a command runs.

layercache run demo --store demo-store
layercache sql "SELECT * FROM runs" --store demo-store
"""

import errno
import os
import sys
from importlib import import_module
from typing import NoReturn

import click

from layercache import __version__, nearest
from layercache.cli import mistakes, stopping
from layercache.errors import LayercacheError

COMMANDS = {
    "analyze": "analyze:analyze",
    "compact": "upkeep:compact",
    "completion": "completion:script",
    "doctor": "setup:doctor",
    "export": "exchange:export",
    "extract": "extract:extract",
    "finetune": "run:finetune",
    "gc": "upkeep:gc",
    "import": "exchange:import_",
    "init": "setup:init",
    "lens": "analyze:lens",
    "ls": "listing:ls",
    "merge": "upkeep:merge",
    "plan": "extract:plan",
    "plot": "report:plot",
    "pull": "transfer:pull",
    "push": "transfer:push",
    "report": "report:report",
    "rm": "upkeep:rm",
    "run": "run:run",
    "show": "listing:show",
    "sql": "query:sql",
    "verify": "upkeep:verify",
}
"""Every command: the module of this package that holds it, and its name there."""


class Commands(click.Group):
    """The commands of `COMMANDS`, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the commands' names."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None when there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"layercache.cli.{module}"), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is called, or say which was perhaps meant."""
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise click.UsageError(f"no command {args[0]!r}: {nearest.hint(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2, Ctrl-C one and 130."""
    _open_streams()
    with stopping.watched() as watch:
        try:
            sys.exit(cli.main(standalone_mode=False, obj=watch.session) or 0)
        except BaseException as error:
            # Whatever became of the interruption on its way up here: libraries make other errors of it.
            if watch.number is not None or isinstance(error, KeyboardInterrupt | click.Abort):
                watch.leave(ending=True)
            _leave(error)


def _open_streams() -> None:
    """Put nothing in the place of a standard stream that is closed (`>&-`): else the next file gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - as long as the process lives


def _leave(error: BaseException) -> NoReturn:
    """End as an exception asks for: one line for a mistake, a traceback for what should not happen."""
    if isinstance(error, LayercacheError):
        mistakes.fail(str(error))
    if isinstance(error, click.ClickException):
        mistakes.fail(mistakes.told(error))
    if isinstance(error, BrokenPipeError):
        # The reader (head, less) has gone: not an error, but the interpreter must not try to flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        mistakes.fail(f"cannot write {error.filename or 'the output'}: the disk is full")
    if isinstance(error, FileNotFoundError) and _removed():
        mistakes.fail("the folder that this was called in has been removed: change to another")
    raise error


def _removed() -> bool:
    """Tell whether the current folder is gone; it can still be looked at, but it has no path."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "LAYERCACHE"})
@click.version_option(__version__, prog_name="layercache")
def cli() -> None:
    """Run a language model once, keep what every layer said, ask about layers with SQL.

    \b
    layercache run demo                              a whole study on the embedded model
    layercache extract --model gpt2 --data films.csv --prompt "Title: {title}" --label rating:number
    layercache analyze probe                         which layer knows the rating
    layercache sql --query entropy_by_layer          ask anything else
    """
