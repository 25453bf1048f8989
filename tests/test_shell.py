"""The shell of `layercache sql` on a real (pseudo) terminal, and queries from stdin."""

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from query_store import build

from layercache import shell

pty = pytest.importorskip("pty")

# Gives the program the terminal that is its stdin as its own, so that Ctrl-C reaches it.
START = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "layercache", *sys.argv[1:]])
"""
LONGEST = 30.0


class Terminal:
    """A user at a terminal: types, and reads until what is waited for has come."""

    def __init__(self, arguments: list[str], state: Path) -> None:
        self.master, slave = pty.openpty()
        environment = {**os.environ, "XDG_STATE_HOME": str(state), "TERM": "dumb", "COLUMNS": "200"}
        environment |= {"PYTHONPATH": str(Path(shell.__file__).parents[1])}
        command = [sys.executable, "-c", START, *arguments]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def until(self, pattern: str, again: str = "") -> str:
        """Return what is printed up to a pattern; type `again` until then (a Ctrl-C between two reads is lost)."""
        seen, end = "", time.monotonic() + LONGEST
        self.type(again)
        while not re.search(pattern, seen):
            patience = max(0.0, end - time.monotonic())
            ready, _, _ = select.select([self.master], [], [], min(patience, 1.0) if again else patience)
            if again and not ready and patience:
                self.type(again)
                continue
            assert ready, f"{pattern!r} did not come, but {seen!r}"
            try:
                seen += os.read(self.master, 65536).decode(errors="replace")
            except OSError:
                pytest.fail(f"ended before {pattern!r}: {seen!r}")
        return seen.replace("\r\n", "\n")

    def ask(self, text: str) -> str:
        """Type a line; return what is printed before the next prompt, the echo left out."""
        self.type(f"{text}\n")
        return self.until(rf"\n{shell.PROMPT}$").split("\n", 1)[1].rsplit("\n", 1)[0]

    def close(self) -> int:
        code = self.process.wait(LONGEST)
        os.close(self.master)
        return code


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("shell") / "store").path


@pytest.fixture
def terminal(store: Path, tmp_path: Path) -> Iterator[Terminal]:
    one = Terminal(["sql", "--store", str(store)], tmp_path)
    one.until(f"{shell.PROMPT}$")
    yield one
    if one.process.poll() is None:
        one.process.kill()
        one.close()


def test_a_session(terminal: Terminal, tmp_path: Path) -> None:
    assert terminal.ask("SELECT count(*) AS n FROM hidden;").split() == ["n", "──", "24"]
    terminal.type("SELECT ';' AS a, -- not the end;\n")
    terminal.until(re.escape(shell.MORE) + "$")
    assert terminal.ask("1 AS b;").splitlines()[-1].split() == [";", "1"]
    assert "hidden" in terminal.ask(".tables")
    assert "FLOAT[8]" in terminal.ask(".schema hidden")
    assert "entropy_by_layer" in terminal.ask(".queries")
    assert "block.3" in terminal.ask(".query entropy_by_layer")
    assert ".schema" in terminal.ask(".help")
    assert "error: there is no table 'nope'" in terminal.ask(".schema nope")
    assert "error: unknown command .drop" in terminal.ask(".drop")
    assert "error: there is no table 'hiden': did you mean hidden?" in terminal.ask("FROM hiden;")
    assert "error: only SELECT" in terminal.ask(f"COPY (SELECT 1) TO '{tmp_path}/x.csv';")
    assert "\\x1b" in terminal.ask("SELECT chr(27) AS a;")
    terminal.type(".quit\n")
    assert terminal.close() == 0
    assert not (tmp_path / "x.csv").exists()
    history = tmp_path / "layercache" / "sql_history"
    assert "FROM hiden;" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600


def children(pid: int) -> list[str]:
    """The processes of the shell that live; one that has ended and waits to be asked about does not."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    stats = [Path(f"/proc/{child}/stat") for child in found]
    return [path.read_text() for path in stats if path.exists() and ") Z " not in path.read_text()]


def wait(pid: int, *, living: bool) -> None:
    end = time.monotonic() + LONGEST
    while bool(children(pid)) is not living:
        assert time.monotonic() < end
        select.select([], [], [], 0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_stops_the_query_and_not_the_shell(terminal: Terminal) -> None:
    terminal.type("SELECT count(*) FROM range(100000) a, range(100000) b, range(100000) c;\n")
    wait(terminal.process.pid, living=True)
    terminal.type("\x03")
    terminal.until(rf"stopped\r?\n{shell.PROMPT}$")
    wait(terminal.process.pid, living=False)
    terminal.type("SELECT half typed\n")
    terminal.until(re.escape(shell.MORE) + "$")
    terminal.until(f"{shell.PROMPT}$", again="\x03")
    assert terminal.ask("SELECT 41 + 1 AS x;").split()[-1] == "42"
    terminal.type("\x04")
    assert terminal.close() == 0


def test_a_store_that_is_not_there_ends_it(tmp_path: Path) -> None:
    one = Terminal(["sql", "--store", str(tmp_path / "none")], tmp_path)
    assert "error: no store at" in one.until(r"\n")
    assert one.close() == 2


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("SELECT 1;", True),
        ("SELECT 1; -- done", True),
        ("SELECT 1 /* ; */", False),
        ("SELECT ';", False),
        ("SELECT 'it''s;';", True),
        ('SELECT "a;', False),
        ("SELECT 1 -- ;", False),
        ("SELECT 1; /* ", False),
        ("SELECT $$;$$;", True),
        ("SELECT 1", False),
        (";", True),
    ],
)
def test_where_a_query_ends(text: str, complete: bool) -> None:
    assert shell.is_complete(text) is complete


def test_a_query_from_stdin(store: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(shell.__file__).parents[1])}

    def ask(text: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "layercache", "sql", *arguments, "--store", str(store), "--format", "csv"]
        return subprocess.run(command, input=text, capture_output=True, text=True, env=environment)

    assert ask("SELECT count(*) AS n\nFROM hidden;\n").stdout == "n\n24\n"
    empty = ask("", "-")
    assert (empty.returncode, empty.stdout) == (2, "")
    assert "give a SELECT" in empty.stderr
    for text, command in ((".tables\nSELECT 1;\n", ".tables"), (" .schema rows", ".schema"), (".", ".")):
        refused = ask(text)
        assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (2, "", 1)
        assert (
            f"{command!r} is a command of the shell, which needs a terminal; here one query is taken" in refused.stderr
        )
    two = ask("SELECT 1; SELECT 2", "-")
    assert (two.returncode, len(two.stderr.splitlines())) == (2, 1)


def test_the_history_is_where_the_system_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert shell.state_folder() == tmp_path / "layercache"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert shell.state_folder() == Path.home() / ".local" / "state" / "layercache"
