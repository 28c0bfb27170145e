"""Boards: what is different between them, as plain data. The host reads it too."""

import dataclasses

from hw.check import positive_int
from hw.config import AcceleratorConfig, EngineConfig

__all__ = ["BOARDS", "Board", "AcceleratorBoard", "EngineBoard"]


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
    config : EngineConfig or AcceleratorConfig
    payload_bytes : int
        Longest payload of a frame.
    high_outputs : tuple of str
        Output pins that must be high.
    """

    name: str
    platform: str
    clock_hz: int
    pll: dict[str, int] = dataclasses.field(default_factory=dict)
    baud: int
    config: EngineConfig | AcceleratorConfig
    payload_bytes: int = 512
    high_outputs: tuple[str, ...] = ()

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.type is int:
                positive_int(f"Board field {field.name}", getattr(self, field.name))
        if self.clock_hz % self.baud:
            raise ValueError(f"Baud rate of board {self.name} must divide its clock of "
                             f"{self.clock_hz} Hz, not be {self.baud}")

    @property
    def divisor(self) -> int:
        """Clock cycles per bit on the serial line."""
        return self.clock_hz // self.baud


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineBoard(Board):
    """Engine and L-Mul unit; the host sends the weights with every product.

    Attributes
    ----------
    config : EngineConfig
    entry_queue : int
        List entries that the device takes ahead of their weights.
    """

    config: EngineConfig
    entry_queue: int = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class AcceleratorBoard(Board):
    """An accelerator, with its memory in block RAM: all the bytes that an address can reach.

    Attributes
    ----------
    config : AcceleratorConfig
    answer_queue : int
        Results that a pass delivers without waiting for the host.
    """

    config: AcceleratorConfig
    payload_bytes: int = 1024
    answer_queue: int = 256


#: Every board by name.
BOARDS: dict[str, EngineBoard | AcceleratorBoard] = {board.name: board for board in (
    # 25 MHz * 3 from the PLL's oscillator at 600 MHz. The FT231X goes up to 3 Mbaud.
    EngineBoard(name="ulx3s", platform="ulx3s.ULX3S_85F_Platform", clock_hz=75_000_000,
                pll={"CLKI_DIV": 1, "CLKFB_DIV": 3, "CLKOP_DIV": 8}, baud=3_000_000,
                config=EngineConfig(target="ecp5"), high_outputs=("uart_tx_enable",)),
    # 25 MHz * 16 / 5 from the PLL's oscillator at 640 MHz. Block RAM limits the model, so that of
    # the accumulators is LUT RAM. A word for 32 lanes needs 7 of the memory's 8 bytes a cycle. With
    # 64 lanes, or 8 vector lanes, no placement that was tried met this clock.
    AcceleratorBoard(name="ulx3s-accelerator", platform="ulx3s.ULX3S_85F_Platform",
                     clock_hz=80_000_000,
                     pll={"CLKI_DIV": 5, "CLKFB_DIV": 16, "CLKOP_DIV": 8}, baud=2_000_000,
                     config=AcceleratorConfig(
                         engine=EngineConfig(lanes=32, result_lanes=4, accumulator_width=20,
                                             accumulator_depth=16, max_planes=3, max_batch=1,
                                             index_width=12, port_bytes=8, target="ecp5"),
                         vector_depth=4096, program_depth=512, list_depth=1024, queue_words=64,
                         top_k=16, address_width=17),
                     high_outputs=("uart_tx_enable",)),
    # The UP5K has 30 block RAMs, and every lane takes two of them for its accumulators.
    EngineBoard(name="icebreaker", platform="icebreaker.ICEBreakerPlatform", clock_hz=12_000_000,
                baud=1_000_000, entry_queue=256,
                config=EngineConfig(lanes=8, accumulator_width=24, accumulator_depth=128,
                                    max_planes=3, max_batch=2, packing="1in2", port_bytes=1,
                                    result_lanes=2)),
)}
