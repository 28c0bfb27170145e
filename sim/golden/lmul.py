# Ref: H. Luo, W. Sun, "Addition is All You Need for Energy-efficient Language Models", 2024
# Id: arXiv:2410.00907

"""L-Mul: a product of two floating-point numbers as one addition of their bits.

Arrays are unsigned integers of the format's width. docs/numerics.md, section 5, says the same in
words. The functions work in blocks that fit the cache: 100 million products take a second or two.
"""

import numpy as np

from hw.formats.minifloat import DEFAULT_WINDOW, WINDOWS, MiniFloat, bf16
from sim.golden.bf16 import NAN, from_float

__all__ = ["exact_product", "lmul", "lmul_bound", "lmul_dot", "lmul_wide"]

_BLOCK = 1 << 15        # elements; a block's temporaries fit a level 2 cache


def _check(fmt: MiniFloat, **arrays: np.ndarray) -> list[np.ndarray]:
    dtype = np.dtype(f"u{max(1, fmt.width // 8)}")
    checked = []
    for name, array in arrays.items():
        array = np.asarray(array)
        if array.dtype != dtype:
            raise TypeError(f"{fmt.name} operand {name} must be {dtype}, not {array.dtype}")
        checked.append(array)
    return checked


def _fields(fmt: MiniFloat, x: np.ndarray):
    """Magnitude as signed integers wide enough to add two, and what it stands for."""
    magnitude = (x & x.dtype.type(fmt.magnitude_mask)).astype(
        np.int32 if fmt.width <= 16 else np.int64)
    zero = magnitude < fmt.smallest_normal
    if fmt.has_infinity:
        return magnitude, zero, magnitude >= fmt.infinity, magnitude > fmt.infinity
    return magnitude, zero, np.zeros_like(zero), magnitude == fmt.nan


def lmul(fmt: MiniFloat, x: np.ndarray, y: np.ndarray, *, offset: int | None = None,
         saturate: bool = False) -> np.ndarray:
    """L-Mul product of ``x`` and ``y``. Mirrors ``hw.arith.lmul.LMul``.

    ``|x| + |y| - K`` as integers, ``K = fmt.constant(offset)``, with the exclusive or of the signs.
    A zero operand (exponent field 0) or a result below the smallest normal number gives zero. What
    is above the largest finite number becomes infinity, or the largest finite number if
    ``saturate`` or if the format has no infinity. NaN gives NaN, infinity times zero NaN, infinity
    times another number infinity.

    Parameters
    ----------
    fmt : MiniFloat
    x, y : unsigned integer arrays of the format's width, broadcast against each other
    offset : int, optional
        Units of the last place; see :meth:`MiniFloat.constant`.
    saturate : bool
        Deliver the largest finite number on overflow.

    Returns
    -------
    unsigned integer array
    """
    x, y = _check(fmt, x=x, y=y)
    constant = fmt.constant(offset)
    x, y = np.broadcast_arrays(x, y)
    product = np.empty(x.shape, x.dtype)
    for k in range(0, max(x.size, 1), _BLOCK):
        block = slice(k, k + _BLOCK)
        product.reshape(-1)[block] = _lmul_block(
            fmt, x.reshape(-1)[block], y.reshape(-1)[block], constant, saturate)
    return product


def _lmul_block(fmt, x, y, constant, saturate):
    a, a_zero, a_special, a_nan = _fields(fmt, x)
    b, b_zero, b_special, b_nan = _fields(fmt, y)
    result = a + b - constant
    zero = a_zero | b_zero
    overflow = fmt.largest_finite if saturate or not fmt.has_infinity else fmt.infinity
    magnitude = np.where(zero | (result < fmt.smallest_normal), 0,
                         np.where(result > fmt.largest_finite, overflow, result))
    special = a_special | b_special
    nan = a_nan | b_nan | (special & zero)
    if special.any():
        magnitude[special] = fmt.infinity
    if nan.any():
        magnitude[nan] = fmt.nan
    sign = (x ^ y) & x.dtype.type(1 << fmt.magnitude_width)
    return magnitude.astype(x.dtype) | sign


def lmul_wide(fmt: MiniFloat, x: np.ndarray, y: np.ndarray, *, offset: int | None = None):
    """L-Mul product before range checks: ``(sign, result, zero, nan, infinite)``.

    Where none of the three flags is set, the product is
    ``(-1)**sign * (2**m + result % 2**m) * 2**(result // 2**m - bias - m)`` with a result that may
    be negative or above every finite magnitude.

    Parameters
    ----------
    fmt : MiniFloat
    x, y : unsigned integer arrays of the format's width, broadcast against each other
    offset : int, optional
        Units of the last place; see :meth:`MiniFloat.constant`.

    Returns
    -------
    sign : bool array
    result : signed integer array
    zero, nan, infinite : bool arrays
        At most one of them is set.
    """
    x, y = np.broadcast_arrays(*_check(fmt, x=x, y=y))
    a, a_zero, a_special, a_nan = _fields(fmt, x)
    b, b_zero, b_special, b_nan = _fields(fmt, y)
    result = a + b - fmt.constant(offset)
    zero = a_zero | b_zero
    special = a_special | b_special
    nan = a_nan | b_nan | (special & zero)
    sign = ((x ^ y) >> x.dtype.type(fmt.magnitude_width)).astype(bool)
    return sign, result, zero & ~nan, nan, special & ~nan


def lmul_bound(fmt: MiniFloat, x: np.ndarray, y: np.ndarray, *, offset: int | None = None,
               axis: int = -1) -> np.ndarray:
    """Exponent field of the L-Mul product of the largest finite ``|x|`` and ``|y|`` along ``axis``.

    No product of the dot product has a larger one, since L-Mul is monotonic. It may lie outside the
    format's range. A side that is all zeros counts as the smallest normal number.

    Returns
    -------
    int32 array
    """
    largest = []
    for array in _check(fmt, x=x, y=y):
        magnitude = array & array.dtype.type(fmt.magnitude_mask)
        if (magnitude > fmt.largest_finite).any():
            magnitude = np.where(magnitude > fmt.largest_finite, 0, magnitude)
        largest.append(np.maximum(magnitude.max(axis=axis), fmt.smallest_normal).astype(np.int64))
    return ((largest[0] + largest[1] - fmt.constant(offset)) >> fmt.mantissa_bits).astype(np.int32)


def lmul_dot(fmt: MiniFloat, x: np.ndarray, y: np.ndarray, *, offset: int | None = None,
             axis: int = -1, window: int = DEFAULT_WINDOW, bound: np.ndarray | None = None,
             saturate: bool = False) -> np.ndarray:
    """Dot product of L-Mul products along ``axis``, as bf16. Mirrors ``hw.arith.lmul_dot.LMulDot``.

    Products keep their exponent beyond the format's range and add up in fixed point, so that the
    order does not matter; the sum is rounded once, to nearest even.

    e4m3 and e5m2: exact. bf16: the unit of the fixed point is ``2**(bound - bias - window + 1)``,
    so that a product with exponent field ``bound`` fills ``window`` bits, and each product is
    truncated towards zero to a multiple of the unit. A product above ``bound`` makes the result
    NaN.

    NaN and infinity follow ``lmul``: a NaN product, or infinities of both signs, give NaN;
    infinities of one sign give that infinity. A sum of zero is +0.

    Parameters
    ----------
    fmt : MiniFloat
        ``e4m3``, ``e5m2`` or ``bf16``.
    x, y : unsigned integer arrays of the format's width and of one shape
    offset : int, optional
        Units of the last place; see :meth:`MiniFloat.constant`.
    axis : int
    window : int
        Bits of the bf16 window, one of :data:`hw.formats.minifloat.WINDOWS`.
    bound : integer array of the result's shape, optional
        For bf16, the exponent field of the window's top; by default that of :func:`lmul_bound`.
    saturate : bool
        Deliver the largest finite number of its sign on overflow.

    Returns
    -------
    uint16 array of bf16

    Raises
    ------
    ValueError
        If the format has no dot product, the shapes differ, or ``window`` is out of range.
    """
    x, y = _check(fmt, x=x, y=y)
    if x.shape != y.shape:
        raise ValueError(f"Operand y must have shape {x.shape}, not {y.shape}")
    if fmt.width > 8 and fmt != bf16:
        raise ValueError(f"Format of a dot product must be e4m3, e5m2 or bf16, not {fmt.name}")
    if window not in WINDOWS:
        raise ValueError(f"Window must be in {WINDOWS[0]}..{WINDOWS[-1]}, not {window!r}")
    x, y = np.moveaxis(x, axis, -1), np.moveaxis(y, axis, -1)
    shape, count = x.shape[:-1], x.shape[-1]
    if fmt == bf16:
        if bound is None:
            bound = lmul_bound(fmt, x, y, offset=offset)
        bounds = np.broadcast_to(np.asarray(bound), shape).reshape(-1)
    else:
        bounds = np.zeros(shape, np.int32).reshape(-1)
    x, y = x.reshape(-1, count), y.reshape(-1, count)
    total = np.empty(len(x), np.uint16)
    rows = max(1, _BLOCK // max(count, 1))
    for k in range(0, len(x), rows):
        block = slice(k, k + rows)
        total[block] = _dot_block(fmt, x[block], y[block], offset, window, bounds[block], saturate)
    return total.reshape(shape)


def _dot_block(fmt, x, y, offset, window, bound, saturate):
    m = fmt.mantissa_bits
    sign, result, zero, nan, infinite = lmul_wide(fmt, x, y, offset=offset)
    exponent = result >> m
    significand = (result & ((1 << m) - 1)) | 1 << m
    significand[zero | nan | infinite] = 0
    if fmt == bf16:
        shift = bound[:, np.newaxis] - exponent
        nan |= (shift < 0) & (significand != 0)
        terms = (significand.astype(np.int64) << (window - m - 1)) >> np.clip(shift, 0, window)
        value = np.ldexp(np.where(sign, -terms, terms).sum(axis=-1).astype(np.float64),
                         bound - fmt.bias - window + 1)
    else:
        # The smallest exponent is that of two smallest normal numbers, 2 - bias. e5m2 spans 63
        # bits: two halves, each of which adds up without overflow.
        lowest = 2 - fmt.bias
        shift = exponent - lowest
        low_shift = np.minimum(shift, 31)
        low = significand.astype(np.int64) << low_shift
        terms = np.where(shift > 31, 0, low), np.where(shift > 31, significand.astype(np.int64)
                                                       << np.maximum(shift - 31, 0), 0)
        low, high = (np.where(sign, -term, term).sum(axis=-1) for term in terms)
        value = _join(low, high, split=31, exponent=lowest - fmt.bias - m)
    total = from_float(value)
    if saturate:
        total = np.where((total & 0x7FFF) == bf16.infinity, total - np.uint16(1), total)
    positive, negative = (infinite & ~sign).any(axis=-1), (infinite & sign).any(axis=-1)
    total[positive] = bf16.infinity
    total[negative] = bf16.infinity | 0x8000
    total[nan.any(axis=-1) | (positive & negative)] = NAN
    return total


def _join(low, high, *, split, exponent):
    """``(high * 2**split + low) * 2**exponent`` as float64, rounded to odd.

    Rounding to odd keeps the later rounding to fewer bits right.
    """
    high = high + (low >> split)
    low = low & ((1 << split) - 1)
    # Bring the sum to 53 bits: all bits of high are kept, those of low that are cut off become one.
    cut = np.clip(np.frexp(np.abs(high).astype(np.float64))[1] + split - 52, 0, split)
    kept = (high << (split - cut)) + (low >> cut)
    kept |= (low & ((1 << cut) - 1)) != 0
    return np.ldexp(kept.astype(np.float64), cut + exponent)


def exact_product(fmt: MiniFloat, x: np.ndarray, y: np.ndarray, *,
                  saturate: bool = False) -> np.ndarray:
    """Product of ``x`` and ``y``, rounded once. Mirrors ``hw.arith.exact.ExactMultiplier``.

    The baseline that L-Mul is compared with. It rounds to nearest even as if the exponent had no
    bounds; then zero, overflow, infinity and NaN are as in :func:`lmul`.

    Parameters
    ----------
    fmt : MiniFloat
    x, y : unsigned integer arrays of the format's width, broadcast against each other
    saturate : bool
        Deliver the largest finite number on overflow.

    Returns
    -------
    unsigned integer array
    """
    x, y = np.broadcast_arrays(*_check(fmt, x=x, y=y))
    m = fmt.mantissa_bits
    a, a_zero, a_special, a_nan = _fields(fmt, x)
    b, b_zero, b_special, b_nan = _fields(fmt, y)
    one = 1 << m
    product = ((a % one).astype(np.int64) + one) * ((b % one).astype(np.int64) + one)
    drop = m + (product >> (2 * m + 1))             # the product is in [1, 4)
    half = ((product >> drop) & 1) + (1 << (drop - 1)) - 1
    rounded = (product + half) >> drop              # its leading one adds to the exponent field
    result = (((a >> m) + (b >> m) - fmt.bias + drop - m - 1) << m) + rounded
    zero = a_zero | b_zero
    overflow = fmt.largest_finite if saturate or not fmt.has_infinity else fmt.infinity
    magnitude = np.where(zero | (result < fmt.smallest_normal), 0,
                         np.where(result > fmt.largest_finite, overflow, result))
    special = a_special | b_special
    magnitude[special] = fmt.infinity
    magnitude[a_nan | b_nan | (special & zero)] = fmt.nan
    sign = (x ^ y) & x.dtype.type(1 << fmt.magnitude_width)
    return magnitude.astype(x.dtype) | sign
