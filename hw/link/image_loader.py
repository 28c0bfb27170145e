"""How the host fills the memory: where the next transfer goes, and which image is there."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.link.protocol import MARK_BYTES
from hw.memory.arbiter import address_layout, placed_layout
from hw.memory.port import transfer_layout

__all__ = ["ImageLoader", "mark_layout"]


def mark_layout() -> data.StructLayout:
    """Layout of a mark: ``last`` is 1."""
    return data.StructLayout({"mark": 8 * MARK_BYTES, "last": 1})


class ImageLoader(wiring.Component):
    """Gives the host's transfers their addresses, and keeps the mark of the image in memory.

    Transfers follow one another from the address of the latest seek on. The mark is 0 from
    configuration on, and again as soon as a transfer or an instruction is written: whatever
    interrupts a host, a mark that is not 0 names what the memory holds.

    Parameters
    ----------
    address_width : int
        Bits of an address.
    port_bytes : int
        Bytes of a transfer.

    Members
    -------
    i_seek : In(stream) of :func:`hw.memory.arbiter.address_layout`
    i_data : In(stream) of :func:`hw.memory.port.transfer_layout`
    o_writes : Out(stream) of :func:`hw.memory.arbiter.placed_layout`
    i_mark : In(stream) of {mark: 128}
    o_mark : Out(stream) of :func:`mark_layout`
        Always valid.
    program_written : In(1)
        An instruction is written.
    """

    i_seek: stream.Interface
    i_data: stream.Interface
    o_writes: stream.Interface
    i_mark: stream.Interface
    o_mark: stream.Interface
    program_written: Signal

    def __init__(self, *, address_width: int, port_bytes: int):
        self.port_bytes = port_bytes
        super().__init__({
            "i_seek": In(stream.Signature(address_layout(address_width))),
            "i_data": In(stream.Signature(transfer_layout(port_bytes))),
            "o_writes": Out(stream.Signature(placed_layout(address_width, port_bytes))),
            "i_mark": In(stream.Signature(data.StructLayout({"mark": 8 * MARK_BYTES}))),
            "o_mark": Out(stream.Signature(mark_layout())),
            "program_written": In(1),
        })

    def elaborate(self, platform):
        m = Module()
        address = Signal.like(self.i_seek.p.address)
        mark = Signal.like(self.i_mark.p.mark)
        written = self.o_writes.valid & self.o_writes.ready
        m.d.comb += [
            self.i_seek.ready.eq(1),
            self.i_data.ready.eq(self.o_writes.ready),
            self.o_writes.valid.eq(self.i_data.valid),
            self.o_writes.p.address.eq(address),
            self.o_writes.p.data.eq(self.i_data.p.data),
            self.i_mark.ready.eq(1),
            self.o_mark.valid.eq(1),
            self.o_mark.p.mark.eq(mark),
            self.o_mark.p.last.eq(1),
        ]
        with m.If(self.i_seek.valid):
            m.d.sync += address.eq(self.i_seek.p.address)
        with m.Elif(written):
            m.d.sync += address.eq(address + self.port_bytes)
        with m.If(self.i_mark.valid):
            m.d.sync += mark.eq(self.i_mark.p.mark)
        with m.If(written | self.program_written):
            m.d.sync += mark.eq(0)
        return m
