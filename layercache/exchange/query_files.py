"""The result of a query as a file: a table, NumPy arrays, safetensors, or a Hugging Face data set folder."""

import os
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from layercache import table as tables
from layercache.errors import DataError
from layercache.exchange import datasets
from layercache.exchange.exporting import new_folder
from layercache.exchange.names import plain
from layercache.store.layout import first_line

_TABLES = {".csv": "csv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".md": "markdown"}
_TABLES |= {".parquet": "parquet", ".txt": "table"}
SUFFIXES = (*_TABLES, ".npz", ".safetensors")


def export_table(table: pa.Table, out: Path, form: str | None = None) -> None:
    """Write a table; the kind of file is that of the suffix, unless `form` says another or `hf` (a folder).

    Raises:
        DataError: no kind of file is known by that suffix, it is there already, or cannot be written; a column
            cannot be a tensor.
    """
    if form == "hf":
        with new_folder(out) as folder:
            datasets.write(
                folder, tables.distinct_names(table), title=out.name, text=f"{len(table):,} rows of a query."
            )
        return
    suffix = f".{form}" if form else out.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{out}: give -o a suffix out of {' '.join(SUFFIXES)}, or --format hf for a folder")
    if out.exists():
        raise DataError(f"{out} exists: choose another -o, or remove it")
    staged = out.parent / f".{out.name}.{os.getpid()}.tmp"
    try:
        with staged.open("wb") as file:
            if suffix in _TABLES:
                tables.write(table, _TABLES[suffix], file)
            elif suffix == ".npz":
                _write_npz(table, file)
            else:
                _write_safetensors(table, file)
        staged.rename(out)
    except OSError as error:
        raise DataError(f"cannot write {out}: {first_line(error)}") from error
    finally:
        # What cannot be removed could not be made either.
        with suppress(OSError):
            staged.unlink(missing_ok=True)


def _arrays(table: pa.Table) -> dict[str, np.ndarray]:
    table = tables.distinct_names(table)
    return {plain(name): datasets.as_array(column) for name, column in zip(table.column_names, table.columns)}


def _write_npz(table: pa.Table, file: BinaryIO) -> None:
    # Not np.savez: a column called `file` would be taken for its first argument.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, values in _arrays(table).items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)


def _write_safetensors(table: pa.Table, file: BinaryIO) -> None:
    from safetensors.numpy import save

    arrays = _arrays(table)
    text = sorted(name for name, values in arrays.items() if values.dtype.kind not in "fiub")
    if text:
        raise DataError(
            f"column {text[0]} is not numbers, which is all that safetensors holds: leave it out, or use npz"
        )
    file.write(save({name: np.ascontiguousarray(values) for name, values in arrays.items()}))
