"""The largest integers of a product, as TOP_K delivers them."""

import heapq

import numpy as np
from numpy.typing import NDArray

__all__ = ["kept_count", "largest_rows"]


def largest_rows(integers: NDArray[np.int32], top_k: int) -> NDArray[np.int64]:
    """Return the rows of the ``top_k`` largest integers, largest first, equal ones by row."""
    return np.argsort(-integers.astype(np.int64), kind="stable")[:top_k]


def kept_count(integers: NDArray[np.int32], top_k: int) -> int:
    """Count the integers that are among the ``top_k`` largest so far when they come, row by row."""
    kept: list[int] = []
    count = 0
    for value in integers.tolist():
        if len(kept) < top_k:
            heapq.heappush(kept, value)
        elif value > kept[0]:
            heapq.heapreplace(kept, value)
        else:
            continue
        count += 1
    return count
