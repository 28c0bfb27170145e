"""TOP_K of the instruction set: the largest integers of a product, with their rows."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from hw.config import AcceleratorConfig
from hw.engine.result_queue import result_layout
from hw.isa import FIELDS

__all__ = ["TopK", "top_k_layout"]


def top_k_layout(config: AcceleratorConfig) -> data.StructLayout:
    """Layout of one of the largest integers."""
    return data.StructLayout({
        "index": FIELDS["a"],
        "value": signed(config.engine.accumulator_width),
        "last": 1,
    })


class TopK(wiring.Component):
    """The ``top_k`` largest integers of a product, largest first, equal ones by row.

    .. code-block:: text

        o_top_k = integers[rows], rows = sim.golden.top_k.largest_rows(integers, count)

    A transfer takes a cycle, and two more for each of its integers that is among the largest so
    far. :func:`sim.timing.units.top_k_cycles` has the exact formula.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    i_commands : In(stream) of {rows: 16}
        Rows of the next product, at least 1. Accepted after the largest of the product before were
        delivered.
    i_results : In(stream) of :func:`hw.engine.result_queue.result_layout`
        The product; lanes beyond its rows do not count.
    o_top_k : Out(stream) of {index: 16, value: signed(accumulator_width), last: 1}
        ``top_k`` integers with their rows, or all of them if there are fewer.
    active : Out(1)
        A clock matters: see :attr:`hw.accelerator.Accelerator.active`.
    """

    i_commands: stream.Interface
    i_results: stream.Interface
    o_top_k: stream.Interface
    active: Signal

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__({
            "i_commands": In(stream.Signature(data.StructLayout({"rows": FIELDS["a"]}))),
            "i_results": In(stream.Signature(result_layout(config.engine))),
            "o_top_k": Out(stream.Signature(top_k_layout(config))),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        count, lanes = self.config.top_k, self.config.vector_lanes
        below = exact_log2(lanes)
        width = self.config.engine.accumulator_width

        # Largest first, as unsigned numbers with a one on top, so that 0 is a free place below all
        # integers. They are kept inverted: a comparison is the carry of an addition, and in carry
        # cells an inverter would cost a LUT for each bit.
        inverted = [Signal(width + 1, name=f"inverted_{k}", init=-1) for k in range(count)]
        rows = [Signal(FIELDS["a"], name=f"row_{k}", reset_less=True) for k in range(count)]
        filled = Signal(range(count + 1))

        def unsigned_(value: Value) -> Value:
            return Cat(value[:-1], ~value[-1], C(1))

        def exceeds(value: Value, inverted_: Value) -> Value:
            return (value + inverted_)[-1]

        # Candidates exceed the last place. The first of them is found in one cycle; in the next it
        # is put into its place, and the others have to exceed the place that is the last one then:
        # the one found, or the last but one.
        transfer = Signal(self.i_results.p.shape(), reset_less=True)
        candidates = Signal(lanes)
        found = Signal()
        found_value = Signal(width + 1, reset_less=True)
        found_inverted = Signal(width + 1, reset_less=True)
        found_row = Signal(FIELDS["a"], reset_less=True)
        number = Signal(FIELDS["a"] - below, reset_less=True)   # of the transfer
        begun = Signal()                                            # ... one was accepted
        final = Signal(below, reset_less=True)                      # lane of the last row
        accept = Signal()
        still = Signal(lanes)
        held = [unsigned_(value) for value in transfer.values]
        for lane, value in enumerate(held):
            last_but_one = exceeds(value, inverted[-2]) if count > 1 else C(0)
            m.d.comb += still[lane].eq(exceeds(value, found_inverted) | last_but_one)
        first = candidates & (~candidates + 1)[:lanes]
        chosen = Signal(width + 1)
        m.d.comb += chosen.eq(held[-1])
        for lane in reversed(range(lanes - 1)):
            with m.If(candidates[lane]):
                m.d.comb += chosen.eq(held[lane])
        m.d.sync += found.eq(candidates.any() & ~found)
        with m.If(accept):
            m.d.sync += candidates.eq(Cat(
                (~self.i_results.p.last | (final >= lane))
                & exceeds(unsigned_(value), inverted[-1])
                for lane, value in enumerate(self.i_results.p.values)))
        with m.Elif(found):
            m.d.sync += candidates.eq(candidates & still)
        with m.Else():
            m.d.sync += [
                candidates.eq(candidates & ~first),
                found_value.eq(chosen),
                found_inverted.eq(~chosen),
            ]
            for lane in reversed(range(lanes)):
                with m.If(candidates[lane]):
                    m.d.sync += found_row.eq(Cat(C(lane, below), number))

        above = Signal(count)
        m.d.comb += [above[k].eq(found & exceeds(found_value, inverted[k])) for k in range(count)]
        clear = Signal()
        for k in range(count):
            with m.If(clear):
                m.d.sync += inverted[k].eq(~0)
            with m.Elif(above[k]):
                moved = above[k - 1] if k else C(0)
                m.d.sync += [inverted[k].eq(Mux(moved, inverted[k - 1], found_inverted)),
                             rows[k].eq(Mux(moved, rows[k - 1], found_row))]
        with m.If(found & (filled != count)):
            m.d.sync += filled.eq(filled + 1)

        position = Signal(range(count))
        largest = Signal(width + 1)
        m.d.comb += [
            largest.eq(Array(inverted)[position]),
            self.o_top_k.p.index.eq(Array(rows)[position]),
            self.o_top_k.p.value.eq(Cat(~largest[:-2], largest[-2])),
            self.o_top_k.p.last.eq(position == filled - 1),
        ]
        with m.FSM() as fsm:
            m.d.comb += self.active.eq(~fsm.ongoing("IDLE") | self.i_commands.valid)
            with m.State("IDLE"):
                m.d.comb += self.i_commands.ready.eq(1)
                m.d.sync += [
                    final.eq((self.i_commands.p.rows - 1)[:below]),
                    begun.eq(0),
                    transfer.last.eq(0),
                ]
                with m.If(self.i_commands.valid):
                    m.next = "TAKE"
            with m.State("TAKE"):
                settled = ~candidates.any() & ~found
                m.d.comb += [
                    self.i_results.ready.eq(settled & ~transfer.last),
                    accept.eq(self.i_results.valid & self.i_results.ready),
                ]
                with m.If(accept):
                    m.d.sync += [
                        transfer.eq(self.i_results.p),
                        begun.eq(1),
                        number.eq(Mux(begun, number + 1, 0)),
                    ]
                with m.If(transfer.last & settled):
                    m.next = "DELIVER"
            with m.State("DELIVER"):
                m.d.comb += self.o_top_k.valid.eq(1)
                with m.If(self.o_top_k.ready):
                    m.d.sync += position.eq(position + 1)
                    with m.If(self.o_top_k.p.last):
                        m.d.sync += [position.eq(0), filled.eq(0)]
                        m.d.comb += clear.eq(1)
                        m.next = "IDLE"
        return m
