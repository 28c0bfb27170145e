"""bf16 rounding and addition against exact rational arithmetic and ml_dtypes."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from sim.golden import bf16

CORNERS = np.array([0x0000, 0x0001, 0x007F, 0x0080, 0x0081, 0x00FF, 0x0100, 0x0880, 0x3F7F, 0x3F80,
                    0x3F81, 0x3FFF, 0x4000, 0x4780, 0x7EFF, 0x7F00, 0x7F7E, 0x7F7F, 0x7F80, 0x7F81,
                    0x7FC0, 0x7FFF], dtype=np.uint16)
CORNERS = np.concatenate([CORNERS, CORNERS | 0x8000])


def nearest(value: Fraction, negative_zero: bool = False) -> int:
    """Bits of ``value`` rounded to 8 significant bits, ties to even, then flushed or infinite."""
    if value == 0:
        return 0x8000 * negative_zero
    sign = 0x8000 * (value < 0)
    value = abs(value)
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    exponent -= value < Fraction(2) ** exponent
    significand = round(value / Fraction(2) ** (exponent - 7))       # ties to even
    magnitude = ((exponent + 127) << 7) + significand - 128
    return sign | (0 if magnitude < 0x80 else min(magnitude, 0x7F80))


def test_every_number_survives_the_way_to_float_and_back():
    x = np.arange(1 << 16, dtype=np.uint16)
    values = bf16.to_float32(x)
    subnormal = (x & 0x7F80) == 0
    np.testing.assert_array_equal(values[~subnormal],
                                  x.view(ml_dtypes.bfloat16).astype(np.float32)[~subnormal])
    assert not values[subnormal].any()
    expected = np.where(subnormal, x & 0x8000, np.where((x & 0x7FFF) > 0x7F80, bf16.NAN, x))
    np.testing.assert_array_equal(bf16.from_float(values), expected)
    with np.errstate(invalid="ignore"):         # signalling NaN
        wide = values.astype(np.float64)
    np.testing.assert_array_equal(bf16.from_float(wide), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_from_float_rounds_once_to_nearest_even(dtype):
    rng = np.random.default_rng(1)
    bits = np.dtype(dtype).itemsize * 8
    values = [
        rng.integers(0, 1 << bits, 3000, dtype=f"u{bits // 8}").view(dtype),
        np.ldexp(rng.standard_normal(2000).astype(dtype), rng.integers(-140, 126, 2000)),
        # Around ties and around the smallest and largest normal number.
        *(np.array(k, dtype) * dtype(2.0 ** e) * (1 + np.array(d, dtype) * np.finfo(dtype).eps)
          for k in (1 + 1 / 256, 1 + 3 / 256, 1.5 + 1 / 256, 2 - 1 / 256, 1 - 1 / 512, 1)
          for e in (-127, -126, -1, 0, 126, 127) for d in ([-1.0, 0.0, 1.0],)),
    ]
    values = np.concatenate(values)
    values = values[np.isfinite(values)]
    expected = [nearest(Fraction(float(v)), bool(np.signbit(v))) for v in values]
    np.testing.assert_array_equal(bf16.from_float(values), expected)


def test_from_float_equals_ml_dtypes():
    values = np.random.default_rng(2).standard_normal(100_000).astype(np.float32)
    np.testing.assert_array_equal(bf16.from_float(values),
                                  values.astype(ml_dtypes.bfloat16).view(np.uint16))


def test_infinity_and_nan():
    values = np.array([np.inf, -np.inf, np.nan, -np.nan], dtype=np.float32)
    expected = [0x7F80, 0xFF80, 0x7FC0, 0x7FC0]
    np.testing.assert_array_equal(bf16.from_float(values), expected)
    np.testing.assert_array_equal(bf16.from_float(values.astype(np.float64)), expected)


def test_add_is_exact_then_rounded_once():
    rng = np.random.default_rng(3)
    x = rng.integers(0, 1 << 16, 20_000, dtype=np.uint16)
    near = x + rng.integers(-0x500, 0x500, len(x)).astype(np.uint16)
    pairs = np.concatenate([
        np.stack([x, rng.permutation(x)]), np.stack([x, near]), np.stack([x, x ^ 0x8000]),
        np.stack(np.meshgrid(CORNERS, CORNERS)).reshape(2, -1)], axis=1)
    left, right = bf16.to_float32(pairs)
    finite = np.isfinite(left) & np.isfinite(right)
    expected = [nearest(Fraction(float(a)) + Fraction(float(b)), bool(np.signbit([a, b]).all()))
                for a, b in zip(left[finite], right[finite], strict=True)]
    np.testing.assert_array_equal(bf16.add(*pairs[:, finite]), expected)
    np.testing.assert_array_equal(bf16.subtract(pairs[0], pairs[1] ^ 0x8000), bf16.add(*pairs))


def test_add_of_infinities():
    x = np.array([0x7F80, 0x7F80, 0xFF80, 0x3F80, 0x7FC1], dtype=np.uint16)
    y = np.array([0x7F80, 0xFF80, 0x3F80, 0xFF80, 0x3F80], dtype=np.uint16)
    np.testing.assert_array_equal(bf16.add(x, y), [0x7F80, 0x7FC0, 0xFF80, 0xFF80, 0x7FC0])


def test_values_must_be_float():
    with pytest.raises(TypeError, match=r"^Values must be float32 or float64, not int64$"):
        bf16.from_float(np.array([1], dtype=np.int64))
