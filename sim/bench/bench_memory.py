"""Block RAM, the shared port and prefetch, each with exact cycles or against random stalls."""

import dataclasses
import random
from collections import deque

import cocotb
from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cocotb.triggers import ClockCycles, RisingEdge

from hw.common.stream import connect_stream
from hw.config import AcceleratorConfig, EngineConfig
from hw.memory.arbiter import SharedPort
from hw.memory.axi4 import AXI4_IDENTIFIERS, Axi4Master, axi4_signature
from hw.memory.block_ram_memory import BlockRamMemory
from hw.memory.port import error_layout, port_signature, read_layout
from hw.memory.read_engine import Kind, ReadEngine, burst_transfers
from sim.axi4 import DECERR, LATENCY, Subordinate
from sim.golden.fetch import fetched_bytes, fetched_transfers
from sim.resets import hold_inputs, resets_in_mid_work
from sim.streams import StreamSink, StreamSource, start
from sim.timing import units as cycles

ADDRESS_WIDTH = 16
MEMORY_BYTES = 2 ** ADDRESS_WIDTH
RAM_BYTES = 8
#: Bytes of the port that is shared; behind it there is AXI4.
SHARED_BYTES = 16
#: Transfers that the bench reads at once there.
READS_AHEAD = 4096


def _accelerator(*, queue_words: int, context: int = 0, index_width: int = 10,
                 **engine) -> AcceleratorConfig:
    return AcceleratorConfig(
        context=context,
        engine=EngineConfig(accumulator_depth=16, max_planes=2, index_width=index_width, **engine),
        queue_words=queue_words, vector_depth=1024, address_width=ADDRESS_WIDTH)


#: Transfer smaller than a word, larger, and equal, where nothing is to be shifted.
READ_ENGINES = {
    "smaller": _accelerator(queue_words=128, context=32),
    "larger": _accelerator(port_bytes=32, lanes=8, packing="3in5", queue_words=64),
    "equal": _accelerator(lanes=40, queue_words=64, index_width=20),
}


class Bench(wiring.Component):
    """All units side by side; names of the ports end in those of the units."""

    def __init__(self):
        members = {"port_ram": In(port_signature(address_width=ADDRESS_WIDTH,
                                                 port_bytes=RAM_BYTES))}
        self._shared = SharedPort(address_width=ADDRESS_WIDTH, port_bytes=SHARED_BYTES,
                                  reads_ahead=READS_AHEAD)
        members |= {
            "port_shared": In(port_signature(address_width=ADDRESS_WIDTH,
                                             port_bytes=SHARED_BYTES)),
            "bus": Out(axi4_signature(address_width=ADDRESS_WIDTH, data_width=8 * SHARED_BYTES)),
            **{f"bus__{name}": member for name, member in AXI4_IDENTIFIERS.items()},
            **{f"{name}_shared": self._shared.signature.members[name]
               for name in ("i_writes", "i_reads", "o_data")},
        }
        self._read_engines = {name: ReadEngine(config) for name, config in READ_ENGINES.items()}
        for name, read_engine in self._read_engines.items():
            members |= {f"{port}_{name}": member
                        for port, member in read_engine.signature.members.items()}
        super().__init__(members)

    def elaborate(self, platform):
        """Put the units side by side."""
        m = Module()
        m.submodules.ram = ram = BlockRamMemory(address_width=ADDRESS_WIDTH, port_bytes=RAM_BYTES,
                                                depth=MEMORY_BYTES // RAM_BYTES // 8,
                                                target="ecp5")
        wiring.connect(m, wiring.flipped(self.port_ram), ram.port)
        m.submodules.shared = shared = self._shared
        m.submodules.behind = behind = Axi4Master(address_width=ADDRESS_WIDTH,
                                                  port_bytes=SHARED_BYTES)
        wiring.connect(m, wiring.flipped(self.port_shared), shared.accelerator)
        wiring.connect(m, shared.memory, behind.port)
        wiring.connect(m, behind.bus, wiring.flipped(self.bus))
        connect_stream(m, wiring.flipped(self.i_writes_shared), shared.i_writes)
        connect_stream(m, wiring.flipped(self.i_reads_shared), shared.i_reads)
        connect_stream(m, shared.o_data, wiring.flipped(self.o_data_shared))
        for name, read_engine in self._read_engines.items():
            m.submodules[f"read_engine_{name}"] = read_engine
            for port in read_engine.signature.members:
                outer, inner = wiring.flipped(getattr(self, f"{port}_{name}")), getattr(read_engine,
                                                                                       port)
                if port.startswith("i_"):
                    connect_stream(m, outer, inner)
                else:
                    connect_stream(m, inner, outer)
        return m


DUTS = {"all": Bench}


async def begin(dut) -> None:
    """Hold all inputs, so that a unit that is not under test sees nothing, and reset."""
    hold_inputs(dut, DUTS["all"]())
    await start(dut)


# The memory port.

class Port:
    """A user of a memory port, and what the memory behind it holds."""

    def __init__(self, dut, name, port_bytes, memory_bytes, *, stall=0.0, seed=0):
        self.bytes = port_bytes
        self.rng = random.Random(seed)
        self.memory = bytearray(memory_bytes)
        spec = port_signature(address_width=ADDRESS_WIDTH, port_bytes=port_bytes).create()
        self.reads = StreamSource(dut, f"{name}__reads", spec.reads.payload.shape(), stall=stall,
                                  seed=seed)
        self.data = StreamSink(dut, f"{name}__data", spec.data.payload.shape(), stall=stall,
                               seed=seed + 1)
        self.writes = StreamSource(dut, f"{name}__writes", spec.writes.payload.shape(),
                                   stall=stall, seed=seed + 2)

    async def write(self, address: int, transfers: int) -> None:
        """Write a burst of random bytes."""
        text = self.rng.randbytes(transfers * self.bytes)
        self.memory[address:address + len(text)] = text
        await self.writes.send(
            {"address": address + k, "last": k + self.bytes == len(text),
             "data": int.from_bytes(text[k:k + self.bytes], "little")}
            for k in range(0, len(text), self.bytes))

    async def read(self, bursts: list[tuple[int, int]]) -> None:
        """Read {address, transfers} and compare all that comes."""
        receiving = cocotb.start_soon(self.data.receive(sum(count for _, count in bursts)))
        await self.reads.send({"address": address, "transfers": count}
                              for address, count in bursts)
        text = b"".join(transfer.data.to_bytes(self.bytes, "little")
                        for transfer in await receiving)
        assert text == b"".join(self.memory[address:address + count * self.bytes]
                                for address, count in bursts)

    def burst(self, longest: int) -> tuple[int, int]:
        """Choose a burst that fits the memory, now and then at the end of a page."""
        count = self.rng.choice((1, 2, 15, 16, 17, self.rng.randint(1, longest)))
        if self.rng.random() < 0.3:
            row = 4096 * self.rng.randint(1, len(self.memory) // 4096) // self.bytes - 1
        else:
            row = self.rng.randrange(len(self.memory) // self.bytes)
        return min(row, len(self.memory) // self.bytes - count) * self.bytes, count

    async def exercise(self, rounds: int) -> None:
        """Write some bursts, then read them and others at once."""
        for _ in range(rounds):
            bursts = [self.burst(40) for _ in range(self.rng.randint(1, 5))]
            for burst in bursts:
                await self.write(*burst)
            others = [self.burst(256) for _ in range(self.rng.randint(0, 3))]
            await self.read([bursts[-1], *self.rng.sample(bursts, len(bursts)), *others])


@cocotb.test(timeout_time=500, timeout_unit="us")
async def block_ram_cycles_equal_formula(dut):
    """Bursts of any length follow one another without a gap."""
    await begin(dut)
    port = Port(dut, "port_ram", RAM_BYTES, 8192)
    await port.write(0, 1024)
    for counts in ([1], [256], [1, 1, 1, 7, 2, 256, 1, 30]):
        port.reads.first_cycle = -1
        await port.read([(8 * port.rng.randrange(768), count) for count in counts])
        taken = port.data.last_cycle - port.reads.first_cycle + 1
        assert taken == cycles.block_ram_memory_cycles(counts), counts


@cocotb.test(timeout_time=500, timeout_unit="us")
async def block_ram_keeps_what_is_written(dut):
    """Random bursts, with and without stalls."""
    await begin(dut)
    for stall in (0.0, 0.4):
        port = Port(dut, "port_ram", RAM_BYTES, 8192, stall=stall, seed=2)
        await port.write(0, 1024)
        await port.exercise(8)
    # Bits of an address above the depth are ignored.
    port.memory *= MEMORY_BYTES // 8192
    for address in (8192, MEMORY_BYTES - 512, 5 * 8192 + 64):
        await port.read([(address, 64)])


# A port that accelerator and host share.

@cocotb.test(timeout_time=1000, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.4])
async def shared_port_serves_accelerator_and_host(dut, stall):
    """Bursts of the accelerator, and between them transfers of the host in another half."""
    memory = Subordinate(dut, "bus_", MEMORY_BYTES, stall=stall, seed=5)
    await begin(dut)
    half = MEMORY_BYTES // 2
    port = Port(dut, "port_shared", SHARED_BYTES, half, stall=stall, seed=6)
    contents = port.rng.randbytes(MEMORY_BYTES)
    memory.ram.write(0, contents)
    port.memory[:] = contents[:half]
    expected = bytearray(contents[half:])
    rng = random.Random(7)
    spec = SharedPort(address_width=ADDRESS_WIDTH, port_bytes=SHARED_BYTES, reads_ahead=1)
    writes = StreamSource(dut, "i_writes_shared", spec.i_writes.payload.shape(), stall=stall,
                          seed=8)
    reads = StreamSource(dut, "i_reads_shared", spec.i_reads.payload.shape(), stall=stall, seed=9)
    data = StreamSink(dut, "o_data_shared", spec.o_data.payload.shape(), stall=stall, seed=10)
    exercise = cocotb.start_soon(port.exercise(12))
    served = 0
    while not exercise.done():
        place = SHARED_BYTES * rng.randrange(half // SHARED_BYTES)
        text = rng.randbytes(SHARED_BYTES)
        expected[place:place + SHARED_BYTES] = text
        await writes.send([{"address": half + place, "data": int.from_bytes(text, "little")}])
        if rng.random() < 0.5:
            place = SHARED_BYTES * rng.randrange(half // SHARED_BYTES)
        await reads.send([{"address": half + place}])
        found = (await data.receive(1))[0].data.to_bytes(SHARED_BYTES, "little")
        assert found == expected[place:place + SHARED_BYTES]
        served += 1
        await ClockCycles(dut.clk, rng.choice((1, 1, 10, 60)))
    assert served > 8
    await ClockCycles(dut.clk, 200)
    assert bytes(memory.ram.read(0, MEMORY_BYTES)) == port.memory + expected
    # The accelerator is told of an error whoever has asked.
    assert dut.port_shared__error.value == 0
    memory.read_failures[memory.sent["r"]] = DECERR
    await reads.send([{"address": half}])
    await data.receive(1)
    error = error_layout(ADDRESS_WIDTH).from_bits(dut.port_shared__error.value.to_unsigned())
    assert (error.valid, error.write, error.response, error.address) == (1, 0, DECERR, half)


@cocotb.test(timeout_time=500, timeout_unit="us")
async def shared_port_delays_no_transfer_of_the_accelerator(dut):
    """Read through the shared port in the cycles of the memory; the accelerator goes first."""
    memory = Subordinate(dut, "bus_", MEMORY_BYTES)
    await begin(dut)
    port = Port(dut, "port_shared", SHARED_BYTES, MEMORY_BYTES)
    port.memory[:] = contents = port.rng.randbytes(MEMORY_BYTES)
    memory.ram.write(0, contents)
    counts = [1, 30, 2, 100]
    for waiting in (0, 1):
        dut.i_reads_shared__valid.value = waiting
        port.reads.first_cycle = -1
        await port.read([(512 * SHARED_BYTES * k % 4096, count)
                         for k, count in enumerate(counts)])
        taken = port.data.last_cycle - port.reads.first_cycle + 1
        assert taken == cycles.axi4_read_cycles(counts, latency=LATENCY), waiting
    await ClockCycles(dut.clk, 30)


# Prefetch.

@dataclasses.dataclass(frozen=True)
class Fetch:
    """A fetch and, for COLUMNS, its list."""

    kind: Kind
    address: int
    size: int
    count: int = 0
    indices: tuple[int, ...] = ()

    @property
    def columns(self) -> tuple[int, ...]:
        """Columns that are read, in their order."""
        return self.indices if self.kind is Kind.COLUMNS else tuple(range(self.count))


#: Where each kind of fetch is delivered.
_DELIVERED = {"o_weights": (Kind.WHOLE, Kind.COLUMNS), "o_vector": (Kind.VECTOR,),
              "o_cache": (Kind.CACHE,)}


class Machine:
    """A read engine's streams, and a memory behind its port that answers in order."""

    def __init__(self, dut, name, *, latency=20, stall=0.0, seed=0):
        self.dut, self.name, self.config = dut, name, READ_ENGINES[name]
        self._stall, self._latency, self._rng = stall, latency, random.Random(seed)
        self.memory = random.Random(1).randbytes(MEMORY_BYTES)
        spec = ReadEngine(self.config)
        self.sources = {port: StreamSource(dut, f"{port}_{name}",
                                           getattr(spec, port).payload.shape(), stall=stall,
                                           seed=seed) for port in ("i_fetches", "i_columns")}
        self.sinks = {port: StreamSink(dut, f"{port}_{name}",
                                       getattr(spec, port).payload.shape(), stall=stall,
                                       seed=seed)
                      for port in spec.signature.members if port in _DELIVERED}
        #: Transfers of each read.
        self.reads: list[int] = []
        self.task = cocotb.start_soon(self._run())

    async def _run(self):
        dut, name, size = self.dut, self.name, self.config.port_bytes
        shape = read_layout(ADDRESS_WIDTH)
        answers: deque = deque()
        now, ready, offered, giving = 0, 0, None, False
        while True:
            await RisingEdge(dut.clk)
            valid = dut[f"o_reads_{name}__valid"].value
            payload = dut[f"o_reads_{name}__payload"].value.to_unsigned()
            assert offered is None or (valid and payload == offered), "read changed"
            offered = payload if valid and not ready else None
            if valid and ready:
                read = shape.from_bits(payload)
                assert read.address % size == 0
                assert 1 <= read.transfers <= burst_transfers(self.config)
                self.reads.append(read.transfers)
                text = self.memory[read.address:read.address + read.transfers * size]
                answers.extend((now + self._latency, int.from_bytes(text[k:k + size], "little"))
                               for k in range(0, len(text), size))
            if giving:
                assert dut[f"i_data_{name}__ready"].value
                answers.popleft()
            now += 1
            ready = int(self._rng.random() >= self._stall)
            giving = bool(answers and answers[0][0] <= now and self._rng.random() >= self._stall)
            dut[f"o_reads_{name}__ready"].value = ready
            dut[f"i_data_{name}__valid"].value = giving
            dut[f"i_data_{name}__payload"].value = answers[0][1] if giving else 0

    async def fetch(self, fetches: list[Fetch], *, late: int = 0) -> None:
        """Send fetches and lists, and compare all that comes, taken ``late`` cycles later."""
        wanted: dict[str, list] = {name: [] for name in self.sinks}
        columns: list[dict] = []
        for item in fetches:
            listed = item.kind is Kind.COLUMNS
            text = fetched_bytes(self.memory, item.address, item.size, item.columns)
            transfers = fetched_transfers(self.config, text, listed=listed)
            next(wanted[name] for name, kinds in _DELIVERED.items()
                 if item.kind in kinds).extend(transfers)
            if listed:
                columns += [{"index": index, "end": 0} for index in item.indices]
                columns.append({"index": self._rng.randrange(1024), "end": 1})
        sending = [cocotb.start_soon(task) for task in (
            self.sources["i_columns"].send(columns),
            self.sources["i_fetches"].send(
                {"kind": item.kind, "address": item.address, "size": item.size,
                 "count": item.count} for item in fetches))]
        if late:
            await ClockCycles(self.dut.clk, late)
            # The queue, and behind it two transfers of the RAM's read and two that are joined.
            most = min(self.config.queue_words, sum(map(len, wanted.values())))
            assert 0 <= sum(self.reads) - most <= 4, self.name
        receiving = {name: cocotb.start_soon(self.sinks[name].receive(len(transfers)))
                     for name, transfers in wanted.items()}
        delivered = {name: await task for name, task in receiving.items()}
        for task in sending:
            await task
        wide = self.config.port_bytes > self.config.engine.word_bytes
        for name, transfers in wanted.items():
            for got, (text, last, padding) in zip(delivered[name], transfers, strict=True):
                assert got.data.to_bytes(self.config.port_bytes, "little")[:len(text)] == text
                assert name == "o_cache" or got.last == last
                assert not (wide and last and name == "o_weights") or got.spare == padding

    def cycles(self, stream: str) -> int:
        """Count the cycles from the first fetch accepted to the last transfer of ``stream``."""
        return self.sinks[stream].last_cycle - self.sources["i_fetches"].first_cycle + 1


@cocotb.test(timeout_time=500, timeout_unit="us")
async def fetch_cycles_equal_formula(dut):
    """Each kind for itself; matrices that follow one another without a gap."""
    await begin(dut)
    for name, config in READ_ENGINES.items():
        word, port = config.engine.word_bytes, config.port_bytes
        for latency in (1, 20):
            machine = Machine(dut, name, latency=latency)
            for matrices in ([(1, 1)], [(2, 33)], [(7, 60), (3, 400 // word), (30, 12 * port)]):
                machine.sources["i_fetches"].first_cycle = -1
                await machine.fetch([Fetch(Kind.WHOLE, 4096, groups * word, count)
                                     for groups, count in matrices])
                transfers = [-(-groups * word * count // port) for groups, count in matrices]
                assert (machine.cycles("o_weights")
                        == cycles.fetch_cycles(transfers, latency=latency)), (name, matrices)
            bursts = (2 if latency == 1 else 1) * burst_transfers(config)
            for words in (1, 40, bursts * port // 16):
                machine.sources["i_fetches"].first_cycle = -1
                await machine.fetch([Fetch(Kind.VECTOR, 4096, 16, words)])
                assert (machine.cycles("o_vector") == cycles.fetch_cycles(
                    [-(-16 * words // port)], latency=latency, aligned=False)), (name, words)
            for groups, indices in ((1, (5,)), (1, tuple(range(0, 40, 3))), (9, (0, 1, 7, 100))):
                machine.sources["i_fetches"].first_cycle = -1
                await machine.fetch([Fetch(Kind.COLUMNS, 4096, groups * word, 0, indices)])
                touched = cycles.touched_transfers(config, groups * word, indices)
                padded = groups * word * len(indices) % port != 0
                assert (machine.cycles("o_weights") == cycles.fetch_cycles(
                    [touched], latency=latency, padded_list=padded)), (name, groups, indices)
            machine.task.cancel()


@cocotb.test(timeout_time=500, timeout_unit="us")
async def fetches_in_any_order(dut):
    """Random fetches of all kinds, with and without stalls; empty lists among them."""
    await begin(dut)
    for name, config in READ_ENGINES.items():
        word, port = config.engine.word_bytes, config.port_bytes
        for stall in (0.0, 0.3):
            machine = Machine(dut, name, stall=stall, seed=7)
            rng = random.Random(8)
            fetches = []
            kinds = [kind for kind in Kind if config.context or kind is not Kind.CACHE]
            for kind in [*kinds, *rng.choices(kinds, k=15)]:
                size = 16
                if kind not in (Kind.VECTOR, Kind.CACHE):
                    size = word * rng.choice((1, 2, 3, 11, 32))
                count = rng.choice((1, 2, 25))
                indices = tuple(sorted(rng.sample(range(min(1024, MEMORY_BYTES // 2 // size)),
                                                  rng.choice((0, 1, 2, 20)))))
                fetches.append(Fetch(kind, port * rng.randrange(MEMORY_BYTES // 2 // port), size,
                                     count, indices))
            await machine.fetch(fetches)
            machine.task.cancel()


@cocotb.test(timeout_time=500, timeout_unit="us")
async def full_queue_stops_reading(dut):
    """Nothing takes what was read: no more is read than the queue holds, and all is there later."""
    await begin(dut)
    for name, config in READ_ENGINES.items():
        machine = Machine(dut, name)
        size = 16 * config.engine.word_bytes
        columns = 3 * config.queue_words * config.port_bytes // size
        await machine.fetch([Fetch(Kind.WHOLE, 0, size, columns)], late=3 * config.queue_words)
        machine.task.cancel()


@cocotb.test(timeout_time=500, timeout_unit="us")
async def what_has_waited_leaves_without_a_gap(dut):
    """Take a transfer that has waited, and others that came some time after it, in a row."""
    await begin(dut)
    for name in READ_ENGINES:
        machine = Machine(dut, name)
        sink = machine.sinks["o_vector"]
        await machine.fetch([Fetch(Kind.VECTOR, 0, 16, 1), Fetch(Kind.VECTOR, 4096, 16, 40)],
                            late=200)
        transfers = sum(-(-16 * words // machine.config.port_bytes) for words in (1, 40))
        assert sink.last_cycle - sink.first_cycle + 1 == transfers, name
        machine.task.cancel()


# Resets.

@cocotb.test(timeout_time=1000, timeout_unit="us")
async def resets(dut):
    """Reset with reads owed, queues part full and columns under way; the RAM keeps its bytes."""
    await begin(dut)
    first = Port(dut, "port_ram", RAM_BYTES, 8192)
    await first.write(0, 64)

    async def use_ram(stall, seed):
        port = Port(dut, "port_ram", RAM_BYTES, 8192, stall=stall, seed=seed)
        port.memory[:512] = first.memory[:512]
        bursts = [(512 + 256 * k, count) for k, count in enumerate((1, 17, 30, 2))]
        for burst in bursts:
            await port.write(*burst)
        await port.read([*bursts, (0, 64), *bursts[::-1]])

    async def fetch(name, stall, seed):
        machine, rng = Machine(dut, name, stall=stall, seed=seed), random.Random(seed)
        word, port = machine.config.engine.word_bytes, machine.config.port_bytes
        kinds = [kind for kind in Kind if machine.config.context or kind is not Kind.CACHE]
        await machine.fetch([
            Fetch(kind, port * rng.randrange(64), 16 if kind in (Kind.VECTOR, Kind.CACHE)
                  else 3 * word, 6, tuple(sorted(rng.sample(range(300), 5))))
            for kind in rng.sample(kinds, len(kinds))])

    async def run(stall, seed):
        tasks = [cocotb.start_soon(task) for task in (
            use_ram(stall, seed), *(fetch(name, stall, seed) for name in READ_ENGINES))]
        for task in tasks:
            await task

    await resets_in_mid_work(dut, DUTS["all"](), lambda seed: run(0.2, seed), lambda: run(0.0, 3),
                             resets=10)
