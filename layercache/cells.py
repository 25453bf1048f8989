"""What the cells of a column are: read as the label that is declared of it says, or as what they plainly are."""

import json
import math
import re
from collections.abc import Callable, Set
from typing import Any

import polars as pl

from layercache.template import as_text

_GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+),\d+")


def or_none(value: Any, missing: Set[str]) -> Any:
    """Return a cell's value; None for one that is blank, NaN, or among the texts that mean "missing"."""
    if isinstance(value, str):
        return None if not value.strip() or value.strip() in missing else value
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def without_value(name: str, empty: int, rows: int) -> str:
    """Say how many rows lack a label: in the same words by who reads the data and by who analyses, so that it is said once."""
    return f"{name}: {empty:,} of {rows:,} rows have no value and are left out of its probe"


def is_grouped(cell: Any) -> bool:
    """Tell whether a cell is a number written with thousands separators: `1,250.5`."""
    return isinstance(cell, str) and _GROUPED.fullmatch(cell.strip()) is not None


def has_decimal_comma(cell: Any) -> bool:
    """Tell whether a cell is a number written with a decimal comma: `4,5` or `1.250,5`, which is not read as one."""
    return isinstance(cell, str) and not is_grouped(cell) and _DECIMAL_COMMA.fullmatch(cell.strip()) is not None


def _number(value: Any) -> float:
    if is_grouped(value):
        value = value.replace(",", "")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError("a number") from None
    if not math.isfinite(number):
        raise ValueError("a finite number")
    return number


_BOOLEANS = {"true": True, "yes": True, "t": True, "y": True, "1": True, "1.0": True}
_BOOLEANS |= {"false": False, "no": False, "f": False, "n": False, "0": False, "0.0": False}


def _boolean(value: Any) -> bool:
    try:
        return _BOOLEANS[as_text(value).lower()]
    except KeyError:
        raise ValueError("true or false (yes/no and 1/0 are read too)") from None


def _texts(value: Any) -> list[str]:
    """Read a text label as the list of its references; one that is a plain text is a list of one."""
    return [as_text(item) for item in value] if isinstance(value, (list, tuple)) else [as_text(value)]


CONVERTERS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "number": (_number, pl.Float64),
    "boolean": (_boolean, pl.Boolean),
    "category": (as_text, pl.String),
    "text": (_texts, pl.List(pl.String)),
}
"""Kind of label → what reads a cell with a value (a ValueError's text says what the cell is not), and the column's type."""

_INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})")
_DECIMAL = re.compile(r"-?(0|[1-9]\d*)\.\d+([eE][+-]?\d+)?")


def infer(name: str, cells: list[Any]) -> pl.Series:
    """Type a column nobody declared, losing nothing: text stays text unless every cell is plainly a number."""
    values = [cell for cell in cells if cell is not None]
    kinds = {type(value) for value in values}
    if kinds == {str}:
        if all(_INTEGER.fullmatch(value) for value in values):
            return pl.Series(name, [None if cell is None else int(cell) for cell in cells], pl.Int64)
        if all(_INTEGER.fullmatch(value) or _DECIMAL.fullmatch(value) for value in values):
            return pl.Series(name, [None if cell is None else float(cell) for cell in cells], pl.Float64)
        return pl.Series(name, cells, pl.String)
    if kinds == {bool}:
        return pl.Series(name, cells, pl.Boolean)
    if kinds == {int} and all(-(2**63) <= value < 2**63 for value in values):
        return pl.Series(name, cells, pl.Int64)
    if kinds and kinds <= {int, float}:
        return pl.Series(name, [None if cell is None else float(cell) for cell in cells], pl.Float64)
    if kinds == {list} and all(isinstance(item, str) for value in values for item in value):
        return pl.Series(name, cells, pl.List(pl.String))
    return pl.Series(name, [None if cell is None else _json(cell) for cell in cells], pl.String)


def _json(value: Any) -> str:
    # What JSON has no kind for (a date, a decimal number) is its text, and in quotes only inside lists.
    plain = isinstance(value, bool | int | float | list | tuple | dict)
    return json.dumps(value, ensure_ascii=False, default=str) if plain else str(value)
