# Ref: S. Chen et al., "WINA: Weight Informed Neuron Activation for Accelerating Large Language
#      Model Inference", 2025
# Id: arXiv:2505.19427

"""The mask: which activations of a vector are worth reading their columns for.

docs/numerics.md, section 9. WINA scores an activation by its magnitude times the norm of its
column, TEAL by its magnitude alone. Scores are squares here, which order the same and are integers.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["DIGIT_BITS", "LARGEST_NORM", "SCORE_BITS", "Mask", "MaskMap", "column_norms",
           "keep_above", "keep_largest", "scores"]

LARGEST_NORM = (1 << 16) - 1
SCORE_BITS = 30     # 128**2 * LARGEST_NORM < 2**30
DIGIT_BITS = 4      # of a pass of the radix selection: 16 counters


def column_norms(matrices: Sequence[ArrayLike],
                 scales: Sequence[ArrayLike] | None = None) -> NDArray[np.uint16]:
    """Squared norm of each column, as an integer: of several matrices that share a list, the sum.

    For ternary matrices it is the number of non-zero trits, where 16 bits hold it: the matrices
    count equally, whatever their scales. For all others it is
    ``rne(65535 * c**2 / max(c**2))`` with ``c**2 = sum over rows (scale * weight)**2``.

    Parameters
    ----------
    matrices : sequence of integer array, shape (rows, columns)
    scales : sequence of float or float array, shape (rows, 1), optional
        Of each matrix; by default 1.

    Raises
    ------
    ValueError
        If the matrices differ in their columns, or there is none.
    """
    arrays = [np.asarray(matrix) for matrix in matrices]
    if len({array.shape[1] for array in arrays}) != 1:
        raise ValueError(f"Matrices that share a list must have one column count, not "
                         f"{[array.shape[1] for array in arrays]}")
    ternary = all(array.dtype.kind == "i" and (np.abs(array) <= 1).all() for array in arrays)
    if ternary and sum(len(array) for array in arrays) <= LARGEST_NORM:
        return sum(np.count_nonzero(array, axis=0) for array in arrays).astype(np.uint16)
    weights = [1.0] * len(arrays) if scales is None else scales
    squares = sum(np.square(array * np.asarray(scale, np.float64)).sum(axis=0)
                  for array, scale in zip(arrays, weights, strict=True))
    largest = squares.max(initial=0)
    if largest == 0:
        return np.zeros(len(squares), np.uint16)
    return np.rint(squares * LARGEST_NORM / largest).astype(np.uint16)


def scores(codes: ArrayLike, norms: ArrayLike) -> NDArray[np.int64]:
    """Score of each activation, ``code**2 * norm``: exact, at most 30 bits.

    Parameters
    ----------
    codes : int8 array, shape (..., columns)
    norms : uint16 array, shape (columns,)
        Of :func:`column_norms`; 1 for TEAL.
    """
    return np.square(np.asarray(codes, np.int64)) * np.asarray(norms, np.int64)


def _check_keep(keep: int, columns: int) -> None:
    if not 1 <= keep <= columns:
        raise ValueError(f"Number of activations to keep must be 1 to {columns}, not {keep}")


def keep_largest(scores: NDArray[np.int64], keep: int) -> NDArray[np.bool_]:
    """Mark the ``keep`` largest scores of each vector, of equal ones those of smaller columns.

    Parameters
    ----------
    scores : int64 array, shape (..., columns)
    keep : int

    Raises
    ------
    ValueError
        If ``keep`` is not in 1..columns.
    """
    columns = scores.shape[-1]
    _check_keep(keep, columns)
    # No two keys are equal: the smaller column has the larger one.
    keys = scores * columns + np.arange(columns)[::-1]
    least = np.partition(keys, columns - keep, axis=-1)[..., columns - keep, np.newaxis]
    return keys >= least


def keep_above(scores: NDArray[np.int64], threshold: int) -> NDArray[np.bool_]:
    """Mark the scores above ``threshold``; as many as there are."""
    return scores > threshold


@dataclasses.dataclass(frozen=True, eq=False)
class Mask:
    """The mask of one list: sets codes to zero, so that they leave the list.

    Attributes
    ----------
    norms : uint16 array, shape (columns,)
    keep : int
        Activations to keep: those with the largest scores, or those above ``threshold`` if that is
        given.
    threshold : int, optional
    """

    norms: NDArray[np.uint16]
    keep: int
    threshold: int | None = None

    def __call__(self, codes: NDArray[np.int8]) -> NDArray[np.int8]:
        """Mask codes, shape (..., columns)."""
        found = scores(codes, self.norms)
        mask = (keep_largest(found, self.keep) if self.threshold is None
                else keep_above(found, self.threshold))
        return np.where(mask, codes, np.int8(0))


#: The mask of each list that has one, by its label.
MaskMap = Mapping[str, Mask]
