"""The gearbox against the bytes that went in: every relation of port to word, with exact cycles."""

import pathlib
import random

import cocotb
from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cocotb.triggers import ClockCycles

from hw.common.stream import connect_stream
from hw.config import GEARBOX_DEPTH, EngineConfig
from hw.engine.gearbox import Gearbox
from sim.golden.gearbox import port_payloads
from sim.resets import resets_in_mid_work
from sim.streams import StreamSink, StreamSource, start
from sim.timing.units import gearbox_cycles

#: Port and word in bytes are in the names; lanes and packing make the word.
CONFIGURATIONS = {
    f"port{config.port_bytes}_word{config.word_bytes}_{config.target}": config for config in (
        EngineConfig(),
        EngineConfig(target="ecp5"),
        EngineConfig(port_bytes=1),
        EngineConfig(port_bytes=4, lanes=24),                           # words hardly larger
        EngineConfig(port_bytes=8, lanes=40),                           # equal
        EngineConfig(port_bytes=8, lanes=64, packing="1in2"),           # a multiple
        EngineConfig(port_bytes=8, lanes=48, packing="3in5"),           # granules of two bytes
        EngineConfig(port_bytes=16),                                    # hardly smaller
        EngineConfig(port_bytes=32, lanes=8, packing="3in5"),           # many words in a transfer
        EngineConfig(port_bytes=8, lanes=8, packing="1in2"),            # a fraction
    )}


class Gearboxes(wiring.Component):
    """One gearbox of each configuration, side by side: one build instead of ten."""

    def __init__(self):
        self._gearboxes = {name: Gearbox(config) for name, config in CONFIGURATIONS.items()}
        members = {}
        for name, gearbox in self._gearboxes.items():
            members[f"i_{name}"] = In(gearbox.signature.members["i"].signature.flip())
            members[f"o_{name}"] = Out(gearbox.signature.members["o"].signature)
        super().__init__(members)

    def elaborate(self, platform):
        """Put the gearboxes side by side."""
        m = Module()
        for name, gearbox in self._gearboxes.items():
            m.submodules[name] = gearbox
            connect_stream(m, wiring.flipped(getattr(self, f"i_{name}")), gearbox.i)
            connect_stream(m, gearbox.o, wiring.flipped(getattr(self, f"o_{name}")))
        return m


DUTS = {"all": Gearboxes}
MODELS = [pathlib.Path(__file__).parents[1] / "models" / "ecp5.v"]


async def begin(dut):
    """Hold all streams, so that a gearbox that is not under test sees no undefined input."""
    for name in CONFIGURATIONS:
        dut[f"i_{name}__valid"].value = 0
        dut[f"o_{name}__ready"].value = 0
    await start(dut)


async def exchange(dut, name, counts, *, stalls=(0.0, 0.0), seed=1):
    """Send products of ``counts`` words and return the ends after all words came back equal."""
    config = CONFIGURATIONS[name]
    spec = Gearbox(config)
    rng = random.Random(seed)
    bits = 8 * config.word_bytes
    products = [[rng.getrandbits(bits) for _ in range(count)] for count in counts]
    products[0] = [2 ** bits - 1] * counts[0]
    source = StreamSource(dut, f"i_{name}", spec.i.payload.shape(), stall=stalls[0], seed=seed)
    sink = StreamSink(dut, f"o_{name}", spec.o.payload.shape(), stall=stalls[1], seed=seed + 1)
    sending = cocotb.start_soon(source.send(
        payload for words in products for payload in port_payloads(config, words)))
    words = [word.codes for word in await sink.receive(sum(counts))]
    await sending
    assert words == [word for product in products for word in product], name
    return source, sink


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def cycles_equal_formula(dut):
    """Products of odd sizes follow one another at full rate, each for itself and together."""
    await begin(dut)
    for name, config in CONFIGURATIONS.items():
        for counts in ([1], [2], [3], [64], [1, 1, 2, 1, 5, 3, 16, 1, 13, 7], [40, 1, 40]):
            source, sink = await exchange(dut, name, counts)
            cycles = sink.last_cycle - source.first_cycle + 1
            assert cycles == gearbox_cycles(config, counts), (name, counts)


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def stalls_lose_nothing(dut):
    """Random stalls on either side and on both."""
    await begin(dut)
    for name in CONFIGURATIONS:
        for stalls in ((0.5, 0.0), (0.0, 0.5), (0.3, 0.7)):
            await exchange(dut, name, [1, 2, 1, 5, 30, 3, 16, 1, 13, 7, 1], stalls=stalls, seed=5)


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def full_queue_stops_the_port(dut):
    """Let the consumer come late: it finds everything, and the port waited at a full queue."""
    await begin(dut)
    for name in ("port8_word13_ecp5", "port16_word13_generic"):
        config = CONFIGURATIONS[name]
        spec = Gearbox(config)
        rng = random.Random(3)
        words = [rng.getrandbits(8 * config.word_bytes) for _ in range(2 * GEARBOX_DEPTH)]
        source = StreamSource(dut, f"i_{name}", spec.i.payload.shape())
        sink = StreamSink(dut, f"o_{name}", spec.o.payload.shape())
        sending = cocotb.start_soon(source.send(port_payloads(config, words)))
        await ClockCycles(dut.clk, 3 * GEARBOX_DEPTH)
        assert not dut[f"i_{name}__ready"].value, name
        assert [word.codes for word in await sink.receive(len(words))] == words, name
        await sending


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def resets(dut):
    """Reset with words under way, queues part full: the next product begins with its own bytes."""
    await begin(dut)

    async def together(counts, **options):
        tasks = [cocotb.start_soon(exchange(dut, name, counts, **options))
                 for name in CONFIGURATIONS]
        return [await task for task in tasks]

    async def fresh():
        counts = [1, 2, 3]
        ends = await together(counts)
        for (source, sink), (name, config) in zip(ends, CONFIGURATIONS.items(), strict=True):
            cycles = sink.last_cycle - source.first_cycle + 1
            assert cycles == gearbox_cycles(config, counts), name

    async def work(seed):
        # Either the queue fills, or transfers come to the end.
        await together([5, 1, 9, 3], stalls=((0.5, 0.2), (0.1, 0.6))[seed % 2], seed=seed)

    await resets_in_mid_work(dut, DUTS["all"](), work, fresh, resets=10)
