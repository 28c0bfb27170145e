"""A memory that the accelerator uses and the host fills."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.check import positive_int
from hw.config import BURST_TRANSFERS
from hw.memory.port import port_signature, transfer_layout

__all__ = ["SharedPort", "address_layout", "placed_layout"]


def address_layout(address_width: int) -> data.StructLayout:
    """Layout of the address of a transfer that the host wants to have."""
    return data.StructLayout({"address": address_width})


def placed_layout(address_width: int, port_bytes: int) -> data.StructLayout:
    """Layout of a transfer that the host writes, with its address."""
    return data.StructLayout({"address": address_width, "data": 8 * port_bytes})


class SharedPort(wiring.Component):
    """The memory port of an accelerator, and between its bursts single transfers of the host.

    The accelerator goes first. A transfer that the host reads is looked up when no read of the
    accelerator is under way, and the accelerator waits until it has come. The accelerator's
    transfers pass without a delay. The accelerator is told of an error whoever has asked.

    Parameters
    ----------
    address_width : int
        Bits of an address.
    port_bytes : int
        Bytes of a transfer.
    reads_ahead : int
        Transfers that the accelerator asks for before the first of them has come, at most.

    Members
    -------
    accelerator : In of :func:`hw.memory.port.port_signature`
    memory : Out of :func:`hw.memory.port.port_signature`
    i_writes : In(stream) of :func:`placed_layout`
    i_reads : In(stream) of :func:`address_layout`
    o_data : Out(stream) of :func:`hw.memory.port.transfer_layout`

    Raises
    ------
    ValueError
        If a parameter is not a positive integer.
    """

    accelerator: wiring.PureInterface
    memory: wiring.PureInterface
    i_writes: stream.Interface
    i_reads: stream.Interface
    o_data: stream.Interface

    def __init__(self, *, address_width: int, port_bytes: int, reads_ahead: int):
        self.reads_ahead = positive_int("Count of transfers read ahead", reads_ahead)
        port = port_signature(address_width=address_width, port_bytes=port_bytes)
        super().__init__({
            "accelerator": In(port), "memory": Out(port),
            "i_writes": In(stream.Signature(placed_layout(address_width, port_bytes))),
            "i_reads": In(stream.Signature(address_layout(address_width))),
            "o_data": Out(stream.Signature(transfer_layout(port_bytes))),
        })

    def elaborate(self, platform):
        m = Module()
        accelerator, memory = self.accelerator, self.memory

        # A burst that has begun goes on: the host's transfer waits for its end. So does the
        # accelerator for a transfer that is being offered.
        inside, held, grant = Signal(), Signal(), Signal()
        m.d.comb += [
            grant.eq(held | ~(accelerator.writes.valid | inside)),
            memory.writes.valid.eq(Mux(grant, self.i_writes.valid, accelerator.writes.valid)),
            memory.writes.p.eq(accelerator.writes.p),
            accelerator.writes.ready.eq(memory.writes.ready & ~grant),
            self.i_writes.ready.eq(memory.writes.ready & grant),
        ]
        with m.If(grant):
            m.d.comb += [
                memory.writes.p.address.eq(self.i_writes.p.address),
                memory.writes.p.data.eq(self.i_writes.p.data),
                memory.writes.p.last.eq(1),
            ]
        m.d.sync += held.eq(grant & self.i_writes.valid & ~self.i_writes.ready)
        with m.If(accelerator.writes.valid & accelerator.writes.ready):
            m.d.sync += inside.eq(~accelerator.writes.p.last)

        # Transfers that the accelerator has asked for and not got.
        awaited = Signal(range(self.reads_ahead + BURST_TRANSFERS + 1))
        sent = accelerator.reads.valid & accelerator.reads.ready
        come = accelerator.data.valid & accelerator.data.ready
        m.d.sync += awaited.eq(awaited + Mux(sent, accelerator.reads.p.transfers, 0) - come)
        m.d.comb += [
            memory.reads.p.eq(accelerator.reads.p),
            accelerator.data.p.eq(memory.data.p),
            accelerator.error.eq(memory.error),
        ]
        with m.If(self.o_data.ready):
            m.d.sync += self.o_data.valid.eq(0)
        with m.FSM() as fsm:
            with m.State("ACCELERATOR"):
                m.d.comb += [
                    accelerator.data.valid.eq(memory.data.valid),
                    memory.reads.valid.eq(accelerator.reads.valid),
                    accelerator.reads.ready.eq(memory.reads.ready),
                ]
                with m.If(self.i_reads.valid & ~self.o_data.valid & ~accelerator.reads.valid
                          & (awaited == 0)):
                    m.next = "READ"
            with m.State("READ"):
                m.d.comb += [
                    memory.reads.valid.eq(self.i_reads.valid),
                    memory.reads.p.address.eq(self.i_reads.p.address),
                    memory.reads.p.transfers.eq(1),
                    self.i_reads.ready.eq(memory.reads.ready),
                ]
                with m.If(self.i_reads.ready):
                    m.next = "DATA"
            with m.State("DATA"):
                m.d.sync += self.o_data.p.eq(memory.data.p)
                with m.If(memory.data.valid):
                    m.d.sync += self.o_data.valid.eq(1)
                    m.next = "ACCELERATOR"
        # Never waits for the host, and not at all if the accelerator does not let it wait.
        m.d.comb += memory.data.ready.eq(accelerator.data.ready | ~fsm.ongoing("ACCELERATOR"))
        return m
