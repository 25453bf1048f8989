"""Named queries: SQL files with a header that says what they answer and which parameters they take.

    -- title: Entropy by layer
    -- about: What the header's readers should know, on one line or several such lines.
    -- none: What it means that there are no rows, and which command makes some.
    -- param: layer = 8 -- the layer
    SELECT … WHERE layer = $layer

A parameter's default is text in single quotes, a number, true, false or null. A file without a title is
for layercache's own use and is not listed.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from layercache import nearest, resources
from layercache.errors import QueryError

_HEADER = re.compile(r"--\s*(title|about|none|param):\s*(.*?)\s*")
_PARAM = re.compile(r"(\w+)\s*=\s*('(?:[^']|'')*'|\S+)(?:\s+--\s*(.*))?")
_TABLE = re.compile(r"^(?!\s*--).*?\b(?:FROM|JOIN)\s+(\w+)", re.MULTILINE)
_ANALYSIS = re.compile(r"\banalysis = '(\w+)'")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]+)?")

Value = str | int | float | bool | None


class Param(NamedTuple):
    """A parameter of a named query: its name, what it is when not given, and what it means."""

    name: str
    default: Value
    about: str


class Query(NamedTuple):
    """A named query."""

    name: str
    title: str
    """One line; empty where the query is not meant for users."""
    about: str
    none: str
    """What it means that there are no rows though everything it reads is there; empty where that says enough."""
    sql: str
    """The whole file; the header is comments."""
    params: dict[str, Param]

    @property
    def analyses(self) -> list[str]:
        """The kinds of analysis whose results it reads."""
        return list(dict.fromkeys(_ANALYSIS.findall(self.sql)))

    @property
    def tables(self) -> set[str]:
        """The names that it reads from: tables of the store, and what it makes of them itself."""
        return set(_TABLE.findall(self.sql))

    def bind(self, given: Mapping[str, Value]) -> dict[str, Value]:
        """Return the value of every parameter: the one given, or the default.

        A text given for a parameter that is not text by default is read by `parse_value`.

        Raises:
            QueryError: there is no such parameter, or one that is a number is given as something else.
        """
        unknown = sorted(set(given) - set(self.params))
        if unknown:
            known = ", ".join(self.params) or "none"
            raise QueryError(f"query {self.name} has no parameter {', '.join(unknown)}: it has {known}")
        return {
            name: _fitting(given[name], param) if name in given else param.default
            for name, param in self.params.items()
        }


def load_query(name: str) -> Query:
    """Return the named query that ships with layercache.

    Raises:
        QueryError: there is none of that name.
    """
    path = resources.find("queries", name)
    if path is None:
        raise QueryError(f"there is no query {name!r}: {nearest.hint(name, resources.names('queries'))}")
    return read_query(path)


def list_queries() -> list[Query]:
    """Return the named queries meant for users, by name."""
    found = [load_query(name) for name in resources.names("queries")]
    return [query for query in found if query.title]


def read_query(path: Path) -> Query:
    """Read a file of the form above.

    Raises:
        QueryError: it cannot be read, or its header is wrong.
    """
    try:
        sql = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise QueryError(f"cannot read the query {path}: {error}") from error
    entries: dict[str, list[str]] = {"title": [], "about": [], "none": [], "param": []}
    for line in sql.splitlines():
        if match := _HEADER.fullmatch(line):
            entries[match[1]].append(match[2])
    params = [_param(text, path) for text in entries["param"]]
    return Query(
        name=path.stem,
        title=" ".join(entries["title"]),
        about=" ".join(entries["about"]),
        none=" ".join(entries["none"]),
        sql=sql,
        params={param.name: param for param in params},
    )


def parse_value(text: str) -> Value:
    """Read a parameter's value as typed: a plain number, true, false or null; anything else is text.

    `007`, `1e5` and numbers of 19 digits and more stay text, since ids look like that.
    """
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    if text.lower() == "null":
        return None
    number = _NUMBER.fullmatch(text)
    if number is None:
        return text
    return float(text) if number[2] else int(text)


def _fitting(value: Value, param: Param) -> Value:
    if not isinstance(value, str) or isinstance(param.default, str):
        return value
    read = parse_value(value)
    # A default of NULL leaves open what the parameter is.
    for kinds, what in ((bool, "true or false"), ((int, float), "a number")):
        if isinstance(param.default, kinds):
            if read is not None and (not isinstance(read, kinds) or isinstance(read, bool) != (kinds is bool)):
                raise QueryError(f"parameter {param.name} is {what}, not {value!r}")
            break
    return read


def _param(text: str, path: Path) -> Param:
    match = _PARAM.fullmatch(text)
    if match is None:
        raise QueryError(f"{path.name}: write a parameter as `-- param: name = default -- what it is`, not {text!r}")
    quoted = match[2].startswith("'")
    default = match[2][1:-1].replace("''", "'") if quoted else parse_value(match[2])
    return Param(match[1], default, match[3] or "")
