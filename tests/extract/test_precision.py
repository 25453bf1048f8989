import numpy as np
import pytest
import torch

from layercache.extract.precision import round_mantissa
from layercache.store import precision as store_precision


@pytest.mark.parametrize("bits", [1, 7, 10, 22, 23])
def test_bit_for_bit_the_stores_rounding(bits: int) -> None:
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    edges = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-45, 3.4e38, -3.4e38, 65504.0, 1 / 3], np.float32)
    ties = (np.arange(1, 4000, dtype=np.uint32) << np.uint32(12)).view(np.float32)
    with np.errstate(invalid="ignore"):
        values = np.concatenate([patterns, edges, ties, -ties])
    ours = round_mantissa(torch.from_numpy(values.copy()), bits).numpy()
    theirs = store_precision.round_mantissa(values, bits)
    assert np.array_equal(ours.view(np.uint32), theirs.view(np.uint32))


def test_ten_bits_are_float16_within_its_range() -> None:
    values = np.random.default_rng(1).normal(size=10_000).astype(np.float32)
    normal = values[np.abs(values) > 1e-4]
    rounded = round_mantissa(torch.from_numpy(normal), 10).numpy()
    assert np.array_equal(rounded, normal.astype(np.float16).astype(np.float32))


def test_a_view_that_is_not_contiguous() -> None:
    values = torch.randn(6, 8).T
    assert torch.equal(round_mantissa(values, 7), round_mantissa(values.clone(), 7))
