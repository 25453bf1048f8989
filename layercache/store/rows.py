"""Rows files: a data set's rows, with the user's own columns, beside the states of a run.

Labels belong to rows and states to samples, so a new or corrected label is a new rows file and no
forward pass. The newest sequence counts; a file is never changed.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from layercache.errors import StoreError
from layercache.frame import from_arrow
from layercache.recipe import Label
from layercache.store import answered_rows, sequence
from layercache.store.layout import ROWS, RowsInfo, Run, first_line, refuse_link
from layercache.store.publish import check_not_frozen, one_line_errors, publish_file
from layercache.store.schema import RESERVED, ROW_COLUMNS

_METADATA = b"layercache"
_OPENING = [column.name for column in ROW_COLUMNS]


def put_rows(
    run: Run,
    frame: pl.DataFrame,
    *,
    data: str,
    source: str,
    labels: list[Label],
    split: str | None = None,
    group_by: str | None = None,
    target: str | None = None,
    reference: Sequence[str] = (),
    answers: Sequence[str] = (),
) -> Path:
    """Store a data set's rows; writes nothing when they equal the newest stored ones.

    Args:
        run: the run whose samples the rows refer to.
        frame: `row`, `sample_id`, optionally `split`, and the user's own columns.
        data: the data set's name.
        source: where it came from, in words.
        labels: the declared labels; each names a column.
        split: the column the split came from.
        group_by: the column whose equal values must not straddle a fold.
        target: the column whose first token the lens followed.
        reference: the columns with the texts that generated text is compared with.
        answers: the columns with the accepted answers that generated answers are labelled by.

    Returns:
        The path of the newest rows file of the data set.

    Raises:
        StoreError: the store is frozen or cannot be written.
        ValueError: a column is missing, or has a reserved name.
    """
    table = _described(frame, data, source, labels, split, group_by, target, reference, answers)
    last = _newest(run, data)
    if last is not None and _equal(table, read_table(last.path)):
        return last.path
    return _write(run, table, data, 0 if last is None else last.seq + 1)


def has_rows(
    run: Run,
    frame: pl.DataFrame,
    *,
    data: str,
    source: str,
    labels: list[Label],
    split: str | None = None,
    group_by: str | None = None,
    target: str | None = None,
    reference: Sequence[str] = (),
    answers: Sequence[str] = (),
) -> bool:
    """Tell whether the newest stored rows of a data set are these, so that `put_rows` would write nothing.

    Raises:
        StoreError: they cannot be read.
    """
    last = _newest(run, data)
    table = _described(frame, data, source, labels, split, group_by, target, reference, answers)
    return last is not None and _equal(table, read_table(last.path))


class Joined(NamedTuple):
    """Rows with the answers of two files, and what the file says of them."""

    frame: pl.DataFrame
    columns: dict[str, Any]


def joined(one: Path, other: Path) -> Joined | None:
    """Put together two rows files of one data set whose answers were generated in parts; None where they are not that.

    Raises:
        StoreError: a file cannot be read.
    """
    info, given = read_info(one), read_info(other)
    same = given._replace(path=info.path, source=info.source, labels=info.labels) == info
    if not same or answered_rows.own_labels(given.labels) != answered_rows.own_labels(info.labels):
        return None
    frame = answered_rows.joined(read_frame(one), read_frame(other))
    if frame is None:
        return None
    columns = {
        "data": info.name,
        "source": info.source,
        "labels": answered_rows.labels_of(frame, info.labels),
        "split": info.split,
        "group_by": info.group_by,
        "target": info.target,
        "reference": info.reference,
        "answers": info.answers,
    }
    return Joined(frame, columns)


def put_joined(run: Run, rows: Joined) -> bool:
    """Store joined rows, unless they are the newest ones already; tell whether a file was written.

    Raises:
        StoreError: the store is frozen or cannot be written.
    """
    if has_rows(run, rows.frame, **rows.columns):
        return False
    put_rows(run, rows.frame, **rows.columns)
    return True


def _newest(run: Run, data: str) -> sequence.SequencedFile | None:
    return sequence.newest(sequence.files(run.path / ROWS, "parquet")).get(data)


def _described(
    frame: pl.DataFrame,
    data: str,
    source: str,
    labels: list[Label],
    split: str | None,
    group_by: str | None,
    target: str | None,
    reference: Sequence[str],
    answers: Sequence[str],
) -> pa.Table:
    """Return rows as they are stored, with what the file says of them."""
    table = _table(frame, [*(label.name for label in labels), *filter(None, [group_by]), *reference, *answers])
    meta = {
        "data": data,
        "source": source,
        "labels": [label._asdict() for label in labels],
        "split": split,
        "group_by": group_by,
        "target": target,
        # Only where there is one: the rows of a data set without are what they always were.
        **({"reference": list(reference)} if reference else {}),
        **({"answers": list(answers)} if answers else {}),
    }
    return table.replace_schema_metadata({_METADATA: json.dumps(meta, sort_keys=True)})


def _write(run: Run, table: pa.Table, data: str, seq: int) -> Path:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=1, write_page_checksum=True)
    content = sink.getvalue().to_pybytes()
    path = run.path / ROWS / sequence.file_name(data, seq, content, "parquet")
    check_not_frozen(run.store)
    with one_line_errors(path):
        publish_file(run.store, path, content)
    return path


def _table(frame: pl.DataFrame, needed: list[str]) -> pa.Table:
    """Return the frame as Arrow, opening with the columns every rows file has, in portable types."""
    lacking = [name for name in ["row", "sample_id", *needed] if name not in frame.columns]
    reserved = sorted(RESERVED.intersection(frame.columns) - set(_OPENING))
    if lacking or reserved:
        raise ValueError(f"rows: missing columns {lacking}, reserved columns {reserved}")
    if "split" not in frame.columns:
        frame = frame.with_columns(pl.lit(None, pl.String).alias("split"))
    table = frame.select(*_OPENING, pl.exclude(_OPENING)).to_arrow()
    fields = [pa.field(field.name, _portable(field.type)) for field in table.schema]
    fields[: len(_OPENING)] = [pa.field(column.name, column.type, column.nullable) for column in ROW_COLUMNS]
    if table["row"].null_count:
        raise ValueError("rows: the column row holds a NULL")
    return table.cast(pa.schema(fields)).combine_chunks()


def _portable(kind: pa.DataType) -> pa.DataType:
    """Return the plain Arrow type that every reader knows: no large, view, dictionary or null types."""
    if pa.types.is_dictionary(kind):
        return _portable(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(pa.field("element", _portable(kind.value_type)))
    return kind


def _equal(table: pa.Table, stored: pa.Table) -> bool:
    """Compare content and metadata; NaN equals NaN."""
    if not table.schema.equals(stored.schema, check_metadata=True):
        return False
    return from_arrow(table).equals(from_arrow(stored))


def read_table(path: Path) -> pa.Table:
    """Read a rows file.

    Raises:
        StoreError: it cannot be read, or is a link.
    """
    refuse_link(path.parent)
    refuse_link(path)
    try:
        return pq.ParquetFile(path, page_checksum_verification=True).read()
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path} cannot be read ({first_line(error)}): run `layercache verify`") from error


def read_frame(path: Path) -> pl.DataFrame:
    """Read a rows file as a data frame: `row`, `sample_id`, `split`, then the user's own columns."""
    return from_arrow(read_table(path))


def read_info(path: Path) -> RowsInfo:
    """Read what a rows file says of its data set.

    Raises:
        StoreError: it cannot be read, is a link, or says nothing.
    """
    refuse_link(path.parent)
    refuse_link(path)
    try:
        meta: dict[str, Any] = json.loads(pq.read_schema(path).metadata[_METADATA])
        labels = [Label(str(label["name"]), str(label["kind"])) for label in meta["labels"]]
        return RowsInfo(
            name=str(meta["data"]),
            labels=labels,
            split=meta["split"],
            group_by=meta["group_by"],
            target=meta["target"],
            source=str(meta["source"]),
            path=path,
            reference=tuple(meta.get("reference", ())),
            answers=tuple(meta.get("answers", ())),
        )
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is not a rows file ({first_line(error)}): run `layercache verify`") from error


def long_labels(frame: pl.DataFrame, info: RowsInfo) -> pl.DataFrame:
    """Return the declared labels in long form, the columns of `schema.LABELS`.

    A number or boolean (as 0, 1) is in `number`, anything else in `text`, a list's elements joined by a
    newline. A row without a sample or without a value has no line.
    """
    parts = [_one_label(frame, info.name, label) for label in info.labels if label.name in frame.columns]
    return pl.concat(parts) if parts else _one_label(frame.head(0), info.name, Label("row", "number"))


def _one_label(frame: pl.DataFrame, data: str, label: Label) -> pl.DataFrame:
    column = pl.col(label.name)
    numeric = label.kind in {"number", "boolean"}
    if frame.schema[label.name] == pl.List(pl.String):
        text = column.list.join("\n", ignore_nulls=True)
    else:
        text = column.cast(pl.String)
    return frame.filter(column.is_not_null() & pl.col("sample_id").is_not_null()).select(
        pl.lit(data).alias("data"),
        "row",
        "sample_id",
        pl.lit(label.name).alias("name"),
        pl.lit(label.kind).alias("kind"),
        (column.cast(pl.Float64) if numeric else pl.lit(None, pl.Float64)).alias("number"),
        (pl.lit(None, pl.String) if numeric else text).alias("text"),
    )
