"""The order in which the elements of each vector lie."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from host.compiler.errors import CompileError
from hw.config import AcceleratorConfig
from sim.golden.graph import Kind, Value

__all__ = ["Layout", "lay"]

#: Steps whose vectors lie as those of their operands.
ELEMENTWISE = (Kind.ADD, Kind.SUBTRACT, Kind.MULTIPLY, Kind.RELU, Kind.SILU,
               Kind.SIGMOID_OF_NEGATIVE, Kind.RECURRENCE, Kind.ROTATE)


class Layout:
    """Where each element of each vector lies.

    Vectors that are added or multiplied lie alike: so a layout belongs to all that are connected
    that way.
    """

    def __init__(self, steps: Sequence[Value], config: AcceleratorConfig):
        # A vector fills whole words of the vector memory, and whole transfers of the port.
        self.unit = math.lcm(config.vector_lanes, max(1, config.port_bytes // 2))
        self._parents: dict[Value, Value] = {}
        self._orders: dict[Value, tuple[str, int]] = {}
        self._known: dict[Value, NDArray[np.int64]] = {}
        for step in steps:
            if step.kind in ELEMENTWISE:
                for operand in step.operands[:1 if step.kind is Kind.ROTATE else None]:
                    one, other = self._root(operand), self._root(step)
                    if one is not other:
                        self._parents[one] = other
        for step in steps:
            if step.kind is Kind.ROTATE:
                self._order(step, "halves", step.heads)
        for step in steps:
            if step.kind is not Kind.ATTEND:
                continue
            query, *cached = step.operands
            key, value = (append.operands[0] for append in cached)
            # Scores do not depend on the order, if queries and keys have the same.
            order, _ = self._orders.get(self._root(query), ("heads", 0))
            self._order(query, order, step.heads)
            self._order(key, order, cached[0].heads)
            self._order(value, "heads", cached[1].heads)
            self._order(step, "heads", step.heads)

    def _root(self, value: Value) -> Value:
        while value in self._parents:
            value = self._parents[value]
        return value

    def _order(self, value: Value, order: str, heads: int) -> None:
        wanted = order, heads
        if self._orders.setdefault(self._root(value), wanted) != wanted:
            raise CompileError(f"Vector {value.label} would have to lie in two orders at once")

    def halves(self, value: Value) -> bool:
        """Whether all first halves of heads lie in front of all second ones."""
        return self._orders[self._root(value)][0] == "halves"

    def half(self, elements: int) -> int:
        """Places of half a head of ``elements``."""
        return -(-elements // (2 * self.unit)) * self.unit

    def __call__(self, value: Value) -> NDArray[np.int64]:
        """Return the number of the element in each place of a vector, -1 where a zero fills up."""
        if value not in self._known:
            order, heads = self._orders.get(self._root(value), ("halves", 0))
            self._known[value] = self._places(value.elements, order, heads)
        return self._known[value]

    def _places(self, elements: int, order: str, heads: int) -> NDArray[np.int64]:
        if not heads:
            size = -(-elements // self.unit) * self.unit
            return np.where(np.arange(size) < elements, np.arange(size), -1)
        size = elements // heads
        half = self.half(size)
        # By head, half and place; a head that is not turned is one piece.
        places = np.full((heads, 2 * half), -1, np.int64)
        numbers = np.arange(elements).reshape(heads, size)
        if order == "heads":
            places[:, :size] = numbers
            return places.reshape(-1)
        for first, part in zip((0, half), np.split(numbers, 2, axis=1), strict=True):
            places[:, first:first + size // 2] = part
        return places.reshape(heads, 2, half).transpose(1, 0, 2).reshape(-1)


def lay(values: NDArray, places: NDArray[np.int64], axis: int = 0) -> NDArray:
    """Put values into their places, and zeros where there is none.

    Places that follow each other in order are a view of the values.
    """
    if len(places) and places[0] >= 0 and (
            places == np.arange(places[0], places[0] + len(places))).all():
        ordered = slice(int(places[0]), int(places[0]) + len(places))
        return values[ordered] if axis == 0 else values[:, ordered]
    laid = np.take(values, places, axis)
    np.moveaxis(laid, axis, 0)[places < 0] = 0
    return laid
