"""What a token goes through in a model, as plain data.

A model describes itself once, with a :class:`Network`. From that come the evaluation in any
arithmetic (:class:`sim.golden.evaluate.GoldenLM`: float reference and golden model) and the program
of the machine (``host.compiler.compile``). Its operations are those of docs/numerics.md, section 6.
"""

import dataclasses
import enum
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["CACHES", "Kind", "Matrix", "Network", "Value"]


class Kind(enum.Enum):
    """What a step computes. Vectors have elements, codes and norms belong to one vector."""

    #: ``S(column of the token)``: a vector.
    EMBEDDING = enum.auto()
    #: Numbers of the model: a vector.
    CONSTANT = enum.auto()
    #: Vectors from one or two vectors, element by element.
    ADD = enum.auto()
    SUBTRACT = enum.auto()
    MULTIPLY = enum.auto()
    RELU = enum.auto()
    SILU = enum.auto()
    SIGMOID_OF_NEGATIVE = enum.auto()
    #: ``h + z (c - h)`` of update ``z`` and candidate ``c``, where ``h`` is what it was for the
    #: token before, 0 for the first one: a vector.
    RECURRENCE = enum.auto()
    #: The row of a table that the token's position has: a vector.
    POSITION = enum.auto()
    #: Pairs of a vector turned by angles whose cosines and sines are vectors: a vector.
    ROTATE = enum.auto()
    #: The vector of every token so far, the last one appended.
    KV_APPEND = enum.auto()
    #: Heads of a vector of queries attend to two APPENDs, keys and values: a vector.
    ATTEND = enum.auto()
    #: ``Q`` of a vector: codes and their exponent.
    CODES = enum.auto()
    #: ``R`` of a vector, and the number of its elements.
    NORM = enum.auto()
    #: ``S`` of a matrix times codes, and times a norm or not: a vector.
    LINEAR = enum.auto()
    #: A matrix times codes and a norm: logits.
    HEAD = enum.auto()


#: Steps that make a vector.
VECTORS = frozenset(Kind) - {Kind.CODES, Kind.NORM, Kind.HEAD, Kind.KV_APPEND}

#: Formats in which a KV_APPEND keeps its elements: bf16 as they are, or rounded to e4m3.
CACHES = ("bf16", "e4m3")


class Matrix:
    """``scale * weights``.

    Parameters
    ----------
    name : str
    weights : integer array, shape (rows, columns), or callable
        Of floating point where nothing but the float reference reads them. A callable makes them
        anew each time that they are asked for: they need no memory meanwhile.
    scale : float
    shape : tuple of int, optional
        Rows and columns of what a callable makes.
    """

    def __init__(self, name: str, weights: NDArray | Callable[[], NDArray], scale: float,
                 shape: tuple[int, int] | None = None):
        self.name = name
        self.scale = scale
        self._weights = weights
        if not callable(weights):
            rows, columns = weights.shape
            shape = rows, columns
        assert shape is not None
        self.shape = shape

    @property
    def weights(self) -> NDArray:
        """The weights, shape (rows, columns)."""
        return self._weights() if callable(self._weights) else self._weights


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """A step of a network, and what it computes.

    Attributes
    ----------
    kind : Kind
    operands : tuple of Value
        Earlier steps.
    elements : int
        Of the vector, or of the vector that codes and norm are of.
    part : str
        Part of the model, for people.
    name, formula : str
        What it is and how it comes about, for people.
    matrix : Matrix, optional
        Of EMBEDDING, LINEAR and HEAD.
    constant : array, optional
        Of CONSTANT; of POSITION the table, shape (context, elements).
    factor : bool
        Whether a CONSTANT or a POSITION is there to be multiplied by.
    sparse : bool
        Whether most CODES are expected to be zero.
    vectors : int
        Of CODES: vectors that they are, element ``e`` that of column ``e // vectors`` in vector
        ``e % vectors``. A product with them has all its rows for each, vector by vector.
    epsilon : float
        Of NORM: what is added to the mean square. Only floating point does so.
    heads : int
        Of ROTATE, KV_APPEND and ATTEND: equal parts of the vector, one behind the other.
    context : int
        Of KV_APPEND: the largest number of tokens.
    cache : str
        Of KV_APPEND: one of :data:`CACHES`.
    """

    kind: Kind
    operands: tuple["Value", ...]
    elements: int
    part: str
    name: str
    formula: str
    matrix: Matrix | None = None
    constant: NDArray[np.floating] | None = None
    factor: bool = False
    sparse: bool = False
    vectors: int = 1
    epsilon: float = 0.0
    heads: int = 1
    context: int = 0
    cache: str = CACHES[0]

    @property
    def label(self) -> str:
        """Name with the part of the model that it is in: of a list there is only one."""
        return f"{self.part}.{self.name}"

    @property
    def weights(self) -> Matrix:
        """The matrix of a step that has one."""
        assert self.matrix is not None
        return self.matrix


class Network:
    """The steps of a model, in order; each method appends one and returns what it computes.

    ``name`` says what the result is, where its formula does not.

    Attributes
    ----------
    steps : list of Value
    part : str
        Part of the model that the next steps belong to.
    """

    def __init__(self) -> None:
        self.steps: list[Value] = []
        self.part = ""

    def __iter__(self) -> Iterator[Value]:
        return iter(self.steps)

    def lists(self) -> dict[str, tuple[Matrix, ...]]:
        """Matrices that each list drives, but for the head's, by the list's :attr:`Value.label`.

        Lists of several vectors are not among them.
        """
        found: dict[str, tuple[Matrix, ...]] = {}
        for step in self.steps:
            if step.kind is Kind.LINEAR and step.operands[0].vectors == 1:
                label = step.operands[0].label
                found[label] = (*found.get(label, ()), step.weights)
        return found

    def embed(self, matrix: Matrix, name: str) -> Value:
        """Take the token's column of a matrix."""
        return self._append(Kind.EMBEDDING, (), matrix.shape[0], name, matrix.name,
                            matrix=matrix)

    def constant(self, name: str, numbers: NDArray[np.floating], *, factor: bool = False) -> Value:
        """Take numbers of the model; ``factor`` if they are only multiplied by."""
        return self._append(Kind.CONSTANT, (), len(numbers), name, name, constant=numbers,
                            factor=factor)

    def add(self, x: Value, y: Value, name: str = "") -> Value:
        """Compute ``x + y``."""
        return self._elementwise(Kind.ADD, (x, y), name, f"{x.name} + {y.name}")

    def subtract(self, x: Value, y: Value, name: str = "") -> Value:
        """Compute ``x - y``."""
        return self._elementwise(Kind.SUBTRACT, (x, y), name, f"{x.name} - {y.name}")

    def multiply(self, x: Value, y: Value, name: str = "") -> Value:
        """Compute ``lmul(x, y)``."""
        return self._elementwise(Kind.MULTIPLY, (x, y), name, f"{x.name} {y.name}")

    def gain(self, name: str, x: Value, factors: NDArray[np.floating]) -> Value:
        """Multiply by numbers of the model, as ``x * power of two + lmul(x, rest)``.

        L-Mul is exact for powers of two, so that its error is only that of the rest: a third of the
        factor at most.
        """
        significands, exponents = np.frexp(factors)     # from 1/2 to 1; the powers are 1/2 and 1
        powers = np.sign(factors) * np.ldexp(np.where(np.abs(significands) < 0.75, 0.5, 1),
                                             exponents)
        rest = factors - powers
        product = x
        if not (powers == 1).all():
            product = self.multiply(x, self.constant(f"{name}.power", powers, factor=True))
        if rest.any():
            rest_product = self.multiply(x, self.constant(f"{name}.rest", rest, factor=True))
            product = self.add(product, rest_product, f"{x.name} {name}")
        return product

    def relu(self, x: Value, name: str = "") -> Value:
        """Replace negative elements by zero."""
        return self._elementwise(Kind.RELU, (x,), name, f"relu({x.name})")

    def silu(self, x: Value, name: str = "") -> Value:
        """Compute ``x / (1 + exp(-x))``."""
        return self._elementwise(Kind.SILU, (x,), name, f"silu({x.name})")

    def sigmoid_of_negative(self, x: Value, name: str = "") -> Value:
        """Compute ``1 / (1 + exp(x))``."""
        return self._elementwise(Kind.SIGMOID_OF_NEGATIVE, (x,), name, f"1 - sigmoid({x.name})")

    def recur(self, update: Value, candidate: Value, name: str = "h") -> Value:
        """Move the state by the share ``update`` towards ``candidate``, and return it."""
        return self._elementwise(Kind.RECURRENCE, (update, candidate), name,
                                 f"{name} + {update.name} ({candidate.name} - {name})")

    def codes(self, name: str, x: Value, *, sparse: bool = False, vectors: int = 1) -> Value:
        """Quantize a vector for a list; ``sparse`` if most codes are expected to be zero.

        A machine has one list: products with these codes come before the next ones are made.
        """
        if _vector(x).elements % vectors:
            raise ValueError(f"{x.name} must have a multiple of {vectors} elements to become so "
                             f"many vectors, not {x.elements}")
        return self._append(Kind.CODES, (x,), x.elements, name, f"Q({x.name})",
                            sparse=sparse, vectors=vectors)

    def norm(self, x: Value, epsilon: float = 0.0) -> Value:
        """Compute the reciprocal of a vector's root mean square."""
        return self._append(Kind.NORM, (_vector(x),), x.elements, f"1 / |{x.name}|",
                            f"1 / |{x.name}|", epsilon=epsilon)

    def position(self, name: str, table: NDArray[np.floating]) -> Value:
        """Take the row of a table, shape (context, elements), that the token's position has."""
        return self._append(Kind.POSITION, (), table.shape[1], name, f"{name}[position]",
                            constant=table, factor=True)

    def rotate(self, x: Value, cosine: Value, sine: Value, heads: int, name: str = "") -> Value:
        """Turn pairs of elements, the same for each head.

        Element ``i`` of a head's first half and of its second half are a pair, turned by angle
        ``i``: ``a cos - b sin`` and ``b cos + a sin``.
        """
        for part in (cosine, sine):
            if _vector(part).elements * 2 * heads != x.elements:
                raise ValueError(f"{part.name} must have {x.elements / (2 * heads):g} elements, "
                                 f"half of a head of {x.name}, not {part.elements}")
        return self._append(Kind.ROTATE, (_vector(x), cosine, sine), x.elements,
                            name or f"rotated {x.name}", f"rotated {x.name}", heads=heads)

    def append(self, x: Value, heads: int, context: int, cache: str = CACHES[0],
               name: str = "") -> Value:
        """Keep a vector for all later tokens."""
        if cache not in CACHES:
            raise ValueError(f"Cache of {x.name} must be {' or '.join(CACHES)}, not {cache!r}")
        if x.elements % heads:
            raise ValueError(f"{x.name} must be {heads} heads of one size, "
                             f"not {x.elements} elements")
        return self._append(Kind.KV_APPEND, (_vector(x),), x.elements, name or f"{x.name}s",
                            f"{x.name} of all tokens", heads=heads, context=context, cache=cache)

    def attend(self, queries: Value, keys: Value, values: Value, heads: int,
               name: str = "") -> Value:
        """Mix, for each head of the queries, the values of all tokens so far.

        With the scores ``keys . query``, in octaves, the weights are ``2**score`` over their sum.
        Each head of keys and values serves as many query heads as there are more of them.
        """
        for part in (keys, values):
            if part.kind is not Kind.KV_APPEND:
                raise ValueError(f"{part.name} must be KV_APPEND, not {part.kind.name}")
            if heads % part.heads or part.elements * heads != queries.elements * part.heads:
                raise ValueError(f"{part.name} must have heads of the size of a query's, "
                                 f"{queries.elements / heads:g}, and so many that {heads} is a "
                                 f"multiple, not {part.heads} of "
                                 f"{part.elements // part.heads} elements")
        return self._append(Kind.ATTEND, (_vector(queries), keys, values), queries.elements,
                            name or "attention", f"attention of {queries.name}", heads=heads)

    def linear(self, matrix: Matrix, codes: Value, norm: Value | None = None,
               name: str = "") -> Value:
        """Multiply a matrix by codes, and the product by a norm."""
        return self._product(Kind.LINEAR, matrix, codes, norm, name)

    def head(self, name: str, weights: NDArray | Callable[[], NDArray], codes: Value, norm: Value,
             shape: tuple[int, int] | None = None) -> Value:
        """Multiply a matrix, given as to :class:`Matrix`, by codes and a norm: the last step.

        Its scale is the model's logit scale.
        """
        return self._product(Kind.HEAD, Matrix(name, weights, 1.0, shape), codes, norm, "logits")

    def _product(self, kind: Kind, matrix: Matrix, codes: Value, norm: Value | None,
                 name: str) -> Value:
        rows, columns = matrix.shape
        if codes.kind is not Kind.CODES or codes.elements != columns * codes.vectors:
            raise ValueError(f"Matrix {matrix.name} must be multiplied by codes of "
                             f"{columns * codes.vectors} elements, not by {codes.kind.name} of "
                             f"{codes.elements}")
        if kind is Kind.HEAD and codes.vectors != 1:
            raise ValueError(f"Matrix {matrix.name} must be multiplied by codes of one vector, "
                             f"not of {codes.vectors}")
        if norm is not None and norm.kind is not Kind.NORM:
            raise ValueError(f"Matrix {matrix.name} must be scaled by a norm, "
                             f"not by {norm.kind.name}")
        operands = (codes,) if norm is None else (codes, norm)
        return self._append(kind, operands, rows * codes.vectors,
                            name or matrix.name.rsplit(".")[-1], matrix.name, matrix=matrix)

    def _elementwise(self, kind: Kind, operands: tuple[Value, ...], name: str,
                     formula: str) -> Value:
        elements = operands[0].elements
        for operand in operands:
            if _vector(operand).elements != elements:
                raise ValueError(f"Operands of {formula} must have {elements} elements each, "
                                 f"not {operand.elements}")
        return self._append(kind, operands, elements, name or formula, formula)

    def _append(self, kind: Kind, operands: tuple[Value, ...], elements: int, name: str,
                formula: str, **fields) -> Value:
        value = Value(kind, operands, elements, self.part, name, formula, **fields)
        self.steps.append(value)
        return value


def _vector(value: Value) -> Value:
    if value.kind not in VECTORS:
        raise ValueError(f"{value.name} must be a vector, not {value.kind.name}")
    return value
