"""Functions of one argument, as tables over all bf16 numbers."""

import functools

import numpy as np
from numpy.typing import NDArray

from sim.golden.bf16 import from_float, to_float32

__all__ = ["rsqrt_table", "sigmoid_table", "silu_table"]

_EVERY_BF16 = np.arange(1 << 16, dtype=np.uint16)


def _float64_of_every_bf16() -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):     # signalling NaNs
        return to_float32(_EVERY_BF16).astype(np.float64)


@functools.cache
def sigmoid_table() -> NDArray[np.uint16]:
    """Compute ``1 / (1 + exp(-x))`` of every bf16 number, correctly rounded."""
    with np.errstate(over="ignore"):
        return from_float(1 / (1 + np.exp(-_float64_of_every_bf16())))


@functools.cache
def silu_table() -> NDArray[np.uint16]:
    """Compute ``x / (1 + exp(-x))`` of every bf16 number, correctly rounded; 0 at -infinity."""
    x = _float64_of_every_bf16()
    with np.errstate(over="ignore", invalid="ignore"):
        values = x / (1 + np.exp(-x))
    return from_float(np.where(x == -np.inf, -0.0, values))


@functools.cache
def rsqrt_table() -> NDArray[np.uint16]:
    """Compute ``1 / sqrt(x)`` of every bf16 number, correctly rounded; 0 at 0, NaN below."""
    x = _float64_of_every_bf16()
    with np.errstate(divide="ignore", invalid="ignore"):
        return from_float(np.where(x == 0, 0, 1 / np.sqrt(x)))
