"""Matrices and numbers as model files hold them."""

import dataclasses

import numpy as np

__all__ = ["TernaryMatrix", "is_bf16", "to_bf16"]


def to_bf16(value: float) -> float:
    """Round ``value`` to the nearest bf16 number, ties to even."""
    bits = int(np.float32(value).view(np.uint32))
    bits += 0x7FFF + ((bits >> 16) & 1)
    return float(np.uint32(bits & 0xFFFF0000).view(np.float32))


def is_bf16(value: float) -> bool:
    """Whether ``value`` is a finite bf16 number."""
    return bool(np.isfinite(value)) and to_bf16(value) == value


@dataclasses.dataclass(frozen=True, eq=False)
class TernaryMatrix:
    """``scale * trits``.

    Attributes
    ----------
    trits : int8 array of -1, 0 or +1, shape (rows, columns)
    scale : float
        Positive; exact in bf16 and in fp16.
    """

    trits: np.ndarray
    scale: float
