"""A memory in block RAM behind the memory port."""

from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In
from amaranth.utils import exact_log2

from hw.check import one_of, positive_int
from hw.config import TARGETS
from hw.memory.port import check_port_bytes, port_signature

__all__ = ["BlockRamMemory"]

# Bits of a block of ECP5 that is read and written in powers of two.
_BLOCK_BITS = 2 ** 14


class BlockRamMemory(wiring.Component):
    """A memory of ``depth`` transfers in block RAM, zero from configuration on.

    Reads and writes move at the same time, a transfer a cycle each; bursts follow one another
    without a gap. The bits of an address above the depth are ignored. There are no errors. Cycles:
    :func:`sim.timing.units.block_ram_memory_cycles`.

    Parameters
    ----------
    address_width : int
        Bits of an address at the port.
    port_bytes : int
        Bytes of a transfer, a power of two.
    depth : int
        Transfers, a power of two.
    target : str
        One of :data:`hw.config.TARGETS`.

    Members
    -------
    port : In of :func:`port_signature`

    Raises
    ------
    ValueError
        If ``port_bytes`` or ``depth`` is not a power of two, or an address cannot reach the depth.
    """

    port: wiring.PureInterface

    def __init__(self, *, address_width: int, port_bytes: int, depth: int, target: str):
        self.target = one_of("Target", target, TARGETS)
        self.port_bytes = check_port_bytes(port_bytes)
        self.depth = positive_int("Memory depth", depth)
        if depth & (depth - 1):
            raise ValueError(f"Memory depth must be a power of two, not {depth}")
        if depth * port_bytes > 2 ** positive_int("Address width", address_width):
            raise ValueError(f"Address width must reach {depth * port_bytes} bytes, "
                             f"not {address_width}")
        super().__init__({
            "port": In(port_signature(address_width=address_width, port_bytes=port_bytes)),
        })

    def elaborate(self, platform):
        m = Module()
        below, width = exact_log2(self.port_bytes), exact_log2(self.depth)
        reads, answers, writes = self.port.reads, self.port.data, self.port.writes
        # A write takes a cycle on its way, as a read does to its row: the RAM is large and far.
        written = Signal(writes.p.shape(), reset_less=True)
        write = Signal()
        m.d.comb += writes.ready.eq(1)
        m.d.sync += [written.eq(writes.p), write.eq(writes.valid)]

        row = Signal(width)
        remaining = Signal.like(reads.p.transfers)   # transfers of the burst that are not looked up
        found = Signal()                        # the RAM delivers a row
        output, lookup = Signal(), Signal()     # the two stages of a read move
        m.d.comb += [
            output.eq(~answers.valid | answers.ready),
            lookup.eq(~found | output),
            reads.ready.eq((remaining == 0) | (lookup & (remaining == 1))),
        ]
        # ECP5: slices that fill a block. Whole rows would go into fewer blocks, with their parity
        # bits, and a multiplexer behind them.
        bits = 8 * self.port_bytes
        part = min(bits, max(1, _BLOCK_BITS // self.depth)) if self.target == "ecp5" else bits
        found_row = Signal(bits)
        for low in range(0, bits, part):
            # Without no_rw_check Yosys would add logic for reads and writes of one row in a cycle.
            m.submodules[f"bits_{low}"] = rows = memory.Memory(
                shape=part, depth=self.depth, init=[], attrs={"no_rw_check": 1})
            read_port, write_port = rows.read_port(), rows.write_port()
            m.d.comb += [
                write_port.en.eq(write),
                write_port.addr.eq(written.address[below:below + width]),
                write_port.data.eq(written.data[low:low + part]),
                read_port.en.eq(lookup),
                read_port.addr.eq(row),
                found_row[low:low + part].eq(read_port.data),
            ]
        with m.If(output):
            m.d.sync += [answers.valid.eq(found), answers.p.data.eq(found_row)]
        with m.If(lookup):
            m.d.sync += found.eq(remaining != 0)
            with m.If(remaining != 0):
                m.d.sync += [row.eq(row + 1), remaining.eq(remaining - 1)]
        with m.If(reads.valid & reads.ready):
            m.d.sync += [row.eq(reads.p.address[below:below + width]),
                         remaining.eq(reads.p.transfers)]
        return m
