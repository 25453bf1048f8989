import numpy as np
import pytest

from layercache.store.precision import round_mantissa


def patterns(n: int = 200_000) -> np.ndarray:
    """Float32 values of every kind: random bit patterns, subnormals, ties, the ends of the range."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, n, dtype=np.uint64).astype(np.uint32)
    subnormal = rng.integers(0, 2**23, n // 10, dtype=np.uint32)
    ties = (bits[: n // 4] & np.uint32(0xFFFFE000)) | np.uint32(0x1000)
    ties7 = (bits[: n // 4] & np.uint32(0xFFFF0000)) | np.uint32(0x8000)
    edges = np.array([0, 0x80000000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00001, 1], dtype=np.uint32)
    return np.concatenate([bits, subnormal, ties, ties7, edges]).view(np.float32)


def by_arithmetic(values: np.ndarray, bits: int) -> np.ndarray:
    """Round by exact float64 arithmetic: to multiples of the unit of the last kept place."""
    exact = values.astype(np.float64)
    exponent = np.maximum(np.frexp(exact)[1] - 1, -126)
    unit = np.ldexp(1.0, exponent - bits)
    with np.errstate(over="ignore"):
        return (np.rint(exact / unit) * unit).astype(np.float32)


@pytest.mark.parametrize("bits", [1, 7, 10, 22])
def test_equals_rounding_by_arithmetic(bits: int) -> None:
    values = patterns()
    finite = np.isfinite(values)
    expected = by_arithmetic(values[finite], bits)
    np.testing.assert_array_equal(round_mantissa(values, bits)[finite].view(np.uint32), expected.view(np.uint32))


def test_ten_bits_equal_float16_in_its_range() -> None:
    values = patterns()
    size = np.abs(values)
    values = values[(size >= 2.0**-14) & (size < 65504)]
    assert len(values) > 10_000
    np.testing.assert_array_equal(round_mantissa(values, 10), values.astype(np.float16).astype(np.float32))


def test_values_that_are_not_finite_keep_their_bits() -> None:
    values = patterns()
    odd = values[~np.isfinite(values)]
    for bits in (7, 10, 23):
        np.testing.assert_array_equal(round_mantissa(odd, bits).view(np.uint32), odd.view(np.uint32))


def test_rounding_up_beyond_the_range_gives_infinity() -> None:
    largest = np.finfo(np.float32).max
    assert round_mantissa(np.array([largest, -largest], dtype=np.float32), 10).tolist() == [np.inf, -np.inf]
    np.testing.assert_array_equal(round_mantissa(np.array([largest], dtype=np.float32), 23), [largest])


def test_twenty_three_bits_change_nothing_and_copy() -> None:
    values = patterns(100)
    rounded = round_mantissa(values, 23)
    assert not np.shares_memory(rounded, values)
    np.testing.assert_array_equal(rounded.view(np.uint32), values.view(np.uint32))


def test_rounding_twice_is_rounding_once_and_keeps_the_shape() -> None:
    values = patterns(999)[:996].reshape(3, 4, 83)
    once = round_mantissa(values[:, ::2], 10)
    assert once.shape == (3, 2, 83)
    np.testing.assert_array_equal(round_mantissa(once, 10).view(np.uint32), once.view(np.uint32))
    assert round_mantissa(np.float32(1.0001).reshape(()), 7).shape == ()


@pytest.mark.parametrize(
    ("values", "bits"), [(np.zeros(2), 10), (np.zeros(2, np.float32), 0), (np.zeros(2, np.float32), 24)]
)
def test_other_dtypes_and_bits_are_refused(values: np.ndarray, bits: int) -> None:
    with pytest.raises(ValueError, match="need float32"):
        round_mantissa(values, bits)
