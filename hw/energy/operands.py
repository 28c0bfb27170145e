"""Operands of the measured units: random ones, and those of the shipped model.

Random operands are sums of twelve uniform integers: they come from integers alone, so that every
machine has the same. The recorded ones are what the golden machine computed with in one layer of
the shipped model; ``python -m host experiment operands`` writes them.
"""

import dataclasses
import functools
import pathlib

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from hw.formats.minifloat import MiniFloat, bf16, e4m3, e5m2, fp16, fp32

__all__ = ["RECORDED", "Recorded", "from_bits", "normal", "recorded", "to_bits", "trits"]

#: What ``python -m host experiment operands`` writes.
RECORDED = pathlib.Path(__file__).with_name("recorded.npz")

_TYPES: dict[str, DTypeLike] = {
    e4m3.name: ml_dtypes.float8_e4m3fn, e5m2.name: ml_dtypes.float8_e5m2, fp16.name: np.float16,
    bf16.name: ml_dtypes.bfloat16, fp32.name: np.float32}


def to_bits(fmt: MiniFloat, values: NDArray[np.floating]) -> NDArray[np.unsignedinteger]:
    """Round numbers to a format; what is below its smallest normal number becomes zero."""
    found = np.asarray(values).astype(np.float32).astype(_TYPES[fmt.name])
    bits = found.view(f"u{fmt.width // 8}")
    magnitude = bits & bits.dtype.type(fmt.magnitude_mask)
    return np.where(magnitude < fmt.smallest_normal, 0, bits).astype(bits.dtype)


def from_bits(fmt: MiniFloat, bits: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the numbers that bits of a format stand for."""
    return bits.view(_TYPES[fmt.name]).astype(np.float64)


def _integers(seed: int, count: int, width: int) -> NDArray[np.int64]:
    """Draw uniform integers of ``width`` bits; raw bits of PCG64 are the same for ever."""
    raw = np.random.PCG64(seed).random_raw(count)
    return (raw >> np.uint64(64 - width)).astype(np.int64)


def normal(seed: int, count: int) -> NDArray[np.float64]:
    """Draw numbers of mean 0 and variance 1, nearly normal: sums of twelve uniform ones."""
    uniform = _integers(seed, 12 * count, 24).reshape(count, 12).sum(axis=1)
    return np.ldexp(uniform - 6 * (1 << 24), -24)


def trits(seed: int, count: int) -> NDArray[np.int64]:
    """Draw trits, each value as often as the others."""
    return _integers(seed, count, 32) % 3 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Recorded:
    """What the golden machine computed with, in one layer of the shipped model.

    Attributes
    ----------
    lmul_x, lmul_y : uint16 array, shape (products,)
        Operands of the element-wise products of one token, in the order of the machine: bf16.
    float_x, float_y : float32 array, shape (products,)
        The same where every product is exact and vectors are float32.
    vectors : uint16 array, shape (tokens, columns)
        bf16 vectors in front of the quantizer, those of the FFN's input.
    codes : int8 array, shape (tokens, columns)
        Behind it.
    hidden : uint16 array, shape (tokens, hidden columns)
        Vectors in front of the quantizer of the FFN's hidden vector: most elements are zero.
    trits : int8 array, shape (rows, columns)
        The first rows of the FFN's up projection.
    norms : uint16 array, shape (columns,)
        Norms of the columns of the matrices that ``codes`` drive.
    """

    lmul_x: NDArray[np.uint16]
    lmul_y: NDArray[np.uint16]
    float_x: NDArray[np.float32]
    float_y: NDArray[np.float32]
    vectors: NDArray[np.uint16]
    codes: NDArray[np.int8]
    hidden: NDArray[np.uint16]
    trits: NDArray[np.int8]
    norms: NDArray[np.uint16]


@functools.cache
def recorded() -> Recorded:
    """Read the recorded operands."""
    with np.load(RECORDED) as arrays:
        return Recorded(**arrays)
