"""Widths and tables of attention, as plain data: docs/numerics.md, section 10.

Tests compare every entry with float64 and ``sim.golden.function_table``. This module imports no
Amaranth.
"""

import functools
import math

from hw.formats.minifloat import DEFAULT_WINDOW, bf16

__all__ = ["CACHE_FORMATS", "FACTOR_BASE", "FRACTION", "SCORE_BOUND", "SCORE_GUARD", "SCORE_WIDTH",
           "WEIGHT_BITS", "WINDOW", "reciprocal_words", "weight_words"]

#: Formats of the elements of a cache.
CACHE_FORMATS = ("bf16", "e4m3")

#: Bits of an L-Mul product in a sum, as in any other dot product of bf16.
WINDOW = DEFAULT_WINDOW

#: Exponent field of the largest product of a score: below 2**10 octaves.
SCORE_BOUND = bf16.bias + 9

#: Fraction bits of a score, in octaves: a weight is wrong by 0.54 % at most. With random vectors
#: 8 or 10 bits change the error of attention, 1 to 6 % with L-Mul, by less than 0.0005.
FRACTION = 6

#: Bits of a sum of products below those of a score.
SCORE_GUARD = WINDOW - 1 - (SCORE_BOUND - bf16.bias) - FRACTION

#: Bits of a score, two's complement: from -2**11 octaves up to 2**11.
SCORE_WIDTH = 18

#: Fraction bits of a weight in the sum of the weights; a smaller one is zero.
WEIGHT_BITS = WINDOW

#: What :func:`weight_words` counts L-Mul factors from: the magnitude of 1/4.
FACTOR_BASE = bf16.one - (2 << bf16.mantissa_bits)


@functools.cache
def weight_words() -> list[tuple[int, int]]:
    """``2**(-f / 2**FRACTION)`` of each fraction f, twice: for the sum, and to multiply by.

    Returns
    -------
    list of (int, int)
        The weight in units of 1/256, 130 to 256; and the magnitude, less :data:`FACTOR_BASE`, of
        the bf16 number by which L-Mul multiplies by the weight in the mean over all mantissas, 120
        to 248.
    """
    m = bf16.mantissa_bits
    ones = 1 << m
    significands = [1 + mantissa / ones for mantissa in range(ones)]
    gains = []
    for magnitude in range(FACTOR_BASE, bf16.one):
        added = (mantissa + magnitude - bf16.constant() for mantissa in range(bf16.one,
                                                                              bf16.one + ones))
        values = (math.ldexp(ones + (total & (ones - 1)), (total >> m) - bf16.bias - m)
                  for total in added)
        gains.append(sum(value / x for value, x in zip(values, significands, strict=True)) / ones)
    words = []
    for fraction in range(1 << FRACTION):
        weight = 2 ** (-fraction / 2 ** FRACTION)
        factor = min(range(len(gains)), key=lambda k: abs(gains[k] - weight))
        words.append((round(256 * weight), factor))
    return words


def reciprocal_words() -> list[int]:
    """Mantissa fields of 1 / x for x from 1 up to 2, of each mantissa field.

    The exponent is one less than that of 1 / 2**k but for x = 2**k.
    """
    ones = 1 << bf16.mantissa_bits
    return [round(2 * ones / (1 + mantissa / ones)) % ones for mantissa in range(ones)]
