"""Vector unit, quantizer and scale unit on one vector memory, against golden functions."""

import cocotb
import numpy as np
from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cocotb.triggers import RisingEdge

from hw.activations.quantizer import Quantizer
from hw.arith.bf16_add import Bf16Adder
from hw.arith.dequantize import ScaleUnit
from hw.config import AcceleratorConfig, EngineConfig
from hw.formats.minifloat import bf16
from hw.isa import Function
from hw.vector.memory import VectorMemory, read_signature, write_signature
from hw.vector.unit import VectorUnit
from sim.golden.bf16 import add, subtract
from sim.golden.dequantize import scale
from sim.golden.function_table import rsqrt_table, sigmoid_table, silu_table
from sim.golden.lmul import lmul, lmul_dot
from sim.golden.quantizer import quantize
from sim.resets import resets_in_mid_work
from sim.runner import bench_case
from sim.streams import StreamSink, StreamSource, start
from sim.timing.units import norm_cycles, product_cycles, quantize_cycles, vector_cycles

CONFIGURATIONS = {
    "eight": AcceleratorConfig(),
    # An odd number of lanes, so that a table serves one of them; the widest accumulator.
    "three": AcceleratorConfig(engine=EngineConfig(lanes=9, result_lanes=3, accumulator_width=32,
                                                   target="ecp5"), vector_depth=3 * 96),
    # The trees over the lanes are shorter than the lanes.
    "two": AcceleratorConfig(engine=EngineConfig(lanes=8, result_lanes=2, port_bytes=4),
                             vector_depth=512),
}

ADDER_LATENCY = 10
SCALE_LATENCY = 10


class Bench(wiring.Component):
    """The units, their streams named ``STREAM_UNIT``; ``poke`` and ``peek`` reach the memory."""

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        self.units = {"vector": VectorUnit(config), "quantizer": Quantizer(config),
                      "scale": ScaleUnit(config), "adder": Bf16Adder()}
        members = {"poke": In(write_signature(config)), "peek": In(read_signature(config))}
        for name, unit in self.units.items():
            for port, member in unit.signature.members.items():
                if port.partition("_")[0] in ("read", "write"):
                    continue
                members[f"{port}_{name}"] = member
        super().__init__(members)

    def elaborate(self, platform):
        """Join the units with the memory, and all other ports with those of the bench."""
        m = Module()
        for name, unit in self.units.items():
            m.submodules[name] = unit
            for port, member in unit.signature.members.items():
                if f"{port}_{name}" not in self.signature.members:
                    continue
                outer, inner = getattr(self, f"{port}_{name}"), getattr(unit, port)
                if member.is_port:
                    to, of = (outer, inner) if member.flow is Out else (inner, outer)
                    m.d.comb += to.eq(of)
                else:
                    wiring.connect(m, wiring.flipped(outer), inner)
        m.submodules.memory = memory = VectorMemory(self.config, readers=(3, 1), writers=2)
        vector, quantizer = self.units["vector"], self.units["quantizer"]
        wiring.connect(m, vector.read_0, memory.reads_0[0])
        wiring.connect(m, quantizer.read, memory.reads_0[1])
        wiring.connect(m, wiring.flipped(self.peek), memory.reads_0[2])
        wiring.connect(m, vector.read_1, memory.reads_1[0])
        wiring.connect(m, vector.write, memory.writes[0])
        wiring.connect(m, wiring.flipped(self.poke), memory.writes[1])
        return m


#: Its eight lanes take minutes to compile; `three` has everything but the width.
SLOW = ("eight", "three-verilator")
DUTS = {name: lambda config=config: Bench(config) for name, config in CONFIGURATIONS.items()}

# Numbers on both sides of every edge of the format, of sums and of products, with both signs.
EDGES = np.array(sorted({
    field << 7 | fraction for field in (0, 1, 2, 9, 10, 118, 119, 126, 127, 128, 133, 134, 253, 254,
                                        255)
    for fraction in (0, 1, 64, 126, 127)}), np.uint16)
EDGES = np.concatenate([EDGES, EDGES | np.uint16(0x8000)])

BINARY = {Function.ADD: add, Function.SUBTRACT: subtract,
          Function.LMUL: lambda x, y: lmul(bf16, x, y)}
UNARY = {
    Function.COPY: lambda x: x,
    Function.RELU: lambda x: np.where(x & 0x8000, np.uint16(0), x),
    Function.SIGMOID_OF_NEGATIVE: lambda x: sigmoid_table()[x ^ 0x8000],
    Function.SILU: lambda x: silu_table()[x],
}


class Machine:
    """The bench's streams, and a copy of what the memory must hold."""

    def __init__(self, dut, *, stall: float = 0.0, seed: int = 0):
        self.dut = dut
        self.spec = DUTS[bench_case()]()
        self.config = self.spec.config
        self.lanes = self.config.vector_lanes
        self.stall = stall
        self.rng = np.random.default_rng(seed)
        self.words = np.zeros((self.config.vector_depth // self.lanes, self.lanes), np.uint16)
        self.sources: dict[str, StreamSource] = {}
        self.sinks: dict[str, StreamSink] = {}
        for name in self.spec.signature.members:
            direction, _, stream = name.partition("_")
            if direction in ("i", "o"):
                shape = getattr(self.spec, name).payload.shape()
                if direction == "i":
                    self.sources[stream] = StreamSource(dut, name, shape, stall=stall, seed=seed)
                else:
                    self.sinks[stream] = StreamSink(dut, name, shape, stall=stall, seed=seed)

    async def start(self) -> None:
        """Reset the bench and clear the memory."""
        for name in ("poke__enable", "peek__enable", "factor_scale", "exponent_scale"):
            self.dut[name].value = 0
        await start(self.dut)
        await self.poke(0, self.words)

    async def poke(self, address: int, words: np.ndarray) -> None:
        """Write ``words`` to the memory."""
        self.words[address:address + len(words)] = words
        shift = 16 * np.arange(self.lanes)
        for k, word in enumerate(words):
            self.dut.poke__enable.value = 1
            self.dut.poke__mask.value = -1
            self.dut.poke__address.value = address + k
            self.dut.poke__data.value = sum(int(x) << int(s) for x, s in zip(word, shift,
                                                                            strict=True))
            await RisingEdge(self.dut.clk)
        self.dut.poke__enable.value = 0

    async def check(self, address: int, count: int) -> None:
        """Compare words of the memory with their copy."""
        found = []
        for k in range(count + 2):
            self.dut.peek__enable.value = int(k < count)
            self.dut.peek__address.value = min(address + k, len(self.words) - 1)
            await RisingEdge(self.dut.clk)
            if k >= 2:
                found.append(self.dut.peek__data.value.to_unsigned())
        elements = [[word >> 16 * lane & 0xFFFF for lane in range(self.lanes)] for word in found]
        np.testing.assert_array_equal(np.array(elements, np.uint16),
                                      self.words[address:address + count])

    async def command(self, unit: str, **fields: int):
        """Run one command and return its result and its cycles."""
        source, sink = self.sources[f"commands_{unit}"], self.sinks[f"results_{unit}"]
        await source.send([fields])
        first = source.last_cycle
        result = (await sink.receive(1))[0]
        return result, sink.last_cycle - first + 1

    async def watch_scale(self) -> None:
        """Compare in every cycle, from now on, whether transfers are in the scale unit."""
        dut, inside = self.dut, 0
        while True:
            await RisingEdge(dut.clk)
            assert dut.under_way_scale.value == (inside > 0), inside
            inside += int(dut.i_scale__valid.value and dut.i_scale__ready.value)
            inside -= int(dut.o_scale__valid.value and dut.o_scale__ready.value)

    async def vector(self, function: Function, *, words: int, target: int, a: int,
                     b: int = 0) -> None:
        """Run a VECTOR and update the copy."""
        result, cycles = await self.command("vector", function=function, words=words, target=target,
                                            a=a, b=b)
        assert result.number == 0
        if self.stall == 0:
            assert cycles == vector_cycles(words)
        operands = [self.words[x:x + words] for x in (a, b)]
        if function in UNARY:
            values = UNARY[function](operands[0])
        else:
            values = BINARY[function](*operands)
        self.words[target:target + words] = values
        if self.stall == 0:                     # the last word was written before the result
            await self.check(target + words - 1, 1)


def numbers(rng: np.random.Generator, shape: tuple, kind: int) -> np.ndarray:
    """Make bf16 numbers: any, edges, of one magnitude, of few exponents, tiny, huge, zeros."""
    count = int(np.prod(shape))
    sign = rng.integers(0, 2, count) << 15
    if kind == 0:
        x = rng.integers(0, 1 << 16, count)
    elif kind == 1:
        x = rng.choice(EDGES, count)
    elif kind == 2:
        x = sign | rng.integers(125 << 7, 129 << 7, count)
    elif kind == 3:
        x = sign | rng.integers(100 << 7, 134 << 7, count)
    elif kind == 4:
        x = sign | rng.integers(0, 40 << 7, count)
    elif kind == 5:
        x = sign | rng.integers(240 << 7, 0x7F80, count)
    else:
        x = np.where(rng.random(count) < 0.9, sign | rng.integers(0, 128, count),
                     sign | rng.integers(60 << 7, 66 << 7, count))
    return x.astype(np.uint16).reshape(shape)


KINDS = 7


@cocotb.test(timeout_time=3000, timeout_unit="us")
async def every_argument(dut):
    """Compute functions of all 65,536 bf16 numbers, or of those that fit the memory."""
    machine = Machine(dut)
    await machine.start()
    half = len(machine.words) // 2
    for first in range(0, 1 << 16, half * machine.lanes):
        x = (first + np.arange(half * machine.lanes)).astype(np.uint16)
        await machine.poke(0, x.reshape(half, -1))
        for function in UNARY:
            if len(machine.words) > 100 and function in (Function.COPY, Function.RELU) and first:
                continue            # rules without a table: the first and the last numbers
            await machine.vector(function, words=half, target=half, a=0)
            await machine.check(half, half)
        if len(machine.words) < 1000 and first > 0:
            break
    await machine.poke(0, EDGES[:machine.lanes * 16].reshape(16, -1))
    for function in UNARY:
        await machine.vector(function, words=16, target=16, a=0)
        await machine.check(16, 16)


@cocotb.test(timeout_time=1000, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.5])
async def vectors(dut, stall):
    """Every function on vectors of every length and place, in place as well."""
    machine = Machine(dut, stall=stall, seed=1)
    await machine.start()
    rng = machine.rng
    size = 96
    for kind in range(KINDS):
        await machine.poke(0, numbers(rng, (18, machine.lanes), kind))
        if kind == 2:           # sums that cancel
            x = machine.words[:32] ^ np.uint16(0x8000)
            await machine.poke(32, (x + rng.integers(-2, 3, x.shape)).astype(np.uint16))
        for number, function in enumerate([*UNARY, *BINARY]):
            words = int(rng.choice([1, 2, 31, 32]))
            a, b, free = (int(x) for x in rng.permutation([0, 32, 64]))
            target = (free, a, b if function in BINARY else free)[(number + kind) % 3]
            await machine.vector(function, words=words, target=target, a=a, b=b)
        await machine.check(0, size)


@cocotb.test(timeout_time=1000, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.5])
async def norms(dut, stall):
    """Reciprocal norms of vectors of every kind and length, the whole memory too."""
    machine = Machine(dut, stall=stall, seed=2)
    await machine.start()
    rng = machine.rng
    depth = len(machine.words)
    for number in range(60):
        kind = number % KINDS
        words = int(rng.choice([1, 2, 3, 17, 32]))
        a = int(rng.integers(0, depth - words + 1))
        if number == 59:
            a, words = 0, depth
        x = numbers(rng, (words, machine.lanes), kind)
        if number == 59:
            x[:] = 0x7F7F                   # the largest sum that there is
        finite = (x & 0x7FFF) < bf16.infinity
        if kind in (0, 1) and number % 3:   # now and then infinities and NaN stay
            x = np.where(finite, x, np.uint16(0))
        if kind == 4:                       # sums about the smallest normal number
            x = (x & 0x8000) | rng.integers(60 << 7, 66 << 7, x.shape).astype(np.uint16)
        await machine.poke(a, x)
        result, cycles = await machine.command("vector", norm=1, words=words, a=a)
        expected = rsqrt_table()[lmul_dot(bf16, x.reshape(-1), x.reshape(-1))]
        assert result.number == expected, (number, hex(result.number), hex(expected))
        if stall == 0:
            assert cycles == norm_cycles(machine.config, words)
    special = {(0x7F80,): 0, (0xFF80,): 0, (0x7F80, 0xFF80): 0, (0x7F80, 0xFFC1): 0x7FC0,
               (0x7F81,): 0x7FC0, (0,): 0, (0x80FF,): 0}
    for values, expected in special.items():
        x = np.zeros((2, machine.lanes), np.uint16)
        x.reshape(-1)[:len(values)] = values
        await machine.poke(5, x)
        result, _ = await machine.command("vector", norm=1, words=2, a=5)
        assert result.number == expected == rsqrt_table()[lmul_dot(bf16, x.reshape(-1),
                                                                   x.reshape(-1))]
    await machine.check(0, min(depth, 300))


def with_square(exponent: int) -> int:
    """Return the bf16 number whose L-Mul square is ``2 ** exponent``."""
    half, odd = divmod(exponent, 2)
    return (127 + half << 7 | 60) if odd else (126 + half << 7 | 124)


@cocotb.test(timeout_time=1000, timeout_unit="us")
async def roots_of_sums_near_ties(dut):
    """Round sums of eight bits, half of the last one, and one bit below it or none.

    A sum is made of powers of two, none above 1, so that its leading one is shifted up by as many
    places as its size takes.
    """
    machine = Machine(dut)
    await machine.start()
    for number in range(120):
        top = number % 5
        bits = [top, *(top - k for k in range(1, 8) if machine.rng.integers(2)), top - 8]
        below = number // 5 % 8
        if below:
            bits.append(top - 8 - below)
        x = np.array([with_square(min(bit, 0)) for bit in bits for _ in range(1 << max(bit, 0))])
        words = -(-len(x) // machine.lanes)
        x = np.pad(x, (0, words * machine.lanes - len(x))).astype(np.uint16)
        expected = rsqrt_table()[lmul_dot(bf16, x, x)]
        await machine.poke(0, x.reshape(words, -1))
        result, cycles = await machine.command("vector", norm=1, words=words, a=0)
        assert result.number == expected, (bits, hex(result.number), hex(expected))
        assert cycles == norm_cycles(machine.config, words)


def packable(rng: np.random.Generator, shape: tuple, number: int) -> np.ndarray:
    """Make vectors for the quantizer: all kinds, ties, and largest elements at every edge."""
    kind = number % (KINDS + 2)
    if kind < KINDS:
        x = numbers(rng, shape, kind)
        return np.where((x & 0x7FFF) < bf16.infinity, x, np.uint16(0x3F80))
    # Halves of a unit beside a largest element of mantissa field 126 or 127.
    field = int(rng.choice([9, 127, 254]))
    halves = [max(field - k, 0) << 7 | fraction for k in range(10)
              for fraction in (0, 1, 2, 3, 32, 64, 96, 127)]
    x = rng.choice(np.array(halves, np.uint16), shape) | (rng.integers(0, 2, shape) << 15)
    x.reshape(-1)[rng.integers(x.size)] = field << 7 | (126 if kind == KINDS else 127)
    return np.minimum(x & 0x7FFF, field << 7 | (126 if kind == KINDS else 127)).astype(
        np.uint16) | (x & 0x8000).astype(np.uint16)


@cocotb.test(timeout_time=2000, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.5])
async def packs(dut, stall):
    """Make lists of all kinds, and refuse codes of vectors that are not finite."""
    machine = Machine(dut, stall=stall, seed=3)
    await machine.start()
    rng = machine.rng
    depth = len(machine.words)
    entries = machine.sinks["entries_quantizer"]
    received = []

    async def receive():
        while True:
            received.extend(await entries.receive(1))
    cocotb.start_soon(receive())

    for number in range(45):
        words = int(rng.choice([1, 2, 3, 17, 32]))
        a = int(rng.integers(0, depth - words + 1))
        x = packable(rng, (words, machine.lanes), number)
        sparse = int(rng.integers(2))
        nonzero = int(sparse and rng.integers(2))
        if number % 3 == 2:         # words without an entry follow one another
            x[rng.random(words) < rng.random()] = 0
        broken = number % 11 == 10
        if broken:
            x.reshape(-1)[rng.integers(x.size)] = rng.choice([0x7F80, 0xFF80, 0x7F81, 0xFFFF])
        await machine.poke(a, x)
        received.clear()
        result, cycles = await machine.command("quantizer", sparse=sparse, nonzero=nonzero,
                                               words=words, a=a)
        if nonzero:
            live = (x.reshape(-1) & 0x7F80) != 0
            assert [(entry.index, entry.value, entry.end) for entry in received] == [
                *((index, 1, 0) for index in np.flatnonzero(live)), (live.size, 0, 1)]
            assert result.fault == 0
            if stall == 0:
                leaving = live.reshape(words, -1).sum(axis=1).tolist()
                assert cycles == quantize_cycles(machine.config, leaving, nonzero=True)
            continue
        if broken:
            assert (result.fault, received) == (1, [])
            continue
        codes = quantize(x.reshape(1, -1))
        values = codes.values[0].tolist()
        expected = [(index, value, 0) for index, value in enumerate(values)
                    if value or not sparse] + [(len(values), 0, 1)]
        assert [(entry.index, entry.value, entry.end) for entry in received] == expected
        assert (result.fault, result.exponent) == (0, codes.exponents[0]), number
        if stall == 0:
            leaving = (codes.values[0] != 0).reshape(words, -1).sum(axis=1) if sparse else (
                np.full(words, machine.lanes))
            assert cycles == quantize_cycles(machine.config, leaving.tolist())


@cocotb.test(timeout_time=2000, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.5])
async def scales(dut, stall):
    """Integers of every size times every significand and sign, exponents to both ends."""
    machine = Machine(dut, stall=stall, seed=4)
    await machine.start()
    cocotb.start_soon(machine.watch_scale())
    rng = machine.rng
    width = machine.config.engine.accumulator_width
    limit = 1 << width - 1
    count = 25
    source, sink = machine.sources["scale"], machine.sinks["scale"]
    factors = np.concatenate([0x3F80 | np.arange(128), EDGES]).astype(np.uint16)
    if stall:
        factors = factors[::3]
    for number, factor in enumerate(factors.tolist()):
        # Products of every exponent about the ends of bf16, or anywhere.
        exponent = int(rng.choice([-512, 511, rng.integers(-60, 60), -(factor >> 7 & 255),
                                   255 - (factor >> 7 & 255) - int(rng.integers(width))]))
        if number % 3 == 0:
            factor |= 0x8000
        bits = rng.integers(0, width, (count, machine.lanes))
        values = rng.integers(0, limit, bits.shape) >> bits
        values = np.where(rng.random(bits.shape) < .5, values, -values)
        values[0] = rng.choice([-limit, limit - 1, 0, 1, -1], machine.lanes)
        values[1] = rng.choice([2 ** bit + sign for bit in range(8, width - 1)
                                for sign in (-1, 0, 1)], machine.lanes)
        dut.factor_scale.value = factor
        dut.exponent_scale.value = exponent
        cocotb.start_soon(source.send({"values": row, "last": k == count - 1}
                                      for k, row in enumerate(values.tolist())))
        received = await sink.receive(count)
        first = source.last_cycle - (count - 1)         # no transfer waits without stalls
        with np.errstate(invalid="ignore", over="ignore"):
            expected = scale(values, np.full(count, factor, np.uint16),
                             np.full(count, exponent, np.int32))
        found = [[payload.word[lane] for lane in range(machine.lanes)] for payload in received]
        np.testing.assert_array_equal(found, expected, err_msg=f"{factor:#x} {exponent}")
        assert [payload.last for payload in received] == [0] * (count - 1) + [1]
        if stall == 0:
            assert sink.last_cycle - first + 1 == product_cycles(count, latency=SCALE_LATENCY)


@cocotb.test(timeout_time=2000, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.5])
async def sums(dut, stall):
    """Add pairs of edges, random pairs, and pairs of near exponents by the adder alone."""
    machine = Machine(dut, stall=stall, seed=5)
    await machine.start()
    rng = machine.rng
    pairs = np.stack(np.meshgrid(EDGES, EDGES)).reshape(2, -1)
    count = 1500 if stall else 6000
    pairs = rng.choice(pairs, count, axis=1)
    words = rng.integers(0, 1 << 16, (2, count))
    near = np.clip((words[0] & 0x7FFF) + rng.integers(-12 << 7, 12 << 7, count), 0, 0x7FFF)
    words[1, count // 3:] = (near | (words[1] & 0x8000))[count // 3:]
    x, y = np.concatenate([pairs, words], axis=1).astype(np.uint16)
    negate = rng.integers(0, 2, len(x))
    source, sink = machine.sources["adder"], machine.sinks["adder"]
    shape = machine.spec.i_adder.payload.shape()
    packed = (x.astype(int) << shape["x"].offset | y.astype(int) << shape["y"].offset
              | negate << shape["subtract"].offset)
    cocotb.start_soon(source.send(packed.tolist()))
    found = [payload.sum for payload in await sink.receive(len(x))]
    np.testing.assert_array_equal(found, np.where(negate, subtract(x, y), add(x, y)))
    if stall == 0:
        cycles = sink.last_cycle - source.first_cycle + 1
        assert cycles == product_cycles(len(x), latency=ADDER_LATENCY)


@cocotb.test(timeout_time=1000, timeout_unit="us")
async def resets(dut):
    """Reset with words in all stages of all units at once; the memory keeps what it holds."""
    await Machine(dut).start()
    kept = 4                                # words at the end of the memory, never written again

    async def compute(machine, functions):
        """Run VECTOR, NORM and QUANTIZE one after the other: they share a port of the memory."""
        sums, words = slice(9, 18), 9
        for function in functions:
            await machine.vector(function, words=words, target=9, a=0, b=9)
            x = machine.words[sums].reshape(-1)
            result, cycles = await machine.command("vector", norm=1, words=words, a=9)
            assert result.number == rsqrt_table()[lmul_dot(bf16, x, x)]
            if machine.stall == 0:
                assert cycles == norm_cycles(machine.config, words)
            entries = cocotb.start_soon(machine.sinks["entries_quantizer"].receive(x.size + 1))
            result, cycles = await machine.command("quantizer", words=words, a=9)
            codes = quantize(x.reshape(1, -1))
            assert [entry.value for entry in await entries] == [*codes.values[0].tolist(), 0]
            assert (result.fault, result.exponent) == (0, codes.exponents[0])
            if machine.stall == 0:
                assert cycles == quantize_cycles(machine.config, [machine.lanes] * words)

    async def scale_all(machine, count):
        factor, exponent = 0x3FC0, -7
        values = machine.rng.integers(-1000, 1001, (count, machine.lanes))
        dut.factor_scale.value, dut.exponent_scale.value = factor, exponent
        cocotb.start_soon(machine.sources["scale"].send(
            {"values": row, "last": k == count - 1} for k, row in enumerate(values.tolist())))
        received = await machine.sinks["scale"].receive(count)
        np.testing.assert_array_equal(
            [[payload.word[lane] for lane in range(machine.lanes)] for payload in received],
            scale(values, np.full(count, factor, np.uint16), np.full(count, exponent, np.int32)))
        assert [payload.last for payload in received] == [0] * (count - 1) + [1]

    async def add_all(machine, count):
        x, y = numbers(machine.rng, (2, count), 2)
        cocotb.start_soon(machine.sources["adder"].send(
            {"x": a, "y": b, "subtract": 0} for a, b in zip(x.tolist(), y.tolist(), strict=True)))
        found = [payload.sum for payload in await machine.sinks["adder"].receive(count)]
        np.testing.assert_array_equal(found, add(x, y))

    async def run(machine, *functions):
        machine.words[-kept:] = remembered
        cocotb.start_soon(machine.watch_scale())
        await machine.poke(0, numbers(machine.rng, (18, machine.lanes), 2))
        tasks = [cocotb.start_soon(task) for task in (
            compute(machine, functions), scale_all(machine, 30), add_all(machine, 40))]
        for task in tasks:
            await task
        for a, words in ((0, 18), (len(machine.words) - kept, kept)):
            await machine.check(a, words)

    machine = Machine(dut, seed=6)
    remembered = numbers(machine.rng, (kept, machine.lanes), 0)
    await machine.poke(len(machine.words) - kept, remembered)
    await resets_in_mid_work(dut, machine.spec,
                             lambda seed: run(Machine(dut, stall=0.3, seed=seed), Function.LMUL,
                                              Function.ADD),
                             lambda: run(Machine(dut, seed=7), Function.ADD),
                             lambda: run(Machine(dut, seed=8), Function.SILU), resets=14)
