"""bf16 in NumPy: ``uint16`` arrays of bits.

One rule for every rounding: **round to nearest, ties to even, as if the exponent had no bounds;
then what is below the smallest normal number becomes a zero of its sign, and what is above the
largest becomes infinity**. Subnormal inputs are zeros. NaN results are ``0x7FC0``.
"""

import numpy as np

__all__ = ["NAN", "SIGN_BIT", "add", "from_float", "subtract", "to_float32"]

NAN = 0x7FC0
_INFINITY = 0x7F80
#: The bit that is set in a negative number.
SIGN_BIT = np.uint16(0x8000)


def to_float32(x: np.ndarray) -> np.ndarray:
    """Value of each number; exact.

    Parameters
    ----------
    x : uint16 array

    Returns
    -------
    float32 array
    """
    x = np.asarray(x, dtype=np.uint16)
    flushed = np.where(x & _INFINITY, x, x & SIGN_BIT)
    return (flushed.astype(np.uint32) << 16).view(np.float32)


def from_float(values: np.ndarray) -> np.ndarray:
    """Nearest bf16 number of each value, in one rounding.

    Parameters
    ----------
    values : float32 or float64 array

    Returns
    -------
    uint16 array
    """
    values = np.asarray(values)
    if values.dtype == np.float32:
        return _round(values.view(np.uint32), fraction_bits=23, bias=127, work=np.int32)
    if values.dtype == np.float64:
        return _round(values.view(np.uint64), fraction_bits=52, bias=1023, work=np.int64)
    raise TypeError(f"Values must be float32 or float64, not {values.dtype}")


def _round(bits, *, fraction_bits, bias, work):
    width = bits.dtype.itemsize * 8
    drop = fraction_bits - 7
    magnitude = (bits & bits.dtype.type((1 << (width - 1)) - 1)).astype(work)
    sign = (bits >> bits.dtype.type(width - 16)).astype(np.uint16) & SIGN_BIT
    # A carry out of the fraction moves on into the exponent field, as it must. The offset makes
    # exponent field 1 of bf16 the smallest that remains; below lies zero.
    half = ((magnitude >> drop) & 1) + ((1 << (drop - 1)) - 1)
    rounded = ((magnitude + half) >> drop) - ((bias - 127) << 7)
    if bias == 127:         # float32 subnormals: only these round up to the smallest normal
        rounded = np.where(magnitude < 1 << fraction_bits,
                           np.where(magnitude >= (1 << fraction_bits) - (1 << (drop - 2)), 0x80, 0),
                           rounded)
    result = np.clip(rounded, 0, _INFINITY)
    result = np.where(rounded < 0x80, 0, result)
    infinite = ((1 << (width - 1 - fraction_bits)) - 1) << fraction_bits
    nan = magnitude > infinite
    result = result.astype(np.uint16) | sign
    return np.where(nan, np.uint16(NAN), result)


def add(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Exact sum, rounded once.

    float32 holds 24 bits, more than ``2 * 8 + 2``, so that rounding to float32 first does no harm;
    a sum below the smallest normal number is exact there, and then flushed.

    Parameters
    ----------
    x, y : uint16 arrays, broadcast against each other

    Returns
    -------
    uint16 array
    """
    with np.errstate(invalid="ignore", over="ignore"):
        return from_float(to_float32(x) + to_float32(y))


def subtract(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``add(x, -y)``."""
    return add(x, np.asarray(y, dtype=np.uint16) ^ SIGN_BIT)
