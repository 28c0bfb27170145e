"""Tables and rules of the vector unit for every bf16 argument; parameter checks."""

import numpy as np
import pytest

from hw.arith.function_table import EXPONENTS, FIRST_EXPONENT, function_words, rsqrt_words
from hw.config import AcceleratorConfig
from hw.formats.minifloat import bf16
from hw.vector.memory import VectorMemory
from sim.golden.function_table import rsqrt_table, sigmoid_table, silu_table

EVERY = np.arange(1 << 16)
SIGN = EVERY >> 15
MAGNITUDE = EVERY & 0x7FFF
FIELD = MAGNITUDE >> 7
LAST_EXPONENT = FIRST_EXPONENT + EXPONENTS - 1


def by_rule_and_table(*, silu: bool) -> np.ndarray:
    """Do with every argument what ``hw.vector.lane`` does."""
    address = (EVERY & 0x7FF) | SIGN << 11 | int(silu) << 12
    table = np.array(function_words())[address]
    if silu:
        half = np.where(FIELD >= 2, MAGNITUDE - 0x80, 0)
        magnitude = np.select([FIELD < FIRST_EXPONENT, FIELD <= LAST_EXPONENT, SIGN == 1],
                              [half, table, 0], MAGNITUDE)
        value = magnitude | SIGN << 15
    else:
        value = np.select([FIELD < FIRST_EXPONENT, FIELD <= LAST_EXPONENT, SIGN == 1],
                          [0x3F00, table, 0x3F80], 0)
    return np.where(MAGNITUDE > bf16.infinity, bf16.nan, value)


def test_functions_of_every_argument():
    np.testing.assert_array_equal(by_rule_and_table(silu=True), silu_table())
    np.testing.assert_array_equal(by_rule_and_table(silu=False), sigmoid_table()[EVERY ^ 0x8000])


def test_no_smaller_number_of_exponents_would_do():
    """The table has 16 exponents; the rules are wrong somewhere in 15 of them, 119 to 133."""
    half = np.where(FIELD >= 2, MAGNITUDE - 0x80, 0) | SIGN << 15
    sigmoid = sigmoid_table()[EVERY ^ 0x8000]
    below = (silu_table() != half) | (sigmoid != 0x3F00)
    above = ((silu_table() != np.where(SIGN, 0x8000, EVERY))
             | (sigmoid != np.where(SIGN, 0x3F80, 0)))
    finite = MAGNITUDE < bf16.infinity
    assert (FIELD[below].min(), FIELD[above & finite].max()) == (119, 133)


def test_reciprocal_square_root_of_every_number():
    entries = np.array(rsqrt_words())[(EVERY & 0x7F) | (~FIELD & 1) << 7]
    roots = ((189 + (~FIELD & 1) - (FIELD >> 1)) << 7) + entries
    normal = (SIGN == 0) & (FIELD > 0) & (FIELD < 255)
    np.testing.assert_array_equal(roots[normal], rsqrt_table()[normal])


@pytest.mark.parametrize(("readers", "writers", "message"), [
    ((0, 1), 1, "Reader count of port 0 must be a positive integer, not 0"),
    ((1, 0), 1, "Reader count of port 1 must be a positive integer, not 0"),
    ((1, 1), 0, "Writer count must be a positive integer, not 0"),
])
def test_user_counts_must_be_positive(readers, writers, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        VectorMemory(AcceleratorConfig(), readers=readers, writers=writers)
