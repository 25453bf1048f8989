"""Rounds the mantissa of float32 values, so that they compress: precision is chosen when writing, never a format."""

import numpy as np

MANTISSA_BITS = 23
"""Explicit mantissa bits of a float32."""


def round_mantissa(values: np.ndarray, bits: int) -> np.ndarray:
    """Round float32 values to `bits` explicit mantissa bits, to nearest, ties to even.

    10 bits are float16's precision with float32's range, 7 are bfloat16's, 23 leave the values as they
    are. The rounding is done on the bit pattern: half a unit of the last kept place is added, less one
    when that place is even, and the places below are cleared. Hence, as in IEEE 754 arithmetic, a carry
    moves to the next exponent, values above the largest representable one become infinite (only beyond
    3.4e38) and subnormals are rounded to a multiple of the same absolute step. Infinities and NaN keep
    their bits.

    Args:
        values: float32, any shape.
        bits: 1 to 23.

    Returns:
        A new float32 array of the same shape.

    Raises:
        ValueError: another dtype, or bits out of range.
    """
    if values.dtype != np.float32 or not 1 <= bits <= MANTISSA_BITS:
        raise ValueError(f"need float32 values and 1 to {MANTISSA_BITS} bits, not {values.dtype} and {bits}")
    out = np.array(values, dtype=np.float32, order="C", ndmin=1)
    shift = MANTISSA_BITS - bits
    if shift:
        pattern = out.view(np.uint32)
        even = (pattern >> np.uint32(shift)) & np.uint32(1)
        rounded = pattern + (even + np.uint32((1 << (shift - 1)) - 1))
        rounded &= np.uint32(0xFFFFFFFF << shift & 0xFFFFFFFF)
        np.copyto(pattern, rounded, where=np.isfinite(out))
    return out.reshape(values.shape)
