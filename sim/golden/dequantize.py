"""Integers to bf16, ``S`` of docs/numerics.md."""

import numpy as np
from numpy.typing import NDArray

from sim.golden.bf16 import from_float, to_float32

__all__ = ["scale"]

_BLOCK = 1 << 15        # elements of a block whose temporaries fit a cache


def scale(accumulators: NDArray[np.int32], factors: NDArray[np.uint16],
          exponents: NDArray[np.int32]) -> NDArray[np.uint16]:
    """Scale integers by a bf16 number and a power of two for each vector, rounding once: ``S``.

    The integers have at most 32 bits and the factor has 8, so that float64 holds the product
    exactly. Hardware adds at most 5 shifted copies of the integer: the factor's significand in
    signed digits.
    """
    exact = np.ldexp(to_float32(factors).astype(np.float64), exponents)
    scaled = np.empty(accumulators.shape, np.uint16)
    vectors = max(1, _BLOCK // accumulators.shape[-1])
    for first in range(0, len(scaled), vectors):
        block = slice(first, first + vectors)
        scaled[block] = from_float(accumulators[block] * exact[block, np.newaxis])
    return scaled
