"""The list: what the packer made of a vector, and the products that it is multiplied in."""

from amaranth import *
from amaranth.lib import data, fifo, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, ceil_log2

from hw.config import CoreConfig
from hw.ternary.walker import entry_layout, job_layout

__all__ = ["ListMemory"]


class ListMemory(wiring.Component):
    """Two buffers of entries, and a queue of products, each with the newest list of its time.

    While the engine takes the entries of one buffer, the next list is written into the other one.
    An entry leaves each cycle; :func:`sim.golden.cycles.list_cycles` has the exact formula.

    Parameters
    ----------
    config : CoreConfig

    Members
    -------
    i_entries : In(stream) of :func:`hw.ternary.walker.entry_layout`
        Lists of up to ``list_depth`` entries; an entry with ``end`` behind them makes the list the
        newest one. Waits while a product needs the buffer that is written.
    i_products : In(stream) of :func:`hw.ternary.walker.job_layout`
        Products of the newest list. There must be one, and no list half accepted.
    o_jobs, o_entries : Out(stream)
        For ``i_jobs`` and ``i_entries`` of the engine: product by product, each with its list.
    """

    i_entries: stream.Interface
    i_products: stream.Interface
    o_jobs: stream.Interface
    o_entries: stream.Interface

    def __init__(self, config: CoreConfig):
        self.config = config
        entry, job = entry_layout(config.engine), job_layout(config.engine)
        super().__init__({
            "i_entries": In(stream.Signature(entry)),
            "i_products": In(stream.Signature(job)),
            "o_jobs": Out(stream.Signature(job)),
            "o_entries": Out(stream.Signature(entry)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        address = ceil_log2(config.list_depth)
        stored = data.StructLayout({"index": config.engine.index_width,
                                    "value": signed(config.engine.activation_width)})
        m.submodules.entries = entries = memory.Memory(shape=stored, depth=2 << address, init=[])
        write_port, read_port = entries.write_port(), entries.read_port()

        # Entries and products that wait for them, of both buffers.
        lengths = Array(Signal(range(config.list_depth + 1), name=f"length_{k}") for k in range(2))
        uses = [Signal(range(config.product_depth + 2), name=f"uses_{k}") for k in range(2)]
        newest = Signal()
        written = Signal(range(config.list_depth + 1))
        accepted = Signal()
        given = self.i_entries.p
        m.d.comb += [
            self.i_entries.ready.eq(Mux(newest, uses[0], uses[1]) == 0),
            accepted.eq(self.i_entries.valid & self.i_entries.ready),
            write_port.en.eq(accepted & ~given.end),
            write_port.addr.eq(Cat(written[:address], ~newest)),
            write_port.data.index.eq(given.index),
            write_port.data.value.eq(given.value),
        ]
        with m.If(accepted):
            m.d.sync += written.eq(written + 1)
            with m.If(given.end):
                m.d.sync += [lengths[~newest].eq(written), written.eq(0), newest.eq(~newest)]

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

        # Two registers behind the address: the memory's, and the stream's.
        position = Signal(bits_for(config.list_depth))
        looked_up, end = Signal(), Signal()
        look, walking, at_end = Signal(), Signal(), Signal()
        leaves = Signal()
        m.d.comb += [
            leaves.eq(~self.o_entries.valid | self.o_entries.ready),
            look.eq(~looked_up | leaves),
            at_end.eq(position == lengths[buffer]),
            walked.eq(walking & look & at_end),
            read_port.en.eq(look),
            read_port.addr.eq(Cat(position[:address], buffer)),
        ]
        with m.If(look):
            m.d.sync += [
                looked_up.eq(walking),
                end.eq(at_end),
                position.eq(position + walking),
            ]
        with m.If(leaves):
            m.d.sync += [
                self.o_entries.valid.eq(looked_up),
                self.o_entries.p.index.eq(read_port.data.index),
                self.o_entries.p.value.eq(Mux(end, 0, read_port.data.value)),
                self.o_entries.p.end.eq(end),
            ]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.o_jobs.valid.eq(queue.r_rdy)
                m.d.sync += [buffer.eq(product.buffer), position.eq(0)]
                with m.If(self.o_jobs.valid & self.o_jobs.ready):
                    m.next = "WALK"
            with m.State("WALK"):
                m.d.comb += walking.eq(1)
                with m.If(walked):
                    m.next = "IDLE"
        return m
