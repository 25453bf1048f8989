"""Reads a data set from where it lies: CSV, TSV, JSON, JSONL, text, Parquet, `hf:NAME`, `demo:NAME`.

Every reader yields one dictionary a row, and the line of the file that the row begins in. Cells of CSV and TSV are text;
nested objects become dotted columns (`metadata.s_pop`). Errors name the file and the line.

Rows count from 0, as in the store; lines of a file from 1, as in an editor.
"""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from layercache import nearest
from layercache.errors import DataError

Row = dict[str, Any]
Placed = tuple[int | None, Row]
"""A row, and the line of its file that it begins in; None where it has no line of its own."""


def read(source: str) -> list[Row]:
    """Read all rows of a source.

    Raises:
        DataError: the source is missing, empty, of an unknown kind, or malformed; the message names the line.
    """
    scheme, _, rest = source.partition(":")
    rows: Iterable[Row]
    if scheme == "demo" and rest:
        rows = _read_demo(rest)
    elif scheme == "hf" and rest:
        rows = _read_hub(rest)
    else:
        rows = (row for _, row in _read_file(Path(source)))
    flat = [_flatten(row) for row in rows]
    if not flat:
        raise DataError(f"{source} holds no rows")
    return flat


def row_place(row: int) -> str:
    """Name a row by its number, from 0, as the column `row` of the store has it."""
    return f"row {row}"


def place(source: str, row: int) -> str:
    """Name a row of a source so that it can be looked up: `row 11 (line 13 of films.csv)`.

    The file is read again, up to that row: only a message of what is wrong there needs it.
    """
    path = Path(source)
    line = None
    if path.suffix.lower() in READERS and path.is_file():
        with suppress(DataError):
            line = next(islice(_read_file(path), row, None), (None, {}))[0]
    return row_place(row) if line is None else f"{row_place(row)} (line {line} of {path.name})"


def _read_file(path: Path) -> Iterator[Placed]:
    reader = READERS.get(path.suffix.lower())
    if not path.exists():
        raise DataError(f"no data file {path}; give a path, hf:NAME or demo:NAME")
    if not path.is_file():
        raise DataError(f"{path} is not a file; give a {', '.join(sorted(READERS))} file")
    if reader is None:
        first = _FIRST.get(path.suffix.lower(), "")
        raise DataError(f"{path}: unknown kind of file; {first}give one of {', '.join(sorted(READERS))}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} line {_not_utf8(path)}: not UTF-8 text; save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _not_utf8(path: Path) -> int:
    """Return the line of the first byte that is not UTF-8; a stream's own error counts from its last buffer."""
    content = path.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return content.count(b"\n", 0, error.start) + 1
    return 1


def _read_csv(path: Path) -> Iterator[Placed]:
    return _read_delimited(path, ",")


def _read_tsv(path: Path) -> Iterator[Placed]:
    return _read_delimited(path, "\t")


def _read_delimited(path: Path, delimiter: str) -> Iterator[Placed]:
    """Read a CSV tolerantly (multi-line cells, stray quotes) and yet refuse a file that is cut or ragged."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(encoding="utf-8-sig", newline="") as stream:
        first = stream.readline()
        stream.seek(0)
        if delimiter == "," and "," not in first:
            delimiter = next((other for other in ";\t|" if other in first), ",")
        # csv.reader takes an unclosed quote to the end of the file for a cell, silently: a closing record
        # of our own that does not come back whole shows it.
        records = csv.reader(_with_end(stream), delimiter=delimiter)
        yield from _records(records, path)


_END = "\ufffflayercache-end\uffff"


def _with_end(stream: Iterator[str]) -> Iterator[str]:
    last = "\n"
    for line in stream:
        last = line
        yield line
    if not last.endswith(("\n", "\r")):
        yield "\r\n"
    yield _END


def _records(records: Any, path: Path) -> Iterator[Placed]:
    header: list[str] | None = None
    start = 1
    for record in records:
        line, start = start, records.line_num + 1
        if record == [_END]:
            return
        if record and record[-1].endswith(_END):
            raise DataError(f"{path} line {line}: a quote is opened and never closed")
        if not record:
            continue
        if header is None:
            header = _header(record, path)
        elif len(record) != len(header):
            raise DataError(f"{path} line {line}: {len(record)} cells where the header has {len(header)} columns")
        else:
            yield line, dict(zip(header, record))


def _header(names: list[str], path: Path) -> list[str]:
    """Name unnamed columns (an index written by other tools) and refuse doubled names."""
    header = [name.strip() or f"column_{number}" for number, name in enumerate(names, start=1)]
    doubled = next((name for name in header if header.count(name) > 1), None)
    if doubled is not None:
        raise DataError(f"{path} line 1: two columns are called {doubled!r}; rename one")
    return header


def _read_jsonl(path: Path) -> Iterator[Placed]:
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, _object(_loads(line.strip(), path, number), path, f"line {number}")


def _read_json(path: Path) -> Iterator[Placed]:
    value = _loads(path.read_text(encoding="utf-8-sig"), path, 1)
    if isinstance(value, dict) and len(value) == 1:
        value = next(iter(value.values()))
    if not isinstance(value, list):
        raise DataError(f"{path} is not a JSON array of objects")
    for number, item in enumerate(value):
        yield None, _object(item, path, row_place(number))


def _loads(text: str, path: Path, first_line: int) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} line {first_line + error.lineno - 1}: not JSON ({error.msg})") from error
    # JSON can write half of a character that takes two codes, which no file or table can hold.
    if half := next((one for one in _HALF.finditer(text) if not _whole(one[0])), None):
        line = first_line + text.count("\n", 0, half.start())
        raise DataError(f"{path} line {line}: {half[0][:6]} is half of a character; write it whole or leave it out")
    return value


_HALF = re.compile(r"(?<!\\)(?:\\\\)*((?:\\u[dD][89a-fA-F][0-9a-fA-F]{2})+)")


def _whole(escapes: str) -> bool:
    try:
        json.loads(f'"{escapes}"').encode()
    except UnicodeEncodeError:
        return False
    return True


def _object(value: Any, path: Path, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{path} {where}: not a JSON object")
    return value


def _read_text(path: Path) -> Iterator[Placed]:
    """Read one row a line, blank lines left out."""
    with path.open(encoding="utf-8-sig") as stream:
        yield from ((number, {"text": line.strip()}) for number, line in enumerate(stream, start=1) if line.strip())


def _read_parquet(path: Path) -> Iterator[Placed]:
    try:
        yield from ((None, row) for row in pl.read_parquet(path, glob=False).to_dicts())
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error


_FIRST = {
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip", ".tar"), "unpack it first, then "),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save the sheet as CSV, then "),
}
"""What is done first with a file of another kind."""

READERS: dict[str, Callable[[Path], Iterator[Placed]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".tab": _read_tsv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".txt": _read_text,
    ".parquet": _read_parquet,
}


def _read_demo(name: str) -> list[Row]:
    from layercache import demo  # only here: most data is the user's own

    if name not in demo.DATASETS:
        raise DataError(f"no demo data set {name!r}: {nearest.hint(name, demo.DATASETS)}")
    return [dict(row) for row in demo.rows(name)]


def _read_hub(text: str) -> list[Row]:
    """Read `NAME[@CONFIG][:SPLIT]` through the datasets library."""
    try:
        import datasets
    except ImportError as error:
        raise DataError("hf: data needs the datasets library: pip install 'layercache[hub]'") from error
    name, _, split = text.partition(":")
    name, _, config = name.partition("@")
    try:
        loaded = datasets.load_dataset(name, config or None)
    except Exception as error:  # the library raises many kinds, from its own to the network's
        raise DataError(f"hf:{name} cannot be loaded: {str(error).splitlines()[0]}") from error
    splits = list(loaded)
    if not split and len(splits) == 1:
        split = splits[0]
    if split not in splits:
        raise DataError(f"hf:{name} has the splits {', '.join(splits)}; write hf:{name}:{splits[0]}")
    return [dict(row) for row in loaded[split].to_list()]


def _flatten(row: Row, prefix: str = "") -> Row:
    """Turn nested objects into dotted columns."""
    flat: Row = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
