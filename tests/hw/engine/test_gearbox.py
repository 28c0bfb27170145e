import random

import pytest
from amaranth.sim import Simulator

from hw.config import EngineConfig
from hw.engine.gearbox import Gearbox, port_layout
from sim.golden.gearbox import port_payloads
from sim.timing.units import gearbox_cycles

# Every relation of port to word: smaller, larger, equal, a multiple, with and without a common
# granule; lanes and packing choose the bytes of a word.
WORDS = [(64, "5in8"), (16, "1in2"), (16, "3in5"), (4, "5in8"), (48, "3in5")]
SIZES = [(port_bytes, *word) for port_bytes in (1, 2, 4, 8, 16, 32) for word in WORDS]


def products_of(config, counts, rng):
    return [[rng.getrandbits(8 * config.word_bytes) for _ in range(count)] for count in counts]


@pytest.mark.parametrize(("port_bytes", "lanes", "packing"), SIZES)
@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_words_and_cycles_equal_golden(port_bytes, lanes, packing, stall):
    config = EngineConfig(lanes=lanes, result_lanes=4, packing=packing, port_bytes=port_bytes)
    rng = random.Random(11)
    counts = [1, 2, 1, 5, 3, 16, 1, 1, 13, 40]
    products = products_of(config, counts, rng)
    transfers = [payload for words in products for payload in port_payloads(config, words)]
    expected = [word for words in products for word in words]
    dut = Gearbox(config)
    given, taken, times = [], [], []

    async def put(ctx):
        for payload in transfers:
            while rng.random() < stall:
                await ctx.tick()
            ctx.set(dut.i.payload, payload)
            ctx.set(dut.i.valid, 1)
            await ctx.tick().until(dut.i.ready)
            ctx.set(dut.i.valid, 0)
            given.append(payload)

    async def get(ctx):
        cycle = first = 0
        while len(taken) < len(expected):
            ready = int(rng.random() >= stall)
            ctx.set(dut.o.ready, ready)
            _, _, valid, codes, accepted = await ctx.tick().sample(
                dut.o.valid, dut.o.p.codes, dut.i.valid & dut.i.ready)
            cycle += 1
            if accepted and not first:
                first = cycle
            if ready and valid:
                taken.append(codes)
        times.append(cycle - first + 1)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(put)
    sim.add_testbench(get)
    sim.run()
    assert taken == expected
    assert len(given) == len(transfers)
    if not stall:
        assert times == [gearbox_cycles(config, counts)]


def test_spare_has_bits_only_where_padding_can_hide_a_word():
    assert port_layout(EngineConfig(port_bytes=8))["spare"].width == 0
    assert port_layout(EngineConfig(port_bytes=16))["spare"].width == 4
