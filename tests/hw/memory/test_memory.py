# amaranth: UnusedElaboratable=no

import random

import pytest
from amaranth import *
from amaranth.sim import Simulator

from hw.common.stream import connect_stream
from hw.config import AcceleratorConfig, EngineConfig
from hw.engine.gearbox import Gearbox
from hw.memory.axi4 import Axi4Master
from hw.memory.block_ram_memory import BlockRamMemory
from hw.memory.read_engine import Kind, ReadEngine, burst_transfers
from sim.golden.fetch import fetched_bytes, fetched_transfers
from sim.timing.units import block_ram_memory_cycles, touched_transfers


@pytest.mark.parametrize("port_bytes", [1, 4, 32])
@pytest.mark.parametrize("stall", [0.0, 0.5])
def test_block_ram_returns_what_was_written_in_order(port_bytes, stall):
    rng = random.Random(3)
    dut = BlockRamMemory(address_width=12, port_bytes=port_bytes, depth=64,
                         target="generic")
    rows = [rng.getrandbits(8 * port_bytes) for _ in range(64)]
    bursts = [(rng.randrange(32), rng.choice((1, 1, 2, 30))) for _ in range(20)]
    expected = [rows[row + k] for row, count in bursts for k in range(count)]
    taken, times = [], []

    async def ask(ctx):
        ctx.set(dut.port.writes.valid, 1)
        for row, value in enumerate(rows):
            ctx.set(dut.port.writes.payload, {"address": row * port_bytes, "data": value,
                                              "last": row == 63})
            await ctx.tick().until(dut.port.writes.ready)
        ctx.set(dut.port.writes.valid, 0)
        for row, count in bursts:
            while rng.random() < stall:
                await ctx.tick()
            ctx.set(dut.port.reads.payload, {"address": row * port_bytes, "transfers": count})
            ctx.set(dut.port.reads.valid, 1)
            await ctx.tick().until(dut.port.reads.ready)
            ctx.set(dut.port.reads.valid, 0)

    async def take(ctx):
        cycle, first = 0, -1
        while len(taken) < len(expected):
            ready = int(rng.random() >= stall)
            ctx.set(dut.port.data.ready, ready)
            _, _, valid, value, asked = await ctx.tick().sample(
                dut.port.data.valid, dut.port.data.p.data, dut.port.reads.valid)
            cycle += 1
            if asked and first < 0:
                first = cycle
            if ready and valid:
                taken.append(value)
        times.append(cycle - first + 1)

    simulate(dut, ask, take)
    assert taken == expected
    if not stall:
        assert times == [block_ram_memory_cycles([count for _, count in bursts])]


def simulate(dut, *testbenches):
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    for testbench in testbenches:
        sim.add_testbench(testbench)
    sim.run()


# The engine's weight words come out whole, whether or not a product has padding behind it.
#
# Transfer smaller than a word, a byte, hardly smaller, larger than several words, equal.
@pytest.mark.parametrize("engine", [
    {}, {"port_bytes": 1}, {"port_bytes": 4, "lanes": 24}, {"port_bytes": 16},
    {"port_bytes": 32, "lanes": 8, "packing": "3in5"}, {"lanes": 40}])
def test_listed_columns_are_joined_from_where_they_begin(engine):
    config = AcceleratorConfig(engine=EngineConfig(accumulator_depth=16, max_planes=2,
                                                   index_width=10, **engine),
                               queue_words=64, vector_depth=1024, address_width=16)
    memory = random.Random(1).randbytes(2 ** 16)
    size, base = 3 * config.engine.word_bytes, 8 * config.port_bytes
    lists = [[0, 1, 4, 5, 6, 30], [*range(16)], [1023], [], [7, 9]]
    texts = [fetched_bytes(memory, base, size, indices) for indices in lists]
    expected = [transfer for text in texts
                for transfer in fetched_transfers(config, text, listed=True)]
    words = [int.from_bytes(text[k:k + config.engine.word_bytes], "little") for text in texts
             for k in range(0, len(text), config.engine.word_bytes)]
    both = Module()
    both.submodules.read_engine = dut = ReadEngine(config)
    both.submodules.gearbox = gearbox = Gearbox(config.engine)
    connect_stream(both, dut.o_weights, gearbox.i)
    taken, cut, reads = [], [], []

    async def fetch(ctx):
        ctx.set(dut.i_fetches.valid, 1)
        ctx.set(dut.i_fetches.payload, {"kind": Kind.COLUMNS, "address": base, "size": size})
        for _ in lists:
            await ctx.tick().until(dut.i_fetches.ready)
        ctx.set(dut.i_fetches.valid, 0)

    async def ask(ctx):
        ctx.set(dut.i_columns.valid, 1)
        for indices in lists:
            for payload in [*({"index": index, "end": 0} for index in indices), {"end": 1}]:
                ctx.set(dut.i_columns.payload, payload)
                await ctx.tick().until(dut.i_columns.ready)
        ctx.set(dut.i_columns.valid, 0)

    async def answer(ctx):
        for indices in lists:
            wanted = len(reads) + touched_transfers(config, size, indices)
            while len(reads) < wanted:
                ctx.set(dut.o_reads.ready, 1)
                address, transfers = await ctx.tick().sample(
                    dut.o_reads.p.address, dut.o_reads.p.transfers).until(dut.o_reads.valid)
                ctx.set(dut.o_reads.ready, 0)
                assert address % config.port_bytes == 0
                assert transfers <= burst_transfers(config)
                for k in range(transfers):
                    begin = address + k * config.port_bytes
                    reads.append(memory[begin:begin + config.port_bytes])
                    ctx.set(dut.i_data.p.data, int.from_bytes(reads[-1], "little"))
                    ctx.set(dut.i_data.valid, 1)
                    await ctx.tick()
                    ctx.set(dut.i_data.valid, 0)

    async def watch(ctx):
        for _ in expected:
            data, last = await ctx.tick().sample(
                dut.o_weights.p.data, dut.o_weights.p.last).until(
                    dut.o_weights.valid & dut.o_weights.ready)
            taken.append((data.to_bytes(config.port_bytes, "little"), bool(last)))

    async def take(ctx):
        ctx.set(gearbox.o.ready, 1)
        for _ in words:
            codes, = await ctx.tick().sample(gearbox.o.p.codes).until(gearbox.o.valid)
            cut.append(codes)

    simulate(both, fetch, ask, answer, watch, take)
    assert cut == words
    assert [(data[:len(text)], last) for (data, last), (text, _, _) in zip(taken, expected,
                                                                          strict=True)] == [
        (text, last) for text, last, _ in expected]


def test_four_reads_fit_the_queue_and_none_exceeds_a_burst():
    assert burst_transfers(AcceleratorConfig(queue_words=2)) == 1
    assert burst_transfers(AcceleratorConfig(queue_words=512)) == 128
    assert burst_transfers(AcceleratorConfig(queue_words=4096)) == 256


@pytest.mark.parametrize(("arguments", "message"), [
    ({"port_bytes": 3}, "Port byte count must be a power of two, not 3"),
    ({"port_bytes": 0}, "Port byte count must be a positive integer, not 0"),
    ({"depth": 0}, "Memory depth must be a positive integer, not 0"),
    ({"depth": 48}, "Memory depth must be a power of two, not 48"),
    ({"address_width": 0}, "Address width must be a positive integer, not 0"),
    ({"address_width": 8}, "Address width must reach 512 bytes, not 8"),
    ({"target": "asic"}, "Target must be one of 'generic', 'ecp5', not 'asic'"),
])
def test_block_ram_parameters_are_checked(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        BlockRamMemory(**{"address_width": 9, "port_bytes": 8, "depth": 64,
                          "target": "generic"} | arguments)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"port_bytes": 24}, "Port byte count must be a power of two, not 24"),
    ({"port_bytes": 256}, "Port byte count must be at most 128 on AXI4, not 256"),
    ({"address_width": 0}, "Address width must be a positive integer, not 0"),
    ({"address_width": 11}, "Address width must be at least 12 on AXI4, not 11"),
])
def test_axi4_parameters_are_checked(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Axi4Master(**{"address_width": 32, "port_bytes": 8} | arguments)


def test_read_engine_wants_a_power_of_two_port():
    with pytest.raises(ValueError, match=r"^Port byte count must be a power of two, not 12$"):
        ReadEngine(AcceleratorConfig(engine=EngineConfig(port_bytes=12)))
