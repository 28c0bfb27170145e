"""Arithmetics: what a network does with numbers, docs/numerics.md, section 6.

:class:`Bf16Arithmetic` with L-Mul is the definition of what the hardware computes,
:class:`FloatArithmetic` is what it approximates. The norm's factor ``sqrt(elements)`` is part of
the constants, so that their inverse norm is ``1 / sqrt(sum of squares)``, and 0 for a zero
vector.

Vectors are rows: arrays of shape (tokens, elements). bf16 numbers are ``uint16`` bits.
"""

import functools
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from hw.formats.minifloat import bf16, e4m3, fp32
from sim.golden.attention import attend_sequence, from_cache, to_cache
from sim.golden.bf16 import SIGN_BIT, add, from_float, subtract, to_float32
from sim.golden.dequantize import scale
from sim.golden.function_table import rsqrt_table, sigmoid_table, silu_table
from sim.golden.lmul import exact_product, lmul, lmul_dot
from sim.golden.quantizer import Codes, quantize

__all__ = ["ARITHMETICS", "Arithmetic", "Bf16Arithmetic", "FloatArithmetic", "lmul_factor"]


@functools.cache
def _mean_gains(offset: int | None) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Magnitudes of the bf16 numbers from 1/4 to 4, and by what each multiplies under L-Mul.

    That is ``lmul(x, factor) / x``, averaged over the mantissas of ``x``.
    """
    magnitudes = np.arange(bf16.one - 256, bf16.one + 256)
    x = (bf16.one + np.arange(128)).astype(np.uint16)
    products = lmul(bf16, x, magnitudes.astype(np.uint16)[:, np.newaxis], offset=offset)
    return magnitudes, (to_float32(products).astype(np.float64) / to_float32(x)).mean(axis=1)


def lmul_factor(values: NDArray, offset: int | None = None) -> NDArray[np.uint16]:
    """Choose constants to multiply by with L-Mul: bf16 numbers that multiply by ``values``.

    L-Mul by a constant is wrong by a gain that depends on both mantissas. Of the bf16 numbers this
    takes the one whose gain, averaged over the other mantissa, is nearest; powers of two are exact.
    """
    magnitudes, gains = _mean_gains(offset)
    significands, exponents = np.frexp(np.abs(np.asarray(values, np.float64)))
    nearest = np.searchsorted((gains[1:] + gains[:-1]) / 2, 2 * significands)
    found = magnitudes[nearest] + ((exponents - 1) << bf16.mantissa_bits)
    if (found > bf16.largest_finite).any() or not np.isfinite(significands).all():
        raise OverflowError("Factors must be finite bf16 numbers")
    found = np.where((significands == 0) | (found < bf16.smallest_normal), 0, found)
    return found.astype(np.uint16) | np.where(np.signbit(values), SIGN_BIT, np.uint16(0))


Elementwise = Callable[[NDArray, NDArray], NDArray]

#: Attention of queries, shape (documents, steps, heads, elements), to keys and values, shape
#: (documents, tokens, shared heads, elements): query ``i`` to all tokens but the last
#: ``steps - 1 - i``. The result has the shape of the queries.
Attention = Callable[[NDArray, NDArray, NDArray], NDArray]


def _float_attention(queries: NDArray, keys: NDArray, values: NDArray) -> NDArray:
    """Attention in the type of its operands, with true products."""
    documents, steps, heads, elements = queries.shape
    tokens, shared = keys.shape[1:3]
    # To (documents, shared heads, queries of one, elements): products of matrices.
    split = queries.reshape(documents, steps, shared, heads // shared, elements)
    split = split.transpose(0, 2, 3, 1, 4).reshape(documents, shared, -1, elements)
    octaves = split @ keys.transpose(0, 2, 3, 1)
    last = tokens - steps + np.tile(np.arange(steps), heads // shared)
    octaves[..., np.arange(tokens) > last[:, np.newaxis]] = -np.inf
    weights = np.exp2(octaves - octaves.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed = (weights @ values.transpose(0, 2, 1, 3)).reshape(documents, heads, steps, elements)
    return mixed.transpose(0, 2, 1, 3)


def _lmul_attention(queries: NDArray, keys: NDArray, values: NDArray) -> NDArray[np.uint16]:
    """Attend as the hardware does: docs/numerics.md, section 10."""
    return np.stack([attend_sequence(*document)
                     for document in zip(queries, keys, values, strict=True)])


def _exact_attention(queries: NDArray, keys: NDArray, values: NDArray) -> NDArray[np.uint16]:
    """Attention of bf16 numbers, rounded once."""
    return from_float(_float_attention(*(to_float32(x).astype(np.float64)
                                         for x in (queries, keys, values))))


class Bf16Arithmetic:
    """bf16 vectors, int8 codes, exact integer products of matrices.

    Parameters
    ----------
    name : str
    multiply : callable
        Product of two bf16 arrays, element by element.
    square_sum : callable
        Sum of the squares of the last axis of a bf16 array, as bf16.
    factor : callable
        Constants of the model that vectors are multiplied by, as bf16.
    attend : callable
        Attention of bf16 arrays.

    Attributes
    ----------
    vectors, activations : str
        Format of the elements of vectors, and of what a matrix is multiplied by.
    """

    codes = staticmethod(quantize)
    vectors, activations = "bf16", "int8"

    def __init__(self, name: str, multiply: Elementwise, square_sum: Callable[[NDArray], NDArray],
                 factor: Callable[[NDArray], NDArray], attend: Attention):
        self.name = name
        self.attend = attend
        self.factor = factor
        self.add: Elementwise = add
        self.subtract: Elementwise = subtract
        self.multiply = multiply
        self._square_sum = square_sum

    def constant(self, value: float | NDArray) -> NDArray:
        """Round constants of the model."""
        return from_float(np.asarray(value, np.float64))

    def embed(self, integers: NDArray, constant: NDArray) -> NDArray:
        """Scale rows of the embedding."""
        rows = integers.shape[:-1]
        return scale(integers, np.broadcast_to(constant, rows), np.zeros(rows, np.int32))

    def inverse_norm(self, x: NDArray, epsilon: float = 0.0) -> NDArray:
        """Look up the reciprocal square root of the sum of squares; nothing is added to it."""
        return rsqrt_table()[self._square_sum(x)]

    def scale(self, product: NDArray, codes: Codes, constant: NDArray,
              inverse_norm: NDArray | None = None) -> NDArray:
        """Scale matrix products of ``codes``; the product of the scalars is rounded once."""
        factors = constant if inverse_norm is None else exact_product(bf16, constant, inverse_norm)
        return scale(product, np.broadcast_to(factors, codes.exponents.shape), codes.exponents)

    def logits(self, product: NDArray, codes: Codes, constant: NDArray,
               inverse_norm: NDArray) -> NDArray:
        """Scale the head's products and round nothing: 20 + 8 bits in float64."""
        factors = to_float32(exact_product(bf16, constant, inverse_norm)).astype(np.float64)
        return product * np.ldexp(factors, codes.exponents)[..., np.newaxis]

    def sigmoid_of_negative(self, x: NDArray) -> NDArray:
        """Look up ``1 / (1 + exp(x))``."""
        return sigmoid_table()[x ^ SIGN_BIT]

    def silu(self, x: NDArray) -> NDArray:
        """Look up ``x / (1 + exp(-x))``."""
        return silu_table()[x]

    def relu(self, x: NDArray) -> NDArray:
        """Replace negative numbers by zero."""
        return np.where(x & SIGN_BIT, np.uint16(0), x)

    def cached(self, x: NDArray, cache: str) -> NDArray:
        """Return the bf16 numbers that are read from a cache in which ``x`` was written."""
        return from_cache(to_cache(x, cache))


def _quantize_float32(x: NDArray[np.float32]) -> Codes:
    """Do as :func:`quantize` with float32 vectors."""
    mantissas, exponents = np.frexp(np.abs(x).max(axis=-1))
    if not np.isfinite(mantissas).all():
        raise OverflowError("Activations must be finite, but a vector holds an infinity or a NaN")
    exponents = np.where(mantissas == 0, 0, exponents - 7 + (mantissas > 127 / 128))
    values = np.rint(np.ldexp(x, -exponents[..., np.newaxis])).astype(np.int8)
    return Codes(values, exponents.astype(np.int32))


def _to_float32(values: NDArray) -> NDArray[np.float32]:
    return values.astype(np.float32)


def _lmul_float32(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    """L-Mul of float32 bits, with the same offset of 1/16."""
    return lmul(fp32, x.view(np.uint32), y.view(np.uint32)).view(np.float32)


class FloatArithmetic:
    """float32 vectors: what bf16 approximates. The methods are those of :class:`Bf16Arithmetic`.

    Parameters
    ----------
    name : str
    multiply : callable
        Product of two float32 arrays, element by element.
    factor : callable
        Constants of the model that vectors are multiplied by, as float32.
    quantized : bool
        Vectors become int8 codes in front of a matrix; otherwise they are taken as they are.
    """

    vectors = "float32"
    attend: Attention = staticmethod(_float_attention)

    def __init__(self, name: str, multiply: Elementwise = np.multiply,
                 factor: Callable[[NDArray], NDArray] = _to_float32, *, quantized: bool):
        self.name = name
        self.factor = factor
        self.add: Elementwise = np.add
        self.subtract: Elementwise = np.subtract
        self.multiply = multiply
        self.activations = "int8" if quantized else "float32"

    def constant(self, value: float | NDArray) -> NDArray:
        """Round constants of the model."""
        return np.asarray(value, np.float32)

    def embed(self, integers: NDArray, constant: NDArray) -> NDArray:
        """Scale rows of the embedding."""
        return integers * constant

    def codes(self, x: NDArray) -> Codes:
        """Quantize vectors, or pass them on as they are."""
        if self.activations == "int8":
            return _quantize_float32(x)
        return Codes(x, np.zeros(x.shape[:-1], np.int32))

    def inverse_norm(self, x: NDArray, epsilon: float = 0.0) -> NDArray:
        """Compute the reciprocal Euclidean norm, with epsilon in the mean of the squares."""
        squares = self.multiply(x, x).sum(axis=-1, dtype=np.float64)
        norm = np.sqrt(squares + epsilon * x.shape[-1]).astype(np.float32)
        return np.divide(1, norm, where=norm > 0, out=np.zeros_like(norm))

    def scale(self, product: NDArray, codes: Codes, constant: NDArray,
              inverse_norm: NDArray | None = None) -> NDArray:
        """Scale matrix products."""
        factors = constant if inverse_norm is None else constant * inverse_norm
        return product.astype(np.float32) * np.ldexp(factors, codes.exponents)[..., np.newaxis]

    logits = scale

    def sigmoid_of_negative(self, x: NDArray) -> NDArray:
        """Compute ``1 / (1 + exp(x))``."""
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(x))

    def silu(self, x: NDArray) -> NDArray:
        """Compute ``x / (1 + exp(-x))``."""
        return x * self.sigmoid_of_negative(-x)

    def relu(self, x: NDArray) -> NDArray:
        """Replace negative numbers by zero."""
        return np.maximum(x, 0)

    def cached(self, x: NDArray, cache: str) -> NDArray:
        """Return what is read from a cache in which ``x`` was written; bf16 rounds nothing here."""
        return x if cache == "bf16" else _round_to_e4m3(x)


def _round_to_e4m3(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to nearest even with saturation; what is below the smallest normal number is zero."""
    _, exponents = np.frexp(x)
    unit = np.ldexp(np.float32(1), exponents - 1 - e4m3.mantissa_bits)
    rounded = np.clip(np.rint(x / unit) * unit, -448, 448)
    return np.where(np.abs(rounded) < 2.0 ** (1 - e4m3.bias), 0, rounded).astype(np.float32)


Arithmetic = Bf16Arithmetic | FloatArithmetic


def _exact_square_sum(x: NDArray[np.uint16]) -> NDArray[np.uint16]:
    return from_float(np.square(to_float32(x).astype(np.float64)).sum(axis=-1))


_EVERY_ARITHMETIC: tuple[Arithmetic, ...] = (
    Bf16Arithmetic("lmul", functools.partial(lmul, bf16), lambda x: lmul_dot(bf16, x, x),
                   lmul_factor, _lmul_attention),
    Bf16Arithmetic("mitchell", functools.partial(lmul, bf16, offset=0),
                   lambda x: lmul_dot(bf16, x, x, offset=0),
                   functools.partial(lmul_factor, offset=0), _lmul_attention),
    Bf16Arithmetic("lmul_attention", functools.partial(exact_product, bf16), _exact_square_sum,
                   from_float, _lmul_attention),
    Bf16Arithmetic("exact", functools.partial(exact_product, bf16), _exact_square_sum,
                   from_float, _exact_attention),
    FloatArithmetic("lmul_float32", _lmul_float32, lambda values: to_float32(lmul_factor(values)),
                    quantized=True),
    FloatArithmetic("exact_float32", quantized=True),
    FloatArithmetic("float", quantized=False),
)

#: Every arithmetic by name. ``lmul`` is the definition of the model; the others are for comparison:
#: ``mitchell`` is L-Mul without its offset (but for attention), ``exact`` has true products rounded
#: to bf16, ``lmul_attention`` those everywhere but in attention, the ``float32`` ones keep vectors
#: in float32 and attend exactly, and ``float`` does not quantize them either.
ARITHMETICS: Mapping[str, Arithmetic] = {arithmetic.name: arithmetic
                                         for arithmetic in _EVERY_ARITHMETIC}
