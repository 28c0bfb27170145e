"""Prefetch: a second walk through the program, ahead of its execution, for what memory holds."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from hw.config import AcceleratorConfig
from hw.control.program import ProgramReader, program_port
from hw.isa import Fault, Function, Opcode
from hw.memory.read_engine import Kind, fetch_layout

__all__ = ["Prefetch"]

_LOADS = (Opcode.LOAD, Opcode.LOAD_AT)


class Prefetch(wiring.Component):
    """Turns the matrices and vectors of the program into fetches, as docs/machine.md orders them.

    It begins with the first pass. Behind a STOP it goes on at the start of the program, or waits
    for the next pass, as the STOP says: all of a program say the same. An instruction with a fault
    ends it: execution will stop there. A STORE or KV_APPEND is passed when it was executed, and
    what depends on the position waits for the pass to begin.

    Parameters
    ----------
    config : AcceleratorConfig
    reader_domain : str
        Clock domain of the program's reader.

    Members
    -------
    program : Out(:func:`hw.control.program.program_port`)
    pass_begins : In(1)
        A pass begins at ``start``; that matters for the first one since reset, and behind a STOP
        that waits.
    start : In
    behind : Out(1)
        Prefetch has yet to come to a STOP that was executed: no pass may begin.
    stored : In(1)
        A STORE or KV_APPEND was executed.
    position : In
        Of the pass that is executed; only with a context.
    o_fetches : Out(stream) of :func:`hw.memory.read_engine.fetch_layout`

    Raises
    ------
    ValueError
        As :class:`hw.control.decode.Decoder` does.
    """

    def __init__(self, config: AcceleratorConfig, *, reader_domain: str = "sync"):
        self.config = config
        self.reader = ProgramReader(config)
        self._reader_domain = reader_domain
        super().__init__({
            "program": Out(program_port(config)),
            "pass_begins": In(1), "start": In(exact_log2(config.program_depth)),
            "stored": In(1), "behind": Out(1),
            "o_fetches": Out(stream.Signature(fetch_layout(config))),
        } | ({"position": In(bits_for(config.context))} if config.context else {}))

    def elaborate(self, platform):
        m = Module()
        reader = self.reader
        m.submodules.reader = DomainRenamer(self._reader_domain)(reader)
        # The first pass has begun, and its STOP was not seen; STOPs wait; one was not seen, but the
        # pass behind it has begun.
        unseen, waits, pending = Signal(), Signal(), Signal()
        start = Signal.like(self.start)
        given = reader.o.p
        fetch = self.o_fetches.p
        on_demand = Signal()                        # columns of the newest list are read as listed
        # Stores that were executed and not passed: prefetch passes none before its execution.
        stores = Signal(bits_for(self.config.program_depth))
        passes_store = Signal()
        loads = Cat(given.opcode == opcode for opcode in _LOADS).any()
        wiring.connect(m, reader.memory, wiring.flipped(self.program))
        m.d.comb += self.behind.eq(unseen | pending)
        with m.If(self.pass_begins):
            m.d.sync += [start.eq(self.start), pending.eq(waits)]
        m.d.sync += stores.eq(stores + self.stored - passes_store)
        if self.config.context:
            self._position(m, reader)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += [
                    reader.restart.eq(self.pass_begins | pending),
                    reader.start.eq(Mux(pending, start, self.start)),
                ]
                with m.If(reader.restart):
                    m.d.sync += [pending.eq(0), unseen.eq(~waits)]
                    m.next = "NEXT"
            with m.State("NEXT"):
                m.d.sync += [
                    fetch.address.eq(given.address),
                    fetch.size.eq(given.column_bytes),
                    fetch.count.eq(Mux(loads, given.count >> exact_log2(self.config.vector_lanes),
                                       given.count)),
                    fetch.kind.eq(Mux(
                        loads, Kind.VECTOR,
                        Mux(on_demand | (given.function == Function.BY_ROW), Kind.COLUMNS,
                            Kind.WHOLE))),
                ]
                if self.config.context:
                    with m.If((given.opcode == Opcode.QK) | (given.opcode == Opcode.PV)):
                        m.d.sync += [fetch.count.eq(reader.position + 1),
                                     fetch.kind.eq(Kind.CACHE)]
                with m.If(reader.o.valid):
                    with m.If(given.fault != Fault.NONE):
                        m.next = "STOPPED"
                    with m.Else():
                        with m.Switch(given.opcode):
                            with m.Case(Opcode.MATMUL, *_LOADS, Opcode.QK, Opcode.PV):
                                m.d.sync += self.o_fetches.valid.eq(1)
                                m.next = "FETCH"
                            with m.Case(Opcode.STORE, Opcode.KV_APPEND):
                                m.d.comb += [
                                    passes_store.eq(stores != 0),
                                    reader.o.ready.eq(stores != 0),
                                ]
                            with m.Case(Opcode.TOKEN, Opcode.QUANTIZE):
                                # TOKEN has no function.
                                m.d.sync += on_demand.eq(given.function != Function.DENSE)
                                m.d.comb += reader.o.ready.eq(1)
                            with m.Case(Opcode.STOP):
                                m.d.comb += [
                                    reader.o.ready.eq(1),
                                    reader.restart.eq(~given.constant[0]),
                                ]
                                m.d.sync += [unseen.eq(0), waits.eq(given.constant[0])]
                                with m.If(given.constant[0]):
                                    m.next = "IDLE"
                            with m.Default():
                                m.d.comb += reader.o.ready.eq(1)
            with m.State("FETCH"):
                with m.If(self.o_fetches.ready):
                    m.d.sync += self.o_fetches.valid.eq(0)
                    m.d.comb += reader.o.ready.eq(1)
                    m.next = "NEXT"
            with m.State("STOPPED"):
                pass
        return m

    def _position(self, m, reader):
        """Keep the position of the pass that is walked; execution is in it, one before or behind.

        That of the next pass is known when this one has ended here and that one has begun.
        """
        given = reader.o.p
        ahead = Signal(2)                       # passes that have begun and not ended here
        ends = (reader.o.valid & reader.o.ready & (given.opcode == Opcode.STOP)
                & (given.fault == Fault.NONE))
        position = Signal.like(self.position)
        m.d.sync += [ahead.eq(ahead + self.pass_begins - ends), reader.known.eq(ahead != 0)]
        with m.If(ahead == 1):
            m.d.sync += position.eq(self.position)
        m.d.comb += reader.position.eq(position)
