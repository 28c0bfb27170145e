"""Matrices of floating-point numbers as integers of a few trit planes.

Codes of a vector are integers, and so are the weights that the engine adds up. What is left of a
row is a factor: the same for all rows, a power of two for each, or any number for each. Powers of
two are exact under L-Mul, so that they cost an instruction, but no accuracy.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from host.files.tensors import to_bf16
from sim.golden.trits import plane_limit

__all__ = ["ROWS", "PlaneMatrix", "row_pieces", "to_planes"]

#: What rows may have of their own: nothing, a power of two, or a number.
ROWS = ("matrix", "power", "exact")

# Scales that are tried, over the one at which the largest weight just fits. Weights are rather
# normal than uniform, so that cutting off the largest ones can pay.
_CUTS = tuple(2.0 ** (-step / 8) for step in range(9))


@dataclasses.dataclass(frozen=True, eq=False)
class PlaneMatrix:
    """``scale * factors[:, None] * weights``.

    Attributes
    ----------
    weights : integer array, shape (rows, columns)
        Of floating point where nothing but a float network reads them.
    scale : float
        A bf16 number over ``root``.
    factors : float64 array, shape (rows,)
    """

    weights: NDArray
    scale: float
    factors: NDArray[np.float64]

    def floats(self) -> NDArray:
        """Return the numbers that it stands for."""
        return self.weights * (self.scale * self.factors[:, np.newaxis]).astype(np.float32)


# Weights that are worked on together, so that what is computed of them needs little memory.
_CHUNK = 1 << 20


def row_pieces(weights: NDArray) -> Iterator[slice]:
    """Divide the rows of a matrix into pieces of about a million weights."""
    step = max(1, _CHUNK // max(1, weights.shape[1]))
    for first in range(0, len(weights), step):
        yield slice(first, first + step)


def _round(weights: NDArray[np.float32], scales: NDArray[np.float32],
           limit: int) -> NDArray:
    return np.clip(np.rint(weights / scales), -limit, limit)


def _errors(weights: NDArray[np.float32], scales: NDArray[np.float32],
            limit: int) -> NDArray[np.float32]:
    """Sum of squares of each row's rounding errors."""
    sums: NDArray[np.float32] = np.empty(len(weights), np.float32)
    for some in row_pieces(weights):
        part, scale = weights[some], scales[some]
        sums[some] = np.square(part - _round(part, scale, limit) * scale).sum(axis=1)
    return sums


def to_planes(weights: NDArray[np.float32], planes: int, rows: str = "matrix",
              root: float = 1.0) -> PlaneMatrix:
    """Round a matrix to integers of some trit planes, with the smallest sum of squared errors.

    Parameters
    ----------
    weights : float32 array, shape (rows, columns)
    planes : int
    rows : str
        One of :data:`ROWS`.
    root : float
        What the scale is multiplied by before it is rounded to bf16: the square root of the
        elements of a vector, where a norm follows.
    """
    limit = plane_limit(planes)
    tops = np.maximum(weights.max(axis=1, keepdims=True),
                      -weights.min(axis=1, keepdims=True)) / np.float32(limit)
    top = float(tops.max())
    factors: NDArray[np.float64] = np.ones(len(weights))
    if top == 0:
        return PlaneMatrix(np.zeros(weights.shape, np.int8), to_bf16(root) / root, factors)
    tops[tops == 0] = top

    def best(candidates: list[NDArray[np.float32]]) -> tuple[NDArray[np.float32], float]:
        """Choose scales for each row; return them and the error that is left."""
        errors = np.stack([_errors(weights, scales, limit) for scales in candidates])
        chosen = np.stack(candidates)[errors.argmin(axis=0), np.arange(len(weights))]
        return chosen, float(errors.min(axis=0).sum(dtype=np.float64))

    def rounded(value: float) -> float:
        return to_bf16(value * root) / root

    if rows == "matrix":
        # One scale for all, so that the sum of the rows' errors decides.
        tried = [np.full_like(tops, rounded(top * cut)) for cut in _CUTS]
        scale = min(tried, key=lambda scales: float(
            _errors(weights, scales, limit).sum(dtype=np.float64)))[0, 0]
        scale = rounded(float(scale))
    elif rows == "power":
        found = []
        for common in (rounded(2.0 ** (step / 4)) for step in range(4)):
            above = np.exp2(np.ceil(np.log2(tops / common))).astype(np.float32)
            scales, error = best([np.float32(common) * above / divisor for divisor in (1, 2)])
            found.append((error, common, scales))
        _, scale, scales = min(found, key=lambda entry: entry[0])
        middle = np.exp2(np.rint(np.log2(np.median(scales / scale))))
        scale *= float(middle)
        factors = np.exp2(np.rint(np.log2(scales[:, 0] / scale))).astype(np.float64)
    else:
        scales, _ = best([tops * np.float32(cut) for cut in _CUTS])
        scale = rounded(float(np.median(scales)))
        factors = scales[:, 0].astype(np.float64) / scale
    scales = (scale * factors[:, np.newaxis]).astype(np.float32)
    integers: NDArray = np.empty_like(weights, np.int8 if limit < 128 else np.int16)
    for some in row_pieces(weights):
        integers[some] = _round(weights[some], scales[some], limit)
    return PlaneMatrix(integers, scale, factors)
