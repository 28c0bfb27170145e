"""The router: where entries of sparse activation vectors come from, and where they go.

Two units with the state that lies between others: :class:`EntryCollector` before the sparse vector
memory, :class:`ColumnRouter` behind it.
"""

from amaranth import *
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from hw.config import ENTRY_DEPTH, RESULT_DEPTH, AcceleratorConfig
from hw.engine.loop_nest import column_layout, entry_layout
from hw.engine.row_sums import activation_layout
from hw.isa import BATCH_FIELDS
from hw.memory.read_engine import list_column_layout
from hw.vector.memory import address_width

__all__ = ["ColumnRouter", "EntryCollector"]


class EntryCollector(wiring.Component):
    """Joins the entries of TOKEN and of QUANTIZE, and keeps activations for the walk by row.

    An entry of TOKEN goes first; there is never one of a QUANTIZE at the same time. Entries pass in
    the cycle in which they come.

    DENSE and masked lists are activations of the walk by row too, and stay there until the next
    one. What a masked list does not name is zero: from the begin of its QUANTIZE on, the words of
    ``lanes`` activations are cleared, one a cycle. The quantizer's first pass takes longer.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    i_token, i_entries : In(stream) of :func:`hw.engine.loop_nest.entry_layout`
        Entries of a TOKEN, and of a QUANTIZE behind the sparsity policy.
    o_entries : Out(stream) of :func:`hw.engine.loop_nest.entry_layout`
        For the sparse vector memory. Of a batch of ``2**batch.log2`` vectors that come one after
        the other, entry ``index`` of vector ``slot`` becomes ``index * 2**log2 + slot``.
    quantize_valid, quantize_begins : In(1)
        A QUANTIZE is offered to the quantizer, and accepted by it in this cycle.
    sparse, words : In
        Of that QUANTIZE: zeros are left out; words of the vector memory.
    masked : In(1)
        For a cycle at least, before it begins: the sparsity policy will mask its list.
    batch : In of :data:`hw.isa.BATCH_FIELDS`
        Of the list that is made; ``log2`` is 0 if it is of one vector. Only if the engine takes
        batches.
    on_demand : Out(1)
        Columns of the newest list are read as its entries name them, since prefetch could not know
        them; else matrices are read whole. The list of a TOKEN is one.
    o_activations : Out(stream) of :func:`hw.engine.row_sums.activation_layout`
        What the walk by row keeps, which accepts it at once; only if the engine walks by row.
    """

    i_token: stream.Interface
    i_entries: stream.Interface
    o_entries: stream.Interface
    quantize_valid: Signal
    quantize_begins: Signal
    sparse: Signal
    words: Signal
    masked: Signal
    on_demand: Signal

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        engine = config.engine
        entry = stream.Signature(entry_layout(engine))
        super().__init__({
            "i_token": In(entry), "i_entries": In(entry), "o_entries": Out(entry),
            "quantize_valid": In(1), "quantize_begins": In(1), "sparse": In(1),
            "words": In(address_width(config) + 1), "masked": In(1), "on_demand": Out(1),
        } | ({"batch": In(data.StructLayout(BATCH_FIELDS))} if engine.max_batch > 1 else {})
          | ({"o_activations": Out(stream.Signature(activation_layout(engine)))}
             if engine.row_columns else {}))

    def elaborate(self, platform):
        m = Module()
        engine = self.config.engine
        token, quantized, out = self.i_token, self.i_entries, self.o_entries
        m.d.comb += [
            out.valid.eq(token.valid | quantized.valid),
            out.p.eq(Mux(token.valid, token.p, quantized.p)),
            token.ready.eq(out.ready),
            quantized.ready.eq(out.ready & ~token.valid),
        ]
        if engine.max_batch > 1:
            log2 = self.batch.log2[:bits_for(engine.max_batch.bit_length() - 1)]
            with m.If(~token.valid & ~self.batch.across):
                m.d.comb += out.p.index.eq((quantized.p.index << log2) | self.batch.slot)
        with m.If(token.valid):
            m.d.sync += self.on_demand.eq(1)
        with m.If(self.quantize_valid):
            m.d.sync += self.on_demand.eq(self.sparse)
        if engine.row_columns:
            self._keep_activations(m)
        return m

    def _keep_activations(self, m):
        lanes, row_columns = self.config.engine.lanes, self.config.engine.row_columns
        below = exact_log2(lanes)
        quantized, activations = self.i_entries, self.o_activations
        log2_words = exact_log2(lanes // self.config.vector_lanes)      # of a word of activations
        next_masked = Signal()
        keeps = Signal()                        # entries of the newest list are activations by row
        cleared = Signal(range(row_columns // lanes), reset_less=True)
        remaining = Signal(len(self.words) - log2_words + 1)            # words to be cleared
        single: Value = self.batch.log2 == 0 if self.config.engine.max_batch > 1 else C(1)
        with m.If(self.masked):
            m.d.sync += next_masked.eq(1)
        with m.If(remaining != 0):
            m.d.sync += [cleared.eq(cleared + 1), remaining.eq(remaining - 1)]
        with m.If(self.quantize_begins):
            m.d.sync += [next_masked.eq(0), cleared.eq(0),
                         keeps.eq(next_masked | (~self.sparse & single))]
            with m.If(next_masked):
                m.d.sync += remaining.eq((self.words + ((1 << log2_words) - 1)) >> log2_words)
        m.d.comb += [
            activations.valid.eq(quantized.valid & quantized.ready & keeps & ~quantized.p.end),
            activations.p.index.eq(quantized.p.index),
            activations.p.value.eq(quantized.p.value),
        ]
        with m.If(remaining != 0):
            m.d.comb += [
                activations.valid.eq(1),
                activations.p.all.eq(1),
                activations.p.index.eq(cleared << below),
                activations.p.value.eq(0),
            ]


class ColumnRouter(wiring.Component):
    """Hands the entries of a product's list to the engine, and its columns to the read engine.

    Each queued product remembers whether its columns, or rows, are read on demand: the read engine
    is then told of a column when the engine accepts the first entry of it, and of the list's end
    together with the engine. Rows are also kept in order for write-back, which writes the sum of
    each to where it belongs. Entries pass in the cycle in which they come.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    product_queued : In(1)
        A product of the newest list is queued, at most ``product_depth`` that have not begun.
    on_demand, by_row : In(1)
        Of that product.
    product_begins : In(1)
        The oldest queued product begins; its entries follow.
    i_entries, o_entries : In(stream), Out(stream) of :func:`hw.engine.loop_nest.entry_layout`
        From the sparse vector memory to the engine, whose readiness for a list's end depends on
        registers alone.
    i_columns : In(stream) of :func:`hw.engine.loop_nest.column_layout`
        ``o_columns`` of the engine: it accepts the first entry of a column.
    o_columns : Out(stream) of :func:`hw.memory.read_engine.list_column_layout`
    o_rows : Out(stream) of :func:`hw.engine.loop_nest.column_layout`
        Rows of products by row, in the order of their sums.
    """

    product_queued: Signal
    on_demand: Signal
    by_row: Signal
    product_begins: Signal
    i_entries: stream.Interface
    o_entries: stream.Interface
    i_columns: stream.Interface
    o_columns: stream.Interface
    o_rows: stream.Interface

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        entry = stream.Signature(entry_layout(config.engine))
        column = stream.Signature(column_layout(config.engine))
        super().__init__({
            "product_queued": In(1), "on_demand": In(1), "by_row": In(1), "product_begins": In(1),
            "i_entries": In(entry), "o_entries": Out(entry), "i_columns": In(column),
            "o_columns": Out(stream.Signature(list_column_layout(config))), "o_rows": Out(column),
        })

    def elaborate(self, platform):
        m = Module()
        engine = self.config.engine
        m.submodules.products = products = fifo.SyncFIFO(
            width=2, depth=self.config.product_depth + 1)
        on_demand, by_row = Signal(), Signal()  # of the product whose list is walked
        m.d.comb += [
            products.w_data.eq(Cat(self.on_demand | self.by_row, self.by_row)),
            products.w_en.eq(self.product_queued),
            products.r_en.eq(self.product_begins),
        ]
        with m.If(products.r_en):
            m.d.sync += Cat(on_demand, by_row).eq(products.r_data)

        # Rows between sparse vector memory and write-back: those that wait in the engine, are
        # summed up, or whose sums are queued.
        m.submodules.rows = rows = fifo.SyncFIFOBuffered(
            width=engine.index_width,
            depth=RESULT_DEPTH + 4 * ENTRY_DEPTH if engine.row_columns else 1)
        entry, columns = self.i_entries, self.o_columns
        room = Signal()                         # for the column, or row, of this entry
        end_accepted = Signal()                 # the list's end, if this is it, by the read engine
        end = entry.p.end
        m.d.comb += [
            room.eq((~on_demand | columns.ready) & (~by_row | rows.w_rdy)),
            self.i_columns.ready.eq(room),
            rows.w_en.eq(self.i_columns.valid & room & by_row),
            rows.w_data.eq(entry.p.index),
            self.o_rows.valid.eq(rows.r_rdy),
            self.o_rows.p.index.eq(rows.r_data),
            rows.r_en.eq(self.o_rows.ready),
            end_accepted.eq(~(end & on_demand) | columns.ready),
            self.o_entries.p.eq(entry.p),
            self.o_entries.valid.eq(entry.valid & end_accepted),
            entry.ready.eq(self.o_entries.ready & end_accepted),
            columns.p.index.eq(entry.p.index),
            columns.p.end.eq(end),
            columns.valid.eq(on_demand & Mux(end, entry.valid & self.o_entries.ready,
                                             self.i_columns.valid & (~by_row | rows.w_rdy))),
        ]
        return m
