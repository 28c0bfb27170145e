# Ref: Arm Limited, "AMBA AXI Protocol Specification", IHI 0022, chapters A2 to A4

"""AXI4: the memory port's bursts as those of a manager of that bus."""

from amaranth import *
from amaranth.lib import fifo, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from hw.check import positive_int
from hw.memory.port import check_port_bytes, port_signature

__all__ = ["AXI4_IDENTIFIERS", "PAGE_BYTES", "WRITE_TRANSFERS", "Axi4Master", "axi4_signature"]

#: No burst may cross a multiple of it.
PAGE_BYTES = 4096

#: Transfers of the longest burst that is written: it waits here until its length is known.
WRITE_TRANSFERS = 16

#: Bursts of either direction that are asked for and not answered; as many reads as the read engine
#: of a accelerator has under way. LUT RAM of ECP5 holds 16 words in a block.
_READS_OWED = 32
_WRITES_OWED = 16

#: Ports that subordinates of others want beside those of :func:`axi4_signature`, to stay 0.
AXI4_IDENTIFIERS = {"awid": Out(1), "arid": Out(1), "bid": In(1), "rid": In(1)}

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

    A read becomes bursts that end at multiples of 4 KiB, one a cycle, up to 32 of them under way. A
    write becomes bursts of up to :data:`WRITE_TRANSFERS` that end there too, up to 16 of them
    unanswered; a burst's address is offered when all its data are here. Cycles:
    :func:`sim.timing.units.axi4_read_cycles`.

    **Order.** The address of a read is offered when no burst that was written is unanswered and
    none is begun: so a read finds what was written before it. A write does not wait for reads.

    **Rules of the bus** (IHI 0022, A3.2 and A3.3), in every cycle, with any subordinate that keeps
    its own rules, in resets of the port too:

    - what is offered on AW, W or AR stays offered and the same until it is accepted;
    - ``awvalid``, ``wvalid``, ``arvalid``, ``rready`` and ``bready`` depend on registers only;
      ``bready`` is always 1;
    - no burst crosses a multiple of 4 KiB, each has 1 to 256 transfers (written: 1 to 16) of the
      whole width, type INCR, all strobes set;
    - W carries as many transfers as the accepted and offered AW ask for, in their order, the last
      of each with ``wlast``, and none before its AW is offered; offered data do not wait for AW
      to be accepted, nor AW for data to be.

    **Errors.** SLVERR or DECERR on R or B sets the port's ``error``: the transfer of a read, or the
    burst of a write, that was answered so. It is valid in the cycle after the answer, before the
    data of that read can be taken.

    **Resets.** The reset of the clock domain is that of the bus, ARESETn: subordinate and manager
    are reset together, and owe nothing afterwards. ``restart`` is for a reset of the port's user
    alone. Then the manager takes part in all that it has begun on the bus: it keeps offering what
    it offers, sends the data of bursts whose address was offered, accepts and drops what is read,
    and awaits the answers of writes. Nothing else of before goes to the bus: of a read the bursts
    that were not offered, of a write the transfers since its last burst was closed. From the next
    cycle on the port accepts and delivers nothing, and has no error. It accepts again two cycles
    after ``restart``, or within three after the last answer.

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
    restart : In(1)
        The user of the port is reset with this cycle's clock edge.
    draining : Out(1)
        From the cycle after ``restart`` on, until nothing of before is owed on the bus.

    Raises
    ------
    ValueError
        If ``port_bytes`` is not such a power of two, or an address has less than 12 bits.
    """

    port: wiring.PureInterface
    bus: wiring.PureInterface
    restart: Signal
    draining: Signal

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
            "restart": In(1), "draining": Out(1),
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
        draining = self.draining
        writing = Signal()                      # something is not yet known to be written
        written, write_address = self._write(m, draining, writing)
        read, read_address = self._read(m, draining, writing)
        with m.If(self.restart):
            m.d.sync += draining.eq(1)
        with m.Elif(written & read):
            m.d.sync += draining.eq(0)

        error = self.port.error
        read_fails, write_fails = Signal(), Signal()
        m.d.comb += [
            read_fails.eq(bus.rvalid & bus.rready & bus.rresp[1]),
            write_fails.eq(bus.bvalid & bus.bready & bus.bresp[1]),
        ]
        with m.If(self.restart | draining):
            m.d.sync += error.valid.eq(0)
        with m.Elif(~error.valid & (read_fails | write_fails)):
            m.d.sync += [
                error.valid.eq(1),
                error.write.eq(~read_fails),
                error.response.eq(Mux(read_fails, bus.rresp, bus.bresp)),
                error.address.eq(Mux(read_fails, read_address, write_address)),
            ]
        return m

    def _read(self, m, draining, writing):
        """Return whether nothing that was read is owed, and the address of the data on R."""
        bus, reads = self.bus, self.port.reads
        below = exact_log2(self.port_bytes)
        page = exact_log2(PAGE_BYTES // self.port_bytes)
        row = Signal(len(reads.p.address) - below)
        remaining = Signal.like(reads.p.transfers)
        room = Signal(page + 1)                 # transfers up to the end of the page
        rest = Signal()                         # some of them lie in the next page
        move = Signal()
        m.submodules.owed_reads = owed = fifo.SyncFIFO(width=len(row), depth=_READS_OWED)
        m.d.comb += [
            room.eq(2 ** page - row[:page]),
            rest.eq(remaining > room),
            move.eq((remaining != 0) & ~writing & (~bus.arvalid | bus.arready) & owed.w_rdy),
            reads.ready.eq(((remaining == 0) | (move & ~rest)) & ~draining),
            owed.w_data.eq(row),
            owed.w_en.eq(move),
        ]
        with m.If(bus.arready):
            m.d.sync += bus.arvalid.eq(0)
        with m.If(move):
            m.d.sync += [
                bus.arvalid.eq(1),
                bus.araddr.eq(Cat(C(0, below), row)),
                bus.arlen.eq(Mux(rest, room, remaining) - 1),
                row.eq(row + room),
                remaining.eq(Mux(rest, remaining - room, 0)),
            ]
        with m.If(reads.valid & reads.ready):
            m.d.sync += [row.eq(reads.p.address[below:]), remaining.eq(reads.p.transfers)]
        with m.If(self.restart):
            m.d.sync += remaining.eq(0)

        # Two places, so that rready depends on none of the bus's inputs.
        m.submodules.answers = answers = fifo.SyncFIFO(width=8 * self.port_bytes, depth=2)
        come = Signal(8)                        # transfers of the oldest burst
        m.d.comb += [
            bus.rready.eq(answers.w_rdy),
            answers.w_en.eq(bus.rvalid),
            answers.w_data.eq(bus.rdata),
            self.port.data.valid.eq(answers.r_rdy & ~draining),
            self.port.data.p.data.eq(answers.r_data),
            answers.r_en.eq(self.port.data.ready | draining),
            owed.r_en.eq(bus.rvalid & bus.rready & bus.rlast),
        ]
        with m.If(bus.rvalid & bus.rready):
            m.d.sync += come.eq(Mux(bus.rlast, 0, come + 1))
        return ~owed.r_rdy & ~answers.r_rdy, Cat(C(0, below), (owed.r_data + come)[:len(row)])

    def _write(self, m, draining, writing):
        """Return whether nothing that was written is owed, and the address of the burst on B."""
        bus, writes = self.bus, self.port.writes
        below, page = exact_log2(self.port_bytes), exact_log2(PAGE_BYTES)
        # A burst that is under way can always be taken whole: those before it leave the queue.
        m.submodules.queue = queue = fifo.SyncFIFO(width=8 * self.port_bytes + 1,
                                                   depth=2 * WRITE_TRANSFERS)
        m.submodules.owed_writes = owed = fifo.SyncFIFO(width=len(writes.p.address) - below,
                                                        depth=_WRITES_OWED)
        count = Signal(range(WRITE_TRANSFERS))  # transfers of the burst that has begun
        first = Signal.like(writes.p.address)   # address of the burst that has begun
        begin = Signal.like(first)              # ... of which this one is the first
        closes, taken, closed = Signal(), Signal(), Signal()
        to_send = Signal(range(_WRITES_OWED + 1))   # bursts whose data may leave
        sent = Signal()
        m.d.comb += [
            closes.eq(writes.p.last | (count == WRITE_TRANSFERS - 1)
                      | writes.p.address[below:page].all()),
            writes.ready.eq(queue.w_rdy & (~bus.awvalid | bus.awready) & owed.w_rdy & ~draining),
            taken.eq(writes.valid & writes.ready),
            closed.eq(taken & closes),
            first.eq(Mux(count == 0, writes.p.address, begin)),
            owed.w_en.eq(closed),
            owed.w_data.eq(first[below:]),
            owed.r_en.eq(bus.bvalid),
            queue.w_en.eq(taken),
            queue.w_data.eq(Cat(writes.p.data, closes)),
            bus.wvalid.eq(queue.r_rdy & (to_send != 0)),
            Cat(bus.wdata, bus.wlast).eq(queue.r_data),
            # Behind the last burst there is what a restart has cut off.
            queue.r_en.eq(Mux(to_send != 0, bus.wready, draining)),
            sent.eq(bus.wvalid & bus.wready & bus.wlast),
            bus.bready.eq(1),
            writing.eq((count != 0) | owed.r_rdy),
        ]
        m.d.sync += to_send.eq(to_send + closed - sent)
        with m.If(bus.awready):
            m.d.sync += bus.awvalid.eq(0)
        with m.If(taken):
            m.d.sync += [count.eq(Mux(closes, 0, count + 1)), begin.eq(first)]
        with m.If(closed):
            m.d.sync += [bus.awvalid.eq(1), bus.awaddr.eq(first), bus.awlen.eq(count)]
        with m.If(self.restart):
            m.d.sync += count.eq(0)
        return ~owed.r_rdy & ~queue.r_rdy, Cat(C(0, below), owed.r_data)
