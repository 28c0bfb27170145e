# Ref: E. Cetin et al., "Sparser, Faster, Lighter Transformer Language Models", 2026
# Id: arXiv:2603.23198

"""TwELL tiles: how a list of activations lies in memory, and the published layout of 32-bit words.

docs/numerics.md, section 8. A tile has room for every one of its columns, so that it cannot
overflow; the published layout has not, and here an overflow is an error.
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hw.formats.minifloat import bf16
from sim.golden.bf16 import from_float, to_float32

__all__ = ["TILE", "Tiles", "from_words", "pack", "to_words", "unpack"]

#: Columns of a tile.
TILE = 256

_COUNT_LIMIT = 1 << 16      # columns that the 16-bit index of a published word can name


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


def _int8(codes: ArrayLike) -> NDArray[np.int8]:
    codes = np.asarray(codes)
    if codes.dtype != np.int8 or codes.ndim != 1:
        raise ValueError(f"Codes must be a vector of int8, not {codes.dtype} of shape "
                         f"{codes.shape}")
    return codes


def pack(codes: ArrayLike) -> Tiles:
    """Make tiles of a vector: the last one may have fewer than 256 columns.

    Parameters
    ----------
    codes : int8 array, shape (columns,)

    Raises
    ------
    ValueError
        If ``codes`` is no vector of int8.
    """
    codes = _int8(codes)
    columns = np.flatnonzero(codes)
    counts = np.bincount(columns // TILE, minlength=-(-len(codes) // TILE))
    return Tiles(counts.astype(np.int16), (columns % TILE).astype(np.uint8), codes[columns])


def unpack(tiles: Tiles, columns: int) -> NDArray[np.int8]:
    """Vector of ``columns`` elements that :func:`pack` made ``tiles`` of.

    Raises
    ------
    ValueError
        If the tiles are not those of any such vector: a count, an index or a value is out of range,
        or the entries of a tile do not ascend.
    """
    expected = -(-columns // TILE)
    if len(tiles.counts) != expected:
        raise ValueError(f"A vector of {columns} elements must have {expected} tiles, "
                         f"not {len(tiles.counts)}")
    wrong = np.flatnonzero((tiles.counts < 0) | (tiles.counts > TILE))
    if wrong.size:
        raise ValueError(f"Tile {wrong[0]} must have 0 to {TILE} entries, "
                         f"not {tiles.counts[wrong[0]]}")
    total = int(tiles.counts.sum(dtype=np.int64))
    if not total == len(tiles.indices) == len(tiles.values):
        raise ValueError(f"Tiles must have {total} indices and values, as their counts say, "
                         f"not {len(tiles.indices)} and {len(tiles.values)}")
    places = tiles.columns
    for what, found in (("be below the vector's end", places >= columns),
                        ("follow a smaller one", np.diff(places, prepend=-1) <= 0),
                        ("have a value other than 0", tiles.values == 0)):
        wrong = np.flatnonzero(found)
        if wrong.size:
            place = int(places[wrong[0]])
            raise ValueError(f"Entry {place % TILE} of tile {place // TILE} must {what}")
    codes = np.zeros(columns, np.int8)
    codes[places] = tiles.values
    return codes


def _tile_words(compression_factor: int) -> int:
    """Words of a published tile, its count included."""
    words = TILE // compression_factor if compression_factor > 0 else 0
    if words < 2 or TILE % compression_factor:
        raise ValueError(f"Compression factor must divide {TILE} and leave 2 words of it, "
                         f"not {compression_factor}")
    return words


def _published(columns: int) -> int:
    """Tiles of a vector of the published layout."""
    if columns % TILE or not 0 < columns <= _COUNT_LIMIT:
        raise ValueError(f"Column count of the published layout must be a multiple of {TILE} up to "
                         f"{_COUNT_LIMIT}, not {columns}")
    return columns // TILE


def _check_counts(counts: NDArray, capacity: int) -> None:
    wrong = np.flatnonzero(counts > capacity)
    if wrong.size:
        raise ValueError(f"Tile {wrong[0]} overflows: it has {counts[wrong[0]]} entries, but only "
                         f"{capacity} fit")


def to_words(codes: ArrayLike, compression_factor: int = 8, *,
             exponent: int = 0) -> NDArray[np.uint32]:
    """Vector in the published layout.

    Each tile of 256 columns has ``256 / compression_factor`` words. The first is the number of its
    non-zero elements; each of the following has an element's column in the whole vector in bits 0
    to 15, and its value ``code * 2**exponent`` as bf16 in bits 16 to 31. Words that follow the last
    element, which the published kernels leave undefined, are zero.

    Parameters
    ----------
    codes : int8 array, shape (columns,)
    compression_factor : int
        8, 4 and 2 are in use: 31, 63 and 127 elements fit into a tile.
    exponent : int
        Of the codes' scale.

    Returns
    -------
    uint32 array, shape (tiles * words,)

    Raises
    ------
    ValueError
        If a tile overflows, or a number is out of range.
    """
    codes = _int8(codes)
    words = _tile_words(compression_factor)
    tile_count = _published(len(codes))
    tiles = pack(codes)
    _check_counts(tiles.counts, words - 1)
    values = np.ldexp(tiles.values.astype(np.float64), exponent)
    bits = from_float(values)
    if (to_float32(bits) != values).any():
        raise ValueError(f"Exponent must keep every code within bf16, not {exponent}")
    table = np.zeros((tile_count, words), np.uint32)
    table[:, 0] = tiles.counts
    filled = np.arange(words - 1) < tiles.counts[:, np.newaxis]
    table[:, 1:][filled] = bits.astype(np.uint32) << 16 | tiles.columns.astype(np.uint32)
    return table.reshape(-1)


def from_words(words: ArrayLike, columns: int, compression_factor: int = 8, *,
               exponent: int = 0) -> NDArray[np.int8]:
    """Codes of a vector in the published layout: the inverse of :func:`to_words`.

    The published kernels store the elements of a tile in any order. An element of value 0 adds
    nothing to a product, and becomes a code of 0.

    Parameters
    ----------
    words : uint32 array, shape (tiles * words,)
    columns, compression_factor, exponent : int

    Returns
    -------
    int8 array, shape (columns,)

    Raises
    ------
    ValueError
        If a tile overflowed (the kernels keep counting, and overwrite); if a column lies outside
        its tile or comes twice; if a value is no int8 code times ``2**exponent``.
    """
    per_tile = _tile_words(compression_factor)
    tile_count = _published(columns)
    words = np.asarray(words)
    if words.dtype != np.uint32 or words.shape != (tile_count * per_tile,):
        raise ValueError(f"Words must be uint32 of shape ({tile_count * per_tile},), "
                         f"not {words.dtype} of shape {words.shape}")
    table = words.reshape(tile_count, per_tile)
    counts = table[:, 0]
    _check_counts(counts, per_tile - 1)
    tile, slot = np.nonzero(np.arange(per_tile - 1) < counts[:, np.newaxis])
    entries = table[tile, slot + 1]
    places = (entries & 0xFFFF).astype(np.int64)
    bits = (entries >> 16).astype(np.uint16)

    def refuse(wrong: NDArray[np.bool_], message: str) -> None:
        found = np.flatnonzero(wrong)
        if found.size:
            at = int(found[0])
            raise ValueError(f"Word {int(slot[at]) + 1} of tile {int(tile[at])} "
                             + message.format(column=places[at], bits=bits[at]))

    refuse(places // TILE != tile, "names column {column}, which is not of that tile")
    order = np.argsort(places, kind="stable")
    again = np.zeros(len(places), bool)
    again[order[1:]] = np.diff(places[order]) == 0
    refuse(again, "names column {column} a second time")
    refuse((bits & 0x7FFF) >= bf16.infinity, "must have a finite value, not {bits:#06x}")
    values = np.ldexp(to_float32(bits).astype(np.float64), -exponent)
    refuse((values != np.rint(values)) | (values < -128) | (values > 127),
           f"must have a value that is an int8 code times 2**{exponent}, not {{bits:#06x}}")
    codes = np.zeros(columns, np.int8)
    codes[places] = values.astype(np.int8)
    return codes
