"""EMIT of the instruction set: the largest integers of a product, with their rows."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.config import CoreConfig
from hw.isa import FIELDS
from hw.ternary.results import result_layout

__all__ = ["TopK", "best_layout"]


def best_layout(config: CoreConfig) -> data.StructLayout:
    """Layout of one of the largest integers."""
    return data.StructLayout({
        "index": FIELDS["count"],
        "value": signed(config.engine.accumulator_width),
        "last": 1,
    })


class TopK(wiring.Component):
    """The ``best`` largest integers of a product, largest first, equal ones by row.

    .. code-block:: text

        o_best = integers[rows], rows = sim.golden.largest.largest_rows(integers, best)

    A transfer takes a cycle, and one more for each of its integers that is among the largest so
    far. :func:`sim.golden.cycles.top_k_cycles` has the exact formula.

    Parameters
    ----------
    config : CoreConfig

    Members
    -------
    i_commands : In(stream) of {rows: 16}
        Rows of the next product, at least 1. Accepted after the largest of the product before were
        delivered.
    i_results : In(stream) of :func:`hw.ternary.results.result_layout`
        The product; lanes beyond its rows do not count.
    o_best : Out(stream) of {index: 16, value: signed(accumulator_width), last: 1}
        ``best`` integers with their rows, or all of them if there are fewer.
    """

    i_commands: stream.Interface
    i_results: stream.Interface
    o_best: stream.Interface

    def __init__(self, config: CoreConfig):
        self.config = config
        super().__init__({
            "i_commands": In(stream.Signature(data.StructLayout({"rows": FIELDS["count"]}))),
            "i_results": In(stream.Signature(result_layout(config.engine))),
            "o_best": Out(stream.Signature(best_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        best, lanes = self.config.best, self.config.vector_lanes
        width = self.config.engine.accumulator_width

        # Largest first. One bit more than an integer has: a free place is below all of them.
        free = -(1 << width)
        values = [Signal(signed(width + 1), name=f"value_{k}", init=free) for k in range(best)]
        rows = [Signal(FIELDS["count"], name=f"row_{k}", reset_less=True) for k in range(best)]

        # An integer is found in one cycle and put into its place in the next. Those that are
        # looked at meanwhile have to exceed it, and the last place that it leaves.
        found = Signal()
        found_value = Signal(signed(width + 1), reset_less=True)
        found_row = Signal(FIELDS["count"], reset_less=True)

        transfer = Signal(self.i_results.p.shape(), reset_less=True)
        waiting = Signal(lanes)                     # lanes that were not found yet
        left = Signal(FIELDS["count"], reset_less=True)     # rows behind those accepted
        row = Signal(FIELDS["count"], reset_less=True)      # of the transfer's first lane
        candidates = Signal(lanes)
        for lane in range(lanes):
            value = transfer.values[lane]
            exceeds = value > values[-1]
            if best > 1:
                exceeds = Mux(found, (value > found_value) | (value > values[-2]), exceeds)
            else:
                exceeds = Mux(found, value > found_value, exceeds)
            m.d.comb += candidates[lane].eq(waiting[lane] & exceeds)
        m.d.sync += found.eq(candidates.any())
        for lane in reversed(range(lanes)):
            with m.If(candidates[lane]):
                m.d.sync += [found_value.eq(transfer.values[lane]), found_row.eq(row + lane)]
        first = candidates & (~candidates + 1)[:lanes]
        m.d.sync += waiting.eq(waiting & ~first)

        above = Signal(best)
        m.d.comb += [above[k].eq(found & (found_value > values[k])) for k in range(best)]
        for k in range(best):
            with m.If(above[k]):
                if k == 0:
                    m.d.sync += [values[k].eq(found_value), rows[k].eq(found_row)]
                else:
                    m.d.sync += [values[k].eq(Mux(above[k - 1], values[k - 1], found_value)),
                                 rows[k].eq(Mux(above[k - 1], rows[k - 1], found_row))]

        # A free place has other bits on top than the sign of an integer.
        alone = values[1][-1] != values[1][-2] if best > 1 else C(1)
        m.d.comb += [
            self.o_best.p.index.eq(rows[0]),
            self.o_best.p.value.eq(values[0]),
            self.o_best.p.last.eq(alone),
        ]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.i_commands.ready.eq(1)
                m.d.sync += [
                    left.eq(self.i_commands.p.rows),
                    row.eq(-lanes),
                    transfer.last.eq(0),
                ]
                with m.If(self.i_commands.valid):
                    m.next = "TAKE"
            with m.State("TAKE"):
                m.d.comb += self.i_results.ready.eq(~candidates.any() & ~transfer.last)
                with m.If(self.i_results.valid & self.i_results.ready):
                    m.d.sync += [
                        transfer.eq(self.i_results.p),
                        waiting.eq(Cat(left > lane for lane in range(lanes))),
                        left.eq(left - lanes),
                        row.eq(row + lanes),
                    ]
                with m.If(transfer.last & ~candidates.any()):
                    m.d.sync += waiting.eq(0)
                    m.next = "DELIVER"
            with m.State("DELIVER"):
                m.d.comb += self.o_best.valid.eq(1)
                with m.If(self.o_best.ready):
                    for k in range(best):
                        m.d.sync += values[k].eq(values[k + 1] if k + 1 < best else free)
                        if k + 1 < best:
                            m.d.sync += rows[k].eq(rows[k + 1])
                    with m.If(alone):
                        m.next = "IDLE"
        return m
