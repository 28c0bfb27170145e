"""Transfers of a cache's vectors become rows of bf16 numbers, as many as are multiplied at once."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.arith.e4m3 import expanded
from hw.config import AcceleratorConfig
from hw.formats.minifloat import bf16
from hw.memory.port import transfer_layout

__all__ = ["RowSource"]


class RowSource(wiring.Component):
    """Cuts transfers into rows of ``attention_elements`` numbers, or joins two of them to one.

    A row stays until it is taken. Transfers are accepted as fast as rows are taken: the next one
    in the cycle in which the last row of the one before is.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    i : In(stream) of :func:`hw.memory.port.transfer_layout`
    e4m3 : In(1)
        Format of the cache, else bf16; must not change while there are rows.
    row : Out(array of 16 bits)
    valid : Out(1)
    take : In(1)
        The row is not needed any more; only with ``valid``.
    """

    i: stream.Interface
    e4m3: Signal
    row: data.View
    valid: Signal
    take: Signal

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__({
            "i": In(stream.Signature(transfer_layout(config.port_bytes))),
            "e4m3": In(1),
            "row": Out(data.ArrayLayout(bf16.width, config.attention_elements)),
            "valid": Out(1), "take": In(1),
        })

    def elaborate(self, platform):
        m = Module()
        port, count = self.config.port_bytes, self.config.attention_elements
        # A row of bf16 may be two transfers, of which the first waits.
        joins = 2 * count > port
        held = Signal(8 * max(port, 2 * count), reset_less=True)
        parts = port // count                   # rows of e4m3 in a transfer
        part = Signal(range(max(2, parts)))
        final = Signal()
        m.d.comb += [
            final.eq(part == Mux(self.e4m3, parts - 1, max(0, parts // 2 - 1))),
            self.i.ready.eq(~self.valid | (self.take & final)),
        ]
        with m.If(self.take):
            m.d.sync += [part.eq(Mux(final, 0, part + 1)), self.valid.eq(~final)]
        if joins:
            low = Signal(8 * port, reset_less=True)
            waits = Signal()                    # there is a first half
            first = Signal()
            m.d.comb += first.eq(~self.e4m3 & ~waits)
            with m.If(first):
                m.d.comb += self.i.ready.eq(1)
            with m.If(self.i.valid & self.i.ready):
                m.d.sync += waits.eq(first)
                with m.If(first):
                    m.d.sync += low.eq(self.i.p.data)
                with m.Else():
                    m.d.sync += [
                        held.eq(Mux(self.e4m3, self.i.p.data, Cat(low, self.i.p.data))),
                        self.valid.eq(1),
                    ]
        else:
            with m.If(self.i.valid & self.i.ready):
                m.d.sync += [held.eq(self.i.p.data), self.valid.eq(1)]

        for k in range(count):
            byte = held[:8 * port].word_select(part, 8 * count)[8 * k:8 * k + 8]
            word = held[16 * k:16 * k + 16]
            if not joins:
                word = held.word_select(part, 16 * count)[16 * k:16 * k + 16]
            m.d.comb += self.row[k].eq(Mux(self.e4m3, expanded(byte), word))
        return m
