"""The memory port between two clocks: nothing is lost, reads find what was written before."""

import random
from collections import deque

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ReadOnly, RisingEdge, Timer

from hw.memory.crossing import PortCrossing
from hw.memory.port import read_layout, transfer_layout, write_layout
from sim.resets import cancelled_tasks, hold_inputs
from sim.streams import CLOCK_NS, StreamSink, StreamSource, start
from sim.timing.crossing import crossing_cycles

_ADDRESS_WIDTH, _PORT_BYTES = 10, 4
_WORDS = 2 ** _ADDRESS_WIDTH // _PORT_BYTES
DUTS = {"all": lambda: PortCrossing(address_width=_ADDRESS_WIDTH, port_bytes=_PORT_BYTES)}

#: Periods of the memory's clock in picoseconds: 7 of 4 of the user's, about as long, and longer.
_PERIODS = (5714, 9986, 23002)

_READS, _WRITES = read_layout(_ADDRESS_WIDTH), write_layout(_ADDRESS_WIDTH, _PORT_BYTES)
_DATA = transfer_layout(_PORT_BYTES)


class Memory:
    """The memory behind the crossing: words, each with the number that was written last.

    Parameters
    ----------
    stall, write_stall : float
        Probability of a cycle in which it accepts nothing, or offers no data; that of a cycle in
        which it accepts no write, if it is another one.
    every : int
        Cycles of its clock from one transfer to the next, at least.
    """

    def __init__(self, dut, *, stall: float, seed: int, every: int = 1,
                 write_stall: float | None = None):
        self._write_stall = stall if write_stall is None else write_stall
        self.words = [0] * _WORDS
        self._dut, self._stall, self._every = dut, stall, every
        self._random = random.Random(seed)
        self._answers: deque[int] = deque()
        for name in ("reads__ready", "writes__ready", "data__valid"):
            dut[f"memory__{name}"].value = 0
        cocotb.start_soon(self._run())

    async def _run(self) -> None:
        dut, edges = self._dut, 0
        reads, writes, data = ({part: dut[f"memory__{name}__{part}"]
                                for part in ("valid", "ready", "payload")}
                               for name in ("reads", "writes", "data"))
        while True:
            await RisingEdge(dut.memory_clk)
            edges += 1
            if dut.memory_reset.value:
                # Writes of before the reset may come until now; what they left is forgotten.
                self._answers.clear()
                self.words = [0] * _WORDS
                for port, part in ((reads, "ready"), (writes, "ready"), (data, "valid")):
                    port[part].value = 0
                continue
            # A write and a read in one cycle: the read looks first, which is the harder order.
            if reads["valid"].value and reads["ready"].value:
                read = _READS.from_bits(reads["payload"].value.to_unsigned())
                first = read.address // _PORT_BYTES
                assert first + read.transfers <= _WORDS
                self._answers.extend(self.words[first:first + read.transfers])
            if writes["valid"].value and writes["ready"].value:
                write = _WRITES.from_bits(writes["payload"].value.to_unsigned())
                self.words[write.address // _PORT_BYTES] = write.data
            offered = bool(data["valid"].value)
            if offered and data["ready"].value:
                self._answers.popleft()
                offered = False
            if not offered:
                offered = bool(self._answers) and edges % self._every == 0 and self._goes()
                data["valid"].value = int(offered)
                data["payload"].value = self._answers[0] if offered else 0xDEADBEEF
            reads["ready"].value = int(self._goes())
            writes["ready"].value = int(self._random.random() >= self._write_stall)

    def _goes(self) -> bool:
        return self._random.random() >= self._stall


class User:
    """The user of the port: each word that it writes gets a number that is higher than all before.

    So a word that is read must be at least as high as it was when the read was accepted.
    """

    def __init__(self, dut, *, stall: float, seed: int):
        self._dut, self._random, self._stall = dut, random.Random(seed), stall
        self.written = [0] * _WORDS
        self._number = 0
        self._written = (0, 1)
        #: Of each transfer that is awaited: the word, and the least that it may be.
        self._awaited: deque[tuple[int, int]] = deque()
        self._reads = StreamSource(dut, "port__reads", _READS, stall=stall, seed=seed)
        self._writes = StreamSource(dut, "port__writes", _WRITES, stall=stall, seed=seed + 1)
        self._data = StreamSink(dut, "port__data", _DATA, stall=stall, seed=seed + 2)

    async def write(self, bursts: int, *, longest: int = 8) -> None:
        """Write bursts anywhere."""
        for _ in range(bursts):
            first, count = self._written = self._place(longest)
            for word in range(first, first + count):
                self._number += 1
                await self._writes.send([{"address": _PORT_BYTES * word, "data": self._number,
                                          "last": word == first + count - 1}])
                self.written[word] = self._number

    async def read(self, bursts: int) -> None:
        """Read bursts from anywhere, while data still come."""
        for _ in range(bursts):
            await self._read(*self._place(40))

    async def read_back(self) -> None:
        """Read the burst that was written last."""
        await self._read(*self._written)

    async def _read(self, first: int, count: int) -> None:
        await self._reads.send([{"address": _PORT_BYTES * first, "transfers": count}])
        # Writes that were accepted with the read or behind it may be counted: these are least.
        self._awaited.extend((word, self.written[word]) for word in range(first, first + count))

    async def receive(self, transfers: int | None = None) -> None:
        """Compare what comes, for ever or ``transfers`` of it."""
        while transfers != 0:
            entry, = await self._data.receive(1)
            word, least = self._awaited.popleft()
            # A write that is being offered may have arrived before its source returns.
            assert least <= entry.data <= self._number, f"word {word}: {entry.data}, not {least}"
            transfers = None if transfers is None else transfers - 1

    def idle(self) -> bool:
        """Whether all that was read has come."""
        return not self._awaited

    def _place(self, longest: int) -> tuple[int, int]:
        count = self._random.randint(1, longest)
        return self._random.randrange(_WORDS - count + 1), count


async def begin(dut, period: int) -> None:
    """Start both clocks, reset, and wait until the port is open."""
    hold_inputs(dut, DUTS["all"]())
    await Timer(random.Random(period).randrange(period), unit="ps")
    Clock(dut.memory_clk, period, unit="ps").start()
    await start(dut)
    await opened(dut)


async def opened(dut) -> None:
    """Wait until the port accepts writes."""
    for _ in range(60):
        await RisingEdge(dut.clk)
        if dut.port__writes__ready.value:
            return
    raise AssertionError("the port does not open")


async def work(dut, *, stall: float, seed: int, bursts: int) -> None:
    """Read and write at the same time, and compare."""
    memory, user = Memory(dut, stall=stall, seed=seed), User(dut, stall=stall, seed=seed + 10)
    await user_work(dut, memory, user, bursts)


async def user_work(dut, memory: Memory, user: User, bursts: int) -> None:
    """Have a user read and write, and compare what it reads and what stays in the memory."""
    cocotb.start_soon(user.receive())
    writing = cocotb.start_soon(user.write(bursts))
    await user.read(bursts)
    await writing
    for _ in range(100_000):
        await RisingEdge(dut.clk)
        if user.idle() and memory.words == user.written:
            return
    raise AssertionError("transfers are lost")


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize(period=_PERIODS, stall=[0.0, 0.5])
async def reads_and_writes(dut, period, stall):
    """Read and write at random at the same time: every word is that of the write before or later.

    Stalls of both sides; data wait for the user, and writes go on meanwhile.
    """
    await begin(dut, period)
    with cancelled_tasks():
        await work(dut, stall=stall, seed=period % 97, bursts=150)


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize(period=_PERIODS)
async def a_read_finds_what_was_written(dut, period):
    """Read each burst at once behind its writes: the read must not overtake them."""
    await begin(dut, period)
    with cancelled_tasks():
        Memory(dut, stall=0.0, seed=3, write_stall=0.8)
        user = User(dut, stall=0.0, seed=4)
        cocotb.start_soon(user.receive())
        for number in range(250):
            await user.write(1, longest=1 + number % 4)
            await user.read_back()
            # The next write may find the queue of writes empty again.
            for _ in range(number % 30):
                await RisingEdge(dut.clk)
        while not user.idle():
            await RisingEdge(dut.clk)


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize(period=_PERIODS, every=[1, 2])
async def rate_and_latency(dut, period, every):
    """Move a transfer every cycle of the slower side, after the cycles of the formula."""
    await begin(dut, period)
    with cancelled_tasks():
        Memory(dut, stall=0.0, seed=1, every=every)
        await RisingEdge(dut.clk)
        reads = StreamSource(dut, "port__reads", _READS)
        sink = StreamSink(dut, "port__data", _DATA)
        cocotb.start_soon(reads.send([{"address": 0, "transfers": 200}] * 2))
        await sink.receive(400)
    ratio = period / (1000 * CLOCK_NS)
    slower = max(1.0, every * ratio)
    took = sink.last_cycle - sink.first_cycle
    # Both ends of the stream lie anywhere in a cycle of the other clock.
    assert abs(took - 399 * slower) <= 2 * max(1, every * ratio), f"{took} cycles"
    # The memory takes a read an edge after it accepts, and offers data up to `every` later.
    least, most = crossing_cycles(1000 * CLOCK_NS, period)
    latency = sink.first_cycle - reads.first_cycle
    assert least + ratio - 1 <= latency <= most + (1 + every) * ratio + 1, \
        f"{latency} cycles, not {least} to {most}"


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize(period=_PERIODS)
async def writes_pass_reads(dut, period):
    """Write on while nobody takes what was read, and then take all of it."""
    await begin(dut, period)
    with cancelled_tasks():
        memory, user = Memory(dut, stall=0.0, seed=5), User(dut, stall=0.0, seed=6)
        await user.read(1)
        await user.write(60)
        while memory.words != user.written:
            await RisingEdge(dut.clk)
        await user.receive(len(user._awaited))


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize(period=_PERIODS)
async def pulses(dut, period):
    """Carry every event over, once."""
    await begin(dut, period)
    rng, seen = random.Random(period), 0

    async def count() -> None:
        nonlocal seen
        while True:
            await RisingEdge(dut.clk)
            seen += int(dut.pulse_seen.value)

    slower = max(period, 1000 * CLOCK_NS)
    with cancelled_tasks():
        cocotb.start_soon(count())
        for _ in range(200):
            dut.pulse.value = 1
            await RisingEdge(dut.memory_clk)
            dut.pulse.value = 0
            await Timer(4 * slower + rng.randrange(4 * slower), unit="ps")
            await RisingEdge(dut.memory_clk)
        await Timer(6 * slower, unit="ps")
    assert seen == 200


@cocotb.test(timeout_time=60, timeout_unit="ms")
@cocotb.parametrize(period=_PERIODS)
async def resets(dut, period):
    """Reset at any time, by both resets, once or again at once: what follows is as if new."""
    await begin(dut, period)
    rng = random.Random(period + 1)
    for number in range(40):
        with cancelled_tasks():
            cocotb.start_soon(work(dut, stall=(0.0, 0.5)[number % 2], seed=number, bursts=1000))
            await Timer(rng.randrange(1000, 3_000_000), unit="ps")
            await RisingEdge(dut.clk)
        # What is offered stays so through the first cycle of the reset.
        line = (dut.rst, dut.reset)[rng.randrange(2)]
        for _ in range(rng.choice((1, 1, 2, 3))):
            line.value = 1
            for _ in range(rng.choice((1, 1, 2, 20))):
                await RisingEdge(dut.clk)
            line.value = 0
            hold_inputs(dut, DUTS["all"]())
            for _ in range(rng.choice((0, 0, rng.randrange(12)))):
                await RisingEdge(dut.clk)
        with cancelled_tasks():
            memory, user = Memory(dut, stall=0.0, seed=number), User(dut, stall=0.0, seed=number)
            await user_work(dut, memory, user, 6)


@cocotb.test(timeout_time=60, timeout_unit="ms")
@cocotb.parametrize(period=_PERIODS)
async def a_reset_behind_a_reset(dut, period):
    """Reset again at each time in the course of a reset: it ends once, and then the port works."""
    await begin(dut, period)
    for gap in range(24):
        for cycles in (gap, 0):
            dut.reset.value = 1
            await RisingEdge(dut.clk)
            dut.reset.value = 0
            for _ in range(cycles):
                await RisingEdge(dut.clk)
        with cancelled_tasks():
            memory, user = Memory(dut, stall=0.0, seed=gap), User(dut, stall=0.0, seed=gap)
            await user_work(dut, memory, user, 8)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(period=_PERIODS)
async def nothing_is_accepted_before_the_memory_was_reset(dut, period):
    """Stay shut until the memory's reset has ended, which lasts two of its cycles at least."""
    await begin(dut, period)
    long = 0
    dut.reset.value = 1
    await RisingEdge(dut.clk)
    dut.reset.value = 0
    await ReadOnly()
    assert not dut.port__writes__ready.value
    for _ in range(200):
        await RisingEdge(dut.memory_clk)
        await ReadOnly()
        if dut.memory_reset.value:
            long += 1
            assert not dut.port__writes__ready.value
            assert not dut.port__reads__ready.value
        await Timer(1, unit="ps")
    assert long >= 2
    assert dut.port__writes__ready.value
