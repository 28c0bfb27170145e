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
from sim.golden.frames import cobs_encode, crc32, decode_frame, encode_frame
from sim.resets import hold_inputs, resets_in_mid_work
from sim.streams import StreamSink, StreamSource, cycle, start
from sim.timing.units import frame_delivery_cycles, frame_send_cycles, uart_cycles

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
#: Inputs that are not 0 when idle.
IDLE = {"rx": 1}
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
    hold_inputs(dut, LinkParts(), IDLE)
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


class Receiver:
    """The frame receiver as its docstring has it: which contents and bad frames a line gives."""

    def __init__(self):
        self.contents: list[bytes] = []
        #: Cycles in which bad frames end.
        self.bad: list[int] = []
        self._code = b""
        self._lost = False                      # up to the next delimiter
        self._delivered = 0                     # cycle after the delivery that is under way

    def byte(self, now: int, byte: int) -> None:
        """Take a byte that arrives in cycle ``now``."""
        if now < self._delivered:
            self._lost = byte != 0
        elif byte:
            self._code += b"" if self._lost else bytes([byte])
        elif self._lost:
            self._lost = False
        elif self._code:
            content = decode_frame(self._code)
            if content is not None and len(content) <= CONTENT_BYTES:
                self.contents.append(content)
                self._delivered = now + frame_delivery_cycles(content)
            else:
                self.bad.append(now)
            self._code = b""


def line_of_frames(choices: random.Random, kinds: list[int]) -> list[tuple[bytes, int]]:
    """Make frames, good (0 to 2) and bad, each with what delimits it; and idle cycles behind each.

    The line begins without a delimiter. Most frames share one delimiter, some have several, or
    nothing between two of them. Nearly all that follow a good frame wait until it is delivered.
    """
    line = []
    for kind in kinds:
        length = choices.choice((2, 3, 20, 60))
        code = encode_frame(choices.randbytes(length))[1:-1]
        if kind == 3:
            length = CONTENT_BYTES + choices.choice((1, 4, 300))
            code = encode_frame(choices.randbytes(length))[1:-1]
        elif kind == 4:
            code = code[:choices.randrange(len(code))]
        elif kind == 5:
            code = encode_frame(b"")[1:-1]
        elif kind == 6:
            code = b""
        waits = 0
        content = decode_frame(code)
        if content is not None and choices.random() < 0.9:
            waits = len(content) + choices.choice((3, 4, 20))
        line.append((code + bytes(choices.choice((1, 1, 1, 2, 3))), waits))
    return line


async def receive_line(dut, line: list[tuple[bytes, int]]) -> Receiver:
    """Send a line, a byte a cycle, and compare what is delivered with what it must give."""
    expected, delivered, bad = Receiver(), [], []
    dut.o_content__ready.value = 1
    shape = FrameSignature.members["payload"].shape

    def observe():
        assert dut.i_line__ready.value == 1
        if dut.o_content__valid.value:
            payload = shape.from_bits(dut.o_content__payload.value.to_unsigned())
            delivered.append((payload.data, payload.last))
        if dut.bad_frame.value:
            bad.append(cycle())

    for text, waits in line:
        for byte in text:
            dut.i_line__payload.value = byte
            dut.i_line__valid.value = 1
            await RisingEdge(dut.clk)
            expected.byte(cycle(), byte)
            observe()
        dut.i_line__valid.value = 0
        for _ in range(waits):
            await RisingEdge(dut.clk)
            observe()
    while len(delivered) < sum(map(len, expected.contents)):
        await RisingEdge(dut.clk)
        observe()
    dut.o_content__ready.value = 0
    assert delivered == [(byte, int(k == len(content) - 1)) for content in expected.contents
                         for k, byte in enumerate(content)]
    assert bad == expected.bad
    return expected


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def receiver_takes_frames_that_share_a_delimiter(dut):
    """Frames with one delimiter between them, several, or none at the start; empty and too long.

    What is bad is dropped when it ends; the good frame behind it arrives. What comes during a
    delivery is lost up to its delimiter, and nothing else.
    """
    await begin(dut)
    choices = random.Random(14)
    kinds = [*range(7), *choices.choices(range(7), k=30)]
    expected = await receive_line(dut, line_of_frames(choices, kinds))
    assert len(expected.contents) > 10
    assert len(expected.bad) > 8
    good = [encode_frame(choices.randbytes(9))[1:-1] for _ in range(3)]
    long = encode_frame(bytes(range(1, 256)) * 3)[1:-1]
    # Too long, broken, too long again: each followed directly by a good frame.
    expected = await receive_line(dut, [
        (b"\x00" + long + b"\x00" + good[0] + b"\x00", 20),
        (good[1][:-1] + b"\x00" + good[1] + b"\x00", 20),
        (long + b"\x00" + long + b"\x00" + good[2] + b"\x00", 20)])
    assert expected.contents == list(map(decode_frame, good))
    assert len(expected.bad) == 4
    # The first byte behind a delivery is taken, the last one within it lost with its frame.
    cycles = frame_delivery_cycles(bytes(9))
    for early in (0, 1):
        expected = await receive_line(dut, [(good[0] + b"\x00", cycles - 1 - early),
                                            (good[1] + b"\x00" + good[2] + b"\x00", 0)])
        assert expected.contents == [decode_frame(good[0]), decode_frame(good[1 + early])]


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def transmitter_sends_frames_one_behind_the_other(dut):
    """Contents that wait for the transmitter: each frame has both its delimiters, all bytes."""
    await begin(dut)
    choices = random.Random(15)
    sent = [choices.randbytes(length) for length in (2, 5, 2, 300, 2, 254, 7)]
    source, sink = ends(dut, "i_content", StreamSource), ends(dut, "o_line", StreamSink)
    cocotb.start_soon(source.send(
        payload for content in sent for payload in as_payloads(content)))
    expected = b"".join(map(encode_frame, sent))
    assert bytes(transfer.data for transfer in await sink.receive(len(expected))) == expected


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def resets(dut):
    """Reset inside frames and bytes of all parts at once: only what comes behind them counts."""
    await begin(dut)

    async def wire():
        while True:
            await RisingEdge(dut.clk)
            dut.rx.value = dut.tx.value

    async def transmit(choices, stall):
        source, sink = (ends(dut, name, kind, stall) for name, kind in (
            ("i_content", StreamSource), ("o_line", StreamSink)))
        for length in (3, 256):
            content = choices.randbytes(length)
            cocotb.start_soon(source.send(as_payloads(content)))
            expected = encode_frame(content)
            line = await sink.receive(len(expected))
            assert bytes(transfer.data for transfer in line) == expected
            if stall == 0:
                assert sink.last_cycle - source.first_cycle + 1 == frame_send_cycles(content)
            source.first_cycle = -1

    async def carry(choices, stall):
        cocotb.start_soon(wire())
        source, sink = (ends(dut, name, kind, stall) for name, kind in (
            ("i_bytes", StreamSource), ("o_bytes", StreamSink)))
        data = choices.randbytes(8)
        receiving = cocotb.start_soon(sink.receive(len(data)))
        await source.send({"data": byte} for byte in data)
        assert bytes(transfer.data for transfer in await receiving) == data

    async def run(seed, stall):
        choices = random.Random(seed)
        tasks = [cocotb.start_soon(task) for task in (
            transmit(choices, stall), carry(choices, stall),
            receive_line(dut, line_of_frames(choices, [0, 4, 1, 5, 2])))]
        for task in tasks:
            await task

    await resets_in_mid_work(dut, LinkParts(), lambda seed: run(seed, 0.2), lambda: run(1, 0),
                             resets=6, idle=IDLE)


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


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def uart_keeps_a_byte_that_is_not_taken(dut):
    """Keep the first of bytes that nobody takes, and lose the others without an error."""
    await begin(dut)
    errors = Counter(dut, dut.error)
    for byte in (0x11, 0x22, 0x33):
        await send_bits(dut, frame_bits(byte), 10 * DIVISOR)
    await ClockCycles(dut.clk, DIVISOR)         # the last one has ended inside as well
    sink = ends(dut, "o_bytes", StreamSink)
    task = cocotb.start_soon(sink.receive(2))
    await ClockCycles(dut.clk, 4)
    await send_bits(dut, frame_bits(0x44), 10 * DIVISOR)
    assert [transfer.data for transfer in await task] == [0x11, 0x44]
    assert errors.count == 0
