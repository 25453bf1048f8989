"""Rows files: a data set's rows, with the user's own columns, beside the states of a run.

Labels belong to rows and states to samples, so a new or corrected label is a new rows file and no
forward pass. The newest sequence counts; a file is never changed.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Required, TypedDict, Unpack

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


class About(TypedDict, total=False):
    """What a rows file says of its data set; `put_rows` and `has_rows` take it as keywords."""

    data: Required[str]
    """The data set's name."""
    source: Required[str]
    """Where it came from, in words."""
    labels: Required[list[Label]]
    """The declared labels; each names a column."""
    split: str | None
    """The column the split came from."""
    group_by: str | None
    """The column whose equal values must not straddle a fold."""
    target: str | None
    """The column whose first token the lens followed."""
    reference: Sequence[str]
    """The columns with the texts that generated text is compared with."""
    answers: Sequence[str]
    """The columns with the accepted answers that generated answers are labelled by."""


def put_rows(run: Run, frame: pl.DataFrame, **about: Unpack[About]) -> Path:
    """Store a data set's rows; writes nothing when they equal the newest stored ones.

    Args:
        run: the run whose samples the rows refer to.
        frame: `row`, `sample_id`, optionally `split`, and the user's own columns.
        about: `data`, `source` and `labels`, and what else there is to say of the data set: the fields of `About`.

    Returns:
        The path of the newest rows file of the data set.

    Raises:
        StoreError: the store is frozen or cannot be written.
        ValueError: a column is missing, or has a reserved name.
    """
    table, data = _described(frame, about), about["data"]
    last = sequence.newest_rows(run.path).get(data)
    if last is not None and _equal(table, read_table(last.path)):
        return last.path
    return _write(run, table, data, 0 if last is None else last.seq + 1)


def has_rows(run: Run, frame: pl.DataFrame, **about: Unpack[About]) -> bool:
    """Tell whether the newest stored rows of a data set are these, so that `put_rows` would write nothing.

    Arguments as of `put_rows`.

    Raises:
        StoreError: they cannot be read.
        ValueError: as of `put_rows`.
    """
    last = sequence.newest_rows(run.path).get(about["data"])
    return last is not None and _equal(_described(frame, about), read_table(last.path))


class Joined(NamedTuple):
    """Rows with the answers of two files, and what the file says of them."""

    frame: pl.DataFrame
    about: About


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
    return Joined(
        frame,
        {
            "data": info.name,
            "source": info.source,
            "labels": answered_rows.labels_of(frame, info.labels),
            "split": info.split,
            "group_by": info.group_by,
            "target": info.target,
            "reference": info.reference,
            "answers": info.answers,
        },
    )


def put_joined(run: Run, rows: Joined) -> bool:
    """Store joined rows, unless they are the newest ones already; tell whether a file was written.

    Raises:
        StoreError: the store is frozen or cannot be written.
    """
    if has_rows(run, rows.frame, **rows.about):
        return False
    put_rows(run, rows.frame, **rows.about)
    return True


def _described(frame: pl.DataFrame, about: About) -> pa.Table:
    """Return rows as they are stored, with what the file says of them."""
    names = [label.name for label in about["labels"]]
    group_by, reference, answers = about.get("group_by"), about.get("reference", ()), about.get("answers", ())
    table = _table(frame, [*names, *filter(None, [group_by]), *reference, *answers])
    meta = {
        "data": about["data"],
        "source": about["source"],
        "labels": [label._asdict() for label in about["labels"]],
        "split": about.get("split"),
        "group_by": group_by,
        "target": about.get("target"),
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
