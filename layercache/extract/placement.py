"""Where the layers of a model go that is larger than one device: the limits of its device map."""

from collections.abc import Sequence
from typing import Any

import torch

from layercache.errors import ModelError
from layercache.quantities import nbytes

DISK = "disk"


def limits(given: Sequence[str]) -> dict[int | str, int]:
    """Read how much of each device the weights may take: `0=20GB` is the first GPU's, `cpu=60GB` the host's.

    Returns:
        Device → bytes, as accelerate's `max_memory`; a device that is not named gets nothing.

    Raises:
        ModelError: a GPU that is not there.
    """
    found: dict[int | str, int] = {}
    for one in given:
        device, _, size = one.partition("=")
        if device.isdecimal() and int(device) >= torch.cuda.device_count():
            raise ModelError(f"max_memory {one}: this machine has {torch.cuda.device_count()} GPUs, counted from 0")
        found[int(device) if device.isdecimal() else device] = nbytes(size)
    return found


def note(module: Any) -> str | None:
    """Say that weights are read from the disk in every batch; None where none are."""
    places = list(getattr(module, "hf_device_map", {}).values())
    if DISK not in places:
        return None
    return (
        f"{places.count(DISK):,} of {len(places):,} pieces of the model are on the disk, and are read again in every"
        " batch, which is slow: give it more memory, or a smaller --dtype"
    )
