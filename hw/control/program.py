"""The program: its memory, and readers that decode it ahead of what walks through it."""

from amaranth import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from hw.config import AcceleratorConfig
from hw.control.decode import Decoder, decoded_layout, position_members
from hw.isa import INSTRUCTION_BYTES

__all__ = ["ProgramMemory", "ProgramReader", "program_layout", "program_port"]


def program_layout(config: AcceleratorConfig) -> data.StructLayout:
    """Layout of an instruction on its way into the program."""
    return data.StructLayout({"index": exact_log2(config.program_depth),
                              "instruction": 8 * INSTRUCTION_BYTES})


def program_port(config: AcceleratorConfig) -> wiring.Signature:
    """Return the port through which the program is read, a cycle behind the address."""
    return wiring.Signature({"address": Out(exact_log2(config.program_depth)),
                             "instruction": In(8 * INSTRUCTION_BYTES)})


class ProgramMemory(wiring.Component):
    """The program, which execution and prefetch read, each through a port of its own.

    A write takes the address of the execution's port, so that both ports are those of one block
    RAM. What they read in the cycle of a write is undefined: nobody may use it.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    write : In(1)
        ``instruction`` is written.
    instruction : In(:func:`program_layout`)
    execution, prefetch : In(:func:`program_port`)
    """

    write: Signal
    instruction: data.View
    execution: wiring.PureInterface
    prefetch: wiring.PureInterface

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__({
            "write": In(1), "instruction": In(program_layout(config)),
            "execution": In(program_port(config)), "prefetch": In(program_port(config)),
        })

    def elaborate(self, platform):
        m = Module()
        # Asynchronous ports and registers, which Yosys makes synchronous ports of the block:
        # only so does no_rw_check keep it from adding logic for reads in the cycle of a write.
        m.submodules.words = words = memory.Memory(
            shape=8 * INSTRUCTION_BYTES, depth=self.config.program_depth, init=[],
            attrs={"no_rw_check": 1})
        write = words.write_port()
        address = Signal.like(self.execution.address)
        m.d.comb += [
            address.eq(Mux(self.write, self.instruction.index, self.execution.address)),
            write.addr.eq(address),
            write.data.eq(self.instruction.instruction),
            write.en.eq(self.write),
        ]
        for port, read_address in ((self.execution, address),
                                   (self.prefetch, self.prefetch.address)):
            read = words.read_port(domain="comb")
            read_data = Signal(8 * INSTRUCTION_BYTES, reset_less=True)
            m.d.comb += [read.addr.eq(read_address), port.instruction.eq(read_data)]
            m.d.sync += read_data.eq(read.data)
        return m


class ProgramReader(wiring.Component):
    """A program counter of its own: instruction after instruction, decoded one ahead.

    Behind the last instruction of the memory there is none, which decodes as fault OPCODE.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    memory : Out(:func:`program_port`)
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

    memory: wiring.PureInterface
    restart: Signal
    start: Signal
    o: stream.Interface
    active: Signal

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        self.decoder = Decoder(config)
        super().__init__({
            "memory": Out(program_port(config)),
            "restart": In(1), "start": In(exact_log2(config.program_depth)),
            "o": Out(stream.Signature(decoded_layout(config))),
            "active": Out(1),
        } | position_members(config))

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.decoder = decoder = ResetInserter(self.restart)(self.decoder)
        following = Signal(bits_for(config.program_depth))
        found = Signal()                        # the memory delivers an instruction
        # Opcode 0 is none.
        beyond = following == config.program_depth
        m.d.comb += [
            self.memory.address.eq(following),
            decoder.i.valid.eq(found),
            decoder.i.p.instruction.eq(Mux(beyond, 0, self.memory.instruction)),
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
        m.d.comb += self.active.eq(~(found & self.o.valid & ~self.o.ready) | self.restart)
        return m
