"""The largest integers of a product, against sorting in Python."""

import numpy as np
import pytest

from sim.golden.top_k import kept_count, largest_rows


@pytest.mark.parametrize("count", [1, 4, 100])
@pytest.mark.parametrize("limit", [3, 1 << 23])
def test_largest_equal_sorting(count, limit):
    integers = np.random.default_rng(count).integers(-limit, limit, 60, np.int32)
    values = integers.tolist()
    expected = sorted(range(60), key=lambda row: (-values[row], row))[:count]
    assert largest_rows(integers, count).tolist() == expected
    kept = sum(row in sorted(range(row + 1), key=lambda k: (-values[k], k))[:count]
               for row in range(60))
    assert kept_count(integers, count) == kept


def test_smallest_integer_has_a_place():
    integers = np.array([-2 ** 31, 5, -2 ** 31], np.int32)
    assert largest_rows(integers, 2).tolist() == [1, 0]
