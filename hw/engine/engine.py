"""The ternary engine: lists of activations times a ternary matrix, added up in block RAM."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.common.block_ram import BlockRam
from hw.common.register_copy import RegisterCopy
from hw.common.stream import connect_stream
from hw.config import EngineConfig
from hw.engine.lane import LaneAdder
from hw.engine.loop_nest import LoopNest, column_layout, entry_layout, job_layout, operation_layout
from hw.engine.result_queue import ResultQueue, result_layout
from hw.engine.row_sums import RowSums, activation_layout
from hw.engine.trit_decoder import TritDecoder

__all__ = ["TernaryEngine", "word_layout"]


def word_layout(config: EngineConfig) -> data.StructLayout:
    """Layout of a weight word."""
    return data.StructLayout({"codes": 8 * config.word_bytes})


class TernaryEngine(wiring.Component):
    """Product of a ternary matrix and activations, by column or by row.

    .. code-block:: text

        by column:  results[b, r] = sum(value[b] * weight[r, index] for the listed columns)
        by row:     results[index] = sum(activation[c] * weight[index, c])

    modulo ``2**accumulator_width``. Cycles: one for each weight word and vector of the batch, one
    for each accumulator word to clear it, one for each result transfer, and a few; by row, one for
    each weight word and a few. :mod:`sim.timing.units` has the exact formulas.

    Parameters
    ----------
    config : EngineConfig
    row_domain : str
        Clock domain of the walk by row.

    Members
    -------
    i_jobs : In(stream) of {groups, tail, planes, batch}, and {by_row: 1} if there is that walk
        One product, as :meth:`hw.config.EngineConfig.job` or ``row_job`` describes it. The next
        job, and its list, are accepted while a product is under way.
    i_entries : In(stream) of {index, value: signed(activation_width), end: 1}
        The list of activations: for each listed column ``batch`` entries, of the same index. An
        entry with ``end`` closes the list; it carries no column. By row: an entry for each listed
        row, whose ``value`` is not looked at.
    o_columns : Out(stream) of {index}
        Index of each listed column, once, as its first entry is accepted; by row, of each row.
    i_words : In(stream) of {codes}
        Packed weight words of the columns in the order of the list, plane by plane, group by group.
        By row, those of the rows: columns of the transposed matrix.
    o_results : Out(stream) of {values: signed(accumulator_width) x result_lanes, last: 1}
        Results, vector by vector, group by group, lane by lane; ``tail`` transfers of each last
        group. ``last`` ends the product. By row: the sum of each listed row, in the first value of
        a transfer; then zeros with ``last``. The other values are zero.
    i_activations : In(stream) of {index, value: signed(activation_width), all: 1}
        If there is the walk by row: its activations, kept until they are written again, and zero
        from power-up on; ``all`` columns of the word ``index // lanes`` get the same one. They are
        written before the job is sent, and not while one by row is under way. Always taken.
    rows_active : Out(1)
        A clock matters to the walk by row: see :attr:`hw.accelerator.Accelerator.active`.
    """

    i_jobs: stream.Interface
    i_entries: stream.Interface
    o_columns: stream.Interface
    i_words: stream.Interface
    o_results: stream.Interface
    rows_active: Signal

    def __init__(self, config: EngineConfig, *, row_domain: str = "sync"):
        self.config = config
        self._row_domain = row_domain
        members = {}
        if config.row_columns:
            members["i_activations"] = In(stream.Signature(activation_layout(config)))
        super().__init__({
            "i_jobs": In(stream.Signature(job_layout(config))),
            "i_entries": In(stream.Signature(entry_layout(config))),
            "o_columns": Out(stream.Signature(column_layout(config))),
            "i_words": In(stream.Signature(word_layout(config))),
            "o_results": Out(stream.Signature(result_layout(config))),
            "rows_active": Out(1),
        } | members)

    def elaborate(self, platform):
        m = Module()
        config = self.config

        m.submodules.loop_nest = loop_nest = LoopNest(config)
        m.submodules.results = results = ResultQueue(config)
        connect_stream(m, wiring.flipped(self.i_jobs), loop_nest.i_jobs)
        connect_stream(m, wiring.flipped(self.i_entries), loop_nest.i_entries)
        connect_stream(m, loop_nest.o_columns, wiring.flipped(self.o_columns))
        connect_stream(m, results.o_results, wiring.flipped(self.o_results))
        m.d.comb += [
            loop_nest.word_valid.eq(self.i_words.valid),
            self.i_words.ready.eq(loop_nest.word_ready),
            loop_nest.room.eq(results.room),
        ]

        # An operation never waits once it is issued. `stages[k]` was issued k + 1 cycles ago.
        # The block RAM takes its address after stage 1, the lanes add after stage 3; the sum is
        # written one cycle later, so it can be read three cycles after the sum before it was.
        issued = loop_nest.operation
        stages = [Signal(operation_layout(config), name=f"stage_{k}") for k in range(5)]
        m.d.sync += [after.eq(before) for before, after
                     in zip([issued, *stages], stages, strict=False)]

        # Code 0 is +1 in every lane: it opens the write enables of all lanes to be cleared.
        m.submodules.decoder = decoder = TritDecoder(packing=config.packing, lanes=config.lanes,
                                                     target=config.target)
        codes = Signal.like(decoder.codes, reset_less=True)
        codes_again = Signal.like(codes)
        nonzero = Signal(config.lanes, reset_less=True)
        negative = Signal(config.lanes, reset_less=True)
        m.d.comb += decoder.codes.eq(codes_again)

        def takes_word(operation):
            """Whether registers beside an operation move: in hardware always, for the clock's sake.

            Without a word nobody looks at them, and the simulator skips them.
            """
            word = operation.row.word if config.row_columns else C(0)
            return operation.write | word | (config.target != "generic")

        with m.If(takes_word(issued)):
            m.d.sync += codes.eq(Mux(issued.clear, 0, self.i_words.p.codes))
        with m.If(takes_word(stages[0])):
            m.d.sync += codes_again.eq(codes)
        with m.If(takes_word(stages[1])):
            m.d.sync += [nonzero.eq(decoder.nonzero), negative.eq(decoder.negative)]

        delivered = Signal(data.ArrayLayout(config.accumulator_width, config.lanes),
                           reset_less=True)
        lane_trits = []
        for lane in range(config.lanes):
            if lane % config.result_lanes == 0:
                # Block RAMs lie in rows across the whole chip. What has no logic on its way to the
                # lanes is copied for each bank ...
                bank = lane // config.result_lanes
                control = self._copy(m, f"control_{bank}", {
                    "read_slot": stages[0].slot,
                    "zero": stages[0].zero[bank],
                    "write_slot": stages[2].slot,
                    "write": stages[2].write,
                    "release": stages[2].release,
                })
            if config.target == "ecp5" or lane == 0:
                # ... and the operand, which has an adder on its way, for each lane.
                operand = self._copy(m, f"operand_{lane}", {"operand": stages[2].operand}).operand
            m.submodules[f"adder_{lane}"] = adder = LaneAdder(width=config.accumulator_width,
                                                              target=config.target)
            # The upper half is never written: it stays zero.
            m.submodules[f"accumulators_{lane}"] = ram = BlockRam(
                width=config.accumulator_width, depth=2 * config.accumulator_depth,
                target=config.target)
            held = Signal(config.accumulator_width, name=f"held_{lane}", reset_less=True)
            lane_nonzero = Signal(name=f"nonzero_{lane}", reset_less=True)
            lane_negative = Signal(name=f"negative_{lane}", reset_less=True)
            with m.If(takes_word(stages[2])):
                m.d.sync += [lane_nonzero.eq(nonzero[lane]), lane_negative.eq(negative[lane])]
            m.d.comb += [
                ram.read_address.eq(Cat(control.read_slot, control.zero)),
                ram.read_enable.eq(1),
                ram.output_enable.eq(1),
                adder.stored.eq(ram.read_data),
                adder.held.eq(held),
                adder.operand.eq(operand),
                adder.negative.eq(lane_negative),
                ram.write_address.eq(control.write_slot),
                ram.write_data.eq(adder.total),
                ram.write.eq(control.write),
                ram.write_mask.eq(lane_nonzero),
            ]
            with m.If(lane_nonzero):
                m.d.sync += held.eq(adder.total)
            with m.If(control.release):
                m.d.sync += held.eq(0)
            with m.If(stages[3].read | (config.target != "generic")):
                m.d.sync += delivered[lane].eq(ram.read_data)
            lane_trits.append((lane_nonzero, lane_negative))

        m.d.comb += [
            results.banks.eq(delivered),
            results.valid.eq(stages[4].read),
            results.last.eq(stages[4].last),
        ]
        if config.row_columns:
            rows = RowSums(config)
            m.submodules.rows = DomainRenamer(self._row_domain)(rows)
            connect_stream(m, wiring.flipped(self.i_activations), rows.i_activations)
            groups = ceil_log2(config.row_columns // config.lanes)
            if groups:
                group = self._copy(m, "group", {"group": stages[1].slot[:groups]}).group
                m.d.comb += rows.group.eq(group)
            for lane, (lane_nonzero, lane_negative) in enumerate(lane_trits):
                m.d.comb += [rows.nonzero[lane].eq(lane_nonzero),
                             rows.negative[lane].eq(lane_negative)]
            m.d.comb += [
                rows.operation.eq(stages[3].row),
                # The group of an operation comes a cycle before it.
                self.rows_active.eq(rows.busy | Cat(
                    Cat(stage.row.word, stage.row.result, stage.row.last)
                    for stage in stages[2:4]).any()),
                results.row.eq(rows.o),
                loop_nest.rows_under_way.eq(Cat(rows.under_way,
                                                [stage.row.last for stage in stages[:3]]).any()),
                # Late, which the spare places of the queue allow; never both at once.
                results.reserve.eq(issued.read | stages[0].row.result),
            ]
        else:
            m.d.comb += results.reserve.eq(issued.read)
        return m

    def _copy(self, m, name, fields):
        """Copy some fields into registers that synthesis leaves apart."""
        layout = data.StructLayout({field: value.shape() for field, value in fields.items()})
        m.submodules[name] = copies = RegisterCopy(width=layout.size, target=self.config.target)
        m.d.comb += copies.input.eq(Cat(fields.values()))
        return layout(copies.output)
