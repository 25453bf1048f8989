"""Labels in long form: a line a value, whatever the data set's columns are called and of what kind they are."""

from collections.abc import Sequence

import polars as pl

from layercache.errors import StoreError
from layercache.recipe import Label
from layercache.store import rows
from layercache.store.layout import RowsInfo, Run


def read(info: RowsInfo) -> pl.DataFrame:
    """Return the labels of a data set: the columns of `schema.LABELS`.

    A number or boolean (as 0, 1) is in `number`, anything else in `text`, a list's elements joined by a
    newline. A row without a sample or without a value has no line.

    Raises:
        StoreError: the rows file cannot be read.
    """
    frame = rows.read_frame(info.path)
    parts = [_one(frame, info.name, label) for label in info.labels if label.name in frame.columns]
    return pl.concat(parts) if parts else _one(frame.head(0), info.name, Label("row", "number"))


def find(run: Run, infos: Sequence[RowsInfo], name: str, data: str | None) -> pl.DataFrame:
    """Return the lines of one label.

    Args:
        run: the run that the data sets are of.
        infos: its data sets.
        name: the label's.
        data: the data set's; None for the only one that has such a label.

    Raises:
        StoreError: no data set has it, or several do.
    """
    having = [info for info in infos if name in {label.name for label in info.labels}]
    if data is not None:
        having = [info for info in having if info.name == data]
    if len(having) == 1:
        return read(having[0]).filter(pl.col("name") == name)
    known = ", ".join(f"{info.name}: {' '.join(label.name for label in info.labels)}" for info in infos)
    if having:
        raise StoreError(f"label {name!r} is in {', '.join(info.name for info in having)}: choose one with data=")
    raise StoreError(f"run {run.id} has no label {name!r}: its data sets have {known or 'none'}")


def _one(frame: pl.DataFrame, data: str, label: Label) -> pl.DataFrame:
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
