# Ref: E. Cetin et al., "Sparser, Faster, Lighter Transformer Language Models", 2026
# Id: arXiv:2603.23198

"""TwELL tiles: how a sparse activation vector lies in memory (docs/numerics.md, section 8)."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from hw.config import TILE

__all__ = ["Tiles", "pack"]


@dataclasses.dataclass(frozen=True, eq=False)
class Tiles:
    """The non-zero elements of one vector.

    Attributes
    ----------
    counts : int16 array of 0..256, shape (tiles,)
        Entries of each tile.
    indices : uint8 array, shape (entries,)
        Column within the tile, ascending in each tile; tile after tile.
    values : int8 array, shape (entries,)
        Never 0.
    """

    counts: NDArray[np.int16]
    indices: NDArray[np.uint8]
    values: NDArray[np.int8]

    @property
    def columns(self) -> NDArray[np.int64]:
        """Column of each entry in the vector."""
        tiles = np.repeat(np.arange(len(self.counts)), self.counts)
        return TILE * tiles + self.indices


def pack(codes: NDArray[np.int8]) -> Tiles:
    """Make tiles of a vector: the last one may have fewer than 256 columns.

    Parameters
    ----------
    codes : int8 array, shape (columns,)
    """
    columns = np.flatnonzero(codes)
    counts = np.bincount(columns // TILE, minlength=-(-len(codes) // TILE))
    return Tiles(counts.astype(np.int16), (columns % TILE).astype(np.uint8), codes[columns])
