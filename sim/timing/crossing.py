"""Cycles of the memory port between two clocks."""

__all__ = ["crossing_cycles"]


def crossing_cycles(user: float, memory: float) -> tuple[float, float]:
    """Cycles that :class:`hw.memory.crossing.PortCrossing` adds to the latency of a read.

    A transfer that was accepted is offered on the other side behind the second edge of its clock,
    so it may be accepted at the third; a read and its data also pass a register on the memory's
    side, and the data one on the user's.

    Parameters
    ----------
    user, memory : float
        Periods of the clocks of the port's user and of the memory, in the same unit.

    Returns
    -------
    tuple of float
        The least and the most, in cycles of the user's clock; both ways together.
    """
    ratio = memory / user
    return 3 + 4 * ratio, 4 + 5 * ratio
