"""Joining streams: Amaranth 0.5 compares widths only, so a payload's layout is compared here."""

from amaranth.hdl import Module, Value
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.check import positive_int

__all__ = ["StreamBuffer", "StreamQueue", "accepted", "connect_stream"]


def connect_stream(m, producer, consumer):
    """Connect ``producer`` to ``consumer``.

    Raises
    ------
    TypeError
        If the payload shapes differ.
    """
    given, wanted = producer.payload.shape(), consumer.payload.shape()
    if given != wanted:
        raise TypeError(f"Stream payload shape must be {wanted!r}, not {given!r}")
    wiring.connect(m, producer, consumer)


def accepted(port: stream.Interface) -> Value:
    """Return whether a transfer of ``port`` is accepted in this cycle."""
    return port.valid & port.ready


class StreamQueue(wiring.Component):
    """A queue between two streams, in block RAM.

    Parameters
    ----------
    shape : layout
        Of the payload.
    depth : int

    Members
    -------
    i : In(stream)
    o : Out(stream)

    Raises
    ------
    ValueError
        If ``depth`` is not a positive integer.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, shape: data.StructLayout, *, depth: int):
        self.depth = positive_int("Queue depth", depth)
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.queue = queue = fifo.SyncFIFOBuffered(width=self.i.payload.shape().size,
                                                           depth=self.depth)
        m.d.comb += [
            queue.w_data.eq(self.i.payload),
            queue.w_en.eq(self.i.valid),
            self.i.ready.eq(queue.w_rdy),
            self.o.payload.eq(queue.r_data),
            self.o.valid.eq(queue.r_rdy),
            queue.r_en.eq(self.o.ready),
        ]
        return m


class StreamBuffer(wiring.Component):
    """A place between two streams that are far apart: a transfer every two cycles.

    Parameters
    ----------
    shape : layout
        Of the payload.

    Members
    -------
    i : In(stream)
    o : Out(stream)
        Each depends on registers only.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, shape: data.StructLayout):
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.i.ready.eq(~self.o.valid)
        with m.If(~self.o.valid):
            m.d.sync += [self.o.valid.eq(self.i.valid), self.o.payload.eq(self.i.payload)]
        with m.Elif(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        return m
