"""A block RAM with an output register, which ECP5 has in the block but synthesis does not use."""

from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.check import one_of, positive_int
from hw.config import TARGETS

__all__ = ["LUT_DEPTH", "BlockRam"]

#: Words up to which a memory may be LUT RAM, which has 16: two of them and a multiplexer.
LUT_DEPTH = 32
# Geometry of PDPW16KD: 512 words of four 9-bit bytes, each byte with its write enable.
_CELL_DEPTH = 512
_CELL_WIDTH = 36
_BYTE_WIDTH = 9


class BlockRam(wiring.Component):
    """One write port, one read port with a latency of two cycles; zero from configuration on.

    A word that is read in the cycle in which it is written comes out undefined: the parent makes
    sure that nobody looks at it. With target ``ecp5`` the blocks are instantiated and the second
    cycle of the read is the output register inside the block; but up to a depth of 32 it is no
    block, which would be nearly empty, but LUT RAM and registers, unless ``blocks`` are asked for.

    Parameters
    ----------
    width, depth : int
        Geometry; with target ``ecp5`` the depth is at most 512.
    fields : int
        Equal parts of a word that are written each for itself; with target ``ecp5`` they are whole
        bytes, of 9 bits, unless there is but one.
    target : str
        One of :data:`hw.config.TARGETS`.
    blocks : bool
        Of target ``ecp5``: blocks, however empty they are.

    Members
    -------
    read_address : In
    read_enable : In(1)
        First stage: look up ``read_address``.
    output_enable : In(1)
        Second stage: move what was looked up into ``read_data``.
    read_data : Out(width)
    write_address : In
    write_data : In(width)
    write : In(1)
        Write port enabled; an early, common signal.
    write_mask : In(fields)
        Write the field after all; a late signal of this RAM alone.

    Raises
    ------
    ValueError
        If ``depth`` exceeds the block of target ``ecp5``, or ``fields`` do not divide the word.
    """

    read_address: Signal
    read_enable: Signal
    output_enable: Signal
    read_data: Signal
    write_address: Signal
    write_data: Signal
    write: Signal
    write_mask: Signal

    def __init__(self, *, width: int, depth: int, target: str, fields: int = 1,
                 blocks: bool = False):
        self.width = positive_int("Block RAM width", width)
        self.depth = positive_int("Block RAM depth", depth)
        self.target = one_of("Target", target, TARGETS)
        if target == "ecp5" and depth > _CELL_DEPTH:
            raise ValueError(f"Block RAM depth must be at most {_CELL_DEPTH} on target 'ecp5', "
                             f"not {depth}")
        unit = _BYTE_WIDTH if target == "ecp5" and fields > 1 else 1
        if width % (positive_int("Field count", fields) * unit):
            raise ValueError(f"Block RAM width ({width}) must be a multiple of {fields} fields of "
                             f"{unit} bits")
        self.fields = fields
        self._blocks = blocks
        address_width = ceil_log2(depth)
        super().__init__({
            "read_address": In(address_width), "read_enable": In(1), "output_enable": In(1),
            "read_data": Out(width),
            "write_address": In(address_width), "write_data": In(width),
            "write": In(1), "write_mask": In(fields),
        })

    def elaborate(self, platform):
        m = Module()
        attributes: dict = {"no_rw_check": 1}
        if self.target == "ecp5":
            if self._blocks or self.depth > LUT_DEPTH:
                self._cells(m)
                return m
            attributes["ram_style"] = "distributed"
        # An asynchronous port and a register: only so does no_rw_check reach the read port that
        # Yosys makes of the two, and keep it from adding logic that makes the undefined word an old
        # one.
        m.submodules.words = words = memory.Memory(shape=self.width, depth=self.depth, init=[],
                                                   attrs=attributes)
        read_port = words.read_port(domain="comb")
        write_port = words.write_port(granularity=self.width // self.fields)
        looked_up = Signal(self.width, reset_less=True)
        m.d.comb += [
            read_port.addr.eq(self.read_address),
            write_port.addr.eq(self.write_address),
            write_port.data.eq(self.write_data),
            write_port.en.eq(self.write.replicate(self.fields) & self.write_mask),
        ]
        with m.If(self.read_enable):
            m.d.sync += looked_up.eq(read_port.data)
        with m.If(self.output_enable):
            m.d.sync += self.read_data.eq(looked_up)
        return m

    def _cells(self, m):
        for low in range(0, self.width, _CELL_WIDTH):
            width = min(_CELL_WIDTH, self.width - low)
            word = Signal(_CELL_WIDTH, name=f"word_{low}")
            m.d.comb += self.read_data[low:low + width].eq(word)
            ports = {}
            for bit in range(_CELL_WIDTH):
                ports[f"i_DI{bit}"] = self.write_data[low + bit] if bit < width else Const(0)
                ports[f"o_DO{bit}"] = word[bit]
            for byte in range(_CELL_WIDTH // _BYTE_WIDTH):
                first = byte * _BYTE_WIDTH
                field = (low + first) // (self.width // self.fields)
                ports[f"i_BE{byte}"] = self.write_mask[field] if first < width else Const(0)
            for bit in range(9):
                used = bit < len(self.write_address)
                ports[f"i_ADW{bit}"] = self.write_address[bit] if used else Const(0)
                # Read addresses count bits of the narrowest port: 2**5 of them in a word.
                ports[f"i_ADR{bit + 5}"] = self.read_address[bit] if used else Const(0)
            ports |= {f"i_ADR{bit}": Const(0) for bit in range(5)}
            ports |= {f"i_CS{port}{bit}": Const(0) for port in "WR" for bit in range(3)}
            m.submodules[f"bits_{low}"] = Instance(
                "PDPW16KD",
                p_DATA_WIDTH_W=_CELL_WIDTH, p_DATA_WIDTH_R=_CELL_WIDTH, p_REGMODE="OUTREG",
                p_GSR="DISABLED",
                i_CLKW=ClockSignal(), i_CLKR=ClockSignal(), i_RST=Const(0),
                i_CEW=self.write, i_CER=self.read_enable, i_OCER=self.output_enable, **ports)
