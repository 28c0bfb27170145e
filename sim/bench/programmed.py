"""A unit that reads a program, together with the program's memory: what benches drive."""

from typing import Any

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In

from hw.common.stream import accepted
from hw.control.dispatch import Dispatch
from hw.control.program import ProgramMemory, program_layout

__all__ = ["Programmed", "join"]


def join(m: Module, outer: Any, inner: Any, member: wiring.Member) -> None:
    """Make ``inner``, a member of a unit within, the same as ``outer``, a member of the bench."""
    if not member.is_port:
        wiring.connect(m, wiring.flipped(outer), inner)
    elif member.flow is In:
        m.d.comb += inner.eq(outer)
    else:
        m.d.comb += outer.eq(inner)


class Programmed(wiring.Component):
    """The unit, but that its program is written by a stream ``i_program``.

    Parameters
    ----------
    unit : Dispatch or hw.control.prefetch.Prefetch

    Members
    -------
    i_program : In(stream) of :func:`hw.control.program.program_layout`
        Accepted while a dispatch is idle; a prefetch always accepts.
    """

    def __init__(self, unit: Any):
        self.unit = unit
        self.config = unit.config
        super().__init__({"i_program": In(stream.Signature(program_layout(unit.config)))} | {
            name: member for name, member in unit.signature.members.items() if name != "program"})

    def elaborate(self, platform):
        """Put the memory beside the unit."""
        m = Module()
        m.submodules.unit = unit = self.unit
        m.submodules.memory = memory = ProgramMemory(self.config)
        dispatch = isinstance(unit, Dispatch)
        wiring.connect(m, unit.program, memory.execution if dispatch else memory.prefetch)
        m.d.comb += [
            self.i_program.ready.eq(unit.idle if dispatch else 1),
            memory.write.eq(accepted(self.i_program)),
            memory.instruction.eq(self.i_program.p),
        ]
        for name, member in unit.signature.members.items():
            if name != "program":
                join(m, getattr(self, name), getattr(unit, name), member)
        return m
