"""What a run will take on the disk, before it starts."""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from layercache.errors import StoreError
from layercache.extract.pooling import absent_reason
from layercache.extract.tokenize import Sample
from layercache.outputs import TOKENS, Hidden, parse_output

_BITS = {7: 11.0, 10: 14.1, 23: 27.5}
"""Bits a stored value takes after rounding, split and zstd; measured on real states."""
_HIDDEN_ROW, _TOKEN, _SAMPLE = 8.0, 4.0, 90.0
_LENS_ROW, _LENS_TOKEN = 36.0, 9.0
_SLACK = 1.1
"""Free disk must exceed the estimate by this."""


def table_bytes(
    groups: Iterable[tuple[Mapping[str, list[int] | None], Sequence[Sample]]], width: int, precision: int
) -> dict[str, int]:
    """Estimate the bytes of every table for outputs that samples lack.

    Args:
        groups: (outputs and their layers, the samples that lack them).
        width: elements of a state.
        precision: mantissa bits that states keep.
    """
    total = {"samples": 0.0, "tokens": 0.0, "hidden": 0.0, "lens": 0.0}
    vector = width * _BITS[precision] / 8 + _HIDDEN_ROW
    for outputs, samples in groups:
        # The prompt's text and the ids compress to about half.
        total["samples"] += sum(_SAMPLE + len(sample.text.encode()) / 2 for sample in samples)
        for name, layers in outputs.items():
            output = parse_output(name)
            if output is None:
                total[TOKENS] += _TOKEN * sum(len(sample) for sample in samples)
                continue
            feature = output.pooling if isinstance(output, Hidden) else output.position
            rows = len(layers or []) * sum(absent_reason(sample, feature) is None for sample in samples)
            if isinstance(output, Hidden):
                total["hidden"] += rows * vector
            else:
                total["lens"] += rows * (_LENS_ROW + _LENS_TOKEN * output.top_k)
    return {table: round(size) for table, size in total.items()}


def free_bytes(store: Path) -> int:
    """Return the free space where a store is or will be."""
    folder = store.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(os.fspath(folder)).free


def check_space(needed: int, store: Path) -> None:
    """Refuse a run that the disk cannot hold.

    Raises:
        StoreError: names both sizes.
    """
    free = free_bytes(store)
    if needed * _SLACK > free:
        raise StoreError(
            f"the disk of {store} has {size_text(free)} free and this run needs about {size_text(needed)}:"
            " free some space, choose another --store, or ask for fewer layers or poolings"
        )


def size_text(size: float) -> str:
    """Write a number of bytes for people: `1.4 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
