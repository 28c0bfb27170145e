"""Everything between a board's serial pins against the protocol and the golden model."""

import struct

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, RisingEdge, Timer
from cocotb.types import Logic

from hw.boards.board import EngineBoard
from hw.boards.system import BoardSystem, description
from hw.config import EngineConfig
from hw.formats.minifloat import bf16
from hw.link.protocol import COUNTERS, Command, Status
from sim.golden.frames import decode_frame, encode_frame
from sim.golden.lmul import lmul
from sim.golden.ternary import ternary_product
from sim.golden.trits import pack_words, planes
from sim.resets import resets_in_mid_work
from sim.streams import CLOCK_NS, start

BOARD = EngineBoard(
    name="bench", platform="", clock_hz=5_000_000, baud=1_000_000, payload_bytes=320,
    entry_queue=16, config=EngineConfig(
        lanes=4, accumulator_width=20, accumulator_depth=4, max_planes=2, max_batch=2,
        index_width=6, packing="1in2", port_bytes=2, result_lanes=2))
WATCHDOG_CYCLES = 2000
BIT_NS = BOARD.divisor * CLOCK_NS

DUTS = {"small": lambda: BoardSystem(BOARD, watchdog_cycles=WATCHDOG_CYCLES)}


class Requests:
    """Requests and replies over a line that a subclass has; no retries."""

    def __init__(self, dut):
        self._dut = dut
        #: Of the latest request.
        self.sequence = 0
        self._received = bytearray()

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        raise NotImplementedError

    async def reply(self) -> bytes:
        """Wait for one frame and return its content."""
        while True:
            codes = bytes(self._received).split(b"\x00")
            for code in codes[:-1]:
                if code:
                    self._received.clear()
                    content = decode_frame(code)
                    assert content is not None
                    return content
            await ClockCycles(self._dut.clk, 10)

    async def request(self, command: int, payload: bytes = b"") -> tuple[int, bytes]:
        """Send a request; return status and data of its reply."""
        self.sequence = (self.sequence + 1) & 0xff
        await self.send(encode_frame(bytes([self.sequence, command]) + payload))
        content = await self.reply()
        assert content[0] == self.sequence
        return content[-1], content[1:-1]

    async def done(self, command: int, payload: bytes = b"") -> bytes:
        """Send a request that must succeed; return the data."""
        status, data = await self.request(command, payload)
        assert status == Status.DONE
        return data

    async def counters(self) -> dict[str, int]:
        """Return the device's counters."""
        data = await self.done(Command.STATUS)
        return dict(zip(COUNTERS, struct.unpack(f"<{len(COUNTERS)}I", data),
                        strict=True))


class Host(Requests):
    """A host on the serial line."""

    def __init__(self, dut):
        super().__init__(dut)
        cocotb.start_soon(self._listen())

    async def send(self, data: bytes, *, stop: int = 1) -> None:
        """Send bytes, with this stop bit."""
        for byte in data:
            for bit in (0, *((byte >> k) & 1 for k in range(8)), stop):
                self._dut.rx.value = bit
                await Timer(BIT_NS, unit="ns")
        self._dut.rx.value = 1

    async def _listen(self) -> None:
        while True:
            while self._dut.tx.value:
                await RisingEdge(self._dut.clk)
            await Timer(BIT_NS + BIT_NS // 2, unit="ns")
            byte = 0
            for k in range(8):
                byte |= int(self._dut.tx.value) << k
                await Timer(BIT_NS, unit="ns")
            assert self._dut.tx.value == Logic(1), "no stop bit, or a line of several bits"
            self._received.append(byte)

    async def quiet(self) -> None:
        """Assert that nothing comes for the time of a short reply."""
        await ClockCycles(self._dut.clk, 400)
        assert not self._received


async def begin(dut) -> Host:
    """Start the clock with an idle line."""
    dut.rx.value = 1
    await start(dut)
    return Host(dut)


async def run_product(host: Host, rng: np.random.Generator, rows: int, columns: int, planes_: int,
                      batch: int) -> None:
    """Compare one product with the golden model."""
    config = BOARD.config
    limit = (3 ** planes_ - 1) // 2
    weights = rng.integers(-limit, limit + 1, (rows, columns))
    values = rng.integers(-128, 128, (columns, batch))
    await host.done(Command.JOB, struct.pack("<HHBB", *config.job(
        rows, planes=planes_, batch=batch).values()))
    entries = b"".join(struct.pack("<BbB", column, value, 0)
                       for column, row in enumerate(values.tolist()) for value in row)
    await host.done(Command.ENTRIES, entries + struct.pack("<BbB", 0, 0, 1))
    image = pack_words(planes(weights, planes_), config).tobytes()
    cut = len(image) // 2 // config.port_bytes * config.port_bytes
    if cut:
        await host.done(Command.WEIGHTS, image[:cut])
    await host.done(Command.WEIGHTS_LAST, image[cut:])
    data = await host.done(Command.RESULTS, struct.pack("<H", 30))
    transfers = np.frombuffer(data, np.uint8).reshape(batch, -1, 7)
    assert transfers[:, :, 6].ravel().tolist() == [0] * (len(data) // 7 - 1) + [1]
    wide = np.zeros((batch, transfers.shape[1], 2, 4), np.uint8)
    wide[..., 1:] = transfers[:, :, :6].reshape(batch, -1, 2, 3)
    results = (wide.view("<i4") >> 8).reshape(batch, -1)[:, :rows]
    np.testing.assert_array_equal(results, ternary_product(
        weights, values, accumulator_width=config.accumulator_width))


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def board_describes_itself(dut):
    """``HELLO`` has the description's bytes, twice."""
    host = await begin(dut)
    for _ in range(2):
        assert await host.done(Command.HELLO) == description(BOARD)


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def products_and_lmul_equal_golden(dut):
    """Products of several shapes and L-Mul products come through the pins."""
    host = await begin(dut)
    rng = np.random.default_rng(21)
    for shape in ((4, 4, 1, 1), (7, 6, 2, 1), (16, 3, 1, 1), (1, 1, 1, 2), (5, 5, 2, 2)):
        await run_product(host, rng, *shape)
    assert (await host.counters())["cycles"] > 0
    x, y = (rng.integers(0, 1 << 16, 20, dtype=np.uint16) for _ in range(2))
    pairs = np.stack([x, y], axis=1).astype("<u2").tobytes()
    products = np.frombuffer(await host.done(Command.LMUL, pairs), "<u2")
    np.testing.assert_array_equal(products, lmul(bf16, x, y))


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def repeated_requests_are_answered_and_not_executed(dut):
    """Repeat sequence numbers: each gets the same reply, and nothing is executed."""
    host = await begin(dut)
    frame = encode_frame(bytes([9, Command.LMUL]) + struct.pack("<HH", 0x3f80, 0x4000))
    await host.send(frame)
    first = await host.reply()
    assert first[-1] == Status.DONE
    before = (await host.counters())["executed"]
    await host.send(encode_frame(bytes([77, Command.LMUL]) + struct.pack("<HH", 0x3f80, 0x4000)))
    second = await host.reply()
    await host.send(encode_frame(bytes([77, Command.LMUL]) + struct.pack("<HH", 0x3f80, 0x4000)))
    assert await host.reply() == second
    await host.send(encode_frame(bytes([77, Command.LMUL])))
    assert await host.reply() == second
    assert (await host.counters())["executed"] == before + 2


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def faults_are_counted_and_leave_no_trace(dut):
    """Garbage, a missing stop bit and a wrong CRC are dropped; what follows is right."""
    host = await begin(dut)
    before = await host.counters()
    frame = bytearray(encode_frame(bytes([200, Command.RESET])))
    frame[-3] ^= 0x20
    await host.send(bytes(frame))
    await host.quiet()
    await host.send(b"garbage\x00\x01\x07")
    await host.send(b"\x55", stop=0)
    await Timer(BIT_NS, unit="ns")
    after = await host.counters()
    assert after["bad_frames"] == before["bad_frames"] + 3
    assert after["framing_errors"] == before["framing_errors"] + 1
    assert after["executed"] == before["executed"] + 1
    await run_product(host, np.random.default_rng(22), 4, 3, 1, 1)


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def wrong_requests_have_a_status(dut):
    """Unknown commands, wrong lengths and an engine that waits all end; a reset helps."""
    host = await begin(dut)
    for command, payload, status in (
            (0, b"", Status.UNKNOWN_COMMAND), (10, b"abc", Status.UNKNOWN_COMMAND),
            (Command.HELLO, b"\x00", Status.WRONG_LENGTH), (Command.JOB, b"", Status.WRONG_LENGTH),
            (Command.LMUL, b"\x01\x02\x03", Status.WRONG_LENGTH),
            (Command.RESULTS, b"\x01", Status.WRONG_LENGTH),
            (Command.RESULTS, b"\x01\x00\x01", Status.WRONG_LENGTH),
            (Command.RESULTS, b"\x01\x00", Status.STALLED),
            (Command.RESET, b"", Status.DONE)):
        assert (await host.request(command, payload))[0] == status
    # More entries than the queues hold, without a job that takes them.
    assert (await host.request(Command.ENTRIES, bytes(3 * 60)))[0] == Status.STALLED
    await host.done(Command.RESET)
    await run_product(host, np.random.default_rng(23), 6, 4, 1, 1)


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def resets(dut):
    """Reset inside bytes, frames and products: counters and sequence numbers start anew."""
    dut.rx.value = 1
    await start(dut)

    async def fresh():
        host = Host(dut)
        assert not any((await host.counters()).values())
        await run_product(host, np.random.default_rng(24), 4, 3, 1, 1)

    await resets_in_mid_work(
        dut, DUTS["small"](),
        lambda seed: run_product(Host(dut), np.random.default_rng(seed), 7, 4, 2, 1), fresh,
        resets=3, idle={"rx": 1})
