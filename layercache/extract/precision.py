"""Mantissa rounding on the device, before states are copied from it."""

import torch


def round_mantissa(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Round float32 values to `bits` mantissa bits, to nearest, ties to even; bit for bit the store's own rounding.

    Args:
        values: float32, any shape and device.
        bits: 1 to 23; 23 changes nothing.

    Returns:
        A float32 tensor; infinities and NaN as they were.
    """
    if bits >= 23:
        return values
    drop = 23 - bits
    whole = values.contiguous().view(torch.int32)
    # Half of the last kept place, less one where that place is even: ties go to even.
    rounded = (whole + ((1 << (drop - 1)) - 1) + ((whole >> drop) & 1)) & -(1 << drop)
    return torch.where(torch.isfinite(values), rounded.view(torch.float32), values)
