"""Golden attention against softmax attention in float64, and the fast one against the slow one."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.attention.tables import (
    FACTOR_BASE,
    FRACTION,
    SCORE_WIDTH,
    WEIGHT_BITS,
    reciprocal_words,
    weight_words,
)
from hw.formats.minifloat import bf16, e4m3
from sim.golden.arithmetic import lmul_factor
from sim.golden.attention import (
    Attended,
    attend,
    attend_sequence,
    from_cache,
    mix,
    scores,
    to_cache,
    value_bounds,
    weights,
)
from sim.golden.bf16 import from_float, to_float32
from sim.golden.lmul import lmul


def normal(rng, *shape, scale=1.0):
    return from_float(rng.normal(size=shape) * scale)


def float64(x):
    return to_float32(x).astype(np.float64)


def softmax_attention(q, keys, values):
    """Exact products in float64: q (heads, elements), keys and values (tokens, elements)."""
    octaves = float64(q) @ float64(keys).T
    powers = np.exp2(octaves - octaves.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True) @ float64(values)


def error(found, expected):
    return np.sqrt(np.square(float64(found) - expected).mean() / np.square(expected).mean())


# Tables.

def test_weight_table():
    powers = 2.0 ** (-np.arange(1 << FRACTION) / (1 << FRACTION))
    amounts, factors = np.array(weight_words()).T
    np.testing.assert_array_equal(amounts, np.rint(256 * powers))
    np.testing.assert_array_equal(FACTOR_BASE + factors, lmul_factor(powers))
    assert (factors.min(), factors.max(), amounts.min()) == (122, 248, 129)


def test_reciprocal_table():
    x = np.arange(bf16.one, bf16.one + 128).astype(np.uint16)
    np.testing.assert_array_equal(np.array(reciprocal_words()), from_float(1 / float64(x)) & 0x7F)


# The cache.

@pytest.mark.parametrize(("number", "stored"), [
    (0.0, 0x00), (-0.0, 0x80), (1.0, 0x38), (-1.0, 0xB8), (448.0, 0x7E), (464.0, 0x7E),
    (3e38, 0x7E), (-3e38, 0xFE), (2 ** -6, 0x08), (2 ** -6 * 0.97, 0x08), (2 ** -6 * 0.93, 0x00),
    (1.0625, 0x38), (1.1875, 0x3A), (1e-38, 0x00)])
def test_e4m3_of_a_number(number, stored):
    assert to_cache(from_float(np.array([number])), "e4m3")[0] == stored


def test_e4m3_is_the_nearest():
    x = np.arange(bf16.infinity, dtype=np.uint16)
    stored = from_cache(to_cache(x, "e4m3"))
    every = float64(from_cache(np.arange(e4m3.nan, dtype=np.uint8)))
    nearest = np.abs(float64(x)[:, np.newaxis] - np.unique(every)).min(axis=1)
    inside = float64(x) <= 448
    # What is rounded as if there were an exponent more, and then flushed.
    tiny = float64(x) < 2 ** -6 * (1 - 2 ** -5)
    distance = np.abs(float64(x) - float64(stored))
    np.testing.assert_array_equal(distance[inside & ~tiny], nearest[inside & ~tiny])
    assert (float64(stored)[~inside] == 448).all()
    assert (stored[tiny] == 0).all()
    np.testing.assert_array_equal(to_cache(x | 0x8000, "e4m3"), to_cache(x, "e4m3") | 0x80)


def test_e4m3_numbers_stay():
    stored = np.arange(256, dtype=np.uint8)
    stored = stored[((stored & 0x7F) >= 8) & ((stored & 0x7F) < 0x7F)]
    np.testing.assert_array_equal(to_cache(from_cache(stored), "e4m3"), stored)


def test_bf16_stays():
    x = normal(np.random.default_rng(1), 10)
    assert from_cache(to_cache(x, "bf16")) is x
    with pytest.raises(ValueError, match="Cache format"):
        to_cache(x, "fp16")


# Against float64.

#: Relative root mean squares: what L-Mul costs, for vectors of 64 normally distributed elements.
#: (tokens, deviation of the scores in octaves, bound of the error)
TOLERANCES = [(1, 1, 0.003), (16, 1, 0.05), (16, 8, 0.05), (256, 1, 0.06), (256, 3, 0.09),
              (256, 8, 0.15)]


@pytest.mark.parametrize(("tokens", "deviation", "bound"), TOLERANCES)
@pytest.mark.parametrize("cache", ["bf16", "e4m3"])
def test_softmax_attention(tokens, deviation, bound, cache):
    rng = np.random.default_rng(tokens)
    q = normal(rng, 8, 64, scale=deviation / 8)
    keys, values = (from_cache(to_cache(normal(rng, tokens, 64), cache)) for _ in range(2))
    found = attend(q, keys, values, int(value_bounds(values)[-1]))
    expected = softmax_attention(q, keys, values)
    assert error(found.vectors, expected) < bound
    # It is L-Mul that costs: with its products as they are, the rest is far closer.
    octaves = float64(lmul(bf16, q[:, np.newaxis], keys)).sum(axis=-1)
    powers = np.exp2(octaves - octaves.max(axis=-1, keepdims=True))
    products = lmul(bf16, lmul_factor(powers)[..., np.newaxis], values)
    near = float64(products).sum(axis=1) / powers.sum(axis=-1, keepdims=True)
    assert error(found.vectors, near) < 0.008


def test_accuracy_of_e4m3():
    """A cache of 8 bits costs about as much as L-Mul does."""
    rng = np.random.default_rng(5)
    q, keys, values = normal(rng, 8, 64, scale=.3), *(normal(rng, 200, 64) for _ in range(2))
    stored = [from_cache(to_cache(x, "e4m3")) for x in (keys, values)]
    expected = softmax_attention(q, keys, values)
    lmul_only, both = (error(attend(q, *cached, int(value_bounds(cached[1])[-1])).vectors, expected)
                       for cached in ((keys, values), stored))
    assert lmul_only < 0.07
    assert both < 1.25 * lmul_only


def test_one_token_is_its_value():
    """With one weight, 1, and L-Mul exact by it, nothing is lost but what a window cuts off."""
    rng = np.random.default_rng(2)
    values = normal(rng, 1, 64)
    values[0, :4] = [0, 0x8000, 0x0040, 0xC500]
    found = attend(normal(rng, 3, 64), normal(rng, 1, 64), values,
                   int(value_bounds(values)[0]), accumulator_width=32)
    flushed = np.where(float64(values) == 0, np.uint16(0), values)
    fields = (flushed & 0x7FFF) >> 7
    kept = fields.max() - fields <= 16
    assert kept.mean() > 0.9
    for vector in found.vectors:
        np.testing.assert_array_equal(vector[kept[0]], flushed[kept])
    assert found.numbers.tolist() == 3 * [bf16.one]


def test_order_does_not_matter():
    rng = np.random.default_rng(3)
    q, keys, values = normal(rng, 2, 16, scale=3), normal(rng, 90, 16), normal(rng, 90, 16)
    order, elements = rng.permutation(90), rng.permutation(16)
    bound = int(value_bounds(values)[-1])
    expected = attend(q, keys, values, bound)
    found = attend(q[:, elements], keys[order][:, elements], values[order], bound)
    same(found, expected)


def same(found: Attended, expected: Attended):
    np.testing.assert_array_equal(found.integers, expected.integers)
    np.testing.assert_array_equal(found.numbers, expected.numbers)
    np.testing.assert_array_equal(found.exponents, expected.exponents)


def test_ties_share():
    """Equal scores weigh the same; 2**k of them divide without an error."""
    values = from_float(np.array([[1.0, -3.0], [2.0, 5.0], [3.0, 7.0], [10.0, -1.0]]))
    equal = np.full((1, 4), 77, np.int32)
    found = mix(equal, values, int(value_bounds(values)[-1]))
    np.testing.assert_array_equal(float64(found.vectors), [[4.0, 2.0]])
    assert (int(found.numbers[0]), found.exponents[0]) == (int(from_float(np.array([0.25]))[0]),
                                                           130 - 127 - 23 + 2 + 3)


def test_scores_saturate():
    limit = 1 << (SCORE_WIDTH - 1)
    huge = np.full((1, 8), bf16.largest_finite, np.uint16)
    keys = np.concatenate([huge, huge | 0x8000, np.zeros_like(huge)])
    assert scores(huge, keys).tolist() == [[limit - 1, -limit, 0]]
    # One product counts as 2**10 octaves at most, and the sum is rounded up to them.
    one = np.zeros((1, 8), np.uint16)
    one[0, 3] = bf16.largest_finite
    assert scores(one, keys[:2]).tolist() == [[1 << 16, -(1 << 16)]]


def test_score_is_rounded_to_nearest_ties_upwards():
    """Powers of two less the offset multiply exactly: the score is the key."""
    q = lmul_factor(np.array([[1.0]]))
    parts = np.array([1.0, 1.5, 2.5, -0.5, -1.5, -0.52, -2.49]) / 64
    keys = from_float(parts)[:, np.newaxis]
    assert scores(q, keys).tolist() == [[1, 2, 3, 0, -1, -1, -2]]


def test_small_weights_vanish():
    octave = 1 << FRACTION
    found = np.array([[5000, 5000 - (WEIGHT_BITS - 1) * octave, 5000 - WEIGHT_BITS * octave + 1,
                       5000 - WEIGHT_BITS * octave, -100000]])
    amounts, factors = weights(found.astype(np.int32))
    assert amounts.tolist() == [[1 << WEIGHT_BITS, 2, 1, 0, 0]]
    assert (factors[0, :3] > 0).all()
    assert (factors[0, 3:] == 0).all()
    assert int(factors[0, 0]) == bf16.constant()        # by which L-Mul multiplies exactly


def test_integers_fit_the_accumulator():
    """The largest mixture: every weight 1, or just above a power of two."""
    for width in (24, 32):
        for tokens in (1, 2, 3, 255, 256, 257):
            values = np.full((tokens, 1), 0x7F7F, np.uint16)
            found = np.zeros((1, tokens), np.int32)
            for row in (found, np.where(np.arange(tokens) == 0, 0, -31)[np.newaxis]):
                delivered = mix(row.astype(np.int32), values, 254, accumulator_width=width)
                assert abs(int(delivered.integers[0, 0])) < 1 << (width - 1)
                assert abs(int(delivered.integers[0, 0])) > 1 << min(width - 4, 23)


@pytest.mark.parametrize("bad", [0x7F80, 0xFF80, 0x7FC0, 0xFFFF])
@pytest.mark.parametrize("place", range(3))
def test_not_finite(bad, place):
    rng = np.random.default_rng(4)
    vectors = [normal(rng, 2, 8), normal(rng, 5, 8), normal(rng, 5, 8)]
    vectors[place][1, 3] = bad
    with pytest.raises(OverflowError, match="finite"):
        attend(*vectors, 130)
    with pytest.raises(OverflowError, match="finite"):
        to_cache(vectors[place], "e4m3")
    with pytest.raises(OverflowError, match="finite"):
        attend_sequence(vectors[0][:, np.newaxis], vectors[1][:, np.newaxis],
                        vectors[2][:, np.newaxis])


# Whole sequences.

def check_sequence(q, keys, values, **options):
    found = attend_sequence(q, keys, values, **options)
    group = q.shape[1] // keys.shape[1]
    first = len(keys) - len(q)
    for cache in range(keys.shape[1]):
        bounds = value_bounds(values[:, cache])
        for token in range(len(q)):
            end = first + token + 1
            heads = slice(cache * group, (cache + 1) * group)
            expected = attend(q[token, heads], keys[:end, cache], values[:end, cache],
                              int(bounds[end - 1]), **options)
            np.testing.assert_array_equal(found[token, heads], expected.vectors)


@pytest.mark.parametrize(("tokens", "earlier", "caches", "group", "elements"), [
    (1, 0, 1, 1, 8), (7, 0, 2, 3, 8), (70, 0, 1, 2, 64), (3, 130, 2, 1, 16), (5, 0, 1, 1, 128)])
def test_sequence(tokens, earlier, caches, group, elements):
    rng = np.random.default_rng(tokens)
    q = normal(rng, tokens, caches * group, elements)
    keys, values = (normal(rng, tokens + earlier, caches, elements) for _ in range(2))
    q[rng.random(q.shape) < 0.1] = 0
    keys[rng.random(keys.shape) < 0.1] = 0x8000
    values[rng.random(values.shape) < 0.1] = 0x0001
    check_sequence(q, keys, values)
    check_sequence(q, keys, values, accumulator_width=32)


@given(st.integers(0, 2 ** 32 - 1), st.integers(0, 254), st.integers(0, 254), st.integers(0, 254),
       st.integers(1, 254))
def test_sequence_of_any_numbers(seed, q_field, key_field, value_field, spread):
    """Fields about the ends of the range, where the fast way does not go."""
    rng = np.random.default_rng(seed)

    def near(field, *shape):
        fields = np.clip(field - rng.integers(0, spread + 1, shape), 0, 254)
        return (rng.integers(0, 2, shape) << 15 | fields << 7
                | rng.integers(0, 128, shape)).astype(np.uint16)
    check_sequence(near(q_field, 3, 2, 8), near(key_field, 4, 1, 8), near(value_field, 4, 1, 8))


def test_shapes_that_do_not_fit():
    x = np.zeros((4, 2, 8), np.uint16)
    for q, keys, values in ((x[:, :, :4], x, x), (x, x[:3], x[:3]), (x, x, x[:3]),
                            (np.zeros((4, 3, 8), np.uint16), x, x)):
        with pytest.raises(ValueError, match="must have the elements"):
            attend_sequence(q, keys, values)


def test_sequence_is_fast():
    """SmolLM2 has 30 such layers: well below a minute for 200 tokens."""
    rng = np.random.default_rng(0)
    q = normal(rng, 200, 9, 64, scale=.2)
    keys, values = (normal(rng, 200, 3, 64) for _ in range(2))
    started = time.process_time()
    attend_sequence(q, keys, values)
    assert time.process_time() - started < 2
