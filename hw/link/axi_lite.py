# Ref: Arm Limited, "AMBA AXI Protocol Specification", IHI 0022, chapters A3 and B1

"""AXI4-Lite: the subordinate's side of the bus, and registers behind it that always answer."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.check import positive_int

__all__ = ["DATA_BYTES", "DECERR", "OKAY", "SLVERR", "AxiLiteSubordinate", "axi_lite_signature",
           "register_read_signature", "register_write_signature"]

#: Bytes of a register.
DATA_BYTES = 4

#: Responses of the bus.
OKAY, SLVERR, DECERR = 0, 2, 3


def axi_lite_signature(*, address_width: int) -> wiring.Signature:
    """Build the manager's side of the bus with 32 bits of data, with the bus's own names."""
    members = {"awaddr": Out(address_width), "awprot": Out(3), "wdata": Out(8 * DATA_BYTES),
               "wstrb": Out(DATA_BYTES), "bresp": In(2), "araddr": Out(address_width),
               "arprot": Out(3), "rdata": In(8 * DATA_BYTES), "rresp": In(2)}
    for channel in ("aw", "w", "ar"):
        members |= {f"{channel}valid": Out(1), f"{channel}ready": In(1)}
    for channel in ("b", "r"):
        members |= {f"{channel}valid": In(1), f"{channel}ready": Out(1)}
    return wiring.Signature(members)


def register_write_signature(address_width: int) -> wiring.Signature:
    """Build the side that writes registers: for one cycle, in which ``response`` is taken."""
    return wiring.Signature({"valid": Out(1), "address": Out(address_width),
                             "data": Out(8 * DATA_BYTES), "strobe": Out(DATA_BYTES),
                             "response": In(2)})


def register_read_signature(address_width: int) -> wiring.Signature:
    """Build the side that reads registers: ``valid`` for one cycle.

    ``data`` and ``response`` are taken in the cycle after that, in which ``address`` is still the
    same: there is time for a memory.
    """
    return wiring.Signature({"valid": Out(1), "address": Out(address_width),
                             "data": In(8 * DATA_BYTES), "response": In(2)})


class AxiLiteSubordinate(wiring.Component):
    """AXI4-Lite to registers, each access by itself.

    Registers have no way to make the bus wait, so it never hangs: a write is answered in the third
    cycle after the later one of its address and its data, a read in the third one after its
    address, if the answer before has been taken. There is one access of either direction at a time.

    **Rules of the bus** (IHI 0022, A3.2 and A3.3): AW and W are accepted in any order and at any
    distance; B and R stay offered and the same until they are accepted; all outputs depend on
    registers only; nothing is answered that was not asked for.

    Parameters
    ----------
    address_width : int
        Bits of an address.

    Members
    -------
    bus : In of :func:`axi_lite_signature`
        ``awprot`` and ``arprot`` are not looked at.
    write : Out of :func:`register_write_signature`
    read : Out of :func:`register_read_signature`

    Raises
    ------
    ValueError
        If ``address_width`` is not a positive integer.
    """

    bus: wiring.PureInterface
    write: wiring.PureInterface
    read: wiring.PureInterface

    def __init__(self, *, address_width: int):
        positive_int("Address width", address_width)
        super().__init__({
            "bus": In(axi_lite_signature(address_width=address_width)),
            "write": Out(register_write_signature(address_width)),
            "read": Out(register_read_signature(address_width)),
        })

    def elaborate(self, platform):
        m = Module()
        bus, write, read = self.bus, self.write, self.read

        addressed, filled = Signal(), Signal()      # address and data of a write are here
        m.d.comb += [
            bus.awready.eq(~addressed),
            bus.wready.eq(~filled),
            write.valid.eq(addressed & filled & ~bus.bvalid),
        ]
        with m.If(bus.awvalid & bus.awready):
            m.d.sync += [addressed.eq(1), write.address.eq(bus.awaddr)]
        with m.If(bus.wvalid & bus.wready):
            m.d.sync += [filled.eq(1), write.data.eq(bus.wdata), write.strobe.eq(bus.wstrb)]
        with m.If(bus.bready):
            m.d.sync += bus.bvalid.eq(0)
        with m.If(write.valid):
            m.d.sync += [addressed.eq(0), filled.eq(0), bus.bvalid.eq(1),
                         bus.bresp.eq(write.response)]

        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += bus.arready.eq(1)
                with m.If(bus.arvalid):
                    m.d.sync += read.address.eq(bus.araddr)
                    m.next = "READ"
            with m.State("READ"):
                m.d.comb += read.valid.eq(1)
                m.next = "TAKE"
            with m.State("TAKE"):
                m.d.sync += [bus.rvalid.eq(1), bus.rdata.eq(read.data),
                             bus.rresp.eq(read.response)]
                m.next = "ANSWER"
            with m.State("ANSWER"):
                with m.If(bus.rready):
                    m.d.sync += bus.rvalid.eq(0)
                    m.next = "IDLE"
        return m
