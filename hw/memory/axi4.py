# Ref: Arm Limited, "AMBA AXI Protocol Specification", IHI 0022, chapters A2 to A4

"""AXI4: the memory port's bursts as those of a manager of that bus."""

from amaranth import *
from amaranth.lib import fifo, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from hw.check import positive_int
from hw.memory.port import check_port_bytes, port_signature

__all__ = ["PAGE_BYTES", "WRITE_TRANSFERS", "Axi4Master", "axi4_signature"]

#: No burst may cross a multiple of it.
PAGE_BYTES = 4096

#: Transfers of the longest burst that is written: it waits here until its length is known.
WRITE_TRANSFERS = 16

#: Bursts written and not yet answered.
_UNANSWERED = 15

_INCREMENTING = 0b01
_BUFFERABLE = 0b0011        # normal memory, not cached


def axi4_signature(*, address_width: int, data_width: int) -> wiring.Signature:
    """Build the manager's side of the bus, with the bus's own names.

    There are no identifiers: all transactions have the same one, and come back in order.
    """
    request = {"addr": address_width, "len": 8, "size": 3, "burst": 2, "cache": 4, "prot": 3}
    members = {}
    for channel in ("aw", "ar"):
        members |= {f"{channel}{name}": Out(width) for name, width in request.items()}
    members |= {"wdata": Out(data_width), "wstrb": Out(data_width // 8), "wlast": Out(1),
                "bresp": In(2), "rdata": In(data_width), "rresp": In(2), "rlast": In(1)}
    for channel in ("aw", "w", "ar"):
        members |= {f"{channel}valid": Out(1), f"{channel}ready": In(1)}
    for channel in ("b", "r"):
        members |= {f"{channel}valid": In(1), f"{channel}ready": Out(1)}
    return wiring.Signature(members)


class Axi4Master(wiring.Component):
    """The memory port on one side, an AXI4 manager on the other; both have the same width.

    A read becomes bursts that end at multiples of 4 KiB, one a cycle, as many under way as the bus
    takes. A write becomes bursts of up to :data:`WRITE_TRANSFERS`; its data follow its address. A
    read waits until all writes before it are answered. Outputs to the bus depend on registers
    only. Cycles: :func:`sim.timing.units.axi4_read_cycles`.

    Parameters
    ----------
    address_width : int
        Bits of an address.
    port_bytes : int
        Bytes of a transfer, a power of two of at most 128.

    Members
    -------
    port : In of :func:`hw.memory.port.port_signature`
    bus : Out of :func:`axi4_signature`
    failed : Out(1)
        A read or a write was answered with an error; until reset.

    Raises
    ------
    ValueError
        If ``port_bytes`` is not such a power of two, or an address has less than 12 bits.
    """

    port: wiring.PureInterface
    bus: wiring.PureInterface
    failed: Signal

    def __init__(self, *, address_width: int, port_bytes: int):
        self.port_bytes = check_port_bytes(port_bytes)
        if port_bytes > 128:
            raise ValueError(f"Port byte count must be at most 128 on AXI4, not {port_bytes}")
        if positive_int("Address width", address_width) < exact_log2(PAGE_BYTES):
            raise ValueError(f"Address width must be at least {exact_log2(PAGE_BYTES)} on AXI4, "
                             f"not {address_width}")
        super().__init__({
            "port": In(port_signature(address_width=address_width, port_bytes=port_bytes)),
            "bus": Out(axi4_signature(address_width=address_width, data_width=8 * port_bytes)),
            "failed": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        bus = self.bus
        for prefix in ("aw", "ar"):
            m.d.comb += [
                getattr(bus, f"{prefix}size").eq(exact_log2(self.port_bytes)),
                getattr(bus, f"{prefix}burst").eq(_INCREMENTING),
                getattr(bus, f"{prefix}cache").eq(_BUFFERABLE),
            ]
        m.d.comb += bus.wstrb.eq(~0)
        writing = Signal()                      # something is not yet known to be written
        self._write(m, writing)
        self._read(m, writing)
        with m.If((bus.rvalid & bus.rready & bus.rresp[1]) | (bus.bvalid & bus.bresp[1])):
            m.d.sync += self.failed.eq(1)
        return m

    def _read(self, m, writing):
        bus, reads = self.bus, self.port.reads
        below = exact_log2(self.port_bytes)
        page = exact_log2(PAGE_BYTES // self.port_bytes)
        row = Signal(len(reads.p.address) - below)
        left = Signal.like(reads.p.transfers)
        room = Signal(page + 1)                 # transfers up to the end of the page
        rest = Signal()                         # some of them lie in the next page
        move = Signal()
        m.d.comb += [
            room.eq(2 ** page - row[:page]),
            rest.eq(left > room),
            move.eq((left != 0) & ~writing & (~bus.arvalid | bus.arready)),
            reads.ready.eq((left == 0) | (move & ~rest)),
        ]
        with m.If(bus.arready):
            m.d.sync += bus.arvalid.eq(0)
        with m.If(move):
            m.d.sync += [
                bus.arvalid.eq(1),
                bus.araddr.eq(Cat(C(0, below), row)),
                bus.arlen.eq(Mux(rest, room, left) - 1),
                row.eq(row + room),
                left.eq(Mux(rest, left - room, 0)),
            ]
        with m.If(reads.valid & reads.ready):
            m.d.sync += [row.eq(reads.p.address[below:]), left.eq(reads.p.transfers)]

        # Two places, so that rready depends on none of the bus's inputs.
        m.submodules.answers = answers = fifo.SyncFIFO(width=8 * self.port_bytes, depth=2)
        m.d.comb += [
            bus.rready.eq(answers.w_rdy),
            answers.w_en.eq(bus.rvalid),
            answers.w_data.eq(bus.rdata),
            self.port.data.valid.eq(answers.r_rdy),
            self.port.data.p.data.eq(answers.r_data),
            answers.r_en.eq(self.port.data.ready),
        ]

    def _write(self, m, writing):
        bus, writes = self.bus, self.port.writes
        below, page = exact_log2(self.port_bytes), exact_log2(PAGE_BYTES)
        # A burst that is under way can always be taken whole: those before it leave the queue.
        m.submodules.queue = queue = fifo.SyncFIFO(width=8 * self.port_bytes + 1,
                                                   depth=2 * WRITE_TRANSFERS)
        count = Signal(range(WRITE_TRANSFERS))  # transfers of the burst that has begun
        begin = Signal.like(writes.p.address)
        closes, taken, closed = Signal(), Signal(), Signal()
        unanswered = Signal(range(_UNANSWERED + 1))
        to_send = Signal(range(_UNANSWERED + 1))    # bursts whose data may leave
        sent = Signal()
        m.d.comb += [
            closes.eq(writes.p.last | (count == WRITE_TRANSFERS - 1)
                      | writes.p.address[below:page].all()),
            writes.ready.eq(queue.w_rdy & (~bus.awvalid | bus.awready)
                            & (unanswered != _UNANSWERED)),
            taken.eq(writes.valid & writes.ready),
            closed.eq(taken & closes),
            queue.w_en.eq(taken),
            queue.w_data.eq(Cat(writes.p.data, closes)),
            bus.wvalid.eq(queue.r_rdy & (to_send != 0)),
            Cat(bus.wdata, bus.wlast).eq(queue.r_data),
            queue.r_en.eq(bus.wvalid & bus.wready),
            sent.eq(queue.r_en & bus.wlast),
            bus.bready.eq(1),
            writing.eq((count != 0) | (unanswered != 0)),
        ]
        m.d.sync += [
            to_send.eq(to_send + closed - sent),
            unanswered.eq(unanswered + closed - bus.bvalid),
        ]
        with m.If(bus.awready):
            m.d.sync += bus.awvalid.eq(0)
        with m.If(taken):
            m.d.sync += count.eq(Mux(closes, 0, count + 1))
            with m.If(count == 0):
                m.d.sync += begin.eq(writes.p.address)
        with m.If(closed):
            m.d.sync += [
                bus.awvalid.eq(1),
                bus.awaddr.eq(Mux(count == 0, writes.p.address, begin)),
                bus.awlen.eq(count),
            ]
