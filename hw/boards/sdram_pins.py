"""Pins of an SDR SDRAM: registers in the I/O cells, and the clock that the chip gets."""

from typing import Any

from amaranth import *
from amaranth.lib import io, wiring
from amaranth.lib.wiring import In

from hw.memory.sdram import pins_signature
from hw.memory.sdram_chip import SdramChip

__all__ = ["SdramClock", "SdramPins"]

#: Pins of the resource by the controller's names. A resource inverts what is active low itself.
_OUTPUTS = {"cs": "cs_n", "ras": "ras_n", "cas": "cas_n", "we": "we_n", "ba": "ba", "a": "a",
            "dqm": "dqm", "clk_en": "cke"}
#: Those that some boards tie.
_TIED = ("clk_en", "cs", "dqm")


class SdramPins(wiring.Component):
    """Registers between :class:`hw.memory.sdram.SdramController` and the chip, a cycle each way.

    On ECP5 they lie in the I/O cells: all pins change within a fraction of a nanosecond, and what
    the chip answers is caught at the pin.

    Parameters
    ----------
    chip : SdramChip
    resource : Any
        Pins as ``SDRAMResource`` of amaranth-boards names them, requested with ``dir="-"``, or
        simulation ports.

    Members
    -------
    pins : In of :func:`hw.memory.sdram.pins_signature`

    Raises
    ------
    ValueError
        If the resource has another width of data or fewer address pins than the chip.
    """

    pins: wiring.PureInterface

    def __init__(self, *, chip: SdramChip, resource: Any):
        self._resource = resource
        if len(resource.dq) != chip.data_bits:
            raise ValueError(f"SDRAM data pins must be {chip.data_bits}, not {len(resource.dq)}")
        if len(resource.a) < chip.address_bits:
            raise ValueError(f"SDRAM address pins must be at least {chip.address_bits}, "
                             f"not {len(resource.a)}")
        super().__init__({"pins": In(pins_signature(chip))})

    def elaborate(self, platform):
        m = Module()
        for name, member in _OUTPUTS.items():
            if name in _TIED and not hasattr(self._resource, name):
                continue
            m.submodules[name] = buffer = io.FFBuffer(io.Direction.Output,
                                                      getattr(self._resource, name))
            value = getattr(self.pins, member)
            m.d.comb += buffer.o.eq(~value if member.endswith("_n") else value)
        m.submodules.dq = dq = io.FFBuffer(io.Direction.Bidir, self._resource.dq)
        m.d.comb += [dq.o.eq(self.pins.dq_o), dq.oe.eq(self.pins.dq_oe), self.pins.dq_i.eq(dq.i)]
        return m


class SdramClock(wiring.Component):
    """The clock pin of an SDR SDRAM, from a DDR cell: it changes as the other pins do.

    Parameters
    ----------
    resource : Any
        As of :class:`SdramPins`.
    domain : str
        Clock domain of the DDR cell. Its phase decides when the chip takes commands, and how much
        later than without one its data come.
    inverted : bool
        The clock rises in the middle of the domain's cycle: half a period after commands change.
    """

    def __init__(self, *, resource: Any, domain: str = "sync", inverted: bool = True):
        self._port, self._domain, self._inverted = resource.clk, domain, inverted
        super().__init__({})

    def elaborate(self, platform):
        m = Module()
        m.submodules.clk = clk = io.DDRBuffer(io.Direction.Output, self._port,
                                              o_domain=self._domain)
        m.d.comb += [clk.o[0].eq(int(not self._inverted)), clk.o[1].eq(int(self._inverted))]
        return m
