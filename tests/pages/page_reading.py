"""What a page holds for a shell: commands in blocks and in running text, in order, and what it shows of their output."""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "layercache/demo/README.md", "store/FORMAT.md")),
        *ROOT.glob("docs/*.md"),
    )
)
SHELL = ("", "sh", "bash")
"""Languages of blocks that hold commands; other blocks name what they hold, output is `text`."""
_WORDS = "layercache|python|pip|make"
_INLINE = re.compile(rf"`((?:{_WORDS})\s[^`]+)`")
_BLOCK = re.compile(r"^```(.*?)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FOLDER = re.compile(r"\S+/\s")
"""How a list of folders begins, which is no command."""
_PLACEHOLDER = re.compile(r"…|(?<![\w-])[A-Z]+(?![\w=])")


class Command(NamedTuple):
    """A command of a page."""

    line: int
    text: str
    inline: bool = False
    shown: str = ""
    """What follows it in its block, where commands stand behind a `$`."""

    @property
    def is_mention(self) -> bool:
        """Whether running text only names a command (`layercache verify`), or says its form (`layercache rm RUN`)."""
        words = self.text.split()
        plain = words[0] in ("layercache", "make") and not any(word.startswith("-") for word in words)
        return self.inline and (plain or (words[0] == "layercache" and _PLACEHOLDER.search(self.text) is not None))


class Block(NamedTuple):
    """A fenced block."""

    line: int
    language: str
    text: str

    @property
    def title(self) -> str:
        """The first line."""
        return self.text.partition("\n")[0]


def blocks(text: str) -> list[Block]:
    """List a page's fenced blocks."""
    return [Block(text.count("\n", 0, found.start()) + 1, found[1], found[2]) for found in _BLOCK.finditer(text)]


def commands(text: str) -> list[Command]:
    """List a page's commands, in their order."""
    found = []
    for block in blocks(text):
        if block.language not in SHELL or _FOLDER.match(block.title):
            continue
        if block.title.startswith("Usage: "):
            found += _statements(_examples(block))
        elif block.title.startswith("$ "):
            found += _console(block)
        else:
            found += _statements(block)
    prose = _BLOCK.sub(lambda block: "\n" * block[0].count("\n"), text)
    found += [
        Command(prose.count("\n", 0, one.start()) + 1, re.sub(r"\s+", " ", one[1]), inline=True)
        for one in _INLINE.finditer(prose)
    ]
    return sorted(found, key=lambda one: one.line)


def _console(block: Block) -> list[Command]:
    parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
    found, line = [], block.line + 1
    for part in parts:
        text, _, shown = part.partition("\n")
        found.append(Command(line, text, shown=shown))
        line += part.count("\n")
    return found


def _statements(block: Block) -> list[Command]:
    """Take lines together until the shell finds them whole: quotes, continued lines, loops."""
    found: list[Command] = []
    pending: list[str] = []
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        if not pending and (not line.strip() or line.lstrip().startswith("#")):
            continue
        pending.append(line)
        if not line.endswith("\\") and _is_whole("\n".join(pending)):
            found.append(Command(number - len(pending) + 1, "\n".join(pending)))
            pending = []
    assert not pending, f"no shell ends this: {pending}"
    return found


def _examples(block: Block) -> Block:
    """Leave of a command's help what stands there to be typed, without the words beside it."""
    lines, goes_on = [], False
    for line in block.text.splitlines():
        typed = re.match(rf"  ({_WORDS}|eval) ", line) is not None or goes_on
        lines.append(re.split(r" {3,}", line.strip())[0] if typed else "")
        goes_on = typed and line.endswith("\\")
    return block._replace(text="\n".join(lines))


def _is_whole(text: str) -> bool:
    return subprocess.run(["bash", "-n", "-c", text], capture_output=True).returncode == 0


def indented(text: str) -> list[str]:
    """List lines that a reader takes for commands and that stand in no fenced block."""
    prose = _BLOCK.sub("", text)
    return re.findall(rf"^    +(?:\$ |(?:{_WORDS}|export) ).*$", prose, re.MULTILINE)
