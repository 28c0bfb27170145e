"""How the sparsity policy finds the smallest score that it keeps, in passes."""

import numpy as np
from numpy.typing import NDArray

from sim.golden.wina import DIGIT_BITS

__all__ = ["select_bound"]


def select_bound(keys: NDArray[np.int64], keep: int) -> tuple[int, int]:
    """Find the bound of what is kept, and how many passes find it.

    The length in digits of the ``keep``-th largest key is known when the list ends; then each pass
    finds one of its digits. It is over when all keys that have the digits so far are kept: the
    rest of the bound is zero.

    Parameters
    ----------
    keys : int64 array, shape (entries,)
        Above 0.
    keep : int
        At least 1.

    Returns
    -------
    bound : int
        Larger keys are kept, and of those equal to it the first ones, until there are ``keep``.
    passes : int
    """
    if len(keys) < keep:
        return 0, 0
    lengths = [-(-int(key).bit_length() // DIGIT_BITS) for key in keys]
    length, missing, whole = _last_bin(np.bincount(lengths), keep)
    if whole:
        return 1 << DIGIT_BITS * (length - 1), 0
    bound, passes = 0, 0
    for digit in reversed(range(length)):
        shift = DIGIT_BITS * digit
        same = keys[keys >> (shift + DIGIT_BITS) == bound >> (shift + DIGIT_BITS)]
        value, missing, whole = _last_bin(np.bincount(same >> shift & 15), missing)
        bound |= value << shift
        passes += 1
        if whole:
            break
    return bound, passes


def _last_bin(counts: NDArray[np.int64], missing: int) -> tuple[int, int, bool]:
    """Return the last bin from the top that is needed, what of it, and whether that is all."""
    value = len(counts) - 1
    while counts[value] < missing:
        missing -= int(counts[value])
        value -= 1
    return value, missing, bool(counts[value] == missing)
