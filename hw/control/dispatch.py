"""The dispatch: one pass over the program for each token, an instruction at a time."""

from amaranth import *
from amaranth.lib import data, fifo, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from hw.activations.sparsity import command_layout as selection_layout
from hw.arith.exact import ExactMultiplier
from hw.attention.unit import answer_layout, attention_layout
from hw.config import AcceleratorConfig
from hw.control.decode import decoded_layout
from hw.control.program import ProgramReader, program_port
from hw.engine.loop_nest import entry_layout, job_layout
from hw.formats.minifloat import bf16
from hw.isa import BATCH_FIELDS, FIELDS, MASKED, REGISTERS, Fault, Function, Opcode
from hw.memory.load_store import move_layout
from hw.memory.port import error_layout
from hw.output.writeback import scalar_layout, write_back_layout
from hw.vector.memory import address_width
from hw.vector.unit import command_layout

__all__ = ["Dispatch", "fault_layout", "token_layout"]

#: A scalar register: exponents of QUANTIZE, -133 to 121.
_EXPONENT_WIDTH = 10


def token_layout(config: AcceleratorConfig) -> data.StructLayout:
    """Layout of what begins a pass: the token, and the instruction to start at."""
    return data.StructLayout({"token": config.engine.index_width,
                              "start": exact_log2(config.program_depth)})


def fault_layout(config: AcceleratorConfig) -> data.StructLayout:
    """Layout of a fault: its code, and the index of its instruction.

    With MEMORY, ``write``, ``response`` and ``address`` are those of
    :func:`hw.memory.port.error_layout`; with any other fault they are 0.
    """
    return data.StructLayout({"fault": bits_for(max(Fault)),
                              "instruction": bits_for(config.program_depth),
                              "write": 1, "response": 2, "address": config.address_width})


class Dispatch(wiring.Component):
    """Executes the program: commands to the units, in the order of docs/machine.md.

    Each command waits for its unit's answer, but for MATMUL, which is only queued. The next
    instruction is decoded meanwhile.

    Parameters
    ----------
    config : AcceleratorConfig
    reader_domain : str
        Clock domain of the program's reader.

    Members
    -------
    program : Out of :func:`hw.control.program.program_port`
    idle : Out(1)
        No pass is under way: the program may be written.
    i_tokens : In(stream) of :func:`token_layout`
        Begins a pass; accepted when the one before has ended.
    o_vectors, i_numbers : Out(stream), In(stream)
        ``i_commands`` and ``o_results`` of :class:`hw.vector.unit.VectorUnit`.
    o_quantizes, i_quantized : Out(stream), In(stream)
        ``i_commands`` and ``o_results`` of :class:`hw.activations.quantizer.Quantizer`.
    o_selections : Out(stream)
        ``i_commands`` of :class:`hw.activations.sparsity.SparsityPolicy`, accepted before that of
        the quantizer.
    list_complete : In(1)
        For a cycle when the end of a QUANTIZE's list was accepted by the list memory.
    o_entries, o_products : Out(stream)
        For ``i_entries`` and ``i_products`` of
        :class:`hw.activations.sparse_vector.SparseVectorMemory`.
    o_write_backs : Out(stream) of :func:`write_back_layout`
        Rows of the oldest product are scaled and written.
    written_back : In(1)
        For a cycle when its last word was written.
    o_choices : Out(stream) of {rows: 16}
        For ``i_commands`` of :class:`hw.output.top_k.TopK`.
    chosen : In(1)
        For a cycle when its last integer was delivered.
    o_scale : Out(stream) of :func:`scalar_layout`
        The scalar of a TOP_K, after its last integer.
    o_moves : Out(stream) of :func:`move_layout`
    moved : In(1)
        For a cycle when the move is done.
    loading : Out(1)
        A LOAD is under way. A masked QUANTIZE behind it may have been begun; none of its entries
        may reach the sparsity policy, which needs what is loaded.
    prefetch_behind : In(1)
        No pass may begin yet.
    batch : Out of :data:`hw.isa.BATCH_FIELDS`
        Of the list that a QUANTIZE makes; ``log2`` is 0 if it is not one of a batch.
    batch_incomplete : Out(1)
        More vectors of it are to come.
    o_attends, i_attended : Out(stream), In(stream)
        ``i_commands`` and ``o_answers`` of :class:`hw.attention.unit.AttentionUnit`. These and the
        following are there only with a context.
    pv_results : Out(1)
        The product of a WRITE_BACK is the mixture of attention.
    position : Out
        Of the token in its sequence, at most the context.
    cache, bound : Out, In(8)
        Cache whose values are mixed, and the exponent field of its largest element.
    not_finite : In(1)
        Beside ``moved``: a vector that was appended is not finite.
    error : In of :func:`hw.memory.port.error_layout`
        That of the memory port. No instruction begins after it, and no TOP_K ends: the accelerator
        stops with MEMORY, whatever else an instruction found in data that are not those of the
        memory.
    o_faults : Out(stream) of :func:`fault_layout`
        What stopped the accelerator; only a reset starts it again.
    executing : Out
        Index of the instruction that is executed, or the next one to be.
    active : Out(1)
        A clock matters: see :attr:`hw.accelerator.Accelerator.active`.

    Raises
    ------
    ValueError
        As :class:`hw.control.decode.Decoder` does.
    """

    program: wiring.PureInterface
    idle: Signal
    i_tokens: stream.Interface
    o_vectors: stream.Interface
    i_numbers: stream.Interface
    o_quantizes: stream.Interface
    i_quantized: stream.Interface
    o_selections: stream.Interface
    list_complete: Signal
    o_entries: stream.Interface
    o_products: stream.Interface
    o_write_backs: stream.Interface
    written_back: Signal
    o_choices: stream.Interface
    chosen: Signal
    o_scale: stream.Interface
    o_moves: stream.Interface
    moved: Signal
    loading: Signal
    error: data.View
    o_faults: stream.Interface
    executing: Signal
    active: Signal

    def __init__(self, config: AcceleratorConfig, *, reader_domain: str = "sync"):
        self.config = config
        self.reader = ProgramReader(config)
        self._reader_domain = reader_domain
        address = address_width(config)
        layouts = {
            "i_tokens": token_layout(config),
            "o_vectors": command_layout(config),
            "i_numbers": data.StructLayout({"number": bf16.width}),
            "o_quantizes": data.StructLayout({"sparse": 1, "nonzero": 1, "a": address,
                                              "words": address + 1}),
            "o_selections": selection_layout(config),
            "i_quantized": data.StructLayout({"exponent": signed(_EXPONENT_WIDTH), "fault": 1}),
            "o_entries": entry_layout(config.engine),
            "o_products": job_layout(config.engine),
            "o_write_backs": write_back_layout(config),
            "o_choices": data.StructLayout({"rows": FIELDS["a"]}),
            "o_scale": scalar_layout(),
            "o_moves": move_layout(config),
            "o_faults": fault_layout(config),
        }
        super().__init__({
            **{name: (In if name.startswith("i") else Out)(stream.Signature(layout))
               for name, layout in layouts.items()},
            "program": Out(program_port(config)), "idle": Out(1),
            "list_complete": In(1), "written_back": In(1), "chosen": In(1), "moved": In(1),
            "loading": Out(1), "prefetch_behind": In(1),
            "error": In(error_layout(config.address_width)),
            "batch": Out(data.StructLayout(BATCH_FIELDS)), "batch_incomplete": Out(1),
            "executing": Out(bits_for(config.program_depth)), "active": Out(1),
        } | ({
            "o_attends": Out(stream.Signature(attention_layout(config))),
            "i_attended": In(stream.Signature(answer_layout())),
            "pv_results": Out(1), "position": Out(bits_for(config.context)),
            "cache": Out(bits_for(config.caches - 1)), "bound": In(bf16.exponent_bits),
            "not_finite": In(1),
        } if config.context else {}))

    def elaborate(self, platform):
        m = Module()
        config, engine = self.config, self.config.engine
        reader = self.reader
        m.submodules.reader = DomainRenamer(self._reader_domain)(reader)
        wiring.connect(m, reader.memory, wiring.flipped(self.program))
        m.d.comb += reader.start.eq(self.i_tokens.p.start)

        now = Signal(decoded_layout(config), reset_less=True)   # the instruction that is executed
        index = self.executing
        token = Signal(engine.index_width, reset_less=True)
        fault = Signal(bits_for(max(Fault)), reset_less=True)

        # Rows of the products that were queued and not taken, and whether they are walked by row.
        by_row = Signal()
        m.submodules.products = products = fifo.SyncFIFO(width=len(now.a) + 1,
                                                         depth=config.product_depth)
        batched = Signal()
        rows = Signal.like(now.a)               # of all vectors: the decoder has looked
        m.d.comb += rows.eq(now.a)
        if engine.max_batch > 1:
            m.d.comb += batched.eq(now.target[1:].any())
            for log2 in range(1, engine.max_batch.bit_length()):
                with m.If(now.target[log2]):
                    m.d.comb += rows.eq(now.a << log2)
        m.d.comb += [
            by_row.eq(now.function == Function.BY_ROW),
            products.w_data.eq(Cat(rows, by_row)),
        ]
        # Rows that are left of the oldest of them: known two cycles after it is the oldest one.
        oldest = Signal(data.StructLayout({"rows": len(now.a), "by_row": 1}), reset_less=True)
        known, takes = Signal(), Signal()
        whole = Signal()                        # no row is left behind
        m.d.comb += whole.eq(oldest.rows == now.count)
        with m.If(takes):
            m.d.sync += [oldest.rows.eq(oldest.rows - now.count), known.eq(~whole)]
        with m.Elif(~known):
            m.d.sync += [oldest.eq(products.r_data), known.eq(products.r_rdy)]

        register = data.StructLayout({"number": bf16.width, "exponent": signed(_EXPONENT_WIDTH)})
        m.submodules.registers = registers = memory.Memory(
            shape=register, depth=REGISTERS, init=[{"number": bf16.one, "exponent": 0}])
        read, write = registers.read_port(domain="comb"), registers.write_port()
        m.submodules.multiplier = multiplier = ExactMultiplier(bf16)
        scalar = Signal(scalar_layout(), reset_less=True)
        second = Signal()                       # the second of two products
        m.d.comb += [
            read.addr.eq(Mux(second, now.b, now.a)),
            write.addr.eq(now.target),
            multiplier.i.p.x.eq(scalar.number),
            multiplier.i.p.y.eq(read.data.number),
        ]

        below = exact_log2(config.vector_lanes)
        words = now.count >> below
        # At least 0: the decoder has looked.
        below_last = Mux(by_row, now.count, now.a) - 1
        m.d.comb += [
            self.o_vectors.p.norm.eq(now.opcode == Opcode.NORM),
            self.o_vectors.p.function.eq(now.function),
            self.o_vectors.p.target.eq(now.target >> below),
            self.o_vectors.p.a.eq(now.a >> below),
            self.o_vectors.p.b.eq(now.b >> below),
            self.o_vectors.p.words.eq(words),
            self.o_quantizes.p.sparse.eq(now.function != Function.DENSE),
            self.o_quantizes.p.nonzero.eq(now.function == Function.NONZERO),
            self.o_quantizes.p.a.eq(now.a >> below),
            self.o_quantizes.p.words.eq(words),
            self.o_selections.p.largest.eq(now.function == Function.KEEP_TOP_K),
            self.o_selections.p.norms.eq(now.b >> below),
            self.o_selections.p.keep.eq(now.constant),
            self.o_selections.p.threshold.eq(now.address),
            self.o_products.p.groups.eq((below_last >> exact_log2(engine.lanes)) + 1),
            self.o_products.p.tail.eq(((below_last & (engine.lanes - 1)) >> below) + 1),
            self.o_products.p.planes.eq(now.b),
            self.o_products.p.batch.eq(Mux(batched, now.target, 1)),
            self.o_write_backs.p.scalar.eq(scalar),
            self.o_write_backs.p.target.eq(now.target >> below),
            self.o_write_backs.p.words.eq(words),
            self.o_write_backs.p.relu.eq(now.function == Function.RELU),
            self.o_choices.p.rows.eq(now.count),
            self.o_scale.p.eq(scalar),
            self.o_moves.p.store.eq(now.opcode == Opcode.STORE),
            self.o_moves.p.address.eq(now.address),
            self.o_moves.p.vector.eq(Mux(now.opcode == Opcode.STORE, now.a, now.target) >> below),
            self.o_moves.p.words.eq(words),
            self.o_faults.p.fault.eq(fault),
            self.o_faults.p.instruction.eq(index),
        ]
        with m.If(fault == Fault.MEMORY):
            m.d.comb += [self.o_faults.p[name].eq(self.error[name])
                         for name in ("write", "response", "address")]

        if engine.row_columns:
            m.d.comb += self.o_products.p.by_row.eq(by_row)
        if engine.max_batch > 1:
            part = self.batch
            with m.If((now.opcode == Opcode.QUANTIZE) & (now.function == Function.DENSE)):
                m.d.comb += [
                    part.eq(now.constant[:part.shape().size]),
                    self.batch_incomplete.eq(~part.across & (part.slot != (1 << part.log2) - 1)),
                ]
        if config.context:
            self._position(m, now, reader)

        with m.If(self.o_moves.valid & self.o_moves.ready):
            m.d.sync += self.loading.eq(~self.o_moves.p.store)
        with m.Elif(self.moved):
            m.d.sync += self.loading.eq(0)

        list_seen = Signal()                       # ... the list of this QUANTIZE
        with m.If(self.o_quantizes.valid):
            m.d.sync += list_seen.eq(0)
        with m.Elif(self.list_complete):
            m.d.sync += list_seen.eq(1)

        states = _STATES | (_ATTENTION_STATES if config.context else {})
        waits = Signal()                        # for another unit, and nothing changes
        m.d.comb += self.active.eq(~waits | self.list_complete | self.moved
                                   | (~known & products.r_rdy))

        def command(state, port, following):
            with m.State(state):
                m.d.comb += [port.valid.eq(1), waits.eq(~port.ready)]
                with m.If(port.ready):
                    m.next = following

        def answer(state, done, following):
            with m.State(state):
                m.d.comb += waits.eq(~done)
                with m.If(done):
                    m.next = following

        with m.FSM() as fsm:
            with m.State("IDLE"):
                begins = self.i_tokens.valid & ~self.prefetch_behind
                m.d.comb += [
                    self.idle.eq(1),
                    self.i_tokens.ready.eq(~self.prefetch_behind),
                    reader.restart.eq(begins),
                ]
                m.d.sync += [token.eq(self.i_tokens.p.token), index.eq(self.i_tokens.p.start)]
                with m.If(begins):
                    m.next = "NEXT"
            with m.State("NEXT"):
                given = reader.o.p
                m.d.comb += reader.o.ready.eq(1)
                m.d.sync += [
                    now.eq(given),
                    fault.eq(given.fault),
                    scalar.number.eq(given.constant),
                    scalar.exponent.eq(0),
                    second.eq(0),
                ]
                with m.If(reader.o.valid):
                    with m.If(given.fault != Fault.NONE):
                        m.next = "FAULT"
                    with m.Else():
                        with m.Switch(given.opcode):
                            for opcode, state in states.items():
                                with m.Case(opcode):
                                    m.next = state
                with m.If(self.error.valid):
                    m.next = "FAULT"
            with m.State("DONE"):
                m.d.sync += index.eq(index + 1)
                m.next = "NEXT"

            command("VECTOR", self.o_vectors, "NUMBER")
            with m.State("NUMBER"):
                m.d.comb += [
                    self.i_numbers.ready.eq(1),
                    write.data.number.eq(self.i_numbers.p.number),
                    write.en.eq(self.i_numbers.valid & (now.opcode == Opcode.NORM)),
                    waits.eq(~self.i_numbers.valid),
                ]
                with m.If(self.i_numbers.valid):
                    m.next = "DONE"

            with m.State("SPARSITY"):
                m.d.comb += self.o_selections.valid.eq(
                    Cat(now.function == function for function in MASKED).any())
                with m.If(~self.o_selections.valid | self.o_selections.ready):
                    m.next = "QUANTIZE"
            command("QUANTIZE", self.o_quantizes, "PACKED")
            with m.State("PACKED"):
                m.d.comb += [
                    self.i_quantized.ready.eq(1),
                    write.data.number.eq(bf16.one),
                    write.data.exponent.eq(self.i_quantized.p.exponent),
                    write.en.eq(self.i_quantized.valid & ~self.i_quantized.p.fault
                                & ~self.o_quantizes.p.nonzero),
                    waits.eq(~self.i_quantized.valid),
                ]
                m.d.sync += fault.eq(Fault.NOT_FINITE)
                with m.If(self.i_quantized.valid):
                    m.next = "LIST"
                    with m.If(self.i_quantized.p.fault):
                        m.next = "FAULT"
            answer("LIST", list_seen, "DONE")

            with m.State("TOKEN"):
                m.d.comb += [
                    self.o_entries.valid.eq(1),
                    self.o_entries.p.index.eq(token),
                    self.o_entries.p.value.eq(1),
                ]
                with m.If(self.o_entries.ready):
                    m.next = "TOKEN_END"
            with m.State("TOKEN_END"):
                m.d.comb += [self.o_entries.valid.eq(1), self.o_entries.p.end.eq(1)]
                with m.If(self.o_entries.ready):
                    m.next = "DONE"

            # Two queues take the product, each when it can: here it waits for the one with its
            # rows, whose places are given back last.
            with m.State("MATMUL"):
                m.d.comb += [
                    self.o_products.valid.eq(products.w_rdy),
                    products.w_en.eq(self.o_products.valid & self.o_products.ready),
                    waits.eq(~products.w_en),
                ]
                with m.If(products.w_en):
                    m.next = "DONE"

            with m.State("TAKE"):
                m.d.sync += fault.eq(Fault.NO_PRODUCT)
                m.next = "FAULT"
                m.d.sync += self.o_write_backs.p.by_row.eq(oldest.by_row)
                emits = now.opcode == Opcode.TOP_K
                with m.If(known & ~(oldest.by_row & emits)
                          & (whole | ((oldest.rows > now.count) & ~(oldest.by_row | emits)))):
                    m.d.comb += [takes.eq(1), products.r_en.eq(whole)]
                    m.next = "MULTIPLY"
            with m.State("MULTIPLY"):
                m.d.comb += multiplier.i.valid.eq(1)
                m.d.sync += scalar.exponent.eq(scalar.exponent + read.data.exponent)
                m.next = "PRODUCT"
            with m.State("PRODUCT"):
                m.d.comb += multiplier.o.ready.eq(1)
                m.d.sync += scalar.number.eq(multiplier.o.p.product)
                with m.If(multiplier.o.valid):
                    m.d.sync += second.eq(1)
                    m.next = "MULTIPLY"
                    with m.If(second):
                        m.next = "CHOOSE"
                        with m.If(now.opcode == Opcode.WRITE_BACK):
                            m.next = "WRITE_BACK"
            command("WRITE_BACK", self.o_write_backs, "WRITTEN_BACK")
            answer("WRITTEN_BACK", self.written_back, "DONE")
            command("CHOOSE", self.o_choices, "CHOSEN")
            with m.State("CHOSEN"):
                m.d.comb += waits.eq(~self.chosen)
                with m.If(self.chosen):
                    m.next = "SCALE"
                    with m.If(self.error.valid):
                        m.next = "FAULT"
            command("SCALE", self.o_scale, "DONE")

            command("MOVE", self.o_moves, "MOVED")
            with m.State("MOVED"):
                given = reader.o.p
                packs = (reader.o.valid & (given.fault == Fault.NONE)
                         & (given.opcode == Opcode.QUANTIZE)
                         & Cat(given.function == function for function in MASKED).any())
                done = self.moved | (self.loading & packs)
                m.d.comb += waits.eq(~done)
                with m.If(done):
                    m.next = "DONE"
            if config.context:
                self._attention(m, now, scalar, fault, waits, command)

            command("FAULT", self.o_faults, "STOPPED")
            with m.State("STOPPED"):
                pass
        with m.If(self.error.valid & ~fsm.ongoing("FAULT")):
            m.d.sync += fault.eq(Fault.MEMORY)
        return m

    def _position(self, m, now, reader):
        """Count tokens of the sequence, and hand what depends on them to the units."""
        config = self.config
        below = exact_log2(config.vector_lanes)
        with m.If(self.i_tokens.valid & self.i_tokens.ready):
            with m.If(self.i_tokens.p.start == 0):
                m.d.sync += self.position.eq(0)
            with m.Elif(self.position != config.context):
                m.d.sync += self.position.eq(self.position + 1)
        attends, moves = self.o_attends.p, self.o_moves.p
        appends = now.opcode == Opcode.KV_APPEND
        m.d.comb += [
            reader.position.eq(self.position),
            reader.known.eq(1),
            self.cache.eq(now.a),
            attends.pv.eq(now.opcode == Opcode.PV),
            attends.e4m3.eq(now.function == Function.E4M3),
            attends.tokens.eq(self.position + 1),
            attends.bound.eq(self.bound),
            attends.heads.eq(now.target),
            attends.split.eq(now.b.any()),
            attends.a.eq(now.a >> below),
            attends.b.eq(now.b >> below),
            attends.words.eq(now.constant >> below),
            moves.append.eq(appends),
            moves.e4m3.eq(now.function == Function.E4M3),
            moves.split.eq(now.b.any()),
            moves.second.eq(now.b >> below),
            moves.cache.eq(now.constant),
        ]
        with m.If(appends):
            m.d.comb += [moves.store.eq(1), moves.vector.eq(now.a >> below)]
        with m.If(attends.pv):
            m.d.comb += self.o_write_backs.p.words.eq(attends.words)

    def _attention(self, m, now, scalar, fault, waits, command):
        """Execute KV_APPEND, QK and PV: the heads of a mixture are drained one by one."""
        heads = Signal.like(self.o_attends.p.heads)     # that were scored last
        heads_remaining = Signal.like(heads)
        attended = self.i_attended
        command("KV_APPEND", self.o_moves, "KV_APPENDED")
        with m.State("KV_APPENDED"):
            m.d.comb += waits.eq(~self.moved)
            m.d.sync += fault.eq(Fault.NOT_FINITE)
            with m.If(self.moved):
                m.next = "DONE"
                with m.If(self.not_finite):
                    m.next = "FAULT"
        with m.State("ATTEND"):
            m.d.comb += [self.o_attends.valid.eq(1), waits.eq(~self.o_attends.ready)]
            m.d.sync += [self.o_write_backs.p.by_row.eq(0), heads_remaining.eq(heads)]
            with m.If(self.o_attends.ready):
                m.next = "PV_DONE"
                with m.If(now.opcode == Opcode.QK):
                    m.d.sync += heads.eq(now.target)
                    m.next = "QK_DONE"
        with m.State("QK_DONE"):
            m.d.comb += [attended.ready.eq(1), waits.eq(~attended.valid)]
            m.d.sync += fault.eq(Fault.NOT_FINITE)
            with m.If(attended.valid):
                m.next = "DONE"
                with m.If(attended.p.fault):
                    m.next = "FAULT"
        with m.State("PV_DONE"):
            m.d.comb += [attended.ready.eq(1), waits.eq(~attended.valid)]
            m.d.sync += [scalar.number.eq(attended.p.number),
                         scalar.exponent.eq(attended.p.exponent)]
            with m.If(attended.valid):
                m.next = "PV"
        command("PV", self.o_write_backs, "PV_RESULTS")
        with m.State("PV_RESULTS"):
            m.d.comb += [self.pv_results.eq(1), waits.eq(~self.written_back)]
            with m.If(self.written_back):
                m.d.sync += [now.target.eq(now.target + now.constant),
                             heads_remaining.eq(heads_remaining - 1)]
                m.next = "PV_DONE"
                with m.If(heads_remaining == 1):
                    m.next = "DONE"


#: Where the execution of each instruction begins.
_STATES = {
    Opcode.STOP: "IDLE", Opcode.LOAD: "MOVE", Opcode.STORE: "MOVE", Opcode.TOKEN: "TOKEN",
    Opcode.QUANTIZE: "SPARSITY", Opcode.MATMUL: "MATMUL", Opcode.WRITE_BACK: "TAKE",
    Opcode.TOP_K: "TAKE", Opcode.VECTOR: "VECTOR", Opcode.NORM: "VECTOR",
}
_ATTENTION_STATES = {Opcode.LOAD_AT: "MOVE", Opcode.KV_APPEND: "KV_APPEND", Opcode.QK: "ATTEND",
                     Opcode.PV: "ATTEND"}
