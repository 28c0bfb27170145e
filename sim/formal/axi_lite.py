"""What is proved of the AXI4-Lite subordinate: it answers what it was asked, and never hangs.

Its manager and its registers do anything in any cycle, even what the bus does not permit.
"""
# Ref: Arm Limited, "AMBA AXI Protocol Specification", IHI 0022, A3.2.1 (handshake), A3.3.1
#      (dependencies)

from amaranth import *
from amaranth.asserts import AnySeq
from amaranth.hdl import Assert

from hw.link.axi_lite import AxiLiteSubordinate

__all__ = ["lite_reads", "lite_writes"]

#: Cycles from an address on AR to its answer.
_READ_CYCLES = 3


def _build(m: Module):
    """Build the subordinate with a free manager and free registers."""
    m.submodules.unit = unit = AxiLiteSubordinate(address_width=3)
    bus = unit.bus
    m.d.comb += [signal.eq(AnySeq(len(signal))) for signal in (
        bus.awaddr, bus.awvalid, bus.wdata, bus.wstrb, bus.wvalid, bus.bready, bus.araddr,
        bus.arvalid, bus.rready, unit.write.response, unit.read.data, unit.read.response)]
    return unit


def lite_writes(m: Module) -> None:
    """Check that each address goes with its data, is written once, and is answered so."""
    unit = _build(m)
    bus, write = unit.bus, unit.write
    address, data = Signal(3), Signal(36)
    addresses, filled, answers, response = Signal(2), Signal(2), Signal(2), Signal(2)
    aw, w, b = (bus.awvalid & bus.awready, bus.wvalid & bus.wready, bus.bvalid & bus.bready)
    with m.If(aw):
        m.d.sync += address.eq(bus.awaddr)
    with m.If(w):
        m.d.sync += data.eq(Cat(bus.wdata, bus.wstrb))
    with m.If(write.valid):
        m.d.sync += response.eq(write.response)
    m.d.sync += [addresses.eq(addresses + aw - write.valid), filled.eq(filled + w - write.valid),
                 answers.eq(answers + write.valid - b)]
    waits = Signal()
    m.d.sync += waits.eq(bus.bvalid & ~bus.bready)
    m.d.comb += [
        Assert((addresses <= 1) & (filled <= 1) & (answers <= 1), "one write at a time"),
        Assert(~write.valid | ((addresses == 1) & (filled == 1)), "a write has both its parts"),
        Assert(~write.valid | ((write.address == address)
                               & (Cat(write.data, write.strobe) == data)),
               "what is written is what was asked for"),
        Assert(bus.bvalid == (answers == 1), "a write, and nothing else, is answered"),
        Assert(~bus.bvalid | (bus.bresp == response), "the answer is that of the register"),
        Assert(~waits | bus.bvalid, "what is offered stays offered"),
        Assert(~((addresses == 1) & (filled == 1) & ~bus.bvalid) | write.valid,
               "a write waits for nothing but the answer before"),
    ]


def lite_reads(m: Module) -> None:
    """Check that each read is answered within three cycles, by what the register had."""
    unit = _build(m)
    bus, read = unit.bus, unit.read
    address, asked, looked = Signal(3), Signal(2), Signal()
    answer, waited = Signal(34), Signal(range(_READ_CYCLES + 2))
    held, waits = Signal(34), Signal()
    ar, r = bus.arvalid & bus.arready, bus.rvalid & bus.rready
    with m.If(ar):
        m.d.sync += address.eq(bus.araddr)
    m.d.sync += [asked.eq(asked + ar - r), looked.eq(read.valid),
                 waits.eq(bus.rvalid & ~bus.rready), held.eq(Cat(bus.rdata, bus.rresp)),
                 waited.eq(Mux((asked == 1) & ~bus.rvalid & (waited <= _READ_CYCLES),
                               waited + 1, 0))]
    with m.If(looked):
        m.d.sync += answer.eq(Cat(read.data, read.response))
    m.d.comb += [
        Assert(asked <= 1, "one read at a time"),
        Assert(~bus.rvalid | (asked == 1), "nothing is answered that was not asked for"),
        Assert(~(read.valid | looked) | (read.address == address),
               "what is read is what was asked for"),
        Assert(~bus.rvalid | (Cat(bus.rdata, bus.rresp) == answer),
               "the answer is that of the register"),
        Assert(~waits | (bus.rvalid & (Cat(bus.rdata, bus.rresp) == held)),
               "what is offered stays offered"),
        Assert(waited < _READ_CYCLES, "a read is answered"),
    ]
