"""What a board is, as plain data; each has a file of its own. The host reads it too."""

import dataclasses

from hw.check import positive_int
from hw.config import AcceleratorConfig, EngineConfig
from hw.memory.sdram_chip import SdramChip

__all__ = ["Board", "AcceleratorBoard", "EngineBoard"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Board:
    """A board and what is built for it.

    Attributes
    ----------
    name : str
    platform : str
        Module and class of its pins, of ``amaranth_boards`` or of its own.
    clock_hz : int
        Clock of everything, but of an SDRAM that has its own.
    pll : dict of str to int
        Dividers of the PLL that makes this clock; empty where the oscillator is the clock.
    baud : int
        Bits per second on the serial line; a divisor of the clock.
    config : EngineConfig or AcceleratorConfig
    payload_bytes : int
        Longest payload of a frame.
    loader : str
        The board's name in openFPGALoader.
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
    loader: str = ""
    high_outputs: tuple[str, ...] = ()

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.type is int:
                positive_int(f"Board field {field.name}", getattr(self, field.name))
        if self.clock_hz % self.baud:
            raise ValueError(f"Baud rate of board {self.name} must divide its clock of "
                             f"{self.clock_hz} Hz, not be {self.baud}")

    @property
    def has_ecp5_pll(self) -> bool:
        """Whether the dividers are those of an ECP5's PLL; others are those of Gowin's rPLL."""
        return "CLKOP_DIV" in self.pll

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
    """An accelerator and its memory: all the bytes that an address can reach.

    Attributes
    ----------
    config : AcceleratorConfig
    answer_queue : int
        Results that a pass delivers without waiting for the host.
    sdram : SdramChip, optional
        The memory; block RAM without one. Its clock is shifted at the chip.
    sdram_divider : int, optional
        Divider of the PLL's oscillator for a clock of the SDRAM and its controller, behind
        :class:`hw.memory.crossing.PortCrossing`. Without it they have the clock of everything.
    sdram_clock_phase : float
        Degrees by which the clock rises later at the chip than commands and data change: 180 is the
        inverted clock, any other has an output of the PLL of its own, in steps of
        :attr:`phase_step`.
    sdram_pin_cycles : int
        Cycles from a command at the controller to the chip and of its data back, beside the CAS
        latency.
    """

    config: AcceleratorConfig
    payload_bytes: int = 1024
    answer_queue: int = 256
    sdram: SdramChip | None = None
    sdram_divider: int | None = None
    sdram_clock_phase: float = 180
    sdram_pin_cycles: int = 2

    def __post_init__(self):
        super().__post_init__()
        if self.sdram_divider is not None and (self.sdram is None or not self.has_ecp5_pll):
            raise ValueError(f"Board {self.name} must have an SDRAM and the PLL of an ECP5 to have "
                             f"an sdram_divider")
        if self.sdram is not None:
            self.sdram.cycles(self.sdram_hz)
            if self.config.memory_bytes != self.sdram.memory_bytes:
                raise ValueError(f"Address width of board {self.name} must reach the "
                                 f"{self.sdram.memory_bytes:,} bytes of its SDRAM, not "
                                 f"{self.config.memory_bytes:,}")
            phase = self.sdram_clock_phase
            if not 0 < phase < 360 or (phase != 180 and phase % self.phase_step):
                raise ValueError(f"SDRAM clock phase of board {self.name} must be 180 degrees or a "
                                 f"multiple of {self.phase_step:g} between 0 and 360, not {phase}")

    @property
    def sdram_hz(self) -> int:
        """Clock of the SDRAM, rounded up."""
        if self.sdram_divider is None:
            return self.clock_hz
        return -(-self.clock_hz * self.pll["CLKOP_DIV"] // self.sdram_divider)

    @property
    def phase_steps(self) -> int:
        """Steps of :attr:`phase_step` in a cycle of the chip's clock, if a host can do them.

        0 without an SDRAM whose clock has an output of its own, of an ECP5's PLL: the phase of
        Gowin's stays as it is built.
        """
        if self.sdram is None or self.sdram_clock_phase == 180 or not self.has_ecp5_pll:
            return 0
        return round(360 / self.phase_step)

    @property
    def phase_step(self) -> float:
        """Degrees between phases that the PLL has.

        That of an ECP5 has eighths of a cycle of its oscillator, Gowin's rPLL sixteenths of a cycle
        of the clock.
        """
        if self.has_ecp5_pll:
            return 360 / (8 * (self.sdram_divider or self.pll["CLKOP_DIV"]))
        return 22.5 if self.pll else 180
