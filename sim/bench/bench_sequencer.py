"""The parts of the sequencer, each against its golden function."""

import cocotb
import numpy as np
from amaranth import *
from amaranth.lib import wiring

from hw.config import CoreConfig, EngineConfig
from hw.sequencer.top_k import TopK
from sim.golden.cycles import top_k_cycles
from sim.golden.largest import kept_count, largest_rows
from sim.runner import bench_case
from sim.streams import StreamSink, StreamSource, start

CONFIGURATIONS = {
    "sixteen": CoreConfig(engine=EngineConfig(lanes=16, result_lanes=8)),
    "one": CoreConfig(engine=EngineConfig(lanes=4, result_lanes=2, accumulator_width=20), best=1),
}


class Bench(wiring.Component):
    """The units side by side, their streams named ``STREAM_UNIT``."""

    def __init__(self, config: CoreConfig):
        self.config = config
        self.units = {"top_k": TopK(config)}
        super().__init__({f"{port}_{name}": member for name, unit in self.units.items()
                          for port, member in unit.signature.members.items()})

    def elaborate(self, platform):
        """Join each stream with that of the bench."""
        m = Module()
        for name, unit in self.units.items():
            m.submodules[name] = unit
            for port in unit.signature.members:
                wiring.connect(m, wiring.flipped(getattr(self, f"{port}_{name}")),
                               getattr(unit, port))
        return m


DUTS = {name: lambda config=config: Bench(config) for name, config in CONFIGURATIONS.items()}


class Ends:
    """The streams of the bench by name."""

    def __init__(self, dut, *, stall: float, seed: int):
        self.spec = DUTS[bench_case()]()
        self.config = self.spec.config
        self.rng = np.random.default_rng(seed)
        self.streams = {}
        for number, name in enumerate(self.spec.signature.members):
            end = StreamSource if name.startswith("i") else StreamSink
            shape = getattr(self.spec, name).payload.shape()
            self.streams[name] = end(dut, name, shape, stall=stall, seed=seed + number)

    def __getitem__(self, name: str):
        return self.streams[name]


def products(rng: np.random.Generator, config: CoreConfig):
    """Make products that put every place of the best to use."""
    low, high = -(1 << (config.engine.accumulator_width - 1)), (
        1 << (config.engine.accumulator_width - 1)) - 1
    best, lanes = config.best, config.vector_lanes
    for rows in (1, 2, lanes - 1, lanes, lanes + 1, best, best + 1, 5 * lanes + 3, 200):
        rows = max(rows, 1)
        yield rng.integers(low, high + 1, rows)
        yield rng.integers(-3, 4, rows)             # many are equal
    ramp = np.arange(67)
    for product in (ramp, ramp[::-1], -ramp, ramp - 100, 100 - ramp, np.zeros(50, int),
                    np.full(33, low), np.full(33, high), np.tile([low, high], 30),
                    np.repeat(ramp[:9], 7), np.repeat(-ramp[:9], 7)):
        yield product


@cocotb.test(timeout_time=2000, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.5])
async def largest(dut, stall):
    """Deliver the largest of products of all kinds, while lanes beyond them hold larger ones."""
    ends = Ends(dut, stall=stall, seed=1)
    await start(dut)
    config, lanes = ends.config, ends.config.vector_lanes
    commands, sink = ends["i_commands_top_k"], ends["o_best_top_k"]
    given = list(products(ends.rng, config))
    transfers = []
    for product in given:
        padded = np.full(-(-len(product) // lanes) * lanes, 2 ** (
            config.engine.accumulator_width - 1) - 1)
        padded[:len(product)] = product
        words = padded.reshape(-1, lanes).tolist()
        transfers += [{"values": word, "last": k == len(words) - 1}
                      for k, word in enumerate(words)]
    cocotb.start_soon(ends["i_results_top_k"].send(transfers))
    for product in given:
        rows = largest_rows(product, config.best)
        await commands.send([{"rows": len(product)}])
        found = await sink.receive(len(rows))
        assert [entry.index for entry in found] == rows.tolist()
        assert [entry.value for entry in found] == product[rows].tolist()
        assert [entry.last for entry in found] == [0] * (len(rows) - 1) + [1]
        if stall == 0:
            cycles = sink.last_cycle - commands.last_cycle + 1
            assert cycles == top_k_cycles(config, len(product), kept_count(product, config.best))
