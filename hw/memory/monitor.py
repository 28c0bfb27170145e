"""What the memory port did during a pass, counted."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.memory.port import port_signature

__all__ = ["PortMonitor"]

_COUNTER_BITS = 32


class PortMonitor(wiring.Component):
    """Passes a memory port through unchanged and counts transfers, waits and refreshes.

    Counters have 32 bits and wrap. They begin at 0 in the cycle after ``begins``.

    Parameters
    ----------
    address_width : int
        Bits of an address.
    port_bytes : int
        Bytes of a transfer.

    Members
    -------
    user : In of :func:`hw.memory.port.port_signature`
    memory : Out of :func:`hw.memory.port.port_signature`
    begins : In(1)
        A pass begins: all counters are cleared.
    busy : In(1)
        A pass is under way: waits and refreshes are counted.
    refreshing : In(1)
        The memory begins a refresh.
    transfers : Out(32)
        Transfers that were read or written, ahead of the next pass too.
    waits : Out(32)
        Cycles in which a read or write was pending and no transfer moved.
    refreshes : Out(32)
    """

    user: wiring.PureInterface
    memory: wiring.PureInterface
    begins: Signal
    busy: Signal
    refreshing: Signal
    transfers: Signal
    waits: Signal
    refreshes: Signal

    def __init__(self, *, address_width: int, port_bytes: int):
        port = port_signature(address_width=address_width, port_bytes=port_bytes)
        super().__init__({
            "user": In(port), "memory": Out(port), "begins": In(1), "busy": In(1),
            "refreshing": In(1),
            "transfers": Out(_COUNTER_BITS), "waits": Out(_COUNTER_BITS),
            "refreshes": Out(_COUNTER_BITS)})

    def elaborate(self, platform):
        m = Module()
        wiring.connect(m, wiring.flipped(self.user), wiring.flipped(self.memory))
        reads, answers, writes = self.memory.reads, self.memory.data, self.memory.writes
        asked, read, written = (port.valid & port.ready for port in (reads, answers, writes))

        # Transfers that were asked for and have not come. The longest burst fits many times: a
        # memory that owes as many as would make this wrap is none.
        owed = Signal(_COUNTER_BITS)
        m.d.sync += owed.eq(owed + Mux(asked, reads.p.transfers, 0) - read)

        # Counted a cycle late, from registers: the port is the longest path of a chip.
        moved = Signal(2, reset_less=True)
        waiting, refreshing = Signal(reset_less=True), Signal(reset_less=True)
        m.d.sync += [
            moved.eq(read + written),
            waiting.eq(((owed != 0) | reads.valid | writes.valid) & ~read & ~written & self.busy),
            refreshing.eq(self.refreshing & self.busy),
            self.transfers.eq(self.transfers + moved),
            self.waits.eq(self.waits + waiting),
            self.refreshes.eq(self.refreshes + refreshing),
        ]
        with m.If(self.begins):
            m.d.sync += [self.transfers.eq(0), self.waits.eq(0), self.refreshes.eq(0)]
        return m
