"""The ternary product, exact: what the engine must equal.

docs/numerics.md, section 3.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["row_bound", "row_product", "ternary_product"]


def ternary_product(weights: ArrayLike, values: ArrayLike, *, accumulator_width: int,
                    indices: ArrayLike | None = None) -> NDArray[np.int64]:
    """Product of a matrix and a list of activations. Mirrors ``hw.engine.engine.TernaryEngine``.

    Parameters
    ----------
    weights : array of int, shape (rows, columns)
        Integers; a ternary matrix is the case of one plane.
    values : array of int, shape (entries, batch)
        Activations of the listed columns, one for each vector of the batch.
    accumulator_width : int
        Bits of an accumulator. Like the adders, sums wrap around in it; they are exact if
        :func:`row_bound` is less than ``2**(accumulator_width - 1)``.
    indices : array of int, shape (entries,), optional
        Listed columns, in any order, repeated ones adding up; by default all in order.

    Returns
    -------
    array of int64, shape (batch, rows)

    Raises
    ------
    ValueError
        If the shapes do not fit together.
    """
    weights = np.asarray(weights, dtype=np.int64)
    values = np.asarray(values, dtype=np.int64)
    columns = np.arange(weights.shape[1]) if indices is None else np.asarray(indices, dtype=np.intp)
    if values.ndim != 2 or len(values) != len(columns):
        raise ValueError(f"Activations must have shape ({len(columns)}, batch), not {values.shape}")
    half = 1 << (accumulator_width - 1)
    # Sums of int64 wrap modulo 2**64, which changes nothing modulo 2**accumulator_width.
    return ((values.T @ weights[:, columns].T + half) & (2 * half - 1)) - half


def row_product(weights: ArrayLike, activations: ArrayLike, *, accumulator_width: int,
                indices: ArrayLike | None = None) -> NDArray[np.int64]:
    """Product of listed rows of a matrix and an activation vector: the engine's walk by row.

    Parameters
    ----------
    weights : array of int, shape (rows, columns)
    activations : array of int, shape (columns,)
    accumulator_width : int
        As for :func:`ternary_product`.
    indices : array of int, shape (listed rows,), optional
        Listed rows, in any order, repeated or not; by default all in order.

    Returns
    -------
    array of int64, shape (listed rows,)

    Raises
    ------
    ValueError
        If the shapes do not fit together.
    """
    weights = np.asarray(weights)
    listed = weights if indices is None else weights[np.asarray(indices, dtype=np.intp)]
    values = np.asarray(activations)[:, np.newaxis]
    return ternary_product(listed, values, accumulator_width=accumulator_width)[0]


def row_bound(weights: ArrayLike, activation_width: int = 8) -> int:
    """Largest sum that any activations reach in any row of ``weights``, in absolute value."""
    weights = np.asarray(weights, dtype=np.int64)
    return int(np.abs(weights).sum(axis=1).max(initial=0)) << (activation_width - 1)
