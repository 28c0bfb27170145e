"""The mask against sorting in Python, with scores as rational numbers."""

import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.golden.wina import (
    LARGEST_NORM,
    SCORE_BITS,
    Mask,
    column_norms,
    keep_above,
    keep_largest,
    scores,
)


@st.composite
def vectors(draw):
    """Codes and norms; few different ones make many scores equal."""
    count = draw(st.integers(1, 600))
    rng = np.random.default_rng(draw(st.integers(0, 2 ** 32)))
    largest_code, largest_norm = draw(st.sampled_from(
        [(127, LARGEST_NORM), (127, 1), (2, 3), (1, 1), (0, 5), (127, 0)]))
    codes = rng.integers(-largest_code, largest_code + 1, count).astype(np.int8)
    norms = rng.integers(0, largest_norm + 1, count).astype(np.uint16)
    return codes, norms, draw(st.one_of(st.integers(1, count), st.sampled_from([1, count])))


def kept_by_hand(codes, norms, keep):
    """Find the largest ``|x| * sqrt(norm)``, compared as squares of rational numbers."""
    squares = [Fraction(int(code)) ** 2 * int(norm)
               for code, norm in zip(codes, norms, strict=True)]
    order = sorted(range(len(squares)), key=lambda column: (-squares[column], column))
    return sorted(column for column in order[:keep] if codes[column])


class TestSelection:
    @given(vectors())
    @settings(max_examples=150, deadline=None)
    def test_equals_sorting(self, vector):
        codes, norms, keep = vector
        expected = kept_by_hand(codes, norms, keep)
        masked = Mask(norms, keep)(codes)
        assert np.flatnonzero(masked).tolist() == expected
        np.testing.assert_array_equal(masked[expected], codes[expected])

    @pytest.mark.parametrize("keep", [1, 2, 99, 100])
    def test_equal_scores_are_kept_by_column(self, keep):
        codes = np.tile(np.array([7, -7], np.int8), 50)
        norms = np.full(100, 300, np.uint16)
        assert np.flatnonzero(Mask(norms, keep)(codes)).tolist() == list(range(keep))

    def test_all_are_kept(self):
        """Also those whose column is empty: the mask that keeps all changes nothing."""
        codes = np.random.default_rng(1).integers(-128, 128, (5, 64)).astype(np.int8)
        norms = np.arange(64).astype(np.uint16) % 3
        np.testing.assert_array_equal(Mask(norms, 64)(codes), codes)

    def test_zeros_take_a_place_but_leave_the_list(self):
        codes, norms = np.array([0, 3, 0, 9], np.int8), np.array([1, 0, 1, 1], np.uint16)
        assert Mask(norms, 2)(codes).tolist() == [0, 0, 0, 9]
        assert Mask(norms, 3)(codes).tolist() == [0, 3, 0, 9]

    def test_vectors_of_a_batch_are_apart(self):
        rng = np.random.default_rng(3)
        codes = rng.integers(-128, 128, (4, 3, 50)).astype(np.int8)
        norms = rng.integers(0, 9, 50).astype(np.uint16)
        masked = Mask(norms, 11)(codes)
        for index in np.ndindex(4, 3):
            np.testing.assert_array_equal(masked[index], Mask(norms, 11)(codes[index]))

    @given(vectors())
    @settings(max_examples=50, deadline=None)
    def test_threshold(self, vector):
        codes, norms, rank = vector
        found = [int(code) ** 2 * int(norm) for code, norm in zip(codes, norms, strict=True)]
        threshold = sorted(found)[rank - 1]
        expected = [value if score > threshold else 0
                    for value, score in zip(codes.tolist(), found, strict=True)]
        assert Mask(norms, 1, threshold)(codes).tolist() == expected
        assert keep_above(scores(codes, norms), threshold).tolist() == [
            score > threshold for score in found]

    @pytest.mark.parametrize("keep", [0, 9])
    def test_mistakes(self, keep):
        message = f"Number of activations to keep must be 1 to 8, not {keep}"
        with pytest.raises(ValueError, match=f"^{message}$"):
            keep_largest(np.zeros(8, np.int64), keep)


class TestScores:
    def test_largest(self):
        found = scores(np.array([-128, 127], np.int8), np.array([LARGEST_NORM] * 2, np.uint16))
        assert found.tolist() == [128 ** 2 * 65535, 127 ** 2 * 65535]
        assert int(found[0]).bit_length() == SCORE_BITS

    def test_ternary_order_is_that_of_the_norms(self):
        """Without square roots: ``|x| * ||column||`` orders in the same way."""
        rng = np.random.default_rng(4)
        trits = rng.integers(-1, 2, (90, 40)).astype(np.int8)
        codes = rng.integers(-128, 128, 40).astype(np.int8)
        norms = np.linalg.norm(trits.astype(np.longdouble), axis=0)
        real = np.abs(codes.astype(np.longdouble)) * norms
        found = scores(codes, column_norms([trits]))
        for first, second in np.ndindex(40, 40):
            if found[first] > found[second]:
                assert real[first] > real[second]


class TestNorms:
    def test_ternary_counts_add_up(self):
        rng = np.random.default_rng(5)
        matrices = [rng.integers(-1, 2, (rows, 30)).astype(np.int8) for rows in (8, 20, 1)]
        norms = column_norms(matrices, [0.5, 2.0, 1.0])
        assert norms.dtype == np.uint16
        assert norms.tolist() == [sum(1 for matrix in matrices for trit in matrix[:, column]
                                      if trit) for column in range(30)]

    def test_ternary_counts_beyond_16_bits(self):
        trits = np.ones((LARGEST_NORM + 1, 2), np.int8)
        trits[::2, 1] = 0
        assert column_norms([trits]).tolist() == [65535, 32768]     # 32767.5 goes to even

    @pytest.mark.parametrize("scales", [None, [0.25, 3.0]])
    def test_integers(self, scales):
        rng = np.random.default_rng(6)
        matrices = [rng.integers(-128, 128, (rows, 25)) for rows in (7, 12)]
        matrices[0][:, 3] = matrices[1][:, 3] = 0
        squares = [sum((Fraction(scale) * int(weight)) ** 2
                       for matrix, scale in zip(matrices, scales or [1, 1], strict=True)
                       for weight in matrix[:, column]) for column in range(25)]
        expected = [round(square * 65535 / max(squares)) for square in squares]
        found = column_norms(matrices, scales)
        assert found.tolist() == expected
        assert found.max() == 65535
        assert found[3] == 0

    def test_scales_of_rows(self):
        matrix = np.array([[3, 1], [2, 2]])
        scales = np.array([[1.0], [10.0]])
        assert column_norms([matrix], [scales]).tolist() == [65535, round(65535 * 401 / 409)]

    def test_a_matrix_of_zeros(self):
        assert column_norms([np.zeros((3, 2), int)]).tolist() == [0, 0]
        assert column_norms([np.zeros((3, 2))]).tolist() == [0, 0]

    def test_mistakes(self):
        message = "Matrices that share a list must have one column count, not [2, 3]"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            column_norms([np.ones((2, 2), int), np.ones((2, 3), int)])
