"""Writes a table for a reader (`table`, `markdown`) or for a program (`csv`, `json`, `jsonl`, `parquet`).

For a reader, values may be shortened and nothing in them can move the cursor or start a colour. For a
program, every value is whole: text is UTF-8, lines end in `\\n`.
"""

import base64
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator
from decimal import Decimal
from html import escape
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from layercache.errors import QueryError

_ROWS = 1000
_SHOWN = 3
"""Elements shown of a long list of numbers."""
_NARROWEST = 8
_JOINERS = "\u200c\u200d"
_UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_EXPLAINED = ["explain_key", "explain_value"]


def write(table: pa.Table, form: str, stream: BinaryIO, *, width: int | None = None) -> None:
    """Write a table.

    Args:
        table: what to write.
        form: one of `FORMATS`.
        stream: a binary stream; not closed.
        width: columns of the terminal that is written to, None where it is none: long text is cut to fit, for
            `table`; of `csv` nothing acts on the terminal.

    Raises:
        QueryError: there is no such format, Parquet has no type for a column, or Python none for a date.
    """
    if form not in FORMATS:
        raise QueryError(f"unknown format {form!r}: use one of {', '.join(FORMATS)}")
    if form == "parquet":
        _write_parquet(table, stream)
        return
    lines = _aligned(table, width) if form == "table" else _WRITERS[form](table)
    if width is not None and form == "csv":
        lines = map(harmless, lines)
    for line in lines:
        stream.write(line.encode("utf-8"))
        stream.write(b"\n")


def _write_parquet(table: pa.Table, stream: BinaryIO) -> None:
    try:
        pq.write_table(distinct_names(table), stream)
    except pa.ArrowNotImplementedError as error:
        raise QueryError(f"the table cannot be written as Parquet ({error}): cast that column to VARCHAR") from error


def distinct_names(table: pa.Table) -> pa.Table:
    """Number columns of one name, which a join gives: `layer`, `layer_1`."""
    names: list[str] = []
    for name in table.column_names:
        new, number = name, 0
        while new in names:
            number += 1
            new = f"{name}_{number}"
        names.append(new)
    return table.rename_columns(names)


def _rows(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    """Yield rows as plain values; float32 as the shortest number that rounds to it (0.1, not 0.100000001)."""
    for batch in table.to_batches(max_chunksize=_ROWS):
        columns = [_values(*column) for column in zip(table.column_names, batch.columns, strict=True)]
        yield from zip(*columns, strict=True) if columns else ()


def _values(name: str, array: pa.Array) -> Any:
    try:
        return _short_floats(array).to_pylist()
    except OverflowError:
        raise QueryError(
            f"column {name!r} holds a date before the year 1, after 9999 or infinite: cast that column to VARCHAR"
        ) from None


def _short_floats(array: pa.Array) -> pa.Array:
    kind = array.type
    if pa.types.is_float32(kind):
        return pc.cast(pc.cast(array, pa.string()), pa.float64())
    if pa.types.is_fixed_size_list(kind) and pa.types.is_float32(kind.value_type):
        return _short_floats(array.cast(pa.list_(pa.float32())))
    if pa.types.is_list(kind) and pa.types.is_float32(kind.value_type):
        # Of a slice, `flatten` gives the slice's values only, so the offsets are made anew.
        ends = pc.cumulative_sum(pc.cast(pc.fill_null(pc.list_value_length(array), 0), pa.int32()))
        offsets = pa.concat_arrays([pa.array([0], pa.int32()), ends])
        return pa.ListArray.from_arrays(offsets, _short_floats(array.flatten()), mask=array.is_null())
    return array


def _json_value(value: Any) -> Any:
    """Return a value as JSON has it: NaN and infinities are null, bytes base64, other kinds their text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, dict):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _json_text(value: Any) -> str:
    """Return JSON in which no character acts on a terminal or turns the direction of text."""
    text = json.dumps(_json_value(value), ensure_ascii=False, allow_nan=False)
    return _UNSAFE_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _objects(table: pa.Table) -> Iterator[str]:
    names = distinct_names(table).column_names
    for row in _rows(table):
        yield _json_text(dict(zip(names, row, strict=True)))


def _json(table: pa.Table) -> Iterator[str]:
    yield "["
    previous = None
    for line in _objects(table):
        if previous is not None:
            yield f"{previous},"
        previous = line
    if previous is not None:
        yield previous
    yield "]"


def _csv(table: pa.Table) -> Iterator[str]:
    """Yield lines of RFC 4180, but ending in `\\n`; NULL is an empty field, an empty text a quoted one.

    A line with nothing on it would be skipped by readers, so in a table of one column NULL is quoted too.
    """
    names = distinct_names(table).column_names
    yield ",".join(_csv_field(name) for name in names)
    for row in _rows(table):
        yield ",".join(_csv_field(value) for value in row) or '""'


def _csv_field(value: Any) -> str:
    if value is None:
        return ""
    text = scalar_text(value)
    return f'"{text.replace(chr(34), chr(34) * 2)}"' if text == "" or re.search('[",\r\n]', text) else text


def scalar_text(value: Any) -> str:
    """Return a value as text, whole: lists and structures as JSON, numbers so that they can be read back."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return repr(value)
    shown = _json_value(value)
    return shown if isinstance(shown, str) else _json_text(shown)


def _markdown(table: pa.Table) -> Iterator[str]:
    """Yield a GitHub table; nothing in a cell ends it, starts markup or becomes HTML."""
    yield f"| {' | '.join(_markdown_cell(name) for name in table.column_names)} |"
    yield f"| {' | '.join('---:' if _is_number(field.type) else '---' for field in table.schema)} |"
    for row in _rows(table):
        yield f"| {' | '.join(_markdown_cell(_readable(value)) for value in row)} |"


def _markdown_cell(text: str) -> str:
    # Brackets are a link only where "](" is.
    escaped = re.sub(r"([\\`*|]|(?<=\])\()", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))
    return "<br>".join(harmless(line) for line in escaped.splitlines())


def html(table: pa.Table) -> str:
    """Return a table as HTML for a notebook; nothing in a cell is markup or acts."""
    head = "".join(f"<th>{html_text(name)}</th>" for name in table.column_names)
    body = "".join(
        f"<tr>{''.join(f'<td>{html_text(_readable(value))}</td>' for value in row)}</tr>" for row in _rows(table)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def html_text(text: str) -> str:
    """Return text escaped for HTML, characters that act written out."""
    return escape(harmless(text))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _readable(value: Any) -> str:
    """Return a value for a reader: six digits of a fraction, the head of a long vector, nothing for NULL."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and len(value) > 2 * _SHOWN and all(isinstance(item, float | int) for item in value):
        return f"[{', '.join(_readable(item) for item in value[:_SHOWN])}, … {len(value)}]"
    if isinstance(value, list) and value and all(isinstance(item, float | int) for item in value):
        return f"[{', '.join(_readable(item) for item in value)}]"
    return scalar_text(value)


def harmless(text: str) -> str:
    """Return text with every character that acts rather than shows written out: `\\x1b`, `\\n`, `\\u202e`."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in _JOINERS else character.encode("unicode_escape").decode()
        for character in text
    )


def _aligned(table: pa.Table, width: int | None) -> Iterator[str]:
    """Yield columns side by side, numbers to the right; long text is cut until a line fits."""
    if table.column_names == _EXPLAINED:
        # A plan is a drawing of many lines.
        for plan in table.column(1).to_pylist():
            yield from (harmless(line) for line in plan.splitlines())
        return
    header = [harmless(name) for name in table.column_names]
    body = [[harmless(_readable(value)) for value in row] for row in _rows(table)]
    widths = _fitted([max(map(_cells, column)) for column in zip(header, *body, strict=True)], width)
    right = [_is_number(field.type) for field in table.schema]
    yield _line(header, widths, right)
    yield "  ".join("─" * cells for cells in widths)
    for row in body:
        yield _line(row, widths, right)


def _fitted(widths: list[int], width: int | None) -> list[int]:
    """Return the columns' widths, the widest cut first, so that a line fits where that is possible."""
    fitted = list(widths)
    room = None if width is None else width - 2 * (len(widths) - 1)
    while room is not None and sum(fitted) > room and max(fitted) > _NARROWEST:
        widest = max(fitted)
        others = [cells for cells in fitted if cells != widest]
        next_widest = max([_NARROWEST, *others])
        count = len(fitted) - len(others)
        to = max(next_widest, widest - -(-(sum(fitted) - room) // count))
        fitted = [to if cells == widest else cells for cells in fitted]
    return fitted


def _line(texts: list[str], widths: list[int], right: list[bool]) -> str:
    padded = []
    for text, width, to_right in zip(texts, widths, right, strict=True):
        text = _cut(text, width)
        space = " " * (width - _cells(text))
        padded.append(space + text if to_right else text + space)
    return "  ".join(padded).rstrip()


def _cut(text: str, width: int) -> str:
    if _cells(text) <= width:
        return text
    kept, used = "", 0
    for character in text:
        used += _cells_of(character)
        if used > width - 1:
            break
        kept += character
    return f"{kept}…"


def _cells(text: str) -> int:
    """Return the columns of a terminal that a text takes."""
    if text.isascii():
        return len(text)
    return sum(_cells_of(character) for character in text)


def _cells_of(character: str) -> int:
    if unicodedata.combining(character) or character in _JOINERS or "\ufe00" <= character <= "\ufe0f":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


_WRITERS: dict[str, Callable[[pa.Table], Iterator[str]]] = {
    "csv": _csv,
    "json": _json,
    "jsonl": _objects,
    "markdown": _markdown,
}

FORMATS = ("table", *_WRITERS, "parquet")
"""The formats there are."""
