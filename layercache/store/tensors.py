"""Writes and reads safetensors files without torch, bfloat16 included, and without holding a file in memory.

The library's NumPy side does not know bfloat16 and reads files whole; here bfloat16 is uint16 that holds its
bits, and what is read is a view of the mapped file.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from layercache.errors import StoreError
from layercache.store import files
from layercache.store.layout import first_line

_DTYPES = {"F32": np.float32, "I32": np.int32, "F16": np.float16, "BF16": np.uint16, "U8": np.uint8}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_LENGTH = 8
_HEADER_BYTES = 1 << 20
"""No header of ours comes near it; a damaged length must not ask for all memory."""

Tensors = dict[str, np.ndarray]


def write(path: Path, tensors: Tensors, metadata: dict[str, str]) -> str:
    """Write arrays of any shape and the dtypes known here; uint16 are stored as bfloat16.

    Returns:
        Its sha256, in hex.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, values in ordered:
        header[name] = {
            "dtype": _NAMES[values.dtype],
            "shape": list(values.shape),
            "data_offsets": [end, end + values.nbytes],
        }
        end += values.nbytes
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        parts: list[Any] = [len(text).to_bytes(_LENGTH, "little"), text, *(_bytes(values) for _, values in ordered)]
        for part in parts:
            file.write(part)
            digest.update(part)
    return digest.hexdigest()


def _bytes(values: np.ndarray) -> Any:
    """Return an array as a buffer of its bytes, without a copy."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def read(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Map a file: its tensors, read-only, of the shapes and dtypes stored (bfloat16 as uint16), and its metadata.

    Raises:
        StoreError: it cannot be read, or is no whole safetensors file of the types known here.
    """
    try:
        with files.open_on_disk(path) as file:
            length = int.from_bytes(file.read(_LENGTH), "little")
            if length > _HEADER_BYTES:
                raise ValueError("its header is too long")
            header = json.loads(file.read(length))
            size = file.seek(0, 2)
            data = np.memmap(file, np.uint8, mode="r", offset=0)[_LENGTH + length :]
        metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
        tensors = {str(name): _tensor(data, entry) for name, entry in header.items()}
        if _LENGTH + length + sum(values.nbytes for values in tensors.values()) != size:
            raise ValueError("its length is not what its header says")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} cannot be read ({first_line(error)}): run `layercache verify --deep`") from error
    return tensors, metadata


def _tensor(data: np.ndarray, entry: dict[str, Any]) -> np.ndarray:
    dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), [int(size) for size in entry["shape"]]
    start, stop = (int(place) for place in entry["data_offsets"])
    if min(shape, default=0) < 0 or not 0 <= start <= stop <= len(data):
        raise ValueError("a tensor lies outside the file")
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError("a tensor's length is not that of its shape")
    return data[start:stop].view(dtype).reshape(shape)
