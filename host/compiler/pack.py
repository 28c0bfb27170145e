"""Matrices as the engine reads them: planes of trits, packed column by column."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from host.compiler.errors import CompileError
from hw.config import EngineConfig
from sim.golden.trits import pack_words, planes

__all__ = ["PackedMatrix", "check_bounds", "pack_columns", "pack_matrix", "pieces", "planes_needed",
           "row_blocks", "row_bounds", "row_magnitudes"]


def planes_needed(largest: int) -> int:
    """Trit planes of weights up to ``largest`` in magnitude."""
    count = 1
    while (3 ** count - 1) // 2 < largest:
        count += 1
    return count


@dataclasses.dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A matrix as a device takes it: row blocks, each with an image of its own.

    Attributes
    ----------
    name : str
    rows, columns, planes : int
    blocks : tuple of (first row, rows, image)
        One block, unless the matrix has more rows than the engine.
    """

    name: str
    rows: int
    columns: int
    planes: int
    blocks: tuple[tuple[int, int, NDArray[np.uint8]], ...]

    @property
    def bytes(self) -> int:
        """Bytes of all images."""
        return sum(image.nbytes for _, _, image in self.blocks)


#: Weights that are packed together, so that what is computed of them needs little memory.
_CHUNK = 1 << 18


def pieces(count: int, each: int) -> Iterator[tuple[int, int]]:
    """Divide ``count`` rows or columns of ``each`` weights: yield first and end of each piece."""
    step = max(1, _CHUNK // max(1, each))
    for first in range(0, count, step):
        yield first, min(first + step, count)


def row_magnitudes(weights: NDArray[np.integer]) -> NDArray[np.int64]:
    """Find the largest magnitude in each row."""
    # No copy in a wider type: an embedding of 128,256 tokens has hundreds of millions of weights.
    highest, lowest = (each.astype(np.int64) for each in (weights.max(axis=1), weights.min(axis=1)))
    return np.maximum(highest, -lowest)


def row_bounds(weights: NDArray[np.integer], config: EngineConfig) -> NDArray[np.int64]:
    """Largest magnitude that the sum of each row can reach; an accumulator is a sign wider."""
    sums: NDArray[np.int64] = np.zeros(len(weights), np.int64)
    for first, end in pieces(weights.shape[1], len(weights)):
        sums += np.abs(weights[:, first:end].astype(np.int64)).sum(axis=1)
    # The largest product of an activation is that of -2**(width - 1).
    return sums << (config.activation_width - 1)


def check_bounds(name: str, bounds: NDArray[np.int64], config: EngineConfig) -> None:
    """Prove that no accumulator overflows.

    Parameters
    ----------
    name : str
    bounds : int64 array, shape (rows,)
        Largest magnitude that the sum of each row can reach.
    config : EngineConfig

    Raises
    ------
    CompileError
        If one could.
    """
    row = int(bounds.argmax())
    if bounds[row] >= 1 << (config.accumulator_width - 1):
        raise CompileError(f"Matrix {name} row {row} could reach {bounds[row]}, which must be "
                           f"below 2**{config.accumulator_width - 1} for accumulators of "
                           f"{config.accumulator_width} bits")


def row_blocks(name: str, rows: int, columns: int, largest: int, config: EngineConfig,
               ) -> tuple[int, list[tuple[int, int]]]:
    """Divide a matrix into what an engine holds at once, by its sizes alone.

    Parameters
    ----------
    name : str
    rows, columns : int
    largest : int
        Largest magnitude of a weight.
    config : EngineConfig

    Returns
    -------
    tuple of int and list of (first row, rows)
        Trit planes, and the blocks: one, unless the matrix has more rows than the engine.

    Raises
    ------
    CompileError
        If the engine cannot hold the matrix.
    """
    if columns > config.max_columns:
        raise CompileError(f"Matrix {name} must have at most {config.max_columns} columns for this "
                           f"engine, not {columns} (engine field index_width)")
    count = planes_needed(largest)
    if count > config.max_planes:
        raise CompileError(f"Matrix {name} must fit {config.max_planes} trit planes, but its "
                           f"largest weight {largest} needs {count}")
    blocks = []
    first = 0
    while first < rows:
        groups = _avoid_two(min(config.groups(rows - first), config.accumulator_depth))
        size = min(groups * config.lanes, rows - first)
        blocks.append((first, size))
        first += size
    return count, blocks


def pack_columns(weights: NDArray[np.integer], count: int, config: EngineConfig,
                 out: NDArray[np.uint8]) -> None:
    """Pack columns of a block into their place in its image.

    Parameters
    ----------
    weights : integer array, shape (rows, columns)
    count : int
        Trit planes.
    config : EngineConfig
    out : uint8 array of ``columns * config.column_bytes(rows, count)`` elements
    """
    out[:] = pack_words(planes(weights, count), config).reshape(-1)


def pack_matrix(name: str, weights: NDArray[np.integer], config: EngineConfig, *,
                token: bool = False) -> PackedMatrix:
    """Pack a matrix of integers for an engine, and prove that no accumulator overflows.

    Parameters
    ----------
    name : str
    weights : integer array, shape (rows, columns)
    config : EngineConfig
    token : bool
        The list is never more than one entry with activation 1.

    Raises
    ------
    CompileError
        If the engine cannot hold the matrix, or a row could overflow an accumulator.
    """
    rows, columns = weights.shape
    magnitudes = row_magnitudes(weights)
    count, places = row_blocks(name, rows, columns, int(magnitudes.max()), config)
    check_bounds(name, magnitudes if token else row_bounds(weights, config), config)
    blocks = []
    for first, size in places:
        column = config.column_bytes(size, count)
        image: NDArray[np.uint8] = np.empty(columns * column, np.uint8)
        for begin, end in pieces(columns, size):
            pack_columns(weights[first:first + size, begin:end], count, config,
                         image[begin * column:end * column])
        blocks.append((first, size, image.reshape(columns, count, config.groups(size),
                                                  config.word_bytes)))
    return PackedMatrix(name, rows, columns, count, tuple(blocks))


def _avoid_two(accumulators: int) -> int:
    """1 instead of 2: a pass with exactly two accumulators a lane stalls, two passes do not."""
    return 1 if accumulators == 2 else accumulators
