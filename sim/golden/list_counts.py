"""Entries of lists as the golden machine counts them, and the timing formula uses them."""

import dataclasses

__all__ = ["ListCounts"]


@dataclasses.dataclass(frozen=True)
class ListCounts:
    """Entries of a list in the mean of some tokens.

    Attributes
    ----------
    found : float
        Before a mask: those without zeros, or all of a DENSE list.
    kept : float
        Behind it.
    """

    found: float
    kept: float
