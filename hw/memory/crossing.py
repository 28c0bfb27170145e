# Ref: C. E. Cummings, "Simulation and Synthesis Techniques for Asynchronous FIFO Design", SNUG 2002

"""The memory port between two clocks: a memory may be faster than its user."""

from amaranth import *
from amaranth.lib import cdc, data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from hw.common.skid import SkidBuffer
from hw.common.stream import accepted, connect_stream
from hw.memory.port import port_signature

__all__ = ["CROSSING_ENTRIES", "PortCrossing"]

#: Entries of each of the three queues: more than a transfer a cycle of the slower clock needs while
#: the counts of both sides are on their way to the other.
CROSSING_ENTRIES = 16

#: Cycles for which a request of a reset stays behind its acknowledgement: the queues' counts, which
#: begin anew with that, arrive before its end.
_SETTLING = 4


class _Queue(wiring.Component):
    """An asynchronous queue in LUT RAM, whose read address is a register.

    The read address of ``amaranth.lib.fifo.AsyncFIFO`` is that of the next cycle, behind the
    comparison of the counts: at 131 MHz and 60 bits that was too long on ECP5.

    Both domains are to be reset together: neither reset may end before both have begun.

    Parameters
    ----------
    shape : layout
        Of the payload.
    write_domain, read_domain : str

    Members
    -------
    i : In(stream)
        In the write domain.
    o : Out(stream)
        In the read domain.
    empty : Out(1)
        In the write domain: all that was accepted has left.
    """

    i: stream.Interface
    o: stream.Interface
    empty: Signal

    def __init__(self, shape: data.StructLayout, write_domain: str, read_domain: str):
        self._write_domain, self._read_domain = write_domain, read_domain
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape)),
                          "empty": Out(1)})

    def elaborate(self, platform):
        m = Module()
        bits = exact_log2(CROSSING_ENTRIES) + 1
        m.submodules.entries = entries = memory.Memory(
            shape=self.i.payload.shape().size, depth=CROSSING_ENTRIES, init=[],
            attrs={"ram_style": "distributed"})
        write_port = entries.write_port(domain=self._write_domain)
        read_port = entries.read_port(domain="comb")
        # Counts in Gray code: one that is caught in a change is the one before or the one behind.
        counts = {}
        for name, domain, other, event in (
                ("written", self._write_domain, self._read_domain, accepted(self.i)),
                ("taken", self._read_domain, self._write_domain, accepted(self.o))):
            count, next_count = Signal(bits, name=name), Signal(bits, name=f"next_{name}")
            gray, seen = Signal(bits, name=f"{name}_gray"), Signal(bits, name=f"{name}_seen")
            m.d.comb += next_count.eq(count + 1)
            with m.If(event):
                m.d[domain] += [count.eq(next_count), gray.eq(next_count ^ next_count[1:])]
            m.submodules[name] = cdc.FFSynchronizer(gray, seen, o_domain=other)
            counts[name] = count, gray, seen
        (written, written_gray, written_seen), (taken, taken_gray, taken_seen) = counts.values()
        full = taken_seen ^ (0b11 << (bits - 2))    # a whole queue ahead, in Gray code
        m.d.comb += [
            self.i.ready.eq(written_gray != full),
            self.empty.eq(written_gray == taken_seen),
            write_port.addr.eq(written[:-1]),
            write_port.data.eq(self.i.payload),
            write_port.en.eq(accepted(self.i)),
            self.o.valid.eq(taken_gray != written_seen),
            read_port.addr.eq(taken[:-1]),
            self.o.payload.eq(read_port.data),
        ]
        return m


class PortCrossing(wiring.Component):
    """Asynchronous queues for the streams of a memory port, between clocks without any relation.

    The user of the port is in domain ``sync``, the memory in domain ``memory``.

    **Order.** A read is accepted when all writes that were accepted before it have left their
    queue, and offered when the memory has taken them.

    **Reset.** ``reset`` drops what is under way; a write may yet be done. The port accepts nothing
    until the memory has been reset too, by ``memory_reset``, and the queues are empty: some fifteen
    cycles of the slower clock. A reset of domain ``sync`` does the same.

    Parameters
    ----------
    address_width : int
        Bits of an address.
    port_bytes : int
        Bytes of a transfer.

    Members
    -------
    reset : In(1)
        Of the user's domain.
    port : In of :func:`hw.memory.port.port_signature`
        All that leaves depends on registers only. There are no errors.
    memory : Out of :func:`hw.memory.port.port_signature`
        In the memory's domain. Its ``error`` is ignored.
    memory_reset : Out(1)
        In the memory's domain, at least two cycles long.
    pulse : In(1)
        In the memory's domain: an event, whose distance from the next one is at least four cycles
        of the slower clock.
    pulse_seen : Out(1)
        In the user's domain: the same event, for a cycle.
    """

    reset: Signal
    port: wiring.PureInterface
    memory: wiring.PureInterface
    memory_reset: Signal
    pulse: Signal
    pulse_seen: Signal

    def __init__(self, *, address_width: int, port_bytes: int):
        port = port_signature(address_width=address_width, port_bytes=port_bytes)
        super().__init__({
            "reset": In(1), "port": In(port), "memory": Out(port),
            "memory_reset": Out(1), "pulse": In(1), "pulse_seen": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        opened = self._resets(m)
        # Each queue ends in a register of the reader's domain; that of the data begins in one of
        # the memory's too. No path may lead from the controller's handshakes through a queue.
        ends = {}
        for name, port, domains in (("reads", self.port.reads, ("user", "far")),
                                    ("writes", self.port.writes, ("user", "far")),
                                    ("data", self.memory.data, ("far", "user"))):
            shape = port.payload.shape()
            m.submodules[f"{name}_queue"] = queue = _Queue(shape, *domains)
            last = SkidBuffer(shape)
            m.submodules[f"{name}_end"] = DomainRenamer(domains[1])(last)
            connect_stream(m, queue.o, last.i)
            ends[name] = queue, last.o
        (reads, read), (writes, write), (data_queue, delivered) = ends.values()
        first = SkidBuffer(data_queue.i.payload.shape())
        m.submodules.data_begin = DomainRenamer("far")(first)
        connect_stream(m, wiring.flipped(self.memory.data), first.i)
        connect_stream(m, first.o, data_queue.i)
        connect_stream(m, write, wiring.flipped(self.memory.writes))

        # All writes have left the queue. In a simulation the read's wait on the other side is
        # enough; in hardware a synchronizer may take a cycle longer than that of the other queue.
        written = Signal(init=1)
        m.d.sync += written.eq(writes.empty & ~accepted(self.port.writes))
        for name, queue, may_pass in (("reads", reads, opened & written),
                                      ("writes", writes, opened)):
            port = getattr(self.port, name)
            m.d.comb += [
                queue.i.payload.eq(port.payload),
                queue.i.valid.eq(port.valid & may_pass),
                port.ready.eq(queue.i.ready & may_pass),
            ]
        # Writes before a read may still be in the register: the read waits until it is empty once.
        offered = Signal()
        m.d.far += offered.eq(self.memory.reads.valid & ~self.memory.reads.ready)
        m.d.comb += [
            self.memory.reads.payload.eq(read.payload),
            self.memory.reads.valid.eq(read.valid & (offered | ~write.valid)),
            read.ready.eq(self.memory.reads.ready & (offered | ~write.valid)),
            # Data of before a reset may come until the memory's side has begun its own.
            self.port.data.payload.eq(delivered.payload),
            self.port.data.valid.eq(delivered.valid & opened),
            delivered.ready.eq(self.port.data.ready),
        ]

        toggle, here, before = Signal(reset_less=True), Signal(), Signal(reset_less=True)
        with m.If(self.pulse):
            m.d.memory += toggle.eq(~toggle)
        m.submodules.pulse = cdc.FFSynchronizer(toggle, here, o_domain="sync")
        m.d.sync += before.eq(here)
        m.d.comb += self.pulse_seen.eq(here ^ before)
        return m

    def _resets(self, m):
        """Make domains ``user`` and ``far``; return whether the port is open, a register.

        The user's side requests a reset until the memory's has begun one, and then resets the
        queues on its side until that has ended. No request begins before the one before it has
        ended on both sides: none can be so short that it is seen late.
        """
        pending, request = Signal(init=1, reset_less=True), Signal(reset_less=True)
        settling = Signal(range(_SETTLING), reset_less=True)
        begun, opened = Signal(), Signal()
        m.submodules.request = cdc.FFSynchronizer(request, self.memory_reset, o_domain="memory",
                                                  init=1)
        m.submodules.begun = cdc.FFSynchronizer(self.memory_reset, begun, o_domain="sync", init=1)
        resets = self.reset | ResetSignal(allow_reset_less=True)
        with m.If(request & begun):
            m.d.sync += [settling.eq(settling + 1), request.eq(settling != _SETTLING - 1)]
        with m.Elif(~request & ~begun & pending):
            m.d.sync += [request.eq(1), pending.eq(0), settling.eq(0)]
        with m.If(resets):
            m.d.sync += pending.eq(1)
        m.d.sync += opened.eq(~(pending | request | begun | resets))
        m.domains.user = ClockDomain(local=True)
        m.domains.far = ClockDomain(local=True)
        m.d.comb += [
            ClockSignal("user").eq(ClockSignal()), ResetSignal("user").eq(begun),
            ClockSignal("far").eq(ClockSignal("memory")), ResetSignal("far").eq(self.memory_reset),
        ]
        return opened
