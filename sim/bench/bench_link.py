"""The parts of the link: UART and frames, against the golden frame layer."""

import random

import cocotb
from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from cocotb.triggers import ClockCycles, RisingEdge, Timer

from hw.common.stream import connect_stream
from hw.link.frames import FrameReceiver, FrameSignature, FrameTransmitter
from hw.link.uart import ByteSignature, UartReceiver, UartTransmitter
from sim.golden.cycles import frame_delivery_cycles, frame_send_cycles, uart_cycles
from sim.golden.frames import cobs_encode, crc32, decode_frame, encode_frame
from sim.streams import StreamSink, StreamSource, start

CONTENT_BYTES = 520
DIVISOR = 5


class LinkParts(wiring.Component):
    """Frame receiver and transmitter, and both ends of a UART, side by side."""

    i_line: stream.Interface
    o_content: stream.Interface
    bad_frame: Signal
    i_content: stream.Interface
    o_line: stream.Interface
    repeat: Signal
    i_bytes: stream.Interface
    o_bytes: stream.Interface
    tx: Signal
    rx: Signal
    error: Signal

    def __init__(self):
        super().__init__({
            "i_line": In(ByteSignature), "o_content": Out(FrameSignature), "bad_frame": Out(1),
            "i_content": In(FrameSignature), "o_line": Out(ByteSignature), "repeat": In(1),
            "i_bytes": In(ByteSignature), "o_bytes": Out(ByteSignature),
            "tx": Out(1), "rx": In(1), "error": Out(1),
        })

    def elaborate(self, platform):
        """Put the parts side by side."""
        m = Module()
        m.submodules.receiver = receiver = FrameReceiver(content_bytes=CONTENT_BYTES)
        m.submodules.transmitter = transmitter = FrameTransmitter(content_bytes=CONTENT_BYTES)
        m.submodules.uart_receiver = uart_receiver = UartReceiver(divisor=DIVISOR)
        m.submodules.uart_transmitter = uart_transmitter = UartTransmitter(divisor=DIVISOR)
        for producer, consumer in (
                (wiring.flipped(self.i_line), receiver.i),
                (receiver.o, wiring.flipped(self.o_content)),
                (wiring.flipped(self.i_content), transmitter.i),
                (transmitter.o, wiring.flipped(self.o_line)),
                (wiring.flipped(self.i_bytes), uart_transmitter.i),
                (uart_receiver.o, wiring.flipped(self.o_bytes))):
            connect_stream(m, producer, consumer)
        m.d.comb += [
            self.bad_frame.eq(receiver.bad_frame),
            transmitter.repeat.eq(self.repeat),
            self.tx.eq(uart_transmitter.tx),
            uart_receiver.rx.eq(self.rx),
            self.error.eq(uart_receiver.error),
        ]
        return m


DUTS = {"parts": LinkParts}
SIGNATURES = {"i_line": ByteSignature, "o_content": FrameSignature, "i_content": FrameSignature,
              "o_line": ByteSignature, "i_bytes": ByteSignature, "o_bytes": ByteSignature}


def contents() -> list[bytes]:
    """Return contents of lengths around each edge, with no, few, some and only zeros."""
    source = random.Random(11)
    lengths = [2, 3, 5, 249, 250, 251, 254, 255, CONTENT_BYTES]
    return [bytes(0 if source.random() < zeros else source.randrange(1, 256)
                  for _ in range(length)) for zeros in (0, 0.02, 0.5, 1) for length in lengths]


def ends(dut, name: str, kind: type, stall: float = 0.0):
    """Return a stream's end; the ports that a test does not use stay idle."""
    shape = SIGNATURES[name].members["payload"].shape
    return kind(dut, name, shape, stall=stall)


def as_payloads(content: bytes) -> list[dict[str, int]]:
    """Return the payloads of a content."""
    return [{"data": byte, "last": k == len(content) - 1} for k, byte in enumerate(content)]


async def begin(dut):
    """Start the clock with every input idle."""
    for name in ("i_line", "i_content", "i_bytes"):
        dut[f"{name}__valid"].value = 0
        dut[f"{name}__payload"].value = 0
    for name in ("o_content", "o_line", "o_bytes"):
        dut[f"{name}__ready"].value = 0
    dut.repeat.value = 0
    dut.rx.value = 1
    await start(dut)


class Counter:
    """Counts the cycles in which a signal is high."""

    def __init__(self, dut, signal):
        self.count = 0
        self._task = cocotb.start_soon(self._run(dut, signal))

    async def _run(self, dut, signal):
        while True:
            await RisingEdge(dut.clk)
            self.count += int(signal.value)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.4])
async def transmitter_equals_golden(dut, stall):
    """Frames have the golden bytes and the formula's cycles; ``repeat`` sends the same again."""
    await begin(dut)
    for content in contents():
        source, sink = ends(dut, "i_content", StreamSource, stall), ends(dut, "o_line", StreamSink,
                                                                        stall)
        cocotb.start_soon(source.send(as_payloads(content)))
        expected = encode_frame(content)
        line = await sink.receive(len(expected))
        assert bytes(transfer.data for transfer in line) == expected
        if stall == 0:
            assert sink.last_cycle - source.first_cycle + 1 == frame_send_cycles(content)
        if len(content) < 6:
            dut.repeat.value = 1
            await ClockCycles(dut.clk, 2)
            dut.repeat.value = 0
            line = await sink.receive(len(expected))
            assert bytes(transfer.data for transfer in line) == expected


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.4])
async def receiver_equals_golden(dut, stall):
    """Good frames deliver their content in the formula's cycles."""
    await begin(dut)
    bad = Counter(dut, dut.bad_frame)
    for content in contents():
        source, sink = ends(dut, "i_line", StreamSource, stall), ends(dut, "o_content", StreamSink,
                                                                     stall)
        task = cocotb.start_soon(sink.receive(len(content)))
        await source.send([{"data": byte} for byte in encode_frame(content)])
        delivered = await task
        assert bytes(transfer.data for transfer in delivered) == content
        assert [transfer.last for transfer in delivered] == [0] * (len(content) - 1) + [1]
        if stall == 0:
            assert (sink.last_cycle - source.last_cycle + 1) == frame_delivery_cycles(content)
    assert bad.count == 0


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def receiver_drops_what_golden_drops(dut):
    """Of random and broken frames exactly those arrive that the golden model takes."""
    await begin(dut)
    bad = Counter(dut, dut.bad_frame)
    choices = random.Random(12)
    codes = [b"\x01", b"\xff", b"\x02", b"\x05abc", b"\x05abcde"]
    for length in (0, 1, 2, CONTENT_BYTES, CONTENT_BYTES + 1, CONTENT_BYTES + 300):
        content = choices.randbytes(length)
        codes.append(encode_frame(content)[1:-1])
    for _ in range(200):
        content = choices.randbytes(choices.randrange(2, 20))
        broken = bytearray(encode_frame(content)[1:-1])
        fault = choices.randrange(5)
        position = choices.randrange(len(broken))
        if fault == 0:
            broken[position] = choices.randrange(1, 256)
        elif fault == 1:
            del broken[position]
        elif fault == 2:
            broken.insert(position, choices.randrange(1, 256))
        elif fault == 3:
            wrong = crc32(content) ^ 1 << choices.randrange(32)
            broken = bytearray(cobs_encode(content + wrong.to_bytes(4, "little")))
        codes.append(bytes(broken))
    good = [content for content in map(decode_frame, codes)
            if content is not None and len(content) <= CONTENT_BYTES]
    assert 30 < len(good) < 150
    source, sink = ends(dut, "i_line", StreamSource), ends(dut, "o_content", StreamSink)
    task = cocotb.start_soon(sink.receive(sum(map(len, good))))
    for code in codes:
        await source.send([{"data": byte} for byte in b"\x00" + code + b"\x00"])
        await ClockCycles(dut.clk, CONTENT_BYTES + 4 if len(code) > 30 else 30)
    delivered = await task
    assert bytes(transfer.data for transfer in delivered) == b"".join(good)
    assert bad.count == len(codes) - len(good)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def receiver_waits_for_a_delimiter_after_lost_bytes(dut):
    """Lose a frame that begins during a delivery; the next one arrives."""
    await begin(dut)
    first, second, third = b"first", b"second", b"third"
    source, sink = ends(dut, "i_line", StreamSource), ends(dut, "o_content", StreamSink)
    await source.send([{"data": byte} for byte in encode_frame(first) + b"\x00lost"])
    assert bytes(transfer.data for transfer in await sink.receive(len(first))) == first
    # Good by itself, but the end of what has begun with lost bytes.
    await source.send([{"data": byte} for byte in encode_frame(second)[1:] + encode_frame(third)])
    assert bytes(transfer.data for transfer in await sink.receive(len(third))) == third


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def uart_carries_all_bytes(dut):
    """Bytes cross from transmitter to receiver without a gap, in the formula's cycles."""
    await begin(dut)

    async def wire():
        while True:
            await RisingEdge(dut.clk)
            dut.rx.value = dut.tx.value

    cocotb.start_soon(wire())
    errors = Counter(dut, dut.error)
    source, sink = ends(dut, "i_bytes", StreamSource), ends(dut, "o_bytes", StreamSink)
    data = bytes(range(256))
    task = cocotb.start_soon(sink.receive(len(data)))
    await source.send([{"data": byte} for byte in data])
    assert bytes(transfer.data for transfer in await task) == data
    # The wire of this test takes a cycle.
    assert sink.last_cycle - source.first_cycle + 1 == uart_cycles(DIVISOR, len(data)) + 1
    assert errors.count == 0


async def send_bits(dut, bits: list[int], period_ns: float):
    """Drive the serial line with a period of its own."""
    for bit in bits:
        dut.rx.value = bit
        await Timer(round(period_ns * 1000), unit="ps")


def frame_bits(byte: int) -> list[int]:
    """Return start bit, data bits and stop bit."""
    return [0, *((byte >> k) & 1 for k in range(8)), 1]


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def uart_survives_spikes_and_broken_bytes(dut):
    """Take a spike for no start bit; a byte without a stop bit, and a break, is one error."""
    await begin(dut)
    errors = Counter(dut, dut.error)
    sink = ends(dut, "o_bytes", StreamSink)
    task = cocotb.start_soon(sink.receive(3))
    period = 10 * DIVISOR
    await send_bits(dut, [0], 10)
    await send_bits(dut, [1] * 20, period)
    await send_bits(dut, frame_bits(0xa5), period)
    await send_bits(dut, [*frame_bits(0x3c)[:-1], 0, 1], period)
    await send_bits(dut, frame_bits(0x5a), period)
    await send_bits(dut, [0] * 40 + [1], period)
    await send_bits(dut, frame_bits(0xc3), period)
    assert [transfer.data for transfer in await task] == [0xa5, 0x5a, 0xc3]
    assert errors.count == 2
