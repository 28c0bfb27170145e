"""The fields of an instruction, and what is wrong with them."""

from collections.abc import Iterator

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from hw.config import AcceleratorConfig
from hw.isa import (
    ADDRESSED,
    ATTENTION,
    BATCH_FIELDS,
    FIELDS,
    INSTRUCTION_BYTES,
    Fault,
    Function,
    Opcode,
)
from hw.legality import (
    HALVED,
    REGISTERS_READ,
    REGISTERS_WRITTEN,
    SECOND_VECTOR,
    VECTORS,
    functions,
    matrix_limits,
    opcodes,
    product_rows,
    register_range,
)

__all__ = ["Decoder", "decoded_layout", "position_members"]


def decoded_layout(config: AcceleratorConfig) -> data.StructLayout:
    """Layout of a decoded instruction: :data:`hw.isa.FIELDS`, ``fault``, and ``column_bytes``.

    The latter are the bytes of a column, or row, of MATMUL's matrix, of a vector of a cache, and of
    a word of any other's vector. An address that depends on the position is that of the position.
    """
    engine = config.engine
    # A row is no longer: `row_columns` is at most `max_rows`.
    largest = engine.column_bytes(engine.max_rows, engine.max_planes)
    largest = max(largest, 2 * config.vector_lanes)
    if config.context:
        largest = max(largest, 2 * config.head_elements)
    return data.StructLayout(FIELDS | {
        "fault": bits_for(max(Fault)), "column_bytes": bits_for(largest)})


def position_members(config: AcceleratorConfig) -> dict:
    """Members of whoever needs the position in the sequence: none without a context."""
    return {"position": In(bits_for(config.context)), "known": In(1)} if config.context else {}


class Decoder(wiring.Component):
    """Splits an instruction into its fields and finds the fault that can be seen in them.

    ``fault`` is that of docs/machine.md with the smallest code, 0 if there is none. NOT_FINITE and
    NO_PRODUCT are seen only at execution. Instructions are checked one at a time, ahead of their
    execution; the end of a matrix is a product that takes a cycle for each bit of its factors:
    :func:`sim.timing.units.decode_cycles` has the exact formula.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    i : In(stream) of {instruction: 128}
        As :func:`hw.isa.encode` makes it, the first byte lowest.
    o : Out(stream) of :func:`decoded_layout`
    position : In
        Of the token in its sequence, at most the context; only with a context.
    known : In(1)
        The position is that of the instruction's pass: it is waited for.

    Raises
    ------
    ValueError
        If lanes or port bytes are no power of two: they divide addresses.
    """

    i: stream.Interface
    o: stream.Interface
    position: Signal
    known: Signal

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        for what, value in (("Lane count", config.engine.lanes),
                            ("Port width in bytes", config.port_bytes)):
            if value & (value - 1):
                raise ValueError(f"{what} of an accelerator must be a power of two, not {value}")
        super().__init__({
            "i": In(stream.Signature(data.StructLayout({"instruction": 8 * INSTRUCTION_BYTES}))),
            "o": Out(stream.Signature(decoded_layout(config))),
        } | position_members(config))

    def elaborate(self, platform):
        m = Module()
        config, engine = self.config, self.config.engine
        at = self.o.p
        fields = data.StructLayout(FIELDS)(self.i.p.instruction)

        def opcode_in(opcodes):
            return Cat(at.opcode == opcode for opcode in opcodes).any()

        # One flag for each fault, the first one lowest.
        others = (Fault.BATCH, *((Fault.CONTEXT, Fault.HEADS) if config.context else ()))
        flags = data.StructLayout({fault.name: 1 for fault in Fault
                                   if Fault.NONE < fault <= Fault.MATRIX or fault in others})
        legal = opcodes(config)
        by_row = Signal()
        m.d.comb += by_row.eq((at.opcode == Opcode.MATMUL) & (at.function == Function.BY_ROW))
        seen, found = Signal(flags), Signal(flags, reset_less=True)
        by_rows = matrix_limits(config, Function.BY_ROW)
        m.d.comb += [
            seen.OPCODE.eq(~opcode_in(legal)),
            seen.FUNCTION.eq(Cat(
                (at.opcode == opcode) & ~Cat(at.function == known for known in found).any()
                for opcode, found in functions(config).items()).any()),
            seen.REGISTER.eq(Cat(self._bad_registers(at)).any()),
            seen.MATRIX.eq((at.opcode == Opcode.MATMUL) & Cat(
                (at[name] == 0) | (at[name] > Mux(by_row, by_rows[name], limit))
                for name, limit in matrix_limits(config, Function.BY_COLUMN).items()).any()),
        ]
        below = exact_log2(config.vector_lanes)
        vectors = {opcode: names for opcode, names in VECTORS.items() if opcode in legal}
        parts = self._parts(opcode_in)          # vectors are of half the elements
        elements = Mux(parts, at.count >> 1, at.count)
        bad = [at.count == 0, elements[:below].any(), parts & at.count[0]]
        for name in ("target", "a", "b"):
            used = opcode_in(opcode for opcode, names in vectors.items() if name in names)
            if name == "b":
                used &= Cat(at.function == function for function in SECOND_VECTOR).any() | parts
            bad.append(used & (at[name][:below].any() | (at[name] + elements
                                                         > config.vector_depth)))
        m.d.comb += seen.VECTOR_ADDRESS.eq(
            (opcode_in(vectors) & Cat(bad).any())
            | ((at.opcode == Opcode.QUANTIZE) & (at.count > config.list_depth)))
        if config.context:
            self._see_attention(m, at, seen, opcode_in)

        groups = (Mux(by_row, at.count, at.a) + (engine.lanes - 1)) >> exact_log2(engine.lanes)
        self._see_batch(m, at, seen, by_row, groups)

        # Bytes of a matrix: word bytes times planes times groups times columns, one factor after
        # the other, from its lowest bit up; by row it is the other way round. A vector has two
        # bytes for each element. What does not fit is more than any memory has.
        width = max(len(at.address), len(at.column_bytes))
        bytes_ = Signal(width, reset_less=True)
        term = Signal(width, reset_less=True)
        too_large, term_too_large = Signal(reset_less=True), Signal(reset_less=True)
        factor = Signal(max(len(groups), len(at.count)), reset_less=True)
        passes = Signal(range(3), reset_less=True)      # behind the present one
        end = Signal(width + 1)
        beyond = Signal()                               # the address of the position
        m.d.comb += [
            end.eq(at.address + bytes_),
            seen.MEMORY_ADDRESS.eq(
                opcode_in(opcode for opcode in ADDRESSED if opcode in legal)
                & ((at.address & (config.port_bytes - 1)).any() | (end > config.memory_bytes)
                   | too_large | beyond)),
        ]
        places = opcode_in((Opcode.LOAD_AT, Opcode.KV_APPEND))     # ... depends on the position
        m.d.sync += found.eq(seen)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += [at[name].eq(fields[name]) for name in FIELDS]
                if config.context:
                    m.d.sync += beyond.eq(0)
                with m.If(self.i.valid):
                    m.next = "BEGIN"
            with m.State("BEGIN"):
                m.d.sync += [
                    term.eq(engine.word_bytes),
                    too_large.eq(0),
                    term_too_large.eq(0),
                    factor.eq(at.b),
                    passes.eq(2),
                    bytes_.eq(Mux(at.opcode == Opcode.MATMUL, 0, at.count << 1)),
                    at.column_bytes.eq(2 * config.vector_lanes),
                ]
                m.next = "CHECK"
                with m.If(at.opcode == Opcode.MATMUL):
                    m.next = "MULTIPLY"
                if config.context:
                    size = self._cache_bytes(at)
                    with m.Elif(opcode_in(ATTENTION)):
                        m.d.sync += [
                            bytes_.eq(0),
                            term.eq(size),
                            at.column_bytes.eq(size),
                            passes.eq(0),
                            factor.eq(self.position + opcode_in((Opcode.QK, Opcode.PV))),
                        ]
                        m.next = "MULTIPLY"
                        with m.If(~self.known):
                            m.next = "BEGIN"
            with m.State("MULTIPLY"):
                total = Signal(width + 1)
                m.d.comb += total.eq(bytes_ + term)
                m.d.sync += [term.eq(term << 1), factor.eq(factor >> 1)]
                with m.If(term[-1]):
                    m.d.sync += term_too_large.eq(1)
                with m.If(factor[0]):
                    m.d.sync += bytes_.eq(total)
                    with m.If(total[-1] | term_too_large):
                        m.d.sync += too_large.eq(1)
                with m.If(factor == 0):
                    m.d.sync += passes.eq(passes - 1)
                    with m.If(passes == 0):
                        m.next = "CHECK"
                        if config.context:
                            with m.If(places):
                                m.next = "PLACE"
                    with m.Else():
                        m.d.sync += [
                            # Those of a plane first, then those of a column.
                            at.column_bytes.eq(bytes_),
                            term.eq(bytes_),
                            term_too_large.eq(too_large),
                            bytes_.eq(0),
                            too_large.eq(0),
                            factor.eq(Mux(passes == 2, groups, Mux(by_row, at.a, at.count))),
                        ]
            if config.context:
                with m.State("PLACE"):
                    m.d.sync += [
                        at.address.eq(end),
                        beyond.eq(end > config.memory_bytes),
                        bytes_.eq(self._cache_bytes(at)),
                    ]
                    with m.If(at.opcode == Opcode.LOAD_AT):
                        m.d.sync += at.column_bytes.eq(2 * config.vector_lanes)
                    m.next = "CHECK"
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

    @staticmethod
    def _bad_registers(at) -> Iterator[Value]:
        """Yield whether each field that names a scalar register names one that cannot be."""
        for opcode, names in REGISTERS_READ.items():
            for name in names:
                yield (at.opcode == opcode) & (at[name] >= register_range(written=False).stop)
        for opcode, (name, without) in REGISTERS_WRITTEN.items():
            found = register_range(written=True)
            yield ((at.opcode == opcode) & ~Cat(at.function == function for function in without
                                                ).any()
                   & ((at[name] < found.start) | (at[name] >= found.stop)))

    def _see_batch(self, m, at, seen, by_row, groups):
        """Look at the batch of a DENSE QUANTIZE or of a MATMUL: a power of two."""
        config, engine = self.config, self.config.engine
        part = data.StructLayout(BATCH_FIELDS)(at.constant[:sum(BATCH_FIELDS.values())])
        above = at.constant[sum(BATCH_FIELDS.values()):].any()
        filled = ~(at.a & (config.vector_lanes - 1)).any()
        packed, multiplied = [], [at.target <= 1]
        for log2 in range(1, engine.max_batch.bit_length()):
            packed.append((part.log2 == log2) & Mux(
                part.across, (part.slot == 0) & ~at.count[:log2].any(),
                (part.slot < 1 << log2) & (at.count <= config.list_depth >> log2)))
            multiplied.append((at.target == 1 << log2) & ~by_row & filled
                              & (groups <= engine.accumulator_depth >> log2)
                              & (at.a <= product_rows(config) >> log2))
        m.d.comb += seen.BATCH.eq(
            ((at.opcode == Opcode.QUANTIZE) & (at.function == Function.DENSE) & at.constant.any()
             & ~(Cat(packed).any() & ~above))
            | ((at.opcode == Opcode.MATMUL) & ~Cat(multiplied).any()))

    # Attention.

    def _parts(self, opcode_in) -> Value:
        """Tell whether a vector lies in two halves."""
        if not self.config.context:
            return C(0)
        return opcode_in(HALVED) & self.o.p.b.any()

    @staticmethod
    def _cache_bytes(at) -> Value:
        """Return the bytes of a vector at each position."""
        elements = Mux((at.opcode == Opcode.QK) | (at.opcode == Opcode.PV), at.constant,
                       at.count)
        return Mux((at.opcode != Opcode.LOAD_AT) & (at.function == Function.E4M3), elements,
                   elements << 1)

    def _see_attention(self, m, at, seen, opcode_in):
        """Look at heads, caches and the position."""
        config = self.config
        lanes, port = config.vector_lanes, config.port_bytes
        appends, scores = at.opcode == Opcode.KV_APPEND, at.opcode == Opcode.QK
        elements = Mux(appends, at.count, at.constant)
        cache = Mux(appends, at.constant, Mux(scores, 0, at.a))
        halves = scores & at.b.any()
        bytes_ = Mux(at.function == Function.E4M3, elements, elements << 1)
        m.d.comb += [
            seen.CONTEXT.eq(opcode_in(ATTENTION) & (self.position >= config.context)),
            seen.HEADS.eq(opcode_in((Opcode.KV_APPEND, Opcode.QK, Opcode.PV)) & Cat(
                elements == 0, elements > config.head_elements, cache >= config.caches,
                (elements & (lanes - 1)).any(), halves & (elements & (2 * lanes - 1)).any(),
                (bytes_ & (port - 1)).any(),
                scores & ((at.target == 0) | (at.target > config.group))).any()),
        ]
