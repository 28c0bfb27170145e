"""The top of a board: clock, pins, and the system between them."""

import importlib
from typing import Any

from amaranth import *
from amaranth.lib import io, wiring

from hw.boards.board import AcceleratorBoard, Board, EngineBoard
from hw.boards.sdram_pins import SdramClock, SdramPins
from hw.boards.system import BoardSystem

__all__ = ["BoardTop", "load_platform"]


def load_platform(board: Board) -> Any:
    """Return the platform of ``board``; raises ``ModuleNotFoundError`` without amaranth-boards."""
    module, name = board.platform.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)()


class BoardTop(Elaboratable):
    """A board's pins around :class:`BoardSystem`.

    Parameters
    ----------
    board : EngineBoard or AcceleratorBoard
    """

    def __init__(self, board: EngineBoard | AcceleratorBoard):
        self.board = board
        self.system = BoardSystem(board)

    def elaborate(self, platform):
        m = Module()
        if self.board.pll:
            self._clock(m, platform)

        pins = platform.request("uart", 0, dir="-")
        m.submodules.rx = rx = io.Buffer(io.Direction.Input, pins.rx)
        m.submodules.tx = tx = io.Buffer(io.Direction.Output, pins.tx)
        m.submodules.system = self.system
        m.d.comb += [self.system.rx.eq(rx.i), tx.o.eq(self.system.tx)]
        if isinstance(self.board, AcceleratorBoard) and self.board.sdram is not None:
            resource = platform.request("sdram", 0, dir="-")
            domain = "sync" if self.board.sdram_divider is None else "memory"
            sdram = SdramPins(chip=self.board.sdram, resource=resource)
            m.submodules.sdram = DomainRenamer(domain)(sdram)
            shifted = self._sdram_steps > 0
            m.submodules.sdram_clock = SdramClock(
                resource=resource, domain="sdram" if shifted else domain, inverted=not shifted)
            wiring.connect(m, self.system.sdram, sdram.pins)
        for name in self.board.high_outputs:
            pin = platform.request(name, 0, dir="-")
            m.submodules[name] = buffer = io.Buffer(io.Direction.Output, pin)
            m.d.comb += buffer.o.eq(1)
        return m

    def _clock(self, m, platform):
        """Make ``sync`` from the oscillator; its reset ends when the PLL has locked."""
        pin = platform.request(platform.default_clk, 0, dir="-")
        m.submodules.oscillator = oscillator = io.Buffer(io.Direction.Input, pin)
        clock = Signal()
        locked = Signal()
        locked_here = Signal(2)
        pll = self._ecp5_pll if self.board.has_ecp5_pll else self._gowin_pll
        m.submodules.pll = pll(m, platform, oscillator.i, clock, locked)
        m.domains.sync = ClockDomain()
        m.d.comb += ClockSignal().eq(clock)
        m.d.comb += ResetSignal().eq(~locked_here[1])
        m.domains.unlocked = ClockDomain(local=True, reset_less=True)
        m.d.comb += ClockSignal("unlocked").eq(clock)
        m.d.unlocked += locked_here.eq(Cat(locked, locked_here[0]))

    def _ecp5_pll(self, m, platform, oscillator: Value, clock: Signal, locked: Signal) -> Instance:
        # nextpnr derives the constraint of this clock from the oscillator's and the dividers.
        outputs = self._sdram_clock(m)
        return Instance(
            "EHXPLLL", a_FREQUENCY_PIN_CLKI=str(platform.default_clk_frequency / 1e6),
            a_FREQUENCY_PIN_CLKOP=str(self.board.clock_hz / 1e6), a_ICP_CURRENT="12",
            a_LPF_RESISTOR="8", p_PLLRST_ENA="DISABLED", p_INTFB_WAKE="DISABLED",
            p_STDBY_ENABLE="DISABLED", p_OUTDIVIDER_MUXA="DIVA",
            p_CLKOP_ENABLE="ENABLED", p_CLKOP_CPHASE=self.board.pll["CLKOP_DIV"] - 1,
            p_CLKOP_FPHASE=0, p_FEEDBK_PATH="CLKOP",
            **{f"p_{name}": value for name, value in self.board.pll.items()}, **outputs,
            i_CLKI=oscillator, i_CLKFB=clock, i_RST=0, i_STDBY=0, i_PHASELOADREG=1,
            i_PLLWAKESYNC=0, i_ENCLKOP=0, o_CLKOP=clock, o_LOCK=locked)

    def _gowin_pll(self, m, platform, oscillator: Value, clock: Signal, locked: Signal) -> Instance:
        outputs: dict[str, Any] = {}
        if self._sdram_steps:
            outputs = {"p_PSDA_SEL": f"{self._sdram_steps:04b}",
                       "o_CLKOUTP": self._clock_domain(m, "sdram")}
        return Instance(
            "rPLL", p_DEVICE=platform.family, p_FCLKIN=str(platform.default_clk_frequency / 1e6),
            p_CLKFB_SEL="internal", p_DYN_IDIV_SEL="false", p_DYN_FBDIV_SEL="false",
            p_DYN_ODIV_SEL="false", p_DYN_DA_EN="false", p_DUTYDA_SEL="1000",
            **{f"p_{name}": value for name, value in self.board.pll.items()}, **outputs,
            i_CLKIN=oscillator, i_CLKFB=0, i_RESET=0, i_RESET_P=0, i_FBDSEL=Const(0, 6),
            i_IDSEL=Const(0, 6), i_ODSEL=Const(0, 6), i_PSDA=Const(0, 4), i_DUTYDA=Const(0, 4),
            i_FDLY=Const(0, 4), o_CLKOUT=clock, o_LOCK=locked)

    @property
    def _sdram_steps(self) -> int:
        """Steps of its phase by which the PLL's output for the SDRAM is late; 0 without one."""
        board = self.board
        if (not isinstance(board, AcceleratorBoard) or board.sdram is None
                or board.sdram_clock_phase == 180):
            return 0
        return round(board.sdram_clock_phase / board.phase_step)

    def _clock_domain(self, m, name: str) -> Signal:
        """Make a domain without reset, and return the clock that the PLL has to drive."""
        clock = Signal(name=f"{name}_clock")
        domain = ClockDomain(name, reset_less=True)
        m.domains += domain
        m.d.comb += domain.clk.eq(clock)
        return clock

    def _sdram_clock(self, m) -> dict[str, Any]:
        """Return what the PLL of an ECP5 needs for the SDRAM's clocks, if there are any.

        They are ``sdram``, that of the chip, and ``memory``, that of the controller, whose reset is
        that of the port's crossing.
        """
        board = self.board
        parameters: dict[str, Any] = {
            "p_DPHASE_SOURCE": "DISABLED", "i_PHASESEL0": 0, "i_PHASESEL1": 0,   # CLKOS
            "i_PHASEDIR": 0, "i_PHASESTEP": 1}
        if not isinstance(board, AcceleratorBoard) or board.sdram is None:
            return parameters
        divider = board.sdram_divider or board.pll["CLKOP_DIV"]
        if board.sdram_divider is not None:
            parameters |= {"p_CLKOS2_ENABLE": "ENABLED", "p_CLKOS2_DIV": divider,
                           "o_CLKOS2": self._clock_domain(m, "memory"),
                           "p_CLKOS2_CPHASE": divider - 1, "p_CLKOS2_FPHASE": 0,
                           "p_OUTDIVIDER_MUXC": "DIVC", "i_ENCLKOS2": 0}
        if self._sdram_steps:
            # Cycles of the oscillator and their eighths, behind those of the controller's clock.
            cycles, eighths = divmod(self._sdram_steps, 8)
            parameters |= {"p_CLKOS_ENABLE": "ENABLED", "p_CLKOS_DIV": divider,
                           "o_CLKOS": self._clock_domain(m, "sdram"),
                           "p_CLKOS_CPHASE": divider - 1 + cycles, "p_CLKOS_FPHASE": eighths,
                           "p_OUTDIVIDER_MUXB": "DIVB", "i_ENCLKOS": 0,
                           "p_DPHASE_SOURCE": "ENABLED", "i_PHASEDIR": self.system.phase_back,
                           "i_PHASESTEP": ~self.system.phase_step}
        return parameters
