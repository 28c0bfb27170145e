"""An accelerator behind the link, against the protocol and the golden machine.

Bytes go in and out without a serial line, which takes 40 cycles for each; bench_board has one.
"""

import struct

import cocotb
from cocotb.triggers import ClockCycles

from hw.boards.board import AcceleratorBoard
from hw.boards.system import LinkedDevice, description
from hw.config import AcceleratorConfig, EngineConfig
from hw.formats.minifloat import bf16
from hw.isa import Fault, Function, Instruction, Opcode, encode
from hw.link.protocol import MARK_BYTES, Answer, Command, Status
from hw.link.uart import ByteSignature
from sim.bench.bench_accelerator import Writer
from sim.bench.bench_board import Requests
from sim.golden.frames import encode_frame
from sim.golden.machine import Emission, Machine, MachineFault
from sim.resets import cancelled_tasks, resets_in_mid_work
from sim.streams import StreamSink, StreamSource, start
from sim.timing.program import token_cycles
from sim.timing.units import dispatch_cycles

CONFIG = AcceleratorConfig(
    engine=EngineConfig(lanes=8, accumulator_width=20, accumulator_depth=4, max_planes=2,
                        max_batch=1, index_width=6, port_bytes=8, result_lanes=4),
    vector_depth=128, program_depth=32, list_depth=16, queue_words=16, top_k=3, address_width=12)
#: A pass with more results than the queue holds stays under way until they are asked for.
BOARD = AcceleratorBoard(name="bench", platform="", clock_hz=5_000_000, baud=1_000_000,
                         payload_bytes=496, answer_queue=2, config=CONFIG)
WATCHDOG_CYCLES = 4000
VOCABULARY = 20
WIDTH = 16

DUTS = {"small": lambda: LinkedDevice(BOARD, watchdog_cycles=WATCHDOG_CYCLES)}
SLOW = ("small-verilator",)


class Host(Requests):
    """A host that sends frames and takes replies, without retries."""

    def __init__(self, dut):
        super().__init__(dut)
        self._source = StreamSource(dut, "i", ByteSignature.members["payload"].shape)
        self._sink = StreamSink(dut, "o", ByteSignature.members["payload"].shape)
        cocotb.start_soon(self._listen())

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        await self._source.send({"data": byte} for byte in data)

    async def _listen(self) -> None:
        while True:
            self._received.append((await self._sink.receive(1))[0].data)


async def begin(dut) -> Host:
    """Start the clock with an idle line."""
    host = Host(dut)
    dut.framing_error.value = 0
    await start(dut)
    return host


class Model:
    """A program with a state that it stores, and two heads; the golden machine runs beside it.

    Parameters
    ----------
    wrong : Instruction, optional
        In front of the heads.
    """

    def __init__(self, wrong: Instruction | None = None):
        writer = Writer(CONFIG, 31)
        lanes = CONFIG.vector_lanes
        state, x = lanes, lanes + WIDTH
        self.stored = writer.place(bytes(2 * WIDTH))
        for done in range(0, WIDTH, lanes):
            writer.add(Opcode.VECTOR, function=Function.COPY, target=state + done, a=0, count=lanes)
        self.body = len(writer.program)
        writer.add(Opcode.TOKEN)
        writer.add(Opcode.MATMUL, function=Function.BY_COLUMN, a=WIDTH, b=2, count=VOCABULARY,
                   address=writer.matrix(WIDTH, VOCABULARY, 2))
        writer.add(Opcode.WRITE_BACK, function=Function.COPY, target=x, count=WIDTH,
                   constant=bf16.one)
        writer.add(Opcode.VECTOR, function=Function.ADD, target=state, a=state, b=x, count=WIDTH)
        writer.add(Opcode.STORE, a=state, count=WIDTH, address=self.stored)
        writer.add(Opcode.NORM, target=2, a=state, count=WIDTH)
        writer.add(Opcode.QUANTIZE, function=Function.DENSE, target=1, a=state, count=WIDTH)
        if wrong is not None:
            writer.program.append(wrong)
        for rows in (VOCABULARY - 7, 7):
            writer.add(Opcode.MATMUL, function=Function.BY_COLUMN, a=rows, b=1, count=WIDTH,
                       address=writer.matrix(rows, WIDTH, 1))
            writer.add(Opcode.TOP_K, a=1, b=2, count=rows, constant=0x3E93)
        writer.add(Opcode.STOP)
        self.program = writer.program
        self.contents = writer.contents()
        self.machine = Machine(CONFIG, b"".join(map(encode, self.program)), self.contents)

    async def load(self, host: Host) -> None:
        """Reset the accelerator, fill the memory and write the program."""
        await host.done(Command.RESET)
        port = CONFIG.port_bytes
        contents = self.contents + bytes(-len(self.contents) % port)
        await host.done(Command.SEEK, bytes(4))
        for first in range(0, len(contents), 40 * port):
            await host.done(Command.WRITE, contents[first:first + 40 * port])
        await host.done(Command.PROGRAM, b"".join(
            struct.pack("<H", k) + encode(instruction)
            for k, instruction in enumerate(self.program)))

    async def token(self, host: Host, token: int, *, new: bool = False) -> None:
        """Send a token; compare what is emitted and the counter of cycles."""
        start = 0 if new else self.body
        await host.done(Command.TOKEN, struct.pack("<BH", token, start))
        for expected in self.machine.run(token, start):
            compare(await host.done(Command.RESULTS, struct.pack("<H", 60)), expected)


def answers(data: bytes) -> list[tuple[int, int, int, int]]:
    """Return the fields kind, index, value and last of each result."""
    assert len(data) % 7 == 0
    return [(kind, index, int.from_bytes(value, "little", signed=True), last)
            for kind, index, value, last in struct.iter_unpack("<BH3sB", data)]


def compare(data: bytes, expected: Emission) -> None:
    """Compare the results of one TOP_K."""
    assert answers(data) == [
        *((Answer.TOP_K, row, value, 0) for row, value in zip(
            expected.rows.tolist(), expected.values.tolist(), strict=True)),
        (Answer.SCALE, expected.number, expected.exponent, 1)]


async def read(host: Host, address: int, size: int) -> bytes:
    """Read memory back."""
    return await host.done(Command.READ, b"".join(
        struct.pack("<I", place) for place in range(address, address + size, CONFIG.port_bytes)))


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def tokens_equal_golden(dut):
    """Two sequences; after them the memory holds what the program stored, and all else."""
    host = await begin(dut)
    assert await host.done(Command.HELLO) == description(BOARD)
    model = Model()
    await model.load(host)
    for token, new in ((3, True), (VOCABULARY - 1, False), (0, False), (7, True)):
        await model.token(host, token, new=new)
    size = len(model.contents) // CONFIG.port_bytes * CONFIG.port_bytes
    assert await read(host, 0, size) == model.machine.memory[:size].tobytes()


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def cycles_are_those_of_the_pass(dut):
    """Count the cycles from a token accepted to the last one of its pass."""
    host = await begin(dut)
    for program in ([Instruction(opcode=Opcode.STOP)],
                    [Instruction(opcode=Opcode.TOKEN), Instruction(opcode=Opcode.STOP)]):
        await host.done(Command.RESET)
        await host.done(Command.PROGRAM, b"".join(
            struct.pack("<H", k) + encode(instruction) for k, instruction in enumerate(program)))
        for _ in range(2):
            await host.done(Command.TOKEN, struct.pack("<BH", 1, 0))
        # The first of them is that of the token.
        assert (await host.counters())["cycles"] == dispatch_cycles(CONFIG, program)


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def busy_accelerator_refuses(dut):
    """While a pass is under way nothing is written, read or begun, and its results are right.

    They are asked for in parts. A token's frame that is repeated begins no second pass.
    """
    host = await begin(dut)
    model = Model()
    await model.load(host)
    frame = encode_frame(bytes([200, Command.TOKEN]) + struct.pack("<BH", 4, 0))
    for _ in range(2):
        await host.send(frame)
        assert await host.reply() == bytes([200, Status.DONE])
    for command, payload in (
            (Command.TOKEN, struct.pack("<BH", 5, 0)), (Command.READ, bytes(4)),
            (Command.SEEK, bytes(4)), (Command.WRITE, bytes(8)), (Command.PROGRAM, bytes(18)),
            (Command.MARK, bytes(MARK_BYTES))):
        assert await host.request(command, payload) == (Status.BUSY, b"")
    running = (await host.counters())["cycles"]
    assert (await host.counters())["cycles"] > running
    for expected in model.machine.run(4):
        data = [await host.done(Command.RESULTS, struct.pack("<H", 1)) for _ in range(4)]
        assert [len(part) for part in data] == [7] * 4
        compare(b"".join(data), expected)
    assert await host.done(Command.RESULTS, struct.pack("<H", 0)) == b""
    cycles = (await host.counters())["cycles"]
    assert (await host.counters())["cycles"] == cycles > running
    await model.token(host, 9)


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def the_mark_names_what_was_written(dut):
    """Keep the mark through resets of the device and passes; clear it at whatever is written."""
    host = await begin(dut)
    mark = bytes(range(1, 1 + MARK_BYTES))

    async def marked() -> bytes:
        data = await host.done(Command.MARKED, struct.pack("<H", 1))
        assert data[MARK_BYTES:] == b"\x01"
        return data[:MARK_BYTES]

    assert await marked() == bytes(MARK_BYTES)
    model = Model()
    stop = bytes(2) + encode(Instruction(opcode=Opcode.STOP))
    for command, payload in ((Command.WRITE, bytes(8)), (Command.PROGRAM, stop)):
        await model.load(host)
        assert await marked() == bytes(MARK_BYTES)
        await host.done(Command.MARK, mark)
        assert await marked() == mark
        await host.done(Command.RESET)
        await model.token(host, 3, new=True)
        await host.done(Command.SEEK, bytes(4))
        await read(host, 0, 16)
        assert await marked() == mark
        await host.done(command, payload)
        assert await marked() == bytes(MARK_BYTES)
        model = Model()


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def memory_counters(dut):
    """Count the transfers of a pass as the program has them, and cycles without one."""
    host = await begin(dut)
    model = Model()
    await model.load(host)
    await model.token(host, 3, new=True)
    for token in (5, 6):
        await model.token(host, token)
        counted = await host.counters()
        # Of the next pass, what needs no list of it is read ahead: nothing here.
        assert counted["transfers"] == token_cycles(
            CONFIG, model.program, model.body).transfers
        assert 0 < counted["waits"] < counted["cycles"] - counted["transfers"] // 2
        assert counted["refreshes"] == 0
    port = CONFIG.port_bytes
    before = counted["transfers"]
    await read(host, 0, 3 * port)
    await host.done(Command.SEEK, bytes(4))
    await host.done(Command.WRITE, model.contents[:2 * port])
    assert (await host.counters())["transfers"] == before + 5
    await host.done(Command.PROGRAM, bytes(2) + encode(Instruction(opcode=Opcode.STOP)))
    await host.done(Command.TOKEN, struct.pack("<BH", 1, 0))
    counted = await host.counters()
    assert (counted["transfers"], counted["waits"]) == (0, 0)


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def hello_is_always_executed(dut):
    """Answer each HELLO anew, whatever its number; RESET counts cycles anew, and nothing else."""
    host = await begin(dut)
    before = await host.counters()
    for _ in range(2):                          # with the number of the request before
        await host.send(encode_frame(bytes([host.sequence, Command.HELLO])))
        reply = await host.reply()
        assert reply == bytes([host.sequence]) + description(BOARD) + bytes([Status.DONE])
    assert (await host.counters())["executed"] == before["executed"] + 3
    await host.done(Command.PROGRAM, bytes(2) + encode(Instruction(opcode=Opcode.STOP)))
    await host.done(Command.TOKEN, struct.pack("<BH", 1, 0))
    counted = await host.counters()
    assert counted["cycles"] > 0
    await host.done(Command.RESET)
    assert await host.counters() == counted | {"cycles": 0, "executed": counted["executed"] + 2}


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def fault_stops_until_reset(dut):
    """Tell a fault once; then the accelerator is busy until a reset, and right after it."""
    host = await begin(dut)
    wrong = Instruction(opcode=Opcode.VECTOR, function=0x1F, target=4, a=4, count=4)
    model = Model(wrong)
    await model.load(host)
    try:
        model.machine.run(8)
        raise AssertionError("the golden machine found no fault")
    except MachineFault as found:
        expected = (Answer.FAULT, found.instruction, Fault.FUNCTION, 1)
    await host.done(Command.TOKEN, struct.pack("<BH", 8, 0))
    assert answers(await host.done(Command.RESULTS, struct.pack("<H", 9))) == [expected]
    assert await host.request(Command.TOKEN, struct.pack("<BH", 8, 0)) == (Status.BUSY, b"")
    assert (await host.request(Command.RESULTS, struct.pack("<H", 9)))[0] == Status.STALLED
    await host.done(Command.RESET)
    # Memories keep what they hold: only the instruction changes.
    right = Instruction(opcode=Opcode.VECTOR, function=Function.COPY, target=4, a=4, count=4)
    where = model.program.index(wrong)
    await host.done(Command.PROGRAM, struct.pack("<H", where) + encode(right))
    model.program[where] = right
    model.machine = Machine(CONFIG, b"".join(map(encode, model.program)), model.contents)
    await model.token(host, 8, new=True)


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def wrong_requests_and_a_reset_leave_nothing(dut):
    """Commands of the other system, wrong lengths, more than a reply holds, a pass cut off."""
    host = await begin(dut)
    model = Model()
    await model.load(host)
    limit = BOARD.payload_bytes // CONFIG.port_bytes
    for command, payload, status in (
            (Command.JOB, bytes(6), Status.UNKNOWN_COMMAND),
            (Command.LMUL, bytes(4), Status.UNKNOWN_COMMAND),
            (Command.TOKEN, b"", Status.WRONG_LENGTH),
            (Command.TOKEN, b"\x01\x00", Status.WRONG_LENGTH),
            (Command.SEEK, bytes(3), Status.WRONG_LENGTH),
            (Command.WRITE, bytes(7), Status.WRONG_LENGTH),
            (Command.MARK, bytes(MARK_BYTES - 1), Status.WRONG_LENGTH),
            (Command.PROGRAM, bytes(17), Status.WRONG_LENGTH),
            (Command.READ, bytes(3), Status.WRONG_LENGTH),
            (Command.READ, bytes(4 * (limit + 1)), Status.WRONG_LENGTH),
            (Command.RESULTS, b"\x01\x00", Status.STALLED), (Command.RESET, b"", Status.DONE)):
        assert (await host.request(command, payload))[0] == status, command
    # While it reads its first matrix, and with results in the queue.
    for cycles in (0, 2000):
        await host.done(Command.TOKEN, struct.pack("<BH", 11, 0))
        await ClockCycles(dut.clk, cycles + 1)
        await host.done(Command.RESET)
    assert await read(host, 200, 8) == model.contents[200:208]
    await model.token(host, 10, new=True)
    await model.token(host, 12)


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def resets(dut):
    """Reset of the whole device inside frames and passes; the memory keeps what it holds."""
    await start(dut)
    kept, place = bytes(range(1, 9)), CONFIG.memory_bytes - CONFIG.port_bytes
    with cancelled_tasks():
        host = Host(dut)
        await host.done(Command.SEEK, struct.pack("<I", place))
        await host.done(Command.WRITE, kept)

    async def run(host, *tokens):
        model = Model()
        await model.load(host)
        for number, token in enumerate(tokens):
            await model.token(host, token, new=number == 0)

    async def fresh():
        host = Host(dut)
        assert not any((await host.counters()).values())
        assert await read(host, place, len(kept)) == kept
        await run(host, 7)

    await resets_in_mid_work(dut, DUTS["small"](),
                             lambda seed: run(Host(dut), seed % VOCABULARY, 3), fresh, resets=3)
