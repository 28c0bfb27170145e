"""What is proved of units with streams: each function builds a unit, its neighbours and monitors.

Units are as small as they can be: what a proof says of words of two bits it says of wider ones,
since no unit here looks at what it passes on. Where it does, the proof says so.
"""

from typing import Any
from unittest import mock

from amaranth import *
from amaranth.asserts import AnySeq
from amaranth.hdl import Assert, Assume, Fragment
from amaranth.lib import data, wiring

from hw.arith.bf16_add import LATENCY as ADDER_LATENCY
from hw.arith.bf16_add import Bf16Adder
from hw.arith.dequantize import LATENCY as SCALE_LATENCY
from hw.arith.dequantize import ScaleUnit
from hw.arith.exact import ExactMultiplier
from hw.arith.lmul import LMul
from hw.arith.lmul_dot import LMulDot
from hw.common.stream import StreamBuffer, StreamQueue, accepted
from hw.config import AcceleratorConfig, EngineConfig
from hw.engine.engine import TernaryEngine
from hw.engine.gearbox import Gearbox
from hw.engine.result_queue import ResultQueue
from hw.formats.minifloat import bf16, e4m3, e5m2
from hw.link.answers import Answers
from hw.link.frames import FrameReceiver, FrameTransmitter
from hw.link.uart import UartReceiver, UartTransmitter
from hw.memory.arbiter import SharedPort
from hw.memory.block_ram_memory import BlockRamMemory
from hw.memory.read_engine import Kind, ReadEngine
from hw.output.top_k import TopK
from sim.formal.monitors import (
    Order,
    accept,
    assert_delayed,
    assert_stable,
    assert_within,
    offer,
)

_PAIR = data.StructLayout({"data": 2})


def _with_constants(component: wiring.Component, **constants: Any) -> Fragment:
    """Elaborate ``component`` with other constants of its module than those of the hardware."""
    with mock.patch.multiple(type(component).__module__, **constants):
        return Fragment.get(component, "formal")


def _pass_on(m: Module, i, o, *, capacity: int, every: int, within: int | None = None,
             out_within: int | None = None, **options) -> Order:
    """Say of a unit that what comes in at ``i`` goes out at ``o``."""
    offer(m, i, **options)
    accept(m, o, every=every)
    assert_stable(m, o)
    order = Order(m, given=accepted(i), item=lambda _: i.p.as_value(), taken=accepted(o),
                  found=lambda _: o.p.as_value(), capacity=capacity)
    if within:
        assert_within(m, i.valid, i.ready, within)
    if out_within:
        assert_within(m, order.inside != 0, accepted(o), out_within)
    return order


def stream_buffer(m: Module) -> None:
    """Check a place between two streams."""
    m.submodules.unit = unit = StreamBuffer(_PAIR)
    _pass_on(m, unit.i, unit.o, capacity=1, every=3, within=4, out_within=3)


def stream_queue(m: Module) -> None:
    """Check a queue of three."""
    m.submodules.unit = unit = StreamQueue(_PAIR, depth=3)
    _pass_on(m, unit.i, unit.o, capacity=3, every=3, within=5, out_within=5)


def answers(m: Module) -> None:
    """Three streams become one; an accelerator delivers from one at a time."""
    unit = Answers(AcceleratorConfig(engine=EngineConfig(accumulator_width=24)))
    m.submodules.unit = unit
    sources = (unit.i_top_k, unit.i_scale, unit.i_faults)
    for source in sources:
        offer(m, source)
    valid = [source.valid for source in sources]
    m.d.comb += Assume(sum(valid[1:], valid[0]) <= 1)
    accept(m, unit.o, every=3)
    assert_stable(m, unit.o)
    for source in sources[:2]:
        assert_within(m, source.valid, source.ready, 3)
        m.d.comb += Assert(accepted(source) == (accepted(unit.o) & source.valid))
    # A fault of the memory is three answers, the last of which takes it.
    fault = unit.i_faults
    assert_within(m, fault.valid, fault.ready, 9)
    m.d.comb += Assert(accepted(fault) == (accepted(unit.o) & fault.valid & unit.o.p.last))
    m.d.comb += Assert(~unit.o.valid | Cat(valid).any())


def _gearbox(m: Module, *, port_bytes: int, lanes: int, order: bool) -> None:
    config = EngineConfig(lanes=lanes, result_lanes=1, port_bytes=port_bytes, packing="5in8",
                          max_planes=1, accumulator_depth=2, max_batch=1)
    unit = Gearbox(config)
    m.submodules.unit = _with_constants(unit, GEARBOX_DEPTH=4)
    word = config.word_bytes
    # Bytes of the word under way; the padding behind a product is less than a transfer.
    filled, total = Signal(range(word)), Signal(range(word + port_bytes))
    count = Signal(range(port_bytes + 1))
    whole = Array(k % word for k in range(word + port_bytes))
    m.d.comb += total.eq(filled + port_bytes)

    def legal(payload):
        if port_bytes > word:
            return ~payload.last | (whole[total - payload.spare] == 0)
        return ~payload.last | (whole[total] < port_bytes)

    offer(m, unit.i, legal=legal)
    padding = unit.i.p.spare if port_bytes > word else whole[total]
    m.d.comb += count.eq(Mux(accepted(unit.i), port_bytes - Mux(unit.i.p.last, padding, 0), 0))
    with m.If(accepted(unit.i)):
        m.d.sync += filled.eq(Mux(unit.i.p.last, 0, whole[total]))
    accept(m, unit.o, every=2)
    assert_stable(m, unit.o)
    if order:
        Order(m, given=count, item=lambda k: unit.i.p.data.word_select(k, 8),
              taken=Mux(accepted(unit.o), word, 0),
              found=lambda k: unit.o.p.codes.word_select(k[:2], 8),
              capacity=10 * max(word, port_bytes))
    else:
        assert_within(m, unit.i.valid, unit.i.ready, 12)


def gearbox_collect(m: Module) -> None:
    """Words of three bytes from transfers of two."""
    _gearbox(m, port_bytes=2, lanes=15, order=True)


def gearbox_collect_progress(m: Module) -> None:
    """Words of three bytes from transfers of two: none waits for ever."""
    _gearbox(m, port_bytes=2, lanes=15, order=False)


def gearbox_extract(m: Module) -> None:
    """Words of three bytes from transfers of four."""
    _gearbox(m, port_bytes=4, lanes=15, order=True)


def gearbox_extract_progress(m: Module) -> None:
    """Words of three bytes from transfers of four: none waits for ever."""
    _gearbox(m, port_bytes=4, lanes=15, order=False)


def _result_queue(m: Module, *, order: bool) -> None:
    config = EngineConfig(lanes=2, result_lanes=1, activation_width=1, accumulator_width=2,
                          max_planes=1, accumulator_depth=2, max_batch=1)
    unit = ResultQueue(config)
    m.submodules.unit = _with_constants(unit, RESULT_DEPTH=8, RESULT_SPARE=4)
    latency = 2
    under_way = Signal(latency)
    values, last = AnySeq(4), AnySeq(1)
    m.d.sync += under_way.eq(Cat(unit.reserve, under_way))
    m.d.comb += [
        unit.reserve.eq(AnySeq(1) & unit.room),
        unit.valid.eq(under_way[-1]),
        unit.banks.eq(values),
        unit.last.eq(last),
        Assume((values[:2] == 0) | (values[2:] == 0)),
        Assume(unit.valid | (values == 0)),
    ]
    accept(m, unit.o_results, every=3)
    assert_stable(m, unit.o_results)
    if order:
        inside = Order(m, given=unit.valid, item=lambda _: Cat(values[:2] | values[2:], last),
                       taken=accepted(unit.o_results),
                       found=lambda _: unit.o_results.p.as_value(), capacity=8 + 2).inside
        assert_within(m, inside != 0, accepted(unit.o_results), 8)
    else:
        assert_within(m, C(1), unit.room, 24)


def result_queue(m: Module) -> None:
    """Two banks, of which one is zero; a reserved place is filled two cycles later."""
    _result_queue(m, order=True)


def result_queue_progress(m: Module) -> None:
    """Check that a queue that is full has room again."""
    _result_queue(m, order=False)


def _pipeline(m: Module, unit, *, item: Value, found: Value, latency: int, legal=None) -> None:
    m.submodules.unit = unit
    offer(m, unit.i, legal=legal)
    accept(m, unit.o, every=2)
    assert_stable(m, unit.o)
    assert_delayed(m, unit.i, unit.o, item=item, found=found, latency=latency)
    assert_within(m, unit.i.valid, unit.i.ready, 2)


def lmul_e4m3(m: Module) -> None:
    """Check the product of every pair: a sum of magnitudes, and the table of docs/numerics.md."""
    unit, fmt = LMul(e4m3), e4m3
    width = fmt.magnitude_width
    x, y = unit.i.p.x[:width], unit.i.p.y[:width]
    total = Signal(signed(width + 3))
    magnitude = Signal(width)
    m.d.comb += total.eq(x + y - fmt.constant())
    with m.If(x.all() | y.all()):
        m.d.comb += magnitude.eq(fmt.nan)
    with m.Elif((x < fmt.smallest_normal) | (y < fmt.smallest_normal)
                | (total < fmt.smallest_normal)):
        m.d.comb += magnitude.eq(0)
    with m.Else():
        m.d.comb += magnitude.eq(Mux(total > fmt.largest_finite, fmt.largest_finite, total))
    _pipeline(m, unit, item=Cat(magnitude, unit.i.p.x[-1] ^ unit.i.p.y[-1]),
              found=unit.o.p.product, latency=unit.latency)


def exact_multiplier(m: Module) -> None:
    """Products of one and numbers: what comes in goes out."""
    unit = ExactMultiplier(e5m2)
    _pipeline(m, unit, item=unit.i.p.x, found=unit.o.p.product, latency=unit.latency,
              legal=lambda p: (p.y == e5m2.one) & (p.x[:7] >= e5m2.smallest_normal)
              & (p.x[:7] <= e5m2.infinity))


def bf16_adder(m: Module) -> None:
    """Check sums of zero and numbers: what comes in goes out."""
    unit = Bf16Adder()
    _pipeline(m, unit, item=unit.i.p.x, found=unit.o.p.sum, latency=ADDER_LATENCY,
              legal=lambda p: (p.y == 0) & (p.x[7:15] != 0) & ~p.x[7:15].all())


def scale_unit(m: Module) -> None:
    """Check that the mark of the last transfer goes through beside the numbers."""
    config = AcceleratorConfig(engine=EngineConfig(lanes=1, result_lanes=1, port_bytes=1),
                               vector_depth=8, list_depth=4, product_depth=1)
    unit = ScaleUnit(config)
    m.d.comb += [unit.factor.eq(bf16.one), unit.exponent.eq(0)]
    _pipeline(m, unit, item=unit.i.p.last, found=unit.o.p.last, latency=SCALE_LATENCY,
              legal=lambda p: p.values.as_value()[8:] == 0)


def lmul_dot(m: Module) -> None:
    """Check a sum for each dot product, here of one product of plus or minus one: its sign."""
    unit = LMulDot(e4m3, max_length=2)
    _pipeline(m, unit, item=unit.i.p.x[-1], found=unit.o.p.sum[-1], latency=unit.latency,
              legal=lambda p: (p.x[:7] == e4m3.one) & (p.y == e4m3.one) & p.last)


def block_ram_memory(m: Module) -> None:
    """Each row holds its own number once it is written: that is what each transfer of a read is."""
    depth = 4
    unit = BlockRamMemory(address_width=2, port_bytes=1, depth=depth, target="generic")
    m.submodules.unit = unit
    reads, answers_, writes = unit.port.reads, unit.port.data, unit.port.writes
    written = Signal(depth, reset_less=True)
    row = Signal(2)
    offer(m, writes, legal=lambda p: p.data == p.address)
    offer(m, reads, legal=lambda p: (p.transfers != 0) & (p.transfers <= depth) & written.all())
    with m.If(accepted(writes) & ~ResetSignal()):
        m.d.sync += written.bit_select(writes.p.address, 1).eq(1)
    accept(m, answers_, every=2)
    assert_stable(m, answers_)
    m.d.comb += row.eq(reads.p.address)
    order = Order(m, given=Mux(accepted(reads), reads.p.transfers[:3], 0),
                  item=lambda k: (row + k)[:2], taken=accepted(answers_),
                  found=lambda _: answers_.p.data[:2], capacity=2 * depth + 2)
    m.d.comb += Assert(~accepted(answers_) | (answers_.p.data[2:] == 0))
    assert_within(m, order.inside != 0, accepted(answers_), 4)
    assert_within(m, reads.valid, reads.ready, 2 * depth + 4)


def shared_port(m: Module) -> None:
    """Each transfer goes to who asked for it, and bursts of writes stay whole."""
    unit = SharedPort(address_width=2, port_bytes=1, reads_ahead=4)
    m.submodules.unit = unit
    accelerator, memory, host = unit.accelerator, unit.memory, unit.o_data
    # A memory that answers as many transfers as were asked for, after any time.
    owed, awaited, host_owed = Signal(5), Signal(5), Signal()
    offer(m, accelerator.reads, legal=lambda p: (p.transfers != 0) & (p.transfers + awaited <= 4))
    offer(m, accelerator.writes)
    offer(m, unit.i_writes)
    offer(m, unit.i_reads)
    accept(m, memory.reads, every=2)
    accept(m, memory.writes, every=2)
    accept(m, accelerator.data, every=2)
    accept(m, host, every=2)
    offer(m, memory.data, allowed=owed != 0, every=3)
    for stream in (memory.reads, memory.writes, host):
        assert_stable(m, stream)
    asked = Mux(accepted(memory.reads), memory.reads.p.transfers, 0)
    come = accepted(memory.data)
    from_accelerator, from_host = accepted(accelerator.reads), accepted(unit.i_reads)
    m.d.sync += [
        owed.eq(owed + asked - come),
        awaited.eq(awaited + Mux(from_accelerator, accelerator.reads.p.transfers, 0)
                   - accepted(accelerator.data)),
        host_owed.eq((host_owed | from_host) & ~(come & host_owed)),
    ]
    m.d.comb += [
        Assert(accepted(memory.reads) == (from_accelerator | from_host),
               "reads are what was asked for"),
        Assert(~(from_accelerator & from_host)),
        Assert(~from_accelerator | (memory.reads.p == accelerator.reads.p)),
        Assert(~from_host | ((memory.reads.p.address == unit.i_reads.p.address)
                             & (memory.reads.p.transfers == 1))),
        Assert(owed == awaited + host_owed),
        Assert(~host_owed | (awaited == 0), "one asks at a time"),
        Assert(accepted(accelerator.data) == (come & ~host_owed), "each gets its own"),
        Assert(~accepted(accelerator.data) | (accelerator.data.p == memory.data.p)),
    ]
    Order(m, given=come & host_owed, item=lambda _: memory.data.p.as_value(),
          taken=accepted(host), found=lambda _: host.p.as_value(), capacity=1)
    inside = Signal()                           # a burst of the accelerator
    writes, host_writes = accepted(accelerator.writes), accepted(unit.i_writes)
    with m.If(writes):
        m.d.sync += inside.eq(~accelerator.writes.p.last)
    m.d.comb += [
        Assert(accepted(memory.writes) == (writes | host_writes)),
        Assert(~(writes & host_writes)),
        Assert(~writes | (memory.writes.p == accelerator.writes.p)),
        Assert(~host_writes | ((memory.writes.p.address == unit.i_writes.p.address)
                               & (memory.writes.p.data == unit.i_writes.p.data)
                               & memory.writes.p.last & ~inside)),
    ]
    assert_within(m, accelerator.writes.valid, writes, 5)
    assert_within(m, unit.i_writes.valid & ~accelerator.writes.valid & ~inside, host_writes, 3)
    assert_within(m, accelerator.reads.valid, accelerator.reads.ready, 8)
    assert_within(m, unit.i_reads.valid & ~accelerator.reads.valid, from_host, 24)


def uart_line(m: Module) -> None:
    """From the transmitter over its line to the receiver, whose bytes are taken at once.

    Without a reset in between, which would cut a byte off on its way.
    """
    m.d.comb += Assume(~ResetSignal())
    divisor = 5
    m.submodules.transmitter = transmitter = UartTransmitter(divisor=divisor)
    m.submodules.receiver = receiver = UartReceiver(divisor=divisor)
    m.d.comb += receiver.rx.eq(transmitter.tx)
    offer(m, transmitter.i)
    accept(m, receiver.o, every=1)
    order = Order(m, given=accepted(transmitter.i), item=lambda _: transmitter.i.p.data,
                  taken=accepted(receiver.o), found=lambda _: receiver.o.p.data, capacity=2)
    m.d.comb += Assert(~receiver.error)
    assert_within(m, transmitter.i.valid, transmitter.i.ready, 10 * divisor + 1)
    assert_within(m, order.inside != 0, accepted(receiver.o), 10 * divisor + 8)


def uart_receiver(m: Module) -> None:
    """Anything on the line, and anybody behind it: a byte that came stays until it is taken."""
    m.submodules.unit = unit = UartReceiver(divisor=5)
    m.d.comb += unit.rx.eq(AnySeq(1))
    accept(m, unit.o)
    assert_stable(m, unit.o)


def frame_receiver(m: Module) -> None:
    """Any bytes at all, and anybody behind it."""
    m.submodules.unit = unit = FrameReceiver(content_bytes=3)
    offer(m, unit.i)
    accept(m, unit.o, every=2)
    assert_stable(m, unit.o)
    m.d.comb += Assert(unit.i.ready)


def frame_transmitter(m: Module) -> None:
    """Contents of up to three bytes: bytes stay, and the line is never waited for in vain."""
    m.submodules.unit = unit = FrameTransmitter(content_bytes=3)
    length = Signal(2)
    offer(m, unit.i, every=2, legal=lambda p: p.last == (length == 2))
    with m.If(accepted(unit.i)):
        m.d.sync += length.eq(Mux(unit.i.p.last, 0, length + 1))
    accept(m, unit.o, every=2)
    assert_stable(m, unit.o)
    assert_within(m, unit.i.valid, unit.i.ready, 40)


def engine(m: Module) -> None:
    """Columns and results of products by column stay until they are taken."""
    config = EngineConfig(lanes=1, result_lanes=1, activation_width=2, accumulator_width=4,
                          index_width=1, max_planes=1, accumulator_depth=2, max_batch=1,
                          port_bytes=1, packing="1in2")
    unit = TernaryEngine(config)
    m.submodules.unit = unit
    offer(m, unit.i_jobs, legal=lambda p: (p.groups != 0) & (p.groups <= 2) & (p.tail == 1)
          & (p.planes == 1) & (p.batch == 1))
    offer(m, unit.i_entries, every=2)
    offer(m, unit.i_words, every=2)
    accept(m, unit.o_columns, every=2)
    accept(m, unit.o_results, every=2)
    assert_stable(m, unit.o_columns)
    assert_stable(m, unit.o_results)


def top_k(m: Module) -> None:
    """As many integers as the product has, up to two; the last one is marked."""
    engine_ = EngineConfig(lanes=2, result_lanes=2, activation_width=8, accumulator_width=9,
                           index_width=4, max_planes=1, accumulator_depth=2, max_batch=1,
                           port_bytes=1)
    unit = TopK(AcceleratorConfig(engine=engine_, vector_depth=8, list_depth=4, product_depth=1,
                                  top_k=2))
    m.submodules.unit = unit
    rows, left, begun = Signal(3), Signal(3), Signal()
    offer(m, unit.i_commands, legal=lambda p: (p.rows != 0) & (p.rows <= 4))
    offer(m, unit.i_results, every=2, allowed=left != 0, legal=lambda p: p.last == (left <= 2))
    accept(m, unit.o_top_k, every=2)
    assert_stable(m, unit.o_top_k)
    with m.If(accepted(unit.i_commands)):
        m.d.sync += [left.eq(unit.i_commands.p.rows), rows.eq(unit.i_commands.p.rows), begun.eq(0)]
    with m.Elif(accepted(unit.i_results)):
        m.d.sync += left.eq(Mux(left > 2, left - 2, 0))
    with m.If(accepted(unit.o_top_k)):
        m.d.sync += begun.eq(~unit.o_top_k.p.last)
        m.d.comb += Assert(unit.o_top_k.p.last == ((rows == 1) | begun))
    assert_within(m, unit.i_commands.valid, unit.i_commands.ready, 40)


def _read_engine(m: Module, *, order: bool) -> None:
    engine_ = EngineConfig(lanes=1, result_lanes=1, accumulator_width=9, index_width=2,
                           max_planes=1, accumulator_depth=2, max_batch=1, port_bytes=1)
    config = AcceleratorConfig(engine=engine_, vector_depth=4, list_depth=4, product_depth=1,
                               queue_words=4, address_width=3)
    unit = ReadEngine(config)
    m.submodules.unit = _with_constants(unit, PIECE_DEPTH=4)
    offer(m, unit.i_fetches, legal=lambda p: (p.kind == Kind.VECTOR) & (p.size == 2)
          & (p.count != 0) & (p.count <= 2))
    accept(m, unit.o_reads, every=2)
    accept(m, unit.o_vector, every=2)
    owed = Signal(4)
    offer(m, unit.i_data, allowed=owed != 0, every=2)
    asked = Mux(accepted(unit.o_reads), unit.o_reads.p.transfers, 0)
    m.d.sync += owed.eq(owed + asked - accepted(unit.i_data))
    for stream in (unit.o_reads, unit.o_vector):
        assert_stable(m, stream)
    m.d.comb += [Assert(unit.i_data.ready), Assert(owed <= config.queue_words),
                 Assert(~unit.o_weights.valid)]
    if order:
        Order(m, given=accepted(unit.i_data), item=lambda _: unit.i_data.p.data,
              taken=accepted(unit.o_vector), found=lambda _: unit.o_vector.p.data, capacity=5)
    else:
        assert_within(m, unit.i_fetches.valid, unit.i_fetches.ready, 40)


def read_engine(m: Module) -> None:
    """Vectors: each transfer that is read leaves once, in order, and no more are read than fit."""
    _read_engine(m, order=True)


def read_engine_progress(m: Module) -> None:
    """Vectors: the next fetch is taken when the one before has been sent."""
    _read_engine(m, order=False)
