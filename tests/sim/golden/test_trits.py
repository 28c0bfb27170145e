"""Planes and packed images against the tables of ``hw.formats.trits`` and integer arithmetic."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.config import EngineConfig
from hw.formats.trits import PACKINGS
from sim.golden.trits import combine_planes, pack_words, planes, unpack_words


def config_of(packing, lanes):
    return EngineConfig(lanes=lanes, packing=packing, result_lanes=1)


@pytest.mark.parametrize("packing", PACKINGS)
class TestCodes:
    def test_every_combination(self, packing):
        codec = PACKINGS[packing]
        trits = np.array(list(itertools.product((-1, 0, 1), repeat=codec.trits)), np.int8).T
        image = pack_words(trits, config_of(packing, codec.trits))
        assert image.shape == (3 ** codec.trits, 1, 1, 1)
        for column, code in zip(trits.T.tolist(), image.ravel().tolist(), strict=True):
            assert codec.decode(code) == tuple(column)

    def test_every_code(self, packing):
        codec = PACKINGS[packing]
        codes = np.arange(2 ** codec.bits, dtype=np.uint8).reshape(-1, 1, 1, 1)
        trits = unpack_words(codes, codec.trits, config_of(packing, codec.trits))
        assert [tuple(column) for column in trits[0].T.tolist()] == codec.decode_table()

    def test_code_zero_is_all_plus(self, packing):
        assert set(PACKINGS[packing].decode(0)) == {1}

    def test_word_layout(self, packing):
        """Bit positions written out as docs/numerics.md, section 2, says them."""
        codec, lanes, rows = PACKINGS[packing], 7, 10
        config = config_of(packing, lanes)
        rng = np.random.default_rng(1)
        trits = rng.integers(-1, 2, (2, rows, 3), dtype=np.int8)
        image = pack_words(trits, config)
        assert image.shape == (3, 2, 2, config.word_bytes)
        for column, plane, group in itertools.product(range(3), range(2), range(2)):
            word = int.from_bytes(image[column, plane, group].tobytes(), "little")
            for lane in range(lanes):
                code = word >> (lane // codec.trits * codec.bits) & (2 ** codec.bits - 1)
                row = group * lanes + lane
                expected = trits[plane, row, column] if row < rows else 0
                assert codec.decode(code)[lane % codec.trits] == expected
            assert word >> (-(-lanes // codec.trits) * codec.bits) == 0


@settings(deadline=None)
@given(packing=st.sampled_from(sorted(PACKINGS)), lanes=st.integers(1, 70),
       rows=st.integers(1, 150), columns=st.integers(0, 5), count=st.integers(1, 6),
       seed=st.integers(0, 2 ** 32 - 1))
def test_round_trip(packing, lanes, rows, columns, count, seed):
    config = config_of(packing, lanes)
    limit = (3 ** count - 1) // 2
    weights = np.random.default_rng(seed).integers(-limit, limit + 1, (rows, columns))
    image = pack_words(planes(weights, count), config)
    assert image.nbytes == columns * config.column_bytes(rows, count)
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(combine_planes(unpack_words(image, rows, config)), weights)


def test_one_plane_without_an_axis():
    trits = np.array([[1, 0], [-1, 1]], np.int8)
    config = config_of("5in8", 5)
    np.testing.assert_array_equal(pack_words(trits, config), pack_words(trits[None], config))


@pytest.mark.parametrize("count", range(1, 10))
def test_planes_of_every_weight(count):
    limit = (3 ** count - 1) // 2
    weights = np.arange(-limit, limit + 1)
    trits = planes(weights, count)
    assert trits.dtype == np.int8
    assert trits.shape == (count, len(weights))
    assert set(np.unique(trits)) == {-1, 0, 1}
    np.testing.assert_array_equal(combine_planes(trits), weights)


class TestErrors:
    def test_weight_too_large(self):
        with pytest.raises(ValueError, match=r"^Weights in 3 trit planes must be -13 to 13, "
                                             r"not -14 to 2$"):
            planes([-14, 2], 3)

    def test_smallest_int8(self):
        with pytest.raises(ValueError, match=r"not -128 to -128$"):
            planes(np.array([-128], np.int8), 3)

    def test_plane_count(self):
        with pytest.raises(ValueError, match=r"^Plane count must be a positive integer, not 0$"):
            planes([0], 0)

    def test_axes(self):
        with pytest.raises(ValueError, match=r"^Trits must have shape \(planes, rows, columns\) or "
                                             r"\(rows, columns\), not \(3,\)$"):
            pack_words([0, 0, 0], EngineConfig())

    def test_no_trit(self):
        with pytest.raises(ValueError, match=r"^Trits must be -1 to 1, not 0 to 2$"):
            pack_words([[0, 2]], EngineConfig())

    def test_image_shape(self):
        with pytest.raises(ValueError, match=r"^Image of 65 rows must have shape \(columns, "
                                             r"planes, 2, 13\), not \(1, 1, 1, 13\)$"):
            unpack_words(np.zeros((1, 1, 1, 13), np.uint8), 65, EngineConfig())

    def test_row_count(self):
        with pytest.raises(ValueError, match=r"^Row count must be a positive integer, not 0$"):
            unpack_words(np.zeros((1, 1, 0, 13), np.uint8), 0, EngineConfig())
