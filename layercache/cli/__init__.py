"""The command line: parse, call, print. No logic lives here, and nothing heavy is imported before a command runs.

layercache run demo --store demo-store
layercache sql "SELECT * FROM runs" --store demo-store
"""

import errno
import os
import sys
from importlib import import_module

import click

from layercache import __version__
from layercache.errors import LayercacheError

COMMANDS = {
    "analyze": "analyze:analyze",
    "compact": "upkeep:compact",
    "export": "exchange:export",
    "extract": "extract:extract",
    "finetune": "run:finetune",
    "gc": "upkeep:gc",
    "import": "exchange:import_",
    "lens": "analyze:lens",
    "ls": "listing:ls",
    "merge": "upkeep:merge",
    "plot": "report:plot",
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


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except LayercacheError as error:
        _fail(str(error))
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        help_command = f" (see {context.command_path} --help)" if context else ""
        _fail(error.format_message() + help_command)
    except (click.Abort, KeyboardInterrupt):
        click.echo("\ninterrupted: what is published is safe; the same command again does the rest", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has gone: not an error, but the interpreter must not try to flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _fail(f"cannot write {error.filename or 'the output'}: the disk is full")


def _fail(message: str) -> None:
    click.echo(f"error: {_one_line(message)}", err=True)
    sys.exit(2)


def _one_line(message: str) -> str:
    """Put a message on one line; what it quotes of data must not act on the terminal."""
    line = " ".join(message.split())
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in line)


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
