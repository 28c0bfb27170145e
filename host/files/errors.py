"""Errors of model files, and the checks of numbers that all readers share."""

import numpy as np

from host.checks import FileError

__all__ = ["ModelFileError", "wrong_number", "wrong_scale"]

# Numbers that are looked at together, so that what is computed of them needs little memory.
_CHUNK = 1 << 20


class ModelFileError(FileError):
    """A model file cannot be used; the message is one line that names file, place and reason."""


#: Weights of a model are smaller in magnitude, so that no product or square of them overflows.
LARGEST = 2.0 ** 24

#: Scales of a matrix are at least this: one fp16 can hold, over the root of the widest vectors, and
#: 256 times less. So no product of a few of them is a subnormal number.
SMALLEST = 2.0 ** -40


def wrong_number(values: np.ndarray) -> str | None:
    """Say what is wrong with the first number that is not finite or too large, if there is one."""
    flat = values.reshape(-1)
    # Smallest and largest need no memory; both are NaN if any number is.
    with np.errstate(invalid="ignore"):
        if -LARGEST < flat.min() and flat.max() < LARGEST:
            return None
    for first in range(0, flat.size, _CHUNK):
        odd = np.flatnonzero(~(np.abs(flat[first:first + _CHUNK]) < LARGEST))
        if odd.size:
            break
    index = np.unravel_index(first + int(odd[0]), values.shape)
    where = " ".join(f"{axis} {int(place)}" for axis, place in
                     zip(("row", "column") if len(index) == 2 else ("element",), index,
                         strict=True))
    value = float(values[index])
    must = "below 2**24 in magnitude" if np.isfinite(value) else "finite"
    return f"must be {must}, but {where} is {value}"


def wrong_scale(value: float) -> str | None:
    """Say what a scale must be, if it is not positive and of a useful size."""
    if SMALLEST <= value < LARGEST:     # NaN is not
        return None
    return f"must be from 2**-40 to 2**24, not {value!r}"
