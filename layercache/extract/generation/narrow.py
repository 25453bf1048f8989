"""Cuts what a block is given to its first rows: nested tensors, of which some dimension counts the batch's rows."""

from collections.abc import Iterator
from typing import Any

import torch

Axes = dict[str, tuple[int, int] | None]
"""Of every tensor a block is given, by path: the dimension that counts rows, and its elements a row."""


class Unsupported(Exception):  # noqa: N818
    """The rows of a batch cannot leave one by one; says why."""


def row_axis(path: str, two: tuple[int, ...], three: tuple[int, ...]) -> tuple[int, int] | None:
    """Compare a tensor's shapes with two and three rows; None when rows are no part of it."""
    grown = [dim for dim, (a, b) in enumerate(zip(two, three, strict=False)) if a != b]
    if len(two) != len(three) or len(grown) > 1:
        raise Unsupported(f"it is not clear what of {path} is a row of the batch")
    if not grown:
        return None
    a, b = two[grown[0]], three[grown[0]]
    if a * 3 != b * 2:
        raise Unsupported(f"{path} grows in another way than the batch")
    return grown[0], a // 2


def tensors(value: Any, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Walk the tensors, of any shape, of nested tuples, lists and dicts, each with its path; caches are none of these."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from tensors(item, f"{path}.{index}")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from tensors(item, f"{path}.{name}")


def narrow(value: Any, path: str, rows: int, axes: Axes) -> Any:
    """Cut the tensors of a nested value to the first rows."""
    if isinstance(value, torch.Tensor):
        if path not in axes:
            raise Unsupported(f"{path} was not there when rows were told from other dimensions")
        axis = axes[path]
        return value if axis is None else value.narrow(axis[0], 0, rows * axis[1])
    if type(value) in (tuple, list):
        return type(value)(narrow(item, f"{path}.{index}", rows, axes) for index, item in enumerate(value))
    if type(value) is dict:
        return {name: narrow(item, f"{path}.{name}", rows, axes) for name, item in value.items()}
    return value
