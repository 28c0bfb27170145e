"""The vector memory: words of bf16 elements in block RAM, two reads and one write a cycle."""

from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.check import positive_int
from hw.common.word import word_layout
from hw.config import AcceleratorConfig

__all__ = ["READ_LATENCY", "VectorMemory", "address_width", "read_signature", "write_signature"]

#: Cycles from an address to its word.
READ_LATENCY = 2


def address_width(config: AcceleratorConfig) -> int:
    """Bits of a word's address; an element's address has those of the lane below."""
    return ceil_log2(config.vector_depth // config.vector_lanes)


def read_signature(config: AcceleratorConfig) -> wiring.Signature:
    """Build the side of a reader: ``data`` comes in the second cycle after ``enable``."""
    return wiring.Signature({
        "enable": Out(1), "address": Out(address_width(config)), "data": In(word_layout(config))})


def write_signature(config: AcceleratorConfig) -> wiring.Signature:
    """Build the side of a writer: with ``enable``, the lanes of ``mask`` are stored."""
    return wiring.Signature({
        "enable": Out(1), "address": Out(address_width(config)), "data": Out(word_layout(config)),
        "mask": Out(config.vector_lanes)})


class VectorMemory(wiring.Component):
    """Words of ``vector_lanes`` bf16 elements.

    Two ports read and one writes; several users share each of them. Instructions take turns, so
    there is nothing to arbitrate: at most one user of a port may enable it in a cycle. A read takes
    two cycles, one read a cycle; its data stay until the next read of the port delivers. A word
    that is read in the cycle in which it is written comes out undefined.

    Parameters
    ----------
    config : AcceleratorConfig
    readers : tuple of int
        Users of the first and of the second read port.
    writers : int
        Users of the write port.

    Members
    -------
    reads_0, reads_1 : array of In(:func:`read_signature`)
        As ``memory.reads_0[user]``.
    writes : array of In(:func:`write_signature`)
    """

    reads_0: list
    reads_1: list
    writes: list

    def __init__(self, config: AcceleratorConfig, *, readers: tuple[int, int], writers: int):
        self.config = config
        self.depth = config.vector_depth // config.vector_lanes
        members = {f"reads_{port}": In(read_signature(config)).array(
            positive_int(f"Reader count of port {port}", users))
            for port, users in enumerate(readers)}
        members["writes"] = In(write_signature(config)).array(
            positive_int("Writer count", writers))
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        layout = word_layout(self.config)
        _, address = self._joined(self.writes)
        word: Value = C(0)
        mask: Value = C(0)
        for writer in self.writes:
            word |= Mux(writer.enable, writer.data.as_value(), 0)
            mask |= Mux(writer.enable, writer.mask, 0)
        for port, readers in enumerate((self.reads_0, self.reads_1)):
            # Without no_rw_check Yosys would add logic that makes the undefined word an old one.
            words = memory.Memory(shape=layout, depth=self.depth, init=[],
                                  attrs={"no_rw_check": 1})
            m.submodules[f"words_{port}"] = words
            write_port, read_port = words.write_port(granularity=1), words.read_port()
            read_enable, read_address = self._joined(readers)
            delivered = Signal(layout, name=f"delivered_{port}", reset_less=True)
            m.d.comb += [
                write_port.en.eq(mask),
                write_port.addr.eq(address),
                write_port.data.eq(word),
                read_port.en.eq(read_enable),
                read_port.addr.eq(read_address),
            ]
            m.d.sync += delivered.eq(read_port.data)
            m.d.comb += [reader.data.eq(delivered) for reader in readers]
        return m

    @staticmethod
    def _joined(users):
        """Join users of a port by OR: all but the one that enables it count as zero."""
        enable: Value = C(0)
        address: Value = C(0)
        for user in users:
            enable |= user.enable
            address |= Mux(user.enable, user.address, 0)
        return enable, address
