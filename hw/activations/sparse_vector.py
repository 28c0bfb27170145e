"""The list: what the quantizer made of a vector, and the products that it is multiplied in."""

from amaranth import *
from amaranth.hdl import Assert, Assume
from amaranth.lib import data, fifo, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from hw.config import TILE, AcceleratorConfig
from hw.engine.loop_nest import entry_layout, job_layout

__all__ = ["SparseVectorMemory"]


class SparseVectorMemory(wiring.Component):
    """Two buffers of tiles, and a queue of products, each with the newest list of its time.

    A list is in TwELL form: entry k of tile t lies in slot ``t * tile + k``, as the index within
    its tile and the value. A directory has the tiles that are not empty, each with its number and
    its last k. There is a slot for each element, so that no tile overflows.

    While the engine takes the entries of one buffer, the next list is written into the other one.
    An entry leaves each cycle, whatever tiles are empty; :func:`sim.timing.units.list_cycles` has
    the exact formula.

    Parameters
    ----------
    config : AcceleratorConfig
    tile : int
        Elements of a tile, a power of two; only proofs have smaller ones.

    Members
    -------
    i_entries : In(stream) of :func:`hw.engine.loop_nest.entry_layout`
        Entries of a list have ascending indices below ``list_depth``; one that is alone may have
        any. An entry with ``end`` behind them makes the list the newest one. Waits while a product
        needs the buffer that is written.
    i_products : In(stream) of :func:`hw.engine.loop_nest.job_layout`
        Products of the newest list. There must be one, and no list half accepted.
    o_jobs, o_entries : Out(stream)
        For ``i_jobs`` and ``i_entries`` of the engine: product by product, each with its list.
    batched, batch_incomplete : In(1)
        Beside ``i_entries``: the list is one of a batch, and has an entry for each index. These
        come in as many passes as it has vectors, if not at once; ``batch_incomplete`` follow this
        one. Only if the engine takes batches.
    """

    i_entries: stream.Interface
    i_products: stream.Interface
    o_jobs: stream.Interface
    o_entries: stream.Interface
    batched: Signal
    batch_incomplete: Signal

    def __init__(self, config: AcceleratorConfig, *, tile: int = TILE):
        self.config = config
        self.tile = tile
        entry, job = entry_layout(config.engine), job_layout(config.engine)
        super().__init__({
            "i_entries": In(stream.Signature(entry)),
            "i_products": In(stream.Signature(job)),
            "o_jobs": Out(stream.Signature(job)),
            "o_entries": Out(stream.Signature(entry)),
        } | ({"batched": In(1), "batch_incomplete": In(1)} if config.engine.max_batch > 1 else {}))

    def elaborate(self, platform):
        m = Module()
        config = self.config
        within = exact_log2(self.tile)                  # bits of an index within its tile
        address = ceil_log2(config.list_depth)
        tiles = -(-config.list_depth // self.tile)
        stored = data.StructLayout({"index": within,
                                    "value": signed(config.engine.activation_width)})
        # Slots of a tile are numbered by the low bits of its number: one that lies beyond
        # list_depth is alone.
        m.submodules.entries = entries = memory.Memory(shape=stored, depth=2 << address, init=[])
        write_port, read_port = entries.write_port(), entries.read_port()
        record_bits = ceil_log2(tiles)
        record = data.StructLayout({"tile": len(self.i_entries.p.index[within:]), "last": within})
        m.submodules.directory = directory = memory.Memory(shape=record, depth=2 << record_bits,
                                                           init=[])
        record_write, record_read = directory.write_port(), directory.read_port(domain="comb")

        def slot(tile, k):
            return Cat(k, tile)[:address] if address > within else k[:address]

        # Tiles of both buffers that are not empty, and products that wait for them.
        counts = Array(Signal(range(tiles + 1), name=f"count_{k}") for k in range(2))
        uses = [Signal(range(config.product_depth + 2), name=f"uses_{k}") for k in range(2)]
        newest = Signal()
        newest_tile = Signal(record)                    # of the list that is written
        begun = Signal(range(tiles + 1))                # tiles of it
        record_index = Signal.like(begun)
        goes_on = Signal()
        accepted = Signal()
        given = self.i_entries.p
        batched, batch_incomplete = ((self.batched, self.batch_incomplete)
                                     if config.engine.max_batch > 1
                                     else (C(0), C(0)))
        m.d.comb += [
            self.i_entries.ready.eq(Mux(newest, uses[0], uses[1]) == 0),
            accepted.eq(self.i_entries.valid & self.i_entries.ready),
            goes_on.eq((begun != 0) & (given.index[within:] == newest_tile.tile)),
            record_index.eq(begun - goes_on),
            record_write.data.tile.eq(given.index[within:]),
            # Of a batch, the last vector's entries are the last ones of their tiles.
            record_write.data.last.eq(Mux(batched, given.index[:within],
                                          Mux(goes_on, newest_tile.last + 1, 0))),
            record_write.addr.eq(Cat(record_index[:record_bits], ~newest)),
            record_write.en.eq(accepted & ~given.end),
            write_port.en.eq(record_write.en),
            write_port.addr.eq(Cat(slot(given.index[within:], record_write.data.last), ~newest)),
            write_port.data.index.eq(given.index[:within]),
            write_port.data.value.eq(given.value),
        ]
        with m.If(accepted):
            m.d.sync += [newest_tile.eq(record_write.data), begun.eq(record_index + 1)]
            with m.If(given.end):
                m.d.sync += begun.eq(0)
                with m.If(~batch_incomplete):
                    m.d.sync += [counts[~newest].eq(begun), newest.eq(~newest)]

        if platform == "formal":
            self._contract(m, begun, newest_tile, record_index, write_port, record_write)

        queued = data.StructLayout({"job": self.i_products.p.shape(), "buffer": 1})
        m.submodules.queue = queue = fifo.SyncFIFO(width=queued.size, depth=config.product_depth)
        product = queued(queue.r_data)
        walked = Signal()                       # the last entry was looked up
        m.d.comb += [
            queue.w_data.eq(Cat(self.i_products.p, newest)),
            queue.w_en.eq(self.i_products.valid),
            self.i_products.ready.eq(queue.w_rdy),
            self.o_jobs.p.eq(product.job),
            queue.r_en.eq(self.o_jobs.valid & self.o_jobs.ready),
        ]
        buffer = Signal()                       # of the product whose entries are looked up
        for k in range(2):
            begins = queue.w_en & queue.w_rdy & (newest == k)
            m.d.sync += uses[k].eq(uses[k] + begins - (walked & (buffer == k)))

        # Two registers behind the address: the memory's, and the stream's. The directory is looked
        # up a tile ahead.
        tile = Signal(record)                   # that is walked
        position = Signal(within)               # in it
        remaining = Signal(range(tiles + 1))         # tiles, with that one
        following = Signal(record_bits)         # record_index of the next one
        looked_up, end = Signal(), Signal()
        looked_up_tile = Signal.like(tile.tile)
        look, walking, at_end = Signal(), Signal(), Signal()
        leaves = Signal()
        m.d.comb += [
            leaves.eq(~self.o_entries.valid | self.o_entries.ready),
            look.eq(~looked_up | leaves),
            at_end.eq(remaining == 0),
            walked.eq(walking & look & at_end),
            record_read.addr.eq(Cat(following, Mux(walking, buffer, product.buffer))),
            read_port.en.eq(look),
            read_port.addr.eq(Cat(slot(tile.tile, position), buffer)),
        ]
        with m.If(look):
            m.d.sync += [looked_up.eq(walking), end.eq(at_end), looked_up_tile.eq(tile.tile)]
        with m.If(leaves):
            m.d.sync += [
                self.o_entries.valid.eq(looked_up),
                self.o_entries.p.index.eq(Cat(read_port.data.index, looked_up_tile)),
                self.o_entries.p.value.eq(Mux(end, 0, read_port.data.value)),
                self.o_entries.p.end.eq(end),
            ]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.o_jobs.valid.eq(queue.r_rdy)
                m.d.sync += [
                    buffer.eq(product.buffer),
                    remaining.eq(counts[product.buffer]),
                    tile.eq(record_read.data),
                    position.eq(0),
                ]
                with m.If(self.o_jobs.valid & self.o_jobs.ready):
                    m.d.sync += following.eq(1)
                    m.next = "WALK"
            with m.State("WALK"):
                m.d.comb += walking.eq(1)
                with m.If(look):
                    m.d.sync += position.eq(position + 1)
                    with m.If(position == tile.last):
                        m.d.sync += [
                            position.eq(0),
                            remaining.eq(remaining - 1),
                            tile.eq(record_read.data),
                            following.eq(following + 1),
                        ]
                with m.If(walked):
                    m.d.sync += following.eq(0)
                    m.next = "IDLE"
        return m

    def _contract(self, m, begun, newest_tile, record_index, write_port, record_write):
        """Say for proofs what lists may come, and what is never written.

        Lists of a batch are left out: their entries lie where their indices say.
        """
        if self.config.engine.max_batch > 1:
            m.d.comb += Assume(~self.batched & ~self.batch_incomplete, "lists are of one vector")
        depth = self.config.list_depth
        index = self.i_entries.p.index
        before = Signal.like(index)
        with m.If(write_port.en):
            m.d.sync += before.eq(index)
        first = begun == 0
        within = exact_log2(self.tile)
        m.d.comb += Assume(~write_port.en | first | ((index > before) & (index < depth)
                                                     & (before < depth)), "indices ascend")
        # With these, the others hold for ever.
        m.d.comb += [
            Assert(first | (newest_tile.tile == before[within:]),
                   "the newest tile is that of the newest entry"),
            Assert(first | (newest_tile.last <= before[:within]),
                   "an entry lies no further in its tile than its index says"),
            Assert(first | (begun <= newest_tile.tile + 1), "a tile begins once"),
        ]
        k = record_write.data.last
        m.d.comb += [
            Assert(~write_port.en | (record_index < -(-depth // self.tile)), "there is a record"),
            Assert(~write_port.en | (k <= index[:within]), "the tile does not overflow"),
            Assert(~write_port.en | (index >= depth) | (
                write_port.addr[:-1] == (index & ~(self.tile - 1)) + k),
                "the slot is in the entry's own tile"),
            Assert(~write_port.en | first | (index[within:] != before[within:]) | (
                k == newest_tile.last + 1), "the slot is the next one"),
        ]
