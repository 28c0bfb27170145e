"""Language models on golden functions: docs/numerics.md, section 6.

:class:`GoldenLM` evaluates a :class:`sim.golden.graph.Network`: for one token or many documents
at a time, with any arithmetic of :mod:`sim.golden.arithmetic`, and with the matrix products
computed by whoever is asked to.

Vectors are rows: arrays of shape (tokens, elements). bf16 numbers are ``uint16`` bits.
"""

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sim.golden.arithmetic import Arithmetic
from sim.golden.graph import Kind, Network, Value
from sim.golden.quantizer import Codes

__all__ = ["Cache", "ExactProducts", "GoldenLM", "Hidden", "Model", "State", "model_matrices"]


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
    caches : dict of KV_APPEND to Cache
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
    masks : mapping of label to callable, optional
        What sets some of the codes of a list to zero: :class:`sim.golden.wina.Mask`. A list whose
        :attr:`sim.golden.graph.Value.label` is missing is not masked.
    """

    def __init__(self, model: Model, arithmetic: Arithmetic,
                 products: Callable[[str, NDArray], NDArray],
                 masks: Mapping[str, Callable[[NDArray], NDArray]] | None = None):
        self.arithmetic = arithmetic
        self.products = products
        self.masks = {} if masks is None else masks
        *self._steps, self._head = model.network()
        if self._head.kind is not Kind.HEAD:
            raise ValueError(f"The last step of a network must be HEAD, "
                             f"not {self._head.kind.name}")
        self._constants = {step: self._constant(step) for step in self._steps
                           if step.kind in (Kind.EMBEDDING, Kind.CONSTANT, Kind.POSITION,
                                            Kind.LINEAR)}
        #: Largest number of tokens of a document, None if there is no limit.
        self.context = min((step.context for step in self._steps if step.kind is Kind.KV_APPEND),
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
                      if step.kind is Kind.KV_APPEND})

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
                case Kind.KV_APPEND:
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
                if step.label not in self.masks:
                    return codes
                return Codes(self.masks[step.label](codes.values), codes.exponents)
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
