"""The program: its memory, and a reader that decodes it ahead of what walks through it."""

from amaranth import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from hw.config import AcceleratorConfig
from hw.control.decode import Decoder, decoded_layout, position_members
from hw.isa import INSTRUCTION_BYTES

__all__ = ["ProgramReader", "program_layout"]


def program_layout(config: AcceleratorConfig) -> data.StructLayout:
    """Layout of an instruction on its way into the program."""
    return data.StructLayout({"index": exact_log2(config.program_depth),
                              "instruction": 8 * INSTRUCTION_BYTES})


class ProgramReader(wiring.Component):
    """A program counter of its own: instruction after instruction, decoded one ahead.

    Behind the last instruction of the memory there is none, which decodes as fault OPCODE.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    write : In(1)
        ``instruction`` is written.
    instruction : In(:func:`program_layout`)
    restart : In(1)
        What was decoded is dropped; the next instruction is that at ``start``.
    start : In
    o : Out(stream) of :func:`hw.control.decode.decoded_layout`
    position, known : In
        As :class:`hw.control.decode.Decoder` has them.
    active : Out(1)
        A clock matters: see :attr:`hw.accelerator.Accelerator.active`.

    Raises
    ------
    ValueError
        As :class:`hw.control.decode.Decoder` does.
    """

    write: Signal
    instruction: data.View
    restart: Signal
    start: Signal
    o: stream.Interface
    active: Signal

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        self.decoder = Decoder(config)
        super().__init__({
            "write": In(1), "instruction": In(program_layout(config)),
            "restart": In(1), "start": In(exact_log2(config.program_depth)),
            "o": Out(stream.Signature(decoded_layout(config))),
            "active": Out(1),
        } | position_members(config))

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.decoder = decoder = ResetInserter(self.restart)(self.decoder)
        m.submodules.program = program = memory.Memory(
            shape=8 * INSTRUCTION_BYTES, depth=config.program_depth, init=[])
        read, write = program.read_port(), program.write_port()
        following = Signal(bits_for(config.program_depth))
        found = Signal()                        # the memory delivers an instruction
        # Opcode 0 is none.
        beyond = following == config.program_depth
        m.d.comb += [
            write.addr.eq(self.instruction.index),
            write.data.eq(self.instruction.instruction),
            write.en.eq(self.write),
            read.addr.eq(following),
            read.en.eq(1),
            decoder.i.valid.eq(found),
            decoder.i.p.instruction.eq(Mux(beyond, 0, read.data)),
        ]
        m.d.sync += found.eq(1)
        with m.If(found & decoder.i.ready):
            m.d.sync += [found.eq(0), following.eq(following + ~beyond)]
        with m.If(self.restart):
            m.d.sync += [found.eq(0), following.eq(self.start)]
        wiring.connect(m, decoder.o, wiring.flipped(self.o))
        if config.context:
            m.d.comb += [decoder.position.eq(self.position), decoder.known.eq(self.known)]
        # An instruction is decoded, the one behind it is read, and neither is wanted.
        m.d.comb += self.active.eq(~(found & self.o.valid & ~self.o.ready)
                                   | self.write | self.restart)
        return m
