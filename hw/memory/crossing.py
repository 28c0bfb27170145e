# Ref: C. E. Cummings, "Simulation and Synthesis Techniques for Asynchronous FIFO Design", SNUG 2002

"""The memory port between two clocks: a memory may be faster than its user."""

from amaranth import *
from amaranth.lib import cdc, fifo, wiring
from amaranth.lib.wiring import In, Out

from hw.common.skid import SkidBuffer
from hw.common.stream import accepted, connect_stream
from hw.memory.port import port_signature

__all__ = ["CROSSING_ENTRIES", "PortCrossing"]

#: Entries of each of the three queues: more than a transfer a cycle of the slower clock needs while
#: the counts of both sides are on their way to the other.
CROSSING_ENTRIES = 16


class PortCrossing(wiring.Component):
    """Asynchronous queues for the streams of a memory port, between clocks without any relation.

    The user of the port is in domain ``sync``, the memory in domain ``memory``.

    **Order.** A read is accepted when all writes that were accepted before it have left their
    queue, and offered when the memory has taken them.

    **Reset.** ``reset`` drops what is under way; a write may yet be done. The port accepts nothing
    until the memory has been reset too, by ``memory_reset``, and the queues are empty: some ten
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
        # No path may lead from the controller's handshakes through a queue's address and memory.
        skids = {}
        for name, end, domain in (("reads", self.memory.reads, "far"),
                                  ("writes", self.memory.writes, "far"),
                                  ("data", self.memory.data, "far"),
                                  ("delivery", self.port.data, "user")):
            skids[name] = skid = SkidBuffer(end.payload.shape())
            m.submodules[f"{name}_skid"] = DomainRenamer(domain)(skid)
        # All writes have left the queue. In a simulation the next comment's wait is enough; in
        # hardware a synchronizer may take a cycle longer than that of the other queue.
        written = Signal(init=1)
        self._queue(m, "reads", self.port.reads, skids["reads"].i, ("user", "far"),
                    enable=opened & written)
        writes = self._queue(m, "writes", self.port.writes, skids["writes"].i, ("user", "far"),
                             enable=opened)
        self._queue(m, "data", skids["data"].o, skids["delivery"].i, ("far", "user"))
        # Writes before a read may still be in the register: the read waits until it is empty once.
        offered = Signal()
        read, write = skids["reads"].o, skids["writes"].o
        m.d.comb += [
            self.memory.reads.payload.eq(read.payload),
            self.memory.reads.valid.eq(read.valid & (offered | ~write.valid)),
            read.ready.eq(self.memory.reads.ready & (offered | ~write.valid)),
        ]
        m.d.far += offered.eq(self.memory.reads.valid & ~self.memory.reads.ready)
        connect_stream(m, skids["writes"].o, wiring.flipped(self.memory.writes))
        connect_stream(m, wiring.flipped(self.memory.data), skids["data"].i)
        # Data of before a reset may come until the memory's side has begun its own.
        m.d.comb += [
            self.port.data.payload.eq(skids["delivery"].o.payload),
            self.port.data.valid.eq(skids["delivery"].o.valid & opened),
            skids["delivery"].o.ready.eq(self.port.data.ready),
        ]

        # The queue's level counts a write from the second cycle on.
        recent = Signal()
        m.d.sync += [
            recent.eq(accepted(self.port.writes)),
            written.eq(~(accepted(self.port.writes) | recent) & (writes.w_level == 0)),
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

        The user's side requests a reset until the memory's has begun one, and stays reset until
        that has ended. No request begins before the one before it has ended on both sides: none
        can be so short that it is seen late.
        """
        pending, request = Signal(init=1, reset_less=True), Signal(reset_less=True)
        begun, opened = Signal(), Signal()
        m.submodules.request = cdc.FFSynchronizer(request, self.memory_reset, o_domain="memory",
                                                  init=1)
        m.submodules.begun = cdc.FFSynchronizer(self.memory_reset, begun, o_domain="sync", init=1)
        resets = self.reset | ResetSignal(allow_reset_less=True)
        with m.If(request & begun):
            m.d.sync += request.eq(0)
        with m.Elif(~request & ~begun & pending):
            m.d.sync += [request.eq(1), pending.eq(0)]
        with m.If(resets):
            m.d.sync += pending.eq(1)
        m.d.sync += opened.eq(~(pending | request | begun | resets))
        m.domains.user = ClockDomain(local=True)
        m.domains.far = ClockDomain(local=True)
        m.d.comb += [
            ClockSignal("user").eq(ClockSignal()), ResetSignal("user").eq(~opened),
            ClockSignal("far").eq(ClockSignal("memory")), ResetSignal("far").eq(self.memory_reset),
        ]
        return opened

    @staticmethod
    def _queue(m, name, producer, consumer, domains, *, enable=None):
        """Put a queue between two streams of different domains, which accepts if ``enable``."""
        write_domain, read_domain = domains
        queue = fifo.AsyncFIFO(width=producer.payload.shape().size, depth=CROSSING_ENTRIES,
                               w_domain=write_domain, r_domain=read_domain)
        m.submodules[name] = queue
        accepts = C(1) if enable is None else enable
        m.d.comb += [
            producer.ready.eq(queue.w_rdy & accepts),
            queue.w_en.eq(producer.valid & accepts),
            queue.w_data.eq(producer.payload),
            consumer.payload.eq(queue.r_data),
            consumer.valid.eq(queue.r_rdy),
            queue.r_en.eq(consumer.ready),
        ]
        return queue
