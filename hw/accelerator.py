"""The accelerator: token in, largest logits out. Instances and connections of all units."""

from typing import Any

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.activations.quantizer import Quantizer
from hw.activations.router import ColumnRouter, EntryCollector
from hw.activations.sparse_vector import SparseVectorMemory
from hw.activations.sparsity import SparsityPolicy
from hw.attention.unit import AttentionUnit
from hw.common.stream import accepted, connect_stream
from hw.config import AcceleratorConfig
from hw.control.dispatch import Dispatch, fault_layout, token_layout
from hw.control.prefetch import Prefetch
from hw.control.program import ProgramMemory, program_layout
from hw.engine.slice import EngineSlice
from hw.memory.load_store import LoadStore
from hw.memory.port import port_signature
from hw.memory.read_engine import ReadEngine
from hw.output.top_k import TopK, top_k_layout
from hw.output.writeback import WriteBack, scalar_layout
from hw.vector.memory import VectorMemory
from hw.vector.unit import VectorUnit

__all__ = ["Accelerator", "unit_names"]

def unit_names(config: AcceleratorConfig) -> tuple[str, ...]:
    """Return the names of the units that wait for commands, and do nothing meanwhile."""
    return ("quantizer", *(("sparsity_policy",) if config.masks else ()), "vector_unit",
            "load_store", "write_back", "top_k", "dispatch", "execution_reader", "prefetch_reader",
            "rows")


class Accelerator(wiring.Component):
    """All units, without pins: docs/machine.md is its contract.

    The program is written after a reset, before the first token. A token costs what
    :func:`sim.timing.program.token_cycles` derives.

    Parameters
    ----------
    config : AcceleratorConfig
    unit_clocks : bool
        Units have clock domains of their own, by :func:`unit_names`: for a simulator that leaves
         out what would change nothing. Otherwise all is in the one domain.

    Members
    -------
    i_program : In(stream) of :func:`hw.control.program.program_layout`
    i_tokens : In(stream) of :func:`hw.control.dispatch.token_layout`
    o_top_k : Out(stream) of :func:`hw.output.top_k.top_k_layout`
    o_scale : Out(stream) of :func:`hw.output.writeback.scalar_layout`
    o_faults : Out(stream) of :func:`hw.control.dispatch.fault_layout`
    memory : Out of :func:`hw.memory.port.port_signature`
    executing : Out
        Index of the instruction that is executed, for whoever counts cycles.
    active : Out
        A bit for each of :func:`unit_names`: whether the next clock edge changes anything in it but
        what the edge that accepts its next command overwrites. Without that edge, nothing else
        changes in any cycle.

    Raises
    ------
    ValueError
        As the units do: lanes and port bytes must be powers of two, and a transfer of the port not
        larger than a word of the vector memory.
    """

    i_program: stream.Interface
    i_tokens: stream.Interface
    o_top_k: stream.Interface
    o_scale: stream.Interface
    o_faults: stream.Interface
    memory: wiring.PureInterface
    executing: Signal
    active: Signal

    def __init__(self, config: AcceleratorConfig, *, unit_clocks: bool = False):
        self.config = config
        self._unit_clocks = unit_clocks
        *_, execution, prefetch, rows = unit_names(config) if unit_clocks else 3 * ("sync",)
        self._dispatch = Dispatch(config, reader_domain=execution)
        self._prefetch = Prefetch(config, reader_domain=prefetch)
        self._read_engine, self._load_store = ReadEngine(config), LoadStore(config)
        self._engine_slice = EngineSlice(config.engine, row_domain=rows)
        super().__init__({
            "i_program": In(stream.Signature(program_layout(config))),
            "i_tokens": In(stream.Signature(token_layout(config))),
            "o_top_k": Out(stream.Signature(top_k_layout(config))),
            "o_scale": Out(stream.Signature(scalar_layout())),
            "o_faults": Out(stream.Signature(fault_layout(config))),
            "memory": Out(port_signature(address_width=config.address_width,
                                         port_bytes=config.port_bytes)),
            "executing": Out(self._dispatch.executing.shape()),
            "active": Out(len(unit_names(config))),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        dispatch, load_store = self._dispatch, self._load_store
        quantizer, policies = Quantizer(config), []
        if config.masks:
            policies.append(SparsityPolicy(config))
        vector_unit, write_back, top_k = VectorUnit(config), WriteBack(config), TopK(config)
        m.submodules.prefetch = prefetch = self._prefetch
        m.submodules.read_engine = read_engine = self._read_engine
        m.submodules.engine_slice = engine_slice = self._engine_slice
        m.submodules.entry_collector = collector = EntryCollector(config)
        m.submodules.sparse_vector = sparse_vector = SparseVectorMemory(config)
        m.submodules.column_router = router = ColumnRouter(config)
        m.submodules.vector_memory = vector_memory = VectorMemory(
            config, readers=(3 + bool(config.context), 1 + bool(config.masks)), writers=3)
        units: list[Any] = [quantizer, *policies, vector_unit, load_store, write_back, top_k,
                            dispatch]
        for name, unit in zip(unit_names(config), units, strict=False):
            m.submodules[name] = DomainRenamer(name)(unit) if self._unit_clocks else unit
        m.d.comb += self.active.eq(Cat(
            (unit.active for unit in (*units, dispatch.reader, prefetch.reader)),
            engine_slice.rows_active))

        memory = wiring.flipped(self.memory)
        for producer, consumer in (
                (wiring.flipped(self.i_tokens), dispatch.i_tokens),
                (dispatch.o_vectors, vector_unit.i_commands),
                (vector_unit.o_results, dispatch.i_numbers),
                (dispatch.o_quantizes, quantizer.i_commands),
                (quantizer.o_results, dispatch.i_quantized),
                (dispatch.o_write_backs, write_back.i_commands),
                (dispatch.o_choices, top_k.i_commands),
                (dispatch.o_moves, load_store.i_moves),
                (dispatch.o_products, sparse_vector.i_products),
                (dispatch.o_entries, collector.i_token),
                (collector.o_entries, sparse_vector.i_entries),
                (sparse_vector.o_jobs, engine_slice.i_jobs),
                (sparse_vector.o_entries, router.i_entries),
                (router.o_entries, engine_slice.i_entries),
                (engine_slice.o_columns, router.i_columns),
                (router.o_columns, read_engine.i_columns),
                (router.o_rows, write_back.i_rows),
                (prefetch.o_fetches, read_engine.i_fetches),
                (read_engine.o_weights, engine_slice.i_port),
                (read_engine.o_vector, load_store.i_vector),
                (read_engine.o_reads, memory.reads),
                (memory.data, read_engine.i_data),
                (load_store.o_writes, memory.writes),
                (top_k.o_top_k, wiring.flipped(self.o_top_k)),
                (dispatch.o_scale, wiring.flipped(self.o_scale)),
                (dispatch.o_faults, wiring.flipped(self.o_faults))):
            connect_stream(m, producer, consumer)
        if config.engine.row_columns:
            connect_stream(m, collector.o_activations, engine_slice.i_activations)
        if config.engine.max_batch > 1:
            m.d.comb += [
                collector.batch.eq(dispatch.batch),
                sparse_vector.batched.eq(dispatch.batch.log2 != 0),
                sparse_vector.batch_incomplete.eq(dispatch.batch_incomplete),
            ]
        readers = [vector_unit.read_0, quantizer.read, load_store.read]
        attention = None
        if config.context:
            m.submodules.attention = attention = AttentionUnit(config)
            readers.append(attention.read)
            self._connect_attention(m, dispatch, prefetch, read_engine, load_store, attention)
        for reads, users in ((vector_memory.reads_0, readers),
                             (vector_memory.reads_1, (
                                 vector_unit.read_1, *(policy.read for policy in policies)))):
            for port, user in zip(reads, users, strict=True):
                wiring.connect(m, user, port)
        for port, user in zip(vector_memory.writes,
                              (vector_unit.write, write_back.write, load_store.write), strict=True):
            wiring.connect(m, user, port)

        entries = quantizer.o_entries
        for policy in policies:
            connect_stream(m, dispatch.o_selections, policy.i_commands)
            # Norms may still be on their way when their list is packed.
            norms_loaded = ~dispatch.loading
            m.d.comb += [
                policy.i_entries.p.eq(entries.p),
                policy.i_entries.valid.eq(entries.valid & norms_loaded),
                entries.ready.eq(policy.i_entries.ready & norms_loaded),
            ]
            entries = policy.o_entries
        connect_stream(m, entries, collector.i_entries)
        m.submodules.program_memory = program_memory = ProgramMemory(config)
        wiring.connect(m, dispatch.program, program_memory.execution)
        wiring.connect(m, prefetch.program, program_memory.prefetch)
        m.d.comb += [
            collector.quantize_valid.eq(dispatch.o_quantizes.valid),
            collector.quantize_begins.eq(accepted(dispatch.o_quantizes)),
            collector.sparse.eq(dispatch.o_quantizes.p.sparse),
            collector.words.eq(dispatch.o_quantizes.p.words),
            collector.masked.eq(dispatch.o_selections.valid),
            router.product_queued.eq(accepted(dispatch.o_products)),
            router.on_demand.eq(collector.on_demand),
            router.by_row.eq(dispatch.o_products.p.by_row if config.engine.row_columns else 0),
            router.product_begins.eq(accepted(engine_slice.i_jobs)),
            dispatch.list_complete.eq(accepted(entries) & entries.p.end),
            dispatch.written_back.eq(write_back.done),
            dispatch.chosen.eq(accepted(top_k.o_top_k) & top_k.o_top_k.p.last),
            dispatch.moved.eq(load_store.loaded | load_store.stored),
            dispatch.prefetch_behind.eq(prefetch.behind),
            dispatch.error.eq(memory.error),
            self.i_program.ready.eq(dispatch.idle),
            program_memory.write.eq(accepted(self.i_program)),
            program_memory.instruction.eq(self.i_program.p),
            prefetch.pass_begins.eq(accepted(self.i_tokens)),
            prefetch.start.eq(self.i_tokens.p.start),
            prefetch.stored.eq(load_store.stored),
            self.executing.eq(dispatch.executing),
        ]
        self._connect_results(m, engine_slice, write_back, top_k, dispatch, attention)
        return m

    @staticmethod
    def _connect_attention(m, dispatch, prefetch, read_engine, load_store, attention):
        """Join attention with the caches that are read and written for it."""
        for producer, consumer in ((dispatch.o_attends, attention.i_commands),
                                   (attention.o_answers, dispatch.i_attended),
                                   (read_engine.o_cache, attention.i_vectors)):
            connect_stream(m, producer, consumer)
        m.d.comb += [
            prefetch.position.eq(dispatch.position),
            load_store.first.eq(dispatch.position == 0),
            load_store.bound_cache.eq(dispatch.cache),
            dispatch.bound.eq(load_store.bound),
            dispatch.not_finite.eq(load_store.not_finite),
        ]

    @staticmethod
    def _connect_results(m, engine_slice, write_back, top_k, dispatch, attention):
        """Hand products to the unit that was told to take one: it stops at its product's end.

        Results of a PV are written back as those of a product are; the engine's wait meanwhile.
        """
        results = engine_slice.o_results
        for unit in (write_back, top_k):
            m.d.comb += [
                unit.i_results.p.eq(results.p),
                unit.i_results.valid.eq(results.valid),
            ]
        m.d.comb += results.ready.eq(write_back.i_results.ready | top_k.i_results.ready)
        if attention is not None:
            with m.If(dispatch.pv_results):
                m.d.comb += [
                    write_back.i_results.p.eq(attention.o_results.p),
                    write_back.i_results.valid.eq(attention.o_results.valid),
                    attention.o_results.ready.eq(write_back.i_results.ready),
                    results.ready.eq(0),
                ]
