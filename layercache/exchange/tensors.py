"""Arrays in files: `.npy`, `.npz` and `.safetensors`, read as they are asked for, without pickle and without torch."""

import json
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from layercache.errors import DataError

SUFFIXES = (".npy", ".npz", ".safetensors")

_DTYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1"},
    **{"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "|b1"},
}
_LONGEST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library."""


@dataclass(frozen=True)
class Array:
    """An array of a file; of `.npy` and `.safetensors` only what is asked for is read."""

    path: Path
    name: str
    values: np.ndarray
    bfloat16: bool = False
    """`values` are the bits of bfloat16 numbers, which NumPy has no type for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.values.shape

    @property
    def is_float(self) -> bool:
        """Whether it holds floating-point numbers."""
        return self.bfloat16 or self.values.dtype.kind == "f"

    def float32(self, index: Any) -> np.ndarray:
        """Return `values[index]` as C-contiguous float32; beyond its range a float64 becomes infinite."""
        part = self.values[index]
        if self.bfloat16:
            return np.ascontiguousarray((part.astype(np.uint32) << np.uint32(16)).view(np.float32))
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(part, dtype=np.float32)


def read_arrays(path: Path) -> dict[str, Array]:
    """Open the arrays of a file by name; the one of an `.npy` is called as the file is.

    Raises:
        DataError: no such file, another kind of file, damaged, or one that holds Python objects.
    """
    try:
        if path.suffix == ".npy":
            return {path.stem: Array(path, path.stem, np.load(path, mmap_mode="r", allow_pickle=False))}
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as held:
                return {name: Array(path, name, held[name]) for name in held.files}
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
    except (
        OSError,
        ValueError,
        EOFError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        struct.error,
    ) as error:
        raise _unreadable(path, error) from error
    except zipfile.BadZipFile as error:
        raise _unreadable(path, error) from error
    raise DataError(f"{path}: unknown kind of file; give {', '.join(SUFFIXES)}")


def _unreadable(path: Path, error: Exception) -> DataError:
    said = (str(error).splitlines() or [type(error).__name__])[0]
    if "allow_pickle" in said:
        said = "it holds Python objects, which are not read: save plain numbers and text"
    return DataError(f"{path} cannot be read: {said}")


def _read_safetensors(path: Path) -> dict[str, Array]:
    """Map a safetensors file: 8 bytes of length, a JSON header, the numbers."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(_LONGEST_HEADER, size - 8):
            raise ValueError("it is cut short, or not a safetensors file")
        header = json.loads(file.read(length))
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, stop = entry["data_offsets"]
        shape = tuple(int(n) for n in entry["shape"])
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{name} is of type {entry['dtype']}, which is not read")
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        count = int(np.prod(shape, dtype=object))
        if (
            not 0 <= start <= stop <= size - 8 - length
            or stop - start != count * dtype.itemsize
            or min(shape, default=0) < 0
        ):
            raise ValueError(f"{name} does not lie where the header says: the file is cut short or damaged")
        # An empty range cannot be mapped.
        values = np.memmap(path, dtype, "r", 8 + length + start, shape) if count else np.empty(shape, dtype)
        arrays[name] = Array(path, name, values, entry["dtype"] == "BF16")
    return arrays


def write_safetensors(
    file: BinaryIO, shapes: Mapping[str, tuple[int, ...]], arrays: Iterator[np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write float32 arrays as a safetensors file, one at a time: in memory there is only the one being written.

    Args:
        file: opened for writing.
        shapes: every array's name and shape, in order.
        arrays: the arrays, in that order and of those shapes.
        metadata: text kept in the header.

    Raises:
        ValueError: an array is of another shape.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 4 * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for (name, shape), array in zip(shapes.items(), arrays, strict=True):
        if array.shape != shape:
            raise ValueError(f"{name} is {array.shape}, not {shape}")
        file.write(np.ascontiguousarray(array, dtype="<f4").data)
