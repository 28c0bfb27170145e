"""TwELL tiles and the published layout against loops over single elements."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.golden.twell import TILE, Tiles, from_words, pack, to_words, unpack

COLUMNS = st.integers(1, 1100)


@st.composite
def vectors(draw, columns=COLUMNS):
    """Make a vector of codes of any density, from no element to all."""
    count = draw(columns)
    density = draw(st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2 ** 32)))
    codes = rng.integers(-128, 128, count).astype(np.int8)
    return np.where(rng.random(count) < density, codes, np.int8(0))


def by_hand(codes):
    """List the entries (index, value) of each tile."""
    return [[(index, value) for index, value in enumerate(codes[start:start + TILE].tolist())
             if value] for start in range(0, len(codes), TILE)]


class TestTiles:
    @given(vectors())
    @settings(max_examples=60, deadline=None)
    def test_pack_equals_loop_and_unpack_is_its_inverse(self, codes):
        tiles = pack(codes)
        entries = iter(zip(tiles.indices.tolist(), tiles.values.tolist(), strict=True))
        found = [[next(entries) for _ in range(count)] for count in tiles.counts.tolist()]
        assert found == by_hand(codes)
        np.testing.assert_array_equal(unpack(tiles, len(codes)), codes)

    @pytest.mark.parametrize("live", [0, 1, 31, 32, 255, 256])
    def test_a_tile_holds_any_number(self, live):
        codes = np.zeros(3 * TILE, np.int8)
        codes[TILE:TILE + live] = -128
        tiles = pack(codes)
        assert tiles.counts.tolist() == [0, live, 0]
        assert tiles.columns.tolist() == list(range(TILE, TILE + live))
        np.testing.assert_array_equal(unpack(tiles, len(codes)), codes)

    @pytest.mark.parametrize(("counts", "indices", "values", "message"), [
        ([1], [0], [1], "A vector of 300 elements must have 2 tiles, not 1"),
        ([257, 0], [], [], "Tile 0 must have 0 to 256 entries, not 257"),
        ([0, -1], [], [], "Tile 1 must have 0 to 256 entries, not -1"),
        ([2, 0], [1], [1], "Tiles must have 2 indices and values, as their counts say, "
                           "not 1 and 1"),
        ([1, 1], [0, 44], [1, 1], "Entry 44 of tile 1 must be below the vector's end"),
        ([2, 0], [7, 7], [1, 1], "Entry 7 of tile 0 must follow a smaller one"),
        ([2, 0], [7, 3], [1, 1], "Entry 3 of tile 0 must follow a smaller one"),
        ([1, 1], [0, 3], [1, 0], "Entry 3 of tile 1 must have a value other than 0"),
    ])
    def test_tiles_of_no_vector(self, counts, indices, values, message):
        tiles = Tiles(np.array(counts, np.int16), np.array(indices, np.uint8),
                      np.array(values, np.int8))
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            unpack(tiles, 300)

    def test_codes_of_another_type(self):
        with pytest.raises(ValueError, match="Codes must be a vector of int8, not int64"):
            pack(np.zeros(4, np.int64))


def words_by_hand(codes, words, exponent):
    """Lay words out by Python integers and floats."""
    result = []
    for tile, entries in enumerate(by_hand(codes)):
        found = [len(entries)]
        for index, value in entries:
            bits = int(np.float32(value * 2.0 ** exponent).view(np.uint32))
            assert bits % 2 ** 16 == 0
            found.append(bits | TILE * tile + index)
        result += found + [0] * (words - len(found))
    return result


class TestPublishedLayout:
    @given(vectors(st.sampled_from([256, 768, 1280])), st.sampled_from([2, 4, 8]),
           st.integers(-40, 40))
    @settings(max_examples=60, deadline=None)
    def test_round_trip_or_overflow(self, codes, factor, exponent):
        words = TILE // factor
        counts = [len(entries) for entries in by_hand(codes)]
        full = [tile for tile, count in enumerate(counts) if count > words - 1]
        if full:
            message = (f"Tile {full[0]} overflows: it has {counts[full[0]]} entries, "
                       f"but only {words - 1} fit")
            with pytest.raises(ValueError, match=f"^{message}$"):
                to_words(codes, factor, exponent=exponent)
            return
        packed = to_words(codes, factor, exponent=exponent)
        assert packed.tolist() == words_by_hand(codes, words, exponent)
        np.testing.assert_array_equal(from_words(packed, len(codes), factor, exponent=exponent),
                                      codes)

    @pytest.mark.parametrize("live", [31, 32, 256])
    def test_what_the_published_kernels_lose_is_an_error(self, live):
        """31 elements fit into a tile of 32 words; of the 32nd on, the kernels lose some."""
        codes = np.zeros(512, np.int8)
        codes[256:256 + live] = 5
        if live == 31:
            np.testing.assert_array_equal(from_words(to_words(codes), 512), codes)
            return
        message = f"Tile 1 overflows: it has {live} entries, but only 31 fit"
        with pytest.raises(ValueError, match=f"^{message}$"):
            to_words(codes)
        words = to_words(np.zeros(512, np.int8))
        words[32] = live
        with pytest.raises(ValueError, match=f"^{message}$"):
            from_words(words, 512)

    def test_any_order_and_undefined_rest(self):
        """Kernels write a tile's elements as they come, and leave the rest as it was."""
        rng = np.random.default_rng(2)
        codes = np.where(rng.random(1024) < 0.05, rng.integers(1, 128, 1024), 0).astype(np.int8)
        words = to_words(codes).reshape(4, 32)
        for row in words:
            count = row[0]
            row[1:count + 1] = rng.permutation(row[1:count + 1])
            row[count + 1:] = rng.integers(0, 2 ** 32, 31 - count)
        np.testing.assert_array_equal(from_words(words.reshape(-1), 1024), codes)

    def test_an_element_of_value_zero_is_no_element(self):
        words = np.zeros(32, np.uint32)
        words[:3] = 2, 9, 0x40400000 | 4        # column 9: 0; column 4: 3.0
        codes = from_words(words, 256)
        assert np.flatnonzero(codes).tolist() == [4]
        assert codes[4] == 3

    @pytest.mark.parametrize(("words", "message"), [
        ({0: 1, 1: 0x3F800100}, "Word 1 of tile 0 names column 256, which is not of that tile"),
        ({32: 1, 33: 0x3F8000FF}, "Word 1 of tile 1 names column 255, which is not of that tile"),
        ({0: 3, 1: 0x3F800009, 2: 0x3F800001, 3: 0x3F800009},
         "Word 3 of tile 0 names column 9 a second time"),
        ({0: 1, 1: 0x7F800000}, "Word 1 of tile 0 must have a finite value, not 0x7f80"),
        ({0: 1, 1: 0x3F000000},
         "Word 1 of tile 0 must have a value that is an int8 code times 2**0, not 0x3f00"),
        ({32: 1, 33: 0x43000100},
         "Word 1 of tile 1 must have a value that is an int8 code times 2**0, not 0x4300"),
    ])
    def test_malformed_words(self, words, message):
        array = np.zeros(64, np.uint32)
        array[list(words)] = list(words.values())
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            from_words(array, 512)

    @pytest.mark.parametrize(("call", "message"), [
        (lambda: to_words(np.zeros(300, np.int8)),
         "Column count of the published layout must be a multiple of 256 up to 65536, not 300"),
        (lambda: to_words(np.zeros(256, np.int8), 3),
         "Compression factor must divide 256 and leave 2 words of it, not 3"),
        (lambda: to_words(np.zeros(256, np.int8), 256),
         "Compression factor must divide 256 and leave 2 words of it, not 256"),
        (lambda: to_words(np.full(256, 3, np.int8), 1),
         "Tile 0 overflows: it has 256 entries, but only 255 fit"),
        (lambda: to_words(np.eye(1, 256, dtype=np.int8)[0], exponent=128),
         "Exponent must keep every code within bf16, not 128"),
        (lambda: to_words(np.eye(1, 256, dtype=np.int8)[0], exponent=-127),
         "Exponent must keep every code within bf16, not -127"),
        (lambda: from_words(np.zeros(33, np.uint32), 256),
         "Words must be uint32 of shape (32,), not uint32 of shape (33,)"),
        (lambda: from_words(np.zeros(32, np.int64), 256),
         "Words must be uint32 of shape (32,), not int64 of shape (32,)"),
    ])
    def test_mistakes(self, call, message):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call()
