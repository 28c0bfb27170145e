"""The walk of the ternary engine: from jobs and activation lists to one operation a cycle."""

from amaranth import *
from amaranth.lib import data, enum, fifo, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, ceil_log2

from hw.config import EngineConfig

__all__ = ["Walker", "column_layout", "entry_layout", "job_layout", "operation_layout"]

#: Entries that wait inside the engine, so that columns are asked for ahead of their use.
ENTRY_DEPTH = 16


def job_layout(config: EngineConfig) -> data.StructLayout:
    """Layout of a job; :meth:`hw.config.EngineConfig.job` makes one."""
    return data.StructLayout({
        "groups": bits_for(config.accumulator_depth),
        "tail": bits_for(config.lanes // config.result_lanes),
        "planes": bits_for(config.max_planes),
        "batch": bits_for(config.max_batch),
    })


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
    the trit of each lane. ``hold`` adds the lane's register too, otherwise clears it. ``read``
    delivers what was read as a result transfer, ``last`` the last one of the product.
    """
    return data.StructLayout({
        "slot": ceil_log2(config.accumulator_depth),
        "zero": config.lanes // config.result_lanes,
        "operand": signed(config.operand_width),
        "write": 1,
        "clear": 1,
        "hold": 1,
        "read": 1,
        "last": 1,
    })


class Phase(enum.Enum, shape=unsigned(3)):
    """What the walker does with a job: clear, multiply, wait for the last sum, read."""

    IDLE = 0
    CLEAR = 1
    MULTIPLY = 2
    SETTLE = 3
    READ = 4


class Walker(wiring.Component):
    """Turns jobs and their activation lists into operations, at most one a cycle.

    .. code-block:: text

        clear:     for group, for vector
        multiply:  for column, for plane, for group, for vector
        read:      for vector, for group, for bank

    The vector is one of the batch. The next job and its entries are accepted while a job is walked.
    ``batch`` operands wait in a small memory, into which each goes back tripled in the last group
    of a plane.

    An operation may read the sum of the third one before it, no later one: two slots get a pause in
    each round; one slot uses the lane's register instead.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    i_jobs, i_entries, o_columns
        As in :class:`hw.ternary.engine.TernaryEngine`.
    word_valid : In(1)
        A weight word is there.
    word_ready : Out(1)
        The weight word is done with; may depend on ``word_valid``.
    room : In(1)
        The result queue takes another transfer.
    operation : Out
        :func:`operation_layout`; without ``write`` and ``read``, it does nothing.
    """

    i_jobs: stream.Interface
    i_entries: stream.Interface
    o_columns: stream.Interface
    word_valid: Signal
    word_ready: Signal
    room: Signal
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
            "operation": Out(operation_layout(config)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        banks = config.lanes // config.result_lanes

        next_job = Signal(job_layout(config))       # accepted, its list under way
        pending = Signal()                          # ... and its walk has not begun
        job = Signal(job_layout(config))            # walked
        one_slot = Signal()
        two_slots = Signal()
        load = Signal()

        # The list: each entry goes into the queue, the first of each column to o_columns as well.
        m.submodules.entries = entries = fifo.SyncFIFO(width=config.activation_width + 1,
                                                       depth=ENTRY_DEPTH)
        listing = Signal()
        position = Signal.like(next_job.batch, init=1)
        asks = Signal()
        entry = self.i_entries.p
        m.d.comb += [
            self.i_jobs.ready.eq(~pending & ~listing),
            asks.eq((position == 1) & ~entry.end),
            self.o_columns.valid.eq(self.i_entries.valid & listing & entries.w_rdy & asks),
            self.o_columns.p.index.eq(entry.index),
            self.i_entries.ready.eq(listing & entries.w_rdy & (~asks | self.o_columns.ready)),
            entries.w_en.eq(self.i_entries.valid & self.i_entries.ready),
            entries.w_data.eq(Cat(entry.value, entry.end)),
        ]
        with m.If(entries.w_en):
            with m.If(entry.end):
                m.d.sync += listing.eq(0)
            with m.Elif(position == next_job.batch):
                m.d.sync += position.eq(1)
            with m.Else():
                m.d.sync += position.eq(position + 1)
        with m.If(self.i_jobs.valid & self.i_jobs.ready):
            m.d.sync += [next_job.eq(self.i_jobs.p), pending.eq(1), listing.eq(1)]
        with m.Elif(load):
            m.d.sync += pending.eq(0)

        # The place in the walk; counters count from 1, so that they end at what the job says.
        phase = Signal(Phase)
        vector = Signal.like(job.batch, init=1)
        group = Signal.like(job.groups, init=1)
        plane = Signal.like(job.planes, init=1)
        bank = Signal.like(job.tail, init=1)
        slot = Signal(ceil_log2(config.accumulator_depth))
        first = Signal(init=1)                      # first pass over a column: takes the entries
        pause = Signal()
        vector_last = Signal()
        group_last = Signal()
        plane_last = Signal()
        bank_last = Signal()
        m.d.comb += [
            vector_last.eq(vector == job.batch),
            group_last.eq(group == job.groups),
            plane_last.eq(plane == job.planes),
            bank_last.eq(bank == Mux(group_last, job.tail, banks)),
        ]

        step = Signal()                             # an operation of clear or multiply
        multiply = Signal()
        end = Signal()
        read = Signal()
        head_end = entries.r_data[-1]
        m.d.comb += [
            end.eq((phase == Phase.MULTIPLY) & first & entries.r_rdy & head_end),
            multiply.eq((phase == Phase.MULTIPLY) & self.word_valid & ~pause
                        & (~first | (entries.r_rdy & ~head_end))),
            step.eq(multiply | (phase == Phase.CLEAR)),
            read.eq((phase == Phase.READ) & self.room),
            self.word_ready.eq(multiply & vector_last),
            entries.r_en.eq(end | (multiply & first)),
        ]
        m.d.sync += pause.eq(step & vector_last & group_last & two_slots)

        with m.If(step):
            m.d.sync += [slot.eq(slot + 1), vector.eq(vector + 1)]
            with m.If(vector_last):
                m.d.sync += [vector.eq(1), group.eq(group + 1)]
                with m.If(multiply):
                    m.d.sync += first.eq(group_last & plane_last)
                with m.If(group_last):
                    m.d.sync += [slot.eq(0), group.eq(1)]
                    with m.If(multiply):
                        m.d.sync += plane.eq(Mux(plane_last, 1, plane + 1))
        with m.If(read):
            m.d.sync += bank.eq(bank + 1)
            with m.If(bank_last):
                m.d.sync += [bank.eq(1), group.eq(group + 1), slot.eq(slot + job.batch)]
                with m.If(group_last):
                    # Vectors count from 1 and slots from 0: this is the next vector's first slot.
                    m.d.sync += [group.eq(1), slot.eq(vector), vector.eq(vector + 1)]
                    with m.If(vector_last):
                        m.d.sync += [slot.eq(0), vector.eq(1)]

        with m.Switch(phase):
            with m.Case(Phase.IDLE):
                m.d.comb += load.eq(pending)
            with m.Case(Phase.CLEAR):
                with m.If(vector_last & group_last):
                    m.d.sync += phase.eq(Phase.MULTIPLY)
            with m.Case(Phase.MULTIPLY):
                with m.If(end):
                    m.d.sync += phase.eq(Phase.SETTLE)
            with m.Case(Phase.SETTLE):
                # With the cycle of the list's end this makes the two that a sum needs.
                m.d.sync += phase.eq(Phase.READ)
            with m.Case(Phase.READ):
                with m.If(read & self.operation.last):
                    m.d.comb += load.eq(pending)
                    m.d.sync += phase.eq(Phase.IDLE)
        with m.If(load):
            m.d.sync += [
                job.eq(next_job),
                one_slot.eq((next_job.groups == 1) & (next_job.batch == 1)),
                two_slots.eq(((next_job.groups == 1) & (next_job.batch == 2))
                             | ((next_job.groups == 2) & (next_job.batch == 1))),
                phase.eq(Phase.CLEAR),
            ]

        # Operands of the batch. What goes back into the memory in a column's last plane is never
        # read, so it may overflow.
        m.submodules.operands = operands = memory.Memory(
            shape=signed(config.operand_width), depth=2 ** ceil_log2(config.max_batch), init=[],
            attrs={"no_rw_check": 1})
        operand_read, operand_write = operands.read_port(domain="comb"), operands.write_port()
        operand = Signal(signed(config.operand_width))
        m.d.comb += [
            operand_read.addr.eq(vector),
            operand.eq(Mux(first, entries.r_data[:-1].as_signed(), operand_read.data)),
            operand_write.addr.eq(vector),
            operand_write.data.eq(operand + Mux(group_last, operand << 1, 0)),
            operand_write.en.eq(multiply),
        ]

        operation = self.operation
        m.d.comb += [
            operation.slot.eq(slot),
            operation.write.eq(step),
            operation.clear.eq(phase == Phase.CLEAR),
            operation.hold.eq(one_slot & (phase == Phase.MULTIPLY)),
            operation.read.eq(read),
            operation.last.eq(vector_last & group_last & bank_last),
        ]
        with m.If(multiply):
            m.d.comb += operation.operand.eq(operand)
        for k in range(banks):
            others = operation.clear | one_slot
            m.d.comb += operation.zero[k].eq(Mux(phase == Phase.READ, bank != k + 1, others))
        return m
