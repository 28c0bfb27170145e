"""Attention on a vector memory with queries and a stream of keys and values: the golden numbers."""

import cocotb
import numpy as np
from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In
from cocotb.triggers import RisingEdge

from hw.attention.tables import FRACTION, SCORE_WIDTH, WEIGHT_BITS
from hw.attention.unit import AttentionUnit
from hw.config import AcceleratorConfig, EngineConfig
from hw.formats.minifloat import bf16
from hw.vector.memory import VectorMemory, write_signature
from sim.golden.attention import Attended, from_cache, mix, scores, to_cache, value_bounds
from sim.resets import resets_in_mid_work
from sim.runner import bench_case
from sim.streams import StreamSink, StreamSource, start
from sim.timing.units import pv_cycles, qk_cycles, qk_fault_cycles

CONFIGURATIONS = {
    # A transfer of bf16 a cycle with all heads of a group.
    "group": AcceleratorConfig(vector_depth=512, context=32, head_elements=64, group=3),
    # e4m3 as well, so that rows of bf16 are two transfers; a vector may be a single row.
    "wide": AcceleratorConfig(engine=EngineConfig(accumulator_width=32), vector_depth=512,
                              context=16,
                              head_elements=16, group=2, attention_heads=2, attention_elements=8),
    # Heads take turns, on a port of a byte.
    "narrow": AcceleratorConfig(engine=EngineConfig(lanes=16, result_lanes=2, port_bytes=1),
                                vector_depth=256, context=64, head_elements=8, group=3,
                                attention_heads=2, attention_elements=1),
    # A single head, of which a transfer has four elements of e4m3, or two of bf16, one at a time.
    "single": AcceleratorConfig(engine=EngineConfig(lanes=8, result_lanes=4, port_bytes=4),
                                vector_depth=128, context=16, head_elements=8, group=1,
                                attention_heads=1, attention_elements=1),
}


class Bench(wiring.Component):
    """The unit and the memory that it reads; ``poke`` writes queries."""

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        self.unit = AttentionUnit(config)
        members = {name: member for name, member in self.unit.signature.members.items()
                   if name != "read"}
        super().__init__(members | {"poke": In(write_signature(config))})

    def elaborate(self, platform):
        """Join the unit with the memory, and its streams with those of the bench."""
        m = Module()
        m.submodules.unit = unit = self.unit
        m.submodules.memory = vectors = VectorMemory(self.config, readers=(1, 1), writers=1)
        for name in unit.signature.members:
            if name != "read":
                wiring.connect(m, wiring.flipped(getattr(self, name)), getattr(unit, name))
        wiring.connect(m, unit.read, vectors.reads_0[0])
        wiring.connect(m, wiring.flipped(self.poke), vectors.writes[0])
        return m


DUTS = {name: lambda config=config: Bench(config) for name, config in CONFIGURATIONS.items()}
SLOW = ("group-verilator", "wide-verilator", "single-verilator")


class Machine:
    """The streams of the bench, and what must come out of them."""

    def __init__(self, dut, *, stall: float = 0.0, seed: int = 0):
        self.dut = dut
        spec = DUTS[bench_case()]()
        self.config = spec.config
        self.stall = stall
        self.rng = np.random.default_rng(seed)
        self.commands, self.vectors = (
            StreamSource(dut, name, getattr(spec, name).payload.shape(), stall=stall,
                         seed=seed + number)
            for number, name in enumerate(("i_commands", "i_vectors")))
        self.answers, self.results = (
            StreamSink(dut, name, getattr(spec, name).payload.shape(), stall=stall,
                       seed=seed + number)
            for number, name in enumerate(("o_answers", "o_results"), start=2))

    async def start(self) -> None:
        """Reset the bench."""
        self.dut.poke__enable.value = 0
        await start(self.dut)

    async def poke(self, element: int, vector: np.ndarray) -> None:
        """Write a vector to the memory, from an element on."""
        lanes = self.config.vector_lanes
        for k, word in enumerate(vector.reshape(-1, lanes)):
            self.dut.poke__enable.value = 1
            self.dut.poke__mask.value = -1
            self.dut.poke__address.value = element // lanes + k
            self.dut.poke__data.value = int.from_bytes(word.astype("<u2").tobytes(), "little")
            await RisingEdge(self.dut.clk)
        self.dut.poke__enable.value = 0

    def transfers(self, vectors: np.ndarray) -> list[int]:
        """Return what the port delivers for vectors as a cache holds them."""
        raw = vectors.astype(vectors.dtype.newbyteorder("<")).tobytes()
        size = self.config.port_bytes
        return [int.from_bytes(raw[k:k + size], "little") for k in range(0, len(raw), size)]

    async def score(self, q: np.ndarray, keys: np.ndarray, values: np.ndarray) -> bool:
        """Score keys as the cache holds them; return whether a fault was answered.

        The values are offered behind the keys, before they are asked for. Behind a fault nothing
        of them was taken, and nothing is.
        """
        heads, elements = q.shape
        lanes = self.config.vector_lanes
        half = elements // 2
        split = half % lanes == 0 and bool(self.rng.integers(2))
        room = self.config.vector_depth // 2 - heads * elements
        a = int(self.rng.integers(1, room // lanes)) * lanes
        b = a + self.config.vector_depth // 2
        if split:
            await self.poke(a, q[:, :half])
            await self.poke(b, q[:, half:])
        else:
            await self.poke(a, q)
        await self.commands.send([{
            "e4m3": keys.dtype == np.uint8, "tokens": len(keys), "heads": heads, "split": split,
            "words": elements // lanes, "a": a // lanes, "b": b // lanes if split else 0}])
        first = self.commands.last_cycle
        self.vectors.first_cycle = -1
        sending = cocotb.start_soon(self.vectors.send(
            [*self.transfers(keys), *self.transfers(values)]))
        answer = (await self.answers.receive(1))[0]
        if answer.fault:
            self.dut.i_vectors__valid.value = 1
            for _ in range(20):
                await RisingEdge(self.dut.clk)
                assert not self.dut.i_vectors__ready.value
            sending.cancel()
            self.dut.i_vectors__valid.value = 0
            assert self.vectors.first_cycle == -1, "a vector was taken behind a fault"
            if self.stall == 0:
                assert self.answers.last_cycle - first + 1 == qk_fault_cycles(
                    self.config, elements=elements, heads=heads), (heads, elements)
            return True
        if self.stall == 0:
            assert self.answers.last_cycle - first + 1 == qk_cycles(
                self.config, elements=elements, heads=heads, tokens=len(keys),
                cache=_format(keys)), (heads, elements, len(keys), _format(keys))
        return False

    async def mix(self, heads: int, values: np.ndarray, bound: int) -> Attended:
        """Mix values as the cache holds them; return what was delivered."""
        tokens, elements = values.shape
        lanes = self.config.vector_lanes
        await self.commands.send([{"pv": 1, "e4m3": values.dtype == np.uint8, "tokens": tokens,
                                   "bound": bound}])
        first = self.commands.last_cycle
        answers, integers = [], []
        for _ in range(heads):
            answers += await self.answers.receive(1)
            received = await self.results.receive(elements // lanes)
            assert [transfer.last for transfer in received] == [0] * (len(received) - 1) + [1]
            integers.append([transfer.values[lane] for transfer in received
                             for lane in range(lanes)])
        if self.stall == 0:
            assert self.results.last_cycle - first + 1 == pv_cycles(
                self.config, elements=elements, heads=heads, tokens=tokens,
                cache=_format(values)), (heads, elements, tokens, _format(values))
        assert not any(answer.fault for answer in answers)
        return Attended(np.array(integers), np.array([answer.number for answer in answers]),
                        np.array([answer.exponent for answer in answers]))

    async def attend(self, q: np.ndarray, keys: np.ndarray, values: np.ndarray, *,
                     slack: int = 0) -> None:
        """Attend, and compare with the golden function."""
        bound = min(int(value_bounds(from_cache(values))[-1]) + slack, 255)
        assert not await self.score(q, keys, values)
        found = await self.mix(len(q), values, bound)
        expected = mix(scores(q, from_cache(keys)), from_cache(values), bound,
                       accumulator_width=self.config.engine.accumulator_width)
        np.testing.assert_array_equal(found.integers, expected.integers)
        np.testing.assert_array_equal(found.numbers, expected.numbers)
        np.testing.assert_array_equal(found.exponents, expected.exponents)


def _format(cached: np.ndarray) -> str:
    return "e4m3" if cached.dtype == np.uint8 else "bf16"


def numbers(rng: np.random.Generator, shape: tuple, kind: int) -> np.ndarray:
    """Make bf16 numbers: near 1, of many exponents, any, the largest, tiny ones, few and zeros."""
    sign = rng.integers(0, 2, shape) << 15
    if kind == 0:
        magnitude = rng.integers(124 << 7, 128 << 7, shape)
    elif kind == 1:
        magnitude = rng.integers(100 << 7, 132 << 7, shape)
    elif kind == 2:
        magnitude = rng.integers(0, bf16.infinity, shape)
    elif kind == 3:
        magnitude = rng.choice([bf16.largest_finite, bf16.largest_finite - 1, 0x7F00], shape)
    elif kind == 4:
        magnitude = rng.integers(0, 3 << 7, shape)
    else:
        magnitude = np.where(rng.random(shape) < 0.3, rng.integers(126 << 7, 130 << 7, shape), 0)
    return (sign | magnitude).astype(np.uint16)


KINDS = 6


@cocotb.test(timeout_time=5000, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.4])
async def random_attention(dut, stall):
    """Every shape: formats of both caches, groups, widths of heads, lengths, kinds of numbers."""
    machine = Machine(dut, stall=stall, seed=1)
    await machine.start()
    rng, config = machine.rng, machine.config
    widths = [elements for elements in range(config.vector_lanes, config.head_elements + 1,
                                             config.vector_lanes)
              if elements % config.port_bytes == 0]
    for number in range(50):
        heads = 1 + number % config.group
        elements = widths[-1] if number % 2 else int(rng.choice(widths))
        tokens = int(rng.choice([1, 2, 3, config.context - 1, config.context]))
        if tokens * elements > 600 and number % 5:
            tokens = int(rng.integers(1, 8))
        kinds = rng.integers(0, KINDS, 3) if number >= 6 else [0, 0, 0]
        q, keys, values = (numbers(rng, (count, elements), kind) for count, kind in zip(
            (heads, tokens, tokens), kinds, strict=True))
        cached = [to_cache(x, str(rng.choice(["bf16", "e4m3"]))) for x in (keys, values)]
        await machine.attend(q, *cached, slack=int(rng.choice([0, 0, 1, 5])) if number < 30 else 0)


@cocotb.test(timeout_time=1000, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.4])
async def extremes(dut, stall):
    """Scores that saturate, tie, or differ by the smallest weights; sums as large as can be."""
    machine = Machine(dut, stall=stall, seed=2)
    await machine.start()
    rng, config = machine.rng, machine.config
    elements, heads, tokens = config.head_elements, config.group, config.context
    q = np.zeros((heads, elements), np.uint16)
    q[:, 0] = bf16.constant()               # L-Mul by it is exact: the score is the key's first
    values = np.full((tokens, elements), 0x7F7F, np.uint16)
    zeros = np.zeros((tokens, elements), np.uint16)
    await machine.attend(q, zeros, values)                      # all weights are 1
    await machine.attend(q, zeros, values | 0x8000)
    for octave in (0, WEIGHT_BITS - 1, WEIGHT_BITS):            # 2**-f about an octave
        keys = zeros.copy()
        below = octave + np.arange(-3, tokens - 3) / (1 << FRACTION)
        keys[:, 0] = (-below).astype(np.float32).view(np.uint32) >> 16
        keys[rng.integers(tokens), 0] = 0
        order = rng.permutation(tokens)
        await machine.attend(q, keys[order], numbers(rng, (tokens, elements), 0))
    # The largest score comes last, is negative, or saturates.
    huge = np.full((heads, elements), bf16.largest_finite, np.uint16)
    keys = np.full((tokens, elements), bf16.largest_finite | 0x8000, np.uint16)
    await machine.attend(huge, keys, numbers(rng, (tokens, elements), 1))
    keys[-1] ^= 0x8000
    await machine.attend(huge, keys, numbers(rng, (tokens, elements), 1))
    assert scores(huge[:1], keys)[0].tolist() == [
        *(tokens - 1) * [max(-1 << (SCORE_WIDTH - 1), -elements << 16)],
        min((1 << (SCORE_WIDTH - 1)) - 1, elements << 16)]
    keys = zeros.copy()
    keys[:, 0] = 0xC000 + np.arange(tokens)[::-1]
    await machine.attend(q, keys, numbers(rng, (tokens, elements), 5))
    # Weights whose sum, 1 + 253/256 + 2.5/256, is 2 when it is rounded.
    keys[:3, 0] = [0, 0xBC80, 0xC0D6]
    await machine.attend(q, keys[:3], numbers(rng, (3, elements), 0))
    await machine.attend(q, zeros[:1], zeros[:1])
    await machine.attend(q[:1], zeros[:1], to_cache(values[:1], "e4m3"))


@cocotb.test(timeout_time=1000, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.4])
async def queries_that_are_not_finite(dut, stall):
    """Answer with a fault before any key is taken, wherever the element lies."""
    machine = Machine(dut, stall=stall, seed=3)
    await machine.start()
    rng, config = machine.rng, machine.config
    elements = config.head_elements
    for number, bad in enumerate((0x7F80, 0xFF80, 0x7F81, 0xFFFF)):
        heads = 1 + number % config.group
        q = numbers(rng, (heads, elements), 0)
        keys, values = (numbers(rng, (3, elements), 0) for _ in range(2))
        broken = q.copy()
        broken[int(rng.integers(heads)), (0, -1, 1, -2)[number]] = bad
        assert await machine.score(broken, keys, values)
        await machine.attend(q, keys, values)


@cocotb.test(timeout_time=1000, timeout_unit="us")
async def resets(dut):
    """Reset while queries are loaded, keys and values walked, weights queued, heads delivered."""
    await Machine(dut).start()

    async def run(machine):
        rng, config = machine.rng, machine.config
        elements = config.head_elements
        for heads, tokens, cache in ((1, 4, "bf16"), (config.group, 3, config.cache_formats[-1])):
            q, keys, values = (numbers(rng, (count, elements), 0)
                               for count in (heads, tokens, tokens))
            await machine.attend(q, to_cache(keys, cache), to_cache(values, cache))

    await resets_in_mid_work(dut, DUTS[bench_case()](),
                             lambda seed: run(Machine(dut, stall=0.3, seed=seed)),
                             lambda: run(Machine(dut, seed=4)), resets=10)
