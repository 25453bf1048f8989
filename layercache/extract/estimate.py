"""What a run will take on the disk, before it starts."""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from layercache.errors import StoreError
from layercache.extract.pooling import absent_reason
from layercache.extract.tokenize import Sample
from layercache.outputs import TOKENS, Generation, Hidden, parse_output

_BITS = {7: 11.0, 10: 13.8, 23: 26.5}
"""Bits a stored value takes after rounding, split and zstd; measured on real states, which differ by 8 %."""
_HIDDEN_ROW, _TOKEN, _LENS_ROW, _LENS_TOKEN = 16.0, 2.0, 16.0, 4.6
_SAMPLE, _TEXT = 24.0, 0.3
_GENERATION_ROW, _NEW_TOKEN = 24.0, 18.0
"""Of a generated token: its id, text, log-probability and entropy, which hardly compress."""
_FOOTER = {"samples": 3000, "tokens": 1200, "lens": 4000, "hidden": 600, "generations": 2500}
"""Of every file; of states every (site, layer, pooling), which is a row group."""
_SLACK = 1.1
"""Free disk must exceed the estimate by this."""


def table_bytes(
    groups: Iterable[tuple[Mapping[str, list[int] | None], Sequence[Sample]]],
    width: int,
    precision: int,
    max_new_tokens: int = 0,
) -> dict[str, int]:
    """Estimate the bytes of every table for outputs that samples lack.

    Args:
        groups: (outputs and their layers, the samples that lack them).
        width: elements of a state.
        precision: mantissa bits that states keep.
        max_new_tokens: tokens of a generated text; all of them are counted, though a text may end before.
    """
    total = {"samples": 0.0, "tokens": 0.0, "hidden": 0.0, "lens": 0.0, "generations": 0.0}
    vector = width * _BITS[precision] / 8 + _HIDDEN_ROW
    for outputs, samples in groups:
        total["samples"] += _FOOTER["samples"]
        total["samples"] += sum(_SAMPLE + _TEXT * len(sample.text.encode()) for sample in samples)
        for name, layers in outputs.items():
            output = parse_output(name)
            if output is None:
                total[TOKENS] += _FOOTER[TOKENS] + _TOKEN * sum(len(sample) for sample in samples)
                continue
            n_layers = len(layers or [])
            if isinstance(output, Generation):
                row = _GENERATION_ROW + _NEW_TOKEN * max_new_tokens
                total["generations"] += _FOOTER["generations"] + n_layers * len(samples) * row
                continue
            feature = output.pooling if isinstance(output, Hidden) else output.position
            there = sum(absent_reason(sample, feature) is None for sample in samples)
            if isinstance(output, Hidden):
                total["hidden"] += n_layers * (_FOOTER["hidden"] + there * vector)
            else:
                total["lens"] += _FOOTER["lens"] + n_layers * there * (_LENS_ROW + _LENS_TOKEN * output.top_k)
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
