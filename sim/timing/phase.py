"""When the data of an SDRAM are valid at the registers of a board's pins, and its commands."""

import dataclasses

from hw.boards.board import AcceleratorBoard

__all__ = ["PinTiming", "pin_timing"]

#: Nanoseconds: from a chip's clock to valid data at CAS latency 2 and 3, and until they change; a
#: command's setup and hold. The worst of the chips that boards carry (hw/memory/sdram_chip.py).
_ACCESS_NS, _HOLD_NS = {2: 6.0, 3: 5.4}, 2.5
_COMMAND_SETUP_NS, _COMMAND_HOLD_NS = 1.5, 0.8

#: Nanoseconds through the FPGA's output cell to the chip and through its input cell to the register
#: of a pin, together: an estimate. No board was measured.
_PATH_NS = 5.0


@dataclasses.dataclass(frozen=True)
class PinTiming:
    """Times at the pins, in nanoseconds, for one phase of the chip's clock.

    Attributes
    ----------
    cycle : int
        Cycles from a command's register to that which takes its data, beside the CAS latency, if
        the data are taken in the cycle in which they are valid.
    data_before, data_after : float
        The data are valid from so long before that register takes them until so long after.
    command_before, command_after : float
        A command is stable from so long before the chip takes it until so long after.
    """

    cycle: int
    data_before: float
    data_after: float
    command_before: float
    command_after: float

    @property
    def margin(self) -> float:
        """Nanoseconds by which the clock could come earlier or later and all would still be right.

        Negative if commands or data are taken while they are not valid.
        """
        return min(self.data_before, self.data_after, self.command_before - _COMMAND_SETUP_NS,
                   self.command_after - _COMMAND_HOLD_NS)


def pin_timing(board: AcceleratorBoard, degrees: float) -> PinTiming:
    """Derive the times at the pins of a board.

    Parameters
    ----------
    board : AcceleratorBoard
        With an SDRAM.
    degrees : float
        Phase of the chip's clock; a whole turn makes no difference.
    """
    assert board.sdram is not None
    period = 1e9 / board.sdram_hz
    later = degrees % 360 / 360 * period
    valid = later + _ACCESS_NS[board.sdram.cas_latency] + _PATH_NS
    cycle = -int(-valid // period)
    before = cycle * period - valid
    window = period + _HOLD_NS - _ACCESS_NS[board.sdram.cas_latency]
    return PinTiming(cycle, before, window - before, later, period - later)
