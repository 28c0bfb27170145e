"""Attention with L-Mul over a cache of keys and values: docs/numerics.md, section 10.

:func:`attend` is one token of the heads that share a cache, step by step as the hardware computes
it; :func:`attend_sequence` are whole sequences with the same numbers. Vectors are ``uint16`` arrays
of bf16 bits.
"""

import dataclasses
import functools

import numpy as np
from numpy.typing import NDArray

from hw.attention.tables import (
    CACHE_FORMATS,
    FACTOR_BASE,
    FRACTION,
    SCORE_BOUND,
    SCORE_GUARD,
    SCORE_WIDTH,
    WEIGHT_BITS,
    WINDOW,
    weight_words,
)
from hw.check import one_of
from hw.formats.minifloat import bf16, e4m3
from sim.golden.bf16 import from_float, to_float32
from sim.golden.dequantize import scale
from sim.golden.lmul import lmul_wide

__all__ = ["Attended", "attend", "attend_sequence", "from_cache", "mix", "scores", "to_cache",
           "value_bounds", "weights"]

_BITS = bf16.mantissa_bits
_REBIAS = (bf16.bias - e4m3.bias) << e4m3.mantissa_bits
_DROP = bf16.mantissa_bits - e4m3.mantissa_bits
_LARGEST_TERM = (1 << WINDOW) - 1


# The cache.

def to_cache(x: NDArray[np.uint16], cache: str) -> NDArray:
    """Round vectors to what a cache holds.

    Parameters
    ----------
    x : uint16 array
        bf16 numbers, finite.
    cache : str
        ``bf16``: nothing changes; ``e4m3``: to nearest even, magnitudes above 448 become 448, those
        below 2**-6 after rounding zero.

    Returns
    -------
    uint16 or uint8 array

    Raises
    ------
    OverflowError
        If an element is infinite or NaN.
    """
    one_of("Cache format", cache, CACHE_FORMATS)
    _check_finite(x)
    if cache == "bf16":
        return x
    magnitude = (x & np.uint16(bf16.magnitude_mask)).astype(np.int32)
    half = (magnitude >> _DROP & 1) + (1 << (_DROP - 1)) - 1
    rounded = np.minimum(((magnitude + half) >> _DROP) - _REBIAS, e4m3.largest_finite)
    rounded = np.where(rounded < e4m3.smallest_normal, 0, rounded)
    return (rounded | (x >> 15) << e4m3.magnitude_width).astype(np.uint8)


def from_cache(y: NDArray) -> NDArray[np.uint16]:
    """Return the bf16 numbers that a cache holds; exact, subnormal numbers of e4m3 are zeros.

    Parameters
    ----------
    y : uint16 or uint8 array
        bf16 or e4m3, finite.
    """
    if y.dtype == np.uint16:
        return y
    magnitude = (y & np.uint8(e4m3.magnitude_mask)).astype(np.uint16)
    sign = (y >> np.uint8(e4m3.magnitude_width)).astype(np.uint16) << 15
    found = np.where(magnitude < e4m3.smallest_normal, 0, (magnitude + _REBIAS) << _DROP)
    return (found | sign).astype(np.uint16)


def value_bounds(values: NDArray[np.uint16]) -> NDArray[np.int32]:
    """Exponent field of the largest element of the values so far, at each position.

    Parameters
    ----------
    values : uint16 array, shape (tokens, elements)
        As the cache holds them.

    Returns
    -------
    int32 array, shape (tokens,)
    """
    _check_finite(values)
    fields = (values & np.uint16(bf16.magnitude_mask)) >> _BITS
    return np.maximum.accumulate(fields.max(axis=-1).astype(np.int32))


# One token.

def _terms(x: NDArray[np.uint16], y: NDArray[np.uint16], bound: int) -> NDArray[np.int64]:
    """L-Mul products in units of ``2**(bound - 127 - WINDOW + 1)``, truncated towards zero.

    A product above the bound counts as the largest below it.
    """
    sign, result, zero, _, _ = lmul_wide(bf16, x, y)
    shift = bound - (result >> _BITS)
    significand = ((result & ((1 << _BITS) - 1)) | 1 << _BITS).astype(np.int64)
    magnitude = (significand << (WINDOW - _BITS - 1)) >> np.clip(shift, 0, WINDOW)
    magnitude = np.where(shift < 0, _LARGEST_TERM, magnitude)
    return np.where(zero, 0, np.where(sign, -magnitude, magnitude))


def _round_scores(sums: NDArray[np.int64]) -> NDArray[np.int32]:
    limit = 1 << (SCORE_WIDTH - 1)
    return np.clip((sums + (1 << (SCORE_GUARD - 1))) >> SCORE_GUARD, -limit,
                   limit - 1).astype(np.int32)


def scores(q: NDArray[np.uint16], keys: NDArray[np.uint16]) -> NDArray[np.int32]:
    """Score keys: L-Mul dot products in octaves, with ``FRACTION`` fraction bits.

    Products enter the sum in units of 2**-14 octaves, truncated towards zero; one of 2**10 octaves
    or more counts as the largest below. The sum is rounded to nearest, ties upwards, and saturated
    to ``SCORE_WIDTH`` bits.

    Parameters
    ----------
    q : uint16 array, shape (heads, elements)
        Queries, of which ``log2(e) / sqrt(elements)`` is a factor.
    keys : uint16 array, shape (tokens, elements)

    Returns
    -------
    int32 array, shape (heads, tokens)
    """
    _check_finite(q)
    _check_finite(keys)
    return _round_scores(_terms(q[:, np.newaxis], keys, SCORE_BOUND).sum(axis=-1))


@functools.cache
def _weight_tables() -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    amounts, factors = np.array(weight_words()).T
    return amounts.astype(np.int64), (FACTOR_BASE + factors).astype(np.int32)


def weights(found: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
    """Powers of two of scores, less the largest of each row.

    Parameters
    ----------
    found : int32 array, shape (..., tokens)
        Scores.

    Returns
    -------
    amounts : int64 array
        Weights in units of ``2**-WEIGHT_BITS``, truncated: the largest is ``2**WEIGHT_BITS``, and
        those of ``2**-WEIGHT_BITS`` or less are zero.
    factors : uint16 array
        bf16 numbers by which L-Mul multiplies by the weights in the mean.
    """
    amounts, factors = _weight_tables()
    below = found.max(axis=-1, keepdims=True) - found
    octaves, fraction = below >> FRACTION, below & ((1 << FRACTION) - 1)
    zero = octaves >= WEIGHT_BITS
    octaves = np.where(zero, 0, octaves)
    return (np.where(zero, 0, amounts[fraction] << (WEIGHT_BITS - 8) >> octaves),
            np.where(zero, 0, factors[fraction] - (octaves << _BITS)).astype(np.uint16))


@dataclasses.dataclass(frozen=True, eq=False)
class Attended:
    """What attention delivers for each head: ``integers * numbers * 2**exponents``.

    Attributes
    ----------
    integers : int32 array, shape (heads, elements)
    numbers : uint16 array, shape (heads,)
        bf16: one over the sum of the weights.
    exponents : int32 array, shape (heads,)
    """

    integers: NDArray[np.int32]
    numbers: NDArray[np.uint16]
    exponents: NDArray[np.int32]

    @property
    def vectors(self) -> NDArray[np.uint16]:
        """The product, rounded once: ``S`` of section 6."""
        return scale(self.integers, self.numbers, self.exponents)


def _deliver(sums: NDArray[np.int64], totals: NDArray[np.int64], bounds: NDArray[np.int32],
             accumulator_width: int) -> Attended:
    # |sum| < 1.08 * total * 2**(WINDOW - WEIGHT_BITS): without the octaves of the total it has at
    # most WINDOW + 3 bits, of which the accumulator's upper ones are kept.
    octaves = np.frexp(totals.astype(np.float64))[1].astype(np.int32) - 1 - WEIGHT_BITS
    shift = octaves + max(0, WINDOW + 3 - accumulator_width)
    rounded = to_float32(from_float(totals * 2.0 ** -WEIGHT_BITS)).astype(np.float64)
    exponents = shift + (bounds - bf16.bias - WINDOW + 1)
    return Attended((sums >> shift[..., np.newaxis]).astype(np.int32), from_float(1 / rounded),
                    exponents.astype(np.int32))


def mix(found: NDArray[np.int32], values: NDArray[np.uint16], bound: int, *,
        accumulator_width: int = 24) -> Attended:
    """Mix values by the softmax of their scores.

    Products of weights and values enter the sums in units of ``2**(bound - 127 - WINDOW + 1)``,
    truncated towards zero. The sums leave shifted down (rounded towards minus infinity) to
    ``accumulator_width`` bits, by as many octaves as the sum of the weights has.

    Parameters
    ----------
    found : int32 array, shape (heads, tokens)
        Scores.
    values : uint16 array, shape (tokens, elements)
    bound : int
        Exponent field that no element of the values exceeds, as :func:`value_bounds` returns it.
    accumulator_width : int
        Bits of an integer in a result transfer.
    """
    _check_finite(values)
    amounts, factors = weights(found)
    sums = _terms(factors[..., np.newaxis], values, bound).sum(axis=-2)
    bounds = np.full(len(found), bound, np.int32)
    return _deliver(sums, amounts.sum(axis=-1), bounds, accumulator_width)


def attend(q: NDArray[np.uint16], keys: NDArray[np.uint16], values: NDArray[np.uint16],
           bound: int, *, accumulator_width: int = 24) -> Attended:
    """Attend with one token: :func:`scores`, then :func:`mix`. Mirrors ``hw.attention.unit``.

    Parameters
    ----------
    q : uint16 array, shape (heads, elements)
        Queries of the heads that share the cache.
    keys, values : uint16 array, shape (tokens, elements)
        From the first position to the token's own.
    bound, accumulator_width : int
        As :func:`mix` takes them.

    Raises
    ------
    OverflowError
        If an element is infinite or NaN.
    """
    return mix(scores(q, keys), values, bound, accumulator_width=accumulator_width)


# Whole sequences.

def attend_sequence(q: NDArray[np.uint16], keys: NDArray[np.uint16], values: NDArray[np.uint16],
                    *, accumulator_width: int = 24) -> NDArray[np.uint16]:
    """Attend with each token to itself and those before it; equal to :func:`attend` bit for bit.

    Products are made in blocks that fit a cache, as float32 whose bits are added: a sequence of 300
    tokens with 9 heads of 64 elements takes a third of a second.

    Parameters
    ----------
    q : uint16 array, shape (tokens, heads, elements)
        Queries of the last tokens of the sequence, or of all of it. Neighbouring heads share a
        cache.
    keys, values : uint16 array, shape (all tokens, caches, elements)
        As the caches hold them: ``from_cache(to_cache(...))``.
    accumulator_width : int
        As :func:`mix` takes it.

    Returns
    -------
    uint16 array, shape (tokens, heads, elements)

    Raises
    ------
    OverflowError
        If an element is infinite or NaN.
    ValueError
        If the shapes do not fit one another.
    """
    count, heads, elements = q.shape
    length, caches = keys.shape[:2]
    if keys.shape != values.shape or keys.shape[2] != elements or heads % caches or count > length:
        raise ValueError(f"Queries {q.shape} must have the elements of keys {keys.shape} and "
                         f"values {values.shape}, a multiple of their heads and no more tokens")
    for array in (q, keys, values):
        _check_finite(array)
    group = heads // caches
    out = np.empty(q.shape, np.uint16)
    for cache in range(caches):
        own_keys = np.ascontiguousarray(keys[:, cache])
        own_values = np.ascontiguousarray(values[:, cache])
        bounds = value_bounds(own_values)
        mixer = _Mixer(own_values, bounds[length - count:])
        for head in range(cache * group, (cache + 1) * group):
            score = _Scorer(own_keys, np.ascontiguousarray(q[:, head]))
            sums = np.empty((count, elements), np.int64)
            totals = np.empty(count, np.int64)
            for token in range(count):
                end = length - count + token + 1
                amounts, factors = weights(score(token, end))
                totals[token] = amounts.sum()
                sums[token] = mixer(factors, int(bounds[end - 1]))
            out[:, head] = _deliver(sums, totals, bounds[length - count:],
                                    accumulator_width).vectors
    return out


# Blocks of products as float32, whose bits are added as integers. Operands so small that their
# products lie below the unit are raised to where these still do, but no exponent leaves the range
# of float32; then signs add up without a carry from the exponents.

_CHUNK = 64     # terms whose sum fits 32 bits with a bit to spare


def _patterns(x: NDArray[np.uint16], smallest: int, added: int) -> NDArray[np.int32]:
    """Return bf16 as bits of float32, magnitudes raised to ``smallest``, and ``added`` to them."""
    magnitude = np.maximum((x & np.uint16(bf16.magnitude_mask)).astype(np.int64), smallest) + added
    return ((magnitude << 16) + ((x >> 15).astype(np.int64) << 31)).astype(np.int32)


def _truncated(bits: NDArray[np.int32]) -> NDArray[np.int32]:
    return bits.view(np.float32).astype(np.int32)


class _Scorer:
    """Scores of one head; the keys lie one element a row."""

    def __init__(self, keys: NDArray[np.uint16], q: NDArray[np.uint16]):
        self._keys, self._q = keys, q
        largest_q, largest_key = (
            max(int((x & np.uint16(bf16.magnitude_mask)).max()), bf16.smallest_normal)
            for x in (q, keys))
        # The largest magnitude of a product that is truncated to zero.
        unit = (SCORE_BOUND - WINDOW + 1) << _BITS
        nothing = unit - 1 + bf16.constant()
        smallest_q = min(nothing - largest_key, largest_q)
        smallest_key = min(nothing - largest_q, largest_key)
        added = bf16.one - unit - bf16.constant()
        self._fast = (largest_q + largest_key - bf16.constant() < (SCORE_BOUND + 1) << _BITS
                      and min(smallest_q, smallest_key) >= bf16.smallest_normal
                      and smallest_q + smallest_key + added >= 0 and keys.shape[1] < 2 * _CHUNK)
        if self._fast:
            self._x = _patterns(q, smallest_q, added)
            self._y = np.ascontiguousarray(_patterns(keys, smallest_key, 0).T)

    def __call__(self, token: int, end: int) -> NDArray[np.int32]:
        if not self._fast:
            return scores(self._q[token, np.newaxis], self._keys[:end])[0]
        terms = _truncated(self._x[token, :, np.newaxis] + self._y[:, :end])
        return _round_scores(terms.sum(axis=0, dtype=np.int32).astype(np.int64))


class _Mixer:
    """Weighted sums of the values of one cache."""

    def __init__(self, values: NDArray[np.uint16], bounds: NDArray[np.int32]):
        self._values = values
        # A weight is at most 1, and by that L-Mul multiplies exactly.
        smallest = ((int(bounds[0]) - WINDOW + 1) << _BITS) - 1
        self._fast = (smallest >= bf16.smallest_normal
                      and int(bounds[-1]) - int(bounds[0]) < bf16.bias - WINDOW)
        if self._fast:
            self._y = _patterns(values, smallest, 0)

    def __call__(self, factors: NDArray[np.uint16], bound: int) -> NDArray[np.int64]:
        end = len(factors)
        if not self._fast:
            return _terms(factors[:, np.newaxis], self._values[:end], bound).sum(axis=0)
        unit = (bound - WINDOW + 1) << _BITS
        # A weight that is zero becomes one that leaves nothing of any value.
        nothing = bf16.constant() - (WEIGHT_BITS << _BITS)
        x = _patterns(factors, nothing, bf16.one - unit - bf16.constant())
        terms = _truncated(x[:, np.newaxis] + self._y[:end])
        whole = end // _CHUNK * _CHUNK
        chunks = terms[:whole].reshape(-1, _CHUNK, terms.shape[1]).sum(axis=1, dtype=np.int32)
        return (chunks.sum(axis=0, dtype=np.int64)
                + terms[whole:].sum(axis=0, dtype=np.int32).astype(np.int64))


def _check_finite(x: NDArray[np.uint16]) -> None:
    if ((x & bf16.infinity) == bf16.infinity).any():
        raise OverflowError("Attention needs finite numbers, but a vector holds an infinity or a "
                            "NaN")
