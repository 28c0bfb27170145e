"""A register between two streams, at full rate: no path leads through it."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["SkidBuffer"]


class SkidBuffer(wiring.Component):
    """Two entries: one is offered, one is where a transfer goes that could not be stopped in time.

    A transfer comes out the cycle after it went in, and one can go in every cycle.

    Parameters
    ----------
    shape : layout
        Of the payload.

    Members
    -------
    i : In(stream)
        ``ready`` is a register.
    o : Out(stream)
        ``valid`` and ``payload`` are registers.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, shape: data.StructLayout):
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        kept = Signal.like(self.i.payload, reset_less=True)
        full = Signal()                         # kept is to be offered next
        m.d.comb += self.i.ready.eq(~full)
        with m.If(self.o.ready | ~self.o.valid):
            m.d.sync += [
                self.o.valid.eq(full | self.i.valid),
                self.o.payload.eq(Mux(full, kept.as_value(), self.i.payload.as_value())),
                full.eq(0),
            ]
        with m.Elif(self.i.valid & ~full):
            m.d.sync += full.eq(1)
        with m.If(~full):
            m.d.sync += kept.eq(self.i.payload)
        return m
