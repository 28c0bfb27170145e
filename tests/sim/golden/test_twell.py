"""TwELL tiles against loops over single elements."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.config import TILE
from sim.golden.twell import pack


@st.composite
def vectors(draw):
    """Make a vector of codes of any density, from no element to all."""
    count = draw(st.integers(1, 1100))
    density = draw(st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2 ** 32)))
    codes = rng.integers(-128, 128, count).astype(np.int8)
    return np.where(rng.random(count) < density, codes, np.int8(0))


def by_hand(codes):
    """List the entries (index, value) of each tile."""
    return [[(index, value) for index, value in enumerate(codes[start:start + TILE].tolist())
             if value] for start in range(0, len(codes), TILE)]


@given(vectors())
@settings(max_examples=60, deadline=None)
def test_pack_equals_loop(codes):
    tiles = pack(codes)
    entries = iter(zip(tiles.indices.tolist(), tiles.values.tolist(), strict=True))
    found = [[next(entries) for _ in range(count)] for count in tiles.counts.tolist()]
    assert found == by_hand(codes)
    assert next(entries, None) is None
    again = np.zeros_like(codes)
    again[tiles.columns] = tiles.values
    np.testing.assert_array_equal(again, codes)


@pytest.mark.parametrize("live", [0, 1, 31, 32, 255, 256])
def test_a_tile_holds_any_number(live):
    codes = np.zeros(3 * TILE, np.int8)
    codes[TILE:TILE + live] = -128
    tiles = pack(codes)
    assert tiles.counts.tolist() == [0, live, 0]
    assert tiles.columns.tolist() == list(range(TILE, TILE + live))
