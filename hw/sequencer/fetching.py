"""Fetching: a second walk through the program, ahead of its execution, for what memory holds."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from hw.config import CoreConfig
from hw.isa import Fault, Function, Opcode
from hw.memory.fetcher import Kind, fetch_layout
from hw.sequencer.program import ProgramReader, program_layout

__all__ = ["Fetching"]


class Fetching(wiring.Component):
    """Turns the matrices and vectors of the program into fetches, as docs/machine.md orders them.

    It begins with the first pass, and goes on at the start of the program behind each STOP. An
    instruction with a fault ends it: execution will stop there. A STORE is passed when it was
    executed.

    Parameters
    ----------
    config : CoreConfig
    reader_domain : str
        Clock domain of the program's reader.

    Members
    -------
    write : In(1)
        ``instruction`` is written.
    instruction : In(:func:`hw.sequencer.program.program_layout`)
    begin : In(1)
        A pass begins at ``start``; only the first one since reset matters.
    start : In
    stored : In(1)
        A STORE was executed.
    o_fetches : Out(stream) of :func:`hw.memory.fetcher.fetch_layout`

    Raises
    ------
    ValueError
        As :class:`hw.sequencer.decoder.Decoder` does.
    """

    def __init__(self, config: CoreConfig, *, reader_domain: str = "sync"):
        self.config = config
        self.reader = ProgramReader(config)
        self._reader_domain = reader_domain
        super().__init__({
            "write": In(1), "instruction": In(program_layout(config)),
            "begin": In(1), "start": In(exact_log2(config.program_depth)),
            "stored": In(1),
            "o_fetches": Out(stream.Signature(fetch_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        reader = self.reader
        m.submodules.reader = DomainRenamer(self._reader_domain)(reader)
        begun = Signal()
        given = reader.o.p
        fetch = self.o_fetches.p
        asked = Signal()                        # columns of the newest list are read as listed
        # Stores that were executed and not passed: fetching passes none before its execution.
        stores = Signal(bits_for(self.config.program_depth))
        passes_store = Signal()
        m.d.comb += [
            reader.write.eq(self.write),
            reader.instruction.eq(self.instruction),
            reader.start.eq(Mux(begun, 0, self.start)),
        ]
        m.d.sync += stores.eq(stores + self.stored - passes_store)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += reader.restart.eq(self.begin)
                with m.If(self.begin):
                    m.d.sync += begun.eq(1)
                    m.next = "NEXT"
            with m.State("NEXT"):
                m.d.sync += [
                    fetch.address.eq(given.address),
                    fetch.size.eq(given.column_bytes),
                    fetch.count.eq(Mux(given.opcode == Opcode.LOAD,
                                       given.count >> exact_log2(self.config.vector_lanes),
                                       given.count)),
                    fetch.kind.eq(Mux(
                        given.opcode == Opcode.LOAD, Kind.VECTOR,
                        Mux(asked | (given.function == Function.BY_ROW), Kind.COLUMNS,
                            Kind.WHOLE))),
                ]
                with m.If(reader.o.valid):
                    with m.If(given.fault != Fault.NONE):
                        m.next = "STOPPED"
                    with m.Else():
                        with m.Switch(given.opcode):
                            with m.Case(Opcode.MATMUL, Opcode.LOAD):
                                m.d.sync += self.o_fetches.valid.eq(1)
                                m.next = "FETCH"
                            with m.Case(Opcode.STORE):
                                m.d.comb += [
                                    passes_store.eq(stores != 0),
                                    reader.o.ready.eq(stores != 0),
                                ]
                            with m.Case(Opcode.TOKEN, Opcode.PACK):
                                m.d.sync += asked.eq((given.opcode == Opcode.TOKEN)
                                                     | (given.function != Function.DENSE))
                                m.d.comb += reader.o.ready.eq(1)
                            with m.Case(Opcode.STOP):
                                m.d.comb += [reader.o.ready.eq(1), reader.restart.eq(1)]
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
