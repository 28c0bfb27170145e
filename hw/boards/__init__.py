"""Boards: what is different between them, as plain data. The host reads it too."""

import dataclasses

from hw.common.check import positive_int
from hw.config import EngineConfig

__all__ = ["BOARDS", "Board"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Board:
    """A board and what is built for it.

    Attributes
    ----------
    name : str
    platform : str
        Module and class of its pins in ``amaranth_boards``.
    clock_hz : int
        Clock of everything.
    pll : dict of str to int
        Dividers of the PLL that makes this clock; empty where the oscillator is the clock.
    baud : int
        Bits per second on the serial line; a divisor of the clock.
    config : EngineConfig
    payload_bytes : int
        Longest payload of a frame.
    entry_queue : int
        List entries that the device takes ahead of their weights.
    high_outputs : tuple of str
        Output pins that must be high.
    """

    name: str
    platform: str
    clock_hz: int
    pll: dict[str, int] = dataclasses.field(default_factory=dict)
    baud: int
    config: EngineConfig
    payload_bytes: int = 512
    entry_queue: int = 512
    high_outputs: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("clock_hz", "baud", "payload_bytes", "entry_queue"):
            positive_int(f"Board field {name}", getattr(self, name))
        if self.clock_hz % self.baud:
            raise ValueError(f"Baud rate of board {self.name} must divide its clock of "
                             f"{self.clock_hz} Hz, not be {self.baud}")

    @property
    def divisor(self) -> int:
        """Clock cycles per bit on the serial line."""
        return self.clock_hz // self.baud


#: Every board by name.
BOARDS = {board.name: board for board in (
    # 25 MHz * 3 from the PLL's oscillator at 600 MHz. The FT231X goes up to 3 Mbaud.
    Board(name="ulx3s", platform="ulx3s.ULX3S_85F_Platform", clock_hz=75_000_000,
          pll={"CLKI_DIV": 1, "CLKFB_DIV": 3, "CLKOP_DIV": 8}, baud=3_000_000,
          config=EngineConfig(target="ecp5"), high_outputs=("uart_tx_enable",)),
    # The UP5K has 30 block RAMs, and every lane takes two of them for its accumulators.
    Board(name="icebreaker", platform="icebreaker.ICEBreakerPlatform", clock_hz=12_000_000,
          baud=1_000_000, entry_queue=256,
          config=EngineConfig(lanes=8, accumulator_width=24, accumulator_depth=128, max_planes=3,
                              max_batch=2, packing="1in2", port_bytes=1, result_lanes=2)),
)}
