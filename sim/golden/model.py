"""Language models on golden functions: docs/numerics.md, section 6.

:class:`GoldenLM` evaluates a :class:`sim.golden.graph.Network`: for one token or many documents
at a time, with any arithmetic, and with the matrix products computed by whoever is asked to. An
**arithmetic** is what a network does with numbers: :class:`Bf16Arithmetic` with L-Mul is the
definition of what the hardware computes, :class:`FloatArithmetic` is what it approximates.

Vectors are rows: arrays of shape (tokens, elements). bf16 numbers are ``uint16`` bits.
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hw.formats.minifloat import bf16, e4m3, fp32
from sim.golden.bf16 import add, from_float, subtract, to_float32
from sim.golden.graph import Kind, Network, Value
from sim.golden.lmul import exact_product, lmul, lmul_dot

__all__ = ["ARITHMETICS", "Arithmetic", "Bf16Arithmetic", "Cache", "Codes", "ExactProducts",
           "FloatArithmetic", "GoldenLM", "Hidden", "Model", "State", "lmul_factor",
           "model_matrices", "quantize", "rsqrt_table", "scale", "sigmoid_table", "silu_table"]

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
    return found.astype(np.uint16) | np.where(np.signbit(values), _SIGN, np.uint16(0))


# Arithmetics: what the network does with numbers. The norm's factor sqrt(elements) is part of the
# constants, so that their inverse norm is 1 / sqrt(sum of squares), and 0 for a zero vector.

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
    from sim.golden.attention import attend_sequence  # which needs this module
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
        return sigmoid_table()[x ^ _SIGN]

    def silu(self, x: NDArray) -> NDArray:
        """Look up ``x / (1 + exp(-x))``."""
        return silu_table()[x]

    def relu(self, x: NDArray) -> NDArray:
        """Replace negative numbers by zero."""
        return np.where(x & _SIGN, np.uint16(0), x)

    def cached(self, x: NDArray, cache: str) -> NDArray:
        """Return the bf16 numbers that are read from a cache in which ``x`` was written."""
        from sim.golden.attention import from_cache, to_cache  # which need this module
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


# The network.

class Model(Protocol):
    """What the golden model needs of a model; ``host.models.base.LanguageModel`` is one."""

    @property
    def logit_scales(self) -> Mapping[str, float]:
        """Scale of the head for each arithmetic."""

    def network(self) -> Network:
        """Describe what a token goes through."""


def model_matrices(model: Model) -> dict[str, NDArray]:
    """Weights of every matrix that a model multiplies codes by, by its name."""
    return {step.weights.name: step.weights.weights for step in model.network()
            if step.kind in (Kind.LINEAR, Kind.HEAD)}


class ExactProducts:
    """Matrix products by BLAS: exact integers for int8 activations.

    A sum of integers is exact in floating point in any order, if the magnitudes of its terms add up
    to no more than ``2**24`` (float32) or ``2**53`` (float64). Each matrix is kept in the smallest
    type for which that is true. Matrices of the float reference stay float32.

    Parameters
    ----------
    matrices : mapping of name to array, shape (rows, columns)
    """

    def __init__(self, matrices: Mapping[str, NDArray]):
        self._transposed = {}
        for name, weights in matrices.items():
            bound = 0
            if np.issubdtype(weights.dtype, np.integer):
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


class Cache:
    """Vectors of all tokens of some documents, which grow by a piece at a time.

    Attributes
    ----------
    rows : array, shape (documents, tokens, elements)
    """

    def __init__(self, documents: int, elements: int, dtype: np.dtype):
        self._room = np.empty((documents, 0, elements), dtype)
        self.rows = self._room

    def append(self, rows: NDArray) -> NDArray:
        """Add the vectors of some tokens; return those of all."""
        documents, tokens, elements = self.rows.shape
        end = tokens + rows.shape[1]
        if end > self._room.shape[1]:
            self._room = np.empty((documents, 2 * end, elements), rows.dtype)
            self._room[:, :tokens] = self.rows
        self._room[:, tokens:end] = rows
        self.rows = self._room[:, :end]
        return self.rows

    def first(self, documents: int) -> "Cache":
        """Return the cache of the first documents."""
        part = copy.copy(self)
        part._room, part.rows = self._room[:documents], self.rows[:documents]
        return part


@dataclasses.dataclass(eq=False)
class State:
    """What a model knows of the tokens so far of each document.

    Attributes
    ----------
    vectors : dict of RECURRENCE to array, shape (documents, elements)
    caches : dict of APPEND to Cache
    position : int
        Tokens so far.
    """

    vectors: dict[Value, NDArray]
    caches: dict[Value, Cache]
    position: int = 0

    def first(self, documents: int) -> "State":
        """Return the state of the first documents; the others are not to be read any more."""
        return State({step: vector[:documents] for step, vector in self.vectors.items()},
                     {step: cache.first(documents) for step, cache in self.caches.items()},
                     self.position)


class GoldenLM:
    """A language model, run.

    Parameters
    ----------
    model : Model
    arithmetic : Arithmetic
    products : callable
        Matrix products by name, as :class:`ExactProducts`; a device fits as well.
    gates : mapping of label to callable, optional
        What sets some of the codes of a list to zero: :class:`sim.golden.wina.Gate`. A list whose
        :attr:`sim.golden.graph.Value.label` is missing is not gated.
    """

    def __init__(self, model: Model, arithmetic: Arithmetic,
                 products: Callable[[str, NDArray], NDArray],
                 gates: Mapping[str, Callable[[NDArray], NDArray]] | None = None):
        self.arithmetic = arithmetic
        self.products = products
        self.gates = {} if gates is None else gates
        *self._steps, self._head = model.network()
        if self._head.kind is not Kind.HEAD:
            raise ValueError(f"The last step of a network must be HEAD, "
                             f"not {self._head.kind.name}")
        self._constants = {step: self._constant(step) for step in self._steps
                           if step.kind in (Kind.EMBEDDING, Kind.CONSTANT, Kind.POSITION,
                                            Kind.LINEAR)}
        #: Largest number of tokens of a document, None if there is no limit.
        self.context = min((step.context for step in self._steps if step.kind is Kind.APPEND),
                           default=None)
        self._logit_scale = model.logit_scales.get(arithmetic.name)
        # Vectors are dropped behind the step that reads them last.
        self._dropped: dict[Value, list[Value]] = {step: [] for step in self._steps}
        last = {operand: step for step in self._steps for operand in step.operands}
        for operand, step in last.items():
            if operand not in self._head.operands:
                self._dropped[step].append(operand)

    def _constant(self, step: Value) -> NDArray:
        """Return numbers of the model that a step needs, as the arithmetic has them."""
        ar = self.arithmetic
        if step.constant is not None:       # of CONSTANT and POSITION
            return (ar.factor if step.factor else ar.constant)(step.constant)
        if step.kind is Kind.EMBEDDING:
            return ar.embed(step.weights.weights.T, ar.constant(step.weights.scale))
        return ar.constant(step.weights.scale * _root(step))

    def start(self, documents: int = 1) -> State:
        """State before the first token of each document."""
        dtype = self.arithmetic.constant(0.0).dtype
        return State({step: np.zeros((documents, step.elements), dtype) for step in self._steps
                      if step.kind is Kind.RECURRENCE},
                     {step: Cache(documents, step.elements, dtype) for step in self._steps
                      if step.kind is Kind.APPEND})

    def forward(self, tokens: NDArray[np.integer], state: State) -> Hidden:
        """Read tokens.

        All that does not depend on the time is computed for all tokens at once; only the recurrence
        goes step by step. The result is the same for any division into calls.

        Parameters
        ----------
        tokens : integer array, shape (documents, steps)
        state : State
            Of :meth:`start`, for as many documents; brought up to the last step.

        Returns
        -------
        Hidden
            Of ``documents * steps`` tokens, document by document.

        Raises
        ------
        OverflowError
            If the context has no room for the tokens, or a vector is not finite.
        """
        end = state.position + tokens.shape[1]
        if self.context is not None and end > self.context:
            raise OverflowError(f"Context must have at most {self.context} tokens, not {end}")
        values: dict[Value, Any] = {}
        self.execute(self._steps, values, tokens, state)
        state.position = end
        codes, norm = (values[operand] for operand in self._head.operands)
        assert isinstance(codes, Codes)
        assert isinstance(norm, np.ndarray)
        return Hidden(codes, norm)

    def parts(self) -> dict[str, list[Value]]:
        """Return the steps of each part of the model, in order, but for the last step of all."""
        found: dict[str, list[Value]] = {}
        for step in self._steps:
            found.setdefault(step.part, []).append(step)
        return found

    def execute(self, steps: Sequence[Value], values: dict[Value, Any],
                tokens: NDArray[np.integer], state: State) -> None:
        """Execute some steps.

        Parameters
        ----------
        steps : sequence of Value
        values : dict
            What the steps before have computed; changed to what the steps after them read.
        tokens : integer array, shape (documents, steps)
        state : State
            What belongs to ``steps`` is brought up to the last token, but for the position.
        """
        shape = tokens.shape
        for step in steps:
            operands: list[Any] = [values[operand] for operand in step.operands]
            match step.kind:
                case Kind.RECURRENCE:
                    values[step] = self._recur(operands, state.vectors[step], shape)
                case Kind.POSITION:
                    rows = self._constants[step][state.position:state.position + shape[1]]
                    values[step] = np.tile(rows, (shape[0], 1))
                case Kind.APPEND:
                    vectors = self.arithmetic.cached(operands[0], step.cache)
                    values[step] = state.caches[step].append(vectors.reshape(*shape, -1))
                case Kind.ATTEND:
                    heads = (step.heads, *(operand.heads for operand in step.operands[1:]))
                    mixed = self.arithmetic.attend(*(
                        vector.reshape(shape[0], -1, count, step.elements // step.heads)
                        for vector, count in zip(operands, heads, strict=True)))
                    values[step] = mixed.reshape(-1, step.elements)
                case _:
                    values[step] = self._compute(step, operands, tokens.reshape(-1))
            for operand in self._dropped[step]:
                del values[operand]

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
        product = self.products(self._head.weights.name, hidden.codes.values)
        return self.arithmetic.logits(product, hidden.codes,
                                      self.arithmetic.constant(logit_scale * _root(self._head)),
                                      hidden.inverse_norm)

    def _compute(self, step: Value, operands: Sequence[Any],
                 tokens: NDArray[np.integer]) -> NDArray | Codes:
        """Execute a step that does not depend on the time; rows are tokens."""
        ar = self.arithmetic
        match step.kind:
            case Kind.EMBEDDING:
                return self._constants[step][tokens]
            case Kind.CONSTANT:
                return self._constants[step]
            case Kind.CODES:
                codes = ar.codes(*operands)
                if step.label not in self.gates:
                    return codes
                return Codes(self.gates[step.label](codes.values), codes.exponents)
            case Kind.NORM:
                return ar.inverse_norm(operands[0], step.epsilon)
            case Kind.ROTATE:
                return self._rotate(operands, step.heads)
            case Kind.LINEAR:
                codes, *norm = operands
                vectors = step.operands[0].vectors
                values = codes.values
                if vectors > 1:
                    columns = values.reshape(len(values), -1, vectors)
                    values = columns.swapaxes(1, 2).reshape(-1, columns.shape[1])
                product = self.products(step.weights.name, values)
                return ar.scale(product.reshape(len(codes.values), -1), codes,
                                self._constants[step], *norm)
        return getattr(ar, step.kind.name.lower())(*operands)

    def _rotate(self, operands: Sequence[NDArray], heads: int) -> NDArray:
        ar = self.arithmetic
        x, cosine, sine = operands
        pairs = x.reshape(len(x), heads, 2, -1)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        cosine, sine = cosine[:, np.newaxis], sine[:, np.newaxis]
        turned = (ar.subtract(ar.multiply(first, cosine), ar.multiply(second, sine)),
                  ar.add(ar.multiply(second, cosine), ar.multiply(first, sine)))
        return np.stack(turned, axis=2).reshape(x.shape)

    def _recur(self, operands, state, shape):
        update, candidate = (x.reshape(*shape, -1) for x in operands)
        ar = self.arithmetic
        states = np.empty_like(candidate)
        for step in range(shape[1]):
            # The difference form: f * h + (1 - f) * c diverges under L-Mul's gain error.
            change = ar.multiply(update[:, step], ar.subtract(candidate[:, step], state))
            state[:] = states[:, step] = ar.add(state, change)
        return states.reshape(-1, states.shape[-1])


def _root(step: Value) -> float:
    """Return what a norm lacks to be that of the root mean square: part of the constant."""
    return math.sqrt(step.operands[1].elements) if len(step.operands) > 1 else 1.0
