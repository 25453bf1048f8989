"""The interactive shell of `layercache sql`: a line editor with history, every query inside the fence.

A query may take several lines and ends with `;`. Ctrl-C stops the query, or forgets what is typed; an error
does not end the shell; Ctrl-D or `.quit` does.
"""

import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from layercache import nearest, table
from layercache.errors import LayercacheError, QueryError
from layercache.listing import why_empty
from layercache.queries import list_queries, load_query
from layercache.store import reader, sql, views
from layercache.store.sqltext import identifier

PROMPT, MORE = "layercache> ", "       ...> "
_HISTORY_LINES = 2000
_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/|\$\$.*?\$\$", re.DOTALL)
_OPEN = re.compile(r"['\"]|/\*|\$\$")

HELP = """\
.tables          the tables there are
.schema [TABLE]  columns and types
.queries         the named queries; .query NAME [PARAM=VALUE …] runs one
.help            this
.quit            the end (or Ctrl-D)
Anything else is SQL, over as many lines as it needs, and ends with a semicolon. Ctrl-C stops it."""


class Shell:
    """One session on a store.

    Args:
        store: the store's directory.
        form: how results are shown, one of `table.FORMATS`.
        memory, timeout: limits of every query, as `sql.run_query` takes them.
        width: returns the columns of the terminal.
    """

    def __init__(self, store: Path, form: str, memory: str, timeout: float, width: Callable[[], int | None]) -> None:
        self._store, self._form, self._memory, self._timeout, self._width = store, form, memory, timeout, width

    def run(self) -> None:
        """Read and answer until the user leaves.

        Raises:
            StoreError: there is no store.
        """
        self._ask("SELECT 1")
        history = _History()
        print(f"{self._store}: SQL ending in ; or .help", file=sys.stderr)
        while (text := _read()) is not None:
            history.save()
            if not text:
                continue
            try:
                if not self._answer(text):
                    break
            except LayercacheError as error:
                print(f"error: {table.harmless(' '.join(str(error).split()))}", file=sys.stderr)
            except KeyboardInterrupt:
                print("\nstopped", file=sys.stderr)

    def _answer(self, text: str) -> bool:
        """Answer one command or query; False when it was the last."""
        if not text.startswith("."):
            self._show(text)
            return True
        name, *words = text.split()
        if name in {".quit", ".exit"}:
            return False
        if name not in _COMMANDS:
            raise QueryError(f"unknown command {name}: {nearest.hint(name, _COMMANDS)}")
        _COMMANDS[name](self, words)
        return True

    def _ask(self, query: str, params: dict[str, object] | None = None) -> pa.Table:
        return sql.run_query(self._store, query, params=params, memory=self._memory, timeout=self._timeout)

    def _show(self, query: str, params: dict[str, object] | None = None) -> int:
        """Print what a query gives; return its number of rows."""
        result = self._ask(query, params)
        sys.stdout.flush()
        table.write(result, self._form, sys.stdout.buffer, width=self._width())
        sys.stdout.flush()
        return int(result.num_rows)

    def tables(self, words: list[str]) -> None:
        """List the tables."""
        print(" ".join(views.names(reader.open(self._store))))

    def schema(self, words: list[str]) -> None:
        """Show the columns of one table, or of all.

        Raises:
            QueryError: there is no such table.
        """
        there = views.names(reader.open(self._store))
        unknown = [name for name in words if name.lower() not in there]
        if unknown:
            raise QueryError(f"there is no table {unknown[0]!r}: {nearest.hint(unknown[0], there)}")
        for name in words:
            self._show(f"SELECT column_name, column_type FROM (DESCRIBE {identifier(name.lower())})")
        if not words:
            self._show(
                "SELECT table_name, column_name, data_type FROM information_schema.columns"
                " ORDER BY table_name, ordinal_position"
            )

    def queries(self, words: list[str]) -> None:
        """List the named queries."""
        for one in list_queries():
            print(f"{one.name:24} {one.title}")

    def query(self, words: list[str]) -> None:
        """Run a named query.

        Raises:
            QueryError: there is none of that name, or a parameter does not fit.
        """
        if not words or any("=" not in word for word in words[1:]):
            raise QueryError("write .query NAME [PARAM=VALUE …]")
        loaded = load_query(words[0])
        given = dict(word.partition("=")[::2] for word in words[1:])
        shown = self._show(loaded.sql, dict(loaded.bind(given)))
        if not shown and (note := why_empty(self._store, loaded, bool(given))):
            print(note, file=sys.stderr)

    def help(self, words: list[str]) -> None:
        """Say what can be typed."""
        print(HELP)


_COMMANDS: dict[str, Callable[[Shell, list[str]], None]] = {
    ".tables": Shell.tables,
    ".schema": Shell.schema,
    ".queries": Shell.queries,
    ".query": Shell.query,
    ".help": Shell.help,
}


def is_complete(text: str) -> bool:
    """Tell whether a query has ended: its last character, comments aside, is `;` and no quote is open."""
    bare = _QUOTED.sub(lambda match: "" if match[0].startswith(("--", "/*")) else "x", text)
    return not _OPEN.search(bare) and bare.rstrip().endswith(";")


def _read() -> str | None:
    """Read a command or a whole query; an empty text when the user took it back, None at the end."""
    lines: list[str] = []
    try:
        while True:
            lines.append(input(MORE if lines else PROMPT))
            text = "\n".join(lines).strip()
            if not text or (len(lines) == 1 and text.startswith(".")) or is_complete(text):
                return text
    except KeyboardInterrupt:
        print()
        return ""
    except EOFError:
        print()
        return None


class _History:
    """The lines typed in earlier sessions, in the user's state folder; without readline there are none."""

    def __init__(self) -> None:
        self._path = state_folder() / "sql_history"
        try:
            import readline
        except ImportError:
            self._readline = None
            return
        self._readline = readline
        readline.set_history_length(_HISTORY_LINES)
        with suppress(OSError):
            readline.read_history_file(self._path)

    def save(self) -> None:
        """Keep what was typed; a folder that cannot be written is no reason to stop."""
        if self._readline is not None:
            with suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._readline.write_history_file(self._path)
                # Queries may quote prompts that are nobody else's business.
                self._path.chmod(0o600)


def state_folder() -> Path:
    """Return the folder for what a program remembers between sessions (XDG base directories)."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state") / "layercache"
