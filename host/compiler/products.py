"""Products: rows of matrices that share a list, one below the other."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from hw.isa import FIELDS
from sim.golden.graph import Value

__all__ = ["FIELD_LIMIT", "Action", "Laid", "Product", "Rows", "joined_name", "split_rows"]

# Rows of a product that a field of an instruction holds.
FIELD_LIMIT = 2 ** FIELDS["a"] - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Laid:
    """A matrix as it will be laid out: what a program needs to know before that is done.

    Attributes
    ----------
    columns : int
    magnitudes : int64 array, shape (rows,)
        Largest magnitude in each row.
    take : callable
        Lays out some of it: ``take(first row, end row, first column, end column)`` returns an
        integer array.
    """

    columns: int
    magnitudes: NDArray[np.int64]
    take: Callable[[int, int, int, int], NDArray[np.integer]]

    def __len__(self) -> int:
        return len(self.magnitudes)


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a step's matrix; ``first`` is the first of them.

    Attributes
    ----------
    matrix : Laid
        All of them.
    trits : int array, shape (rows,)
        Elements of each row that are not there to fill up.
    """

    step: Value
    matrix: Laid
    trits: NDArray[np.int64]
    first: int
    count: int

    @property
    def name(self) -> str:
        """Name of the matrix, with the rows unless these are all."""
        name = self.step.weights.name
        whole = self.count == len(self.matrix)
        return name if whole else f"{name}[{self.first}:{self.end}]"

    @property
    def end(self) -> int:
        """The row behind the last one."""
        return self.first + self.count

    @property
    def last(self) -> bool:
        """Whether no row of the matrix is behind them."""
        return self.end == len(self.matrix)

    @property
    def magnitudes(self) -> NDArray[np.int64]:
        """Largest magnitude in each of these rows."""
        return self.matrix.magnitudes[self.first:self.end]

    def take(self, first: int, end: int) -> NDArray[np.integer]:
        """Lay out some columns of these rows."""
        return self.matrix.take(self.first, self.end, first, end)

    @property
    def elements(self) -> int:
        """Elements of these rows that are not there to fill up."""
        return int(self.trits[self.first:self.end].sum())


@dataclasses.dataclass(frozen=True)
class Product:
    """Rows of one matrix, or of several that share a list, that are multiplied at once."""

    name: str
    address: int
    parts: tuple[Rows, ...]
    columns: int
    planes: int

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return sum(part.count for part in self.parts)


@dataclasses.dataclass(frozen=True)
class Action:
    """What is done next: a step, or a product is queued, or rows of the oldest one are taken.

    Attributes
    ----------
    step : Value
        Of a product that is queued: that of its first rows.
    product : Product, optional
        That is queued.
    part : Rows, optional
        That is taken.
    live : Value, optional
        Of a product by row: the vector whose elements that are not zero are its rows.
    """

    step: Value
    product: Product | None = None
    part: Rows | None = None
    live: Value | None = None


def joined_name(rows: Sequence[Rows]) -> str:
    """Name the matrices whose rows lie one below the other."""
    return " + ".join(part.name for part in rows)


def split_rows(rows: Sequence[Rows], count: int) -> tuple[list[Rows], list[Rows]]:
    """Divide rows into the first ``count`` and the others."""
    first, rest = [], []
    for part in rows:
        taken = min(count, part.count)
        count -= taken
        if taken:
            first.append(dataclasses.replace(part, count=taken))
        if taken < part.count:
            rest.append(dataclasses.replace(part, first=part.first + taken,
                                            count=part.count - taken))
    return first, rest
