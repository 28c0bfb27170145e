"""Trits in NumPy: balanced ternary planes, and the packed image of a matrix.

docs/numerics.md, sections 1 and 2, says what the bytes mean; :mod:`hw.formats.trits` holds the
codes. Encoding is one table lookup a code, decoding as well.
"""

import functools

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hw.check import positive_int
from hw.config import EngineConfig
from hw.formats.trits import PACKINGS

__all__ = ["combine_planes", "pack_words", "planes", "unpack_words"]


def plane_limit(count: int) -> int:
    """Largest weight that ``count`` trit planes hold, ``(3**count - 1) / 2``."""
    return (3 ** positive_int("Plane count", count) - 1) // 2


def planes(weights: ArrayLike, count: int) -> NDArray[np.int8]:
    """Split integers into balanced ternary digits.

    Parameters
    ----------
    weights : array of int
        Weights of any shape.
    count : int
        Planes; they hold ``-(3**count - 1) / 2`` to ``(3**count - 1) / 2``.

    Returns
    -------
    array of int8, shape (count, ...)
        Trits with ``weights == sum(3**p * trits[p])``.

    Raises
    ------
    ValueError
        If a weight does not fit.
    """
    limit = plane_limit(count)
    weights = np.asarray(weights)
    if weights.size and max(-int(weights.min()), int(weights.max())) > limit:
        raise ValueError(f"Weights in {count} trit planes must be -{limit} to {limit}, "
                         f"not {weights.min()} to {weights.max()}")
    # Adding 11...1 in base 3 turns the digits 0, 1, 2 of the sum into trits plus one.
    codes = np.arange(-limit, limit + 1) + limit
    digits = np.stack([codes // 3 ** p % 3 - 1 for p in range(count)]).astype(np.int8)
    offsets = weights.astype(np.int64 if count > 8 else np.int16) + limit
    return np.stack([plane[offsets] for plane in digits])


def combine_planes(trits: ArrayLike) -> NDArray[np.int64]:
    """Put the integers of :func:`planes` together again; the first axis is the plane."""
    trits = np.asarray(trits, dtype=np.int64)
    return np.einsum("p,p...->...", 3 ** np.arange(len(trits), dtype=np.int64), trits)


@functools.cache
def _tables(packing: str) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """Codes by base-3 index (trit k + 1 is digit k), and trits by code."""
    codec = PACKINGS[packing]
    encode = np.zeros(3 ** codec.trits, dtype=np.uint8)
    for trits, code in codec.encode_table().items():
        encode[sum((trit + 1) * 3 ** k for k, trit in enumerate(trits))] = code
    return encode, np.array(codec.decode_table(), dtype=np.int8)


def pack_words(trits: ArrayLike, config: EngineConfig) -> NDArray[np.uint8]:
    """Pack a matrix into the image that the weight port reads, column by column.

    Parameters
    ----------
    trits : array of int8, shape (planes, rows, columns) or (rows, columns)
        Trits of each plane; two axes mean one plane.
    config : EngineConfig
        Gives ``lanes`` and ``packing``.

    Returns
    -------
    array of uint8, shape (columns, planes, groups, word_bytes)
        C-contiguous, so ``.tobytes()`` is the image.

    Raises
    ------
    ValueError
        If ``trits`` has another number of axes, or holds anything but -1, 0 and +1.
    """
    trits = np.asarray(trits)
    if trits.ndim not in (2, 3):
        raise ValueError(f"Trits must have shape (planes, rows, columns) or (rows, columns), "
                         f"not {trits.shape}")
    trits = trits[np.newaxis] if trits.ndim == 2 else trits
    if trits.size and (trits.min() < -1 or trits.max() > 1):
        raise ValueError(f"Trits must be -1 to 1, not {trits.min()} to {trits.max()}")
    codec = PACKINGS[config.packing]
    encode, _ = _tables(config.packing)
    count, rows, columns = trits.shape
    groups = config.groups(rows)
    codes = -(-config.lanes // codec.trits)

    # Digits 0, 1, 2 for trits -1, 0, +1; lanes without a row hold the zero trit, digit 1.
    digits = np.ones((columns, count, groups, config.lanes), dtype=np.uint8)
    digits.reshape(columns, count, groups * config.lanes)[:, :, :rows] = (
        (trits.astype(np.int8) + 1).view(np.uint8).transpose(2, 0, 1))
    index: NDArray[np.uint8] = np.zeros((columns, count, groups, codes), dtype=np.uint8)
    for k in range(codec.trits):
        lanes = digits[..., k::codec.trits]
        index[..., :lanes.shape[-1]] += lanes * np.uint8(3 ** k)
        index[..., lanes.shape[-1]:] += np.uint8(3 ** k)
    packed = encode[index]
    if codec.bits == 8:
        return packed
    bits = np.unpackbits(packed[..., np.newaxis], axis=-1, count=codec.bits, bitorder="little")
    return np.packbits(bits.reshape(*packed.shape[:-1], codes * codec.bits), axis=-1,
                       bitorder="little")


def unpack_words(image: ArrayLike, rows: int, config: EngineConfig) -> NDArray[np.int8]:
    """Trits of a packed image: the inverse of :func:`pack_words`.

    Parameters
    ----------
    image : array of uint8, shape (columns, planes, groups, word_bytes)
        Packed image. Every byte has a meaning; lanes without a row are not looked at.
    rows : int
        Rows of the matrix, which the image holds only rounded up to the lanes.
    config : EngineConfig
        Gives ``lanes`` and ``packing``.

    Returns
    -------
    array of int8, shape (planes, rows, columns)

    Raises
    ------
    ValueError
        If the shape of ``image`` does not fit ``rows`` and ``config``.
    """
    image = np.asarray(image, dtype=np.uint8)
    expected = (config.groups(positive_int("Row count", rows)), config.word_bytes)
    if image.ndim != 4 or image.shape[2:] != expected:
        raise ValueError(f"Image of {rows} rows must have shape (columns, planes, "
                         f"{expected[0]}, {expected[1]}), not {image.shape}")
    codec = PACKINGS[config.packing]
    _, decode = _tables(config.packing)
    codes = -(-config.lanes // codec.trits)
    if codec.bits == 8:
        packed = image
    else:
        bits = np.unpackbits(image, axis=-1, count=codes * codec.bits, bitorder="little")
        packed = np.packbits(bits.reshape(*image.shape[:-1], codes, codec.bits), axis=-1,
                             bitorder="little")[..., 0]
    trits = decode[packed].reshape(*image.shape[:-1], codes * codec.trits)[..., :config.lanes]
    columns, count, groups = image.shape[:3]
    return np.ascontiguousarray(
        trits.reshape(columns, count, groups * config.lanes)[..., :rows].transpose(1, 2, 0))
