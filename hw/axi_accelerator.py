"""The accelerator for designs of others: AXI4 to the memory, AXI4-Lite to its registers."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.accelerator import Accelerator
from hw.common.stream import connect_stream
from hw.config import AcceleratorConfig
from hw.link.answers import Answers
from hw.link.axi_lite import axi_lite_signature
from hw.link.control import ControlRegisters
from hw.link.registers import ADDRESS_BITS, PAGE_BITS
from hw.memory.axi4 import AXI4_IDENTIFIERS, Axi4Master, axi4_signature

__all__ = ["BUS_ADDRESS_BITS", "AxiAccelerator"]

#: Bits of an address of the memory's bus.
BUS_ADDRESS_BITS = 64

#: Bytes of a transfer at most: what interconnects of others commonly take.
_MOST_PORT_BYTES = 64

#: A burst of a read is owed from its address on: 32 that the manager keeps, in 7 bits.
_OWED_BITS = 7


class AxiAccelerator(wiring.Component):
    """An accelerator with its memory on AXI4 and its registers on AXI4-Lite.

    hw/link/registers.py has the registers, :class:`hw.memory.axi4.Axi4Master` what ``m_axi`` keeps
    to. The reset of the clock domain is that of both buses. The reset of CONTROL is one of the
    accelerator alone: ``m_axi`` takes part in all that it has begun, and STATUS has ``resetting``
    until it owes nothing.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    s_axi : In of :func:`hw.link.axi_lite.axi_lite_signature`
    m_axi : Out of :func:`hw.memory.axi4.axi4_signature`, with identifiers that are 0
        Addresses have 64 bits: the accelerator's own and the base.
    interrupt : Out(1)
        Active while it is high.

    Raises
    ------
    ValueError
        As accelerator, manager and registers do, or if a transfer has more than 64 bytes.
    """

    s_axi: wiring.PureInterface
    m_axi: wiring.PureInterface
    interrupt: Signal

    def __init__(self, config: AcceleratorConfig):
        if config.port_bytes > _MOST_PORT_BYTES:
            raise ValueError(f"Port byte count must be at most {_MOST_PORT_BYTES} with registers, "
                             f"not {config.port_bytes}")
        self.config = config
        self._accelerator = Accelerator(config)
        self._manager = Axi4Master(address_width=config.address_width,
                                   port_bytes=config.port_bytes)
        self._control = ControlRegisters(config)
        bus = axi4_signature(address_width=BUS_ADDRESS_BITS, data_width=8 * config.port_bytes)
        super().__init__({
            "s_axi": In(axi_lite_signature(address_width=ADDRESS_BITS)),
            "m_axi": Out(wiring.Signature({**bus.members, **AXI4_IDENTIFIERS})),
            "interrupt": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        accelerator, manager, control = self._accelerator, self._manager, self._control
        answers = Answers(self.config)
        reset = ResetInserter(control.reset)
        m.submodules.accelerator = reset(accelerator)
        m.submodules.answers = reset(answers)
        m.submodules.axi4 = manager
        m.submodules.control = control
        wiring.connect(m, accelerator.memory, manager.port)
        wiring.connect(m, wiring.flipped(self.s_axi), control.bus)
        # Faults have registers of their own.
        for producer, consumer in ((control.o_program, accelerator.i_program),
                                   (control.o_tokens, accelerator.i_tokens),
                                   (accelerator.o_top_k, answers.i_top_k),
                                   (accelerator.o_scale, answers.i_scale),
                                   (answers.o, control.i_answers),
                                   (accelerator.o_faults, control.i_faults)):
            connect_stream(m, producer, consumer)
        m.d.comb += [
            manager.restart.eq(control.reset),
            control.draining.eq(manager.draining),
            control.idle.eq(accelerator.i_program.ready),
            self.interrupt.eq(control.interrupt),
        ]

        inner, outer = manager.bus, self.m_axi
        for name, member in inner.signature.members.items():
            ends = getattr(outer, name), getattr(inner, name)
            if name in ("awaddr", "araddr"):
                # The base is a multiple of a page, over which no burst goes.
                page = ends[1][PAGE_BITS:] + control.base[PAGE_BITS:]
                m.d.comb += ends[0].eq(Cat(ends[1][:PAGE_BITS],
                                           page[:BUS_ADDRESS_BITS - PAGE_BITS]))
            else:
                m.d.comb += ends[0].eq(ends[1]) if member.flow is Out else ends[1].eq(ends[0])

        owed = Signal(_OWED_BITS)               # bursts of which R has not had the last transfer
        taken = inner.rvalid & inner.rready
        m.d.sync += owed.eq(owed + (inner.arvalid & inner.arready) - (taken & inner.rlast))
        m.d.comb += [
            control.reads.eq(taken),
            control.writes.eq(inner.wvalid & inner.wready),
            control.waits.eq((owed != 0) & ~inner.rvalid),
        ]
        return m
