"""Whether a command printed what a page shows below it."""

import re

_NUMBER = re.compile(r"(?<![\w.])[-−]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?")


def same(shown: str, printed: str, *, exact: bool) -> list[str]:
    """List the lines in which a page and a command differ; none when all that is shown was printed, in that order.

    Blanks at the ends of lines do not count, and `…` stands for anything: alone on a line for any lines. When not `exact`,
    numbers may be others, columns wider, marks of the best layer elsewhere, lines ranked otherwise, settings more.
    """
    wanted, got = _lines(shown, exact), _lines(printed, exact)
    for start in range(max(1, len(got) - len(wanted) + 1)):
        wrong = _differences(wanted, got[start:])
        if not wrong or (not exact and sorted(got[start : start + len(wanted)]) == sorted(wanted)):
            return []
    first = next((n for n, line in enumerate(got) if _matches(wanted[0], line)), 0)
    return _differences(wanted, got[first:])


def _lines(text: str, exact: bool) -> list[str]:
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    return lines if exact else [_shape(line) for line in lines]


def _shape(line: str) -> str:
    line = re.sub(r"\*(?=\S)|\(\d+%\)| --set=\S+", " ", line)
    line = re.sub(r"\b[kMG]B\b", "B", line)
    return re.sub(r"\s+", " ", _NUMBER.sub("0", line)).strip()


def _differences(wanted: list[str], got: list[str]) -> list[str]:
    wrong, rest = [], list(got)
    for number, line in enumerate(wanted):
        if line == "…":
            after = wanted[number + 1] if number + 1 < len(wanted) else None
            while rest and after is not None and not _matches(after, rest[0]):
                rest.pop(0)
            continue
        there = rest.pop(0) if rest else None
        if there is None or not _matches(line, there):
            wrong.append(f"shown:   {line}\nprinted: {there}")
    return wrong


def _matches(shown: str, printed: str) -> bool:
    pattern = ".*".join(re.escape(part) for part in shown.split("…"))
    return re.fullmatch(pattern, printed) is not None
