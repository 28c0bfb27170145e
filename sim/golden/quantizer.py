"""The quantizer, ``Q`` of docs/numerics.md: bf16 vectors to int8 codes."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from hw.formats.minifloat import bf16
from sim.golden.bf16 import SIGN_BIT, to_float32

__all__ = ["Codes", "quantize"]


@dataclasses.dataclass(frozen=True, eq=False)
class Codes:
    """Vectors as the engine takes them: ``values * 2**exponents``.

    Attributes
    ----------
    values : array, shape (tokens, elements)
        int8, at most 127 in magnitude; float32 where nothing is quantized.
    exponents : int array, shape (tokens,)
    """

    values: NDArray
    exponents: NDArray[np.int32]


def quantize(x: NDArray[np.uint16]) -> Codes:
    """Round bf16 vectors to int8 codes with a power-of-two scale each: ``Q``.

    The exponent is the smallest ``k`` with ``max|x| <= 127 * 2**k``. Since ``127 * 2**k`` has the
    mantissa field 126, this is the exponent of the largest number, less 6, plus one if its mantissa
    field is 127: no comparison but an increment. A zero vector has ``k = 0``.

    Raises
    ------
    OverflowError
        If an element is infinite or NaN.
    """
    largest = (x & ~SIGN_BIT).max(axis=-1).astype(np.int32)
    if (largest >= bf16.infinity).any():
        raise OverflowError("Activations must be finite, but a vector holds an infinity or a NaN")
    zero = largest < bf16.smallest_normal
    exponents = np.where(zero, 0, ((largest + 1) >> bf16.mantissa_bits) - bf16.bias - 6)
    # Exact: a power of two, and float64 where float32 could not hold it.
    factors = np.ldexp(1.0, -exponents)[..., np.newaxis]
    if (exponents > -126).all():
        factors = factors.astype(np.float32)
    return Codes(np.rint(to_float32(x) * factors).astype(np.int8), exponents.astype(np.int32))
