"""The fields of an instruction, and what is wrong with them."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from hw.config import CoreConfig
from hw.isa import (
    ADDRESSED,
    FIELDS,
    FUNCTIONS,
    GATED,
    INSTRUCTION_BYTES,
    REGISTERS,
    Fault,
    Function,
    Opcode,
)

__all__ = ["Decoder", "decoded_layout"]

#: Fields that hold where a vector begins. ``b`` is one only with some functions.
_VECTORS = {
    Opcode.LOAD: ("target",),
    Opcode.STORE: ("a",),
    Opcode.PACK: ("a", "b"),
    Opcode.DRAIN: ("target",),
    Opcode.VECTOR: ("target", "a", "b"),
    Opcode.NORM: ("a",),
}
_OF_TWO = (Function.ADD, Function.SUBTRACT, Function.LMUL, *GATED)


def decoded_layout(config: CoreConfig) -> data.StructLayout:
    """Layout of a decoded instruction: :data:`hw.isa.FIELDS`, ``fault``, and ``column_bytes``.

    The latter are the bytes of a column, or row, of MATMUL's matrix, and of a word of any other's
    vector.
    """
    engine = config.engine
    # A row is no longer: `row_columns` is at most `max_rows`.
    largest = engine.column_bytes(engine.max_rows, engine.max_planes)
    return data.StructLayout(FIELDS | {
        "fault": bits_for(max(Fault)), "column_bytes": bits_for(max(largest,
                                                                    2 * config.vector_lanes))})


class Decoder(wiring.Component):
    """Splits an instruction into its fields and finds the fault that can be seen in them.

    ``fault`` is that of docs/machine.md with the smallest code, 0 if there is none. NOT_FINITE and
    NO_PRODUCT are seen only at execution. Instructions are checked one at a time, ahead of their
    execution; the end of a matrix is a product that takes a cycle for each bit of its factors:
    :func:`sim.golden.cycles.decode_cycles` has the exact formula.

    Parameters
    ----------
    config : CoreConfig

    Members
    -------
    i : In(stream) of {instruction: 128}
        As :func:`hw.isa.encode` makes it, the first byte lowest.
    o : Out(stream) of :func:`decoded_layout`

    Raises
    ------
    ValueError
        If lanes or port bytes are no power of two: they divide addresses.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: CoreConfig):
        self.config = config
        for what, value in (("Lane count", config.engine.lanes),
                            ("Port width in bytes", config.port_bytes)):
            if value & (value - 1):
                raise ValueError(f"{what} of a core must be a power of two, not {value}")
        super().__init__({
            "i": In(stream.Signature(data.StructLayout({"instruction": 8 * INSTRUCTION_BYTES}))),
            "o": Out(stream.Signature(decoded_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        config, engine = self.config, self.config.engine
        at = self.o.p
        fields = data.StructLayout(FIELDS)(self.i.p.instruction)

        def opcode_in(opcodes):
            return Cat(at.opcode == opcode for opcode in opcodes).any()

        # One flag for each fault, the first one lowest.
        flags = data.StructLayout({fault.name: 1 for fault in Fault
                                   if Fault.NONE < fault <= Fault.MATRIX})
        by_row = Signal()
        m.d.comb += by_row.eq((at.opcode == Opcode.MATMUL) & (at.function == Function.BY_ROW))
        seen, found = Signal(flags), Signal(flags, reset_less=True)
        m.d.comb += [
            seen.OPCODE.eq(~opcode_in(Opcode)),
            seen.FUNCTION.eq(Cat(
                (at.opcode == opcode) & ~Cat(at.function == known for known in functions).any()
                for opcode, functions in FUNCTIONS.items()).any()),
            seen.REGISTER.eq(
                (((at.opcode == Opcode.NORM)
                  | ((at.opcode == Opcode.PACK) & (at.function != Function.NONZERO)))
                 & ((at.target == 0) | (at.target >= REGISTERS)))
                | (opcode_in((Opcode.DRAIN, Opcode.EMIT))
                   & ((at.a >= REGISTERS) | (at.b >= REGISTERS)))),
            seen.MATRIX.eq((at.opcode == Opcode.MATMUL) & Cat(
                (value == 0) | (value > limit)
                for value, limit in (
                    (at.a, Mux(by_row, engine.max_columns, engine.max_rows)),
                    (at.b, engine.max_planes),
                    (at.count, Mux(by_row, engine.row_columns, engine.max_columns)))).any()),
        ]
        below = exact_log2(config.vector_lanes)
        bad = [at.count == 0, at.count[:below].any()]
        for name in ("target", "a", "b"):
            used = opcode_in(opcode for opcode, names in _VECTORS.items() if name in names)
            if name == "b":
                used &= Cat(at.function == function for function in _OF_TWO).any()
            bad.append(used & (at[name][:below].any() | (at[name] + at.count
                                                         > config.vector_depth)))
        m.d.comb += seen.VECTOR_ADDRESS.eq(
            (opcode_in(_VECTORS) & Cat(bad).any())
            | ((at.opcode == Opcode.PACK) & (at.count > config.list_depth)))

        # Bytes of a matrix: word bytes times planes times groups times columns, one factor after
        # the other, from its lowest bit up; by row it is the other way round. A vector has two
        # bytes for each element.
        groups = (Mux(by_row, at.count, at.a) + (engine.lanes - 1)) >> exact_log2(engine.lanes)
        largest = engine.word_bytes * (2 ** len(at.b) - 1) * (2 ** len(groups) - 1) * (
            2 ** len(at.count) - 1)
        bytes_ = Signal(range(largest + 1), reset_less=True)
        term = Signal.like(bytes_)
        factor = Signal(len(groups), reset_less=True)
        passes = Signal(range(3), reset_less=True)      # behind the present one
        end = Signal(max(len(bytes_), len(at.address)) + 1)
        m.d.comb += [
            end.eq(at.address + bytes_),
            seen.MEMORY_ADDRESS.eq(
                opcode_in(ADDRESSED)
                & ((at.address & (config.port_bytes - 1)).any() | (end > config.memory_bytes))),
        ]
        m.d.sync += found.eq(seen)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += [at[name].eq(fields[name]) for name in FIELDS]
                with m.If(self.i.valid):
                    m.next = "BEGIN"
            with m.State("BEGIN"):
                m.d.sync += [
                    term.eq(engine.word_bytes),
                    factor.eq(at.b),
                    passes.eq(2),
                    bytes_.eq(Mux(at.opcode == Opcode.MATMUL, 0, at.count << 1)),
                    at.column_bytes.eq(2 * config.vector_lanes),
                ]
                m.next = "CHECK"
                with m.If(at.opcode == Opcode.MATMUL):
                    m.next = "MULTIPLY"
            with m.State("MULTIPLY"):
                m.d.sync += [term.eq(term << 1), factor.eq(factor >> 1)]
                with m.If(factor[0]):
                    m.d.sync += bytes_.eq(bytes_ + term)
                with m.If(factor == 0):
                    m.d.sync += passes.eq(passes - 1)
                    with m.If(passes == 0):
                        m.next = "CHECK"
                    with m.Else():
                        m.d.sync += [
                            # Those of a plane first, then those of a column.
                            at.column_bytes.eq(bytes_),
                            term.eq(bytes_),
                            bytes_.eq(0),
                            factor.eq(Mux(passes == 2, groups, Mux(by_row, at.a, at.count))),
                        ]
            with m.State("CHECK"):
                m.next = "CHOOSE"
            with m.State("CHOOSE"):
                m.d.sync += at.fault.eq(Fault.NONE)
                for fault in reversed(Fault):
                    if fault.name in flags.members:
                        with m.If(getattr(found, fault.name)):
                            m.d.sync += at.fault.eq(fault)
                m.d.sync += self.o.valid.eq(1)
                m.next = "DELIVER"
            with m.State("DELIVER"):
                with m.If(self.o.ready):
                    m.d.sync += self.o.valid.eq(0)
                    m.next = "IDLE"
        return m
