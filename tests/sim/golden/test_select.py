"""The bound of the sparsity policy against sorting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.golden.select import select_bound
from sim.golden.wina import keep_largest
from sim.timing.units import select_cycles

KEYS = st.lists(st.one_of(st.integers(1, 40), st.integers(1, 2 ** 30 - 1)), min_size=1,
                max_size=60)


@given(KEYS, st.integers(1, 70))
def test_bound(values, keep):
    keys = np.array(values, np.int64)
    bound, passes = select_bound(keys, keep)
    missing = keep - np.count_nonzero(keys > bound)
    equal = keys == bound
    kept = (keys > bound) | (equal & (np.cumsum(equal) <= missing))
    np.testing.assert_array_equal(kept, keep_largest(keys, min(keep, len(keys))))
    assert 0 <= passes <= 8


@pytest.mark.parametrize(("values", "keep", "expected"), [
    ([5, 5, 5], 4, (0, 0)),                 # all there are
    ([5, 5, 5], 3, (1, 0)),                 # all of one length
    ([5, 5, 5], 2, (5, 1)),
    ([0x300, 0x1F, 0x10], 1, (0x100, 0)),   # the only one of its length
    ([0x31, 0x32, 0x21], 2, (0x30, 1)),     # all that begin with 3
    ([0x31, 0x32, 0x21], 1, (0x32, 2)),
    ([2 ** 30 - 1, 2 ** 30 - 2], 1, (2 ** 30 - 1, 8)),
])
def test_passes_end_early(values, keep, expected):
    assert select_bound(np.array(values, np.int64), keep) == expected


def test_scores_of_zero_cost_nothing():
    keys = np.array([7, 0, 9, 0], np.int64)
    assert select_cycles(keys, 1) == select_cycles(keys[keys > 0], 1)
