"""What is proved of the AXI4 manager, against the bus's rules and what its docstring promises.

The page has 4 bytes and a written burst at most 2 transfers of a byte, so that all lengths and
places occur. Nothing inside the manager is looked at.
"""
# Ref: Arm Limited, "AMBA AXI Protocol Specification", IHI 0022, A3.2.1 (handshake), A3.3
#      (dependencies), A3.4.1 (bursts)

from types import SimpleNamespace
from typing import Any
from unittest import mock

from amaranth import *
from amaranth.asserts import AnySeq
from amaranth.hdl import Assert, Assume, Fragment
from amaranth.lib import fifo

import hw.memory.axi4
from hw.common.stream import accepted
from sim.formal.monitors import Order, accept, assert_stable, assert_within, offer

__all__ = ["axi4_rules", "read_after_write", "reads", "write_lengths", "write_progress",
           "writes"]

_PAGE = 4
_WRITE_TRANSFERS = 2
_LONGEST_READ = 3
#: Places of what is owed, by their names in the manager's module: as few as show them full.
_OWED = {"_UNANSWERED": 3, "_READS_OWED": 2, "_WRITES_OWED": 2}


def _build(m: Module, *, restarts: bool) -> SimpleNamespace:
    """Build the manager, a user that keeps the port's rules, and a fair subordinate."""
    module = hw.memory.axi4
    owed: dict[str, Any] = {name: value for name, value in _OWED.items() if hasattr(module, name)}
    owed |= {"PAGE_BYTES": _PAGE, "WRITE_TRANSFERS": _WRITE_TRANSFERS}
    with mock.patch.multiple(module, **owed):
        unit = module.Axi4Master(address_width=3, port_bytes=1)
        m.submodules.unit = Fragment.get(unit, "formal")
    port, bus = unit.port, unit.bus
    if hasattr(unit, "restart"):
        m.d.comb += unit.restart.eq(AnySeq(1) if restarts else 0)

    def channel(name, *members):
        """Return a channel as a stream."""
        value = Signal(sum(len(getattr(bus, name + member)) for member in members))
        m.d.comb += value.eq(Cat(getattr(bus, name + member) for member in members))
        return SimpleNamespace(valid=getattr(bus, f"{name}valid"), p=_Flat(value),
                               ready=getattr(bus, f"{name}ready"))

    request = ("addr", "len", "size", "burst", "cache", "prot")
    channels = SimpleNamespace(
        aw=channel("aw", *request), ar=channel("ar", *request),
        w=channel("w", "data", "strb", "last"))
    # The subordinate has two reads under way. It owes a transfer on R for each that they ask for,
    # and an answer on B for each burst whose address and last transfer it has.
    m.submodules.asked = asked = fifo.SyncFIFO(width=2, depth=2)
    for stream in (channels.aw, channels.w):
        accept(m, stream, every=2)
    ar_ready = Signal()
    accept(m, SimpleNamespace(valid=bus.arvalid & asked.w_rdy, ready=ar_ready), every=2)
    m.d.comb += [
        bus.arready.eq(ar_ready & asked.w_rdy),
        asked.w_en.eq(accepted(channels.ar)),
        asked.w_data.eq(bus.arlen),
    ]

    # Writes of a burst follow one another in memory; what breaks off ends with a restart only.
    inside, following = Signal(), Signal.like(port.writes.p.address)
    offer(m, port.writes, legal=lambda p: ~inside | (p.address == following))
    with m.If(accepted(port.writes)):
        m.d.sync += [inside.eq(~port.writes.p.last), following.eq(port.writes.p.address + 1)]
    offer(m, port.reads, legal=lambda p: (p.transfers != 0) & (p.transfers <= _LONGEST_READ))
    accept(m, port.data, every=2)

    come, aw_taken, w_taken = Signal(2), Signal(3), Signal(3)
    b_owed = Signal(3)
    answered = bus.bvalid & bus.bready
    m.d.comb += b_owed.eq(Mux(aw_taken < w_taken, aw_taken, w_taken))
    r_waits, b_waits, rdata = Signal(), Signal(), Signal(8)
    m.d.comb += [
        bus.rvalid.eq(asked.r_rdy & (r_waits | AnySeq(1))),
        bus.rdata.eq(Mux(r_waits, rdata, AnySeq(8))),
        bus.rlast.eq(come == asked.r_data),
        asked.r_en.eq(bus.rvalid & bus.rready & bus.rlast),
        bus.bvalid.eq((b_owed != 0) & (b_waits | AnySeq(1))),
    ]
    r_taken = bus.rvalid & bus.rready
    m.d.sync += [
        r_waits.eq(bus.rvalid & ~bus.rready), rdata.eq(bus.rdata),
        b_waits.eq(bus.bvalid & ~bus.bready),
        come.eq(Mux(asked.r_en, 0, come + r_taken)),
        aw_taken.eq(aw_taken + accepted(channels.aw) - answered),
        w_taken.eq(w_taken + (accepted(channels.w) & bus.wlast) - answered),
    ]

    def offered(stream):
        """Return whether what is offered was not yet in the cycle before."""
        before = Signal()
        m.d.sync += before.eq(stream.valid & ~stream.ready)
        return stream.valid & ~before

    return SimpleNamespace(unit=unit, port=port, bus=bus, asked=asked, b_owed=b_owed,
                           r_taken=r_taken, answered=answered, new_aw=offered(channels.aw),
                           new_ar=offered(channels.ar), **vars(channels))


class _Flat:
    """A payload without fields."""

    def __init__(self, value: Value):
        self._value = value

    def as_value(self) -> Value:
        return self._value


def axi4_rules(m: Module) -> None:
    """Check that what is offered stays, and that bursts are legal; in restarts too."""
    at = _build(m, restarts=True)
    bus = at.bus
    for stream in (at.aw, at.ar, at.w):
        held, waits = Signal(len(stream.p.as_value())), Signal()
        m.d.sync += [held.eq(stream.p.as_value()), waits.eq(stream.valid & ~stream.ready)]
        m.d.comb += [Assert(~waits | stream.valid, "what is offered stays offered"),
                     Assert(~waits | (held == stream.p.as_value()),
                            "what is offered stays the same")]
    for name in ("aw", "ar"):
        valid, address, length = (getattr(bus, name + member)
                                  for member in ("valid", "addr", "len"))
        m.d.comb += [
            Assert(~valid | (address % _PAGE + length + 1 <= _PAGE), "a burst stays in its page"),
            Assert(getattr(bus, f"{name}size") == 0, "a transfer has the bus's width"),
            Assert(getattr(bus, f"{name}burst") == 1, "bursts are of type INCR"),
        ]
    m.d.comb += [
        Assert(~bus.awvalid | (bus.awlen < _WRITE_TRANSFERS)),
        Assert(bus.wstrb.all()),
        Assert(bus.bready, "an answer is taken at once"),
    ]


def reads(m: Module) -> None:
    """Bursts ask for each transfer of a read once and in order; data come back in order."""
    at = _build(m, restarts=False)
    port, bus = at.port, at.bus
    m.d.comb += Assume(~port.writes.valid)
    assert_stable(m, port.data)
    count, address = port.reads.p.transfers[:2], port.reads.p.address
    order = Order(m, given=Mux(accepted(port.reads), count, 0),
                  item=lambda k: (address + k)[:len(address)],
                  taken=Mux(accepted(at.ar), (bus.arlen + 1)[:2], 0),
                  found=lambda k: (bus.araddr + k)[:len(address)], capacity=3 * _LONGEST_READ)
    m.d.comb += Assert(~bus.arvalid | (bus.arlen < _LONGEST_READ))
    Order(m, given=at.r_taken, item=lambda _: bus.rdata, taken=accepted(port.data),
          found=lambda _: port.data.p.data, capacity=3)
    assert_within(m, (order.inside != 0) & ~at.asked.r_rdy, accepted(at.ar), 6)


def writes(m: Module) -> None:
    """Bursts write each transfer once and in order, at its own address."""
    at = _build(m, restarts=False)
    port, bus = at.port, at.bus
    m.d.comb += Assume(~port.reads.valid)
    given = accepted(port.writes)
    # Data are the lowest bits of the address, so that one order is that of both.
    m.d.comb += Assume(~port.writes.valid | (port.writes.p.data == port.writes.p.address[:2]))
    Order(m, given=given, item=lambda _: port.writes.p.data[:2], taken=accepted(at.w),
          found=lambda _: bus.wdata[:2], capacity=2 * _WRITE_TRANSFERS + 2)
    Order(m, given=given, item=lambda _: port.writes.p.address,
          taken=Mux(accepted(at.aw), (bus.awlen + 1)[:2], 0),
          found=lambda k: (bus.awaddr + k)[:len(bus.awaddr)], capacity=2 * _WRITE_TRANSFERS)


def write_lengths(m: Module) -> None:
    """Check that ``wlast`` is where the length says, and that no data come before their address."""
    at = _build(m, restarts=True)
    Order(m, given=Mux(at.new_aw, (at.bus.awlen + 1)[:2], 0), item=lambda k: k == at.bus.awlen,
          taken=accepted(at.w), found=lambda _: at.bus.wlast, through=True,
          capacity=2 * _WRITE_TRANSFERS + 2)


def read_after_write(m: Module) -> None:
    """No read is offered while a written burst is unanswered or begun."""
    at = _build(m, restarts=False)
    port, bus = at.port, at.bus
    # Transfers of the port that no offered burst has yet, and bursts without an answer.
    begun, unanswered = Signal(4), Signal(4)
    begun_now, unanswered_now = Signal(4), Signal(4)
    m.d.comb += [
        begun_now.eq(begun - Mux(at.new_aw, bus.awlen + 1, 0)),
        unanswered_now.eq(unanswered + at.new_aw),
        Assert(~at.new_aw | (begun > bus.awlen), "a burst has what was written"),
    ]
    before = Signal()
    m.d.sync += [
        begun.eq(begun_now + accepted(port.writes)),
        unanswered.eq(unanswered_now - at.answered),
        before.eq((begun_now != 0) | (unanswered_now != 0)),
    ]
    m.d.comb += Assert(~at.new_ar | ~before, "a read waits for the writes before it")


def write_progress(m: Module) -> None:
    """Check that what is written is taken, with a subordinate that answers."""
    at = _build(m, restarts=False)
    late = Signal(2)
    m.d.sync += late.eq(Mux((at.b_owed != 0) & ~at.bus.bvalid, late + 1, 0))
    m.d.comb += Assume(late < 3)
    assert_within(m, at.port.writes.valid, at.port.writes.ready, 12)
