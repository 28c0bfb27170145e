"""Errors of model files, and the checks of numbers that all readers share."""

import numpy as np

from host.errors import TallyError

__all__ = ["ModelFileError", "wrong_number"]


class ModelFileError(TallyError, ValueError):
    """A model file cannot be used; the message is one line that names file, place and reason."""


#: Weights of a model are smaller in magnitude, so that no product or square of them overflows.
LARGEST = 2.0 ** 24


def wrong_number(values: np.ndarray) -> str | None:
    """Say what is wrong with the first number that is not finite or too large, if there is one."""
    odd = np.flatnonzero(~(np.abs(values) < LARGEST))
    if not odd.size:
        return None
    index = np.unravel_index(int(odd[0]), values.shape)
    where = " ".join(f"{axis} {int(place)}" for axis, place in
                     zip(("row", "column") if len(index) == 2 else ("element",), index,
                         strict=True))
    value = float(values[index])
    must = "below 2**24 in magnitude" if np.isfinite(value) else "finite"
    return f"must be {must}, but {where} is {value}"
