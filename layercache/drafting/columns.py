"""Looks at the columns of a data set: what their cells are, how many differ, how long they are."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from layercache.answers import read_aliases
from layercache.cells import CONVERTERS, has_decimal_comma
from layercache.errors import DataError
from layercache.sources import Row
from layercache.template import as_text

_SURELY_NOTHING = {"N/A", "n/a", "#N/A", "NULL", "null", "\\N", "NaN", "nan"}
"""Cells that mean no value in any column."""
_SIGNS = {"-", "--", "–", "—", "?"}
"""Cells that mean no value where all others are numbers, or few classes that have letters or digits (`+` has none)."""
_PERHAPS_NOTHING = {*_SIGNS, "NA", "None", "none", "unknown", "Unknown", "."}
"""Cells that mean no value where all others are numbers."""
_CLASSES, _LONG_CLASS = 40, 4.0
"""The most classes of a category, and the most words of a class's name."""
_IDENTIFIES = re.compile(
    r"(^|[^a-z])(id|ids|uuid|guid|index|idx|key|url|uri|link|href|hash|column_\d+)$", re.IGNORECASE
)


@dataclass(frozen=True)
class Column:
    """What is known of a column.

    Attributes:
        kind: `number`, `boolean`, `decimal comma` (numbers written so), `list` (of texts, also written as JSON),
            `text`, or `other` (nested lists and the like).
        rows: cells with a value.
        counts: how often every text of a cell stands there.
        words: mean number of words of a cell.
        longest: bytes of the longest cell.
    """

    name: str
    kind: str
    rows: int
    counts: Counter[str]
    words: float
    longest: int
    counting: bool
    """The numbers go up by one from row to row."""
    texts: Sequence[str | None] = ()
    """The text of every row's cell, in order; None where it has no value."""

    @property
    def distinct(self) -> int:
        """How many values differ."""
        return len(self.counts)

    @property
    def identifies(self) -> bool:
        """Whether it names its row (or another thing) and says nothing else."""
        if self.counting or _IDENTIFIES.search(self.name):
            return True
        coded = self.kind == "text" and self.words <= 1 and self.distinct > 0.9 * self.rows
        return coded and self.rows > 1 and sum(any(map(str.isdigit, value)) for value in self.counts) > self.rows / 2

    @property
    def usable(self) -> bool:
        """Whether a template can name it, and a recipe can be written that does."""
        return bool(self.name) and self.name == self.name.strip() and not set("{}") & set(self.name)


def look(rows: Sequence[Row]) -> tuple[list[Column], list[str]]:
    """Look at every column of a data set.

    Returns:
        The columns in order, those without any value left out; and the cells that mean no value.
    """
    names = list(dict.fromkeys(name for row in rows for name in row if _writable(name)))
    cells = {name: [row.get(name) for row in rows] for name in names}
    nothing = sorted({found for column in cells.values() for found in _nothing(column)})
    found = [_column(name, [_value(cell, nothing) for cell in column]) for name, column in cells.items()]
    return [column for column in found if column.rows], nothing


def _writable(name: str) -> bool:
    """Tell whether a name can stand in a file: JSON may hold halves of characters."""
    return name.encode("utf-8", errors="ignore").decode() == name


def _nothing(cells: Sequence[Any]) -> set[str]:
    """Return the cells of a column that mean no value."""
    texts = {cell.strip() for cell in cells if isinstance(cell, str) and cell.strip()}
    sure, perhaps = texts & _SURELY_NOTHING, texts & _PERHAPS_NOTHING
    others = [cell for cell in cells if isinstance(cell, str) and cell.strip() and cell.strip() not in sure | perhaps]
    if not others:
        return set()
    if _all(others, "number") or _with_commas(others):
        return sure | perhaps
    words = sum(len(text.split()) for text in others) / len(others)
    named = all(any(map(str.isalnum, text)) for text in set(others))
    few = few_classes(len(texts - sure - perhaps), len(others), words)
    return sure | (perhaps & _SIGNS) if named and few else sure


def few_classes(distinct: int, rows: int, words: float) -> bool:
    """Tell whether texts are the names of classes: few of them, which repeat and are short.

    Args:
        distinct: how many texts differ.
        rows: how many there are.
        words: mean number of words of one.
    """
    return 2 <= distinct <= min(_CLASSES, rows // 2, max(2, rows // 5)) and words <= _LONG_CLASS


def _value(cell: Any, nothing: Sequence[str]) -> Any:
    if isinstance(cell, str) and (not cell.strip() or cell.strip() in nothing):
        return None
    return None if isinstance(cell, float) and math.isnan(cell) else cell


def _column(name: str, cells: list[Any]) -> Column:
    values = [cell for cell in cells if cell is not None]
    texts = [as_text(value) for value in values]
    kind = _kind(values)
    counting = kind == "number" and len(values) == len(cells) > 2
    counting = counting and all(float(b) - float(a) == 1 for a, b in pairwise(texts) if _plain(a) and _plain(b))
    counting = counting and all(map(_plain, texts))
    words = sum(len(text.split()) for text in texts) / max(len(texts), 1)
    longest = max((len(text.encode("utf-8", errors="replace")) for text in texts), default=0)
    every = [None if cell is None else as_text(cell) for cell in cells]
    return Column(name, kind, len(values), Counter(texts), words, longest, counting, every)


def _plain(text: str) -> bool:
    return bool(re.fullmatch(r"-?\d{1,15}", text))


def _kind(values: Sequence[Any]) -> str:
    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return "boolean"
    if kinds <= {list, tuple}:
        return "list" if _all(values, _aliases) else "other"
    if kinds <= {str, int, float, bool}:
        if bool not in kinds and _all(values, "number"):
            return "boolean" if {as_text(value) for value in values} == {"0", "1"} else "number"
        if _all(values, "boolean") and len({as_text(value).lower() for value in values}) > 1:
            return "boolean"
        if bool not in kinds and _with_commas(values):
            return "decimal comma"
        if kinds == {str}:
            listed = all(value.strip()[:1] == "[" and value.strip()[-1:] == "]" for value in values)
            return "list" if listed and _all(values, _aliases) else "text"
        return "text"
    return "other"


def _with_commas(values: Sequence[Any]) -> bool:
    """Tell whether every value is a number, and one at least is written with a decimal comma."""
    commas = [has_decimal_comma(value) for value in values]
    return any(commas) and _all([value for value, comma in zip(values, commas, strict=True) if not comma], "number")


def _aliases(value: Any) -> object:
    return read_aliases(value)


def _all(values: Sequence[Any], how: str | Callable[[Any], object]) -> bool:
    """Tell whether every value can be read as a label of a kind, or by a function."""
    convert = CONVERTERS[how][0] if isinstance(how, str) else how
    try:
        for value in values:
            convert(value)
    except (ValueError, DataError):
        return False
    return True
