"""Ctrl-C and SIGTERM: one line that says what is safe and how to go on, no traceback, and a store that is whole."""

import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from command import Call

from layercache import interrupts
from layercache.cli import stopping
from layercache.store import names, reader, verify

MAIN = "import sys; from layercache.cli import main; sys.argv[0] = 'layercache'; main()"
EXTRACT = ("extract", "--model", "demo", "--data", "demo:qa", "--prompt", "{question}\nA:", "--lens", "token")
_PATIENCE = 120.0


class Session:
    """A command on a terminal of its own, so that its progress is seen and Ctrl-C is what a user types."""

    def __init__(self, *words: object, cwd: Path, script: str = MAIN) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, words)],
            **{"stdin": slave, "stdout": slave, "stderr": slave},
            cwd=cwd,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "200", "NO_COLOR": "1"},
            start_new_session=True,
            preexec_fn=_own_terminal,
        )
        os.close(slave)
        self.text = ""

    def until(self, pattern: str) -> None:
        """Read until something is shown."""
        end = time.monotonic() + _PATIENCE
        while not re.search(pattern, self.text):
            assert time.monotonic() < end, self.text
            if select.select([self.master], [], [], 0.1)[0] and not self._read():
                raise AssertionError(f"ended before {pattern}: {self.text}")

    def end(self) -> int:
        """Read to the end and return the exit code."""
        while self._read():
            pass
        os.close(self.master)
        return self.process.wait(_PATIENCE)

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def _read(self) -> bool:
        try:
            data = os.read(self.master, 65536)
        except OSError:  # the other end is closed
            return False
        self.text += data.decode(errors="replace")
        return bool(data)


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _line(text: str) -> str:
    """Return the one line that says what is safe; there is no traceback."""
    assert "Traceback" not in text, text
    assert "Exception" not in text, text
    lines = [line for line in text.splitlines() if "interrupted" in line]
    assert len(lines) == 1, text
    return lines[0]


def test_ctrl_c_while_extracting(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was run is published, the line counts it, and the command it names does the rest."""
    session = Session(*EXTRACT, "--store", "s", "--batch-tokens", 24, cwd=tmp_path)
    session.until("samples/s")
    session.type(b"\x03")
    assert session.end() == 130
    n = names.count_shards(tmp_path / "s")
    assert n > 0
    safe, _, again = _line(session.text).partition("; go on with: ")
    assert safe == f"interrupted: the {n} shard{'s' * (n != 1)} published in s {'is' if n == 1 else 'are'} safe"
    # $'…' is bash's, which gives the line break back.
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {again}"], capture_output=True, text=True, check=True
    ).stdout.split("\0")[:-1]
    assert words == ["layercache", *EXTRACT, "--store", "s", "--batch-tokens", "24"]
    store = reader.open(tmp_path / "s")
    run = store.runs()[0]
    kept = store.count_samples(run, "clean")
    assert verify.verify(tmp_path / "s", deep=True) == []
    # Every sample that is there has its states: none is lost in between.
    assert len(store.matrix(run, layer=3, pooling="last@prompt").sample_ids) == kept
    monkeypatch.chdir(tmp_path)
    assert f"{kept:,} of them complete in the store already" in call(*words[1:], "--dry-run").out


def test_sigterm_while_extracting(tmp_path: Path) -> None:
    session = Session(*EXTRACT, "--store", "s", "--batch-tokens", 24, cwd=tmp_path)
    session.until("samples/s")
    session.process.terminate()
    assert session.end() == 143
    assert re.search(r"the (1 shard published in s is|\d+ shards published in s are) safe", _line(session.text))
    assert verify.verify(tmp_path / "s") == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sql", "SELECT count(*) FROM range(100000000000) a", "--store", "S"), "nothing is left half done"),
        (("analyze", "probe", "--bootstrap", 2_000_000, "--store", "S"), "the analyses that were finished are kept"),
        (("run", "sample", "--store", "s"), ""),
        (("export", "--sql", "SELECT count(*) FROM range(100000000000) a", "-o", "x.csv", "--store", "S"), "only read"),
    ],
)
def test_ctrl_c_in_other_commands(words: tuple[object, ...], said: str, tmp_path: Path) -> None:
    """At whatever it is, imports among them: the signal comes when the command line has taken over."""
    store = Path(__file__).parents[1] / "store"
    script = MAIN.replace("main()", "print('ready', flush=True); main()")
    session = Session(*(store if word == "S" else word for word in words), cwd=tmp_path, script=script)
    session.until("ready")
    time.sleep(1.0)
    session.type(b"\x03")
    assert session.end() == 130
    assert said in _line(session.text)
    assert not (tmp_path / "x.csv").exists()


def test_a_command_in_the_background_keeps_ignoring_ctrl_c() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping.watched():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(one) for one in interrupts.SIGNALS]
    with stopping.watched() as watch:
        assert signal.getsignal(signal.SIGINT) == watch.stop
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert watch.number == signal.SIGTERM
    assert [signal.getsignal(one) for one in interrupts.SIGNALS] == before


def test_a_signal_waits_for_what_must_be_whole() -> None:
    steps = []

    def work() -> None:
        with interrupts.held_back():
            signal.raise_signal(signal.SIGINT)
            steps.append("whole")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["whole"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_in_a_thread_there_is_nothing_to_hold_back() -> None:
    done = []

    def work() -> None:
        with interrupts.held_back():
            done.append(True)
        with stopping.watched() as watch:
            done.append(watch.number is None)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True, True]


@pytest.mark.parametrize(
    "word", ["a b", "it's", 'say "x"', "$HOME", "two\nlines\tand\\n", "\x1b[31m", "'\n'", "é\u202e", ""]
)
def test_a_command_can_be_pasted(word: str) -> None:
    line = stopping.command(["/usr/bin/layercache", "run", word])
    assert line.isprintable()
    assert "\n" not in line
    back = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert back.stdout.split("\0")[:-1] == ["layercache", "run", word]
    if word.isprintable():
        assert shlex.split(line) == ["layercache", "run", word]
    assert stopping.command(["/x/layercache/__main__.py", "ls"]) == "python -m layercache ls"


def test_without_a_store_nothing_is_promised(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    watch = stopping.Watch()
    watch.session = {"command": "extract", "store": tmp_path / "none"}
    with pytest.raises(SystemExit) as left:
        watch.leave()
    assert left.value.code == 130
    assert "nothing was published yet; go on with: " in capsys.readouterr().err
    (tmp_path / "none").write_text("a file where a store would be")
    watch.session["store"] = object()
    with pytest.raises(SystemExit):
        watch.leave()
    assert "is safe; go on with: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "count", "said"),
    [
        ("extract", 1, "the 1 shard published in s is safe"),
        ("run", 1, "the 1 shard published in s is safe, and so are finished analyses"),
        ("extract", 1200, "the 1,200 shards published in s are safe"),
    ],
)
def test_one_shard_is_one(
    command: str, count: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "count_shards", lambda store: count)
    watch = stopping.Watch()
    watch.session = {"command": command, "store": Path("s")}
    with pytest.raises(SystemExit):
        watch.leave()
    assert f"interrupted: {said}; go on with: " in capsys.readouterr().err


IMPORTING = """
import os, signal, time
os.kill(os.getpid(), signal.SIGINT)
time.sleep(60)
"""


@pytest.mark.parametrize(
    "words",
    [("-m", "layercache"), ("-c", "import sys; from layercache.__main__ import main; sys.exit(main())")],
    ids=["module", "script"],
)
@pytest.mark.parametrize("module", ["click", "shlex"])
def test_ctrl_c_while_the_command_line_is_imported(words: tuple[str, ...], module: str, tmp_path: Path) -> None:
    """As the program does at its start; what it imports sends the signal to itself."""
    (tmp_path / f"{module}.py").write_text(IMPORTING)
    path = os.pathsep.join([str(tmp_path), str(Path(stopping.__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, *words, "ls"], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "interrupted: nothing was begun; run the same command again\n"


@pytest.mark.parametrize(("command", "code"), [("ls", 0), ("show nobody", 2)])
def test_ctrl_c_when_all_is_done_changes_nothing(command: str, code: int, tmp_path: Path) -> None:
    """What libraries do at the end of a process may take a while on a busy machine."""
    script = "import atexit, os, signal\natexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
    script += "from layercache.__main__ import main\nmain()"
    store = Path(__file__).parents[1] / "store"
    words = [*command.split(), "--store", str(store)]
    whole = subprocess.run([sys.executable, "-m", "layercache", *words], capture_output=True, text=True)
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (code, whole.stdout, whole.stderr)


def test_the_program_begins_where_ctrl_c_is_watched_from_the_start() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"layercache": "layercache.__main__:main"}


def test_the_exit_code_is_the_one_that_was_said(tmp_path: Path) -> None:
    """Python ends by SIGINT itself after an interruption that went through `exec`, as libraries' imports do."""
    script = "import signal, layercache.cli as lc\n"
    script += "lc.cli.main = lambda **_: exec('signal.raise_signal(signal.SIGINT)')\nlc.main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 130, done.stderr
    _line(done.stderr)
