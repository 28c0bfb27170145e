"""The largest integers of a product, as EMIT delivers them."""

import heapq

import numpy as np
from numpy.typing import NDArray

__all__ = ["kept_count", "largest_rows"]


def largest_rows(integers: NDArray[np.int32], best: int) -> NDArray[np.int64]:
    """Return the rows of the ``best`` largest integers, largest first, equal ones by row."""
    return np.argsort(-integers.astype(np.int64), kind="stable")[:best]


def kept_count(integers: NDArray[np.int32], best: int) -> int:
    """Count the integers that are among the ``best`` largest so far when they come, row by row."""
    kept: list[int] = []
    count = 0
    for value in integers.tolist():
        if len(kept) < best:
            heapq.heappush(kept, value)
        elif value > kept[0]:
            heapq.heapreplace(kept, value)
        else:
            continue
        count += 1
    return count
