"""The AXI4 manager in front of the memory of cocotbext-axi, judged by that and by the bus's rules.

Every test runs a :class:`Rules` beside it. What the port delivers is compared with a model of the
memory in NumPy, :class:`Model`, which knows nothing of the bus.
"""

import random
from collections import deque

import cocotb
import numpy as np
from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cocotb.triggers import ClockCycles, RisingEdge

from hw.memory.axi4 import AXI4_IDENTIFIERS, WRITE_TRANSFERS, Axi4Master, axi4_signature
from hw.memory.port import port_signature
from sim.axi4 import DECERR, LATENCY, SLVERR, Rules, Subordinate, pauses
from sim.runner import bench_case
from sim.streams import StreamSink, StreamSource, start
from sim.timing.units import axi4_read_cycles

ADDRESS_WIDTH = 16
MEMORY_BYTES = 2 ** ADDRESS_WIDTH

#: Bytes of a transfer of the ports that stand side by side in each case. A page is less than the
#: longest burst up to 8 bytes, and more from 32 on.
CASES = {"ends": (1, 8, 128), "between": (2, 4, 16, 32, 64)}
SLOW = ("between",)
#: Those of the case that runs; outside a simulator nothing does.
WIDTHS = CASES[bench_case() if cocotb.is_simulation else "ends"]


#: Bursts that may be under way, as the manager's docstring says.
READS_UNDER_WAY, WRITES_UNDER_WAY = 32, 16


class Managers(wiring.Component):
    """Managers of several widths, side by side."""

    def __init__(self, widths: tuple[int, ...]):
        self.widths = widths
        members = {}
        for width in widths:
            members |= {
                f"port_{width}": In(port_signature(address_width=ADDRESS_WIDTH,
                                                   port_bytes=width)),
                f"bus_{width}": Out(axi4_signature(address_width=ADDRESS_WIDTH,
                                                   data_width=8 * width)),
                f"restart_{width}": In(1),
                **{f"bus_{width}__{name}": member for name, member in AXI4_IDENTIFIERS.items()},
            }
        super().__init__(members)

    def elaborate(self, platform):
        """Put the managers side by side."""
        m = Module()
        for width in self.widths:
            master = Axi4Master(address_width=ADDRESS_WIDTH, port_bytes=width)
            m.submodules[f"master_{width}"] = master
            wiring.connect(m, wiring.flipped(getattr(self, f"port_{width}")), master.port)
            wiring.connect(m, master.bus, wiring.flipped(getattr(self, f"bus_{width}")))
            m.d.comb += master.restart.eq(getattr(self, f"restart_{width}"))
        return m


DUTS = {case: lambda widths=widths: Managers(widths) for case, widths in CASES.items()}


class Model:
    """What the memory behind a port holds, and what each read may find; and the port's stimuli.

    A read finds, of each transfer, what was written before it was accepted, or anything that was
    written since: see :func:`hw.memory.port.port_signature`.
    """

    def __init__(self, dut, width: int, *, stall: float = 0.0, seed: int = 0):
        self.dut, self.width, self.name = dut, width, f"port_{width}"
        self.rng = random.Random(seed)
        self._stall, self._seed = stall, seed
        self.rows = MEMORY_BYTES // width
        contents = np.random.default_rng(seed).bytes(MEMORY_BYTES)
        self.memory = np.frombuffer(contents, np.uint8).reshape(self.rows, width).copy()
        spec = port_signature(address_width=ADDRESS_WIDTH, port_bytes=width).create()
        self._shapes = {name: getattr(spec, name).payload.shape()
                        for name in ("reads", "data", "writes")}
        self.error_shape = spec.error.shape()
        self._awaited: deque[tuple[int, list[np.ndarray]]] = deque()    # row, what it may be
        self._burst: list[tuple[int, np.ndarray]] = []      # row and what it held before
        self.read_transfers = self.written_transfers = 0
        self._ends()
        cocotb.start_soon(self._watch())

    def _ends(self) -> None:
        self._seed += 3
        self.reads, self.writes = (
            StreamSource(self.dut, f"{self.name}__{name}", self._shapes[name], stall=self._stall,
                         seed=self._seed + number)
            for number, name in enumerate(("reads", "writes")))
        self.data = StreamSink(self.dut, f"{self.name}__data", self._shapes["data"],
                               stall=self._stall, seed=self._seed + 2)

    def _moved(self, name: str):
        stream = f"{self.name}__{name}__"
        if not (self.dut[f"{stream}valid"].value and self.dut[f"{stream}ready"].value):
            return None
        return self._shapes[name].from_bits(self.dut[f"{stream}payload"].value.to_unsigned())

    async def _watch(self) -> None:
        restart = self.dut[f"restart_{self.width}"]
        while True:
            await RisingEdge(self.dut.clk)
            if (write := self._moved("writes")) is not None:
                row = write.address // self.width
                self._burst.append((row, self.memory[row].copy()))
                self.memory[row] = np.frombuffer(write.data.to_bytes(self.width, "little"),
                                                 np.uint8)
                for awaited, found in self._awaited:
                    if awaited == row:
                        found.append(self.memory[row].copy())
                last_of_page = (write.address + self.width) % 4096 == 0
                if write.last or last_of_page or len(self._burst) == WRITE_TRANSFERS:
                    self._burst.clear()
                self.written_transfers += 1
            if (read := self._moved("reads")) is not None:
                row = read.address // self.width
                self._awaited.extend((row + k, [self.memory[row + k].copy()])
                                     for k in range(read.transfers))
            if (transfer := self._moved("data")) is not None:
                row, allowed = self._awaited.popleft()
                data = np.frombuffer(transfer.data.to_bytes(self.width, "little"), np.uint8)
                assert any((data == each).all() for each in allowed), (self.width, row)
                self.read_transfers += 1
            if restart.value:
                self._awaited.clear()
                while self._burst:              # its address was never offered
                    row, before = self._burst.pop()
                    self.memory[row] = before

    def burst(self, longest: int) -> tuple[int, int]:
        """Choose {address, transfers} within the memory, now and then over the end of a page."""
        count = self.rng.choice((1, 2, 15, 16, 17, longest, self.rng.randint(1, longest)))
        row = self.rng.randrange(self.rows)
        if self.rng.random() < 0.3:
            row = 4096 * self.rng.randint(1, MEMORY_BYTES // 4096) // self.width - (
                self.rng.randint(1, 3))
        return min(row, self.rows - count) * self.width, count

    async def write(self, count: int) -> None:
        """Write ``count`` bursts, half of them where others read."""
        for _ in range(count):
            address, transfers = self.burst(40)
            if self.rng.random() < 0.5:
                address %= 4096
            await self.writes.send(
                {"address": address + k * self.width, "last": k == transfers - 1,
                 "data": self.rng.getrandbits(8 * self.width)} for k in range(transfers))

    async def read(self, count: int) -> None:
        """Ask for ``count`` bursts, half of them where others write."""
        for _ in range(count):
            address, transfers = self.burst(256)
            if self.rng.random() < 0.5:
                address %= 4096
            await self.reads.send([{"address": address, "transfers": transfers}])

    async def take(self) -> None:
        """Take data for ever."""
        while True:
            await self.data.receive(1)

    async def settle(self) -> None:
        """Wait until all that was asked for has come."""
        idle = 0
        while idle < 120:
            await RisingEdge(self.dut.clk)
            idle = 0 if self._awaited or self._burst else idle + 1

    async def restart(self, tasks: list) -> None:
        """Reset the port's user for some cycles, and with it what it has begun: ``tasks``."""
        self.dut[f"restart_{self.width}"].value = 1
        await RisingEdge(self.dut.clk)          # it works on up to this edge
        for task in tasks:
            task.cancel()
        self._ends()
        await ClockCycles(self.dut.clk, self.rng.choice((0, 0, 3)))
        self.dut[f"restart_{self.width}"].value = 0

    @property
    def error(self) -> tuple[int, int, int, int]:
        """The port's error: {valid, write, response, address}."""
        error = self.error_shape.from_bits(self.dut[f"{self.name}__error"].value.to_unsigned())
        return error.valid, error.write, error.response, error.address


async def begin(dut, width: int, *, stall: float = 0.0, seed: int = 0):
    """Reset all, and return model, memory and rules of one port; the others stay idle."""
    spec = DUTS[bench_case()]()
    for path, member, _ in spec.signature.flatten(spec):
        if member.flow is In:
            dut["__".join(map(str, path))].value = 0
    subordinate = Subordinate(dut, f"bus_{width}_", MEMORY_BYTES, stall=stall, seed=seed)
    await start(dut)
    model = Model(dut, width, stall=stall / 2, seed=seed)
    subordinate.ram.write(0, model.memory.tobytes())
    return model, subordinate, Rules(dut, f"bus_{width}_", width)


async def end(model: Model, subordinate: Subordinate, rules: Rules) -> None:
    """Compare the memory with the model, once all is done."""
    subordinate.pause(0.0)
    await model.settle()
    rules.stop()
    assert bytes(subordinate.ram.read(0, MEMORY_BYTES)) == model.memory.tobytes()


def each_width(function):
    """Make a test of ``function`` for each width of the case."""
    return cocotb.test(timeout_time=400, timeout_unit="us")(
        cocotb.parametrize(width=WIDTHS)(function))


@each_width
async def read_cycles_equal_formula(dut, width):
    """Read bursts of any length without a gap between them, over ends of pages too."""
    model, subordinate, rules = await begin(dut, width)
    for bursts in ([(0, 1)], [(4096 - width, 256)],
                   [(4096 - width, 2), (8 * width, 1), (0, 1), (0, 3), (8192 - width, 100)]):
        model.reads.first_cycle = -1
        counts = [count for _, count in bursts]
        receiving = cocotb.start_soon(model.data.receive(sum(counts)))
        await model.reads.send({"address": address, "transfers": count}
                               for address, count in bursts)
        await receiving
        taken = model.data.last_cycle - model.reads.first_cycle + 1
        assert taken == axi4_read_cycles(counts, latency=LATENCY), (width, bursts)
    await end(model, subordinate, rules)


@each_width
async def much_is_under_way(dut, width):
    """Have as many bursts under way as may be while nothing is answered; then all come."""
    model, subordinate, rules = await begin(dut, width)
    cocotb.start_soon(model.take())
    for channel in ("b", "r"):
        subordinate.channels[channel].pause = True
    reads, row = READS_UNDER_WAY + 3, model.rows // 2
    reading = cocotb.start_soon(model.reads.send(
        {"address": (row + k) * width, "transfers": 1} for k in range(reads)))
    await ClockCycles(dut.clk, 4 * reads)
    assert len(rules.owed["ar"]) == READS_UNDER_WAY
    writes = WRITES_UNDER_WAY + 3
    writing = cocotb.start_soon(model.writes.send(
        {"address": k * width, "data": k, "last": 1} for k in range(writes)))
    await ClockCycles(dut.clk, 4 * writes)
    assert rules.unanswered == WRITES_UNDER_WAY
    subordinate.pause(0.0)
    await reading
    await writing
    await model.settle()
    assert (model.read_transfers, model.written_transfers) == (reads, writes)
    await end(model, subordinate, rules)


@each_width
@cocotb.parametrize(stall=[0.0, 0.5, 0.8])
async def interleaved_reads_and_writes(dut, width, stall):
    """Read and write at once, often the same bytes, while all channels pause at random."""
    model, subordinate, rules = await begin(dut, width, stall=stall, seed=width + 1)
    cocotb.start_soon(model.take())
    tasks = [cocotb.start_soon(model.write(12)), cocotb.start_soon(model.read(12))]
    for task in tasks:
        await task
    await model.settle()
    assert model.read_transfers > 100
    assert model.written_transfers > 50
    assert not model.error[0]
    await end(model, subordinate, rules)


@each_width
async def reads_find_what_was_written_before(dut, width):
    """Read what was just written, whichever of the channels pauses."""
    model, subordinate, rules = await begin(dut, width, seed=width + 11)
    cocotb.start_soon(model.take())
    for channel in ("aw", "w", "b", "ar", "r"):
        subordinate.pause(0.0)
        subordinate.channels[channel].set_pause_generator(pauses(random.Random(3), 0.8))
        for _ in range(4):
            address, transfers = model.burst(20)
            await model.writes.send(
                {"address": address + k * width, "last": k == transfers - 1,
                 "data": model.rng.getrandbits(8 * width)} for k in range(transfers))
            await model.reads.send([{"address": address, "transfers": transfers}])
        await model.settle()
    await end(model, subordinate, rules)


@each_width
@cocotb.parametrize(response=[SLVERR, DECERR])
async def errors_are_told(dut, width, response):
    """Tell the first error with its address until a restart; data come nevertheless."""
    model, subordinate, rules = await begin(dut, width, stall=0.3, seed=width + 21)
    cocotb.start_soon(model.take())
    assert model.error[0] == 0
    # Ten transfers over the end of a page: the fifth of them fails, and a later one otherwise.
    address = 8192 - 2 * width
    subordinate.read_failures |= {4: response, 7: SLVERR + DECERR - response}
    valid = dut[f"port_{width}__data__valid"]
    await model.reads.send([{"address": address, "transfers": 10}])
    while model.read_transfers < 4:
        await RisingEdge(dut.clk)
    while not valid.value:
        await RisingEdge(dut.clk)
    assert model.error == (1, 0, response, address + 4 * width), "known before the data are"
    await model.settle()
    assert model.read_transfers == 10
    assert model.error == (1, 0, response, address + 4 * width)
    await model.restart([])
    await ClockCycles(dut.clk, 4)
    assert model.error[0] == 0
    # Of three bursts that are written the second fails.
    subordinate.write_failures[1] = response
    await model.writes.send({"address": 4096 + k * width, "last": k == 39, "data": k}
                            for k in range(40))
    await model.settle()
    page_rest = min(WRITE_TRANSFERS, 4096 // width)
    assert model.error == (1, 1, response, 4096 + page_rest * width)
    await end(model, subordinate, rules)


@each_width
@cocotb.parametrize(stall=[0.0, 0.6])
async def restarts_in_mid_work(dut, width, stall):
    """Reset the user at random times in mid-burst: what follows finds nothing of before.

    What was read before does not come afterwards; of what was written, whole bursts are there.
    """
    model, subordinate, rules = await begin(dut, width, stall=stall, seed=width + 31)
    rng = random.Random(width)
    cut = 0
    for _ in range(25):
        tasks = [cocotb.start_soon(task) for task in (model.take(), model.write(9),
                                                      model.read(9))]
        await ClockCycles(dut.clk, rng.choice((1, 2, 3, rng.randint(4, 60), 150)))
        cut += bool(rules.owed["ar"] or rules.owed["aw"])
        await model.restart(tasks)              # perhaps while the one before is still drained
    assert cut > 4
    assert not model.error[0]
    taking = cocotb.start_soon(model.take())
    before = model.read_transfers
    await model.write(3)
    await model.read(3)
    await model.settle()
    assert model.read_transfers > before
    taking.cancel()
    await end(model, subordinate, rules)


@each_width
async def restart_without_debts_takes_two_cycles(dut, width):
    """Accept again in the second cycle after a restart, if nothing is owed."""
    model, subordinate, rules = await begin(dut, width)
    ready = [dut[f"port_{width}__{name}__ready"] for name in ("reads", "writes")]
    restart = dut[f"restart_{width}"]
    restart.value = 1
    await RisingEdge(dut.clk)
    restart.value = 0
    await RisingEdge(dut.clk)
    assert [int(each.value) for each in ready] == [0, 0]
    await RisingEdge(dut.clk)
    assert [int(each.value) for each in ready] == [1, 1]
    await end(model, subordinate, rules)


@each_width
async def errors_of_before_a_restart_are_dropped(dut, width):
    """Drop an error that answers what was asked for before a restart."""
    model, subordinate, rules = await begin(dut, width)
    subordinate.read_failures |= dict.fromkeys(range(16), SLVERR)
    subordinate.write_failures[0] = DECERR
    for channel in ("b", "r"):
        subordinate.channels[channel].pause = True
    await model.writes.send([{"address": 0, "data": 1, "last": 1}])
    await ClockCycles(dut.clk, 20)
    assert rules.unanswered == 1
    await model.restart([])
    subordinate.channels["b"].pause = False
    await ClockCycles(dut.clk, 20)
    assert model.error[0] == 0
    await model.reads.send([{"address": 0, "transfers": 16}])
    await ClockCycles(dut.clk, 20)
    await model.restart([])
    subordinate.channels["r"].pause = False
    cocotb.start_soon(model.take())
    await model.reads.send([{"address": 4096, "transfers": 5}])
    await model.settle()
    assert model.read_transfers == 5
    assert model.error[0] == 0
    await end(model, subordinate, rules)
