# Ref: R. Zhu et al., "Scalable MatMul-free Language Modeling", 2024
# Id: arXiv:2406.02528

"""The MatMul-free language model on golden functions: docs/numerics.md, section 6.

:class:`GoldenLM` is the network, written once: for one token or many documents at a time, with any
arithmetic, and with the matrix products computed by whoever is asked to. An **arithmetic** is what
the network does with numbers: :class:`Bf16Arithmetic` with L-Mul is the definition of what the
hardware computes, :class:`FloatArithmetic` is what it approximates.

Vectors are rows: arrays of shape (tokens, elements). bf16 numbers are ``uint16`` bits.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hw.formats.minifloat import bf16
from sim.golden.bf16 import add, from_float, subtract, to_float32
from sim.golden.lmul import exact_product, lmul, lmul_dot

__all__ = ["ARITHMETICS", "Arithmetic", "Bf16Arithmetic", "Codes", "ExactProducts",
           "FloatArithmetic", "GoldenLM", "LISTS", "model_matrices", "quantize", "rsqrt_table",
           "scale", "sigmoid_table", "silu_table"]

_SIGN = np.uint16(0x8000)
_BLOCK = 1 << 15        # elements of a block whose temporaries fit a cache
_EVERY_BF16 = np.arange(1 << 16, dtype=np.uint16)


# Functions of one argument, as tables over all bf16 numbers.

def _float64_of_every_bf16() -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):     # signalling NaNs
        return to_float32(_EVERY_BF16).astype(np.float64)


@functools.cache
def sigmoid_table() -> NDArray[np.uint16]:
    """Compute ``1 / (1 + exp(-x))`` of every bf16 number, correctly rounded."""
    with np.errstate(over="ignore"):
        return from_float(1 / (1 + np.exp(-_float64_of_every_bf16())))


@functools.cache
def silu_table() -> NDArray[np.uint16]:
    """Compute ``x / (1 + exp(-x))`` of every bf16 number, correctly rounded; 0 at -infinity."""
    x = _float64_of_every_bf16()
    with np.errstate(over="ignore", invalid="ignore"):
        values = x / (1 + np.exp(-x))
    return from_float(np.where(x == -np.inf, -0.0, values))


@functools.cache
def rsqrt_table() -> NDArray[np.uint16]:
    """Compute ``1 / sqrt(x)`` of every bf16 number, correctly rounded; 0 at 0, NaN below."""
    x = _float64_of_every_bf16()
    with np.errstate(divide="ignore", invalid="ignore"):
        return from_float(np.where(x == 0, 0, 1 / np.sqrt(x)))


# Q and S of docs/numerics.md.

@dataclasses.dataclass(frozen=True, eq=False)
class Codes:
    """Vectors as the engine takes them: ``values * 2**exponents``.

    Attributes
    ----------
    values : array, shape (tokens, elements)
        int8, at most 127 in magnitude; float32 where nothing is quantized.
    exponents : int array, shape (tokens,)
    """

    values: NDArray
    exponents: NDArray[np.int32]


def quantize(x: NDArray[np.uint16]) -> Codes:
    """Round bf16 vectors to int8 codes with a power-of-two scale each: ``Q``.

    The exponent is the smallest ``k`` with ``max|x| <= 127 * 2**k``. Since ``127 * 2**k`` has the
    mantissa field 126, this is the exponent of the largest number, less 6, plus one if its mantissa
    field is 127: no comparison but an increment. A zero vector has ``k = 0``.

    Raises
    ------
    OverflowError
        If an element is infinite or NaN.
    """
    largest = (x & ~_SIGN).max(axis=-1).astype(np.int32)
    if (largest >= bf16.infinity).any():
        raise OverflowError("Activations must be finite, but a vector holds an infinity or a NaN")
    zero = largest < bf16.smallest_normal
    exponents = np.where(zero, 0, ((largest + 1) >> bf16.mantissa_bits) - bf16.bias - 6)
    # Exact: a power of two, and float64 where float32 could not hold it.
    factors = np.ldexp(1.0, -exponents)[..., np.newaxis]
    if (exponents > -126).all():
        factors = factors.astype(np.float32)
    return Codes(np.rint(to_float32(x) * factors).astype(np.int8), exponents.astype(np.int32))


def scale(accumulators: NDArray[np.int32], factors: NDArray[np.uint16],
          exponents: NDArray[np.int32]) -> NDArray[np.uint16]:
    """Scale integers by a bf16 number and a power of two for each vector, rounding once: ``S``.

    The integers have at most 32 bits and the factor has 8, so that float64 holds the product
    exactly. Hardware adds at most 5 shifted copies of the integer: the factor's significand in
    signed digits.
    """
    exact = np.ldexp(to_float32(factors).astype(np.float64), exponents)
    scaled = np.empty(accumulators.shape, np.uint16)
    vectors = max(1, _BLOCK // accumulators.shape[-1])
    for first in range(0, len(scaled), vectors):
        block = slice(first, first + vectors)
        scaled[block] = from_float(accumulators[block] * exact[block, np.newaxis])
    return scaled


# Arithmetics: what the network does with numbers. The norm's factor sqrt(elements) is part of the
# constants, so that their inverse norm is 1 / sqrt(sum of squares), and 0 for a zero vector.

Elementwise = Callable[[NDArray, NDArray], NDArray]


class Bf16Arithmetic:
    """bf16 vectors, int8 codes, exact integer products.

    Parameters
    ----------
    name : str
    multiply : callable
        Product of two bf16 arrays, element by element.
    square_sum : callable
        Sum of the squares of the last axis of a bf16 array, as bf16.
    """

    codes = staticmethod(quantize)

    def __init__(self, name: str, multiply: Elementwise, square_sum: Callable[[NDArray], NDArray]):
        self.name = name
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

    def inverse_norm(self, x: NDArray) -> NDArray:
        """Look up the reciprocal square root of the sum of squares."""
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
        return sigmoid_table()[x ^ _SIGN]

    def silu(self, x: NDArray) -> NDArray:
        """Look up ``x / (1 + exp(-x))``."""
        return silu_table()[x]

    def relu(self, x: NDArray) -> NDArray:
        """Replace negative numbers by zero."""
        return np.where(x & _SIGN, np.uint16(0), x)


class FloatArithmetic:
    """float32 vectors that are never quantized, and true products: what bf16 and L-Mul approximate.

    The methods are those of :class:`Bf16Arithmetic`.
    """

    name = "float"

    def __init__(self):
        self.add: Elementwise = np.add
        self.subtract: Elementwise = np.subtract
        self.multiply: Elementwise = np.multiply

    def constant(self, value: float | NDArray) -> NDArray:
        """Round constants of the model."""
        return np.asarray(value, np.float32)

    def embed(self, integers: NDArray, constant: NDArray) -> NDArray:
        """Scale rows of the embedding."""
        return integers * constant

    def codes(self, x: NDArray) -> Codes:
        """Pass vectors on as they are."""
        return Codes(x, np.zeros(x.shape[:-1], np.int32))

    def inverse_norm(self, x: NDArray) -> NDArray:
        """Compute the reciprocal Euclidean norm."""
        norm = np.sqrt(np.square(x).sum(axis=-1))
        return np.divide(1, norm, where=norm > 0, out=np.zeros_like(norm))

    def scale(self, product: NDArray, codes: Codes, constant: NDArray,
              inverse_norm: NDArray | None = None) -> NDArray:
        """Scale matrix products."""
        if inverse_norm is None:
            return product * constant
        return product * (constant * inverse_norm)[..., np.newaxis]

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


Arithmetic = Bf16Arithmetic | FloatArithmetic


def _exact_square_sum(x: NDArray[np.uint16]) -> NDArray[np.uint16]:
    return from_float(np.square(to_float32(x).astype(np.float64)).sum(axis=-1))


_BF16_ARITHMETICS = (
    Bf16Arithmetic("lmul", functools.partial(lmul, bf16), lambda x: lmul_dot(bf16, x, x)),
    Bf16Arithmetic("mitchell", functools.partial(lmul, bf16, offset=0),
                   lambda x: lmul_dot(bf16, x, x, offset=0)),
    Bf16Arithmetic("exact", functools.partial(exact_product, bf16), _exact_square_sum),
)

#: Every arithmetic by name. ``lmul`` is the definition of the model; the others are for comparison:
#: ``mitchell`` is L-Mul without its offset, ``exact`` has true products rounded to bf16.
ARITHMETICS: Mapping[str, Arithmetic] = {
    **{arithmetic.name: arithmetic for arithmetic in _BF16_ARITHMETICS},
    FloatArithmetic.name: FloatArithmetic()}


# The network.

class Model(Protocol):
    """What the golden model needs of a model file; ``host.model.TernaryLM`` is one."""

    @property
    def embedding(self) -> NDArray[np.int8]:
        """Integers of the embedding and head, shape (vocabulary, width)."""

    @property
    def embedding_scale(self) -> float:
        """Scale of the embedding."""

    @property
    def layers(self) -> Sequence[Any]:
        """Matrices of each layer, as ``host.model.Layer``."""

    @property
    def logit_scales(self) -> Mapping[str, float]:
        """Scale of the head for each arithmetic."""


_MATRICES = ("forget", "candidate", "gate", "output", "ffn_gate", "ffn_up", "ffn_down")


#: The lists of a layer, each with the matrices that it drives.
LISTS: Mapping[str, tuple[str, ...]] = {
    "mix_in": ("forget", "candidate", "gate"), "mix_out": ("output",),
    "ffn_in": ("ffn_gate", "ffn_up"), "ffn_hidden": ("ffn_down",)}


def model_matrices(model: Model) -> dict[str, NDArray[np.int8]]:
    """Integers of every matrix of a model, by the name under which products are asked for."""
    matrices = {f"blk.{index}.{field}": getattr(layer, field).trits
                for index, layer in enumerate(model.layers) for field in _MATRICES}
    return matrices | {"embedding": model.embedding}


class ExactProducts:
    """Matrix products by BLAS: exact integers for int8 activations.

    A sum of integers is exact in floating point in any order, if the magnitudes of its terms add up
    to no more than ``2**24`` (float32) or ``2**53`` (float64). Each matrix is kept in the smallest
    type for which that is true.

    Parameters
    ----------
    matrices : mapping of name to integer array, shape (rows, columns)
    """

    def __init__(self, matrices: Mapping[str, NDArray[np.integer]]):
        self._transposed = {}
        for name, weights in matrices.items():
            bound = 128 * int(np.abs(weights.astype(np.int64)).sum(axis=1).max())
            dtype = np.float32 if bound <= 2 ** 24 else np.float64
            self._transposed[name] = np.ascontiguousarray(weights.T, dtype)

    def __call__(self, name: str, activations: NDArray) -> NDArray:
        """Rows ``activations[b] @ W.T``: int32 for int8 activations, float32 for float32 ones."""
        weights = self._transposed[name]
        product = activations.astype(weights.dtype) @ weights
        return product.astype(np.int32 if activations.dtype == np.int8 else np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Hidden:
    """What the head needs of each token; indexed by tokens."""

    codes: Codes
    inverse_norm: NDArray

    def __getitem__(self, tokens: slice | NDArray) -> "Hidden":
        return Hidden(Codes(self.codes.values[tokens], self.codes.exponents[tokens]),
                      self.inverse_norm[tokens])


class GoldenLM:
    """A ternary MatMul-free language model, run.

    Parameters
    ----------
    model : Model
    arithmetic : Arithmetic
    products : callable
        Matrix products by name, as :class:`ExactProducts`; a device fits as well.
    gates : mapping of (layer, list) to callable, optional
        What sets some of the codes of a list to zero: :class:`sim.golden.wina.Gate`. Lists are
        those of :data:`LISTS`; one that is missing is not gated.
    """

    def __init__(self, model: Model, arithmetic: Arithmetic,
                 products: Callable[[str, NDArray], NDArray],
                 gates: Mapping[tuple[int, str], Callable[[NDArray], NDArray]] | None = None):
        self.arithmetic = arithmetic
        self.products = products
        self.gates = {} if gates is None else gates
        self.width = model.embedding.shape[1]
        # The factor sqrt(elements) of each norm is part of the constant behind it.
        self._root = root = math.sqrt(self.width)
        constant = arithmetic.constant
        self._embedding = arithmetic.embed(model.embedding, constant(model.embedding_scale))
        self._constants = [
            {field: constant(getattr(layer, field).scale * (1 if field == "ffn_down" else root))
             for field in _MATRICES} for layer in model.layers]
        self._biases = [constant(layer.forget_bias) for layer in model.layers]
        self._logit_scale = model.logit_scales.get(arithmetic.name)

    def start(self, documents: int = 1) -> NDArray:
        """State before the first token of each document, shape (layers, documents, width)."""
        return np.zeros((len(self._constants), documents, self.width), self._embedding.dtype)

    def forward(self, tokens: NDArray[np.integer], state: NDArray) -> Hidden:
        """Read tokens.

        All that does not depend on the time is computed for all tokens at once; only the recurrence
        goes step by step. The result is the same for any division into calls.

        Parameters
        ----------
        tokens : integer array, shape (documents, steps)
        state : array, shape (layers, documents, width)
            Of :meth:`start`; brought up to the last step.

        Returns
        -------
        Hidden
            Of ``documents * steps`` tokens, document by document.
        """
        x = self._embedding[tokens.reshape(-1)]
        for index in range(len(self._constants)):
            x = self._mix(index, x, state[index], tokens.shape)
            x = self._feed_forward(index, x)
        return Hidden(self.arithmetic.codes(x), self.arithmetic.inverse_norm(x))

    def logits(self, hidden: Hidden, logit_scale: float | None = None) -> NDArray[np.floating]:
        """Logits of the token that follows, shape (tokens, vocabulary).

        Parameters
        ----------
        hidden : Hidden
        logit_scale : float, optional
            The head's constant; by default that of the model for this arithmetic.

        Raises
        ------
        ValueError
            If no constant is given and the model has none.
        """
        logit_scale = logit_scale or self._logit_scale
        if logit_scale is None:
            raise ValueError(f"Model has no logit scale for arithmetic {self.arithmetic.name!r}; "
                             f"fit it with 'python -m host evaluate --fit'")
        product = self.products("embedding", hidden.codes.values)
        return self.arithmetic.logits(product, hidden.codes,
                                      self.arithmetic.constant(logit_scale * self._root),
                                      hidden.inverse_norm)

    def _codes(self, index, name, x):
        """Quantize what a list is made of, and gate it."""
        codes = self.arithmetic.codes(x)
        if (index, name) not in self.gates:
            return codes
        return Codes(self.gates[index, name](codes.values), codes.exponents)

    def _linear(self, index, field, codes, inverse_norm=None):
        product = self.products(f"blk.{index}.{field}", codes.values)
        return self.arithmetic.scale(product, codes, self._constants[index][field], inverse_norm)

    def _mix(self, index, x, state, shape):
        """Token mixer: the MLGRU."""
        ar = self.arithmetic
        codes, norm = self._codes(index, "mix_in", x), ar.inverse_norm(x)
        forget = ar.add(self._linear(index, "forget", codes, norm), self._biases[index])
        update = ar.sigmoid_of_negative(forget).reshape(*shape, self.width)
        candidate = ar.silu(self._linear(index, "candidate", codes, norm))
        candidate = candidate.reshape(*shape, self.width)
        gate = ar.silu(self._linear(index, "gate", codes, norm))
        states = np.empty_like(candidate)
        for step in range(shape[1]):
            # The difference form: f * h + (1 - f) * c diverges under L-Mul's gain error.
            change = ar.multiply(update[:, step], ar.subtract(candidate[:, step], state))
            state[:] = states[:, step] = ar.add(state, change)
        states = states.reshape(x.shape)
        codes = self._codes(index, "mix_out", ar.multiply(states, gate))
        return ar.add(x, self._linear(index, "output", codes, ar.inverse_norm(states)))

    def _feed_forward(self, index, x):
        """Channel mixer: a gated network whose ReLU makes most of the hidden vector zero."""
        ar = self.arithmetic
        codes, norm = self._codes(index, "ffn_in", x), ar.inverse_norm(x)
        gate = ar.relu(self._linear(index, "ffn_gate", codes, norm))
        up = self._linear(index, "ffn_up", codes, norm)
        codes = self._codes(index, "ffn_hidden", ar.multiply(up, gate))
        return ar.add(x, self._linear(index, "ffn_down", codes))
