"""The walk of the ternary engine: from jobs and activation lists to one operation a cycle."""

from amaranth import *
from amaranth.lib import data, fifo, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, ceil_log2

from hw.config import ENTRY_DEPTH, EngineConfig
from hw.engine.gated_adder import GatedAdder

__all__ = ["LoopNest", "column_layout", "entry_layout", "job_layout", "operation_layout",
           "row_operation_layout"]


def job_layout(config: EngineConfig) -> data.StructLayout:
    """Layout of a job: :meth:`hw.config.EngineConfig.job` and ``row_job`` make one.

    ``by_row`` exists if the walk does.
    """
    fields = {
        "groups": bits_for(config.accumulator_depth),
        "tail": bits_for(config.lanes // config.result_lanes),
        "planes": bits_for(config.max_planes),
        "batch": bits_for(config.max_batch),
    }
    return data.StructLayout(fields | ({"by_row": 1} if config.row_columns else {}))


def entry_layout(config: EngineConfig) -> data.StructLayout:
    """Layout of an entry of the activation list."""
    return data.StructLayout({
        "index": config.index_width,
        "value": signed(config.activation_width),
        "end": 1,
    })


def column_layout(config: EngineConfig) -> data.StructLayout:
    """Layout of a request for a column of weights."""
    return data.StructLayout({"index": config.index_width})


def operation_layout(config: EngineConfig) -> data.StructLayout:
    """Layout of what the lanes do in one cycle.

    An operation reads accumulator ``slot`` of each lane, or zero in the banks whose bit of ``zero``
    is set, adds or subtracts ``operand``, and stores the sum if ``write``. ``clear`` takes +1 for
    the trit of each lane. ``release`` clears the lane's register, which else adds to what was read.
    ``read`` delivers what was read as a result transfer, ``last`` the last one of the product.
    ``row`` is for the walk by row, if there is one; ``slot`` is then the group.
    """
    fields = {
        "slot": ceil_log2(config.accumulator_depth),
        "zero": config.lanes // config.result_lanes,
        "operand": signed(config.operand_width),
        "write": 1,
        "clear": 1,
        "release": 1,
        "read": 1,
        "last": 1,
    }
    rows = {"row": row_operation_layout(config)} if config.row_columns else {}
    return data.StructLayout(fields | rows)


def row_operation_layout(config: EngineConfig) -> data.StructLayout:
    """Layout of what the walk by row does in one cycle.

    With ``word``, the weight word of ``plane`` is added to the sum, with ``first`` to zero.
    ``result`` delivers the sum, or zero if it is the ``last`` result transfer of the product.
    """
    return data.StructLayout({
        "word": 1,
        "first": 1,
        "plane": range(config.max_planes),
        "result": 1,
        "last": 1,
    })


class LoopNest(wiring.Component):
    """Turns jobs and their activation lists into operations, at most one a cycle.

    .. code-block:: text

        clear:     for group, for vector
        multiply:  for column, for plane, for group, for vector
        read:      for vector, for group, for bank

        by row:    for row, for plane, for group

    The vector is one of the batch. The next job and its entries are accepted while a job is walked.
    ``batch`` operands wait in a small memory, into which each goes back tripled in the last group
    of a plane.

    An operation may read the sum of the third one before it, no later one: two slots get a pause in
    each round; one slot uses the lane's register instead.

    The walk by row is the second phase of the other alone, with rows for columns and one vector.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    i_jobs, i_entries, o_columns
        As in :class:`hw.engine.engine.TernaryEngine`.
    word_valid : In(1)
        A weight word is there.
    word_ready : Out(1)
        The weight word is done with; may depend on ``word_valid``.
    room : In(1)
        The result queue takes another transfer.
    rows_under_way : In(1)
        Results of a product by row are yet to come: none by column may be read.
    operation : Out
        :func:`operation_layout`; without ``write`` and ``read``, it does nothing.
    """

    i_jobs: stream.Interface
    i_entries: stream.Interface
    o_columns: stream.Interface
    word_valid: Signal
    word_ready: Signal
    room: Signal
    rows_under_way: Signal
    operation: data.View

    def __init__(self, config: EngineConfig):
        self.config = config
        super().__init__({
            "i_jobs": In(stream.Signature(job_layout(config))),
            "i_entries": In(stream.Signature(entry_layout(config))),
            "o_columns": Out(stream.Signature(column_layout(config))),
            "word_valid": In(1),
            "word_ready": Out(1),
            "room": In(1),
            "rows_under_way": In(1),
            "operation": Out(operation_layout(config)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        banks = config.lanes // config.result_lanes

        # The list: each entry goes into the queue, the first of each column to o_columns as well.
        next_job = Signal(job_layout(config))       # accepted, its list under way
        pending = Signal()                          # ... and its walk has not begun
        load = Signal()                             # its walk begins
        listing = Signal()
        position = Signal.like(next_job.batch, init=1)
        column_begins = Signal(init=1)
        requests_column = Signal()
        entry = self.i_entries.p
        m.submodules.entries = entries = fifo.SyncFIFO(width=config.activation_width + 1,
                                                       depth=ENTRY_DEPTH)
        m.d.comb += [
            self.i_jobs.ready.eq(~pending & ~listing),
            requests_column.eq(column_begins & ~entry.end),
            self.o_columns.valid.eq(self.i_entries.valid & listing & entries.w_rdy
                                    & requests_column),
            self.o_columns.p.index.eq(entry.index),
            self.i_entries.ready.eq(listing & entries.w_rdy
                                    & (~requests_column | self.o_columns.ready)),
            entries.w_en.eq(self.i_entries.valid & self.i_entries.ready),
            entries.w_data.eq(Cat(entry.value, entry.end)),
        ]
        with m.If(entries.w_en):
            with m.If(entry.end):
                m.d.sync += listing.eq(0)
            with m.Else():
                column_ends = position == next_job.batch
                m.d.sync += [column_begins.eq(column_ends),
                             position.eq(Mux(column_ends, 1, position + 1))]
        with m.If(self.i_jobs.valid & self.i_jobs.ready):
            m.d.sync += [next_job.eq(self.i_jobs.p), pending.eq(1), listing.eq(1)]
        with m.Elif(load):
            m.d.sync += pending.eq(0)

        # The oldest entry, in a register.
        head = Signal(signed(config.activation_width))
        head_is_column = Signal()
        head_is_end = Signal()
        take = Signal()
        m.d.comb += entries.r_en.eq(take | ~(head_is_column | head_is_end))
        with m.If(entries.r_en):
            m.d.sync += [
                head.eq(entries.r_data[:-1].as_signed()),
                head_is_column.eq(entries.r_rdy & ~entries.r_data[-1]),
                head_is_end.eq(entries.r_rdy & entries.r_data[-1]),
            ]

        # Phases, one flip-flop each. `multiplying` pauses where two slots need it.
        idle = Signal(init=1)
        clearing = Signal()
        walking = Signal()
        multiplying = Signal()
        settling = Signal()
        reading = Signal()
        multiply = Signal()
        step = Signal()                             # an operation of clear or multiply
        end = Signal()
        read = Signal()

        # Loops of the walk. A counter holds the number, from 1, of the round after the present one,
        # and a flip-flop whether the present one is the last: that keeps comparisons off the paths.
        job = Signal(job_layout(config))
        by_row, next_by_row = ((job.by_row, next_job.by_row) if config.row_columns
                               else (Const(0), Const(0)))
        tail_is_one = Signal()
        vector = _Loop(m, "vector", config.max_batch, job.batch)
        group = _Loop(m, "group", config.accumulator_depth, job.groups)
        plane = _Loop(m, "plane", config.max_planes, job.planes)
        bank = _Loop(m, "bank", banks, Mux(group.last, job.tail, banks),
                     only=Mux(group.last_after, tail_is_one, banks == 1))
        first = Signal(init=1)                      # first pass over a column: takes the entries
        two_slots = Signal()
        round_last = Signal()
        m.d.comb += [
            round_last.eq(vector.last & group.last),
            multiply.eq(multiplying & self.word_valid & (~first | head_is_column)),
            step.eq(multiply | clearing),
            end.eq(walking & first & head_is_end),
            take.eq(end | (multiply & first)),
            read.eq(reading & self.room),
            self.word_ready.eq(multiply & vector.last),
        ]
        with m.If(step):
            vector.advance()
            with m.If(vector.last):
                group.advance()
                m.d.sync += first.eq((group.last & plane.last) | clearing)
        with m.If(multiply & round_last):
            plane.advance()
        with m.If(read):
            bank.advance()
            with m.If(bank.last):
                group.advance()
                with m.If(group.last):
                    vector.advance()

        # Slots: one after the other; when read, those of one vector are `batch` apart.
        slot = Signal(ceil_log2(config.accumulator_depth))
        vector_slot = Signal.like(slot)
        next_slot = Signal.like(slot)
        m.d.comb += next_slot.eq(Mux(reading & group.last, vector_slot, slot)
                                 + Mux(reading & ~group.last, job.batch, 1))
        with m.If(step | (read & bank.last)):
            m.d.sync += slot.eq(next_slot)
            with m.If(round_last):
                m.d.sync += slot.eq(0)
        with m.If(~reading):
            m.d.sync += vector_slot.eq(0)
        with m.Elif(read & bank.last & group.last):
            m.d.sync += vector_slot.eq(next_slot)

        # Rows have but few results more once the room for them is gone, and each job one.
        m.d.comb += load.eq(idle & pending & (~next_by_row | self.room))
        with m.If(load):
            m.d.sync += [
                job.eq(next_job),
                two_slots.eq(((next_job.groups == 1) & (next_job.batch == 2))
                             | ((next_job.groups == 2) & (next_job.batch == 1) & ~next_by_row)),
                tail_is_one.eq(next_job.tail == 1),
                idle.eq(0),
                clearing.eq(~next_by_row),
                walking.eq(next_by_row),
            ]
            vector.begin(next_job.batch)
            group.begin(next_job.groups)
            plane.begin(next_job.planes)
        with m.If(clearing & round_last):
            m.d.sync += [clearing.eq(0), walking.eq(1)]
        m.d.sync += multiplying.eq(((walking | (clearing & round_last)) & ~end
                                    & ~(step & round_last & two_slots) & ~(by_row & ~self.room))
                                   | (load & next_by_row))
        # Together with the cycle of the list's end, settling makes the two that a sum needs.
        with m.If(end):
            m.d.sync += [walking.eq(0), settling.eq(~by_row), idle.eq(by_row)]
            bank.begin(Mux(group.only, job.tail, banks))
        with m.If(settling & ~self.rows_under_way):
            m.d.sync += [settling.eq(0), reading.eq(1)]
        with m.If(read & self.operation.last):
            m.d.sync += [reading.eq(0), idle.eq(1)]

        # Operands of the batch. What goes back into the memory in a column's last plane is never
        # read, so it may overflow.
        address = vector.after[:ceil_log2(config.max_batch)]
        m.submodules.operands = operands = memory.Memory(
            shape=signed(config.operand_width), depth=2 ** len(address), init=[])
        operand_read, operand_write = operands.read_port(domain="comb"), operands.write_port()
        m.submodules.tripler = tripler = GatedAdder(width=config.operand_width,
                                                    target=config.target)
        operand = Signal(signed(config.operand_width))
        m.d.comb += [
            operand_read.addr.eq(address),
            operand.eq(Mux(first, head, operand_read.data)),
            operand_write.addr.eq(address),
            tripler.base.eq(operand),
            tripler.addend.eq(operand << 1),
            tripler.gate.eq(group.last),
            operand_write.data.eq(tripler.total),
            operand_write.en.eq(multiply),
        ]

        one_slot = Signal()
        others = Signal()
        m.d.comb += [
            one_slot.eq(vector.only & group.only),
            others.eq(clearing | one_slot),
            self.operation.slot.eq(slot),
            # By row nobody reads what the lanes write: the next product clears before it adds.
            self.operation.write.eq(step),
            self.operation.clear.eq(clearing),
            self.operation.release.eq(~(one_slot & walking)),
            self.operation.read.eq(read),
            self.operation.last.eq(round_last & bank.last),
            # Not `m.If`: Icarus never evaluates a process whose inputs keep their initial values.
            self.operation.operand.eq(Mux(multiply, operand, 0)),
        ]
        if config.row_columns:
            row = self.operation.row
            m.d.comb += [
                row.word.eq(multiply & by_row),
                row.first.eq(first),
                row.plane.eq(plane.after - 2),
                row.result.eq(((multiply & group.last & plane.last) | end) & by_row),
                row.last.eq(end & by_row),
            ]
        for k in range(banks):
            m.d.comb += self.operation.zero[k].eq(Mux(reading, bank.after != k + 2, others))
        return m


class _Loop:
    """One of the nested loops of the walk: registers in ``m``, and its next state.

    Parameters
    ----------
    limit : int
        Most rounds there can be.
    count : value
        Rounds of the present job.
    only : value, optional
        Whether there is but one round the next time; by default, whether there was at its begin.

    Attributes
    ----------
    after : Signal
        Number, from 1, of the round after the present one: from 2, therefore.
    last, last_after : Signal
        Whether the present round is the last one; whether the one after it will be.
    only : Signal
        Whether there is only one round.
    """

    def __init__(self, m: Module, name: str, limit: int, count, *, only=None):
        self._m = m
        self.after = Signal(range(limit + 2), name=f"{name}_after", init=2)
        self.last = Signal(name=f"{name}_last")
        self.last_after = Signal(name=f"{name}_last_after")
        self.only = Signal(name=f"{name}_only")
        m.d.comb += self.last_after.eq(Mux(self.last, self.only if only is None else only,
                                           self.after == count))

    def begin(self, count):
        """Begin the first of ``count`` rounds, in the present context of ``m``."""
        self._m.d.sync += [self.after.eq(2), self.last.eq(count == 1), self.only.eq(count == 1)]

    def advance(self):
        """Go to the next round, and from the last to the first."""
        self._m.d.sync += [self.after.eq(Mux(self.last, 2, self.after + 1)),
                           self.last.eq(self.last_after)]
