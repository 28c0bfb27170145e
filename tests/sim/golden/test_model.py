"""The golden model against decimals, rationals, and networks written down a second time."""

import decimal
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from host.files.tensors import TernaryMatrix, to_bf16
from host.models.examples import tiny_vocabulary
from host.models.mmfreelm import Layer, TernaryLM
from hw.formats.minifloat import bf16
from sim.golden.arithmetic import ARITHMETICS, lmul_factor
from sim.golden.bf16 import NAN, add, from_float, subtract, to_float32
from sim.golden.dequantize import scale
from sim.golden.evaluate import ExactProducts, GoldenLM, model_matrices
from sim.golden.function_table import rsqrt_table, sigmoid_table, silu_table
from sim.golden.lmul import lmul, lmul_dot
from sim.golden.quantizer import quantize
from sim.golden.wina import Mask

SMALLEST = Fraction(1, 2 ** 126)
INFINITY = 0x7F80


def rational(bits):
    """Value of one finite bf16 number, from its fields."""
    exponent, mantissa = bits >> 7 & 0xFF, bits & 0x7F
    assert exponent < 255
    magnitude = Fraction(128 + mantissa) * Fraction(2) ** (exponent - 134) if exponent else 0
    return -magnitude if bits >> 15 else Fraction(magnitude)


def rounded(value):
    """Nearest bf16 number of a rational, ties to even, as an integer; zeros are positive."""
    magnitude = abs(value)
    if magnitude == 0:
        return 0
    exponent = math.floor(math.log2(magnitude))
    exponent += (magnitude >= Fraction(2) ** (exponent + 1)) - (magnitude < Fraction(2) ** exponent)
    significand = round(magnitude / Fraction(2) ** (exponent - 7))     # Python rounds ties to even
    if significand == 256:
        significand, exponent = 128, exponent + 1
    assert exponent < 128
    if exponent < -126:
        return 0
    return (value < 0) << 15 | (exponent + 127) << 7 | significand - 128


def vectors(state):
    """States of the recurrences, shape (layers, documents, elements)."""
    return np.stack(list(state.vectors.values()))


class TestTables:
    """Every entry is within half a unit in the last place of a value with 40 digits."""

    @staticmethod
    def check(table, function, arguments):
        with decimal.localcontext(prec=40, Emin=-10 ** 6, Emax=10 ** 6):
            for bits in arguments:
                x = rational(bits)
                value = Fraction(function(Decimal(x.numerator) / Decimal(x.denominator)))
                assert int(table[bits]) & 0x7FFF == rounded(abs(value)), hex(bits)
                if table[bits] & 0x7FFF:
                    assert bool(table[bits] >> 15) == (value < 0), hex(bits)

    @staticmethod
    def below(limit):
        magnitudes = range(int(from_float(np.float32(limit))))
        return [sign | magnitude for sign in (0, 0x8000) for magnitude in magnitudes]

    def test_sigmoid(self):
        table = sigmoid_table()
        self.check(table, lambda x: 1 / (1 + (-x).exp()), self.below(100))
        assert set(table[int(from_float(np.float32(100))):INFINITY + 1].tolist()) == {0x3F80}
        assert set(table[0x8000 | int(from_float(np.float32(100))):
                         (0x8000 | INFINITY) + 1].tolist()) == {0}
        assert set(table[INFINITY + 1:0x8000].tolist()) == {NAN}

    def test_silu(self):
        table = silu_table()
        self.check(table, lambda x: x / (1 + (-x).exp()), self.below(100))
        large = int(from_float(np.float32(100)))
        every = np.arange(1 << 16, dtype=np.uint16)
        np.testing.assert_array_equal(table[large:INFINITY + 1], every[large:INFINITY + 1])
        assert set(table[0x8000 | large:(0x8000 | INFINITY) + 1].tolist()) == {0x8000}
        assert set(table[INFINITY + 1:0x8000].tolist()) == {NAN}

    def test_rsqrt(self):
        table = rsqrt_table()
        self.check(table, lambda x: 1 / x.sqrt(), range(0x80, INFINITY))
        assert table[0] == table[0x8000] == table[INFINITY] == 0
        assert set(table[0x8080:].tolist()) == {NAN}


class TestQuantize:
    @staticmethod
    def reference(vector):
        values = [rational(bits) for bits in vector]
        largest = max(map(abs, values))
        if largest == 0:
            return [0] * len(values), 0
        exponent = -200
        while largest > 127 * Fraction(2) ** exponent:
            exponent += 1
        return [round(value / Fraction(2) ** exponent) for value in values], exponent

    def check(self, vectors):
        codes = quantize(vectors)
        assert codes.values.dtype == np.int8
        for vector, values, exponent in zip(vectors.tolist(), codes.values.tolist(),
                                            codes.exponents.tolist(), strict=True):
            assert (values, exponent) == self.reference(vector)
            assert max(values) <= 127
            assert min(values) >= -127

    def test_every_largest_number(self):
        """Each of the 127 finite mantissas of a few exponents, next to smaller numbers."""
        largest = np.concatenate([np.arange(128, dtype=np.uint16) | exponent << 7
                                  for exponent in (0, 1, 2, 6, 7, 126, 127, 140, 254)])
        smaller = np.random.default_rng(2).integers(0, largest[:, np.newaxis] + 1,
                                                    (len(largest), 6))
        vectors = np.concatenate([largest[:, np.newaxis], smaller], axis=1).astype(np.uint16)
        vectors ^= np.random.default_rng(3).integers(0, 2, vectors.shape).astype(np.uint16) << 15
        self.check(vectors)

    def test_ties(self):
        """With a largest number of 127 the unit is 1: halves go to even."""
        vector = from_float(np.array([127, 0.5, 1.5, 2.5, -0.5, -1.5, 62.5, 63.5], np.float32))
        assert quantize(vector[np.newaxis]).values.tolist() == [[127, 0, 2, 2, 0, -2, 62, 64]]

    def test_float32_gives_the_same_codes(self):
        """Vectors that bf16 holds: their codes, and their L-Mul products, are those of bf16."""
        rng = np.random.default_rng(11)
        vectors = rng.integers(0x2000, 0x6000, (500, 7)).astype(np.uint16)
        vectors[:128, 0] = 0x6000 | np.arange(128)
        vectors[-1] = 0
        vectors ^= rng.integers(0, 2, vectors.shape).astype(np.uint16) << 15
        arithmetic = ARITHMETICS["exact_float32"]
        codes, same = quantize(vectors), arithmetic.codes(to_float32(vectors))
        np.testing.assert_array_equal(same.values, codes.values)
        np.testing.assert_array_equal(same.exponents, codes.exponents)
        x, y = vectors[:, :3], vectors[:, 3:6]
        np.testing.assert_array_equal(
            ARITHMETICS["lmul_float32"].multiply(to_float32(x), to_float32(y)),
            to_float32(lmul(bf16, x, y)))
        for odd in (np.inf, -np.inf, np.nan):
            with pytest.raises(OverflowError, match=r"^Activations must be finite, but a vector "
                                                    r"holds an infinity or a NaN$"):
                arithmetic.codes(np.array([[0, odd]], np.float32))

    def test_not_finite(self):
        for odd in (INFINITY, 0xFF80, NAN):
            with pytest.raises(OverflowError, match=r"^Activations must be finite, but a vector "
                                                    r"holds an infinity or a NaN$"):
                quantize(np.array([[0, odd]], np.uint16))


class TestFactor:
    def test_powers_of_two_are_exact(self):
        """Under the default offset and under none."""
        every = np.arange(0x2000, 0x6000, dtype=np.uint16)
        for offset in (None, 0):
            for exponent in range(-20, 21):
                [factor] = lmul_factor(np.array([2.0 ** exponent]), offset)
                np.testing.assert_array_equal(lmul(bf16, every, factor, offset=offset),
                                              every + np.int16(exponent * 128))

    @pytest.mark.parametrize("offset", [None, 0])
    def test_mean(self, offset):
        """The mean gain over all mantissas is within half a step of bf16, as no other's is."""
        rng = np.random.default_rng(12)
        values = np.exp(rng.uniform(-5, 5, 300)) * rng.choice([-1, 1], 300)
        x = np.arange(0x3F80, 0x4000, dtype=np.uint16)

        def errors(factors):
            products = to_float32(lmul(bf16, x, factors[:, np.newaxis], offset=offset))
            return np.abs((products / to_float32(x)).mean(axis=1) / values - 1)

        found = lmul_factor(values, offset)
        assert errors(found).max() < 2 ** -8
        for step in (-1, 1):
            assert (errors(found) <= errors((found + np.int16(step)).astype(np.uint16))).all()

    def test_range(self):
        values = np.array([0, -0.0, 2.0 ** -127, -(2.0 ** -130)])
        assert lmul_factor(values).tolist() == [0, 0x8000, 0, 0x8000]
        for large in (8e38, np.inf, np.nan):
            with pytest.raises(OverflowError, match=r"^Factors must be finite bf16 numbers$"):
                lmul_factor(np.array([1, large]))


def signed_digits(significand):
    """Non-adjacent form: exponents and signs whose sum is ``significand``."""
    digits, position = [], 0
    while significand:
        if significand & 1:
            digit = 2 - (significand & 3)       # +1 or -1, such that the next bit becomes 0
            digits.append((position, digit))
            significand -= digit
        significand >>= 1
        position += 1
    return digits


def test_scale_is_five_shifted_additions():
    rng = np.random.default_rng(4)
    digits = {significand: signed_digits(significand) for significand in range(128, 256)}
    assert max(map(len, digits.values())) == 5
    extremes = [0, 1, -1, 2 ** 23 - 1, -2 ** 23, 2 ** 31 - 1, -2 ** 31]
    accumulators = np.array([extremes + rng.integers(-2 ** 23, 2 ** 23, 57).tolist()
                             for _ in digits], np.int32)
    exponent_fields = rng.integers(100, 150, len(digits))
    factors = np.array([field << 7 | significand - 128 for field, significand
                        in zip(exponent_fields.tolist(), digits, strict=True)], np.uint16)
    shifts = rng.integers(-20, 20, len(digits)).astype(np.int32)
    results = scale(accumulators, factors, shifts)
    for row, significand in enumerate(digits):
        unit = Fraction(2) ** int(exponent_fields[row] - 134 + shifts[row])
        for accumulator, result in zip(accumulators[row].tolist(), results[row].tolist(),
                                       strict=True):
            total = sum(digit * (accumulator << position)
                        for position, digit in digits[significand])
            assert result == rounded(total * unit)


class TestExactProducts:
    @pytest.mark.parametrize("columns", [2 ** 17, 2 ** 17 + 1])
    def test_extremes(self, columns):
        """At the bound of float32 and just above it, where sums are odd and of one sign."""
        products = ExactProducts({"w": np.ones((1, columns), np.int8)})
        activations = np.full((3, columns), -128, np.int8)
        activations[1] = 127
        activations[2, :-1] = -127
        expected = activations.astype(np.int64).sum(axis=1, keepdims=True)
        results = products("w", activations)
        assert results.dtype == np.int32
        np.testing.assert_array_equal(results, expected)

    def test_random(self):
        rng = np.random.default_rng(5)
        weights = rng.integers(-13, 14, (50, 300)).astype(np.int8)
        activations = rng.integers(-128, 128, (20, 300)).astype(np.int8)
        np.testing.assert_array_equal(
            ExactProducts({"w": weights})("w", activations),
            activations.astype(np.int64) @ weights.T.astype(np.int64))


FIELDS = ("forget", "candidate", "gate", "output", "ffn_gate", "ffn_up", "ffn_down")


def random_model(width=12, ffn_width=20, vocab=30, layers=3, seed=6):
    """Three planes in the embedding, and a width whose square root is no bf16 number."""
    rng = np.random.default_rng(seed)

    def matrix(rows, columns):
        return TernaryMatrix(rng.integers(-1, 2, (rows, columns)).astype(np.int8),
                             to_bf16(rng.uniform(0.1, 0.4)))

    shapes = {"ffn_gate": (ffn_width, width), "ffn_up": (ffn_width, width),
              "ffn_down": (width, ffn_width)}
    made = tuple(
        Layer(**{field: matrix(*shapes.get(field, (width, width))) for field in FIELDS},
              forget_bias=to_float32(from_float(np.linspace(0, 4, width))))
        for _ in range(layers))
    return TernaryLM(
        name="random", embedding=rng.integers(-13, 14, (vocab, width)).astype(np.int8),
        embedding_scale=0.09375, layers=made, vocabulary=tiny_vocabulary(),
        logit_scales={"lmul": 0.0390625, "mitchell": 0.04, "exact": 0.04, "float": 0.0390625,
                      "lmul_attention": 0.04,
                      "lmul_float32": 0.0390625, "exact_float32": 0.0390625})


def golden(model, arithmetic="lmul"):
    return GoldenLM(model, ARITHMETICS[arithmetic], ExactProducts(model_matrices(model)))


class Reference:
    """docs/numerics.md, section 6, one number after another, in rationals.

    Only L-Mul itself, its dot product, the tables and the bf16 sum come from the golden functions,
    which have tests of their own.
    """

    def __init__(self, model):
        self.model = model
        self.width = model.embedding.shape[1]
        self.state = [[0] * self.width for _ in model.layers]

    def constant(self, value):
        return rounded(Fraction(value * math.sqrt(self.width)))

    def quantize(self, x):
        return TestQuantize.reference(x)

    def inverse_norm(self, x):
        x = np.array(x, np.uint16)
        return int(rsqrt_table()[lmul_dot(bf16, x, x)])

    def linear(self, matrix, codes, factor):
        values, exponent = codes
        sums = [sum(int(w) * q for w, q in zip(row, values, strict=True)) for row in matrix]
        return [rounded(total * rational(factor) * Fraction(2) ** exponent) for total in sums]

    def product(self, constant, inverse_norm):
        return rounded(rational(constant) * rational(inverse_norm))

    def each(self, function, *vectors):
        return [int(function(*(np.uint16(bits) for bits in element)))
                for element in zip(*vectors, strict=True)]

    def lmul(self, x, y):
        return int(lmul(bf16, np.uint16(x), np.uint16(y)))

    def token(self, token):
        model = self.model
        scale_in = rounded(Fraction(model.embedding_scale))
        x = [rounded(int(e) * rational(scale_in)) for e in model.embedding[token]]
        for index, layer in enumerate(model.layers):
            def project(field, codes, norm, layer=layer):
                matrix = getattr(layer, field)
                factor = self.product(self.constant(matrix.scale), norm)
                return self.linear(matrix.trits, codes, factor)

            codes, norm = self.quantize(x), self.inverse_norm(x)
            bias = from_float(layer.forget_bias)
            a = self.each(add, project("forget", codes, norm), bias)
            z = [int(sigmoid_table()[bits ^ 0x8000]) for bits in a]
            c = [int(silu_table()[bits]) for bits in project("candidate", codes, norm)]
            g = [int(silu_table()[bits]) for bits in project("gate", codes, norm)]
            h = self.state[index]
            change = self.each(self.lmul, z, self.each(subtract, c, h))
            h = self.state[index] = self.each(add, h, change)
            o = self.quantize(self.each(self.lmul, h, g))
            x = self.each(add, x, project("output", o, self.inverse_norm(h)))
            codes, norm = self.quantize(x), self.inverse_norm(x)
            up = project("ffn_up", codes, norm)
            gate = [0 if bits >> 15 else bits for bits in project("ffn_gate", codes, norm)]
            y = self.quantize(self.each(self.lmul, up, gate))
            down = self.linear(layer.ffn_down.trits, y, rounded(Fraction(layer.ffn_down.scale)))
            x = self.each(add, x, down)
        values, exponent = self.quantize(x)
        factor = self.product(self.constant(model.logit_scales["lmul"]), self.inverse_norm(x))
        sums = [sum(int(w) * q for w, q in zip(row, values, strict=True))
                for row in model.embedding]
        return [total * rational(factor) * Fraction(2) ** exponent for total in sums]


class TestGoldenLM:
    def test_against_rationals(self):
        model = random_model()
        lm, reference = golden(model), Reference(model)
        state = lm.start()
        for token in np.random.default_rng(7).integers(0, 30, 12).tolist():
            logits = lm.logits(lm.forward(np.array([[token]]), state))
            assert [Fraction(value) for value in logits[0].tolist()] == reference.token(token)
            # Signs of zeros are free to differ: nothing in the network looks at them.
            np.testing.assert_array_equal(to_float32(vectors(state)[:, 0]),
                                          to_float32(np.array(reference.state, np.uint16)))

    def test_masks_against_rationals(self):
        """Each list has its own mask; the scales and norms are those of the unmasked vectors."""
        model = random_model()
        lists = model.network().lists()
        keep = {label: 3 + place % 8 for place, label in enumerate(lists)}

        class MaskedReference(Reference):
            calls = 0

            def quantize(self, x):
                values, exponent = super().quantize(x)
                label = [*keep, "head"][self.calls % (len(keep) + 1)]
                self.calls += 1
                if label == "head":
                    return values, exponent
                order = sorted(range(len(values)), key=lambda column: (-abs(values[column]),
                                                                       column))
                return [value if column in order[:keep[label]] else 0
                        for column, value in enumerate(values)], exponent

        lm = GoldenLM(model, ARITHMETICS["lmul"], ExactProducts(model_matrices(model)), {
            label: Mask(np.ones(lists[label][0].weights.shape[1], np.uint16), count)
            for label, count in keep.items()})
        reference, state = MaskedReference(model), lm.start()
        dense = golden(model)
        for token in np.random.default_rng(7).integers(0, 30, 6).tolist():
            logits = lm.logits(lm.forward(np.array([[token]]), state))
            assert [Fraction(value) for value in logits[0].tolist()] == reference.token(token)
        assert (logits != dense.logits(dense.forward(np.array([[token]]), dense.start()))).any()

    @pytest.mark.parametrize("arithmetic", ["lmul", "mitchell", "exact"])
    @pytest.mark.parametrize("division", [(1,) * 17, (5, 12), (16, 1)])
    def test_any_division_gives_the_same_bits(self, arithmetic, division):
        """Whole documents as matrices, pieces of them, and token by token."""
        lm = golden(random_model(), arithmetic)
        tokens = np.random.default_rng(8).integers(0, 30, (4, 17))
        state = lm.start(4)
        whole = lm.logits(lm.forward(tokens, state)).reshape(4, 17, -1)
        pieces_state = lm.start(4)
        pieces, done = [], 0
        for steps in division:
            hidden = lm.forward(tokens[:, done:done + steps], pieces_state)
            pieces.append(lm.logits(hidden).reshape(4, steps, -1))
            done += steps
        np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)
        np.testing.assert_array_equal(vectors(pieces_state), vectors(state))
        assert pieces_state.position == state.position == 17
        for document in range(4):
            alone_state = lm.start()
            alone = lm.logits(lm.forward(tokens[document:document + 1], alone_state))
            np.testing.assert_array_equal(alone, whole[document])
            np.testing.assert_array_equal(vectors(alone_state)[:, 0],
                                          vectors(state)[:, document])

    def test_part_of_hidden(self):
        lm = golden(random_model())
        hidden = lm.forward(np.arange(10).reshape(2, 5), lm.start(2))
        np.testing.assert_array_equal(lm.logits(hidden[3:7]), lm.logits(hidden)[3:7])

    @pytest.mark.parametrize("arithmetic", ["float", "exact_float32"])
    def test_float_against_the_textbook(self, arithmetic):
        """Float64, and the recurrence as the paper prints it."""
        model = random_model()
        lm = golden(model, arithmetic)
        tokens = np.random.default_rng(9).integers(0, 30, (1, 15))
        logits = lm.logits(lm.forward(tokens, lm.start()))

        def norm(x):
            return x / np.sqrt(np.mean(x * x))

        def sigmoid(x):
            return 1 / (1 + np.exp(-x))

        def codes(x):
            if arithmetic == "float":
                return x
            unit = 2.0 ** np.ceil(np.log2(np.abs(x).max() / 127))
            return np.rint(x / unit) * unit

        weights = [{field: getattr(layer, field).trits * getattr(layer, field).scale
                    for field in FIELDS} for layer in model.layers]
        states = [np.zeros(12) for _ in weights]
        for token, actual in zip(tokens[0], logits, strict=True):
            x = model.embedding[token] * model.embedding_scale
            for index, w in enumerate(weights):
                # The norm's scalar is none of the codes' business.
                u = codes(x) * np.abs(norm(x)).max() / np.abs(x).max()
                f = sigmoid(w["forget"] @ u + model.layers[index].forget_bias)
                c = w["candidate"] @ u
                c = c * sigmoid(c)
                g = w["gate"] @ u
                h = states[index] = f * states[index] + (1 - f) * c
                o = h * g * sigmoid(g)
                x = x + w["output"] @ codes(o) / np.sqrt(np.mean(h * h))
                u = codes(x) * np.abs(norm(x)).max() / np.abs(x).max()
                y = (w["ffn_up"] @ u) * np.maximum(w["ffn_gate"] @ u, 0)
                x = x + w["ffn_down"] @ codes(y)
            u = codes(x) * np.abs(norm(x)).max() / np.abs(x).max()
            expected = model.embedding @ u * model.logit_scales[arithmetic]
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)

    def test_arithmetics_agree_roughly(self):
        """With true products, only the rounding to bf16 and int8 is left."""
        model = random_model()
        tokens = np.random.default_rng(10).integers(0, 30, (1, 15))
        logits = {}
        for name in ARITHMETICS:
            lm = golden(model, name)
            logits[name] = lm.logits(lm.forward(tokens, lm.start()))
        spread = logits["float"].std()
        assert np.abs(logits["exact"] * (0.0390625 / 0.04) - logits["float"]).max() < spread
        assert not np.array_equal(logits["lmul"], logits["mitchell"])
        # There is no attention here.
        np.testing.assert_array_equal(logits["lmul_attention"], logits["exact"])

    def test_zero_vectors(self):
        """Zero embedding: codes, norms and logits are zero, and nothing divides by zero."""
        model = random_model()
        model.embedding[:] = 0
        for layer in model.layers:
            layer.forget_bias[:] = 0
        for name in ARITHMETICS:
            lm = golden(model, name)
            assert not lm.logits(lm.forward(np.zeros((1, 3), int), lm.start())).any()

    def test_other_logit_scale(self):
        model = random_model()
        lm = golden(model)
        hidden = lm.forward(np.array([[3, 4]]), lm.start())
        np.testing.assert_array_equal(lm.logits(hidden, 0.078125), 2 * lm.logits(hidden))

    def test_no_logit_scale(self):
        model = random_model()
        model.logit_scales.clear()
        lm = golden(model)
        with pytest.raises(ValueError, match=r"^Model has no logit scale for arithmetic 'lmul'; "
                                             r"fit it with 'python -m host evaluate --fit'$"):
            lm.logits(lm.forward(np.array([[3, 4]]), lm.start()))

    def test_matrices(self):
        model = random_model()
        matrices = model_matrices(model)
        assert len(matrices) == 3 * 7 + 1
        assert matrices["blk.2.ffn_down"] is model.layers[2].ffn_down.trits
        assert matrices["head"] is model.embedding
