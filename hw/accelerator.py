"""The core: token in, logits out. Sequencer, vector memory, lists, engine and fetching, joined."""

from amaranth import *
from amaranth.lib import fifo, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from hw.activations.quantizer import Packer
from hw.activations.sparse_vector import ListMemory
from hw.activations.sparsity import Selector
from hw.attention.unit import AttentionUnit
from hw.common.stream import connect_stream
from hw.config import CoreConfig
from hw.control.dispatch import Sequencer, fault_layout, token_layout
from hw.control.prefetch import Fetching
from hw.control.program import program_layout
from hw.engine.loop_nest import ENTRY_DEPTH
from hw.engine.result_queue import RESULT_DEPTH
from hw.engine.slice import EngineSlice
from hw.memory.load_store import Mover
from hw.memory.port import port_signature
from hw.memory.read_engine import Fetcher
from hw.output.top_k import TopK, best_layout
from hw.output.writeback import Drain, scalar_layout
from hw.vector.memory import VectorMemory
from hw.vector.unit import VectorUnit

__all__ = ["UNITS", "Core"]

#: Units that wait for commands, and do nothing meanwhile.
UNITS = ("packer", "selector", "vector", "mover", "drain", "top_k", "sequencer",
         "execution_reader", "fetching_reader", "rows")


class Core(wiring.Component):
    """All units, without pins: docs/machine.md is its contract.

    The program is written after a reset, before the first token. A token costs what
    :func:`sim.timing.program.token_cycles` derives.

    Parameters
    ----------
    config : CoreConfig
    unit_clocks : bool
        Units have clock domains of their own, by the names in :data:`UNITS`: for a simulator that
        leaves out what would change nothing. Otherwise all is in the one domain.

    Members
    -------
    i_program : In(stream) of :func:`hw.control.program.program_layout`
    i_tokens : In(stream) of :func:`hw.control.dispatch.token_layout`
    o_best : Out(stream) of :func:`hw.output.top_k.best_layout`
    o_scale : Out(stream) of :func:`hw.output.writeback.scalar_layout`
    o_faults : Out(stream) of :func:`hw.control.dispatch.fault_layout`
    memory : Out of :func:`hw.memory.port.port_signature`
    executing : Out
        Index of the instruction that is executed, for whoever counts cycles.
    active : Out
        A bit for each of :data:`UNITS`: whether the next clock edge changes anything in it but what
        the edge that accepts its next command overwrites. Without that edge, nothing else changes
        in any cycle.

    Raises
    ------
    ValueError
        As the units do: lanes and port bytes must be powers of two, and a transfer of the port not
        larger than a word of the vector memory.
    """

    i_program: stream.Interface
    i_tokens: stream.Interface
    o_best: stream.Interface
    o_scale: stream.Interface
    o_faults: stream.Interface
    memory: wiring.PureInterface
    executing: Signal
    active: Signal

    def __init__(self, config: CoreConfig, *, unit_clocks: bool = False):
        self.config = config
        self._unit_clocks = unit_clocks
        *_, execution, fetching, rows = UNITS if unit_clocks else 3 * ("sync",)
        self._sequencer = Sequencer(config, reader_domain=execution)
        self._fetching = Fetching(config, reader_domain=fetching)
        self._fetcher, self._mover = Fetcher(config), Mover(config)
        self._ternary = EngineSlice(config.engine, row_domain=rows)
        super().__init__({
            "i_program": In(stream.Signature(program_layout(config))),
            "i_tokens": In(stream.Signature(token_layout(config))),
            "o_best": Out(stream.Signature(best_layout(config))),
            "o_scale": Out(stream.Signature(scalar_layout())),
            "o_faults": Out(stream.Signature(fault_layout(config))),
            "memory": Out(port_signature(address_width=config.address_width,
                                         port_bytes=config.port_bytes)),
            "executing": Out(self._sequencer.executing.shape()),
            "active": Out(len(UNITS)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        sequencer = self._sequencer
        m.submodules.fetching = fetching = self._fetching
        m.submodules.fetcher = fetcher = self._fetcher
        m.submodules.ternary = ternary = self._ternary
        m.submodules.list = list_memory = ListMemory(config)
        attention = AttentionUnit(config) if config.context else None
        m.submodules.vectors = vectors = VectorMemory(
            config, readers=(3 + bool(config.context), 2), writers=3)
        packer, selector, vector = Packer(config), Selector(config), VectorUnit(config)
        mover, drain, top_k = self._mover, Drain(config), TopK(config)
        units = packer, selector, vector, mover, drain, top_k, sequencer
        for name, unit in zip(UNITS, units, strict=False):
            m.submodules[name] = DomainRenamer(name)(unit) if self._unit_clocks else unit
        m.d.comb += self.active.eq(Cat(
            (unit.active for unit in (*units, sequencer.reader, fetching.reader)),
            ternary.rows_active))

        memory = wiring.flipped(self.memory)
        for producer, consumer in (
                (wiring.flipped(self.i_program), sequencer.i_program),
                (wiring.flipped(self.i_tokens), sequencer.i_tokens),
                (sequencer.o_vectors, vector.i_commands),
                (vector.o_results, sequencer.i_numbers),
                (sequencer.o_packs, packer.i_commands),
                (packer.o_results, sequencer.i_packed),
                (sequencer.o_selections, selector.i_commands),
                (sequencer.o_drains, drain.i_commands),
                (sequencer.o_choices, top_k.i_commands),
                (sequencer.o_moves, mover.i_moves),
                (sequencer.o_products, list_memory.i_products),
                (list_memory.o_jobs, ternary.i_jobs),
                (fetching.o_fetches, fetcher.i_fetches),
                (fetcher.o_weights, ternary.i_port),
                (fetcher.o_vector, mover.i_vector),
                (fetcher.o_reads, memory.reads),
                (memory.data, fetcher.i_data),
                (mover.o_writes, memory.writes),
                (top_k.o_best, wiring.flipped(self.o_best)),
                (sequencer.o_scale, wiring.flipped(self.o_scale)),
                (sequencer.o_faults, wiring.flipped(self.o_faults))):
            connect_stream(m, producer, consumer)
        readers = [vector.read_0, packer.read, mover.read]
        if attention is not None:
            m.submodules.attention = attention
            readers.append(attention.read)
            self._attend(m, sequencer, fetching, fetcher, mover, attention)
        for reads, users in ((vectors.reads_0, readers),
                             (vectors.reads_1, (vector.read_1, selector.read))):
            for port, user in zip(reads, users, strict=True):
                wiring.connect(m, user, port)
        for port, user in zip(vectors.writes, (vector.write, drain.write, mover.write),
                              strict=True):
            wiring.connect(m, user, port)

        # Norms may still be on their way when their list is packed.
        listable = ~sequencer.loading
        m.d.comb += [
            selector.i_entries.p.eq(packer.o_entries.p),
            selector.i_entries.valid.eq(packer.o_entries.valid & listable),
            packer.o_entries.ready.eq(selector.i_entries.ready & listable),
            sequencer.listed.eq(selector.o_entries.valid & selector.o_entries.ready
                                & selector.o_entries.p.end),
            sequencer.drained.eq(drain.done),
            sequencer.chosen.eq(top_k.o_best.valid & top_k.o_best.ready & top_k.o_best.p.last),
            sequencer.moved.eq(mover.loaded | mover.stored),
            fetching.write.eq(self.i_program.valid & self.i_program.ready),
            fetching.instruction.eq(self.i_program.p),
            fetching.begin.eq(self.i_tokens.valid & self.i_tokens.ready),
            fetching.start.eq(self.i_tokens.p.start),
            fetching.stored.eq(mover.stored),
            sequencer.late.eq(fetching.late),
            sequencer.error.eq(memory.error),
            self.executing.eq(sequencer.executing),
        ]
        self._lists(m, sequencer, selector.o_entries, list_memory, ternary, fetcher, drain)
        self._results(m, ternary, drain, top_k, sequencer, attention)
        return m

    @staticmethod
    def _attend(m, sequencer, fetching, fetcher, mover, attention):
        """Join attention with the caches that are read and written for it."""
        for producer, consumer in ((sequencer.o_attends, attention.i_commands),
                                   (attention.o_answers, sequencer.i_attended),
                                   (fetcher.o_cache, attention.i_vectors)):
            connect_stream(m, producer, consumer)
        m.d.comb += [
            fetching.position.eq(sequencer.position),
            mover.first.eq(sequencer.position == 0),
            mover.asked.eq(sequencer.cache),
            sequencer.bound.eq(mover.bound),
            sequencer.not_finite.eq(mover.not_finite),
        ]

    def _lists(self, m, sequencer, packed, list_memory, ternary, fetcher, drain):
        """Join lists from both their makers with the list memory, and that with the engine.

        Columns, or rows, are asked for where fetching could not know them: each product remembers
        it.
        """
        engine = self.config.engine
        entries = list_memory.i_entries
        of_token = sequencer.o_entries
        m.d.comb += [
            entries.valid.eq(of_token.valid | packed.valid),
            entries.p.eq(Mux(of_token.valid, of_token.p, packed.p)),
            of_token.ready.eq(entries.ready),
            packed.ready.eq(entries.ready & ~of_token.valid),
        ]
        if engine.max_batch > 1:
            # Of a batch, the entries of a column follow one another.
            batch = sequencer.batch
            log2 = batch.log2[:bits_for(engine.max_batch.bit_length() - 1)]
            m.d.comb += [
                list_memory.batched.eq(batch.log2 != 0),
                list_memory.more.eq(sequencer.more),
            ]
            with m.If(~of_token.valid & ~batch.across):
                m.d.comb += entries.p.index.eq((packed.p.index << log2) | batch.slot)
        newest = Signal()                       # ... the columns of the newest list are asked for
        with m.If(of_token.valid):
            m.d.sync += newest.eq(1)
        with m.If(sequencer.o_packs.valid):
            m.d.sync += newest.eq(sequencer.o_packs.p.sparse)
        by_row = sequencer.o_products.p.by_row if engine.row_columns else C(0)
        m.submodules.asked = queue = fifo.SyncFIFO(width=2, depth=self.config.product_depth + 1)
        asked, rows = Signal(), Signal()        # of the product whose list is walked
        m.d.comb += [
            queue.w_data.eq(Cat(newest | by_row, by_row)),
            queue.w_en.eq(sequencer.o_products.valid & sequencer.o_products.ready),
            queue.r_en.eq(ternary.i_jobs.valid & ternary.i_jobs.ready),
        ]
        with m.If(queue.r_en):
            m.d.sync += Cat(asked, rows).eq(queue.r_data)

        # Rows on their way from the list to the drain: those that wait in the engine, are summed
        # up, or whose sums are queued.
        m.submodules.rows = places = fifo.SyncFIFOBuffered(
            width=engine.index_width,
            depth=RESULT_DEPTH + 4 * ENTRY_DEPTH if engine.row_columns else 1)
        room = Signal()                         # for the column, or row, that is asked for
        asks = Signal()
        m.d.comb += [
            room.eq((~asked | fetcher.i_columns.ready) & (~rows | places.w_rdy)),
            asks.eq(ternary.o_columns.valid & room),
            places.w_en.eq(asks & rows),
            places.w_data.eq(list_memory.o_entries.p.index),
            drain.i_rows.valid.eq(places.r_rdy),
            drain.i_rows.p.index.eq(places.r_data),
            places.r_en.eq(drain.i_rows.ready),
        ]
        if engine.row_columns:
            self._activations(m, sequencer, packed, ternary.i_activations)

        # The list's end goes both ways at once; the engine's readiness for it depends on registers.
        listed, columns = list_memory.o_entries, fetcher.i_columns
        end = Signal()
        m.d.comb += [
            end.eq(listed.p.end),
            ternary.i_entries.p.eq(listed.p),
            ternary.i_entries.valid.eq(listed.valid & (~(end & asked) | columns.ready)),
            listed.ready.eq(ternary.i_entries.ready & (~(end & asked) | columns.ready)),
            ternary.o_columns.ready.eq(room),
            columns.p.index.eq(listed.p.index),
            columns.p.end.eq(end),
            columns.valid.eq(asked & Mux(end, listed.valid & ternary.i_entries.ready,
                                         ternary.o_columns.valid & (~rows | places.w_rdy))),
        ]

    def _activations(self, m, sequencer, packed, activations):
        """Hand DENSE and gated lists to the walk by row, where they stay until the next one.

        What a gated list does not name is zero: all its words are cleared first, one a cycle, which
        the packer's first pass takes longer for.
        """
        lanes, row_columns = self.config.engine.lanes, self.config.engine.row_columns
        below = exact_log2(lanes)
        packs, words = sequencer.o_packs, exact_log2(lanes // self.config.vector_lanes)
        gated, codes = Signal(), Signal()       # the next list is gated; the newest one has codes
        cleared = Signal(range(row_columns // lanes), reset_less=True)
        left = Signal(len(packs.p.words) - words + 1)
        with m.If(sequencer.o_selections.valid):
            m.d.sync += gated.eq(1)
        with m.If(left != 0):
            m.d.sync += [cleared.eq(cleared + 1), left.eq(left - 1)]
        with m.If(packs.valid & packs.ready):
            # A batch has no activations by row.
            m.d.sync += [gated.eq(0), cleared.eq(0),
                         codes.eq(gated | (~packs.p.sparse & (sequencer.batch.log2 == 0)))]
            with m.If(gated):
                m.d.sync += left.eq((packs.p.words + ((1 << words) - 1)) >> words)
        m.d.comb += [
            activations.valid.eq(packed.valid & packed.ready & codes & ~packed.p.end),
            activations.p.index.eq(packed.p.index),
            activations.p.value.eq(packed.p.value),
        ]
        with m.If(left != 0):
            m.d.comb += [
                activations.valid.eq(1),
                activations.p.all.eq(1),
                activations.p.index.eq(cleared << below),
                activations.p.value.eq(0),
            ]

    @staticmethod
    def _results(m, ternary, drain, top_k, sequencer, attention):
        """Hand products to the unit that was told to take one: it stops at its product's end.

        A mixture of attention is drained as a product is; those of the engine wait.
        """
        results = ternary.o_results
        for unit in (drain, top_k):
            m.d.comb += [
                unit.i_results.p.eq(results.p),
                unit.i_results.valid.eq(results.valid),
            ]
        m.d.comb += results.ready.eq(drain.i_results.ready | top_k.i_results.ready)
        if attention is not None:
            with m.If(sequencer.mixing):
                m.d.comb += [
                    drain.i_results.p.eq(attention.o_results.p),
                    drain.i_results.valid.eq(attention.o_results.valid),
                    attention.o_results.ready.eq(drain.i_results.ready),
                    results.ready.eq(0),
                ]
