"""A table as a Hugging Face data set folder (Parquet and a card), or its columns as NumPy arrays."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from layercache import table as tables


def write(folder: Path, table: pa.Table, *, title: str, text: str) -> None:
    """Write `data/<split>.parquet` and `README.md`; a column `split` of text says which file a row goes into.

    The folder is read by `datasets.load_dataset("FOLDER")` and by anything that reads Parquet.
    """
    (folder / "data").mkdir()
    splits = _splits(table)
    for name, mask in splits.items():
        part = table if mask is None else table.filter(mask)
        pq.write_table(part, folder / "data" / f"{name}.parquet", compression="zstd")
    files = [{"split": name, "path": f"data/{name}.parquet"} for name in splits]
    # JSON is YAML, and knows how to quote.
    head = f"configs: {json.dumps([{'config_name': 'default', 'data_files': files}])}"
    card = f"---\n{head}\n---\n\n# {_plain(title)}\n\n{_plain(text)}\n\nWritten by layercache.\n"
    (folder / "README.md").write_text(card, encoding="utf-8")


def _splits(table: pa.Table) -> dict[str, pa.Array | None]:
    """Return which rows go into which split; all into `train` where no split is named."""
    if "split" not in table.column_names or table["split"].null_count == len(table):
        return {"train": None}
    column = pc.fill_null(pc.cast(table["split"], pa.string()), "unsplit")
    safe = {value: re.sub(r"\W+", "_", value).strip("_") or "split" for value in pc.unique(column).to_pylist()}
    # `all` means every split to the datasets library.
    safe = {value: f"{name}_" if name.lower() == "all" else name for value, name in safe.items()}
    groups: dict[str, list[str]] = {}
    for value, name in safe.items():
        groups.setdefault(name, []).append(value)
    return {name: pc.is_in(column, pa.array(values)) for name, values in groups.items()}


def _plain(text: str) -> str:
    return tables.harmless(text).replace("<", "&lt;")


def as_array(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column as an array that NumPy saves without pickle.

    Numbers keep their type (float64 with NaN where one is missing), vectors of one length become [n, d], text
    is text (empty where it is missing), anything else is its JSON.
    """
    kind = column.type
    if pa.types.is_decimal(kind) or (pa.types.is_boolean(kind) and column.null_count):
        column, kind = column.cast(pa.float64()), pa.float64()
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return np.asarray(column.to_numpy())
    if (matrix := _matrix(column)) is not None:
        return matrix
    texts = ["" if value is None else tables.scalar_text(value) for value in column.to_pylist()]
    return np.array(texts, dtype=str)


def _matrix(column: pa.ChunkedArray) -> np.ndarray | None:
    """Return lists of numbers, all of one length, as [n, d]; None for anything else."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)):
        return None
    if not (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)) or column.null_count:
        return None
    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    values = pc.list_flatten(column)
    if len(lengths) != 1 or not lengths[0] or values.null_count:
        return None
    flat: np.ndarray = values.to_numpy()
    return flat.reshape(len(column), lengths[0])
