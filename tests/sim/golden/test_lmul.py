"""L-Mul's golden functions against the printed formula, exact rationals and published figures."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from hw.formats.minifloat import FORMATS, MiniFloat, bf16, e4m3, e5m2, fp16, fp32
from sim.golden.lmul import (
    exact_product,
    lmul,
    lmul_bound,
    lmul_dot,
    lmul_wide,
)

DTYPES = {e4m3: ml_dtypes.float8_e4m3fn, e5m2: ml_dtypes.float8_e5m2, fp16: np.float16,
          bf16: ml_dtypes.bfloat16, fp32: np.float32}


def unsigned(fmt, values):
    return np.asarray(values, dtype=f"u{fmt.width // 8}")


def corners(fmt):
    """Every class boundary of ``fmt``, each mantissa extreme at several exponents, both signs."""
    m = fmt.mantissa_bits
    edges = {0, 1, fmt.smallest_normal, fmt.one, fmt.largest_finite, fmt.nan, fmt.magnitude_mask}
    edges |= {fmt.infinity} if fmt.has_infinity else set()
    edges |= {(e << m) | f for e in (1, 2, fmt.bias - 1, fmt.bias, fmt.bias + 1, 2 * fmt.bias - 1)
              for f in (0, 1, (1 << m) - 1, 1 << (m - 1))}
    edges |= {fmt.constant(), fmt.constant() + 1, fmt.constant() - 1, fmt.constant(0) >> 1}
    edges = np.array(sorted(edges), dtype=np.int64)
    return unsigned(fmt, np.concatenate([edges, edges | 1 << fmt.magnitude_width]))


def pairs(fmt):
    """All pairs of an 8-bit format; corner pairs and random ones of a wider one."""
    if fmt.width == 8:
        words = np.arange(256, dtype=np.uint8)
        return np.repeat(words, 256), np.tile(words, 256)
    words = corners(fmt)
    rng = np.random.default_rng(fmt.width)
    x, y = rng.integers(0, 1 << fmt.width, (2, 100_000), dtype=np.uint64).astype(words.dtype)
    near = unsigned(fmt, rng.integers(fmt.one - (8 << fmt.mantissa_bits),
                                      fmt.one + (8 << fmt.mantissa_bits), (2, 100_000)))
    grid = np.meshgrid(words, words)
    return (np.concatenate([grid[0].reshape(-1), x, near[0]]),
            np.concatenate([grid[1].reshape(-1), y, near[1]]))


def values(fmt, x):
    """Numbers as float64, subnormal numbers as zero."""
    with np.errstate(invalid="ignore"):         # signalling NaN
        value = x.view(DTYPES[fmt]).astype(np.float64)
    return np.where(np.abs(value) < 2.0 ** (1 - fmt.bias), np.copysign(0.0, value), value)


def finish(fmt, x, y, magnitude, saturate):
    """Return the bits of a product whose magnitude is known, by IEEE's rules."""
    a, b = values(fmt, x), values(fmt, y)
    largest = float(ml_dtypes.finfo(DTYPES[fmt]).max)
    limit = largest if saturate or not fmt.has_infinity else np.inf
    magnitude = np.where(magnitude < 2.0 ** (1 - fmt.bias), 0.0, magnitude)
    magnitude = np.where(magnitude > largest, limit, magnitude)
    magnitude = np.where((a == 0) | (b == 0), 0.0, magnitude)
    magnitude = np.where(np.isinf(a) | np.isinf(b), np.inf, magnitude)
    with np.errstate(invalid="ignore"):
        invalid = np.isnan(a * b)
    sign = np.signbit(a) ^ np.signbit(b)
    bits = np.copysign(np.where(invalid, 0.0, magnitude), np.where(sign, -1.0, 1.0)).astype(
        DTYPES[fmt]).view(x.dtype)
    nan = fmt.nan | sign.astype(np.int64) << fmt.magnitude_width
    return np.where(invalid, nan, bits)


def piecewise(fmt, x, y, offset):
    """L-Mul's magnitude as a value: linear in the mantissas, with a slope for each carry."""
    (fx, ex), (fy, ey) = np.frexp(np.abs(values(fmt, x))), np.frexp(np.abs(values(fmt, y)))
    with np.errstate(invalid="ignore"):         # signalling NaN
        s = (2 * fx - 1) + (2 * fy - 1) + offset * 2.0 ** -fmt.mantissa_bits
        factor = np.where(s < 1, 1 + s, np.where(s < 2, 2 * s, 4 * (s - 1)))
        return np.ldexp(factor, ex + ey - 2)


@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_lmul_equals_the_piecewise_linear_form(name, saturate):
    fmt = FORMATS[name]
    x, y = pairs(fmt)
    for offset in (None, 0, (1 << fmt.mantissa_bits) - 1):
        used = fmt.mantissa_offset if offset is None else offset
        expected = finish(fmt, x, y, piecewise(fmt, x, y, used), saturate)
        product = lmul(fmt, x, y, offset=offset, saturate=saturate)
        assert product.dtype == x.dtype
        np.testing.assert_array_equal(product, expected)


@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("name", ["e4m3", "e5m2", "fp16", "bf16"])
def test_exact_product_equals_rounded_float64(name, saturate):
    fmt = FORMATS[name]
    x, y = pairs(fmt)
    with np.errstate(invalid="ignore"):
        product = np.abs(values(fmt, x) * values(fmt, y))
        fraction, exponent = np.frexp(product)
        significand = np.rint(fraction * 2 ** (fmt.mantissa_bits + 1))
        rounded = np.ldexp(significand, exponent - fmt.mantissa_bits - 1)
    np.testing.assert_array_equal(exact_product(fmt, x, y, saturate=saturate),
                                  finish(fmt, x, y, rounded, saturate))


def test_exact_product_of_fp32_equals_numpy():
    x, y = pairs(fp32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        a, b = values(fp32, x).astype(np.float32), values(fp32, y).astype(np.float32)
        product = np.abs(a * b)
    # NumPy rounds a subnormal product on a coarser grid; ours is a zero or the smallest normal.
    normal = ~(product <= 2.0 ** -126)
    np.testing.assert_array_equal(exact_product(fp32, x, y)[normal],
                                  finish(fp32, x, y, product.astype(np.float64), False)[normal])


@pytest.mark.parametrize(("fmt", "vectors"), [
    (bf16, "3F80 3F80 3F88, 4000 4040 40C8, 3FC0 3FC0 4008, 3FFF 3FFF 4086, C049 402E C0FF, "
           "0000 7F7F 0000, 7F00 7F00 7F80, 0100 0100 0000, 7F80 0000 7FC0"),
    (e4m3, "38 38 39, 3C 3C 41, 3F 3F 47, C5 49 D7, 00 7E 00, 7E 7E 7E, 08 08 00, 08 37 08, "
           "7F 38 7F"),
    (fp32, "3F800000 3F800000 3F880000, 40490FDB 402DF854 40FF082F, 3FFFFFFF 3FFFFFFF 4087FFFE"),
], ids=["bf16", "e4m3", "fp32"])
def test_vectors(fmt, vectors):
    for vector in vectors.split(","):
        x, y, expected = (int(word, 16) for word in vector.split())
        assert lmul(fmt, unsigned(fmt, x), unsigned(fmt, y)) == expected


@pytest.mark.parametrize(("name", "constant"), [
    ("e4m3", 0x37), ("e5m2", 0x3B), ("fp16", 0x3BC0), ("bf16", 0x3F78), ("fp32", 0x3F780000)])
def test_constants(name, constant):
    assert FORMATS[name].constant() == constant


@pytest.mark.parametrize(("m", "offset", "mean", "mean_abs", "largest", "smallest"), [
    (2, None, .1467, .1467, .2500, .0667),
    (2, 0, -.0357, .0357, 0, -.1111),
    (3, None, .0493, .0524, .1250, -.0303),
    (3, 0, -.0378, .0378, 0, -.1111),
    (4, None, .0487, .0514, .1250, -.0321),
    (7, None, .0041, .0266, .0625, -.0729),
    (7, 0, -.0385, .0385, 0, -.1111),
    (10, None, .0041, .0265, .0625, -.0729),        # .026548; the reference prints .0266
])
def test_relative_error_over_all_mantissas(m, offset, mean, mean_abs, largest, smallest):
    """The figures of the project's reference on L-Mul, section 1.5, to the last printed digit."""
    fmt = {2: e5m2, 3: e4m3, 4: MiniFloat("e3m4", 3, 4, 3), 7: bf16, 10: fp16}[m]
    words = unsigned(fmt, fmt.one + np.arange(1 << m))
    significand = 1 + np.arange(1 << m) / (1 << m)
    exact = np.outer(significand, significand)
    product = lmul(fmt, words[:, np.newaxis], words[np.newaxis], offset=offset).astype(np.int64)
    approximate = np.ldexp(1 + (product % (1 << m)) / (1 << m), (product >> m) - fmt.bias)
    error = approximate / exact - 1
    figures = [error.mean(), np.abs(error).mean(), error.max(), error.min()]
    np.testing.assert_allclose(figures, [mean, mean_abs, largest, smallest], atol=5.1e-5)


def test_wide_product_keeps_its_exponent():
    x = unsigned(e4m3, [0x08, 0x7E, 0x7E, 0x00, 0x7F, 0x87])
    sign, result, zero, nan, infinite = lmul_wide(e4m3, x, unsigned(e4m3, [8, 0x7E, 0xFE, 9, 0, 9]))
    np.testing.assert_array_equal(result[:3], [-39, 197, 197])
    np.testing.assert_array_equal(sign, [False, False, True, False, False, True])
    np.testing.assert_array_equal(zero, [False, False, False, True, False, True])
    np.testing.assert_array_equal(nan, [False] * 4 + [True, False])
    assert not infinite.any()


# The dot product, from its definition in rational numbers.

def term(fmt, x, y, offset, unit):
    """One product, truncated towards zero to a multiple of ``unit`` if that is given."""
    m = fmt.mantissa_bits
    a, b = x & fmt.magnitude_mask, y & fmt.magnitude_mask
    if a < fmt.smallest_normal or b < fmt.smallest_normal:
        return Fraction(0)
    result = a + b - fmt.constant(offset)
    significand, exponent = (1 << m) + result % (1 << m), result // (1 << m)
    value = significand * Fraction(2) ** (exponent - fmt.bias - m)
    if unit is not None:
        value = value // unit * unit
    return -value if (x ^ y) >> fmt.magnitude_width else value


def nearest_bf16(value):
    if value == 0:
        return 0
    sign, value = 0x8000 * (value < 0), abs(value)
    exponent = math.floor(math.log2(value.numerator) - math.log2(value.denominator))
    while value >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while value < Fraction(2) ** exponent:
        exponent -= 1
    magnitude = ((exponent + 127) << 7) + round(value / Fraction(2) ** (exponent - 7)) - 128
    return sign | (0 if magnitude < 0x80 else min(magnitude, 0x7F80))


def dots(fmt, count, length, seed):
    """Finite operands: full range, one decade, one sign, and cancelling pairs."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 1 << fmt.width, (2, count, length))
    narrow = rng.integers(fmt.one - (2 << fmt.mantissa_bits), fmt.one + (2 << fmt.mantissa_bits),
                          (2, count, length))
    narrow |= rng.integers(0, 2, narrow.shape) << fmt.magnitude_width
    cancelling = np.tile(narrow[:, :, ::2], 2)
    words = np.concatenate([words, narrow, narrow & fmt.magnitude_mask, cancelling], axis=1)
    words[0, -count:, length // 2:] ^= 1 << fmt.magnitude_width
    magnitude = words & fmt.magnitude_mask
    finite = magnitude <= fmt.largest_finite
    return unsigned(fmt, np.where(finite, words, words & ~fmt.magnitude_mask))


@pytest.mark.parametrize("offset", [None, 0])
@pytest.mark.parametrize("name", ["e4m3", "e5m2"])
def test_fp8_dot_product_is_exact(name, offset):
    fmt = FORMATS[name]
    x, y = dots(fmt, 30, 32, seed=5)
    expected = [nearest_bf16(sum(term(fmt, int(a), int(b), offset, None)
                                 for a, b in zip(row, column, strict=True)))
                for row, column in zip(x, y, strict=True)]
    np.testing.assert_array_equal(lmul_dot(fmt, x, y, offset=offset), expected)


@pytest.mark.parametrize("window", [10, 16, 24, 32])
def test_bf16_dot_product_in_its_window(window):
    x, y = dots(bf16, 30, 32, seed=window)
    bounds = lmul_bound(bf16, x, y)
    expected = []
    for row, column, bound in zip(x, y, bounds.tolist(), strict=True):
        unit = Fraction(2) ** (bound - 127 - window + 1)
        largest = max(int(w) & 0x7FFF for w in row), max(int(w) & 0x7FFF for w in column)
        assert bound == (sum(largest) - 0x3F78) >> 7
        expected.append(nearest_bf16(sum(term(bf16, int(a), int(b), None, unit)
                                         for a, b in zip(row, column, strict=True))))
    np.testing.assert_array_equal(lmul_dot(bf16, x, y, window=window), expected)
    np.testing.assert_array_equal(lmul_dot(bf16, x, y, window=window, bound=bounds), expected)


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "bf16"])
def test_dot_product_does_not_depend_on_the_order(name):
    fmt = FORMATS[name]
    x, y = dots(fmt, 50, 64, seed=6)
    expected = lmul_dot(fmt, x, y)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(x.shape[-1])
        np.testing.assert_array_equal(lmul_dot(fmt, x[:, order], y[:, order]), expected)
    np.testing.assert_array_equal(lmul_dot(fmt, x.T, y.T, axis=0), expected)


def test_bound_leaves_room_or_the_result_is_nan():
    x = unsigned(bf16, [[0x3F80, 0x4000, 0x4040]])
    exact = lmul_dot(bf16, x, x)
    bound = lmul_bound(bf16, x, x)
    np.testing.assert_array_equal(lmul_dot(bf16, x, x, bound=bound + 8), exact)
    np.testing.assert_array_equal(lmul_dot(bf16, x, x, bound=bound - 1), [0x7FC0])


def test_special_values_of_the_dot_product():
    one, inf, nan, big = 0x3F80, 0x7F80, 0x7FC0, 0x7F00
    minus = 0x8000
    for x, y, expected, saturated in [
            ([one, inf], [one, one], inf, inf),
            ([one, inf], [one, one | minus], inf | minus, inf | minus),
            ([inf, inf], [one, one | minus], nan, nan),
            ([inf, one], [0, one], nan, nan),
            ([nan | minus, one], [one, one], nan, nan),
            ([inf, nan], [one, one], nan, nan),
            ([0, minus], [minus, one], 0, 0),
            ([one, one], [one, one | minus], 0, 0),
            ([big, big], [big, big], inf, 0x7F7F),
            ([big, big], [big | minus, big | minus], inf | minus, 0xFF7F),
            ([0x0080], [0x0080], 0, 0),
            ([0x8080], [0x0080], minus, minus)]:
        x, y = unsigned(bf16, x), unsigned(bf16, y)
        assert lmul_dot(bf16, x, y) == expected
        assert lmul_dot(bf16, x, y, saturate=True) == saturated
    x = unsigned(e4m3, [0x7F, 0x38])
    assert lmul_dot(e4m3, x, x) == nan
    x = unsigned(e5m2, [0x7C, 0x38])
    assert lmul_dot(e5m2, x, x) == inf


def test_long_fp8_dot_products_do_not_overflow():
    """The largest e5m2 product 2**20 times, next to the smallest one."""
    x = unsigned(e5m2, np.full(1 << 20, 0x7B))
    x[0] = 0x04
    largest = term(e5m2, 0x7B, 0x7B, None, None)
    assert lmul_dot(e5m2, x, x) == nearest_bf16(largest * ((1 << 20) - 1))


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: lmul(bf16, np.array([1]), unsigned(bf16, [1])), TypeError,
     r"^bf16 operand x must be uint16, not int64$"),
    (lambda: lmul(e4m3, unsigned(e4m3, [1]), unsigned(bf16, [1])), TypeError,
     r"^e4m3 operand y must be uint8, not uint16$"),
    (lambda: lmul(e4m3, unsigned(e4m3, [1]), unsigned(e4m3, [1]), offset=8), ValueError,
     r"^Offset of e4m3 must be in 0\.\.7, not 8$"),
    (lambda: lmul_dot(bf16, unsigned(bf16, [1]), unsigned(bf16, [1, 2])), ValueError,
     r"^Operand y must have shape \(1,\), not \(2,\)$"),
    (lambda: lmul_dot(fp32, unsigned(fp32, [1]), unsigned(fp32, [1])), ValueError,
     r"^Format of a dot product must be e4m3, e5m2 or bf16, not fp32$"),
    (lambda: lmul_dot(bf16, unsigned(bf16, [1]), unsigned(bf16, [1]), window=33), ValueError,
     r"^Window must be in 10\.\.32, not 33$"),
])
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
