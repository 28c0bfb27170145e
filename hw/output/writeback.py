"""Write-back: integer results are scaled to bf16 and written to the vector memory."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from hw.arith.dequantize import LATENCY, ScaleUnit
from hw.config import AcceleratorConfig
from hw.engine.loop_nest import column_layout
from hw.engine.result_queue import result_layout
from hw.formats.minifloat import bf16
from hw.vector.memory import address_width, write_signature

__all__ = ["WriteBack", "write_back_layout", "scalar_layout"]


def scalar_layout() -> data.StructLayout:
    """Layout of a product of two scalar registers and a constant."""
    return data.StructLayout({"number": bf16.width, "exponent": signed(11)})


def write_back_layout(config: AcceleratorConfig) -> data.StructLayout:
    """Layout of a WRITE_BACK: ``target`` is the address of a word, ``words`` is how many are taken.

    ``relu`` makes zeros of negative numbers. ``by_row`` is for listed rows of the product, which is
    taken whole.
    """
    return data.StructLayout({"scalar": scalar_layout(), "target": address_width(config),
                              "words": address_width(config) + 1, "relu": 1, "by_row": 1})


class WriteBack(wiring.Component):
    """WRITE_BACK of the instruction set: rows are scaled and written to the vector memory.

    A result transfer a cycle. Cycles: :func:`sim.timing.units.write_back_cycles`.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    i_commands : In(stream) of :func:`write_back_layout`
    i_results : In(stream) of :func:`hw.engine.result_queue.result_layout`
        The products; transfers are accepted from the cycle after the command, as many as it says.
    i_rows : In(stream) of :func:`hw.engine.loop_nest.column_layout`
        Of a product by row: which element of the vector each result is.
    write : Out(:func:`hw.vector.memory.write_signature`)
    done : Out(1)
        For a cycle when the last word was written.
    active : Out(1)
        A clock matters: see :attr:`hw.accelerator.Accelerator.active`.
    """

    i_commands: stream.Interface
    i_results: stream.Interface
    i_rows: stream.Interface
    write: wiring.PureInterface
    done: Signal
    active: Signal

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__({
            "i_commands": In(stream.Signature(write_back_layout(config))),
            "i_results": In(stream.Signature(result_layout(config.engine))),
            "i_rows": In(stream.Signature(column_layout(config.engine))),
            "write": Out(write_signature(config)),
            "done": Out(1), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        lanes = self.config.vector_lanes
        below = exact_log2(lanes)
        command = Signal(write_back_layout(self.config), reset_less=True)
        taking = Signal()
        busy = Signal()                     # the command is valid
        accepted, final = Signal(), Signal()    # ... a transfer, the last one of the command
        # Registers of the scale unit only move while there is work.
        scale = ScaleUnit(self.config)
        m.submodules.scale = EnableInserter(busy)(scale)
        scaled = scale.o
        m.d.comb += [
            scale.factor.eq(command.scalar.number),
            scale.exponent.eq(command.scalar.exponent),
            scale.i.p.values.eq(self.i_results.p.values),
            scale.i.p.last.eq(final),
            scale.i.valid.eq(self.i_results.valid & taking),
            self.i_results.ready.eq(taking & scale.i.ready),
            accepted.eq(self.i_results.valid & self.i_results.ready),
            final.eq(Mux(command.by_row, self.i_results.p.last, command.words == 1)),
        ]

        # By row, a result goes to one lane of the word that its row lies in; the last transfer is
        # only the end.
        row = Signal(below, reset_less=True)
        row_address = Signal.like(command.target)
        row_known = Signal()                        # ... where the next result goes
        # Results that were taken, and their rows were not: those in the scale unit at most.
        rows_pending = Signal(range(LATENCY + 2))
        by_row, relu = command.by_row, command.relu
        end = by_row & scaled.p.last
        m.d.comb += [
            scaled.ready.eq(~by_row | scaled.p.last | row_known),
            self.write.enable.eq(scaled.valid & scaled.ready & ~end),
            self.write.address.eq(Mux(by_row, row_address, command.target)),
            # Not yet for the next product, which may have another target.
            self.i_rows.ready.eq((rows_pending != 0) & (~row_known | self.write.enable)),
        ]
        for lane in range(lanes):
            number = Mux(by_row, scaled.p.word[0], scaled.p.word[lane])
            m.d.comb += [
                self.write.data[lane].eq(Mux(relu & number[-1], 0, number)),
                self.write.mask[lane].eq(~by_row | (row == lane)),
            ]
        m.d.sync += rows_pending.eq(rows_pending + (accepted & by_row & ~self.i_results.p.last)
                                    - (self.i_rows.valid & self.i_rows.ready))
        with m.If(self.write.enable):
            m.d.sync += row_known.eq(0)
        with m.If(self.i_rows.ready):
            index = self.i_rows.p.index
            m.d.sync += [
                row.eq(index[:below]),
                row_address.eq(command.target + (index >> below)),
                row_known.eq(self.i_rows.valid),
            ]
        m.d.sync += self.done.eq(scaled.valid & scaled.ready & scaled.p.last)
        with m.If(self.write.enable):
            m.d.sync += command.target.eq(command.target + ~by_row)
        with m.FSM() as fsm:
            m.d.comb += self.active.eq(
                Mux(fsm.ongoing("IDLE"), self.i_commands.valid,
                    (self.i_results.valid & taking) | scale.under_way | self.i_rows.valid
                    | self.done))
            with m.State("IDLE"):
                m.d.comb += self.i_commands.ready.eq(1)
                with m.If(self.i_commands.valid):
                    m.d.sync += command.eq(self.i_commands.p)
                    m.next = "TAKE"
            with m.State("TAKE"):
                m.d.comb += [taking.eq(1), busy.eq(1)]
                m.d.sync += command.words.eq(command.words - accepted)
                with m.If(accepted & final):
                    m.next = "WRITE"
            with m.State("WRITE"):
                m.d.comb += busy.eq(1)
                with m.If(self.done):
                    m.next = "IDLE"
        return m
