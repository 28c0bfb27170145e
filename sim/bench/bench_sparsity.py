"""The sparsity policy on a vector memory with norms, against its golden functions."""

import cocotb
import numpy as np
from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In
from cocotb.triggers import RisingEdge

from hw.activations.sparsity import SparsityPolicy
from hw.config import AcceleratorConfig, EngineConfig
from hw.vector.memory import VectorMemory, write_signature
from sim.golden.wina import LARGEST_NORM, keep_above, keep_largest, scores
from sim.resets import resets_in_mid_work
from sim.runner import bench_case
from sim.streams import StreamSink, StreamSource, start
from sim.timing.units import select_cycles, threshold_cycles

#: Configuration, and scores that are looked at in a cycle. Rows of scores are a power of two: a
#: full list needs one more bit to be counted.
CONFIGURATIONS = {
    "eight": (AcceleratorConfig(list_depth=512, vector_depth=2048), 8),
    "two": (AcceleratorConfig(engine=EngineConfig(lanes=4, result_lanes=2, index_width=9,
                                                  port_bytes=1),
                              vector_depth=128, list_depth=32), 2),
}


class Bench(wiring.Component):
    """The sparsity policy and the memory that it reads; ``poke`` writes norms."""

    def __init__(self, config: AcceleratorConfig, lanes: int):
        self.config = config
        self.lanes = lanes
        self.sparsity_policy = SparsityPolicy(config, lanes=lanes)
        members = {name: member for name, member in self.sparsity_policy.signature.members.items()
                   if name != "read"}
        super().__init__(members | {"poke": In(write_signature(config))})

    def elaborate(self, platform):
        """Join the sparsity policy with the memory, and its streams with those of the bench."""
        m = Module()
        m.submodules.sparsity_policy = sparsity_policy = self.sparsity_policy
        m.submodules.memory = memory = VectorMemory(self.config, readers=(1, 1), writers=1)
        for name in ("i_commands", "i_entries", "o_entries"):
            wiring.connect(m, wiring.flipped(getattr(self, name)), getattr(sparsity_policy, name))
        wiring.connect(m, sparsity_policy.read, memory.reads_1[0])
        wiring.connect(m, wiring.flipped(self.poke), memory.writes[0])
        return m


DUTS = {name: lambda case=case: Bench(*case) for name, case in CONFIGURATIONS.items()}
SLOW = ("eight-icarus",)


class Machine:
    """The streams of the bench, and what must come out of them."""

    def __init__(self, dut, *, stall: float = 0.0, seed: int = 0):
        self.dut = dut
        self.spec = DUTS[bench_case()]()
        self.config = self.spec.config
        self.stall = stall
        self.rng = np.random.default_rng(seed)
        self.commands, self.entries = (
            StreamSource(dut, name, getattr(self.spec, name).payload.shape(), stall=stall,
                         seed=seed + number)
            for number, name in enumerate(("i_commands", "i_entries")))
        self.kept = StreamSink(dut, "o_entries", self.spec.o_entries.payload.shape(), stall=stall,
                               seed=seed + 2)

    async def start(self) -> None:
        """Reset the bench."""
        self.dut.poke__enable.value = 0
        await start(self.dut)

    async def poke(self, first: int, norms: np.ndarray) -> None:
        """Write norms to the memory, from word ``first`` on."""
        lanes = self.config.vector_lanes
        words = np.zeros((-(-len(norms) // lanes), lanes), np.uint16)
        words.reshape(-1)[:len(norms)] = norms
        for k, word in enumerate(words):
            self.dut.poke__enable.value = 1
            self.dut.poke__mask.value = -1
            self.dut.poke__address.value = first + k
            self.dut.poke__data.value = int.from_bytes(word.astype("<u2").tobytes(), "little")
            await RisingEdge(self.dut.clk)
        self.dut.poke__enable.value = 0

    async def list(self, values: np.ndarray, indices: np.ndarray) -> tuple[list, int, int]:
        """Send a list and receive what is kept; return it with both ways of counting cycles.

        Cycles are those from the first entry accepted, and from the end accepted.
        """
        made = [{"index": int(index), "value": int(value), "end": 0}
                for index, value in zip(indices, values, strict=True)]
        self.entries.first_cycle = -1
        sending = cocotb.start_soon(self.entries.send(
            [*made, {"index": len(values), "value": 0, "end": 1}]))
        found = []
        while True:
            entry = (await self.kept.receive(1))[0]
            if entry.end:
                break
            found.append((entry.index, entry.value))
        await sending
        last = self.kept.last_cycle + 1
        return found, last - self.entries.first_cycle, last - self.entries.last_cycle

    async def select(self, codes: np.ndarray, norms: np.ndarray | None, *,
                     keep: int = 0, threshold: int = 0) -> None:
        """Mask a vector, by threshold if ``keep`` is 0, and compare entries and cycles."""
        indices = np.flatnonzero(codes)
        values = codes[indices]
        found = scores(codes, 1 if norms is None else norms)
        command = {}
        if norms is not None:
            last = self.config.vector_depth // self.config.vector_lanes - -(
                -len(norms) // self.config.vector_lanes)
            command["norms"] = int(self.rng.integers(1, last + 1))
            await self.poke(command["norms"], norms)
        if keep == 0:
            mask = keep_above(found, threshold)
            command["threshold"] = threshold
        else:
            mask = keep_largest(found, min(keep, len(codes))) & (found > 0)
            command |= {"largest": 1, "keep": keep}
        await self.commands.send([command])
        got, all_cycles, cycles = await self.list(values, indices)
        kept = np.flatnonzero(mask)
        assert got == list(zip(kept.tolist(), codes[kept].tolist(), strict=True)), command
        if self.stall:
            return
        if keep == 0:
            assert all_cycles == threshold_cycles(len(values))
        else:
            keys = np.abs(values.astype(np.int64)) if norms is None else found[indices]
            assert cycles == select_cycles(keys, keep, lanes=self.spec.lanes), command

    async def passes(self, codes: np.ndarray) -> None:
        """Let a list without a command pass."""
        found, cycles, _ = await self.list(codes, np.arange(len(codes)))
        assert found == list(enumerate(codes.tolist()))
        if self.stall == 0:
            assert cycles == len(codes) + 2


def vectors(rng: np.random.Generator, depth: int):
    """Make (codes, norms) at the edges: many zeros, equal scores, single entries, all sizes."""
    def codes(count, low=1, high=127):
        return (rng.integers(low, high + 1, count) * rng.choice([-1, 1], count)).astype(np.int8)

    flat = np.full(depth, 1, np.uint16)
    near = rng.integers(160, 180, depth).astype(np.uint16)
    wide = rng.integers(0, LARGEST_NORM + 1, depth).astype(np.uint16)
    spread = (1 << rng.integers(0, 16, depth)).astype(np.uint16)
    tile = min(depth, 256)
    yield np.zeros(depth, np.int8), None                # nothing
    yield np.zeros(depth, np.int8), wide
    yield codes(depth), near                            # everything
    yield codes(depth), None
    yield codes(tile), wide[:tile]                      # one tile, all of it
    for place in (0, depth - 1):                        # one entry
        one = np.zeros(depth, np.int8)
        one[place] = -127
        yield one, np.full(depth, LARGEST_NORM, np.uint16)
    for value in (1, -127):                             # all scores are equal
        yield np.full(depth, value, np.int8), flat
        yield np.full(depth, value, np.int8), None
    yield codes(depth), np.zeros(depth, np.uint16)      # columns without weights
    yield codes(depth), spread                          # scores at the edges of digits
    yield rng.choice([1, 2, 3, 4, 15, 16, 17, 32, 64, 127], depth).astype(np.int8), spread
    yield rng.choice([-1, 15, 16, -16], depth).astype(np.int8), None
    yield codes(depth), np.where(rng.random(depth) < 0.5, wide, 0).astype(np.uint16)
    normal = np.clip(np.rint(rng.normal(0, 36, depth)), -127, 127).astype(np.int8)
    yield normal, near                                  # as they are in a model
    yield normal, None
    for share in rng.random(4) ** 2:                    # few
        yield np.where(rng.random(depth) < share, codes(depth), 0).astype(np.int8), near


@cocotb.test(timeout_time=5000, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.5])
async def largest(dut, stall):
    """Keep one, all, more than there are, and any number in between."""
    machine = Machine(dut, stall=stall, seed=1)
    await machine.start()
    rng = machine.rng
    for number, (codes, norms) in enumerate(vectors(rng, machine.config.list_depth)):
        columns = len(codes)
        entries = int(np.count_nonzero(codes))
        keeps = [1, max(1, columns // 2), columns, max(1, entries), max(1, entries - 1)]
        if number % 3 == 0:
            keeps += [columns + 1, 2 ** 16 - 1]
        for keep in keeps if stall == 0 else [int(rng.choice(keeps))]:
            await machine.select(codes, norms, keep=keep)
        await machine.select(codes, norms, keep=int(rng.integers(1, columns + 1)))


@cocotb.test(timeout_time=3000, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.5])
async def thresholds(dut, stall):
    """Keep what is above the smallest and the largest threshold, above each score, and any."""
    machine = Machine(dut, stall=stall, seed=2)
    await machine.start()
    rng = machine.rng
    for codes, norms in vectors(rng, machine.config.list_depth):
        found = scores(codes, 1 if norms is None else norms)
        edges = [0, 2 ** 30 - 1, int(found.max()), max(0, int(found.max()) - 1),
                 int(rng.choice(found)), int(np.median(found))]
        for threshold in edges if stall == 0 else rng.choice(edges, 1).tolist():
            await machine.select(codes, norms, threshold=threshold)


@cocotb.test(timeout_time=3000, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.5])
async def mixtures(dut, stall):
    """Let lists pass between those that are masked, zeros and a token's entry with them."""
    machine = Machine(dut, stall=stall, seed=3)
    await machine.start()
    rng = machine.rng
    depth = machine.config.list_depth
    for _ in range(12):
        kind = int(rng.integers(4))
        size = int(rng.integers(0, depth + 1))
        codes = rng.integers(-127, 128, max(size, 1)).astype(np.int8)
        if kind == 0:
            await machine.passes(rng.integers(-128, 128, size).astype(np.int8))
        elif kind == 1:
            token = int(rng.integers(1 << machine.config.engine.index_width))
            found, _, _ = await machine.list(np.array([1]), np.array([token]))
            assert found == [(token, 1)]
        elif kind == 2:
            norms = rng.integers(0, LARGEST_NORM + 1, len(codes)).astype(np.uint16)
            await machine.select(codes, norms, keep=int(rng.integers(1, len(codes) + 1)))
        else:
            await machine.select(codes, None, threshold=int(rng.integers(1 << 14)))


@cocotb.test(timeout_time=1000, timeout_unit="us")
async def resets(dut):
    """Forget a list that a reset cuts off anywhere: scores, bins, rows and what is to be kept."""
    await Machine(dut).start()

    async def run(machine, *, passes=0):
        rng, depth = machine.rng, machine.config.list_depth
        if passes:                              # an entry comes before any command
            codes = rng.integers(-128, 128, passes).astype(np.int8)
            found, _, _ = await machine.list(codes, np.arange(passes))
            assert found == list(enumerate(codes.tolist()))
        codes = rng.integers(-127, 128, depth).astype(np.int8)
        norms = rng.integers(0, LARGEST_NORM + 1, depth).astype(np.uint16)
        await machine.select(codes, norms, keep=max(1, depth // 3))
        await machine.select(codes, None, keep=depth // 2)
        await machine.passes(codes[:9])
        await machine.select(codes, norms, threshold=1 << 20)

    await resets_in_mid_work(dut, DUTS[bench_case()](),
                             lambda seed: run(Machine(dut, stall=0.3, seed=seed)),
                             lambda: run(Machine(dut, seed=4)),
                             lambda: run(Machine(dut, seed=5), passes=9), resets=12)
