"""Matrices as the engine reads them: planes of trits, packed column by column."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from host.compiler.errors import CompileError
from hw.config import EngineConfig
from sim.golden.trits import pack_words, planes

__all__ = ["PackedMatrix", "pack_matrix", "planes_needed", "row_bounds"]


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


def row_bounds(weights: NDArray[np.integer], config: EngineConfig) -> NDArray[np.int64]:
    """Largest magnitude that the sum of each row can reach; an accumulator is a sign wider."""
    # The largest product of an activation is that of -2**(width - 1).
    positive, negative = (part(weights, 0).sum(axis=1, dtype=np.int64)
                          for part in (np.maximum, np.minimum))
    return (positive - negative) << (config.activation_width - 1)


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
    if columns > config.max_columns:
        raise CompileError(f"Matrix {name} must have at most {config.max_columns} columns for this "
                           f"engine, not {columns}")
    # No copy in a wider type: an embedding of 128,256 tokens has hundreds of millions of weights.
    highest, lowest = (each.astype(np.int64) for each in (weights.max(axis=1), weights.min(axis=1)))
    magnitudes = np.maximum(highest, -lowest)
    count = planes_needed(int(magnitudes.max()))
    if count > config.max_planes:
        raise CompileError(f"Matrix {name} must fit {config.max_planes} trit planes, but its "
                           f"largest weight {magnitudes.max()} needs {count}")
    if token:
        bounds = magnitudes
    else:
        bounds = row_bounds(weights, config)
    row = int(bounds.argmax())
    if bounds[row] >= 1 << (config.accumulator_width - 1):
        raise CompileError(f"Matrix {name} row {row} could reach {bounds[row]}, which must be "
                           f"below 2**{config.accumulator_width - 1} for accumulators of "
                           f"{config.accumulator_width} bits")
    trits = planes(weights, count)
    blocks = []
    first = 0
    while first < rows:
        groups = _avoid_two(min(config.groups(rows - first), config.accumulator_depth))
        size = min(groups * config.lanes, rows - first)
        blocks.append((first, size, pack_words(trits[:, first:first + size], config)))
        first += size
    return PackedMatrix(name, rows, columns, count, tuple(blocks))


def _avoid_two(accumulators: int) -> int:
    """1 instead of 2: a pass with exactly two accumulators a lane stalls, two passes do not."""
    return 1 if accumulators == 2 else accumulators
