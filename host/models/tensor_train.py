# Ref: I. Oseledets, "Tensor-Train Decomposition", SIAM J. Sci. Comput. 33(5), 2011
# Id: doi:10.1137/090752286

"""Matrices as chains of small tensors: matrix product operators (MPO).

Rows and columns of a matrix are numbers of several digits, one for each site, the first one most
significant. A site's **core** has an axis for its digit of the row, one for its digit of the
column, and a bond to the core on each side. The chain is applied site by site, as products of
matrices with several vectors: docs/numerics.md, section 12.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Chain", "Shape", "bond_for", "bonds_up_to", "full_bonds", "shapes",
           "site_by_site", "tensorize"]

#: Vectors that a product of a chain has at most; the engine's batch.
MOST_VECTORS = 8

#: Elements of a word of the machine's vector memory, which rows of a core fill if there are several
#: vectors.
WORD = 8


@dataclasses.dataclass(frozen=True)
class Shape:
    """Digits of rows and columns, for each site.

    Raises
    ------
    ValueError
        If a number of digits is not positive, or there are not as many of both.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def __post_init__(self):
        if not len(self.rows) == len(self.columns) > 0 or min(self.rows + self.columns) < 1:
            raise ValueError(f"Chain must have a positive number of digits for rows and columns of "
                             f"each site, not {self.rows} and {self.columns}")

    def __str__(self) -> str:
        return "x".join(map(str, self.rows)) + "/" + "x".join(map(str, self.columns))

    @property
    def sites(self) -> int:
        """Number of cores."""
        return len(self.rows)

    @property
    def vectors(self) -> tuple[int, ...]:
        """Vectors that each core is multiplied by."""
        return math.prod(self.columns[1:]), *self.rows[:-1]

    @property
    def obstacle(self) -> str:
        """Why the machine cannot apply such a chain, empty if it can.

        What a core leaves is read across once more, so that one digit at a time can wait: digits
        of the column are used up in front of all but the last digits of the row.
        """
        for site in range(1, self.sites):
            if math.prod(self.columns[site + 1:]) > 1 or math.prod(self.rows[:site - 1]) > 1:
                return (f"site {site + 1} of {self} has digits of both rows and columns that wait: "
                        f"rows may only have digits from site {self.sites - 1} on, columns up to "
                        f"site 2")
        for vectors in self.vectors:
            if vectors > MOST_VECTORS or vectors & (vectors - 1):
                return (f"{self} multiplies a core by {vectors} vectors, which must be a power of "
                        f"two up to {MOST_VECTORS}")
        return ""

    def parameters(self, bonds: Sequence[int]) -> int:
        """Elements of all cores."""
        ends = 1, *bonds, 1
        return sum(ends[k] * self.rows[k] * self.columns[k] * ends[k + 1]
                   for k in range(self.sites))


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """A matrix product operator.

    Attributes
    ----------
    cores : tuple of float64 array, shape (left bond, row digits, column digits, right bond)
    """

    cores: tuple[NDArray[np.float64], ...]

    @property
    def shape(self) -> Shape:
        """Digits of each site."""
        return Shape(tuple(core.shape[1] for core in self.cores),
                     tuple(core.shape[2] for core in self.cores))

    @property
    def bonds(self) -> tuple[int, ...]:
        """Sizes of the bonds between neighbouring cores."""
        return tuple(core.shape[3] for core in self.cores[:-1])

    @property
    def parameters(self) -> int:
        """Elements of all cores."""
        return sum(core.size for core in self.cores)

    def dense(self) -> NDArray[np.float64]:
        """Return the matrix, shape (rows, columns)."""
        whole: NDArray = np.ones((1, 1, 1))
        for core in self.cores:
            both: NDArray = np.einsum("rca,aoib->rocib", whole, core)
            rows, digits, columns, more, bond = both.shape
            whole = both.reshape(rows * digits, columns * more, bond)
        return whole[:, :, 0]

    def matrices(self) -> tuple[NDArray[np.float64], ...]:
        """Return what is multiplied by, one matrix for each core.

        Rows are (right bond, row digit). Columns are (column digit, left bond), since what comes
        from the core before is that, vector by vector.
        """
        return tuple(core.transpose(3, 1, 2, 0).reshape(
            core.shape[3] * core.shape[1], core.shape[2] * core.shape[0]) for core in self.cores)

    def apply(self, x: NDArray) -> NDArray:
        """Multiply vectors, shape (vectors, columns), site by site, as the machine does."""
        for matrix, vectors in zip(self.matrices(), self.shape.vectors, strict=True):
            across = x.reshape(len(x), -1, vectors)
            x = (across.swapaxes(1, 2) @ matrix.T).reshape(len(x), -1)
        return x

    def contract(self, x: NDArray) -> NDArray:
        """Multiply a vector by a chain of any digits, from the first site to the last one."""
        state: NDArray = np.asarray(x, np.float64).reshape(1, 1, -1)   # digits of rows, bond, rest
        for core in self.cores:
            done, bond, rest = state.shape
            split = state.reshape(done, bond, core.shape[2], rest // core.shape[2])
            state = np.einsum("aoib,dair->dobr", core, split).reshape(
                -1, core.shape[3], rest // core.shape[2])
        return state.reshape(-1)


def site_by_site(matrix: NDArray, shape: Shape) -> NDArray:
    """Return the elements with an axis for each digit: row and column of the first site, and so on.

    That is no reshape alone, which would have all digits of the row in front.
    """
    count = shape.sites
    order = [axis for site in range(count) for axis in (site, count + site)]
    return matrix.reshape(*shape.rows, *shape.columns).transpose(order)


def full_bonds(shape: Shape) -> tuple[int, ...]:
    """Bonds at which a chain of this shape is any matrix."""
    sizes = [o * i for o, i in zip(shape.rows, shape.columns, strict=True)]
    return tuple(min(math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(1, len(sizes)))


def tensorize(matrix: NDArray, shape: Shape, bonds: Sequence[int] | None = None) -> Chain:
    """Decompose a matrix by singular values, of which each bond keeps the largest.

    What a bond's singular value is worth goes to both its sides, its square root to each, so that
    neither a core nor what is between two of them has one large part and many small ones. Of each
    singular vector the largest element is positive, so that the result is the same everywhere but
    for rounding.

    Parameters
    ----------
    matrix : array, shape (rows, columns)
    shape : Shape
        Its digits multiply to rows and columns.
    bonds : sequence of int, optional
        By default, and at most, those of :func:`full_bonds`.

    Raises
    ------
    ValueError
        If digits or bonds do not fit the matrix; the message has the nearest that do.
    """
    for axis, size, digits in zip(("rows", "columns"), matrix.shape, (shape.rows, shape.columns),
                                  strict=True):
        if math.prod(digits) != size:
            raise ValueError(f"Digits of {size} {axis} must multiply to {size}, not "
                             f"{'x'.join(map(str, digits))} = {math.prod(digits)}; the nearest "
                             f"for the last digits is {_nearest(size, math.prod(digits[1:]))}")
    most = full_bonds(shape)
    bonds = most if bonds is None else tuple(bonds)
    if len(bonds) != len(most):
        raise ValueError(f"Chain of {shape.sites} sites must have {len(most)} bonds, "
                         f"not {len(bonds)}")
    ends = 1, *bonds
    for site, bond in enumerate(bonds):
        # What is cut off on the left is not there any more.
        limit = min(most[site], ends[site] * shape.rows[site] * shape.columns[site])
        if not 1 <= bond <= limit:
            raise ValueError(f"Bond {site + 1} of {shape} must be in 1..{limit}, where {limit} is "
                             f"full rank, not {bond}")
    rest = site_by_site(np.asarray(matrix, np.float64), shape)
    cores, left = [], np.ones(1)                # square roots of the singular values on the left
    for site in range(shape.sites - 1):
        rows, columns = shape.rows[site], shape.columns[site]
        u, values, v = np.linalg.svd(rest.reshape(len(left) * rows * columns, -1),
                                     full_matrices=False)
        bond = bonds[site]
        u, values, v = u[:, :bond], values[:bond], v[:bond]
        sign = np.sign(u[np.abs(u).argmax(axis=0), np.arange(bond)])
        rest = (sign * values)[:, np.newaxis] * v
        # A singular value of zero is worth nothing on either side.
        right = np.sqrt(np.where(values > 0, values, 1))
        core = (u * sign).reshape(len(left), rows, columns, bond)
        cores.append(core / left[:, np.newaxis, np.newaxis, np.newaxis] * right)
        left = right
    last = rest.reshape(len(left), shape.rows[-1], shape.columns[-1], 1)
    cores.append(last / left[:, np.newaxis, np.newaxis, np.newaxis])
    return Chain(tuple(cores))


def _nearest(size: int, wanted: int) -> int:
    divisors = [divisor for divisor in range(1, size + 1) if size % divisor == 0]
    return min(divisors, key=lambda divisor: abs(divisor - wanted))


def bonds_up_to(shape: Shape, bond: int) -> tuple[int, ...]:
    """Bonds of one size, but where full rank is less."""
    found: list[int] = []
    for site, most in enumerate(full_bonds(shape)):
        left = found[-1] if found else 1
        found.append(min(bond, most, left * shape.rows[site] * shape.columns[site]))
    return tuple(found)


def bond_for(shape: Shape, parameters: float) -> int:
    """Largest bond, the same for all sites, with which a chain has no more parameters.

    It is a multiple of :data:`WORD`, and at least that.
    """
    most = max(full_bonds(shape), default=WORD)
    fitting = [bond for bond in range(WORD, most + 1, WORD)
               if shape.parameters(bonds_up_to(shape, bond)) <= parameters]
    return max(fitting, default=WORD)


def shapes(rows: int, columns: int, sites: int, *, row_digits: bool = True,
           column_digits: bool = True) -> Iterator[Shape]:
    """List the shapes of a matrix that the machine can apply.

    Parameters
    ----------
    rows, columns : int
    sites : int
        1 is the matrix itself; of 2 the one without digits is the low-rank product.
    row_digits, column_digits : bool
        Whether rows, and columns, lie in order, so that they can have digits.
    """
    if sites == 1:
        yield Shape((rows,), (columns,))
        return
    digits = [2 ** k for k in range(MOST_VECTORS.bit_length())]
    ones = (1,) * (sites - 2)
    for row, column in itertools.product(digits if row_digits else (1,),
                                         digits if column_digits else (1,)):
        if sites > 2 and row * column == 1:
            continue                            # a chain of fewer sites
        # Rows of the last core fill words.
        if columns % column == 0 == rows % (row * (WORD if row > 1 else 1)):
            yield Shape((*ones, row, rows // row), (columns // column, column, *ones))
