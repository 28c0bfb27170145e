"""The accelerator against the golden machine: each instruction, random programs, two layers."""

import dataclasses
import itertools
import math
import random
from collections import deque
from collections.abc import Sequence
from typing import Any

import cocotb
import numpy as np
import pytest
from cocotb.triggers import RisingEdge

from hw.accelerator import Accelerator
from hw.config import AcceleratorConfig
from hw.formats.minifloat import bf16
from hw.isa import FUNCTIONS, MASKED, Batch, Fault, Function, Instruction, Opcode, decode, encode
from sim.golden.bf16 import from_float
from sim.golden.machine import Emission, Machine, MachineFault
from sim.golden.quantizer import quantize
from sim.golden.top_k import kept_count
from sim.golden.wina import scores
from sim.programs.random import CONFIGURATIONS as PROGRAMS
from sim.programs.random import Writer, random_case
from sim.resets import resets_in_mid_work
from sim.runner import bench_case
from sim.streams import StreamSink, StreamSource, start
from sim.timing.units import instruction_cycles, select_cycles, threshold_cycles

CONFIGURATIONS = {name: PROGRAMS[name]
                  for name in ("small", "equal", "attention")}
SLOW = ("equal", "small-icarus", "attention-icarus")
DUTS = {name: lambda config=config: Accelerator(config) for name, config in CONFIGURATIONS.items()}


class Memory:
    """What stands behind the memory port: it answers in order, each read after its latency.

    A reset of the accelerator is one of the memory too.

    Parameters
    ----------
    latency : int
        Cycles from a read that is accepted to its first transfer.
    stall : float
        Probability of a cycle in which a stream does not move.
    """

    def __init__(self, dut, config: AcceleratorConfig, contents: bytes, *, latency: int,
                 stall: float):
        self.contents = bytearray(contents)
        self._dut, self._config = dut, config
        self._latency, self._stall = latency, stall
        self._random = random.Random(7)
        self._accelerator = Accelerator(config)
        cocotb.start_soon(self._run())

    async def _run(self) -> None:
        dut, port = self._dut, self._config.port_bytes
        memory = self._accelerator.memory
        read_shape, write_shape = memory.reads.payload.shape(), memory.writes.payload.shape()
        answers: deque = deque()                # (cycle, data)
        now, offered = 0, False
        dut.memory__reads__ready.value = dut.memory__writes__ready.value = 0
        dut.memory__data__valid.value = 0
        dut.memory__error.value = 0
        reads_ready = writes_ready = 0
        while True:
            await RisingEdge(dut.clk)
            now += 1
            if writes_ready and dut.memory__writes__valid.value:
                write = write_shape.from_bits(dut.memory__writes__payload.value.to_unsigned())
                assert write.address % port == 0
                self.contents[write.address:write.address + port] = write.data.to_bytes(
                    port, "little")
            if reads_ready and dut.memory__reads__valid.value:
                read = read_shape.from_bits(dut.memory__reads__payload.value.to_unsigned())
                assert read.address % port == 0
                end = read.address + read.transfers * port
                assert 0 < read.transfers
                assert end <= len(self.contents), "beyond the memory"
                text = self.contents[read.address:end]
                answers += [(now + self._latency + k,
                             int.from_bytes(text[k * port:(k + 1) * port], "little"))
                            for k in range(read.transfers)]
            if dut.rst.value:                   # of the accelerator, which then awaits nothing
                answers.clear()
                offered = False
            if offered and dut.memory__data__ready.value:
                answers.popleft()
                offered = False
            if not offered and answers and answers[0][0] <= now + 1 and self._moves():
                offered = True
                dut.memory__data__payload.value = answers[0][1]
            dut.memory__data__valid.value = int(offered)
            reads_ready, writes_ready = self._moves(), self._moves()
            dut.memory__reads__ready.value = reads_ready
            dut.memory__writes__ready.value = writes_ready

    def _moves(self) -> int:
        return int(self._random.random() >= self._stall)


class Driver:
    """The accelerator with its memory, and the golden machine beside it."""

    def __init__(self, dut, program: list[Instruction], contents: bytes, *, latency: int = 0,
                 stall: float = 0.0, memory: Any = None):
        self.dut = dut
        self.config = CONFIGURATIONS[bench_case()]
        spec = Accelerator(self.config)
        self.program = program
        self.machine = Machine(self.config, b"".join(map(encode, program)), contents)
        self.memory = memory or Memory(dut, self.config, contents, latency=latency, stall=stall)
        self.streams = {}
        for number, (name, end) in enumerate((
                ("i_program", StreamSource), ("i_tokens", StreamSource), ("o_top_k", StreamSink),
                ("o_scale", StreamSink), ("o_faults", StreamSink))):
            self.streams[name] = end(dut, name, getattr(spec, name).payload.shape(), stall=stall,
                                     seed=number)

    async def load(self) -> None:
        """Reset the accelerator and write the program."""
        await start(self.dut)
        await self.write()

    async def write(self) -> None:
        """Write the program."""
        await self.streams["i_program"].send(
            {"index": k, "instruction": int.from_bytes(encode(instruction), "little")}
            for k, instruction in enumerate(self.program))

    async def begin(self, token: int, first: int = 0) -> None:
        """Begin a pass, once the one before has ended."""
        await self.streams["i_tokens"].send([{"token": token, "start": first}])

    async def compare(self, emissions: list[Emission]) -> None:
        """Receive the emissions of a pass and compare them."""
        for expected in emissions:
            best = await self.streams["o_top_k"].receive(len(expected.rows))
            assert [entry.index for entry in best] == expected.rows.tolist()
            assert [entry.value for entry in best] == expected.values.tolist()
            assert [entry.last for entry in best] == [0] * (len(best) - 1) + [1]
            scale = (await self.streams["o_scale"].receive(1))[0]
            assert (scale.number, scale.exponent) == (expected.number, expected.exponent)

    async def run(self, tokens: list[int], first: int = 0) -> None:
        """Run passes from one place, as :meth:`run_passes` does."""
        await self.run_passes([(token, first) for token in tokens])

    async def run_passes(self, passes: Sequence[tuple[int, int]]) -> None:
        """Run passes on both, and compare what they emit and what they leave in memory."""
        expected = [self.machine.run(*one) for one in passes]

        async def send():
            for one in passes:
                await self.begin(*one)

        sending = cocotb.start_soon(send())
        for emissions in expected:
            await self.compare(emissions)
        await sending
        # The last pass has ended when a program is accepted.
        await self.streams["i_program"].send([{"index": self.config.program_depth - 1,
                                               "instruction": 0}])
        assert self.memory.contents == self.machine.memory.tobytes()


@cocotb.test(timeout_time=500, timeout_unit="us")
@cocotb.parametrize((("latency", "stall"), [(0, 0.0), (20, 0.0), (7, 0.4)]), ("seed", range(4)))
async def programs(dut, latency, stall, seed):
    """Random programs: emissions and memory are those of the golden machine.

    ``python -m sim programs`` runs many more of them on a faster simulator.
    """
    case = random_case(bench_case(), seed, length=40)
    driver = Driver(dut, list(map(decode, case.program)), case.memory, latency=latency, stall=stall)
    await driver.load()
    await driver.run_passes(case.passes[:3])


#: Chains of tensors of one, two and three sites: rows of each accelerator, and the vectors that it
#: is multiplied by; the first one has 24 columns.
CHAINS = (((20, 1),), ((12, 1), (20, 1)), ((12, 2), (16, 4)), ((16, 1), (24, 2)),
          ((16, 4), (32, 1), (12, 4)), ((8, 2), (8, 1), (4, 2)))


@cocotb.test(timeout_time=500, timeout_unit="us")
@cocotb.parametrize((("latency", "stall"), [(0, 0.0), (7, 0.4)]))
async def chains(dut, latency, stall):
    """Multiply by the cores of chains, each reading across what the one before it has left."""
    config = CONFIGURATIONS[bench_case()]
    if config.engine.max_batch == 1:
        return
    writer = Writer(config, 5)
    lanes = config.vector_lanes
    x, rest = lanes, 128
    writer.add(Opcode.LOAD, target=x, count=24, address=writer.vector(24))
    for chain in CHAINS:
        if max(vectors for _, vectors in chain) > config.engine.max_batch:
            continue
        place, elements = x, 24
        for site, (rows, vectors) in enumerate(chain):
            part = Batch(log2=vectors.bit_length() - 1, across=vectors > 1)
            writer.add(Opcode.QUANTIZE, function=Function.DENSE, target=1, a=place, count=elements,
                       constant=part.constant)
            columns, count = elements // vectors, 1 + site % config.engine.max_planes
            writer.add(Opcode.MATMUL, function=Function.BY_COLUMN, a=rows, b=count, count=columns,
                       target=vectors if vectors > 1 else 0,
                       address=writer.matrix(rows, columns, count))
            elements = rows * vectors
            if site == len(chain) - 1:
                writer.add(Opcode.TOP_K, a=1, count=elements, constant=bf16.one)
            else:
                place = rest
                writer.add(Opcode.WRITE_BACK, function=Function.COPY, target=place, a=1,
                           count=elements, constant=0x3C00)
    writer.add(Opcode.STOP)
    driver = Driver(dut, writer.program, writer.contents(), latency=latency, stall=stall)
    await driver.load()
    await driver.run([0, 1])


@cocotb.test(timeout_time=500, timeout_unit="us")
@cocotb.parametrize((("latency", "stall"), [(0, 0.0), (20, 0.0), (7, 0.4)]))
async def entries(dut, latency, stall):
    """Begin passes anywhere, behind STOPs that wait; some read nothing."""
    config = CONFIGURATIONS[bench_case()]
    writer = Writer(config, 4)
    count = 2 * config.vector_lanes
    starts = []
    for index in range(4):
        starts.append(len(writer.program))
        for _ in range(index):
            writer.add(Opcode.LOAD, target=count, count=count, address=writer.vector(count))
            writer.add(Opcode.QUANTIZE, function=Function.DENSE, target=1, a=count, count=count)
            writer.add(Opcode.MATMUL, function=Function.BY_COLUMN, a=count, b=1, count=count,
                       address=writer.matrix(count, count, 1))
            writer.add(Opcode.TOP_K, a=1, count=count, constant=bf16.one)
        writer.add(Opcode.STOP, constant=1)
    driver = Driver(dut, writer.program, writer.contents(), latency=latency, stall=stall)
    await driver.load()
    for first in [*starts, *reversed(starts), *writer.rng.choice(starts, 20).tolist()]:
        sending = cocotb.start_soon(driver.begin(0, first))
        await driver.compare(driver.machine.run(0, first))
        await sending


def two_layers(config: AcceleratorConfig, *, sparse: bool) -> tuple[Writer, int]:
    """Write a model of two layers, MLGRU and gated network, and return where its body begins."""
    writer = Writer(config, 3)
    add = writer.add
    width, hidden, vocab = 2 * config.engine.lanes, 3 * config.engine.lanes, 50
    names = ("x", "h0", "h1", "bias", "z", "c", "g", "up", "gate")
    at = dict(zip(names, range(config.vector_lanes, config.vector_depth, hidden), strict=False))
    kind = Function.SPARSE if sparse else Function.DENSE

    def scale(fan: int) -> int:
        return int(from_float(np.array(1 / math.sqrt(fan))))

    def pack(name: str, count: int, function: Function = Function.DENSE) -> None:
        add(Opcode.QUANTIZE, function=function, target=1, a=at[name], count=count)

    def multiply(rows: int, columns: int, count: int = 1) -> None:
        add(Opcode.MATMUL, function=Function.BY_COLUMN, a=rows, b=count, count=columns,
            address=writer.matrix(rows, columns, count))

    def drain(name: str, rows: int, fan: int, norm: int) -> None:
        add(Opcode.WRITE_BACK, function=Function.COPY, target=at[name], a=norm, b=1, count=rows,
            constant=scale(fan))

    def vector(function: Function, target: str, a: str, b: str = "", count: int = width) -> None:
        add(Opcode.VECTOR, function=function, target=at[target], a=at[a], b=at[b] if b else 0,
            count=count)

    for state in ("h0", "h1"):
        add(Opcode.VECTOR, function=Function.COPY, target=at[state], a=0,
            count=config.vector_lanes)
        for done in range(config.vector_lanes, width, config.vector_lanes):
            add(Opcode.VECTOR, function=Function.COPY, target=at[state] + done, a=0,
                count=config.vector_lanes)
    body = len(writer.program)
    add(Opcode.TOKEN)
    multiply(width, vocab, 2)
    add(Opcode.WRITE_BACK, function=Function.COPY, target=at["x"], a=0, b=0, count=width,
        constant=bf16.one)
    for state in ("h0", "h1"):
        pack("x", width)
        for _ in range(3):
            multiply(width, width)
        add(Opcode.NORM, target=2, a=at["x"], count=width)
        add(Opcode.LOAD, target=at["bias"], count=width, address=writer.vector(width))
        drain("z", width, 1, 2)
        vector(Function.ADD, "z", "z", "bias")
        vector(Function.SIGMOID_OF_NEGATIVE, "z", "z")
        drain("c", width, 1, 2)
        vector(Function.SILU, "c", "c")
        vector(Function.SUBTRACT, "c", "c", state)
        vector(Function.LMUL, "c", "z", "c")
        vector(Function.ADD, state, state, "c")
        add(Opcode.NORM, target=3, a=at[state], count=width)
        drain("g", width, 1, 2)
        vector(Function.SILU, "g", "g")
        vector(Function.LMUL, "g", state, "g")
        pack("g", width, kind)
        multiply(width, width)
        drain("g", width, width, 3)
        vector(Function.ADD, "x", "x", "g")
        pack("x", width)
        multiply(hidden, width)
        multiply(hidden, width)
        add(Opcode.NORM, target=2, a=at["x"], count=width)
        drain("gate", hidden, 1, 2)
        vector(Function.RELU, "gate", "gate", count=hidden)
        drain("up", hidden, 1, 2)
        vector(Function.LMUL, "up", "up", "gate", count=hidden)
        pack("up", hidden, kind)
        multiply(width, hidden)
        drain("g", width, hidden, 0)
        vector(Function.ADD, "x", "x", "g")
    pack("x", width)
    multiply(vocab, width, 2)
    add(Opcode.NORM, target=2, a=at["x"], count=width)
    add(Opcode.TOP_K, a=2, b=1, count=vocab, constant=scale(1))
    add(Opcode.STOP)
    assert at["gate"] + hidden <= config.vector_depth
    return writer, body


@cocotb.test(timeout_time=500, timeout_unit="us")
@cocotb.parametrize(sparse=[False, True], stall=[0.0, 0.3])
async def model(dut, sparse, stall):
    """Eight tokens, then a new sequence."""
    config = CONFIGURATIONS[bench_case()]
    writer, body = two_layers(config, sparse=sparse)
    driver = Driver(dut, writer.program, writer.contents(), latency=20, stall=stall)
    await driver.load()
    await driver.run([7])
    await driver.run([int(token) for token in writer.rng.integers(0, 50, 7)], body)
    await driver.run([3])
    await driver.run([4, 49], body)


def attending(config: AcceleratorConfig, seed: int) -> tuple[Writer, int]:
    """Write a program that attends to several caches; vectors of the tokens come by position.

    Products of the engine are queued around what attends, and wait for it. All mixtures are
    appended to caches of their own, so that memory has those of all positions in the end.
    """
    writer = Writer(config, seed)
    rng, add = writer.rng, writer.add
    lanes, widest = config.vector_lanes, config.group * config.head_elements
    q, key, value, out, listed = (lanes + k * widest for k in range(5))
    # Something before the body, which therefore begins at another instruction than a sequence.
    add(Opcode.VECTOR, function=Function.COPY, target=out, a=0, count=lanes)
    body = len(writer.program)
    add(Opcode.LOAD, target=listed, count=4 * lanes, address=writer.vector(4 * lanes))
    add(Opcode.QUANTIZE, function=Function.DENSE, target=1, a=listed, count=4 * lanes)
    for cache in range(config.caches - 1):
        heads = 1 + cache % config.group
        elements = config.head_elements // (1 + cache // 3)
        formats = [int(rng.choice([Function.BF16, Function.E4M3])) for _ in range(2)]
        halves = elements // 2 % lanes == 0 and cache % 2
        columns = {"a": 3 * lanes, "b": 2, "count": 4 * lanes}
        add(Opcode.MATMUL, function=Function.BY_COLUMN, **columns,
            address=writer.matrix(3 * lanes, 4 * lanes, 2))
        second = elements // 2 if halves else 0
        # Halves do not follow one another: there is a word between, or they are of two vectors.
        for target, count in ((q, heads * elements + (lanes if halves else 0)), (key, elements),
                              (value, elements)):
            add(Opcode.LOAD_AT, target=target, count=count,
                address=writer.vector(count * (config.context + 1)))
        places = [writer.place(bytes(2 * elements * config.context)) for _ in range(2)]
        add(Opcode.KV_APPEND, function=formats[0], a=key, b=second and value + second,
            count=elements, constant=config.caches - 1, address=places[0])
        add(Opcode.QK, function=formats[0], target=heads, a=q,
            b=second and q + heads * second + lanes, count=heads * elements, constant=elements,
            address=places[0])
        if cache % 2:
            add(Opcode.KV_APPEND, function=formats[1], a=value, count=elements, constant=cache,
                address=places[1])
            add(Opcode.MATMUL, function=Function.BY_COLUMN, **columns,
                address=writer.matrix(3 * lanes, 4 * lanes, 2))
        else:
            add(Opcode.KV_APPEND, function=formats[1], a=value, b=value + elements // 2
                if elements // 2 % lanes == 0 else 0, count=elements, constant=cache,
                address=places[1])
        add(Opcode.PV, function=formats[1], target=out, a=cache, count=heads * elements,
            constant=elements, address=places[1])
        for head in range(heads):
            add(Opcode.KV_APPEND, function=Function.BF16, a=out + head * elements, count=elements,
                constant=config.caches - 1,
                address=writer.place(bytes(2 * elements * config.context)))
        for _ in range(1 + cache % 2):
            add(Opcode.TOP_K, a=1, b=0, count=3 * lanes, constant=bf16.one)
    add(Opcode.STOP)
    return writer, body


@cocotb.test(timeout_time=500, timeout_unit="us")
@cocotb.parametrize((("latency", "stall"), [(0, 0.0), (20, 0.0), (7, 0.4)]))
async def attention(dut, latency, stall):
    """Whole contexts, sequences that end early, and one that begins again."""
    config = CONFIGURATIONS[bench_case()]
    if not config.context:
        pytest.skip("There is no attention in this case")
    writer, body = attending(config, 1)
    driver = Driver(dut, writer.program, writer.contents(), latency=latency, stall=stall)
    await driver.load()
    await driver.run([1])
    await driver.run([2, 3, 4], body)
    await driver.run([5])
    await driver.run(list(range(config.context - 1)), body)
    await driver.run([6])
    await driver.run([7], body)


@cocotb.test(timeout_time=300, timeout_unit="us")
@cocotb.parametrize(kind=["context", "key", "query", "heads"])
async def attention_faults(dut, kind):
    """Tell what is wrong in attention: a sequence that is too long, vectors, heads."""
    config = CONFIGURATIONS[bench_case()]
    if not config.context:
        pytest.skip("There is no attention in this case")
    writer, body = attending(config, 2)
    lanes = config.vector_lanes
    broken = writer.place(np.full(config.head_elements, bf16.infinity, "<u2").tobytes())
    at = {opcode: next(k for k, instruction in enumerate(writer.program)
                       if instruction.opcode is opcode)
          for opcode in (Opcode.KV_APPEND, Opcode.QK, Opcode.PV)}
    program = list(writer.program)
    if kind == "key":
        place = at[Opcode.KV_APPEND]
        program.insert(place, Instruction(opcode=Opcode.LOAD, target=program[place].a,
                                          count=lanes, address=broken))
    if kind == "query":
        place = at[Opcode.QK]
        program.insert(place, Instruction(opcode=Opcode.LOAD, target=program[place].a,
                                          count=lanes, address=broken))
    if kind == "heads":
        program[at[Opcode.PV]] = dataclasses.replace(program[at[Opcode.PV]], a=config.caches)
    driver = Driver(dut, program, writer.contents(), latency=5)
    await driver.load()
    if kind == "context":
        await driver.run([1])
        await driver.run([2] * (config.context - 1), body)
    first = body if kind == "context" else 0
    await driver.begin(3, first)
    fault = (await driver.streams["o_faults"].receive(1))[0]
    with pytest.raises(MachineFault) as found:
        driver.machine.run(3, first)
    assert (fault.fault, fault.instruction) == (found.value.fault, found.value.instruction)
    assert fault.fault == {"context": Fault.CONTEXT, "heads": Fault.HEADS}.get(
        kind, Fault.NOT_FINITE)


async def restart(driver: Driver, program: list[Instruction]) -> None:
    """Reset the accelerator for one cycle and write ``program``."""
    driver.dut.rst.value = 1
    await RisingEdge(driver.dut.clk)
    driver.dut.rst.value = 0
    driver.program = program
    await driver.write()


async def vector_memory(driver: Driver, address: int) -> np.ndarray:
    """Reset the accelerator, and store its whole vector memory from ``address`` on; return it."""
    depth = driver.config.vector_depth
    await restart(driver, [Instruction(opcode=Opcode.STORE, a=0, count=depth, address=address),
                           Instruction(opcode=Opcode.STOP)])
    await driver.begin(0)
    await driver.write()                        # accepted when the pass has ended
    return np.frombuffer(driver.memory.contents, "<u2", depth, address).copy()


@cocotb.test(timeout_time=300, timeout_unit="us")
@cocotb.parametrize(kind=["opcode", "address", "store", "not_finite", "no_product"])
async def faults(dut, kind):
    """Tell a fault with its instruction, which has no effect; only a reset starts again.

    The vector memory and the memory are then as the golden machine has them.
    """
    config = CONFIGURATIONS[bench_case()]
    writer, body = two_layers(config, sparse=False)
    lanes = config.vector_lanes
    copy = writer.place(bytes(2 * config.vector_depth))
    infinite = writer.place(np.full(lanes, bf16.infinity, "<u2").tobytes())
    wrong = {
        "opcode": Instruction(opcode=Opcode.VECTOR, function=0x1F, target=lanes, a=lanes,
                              count=lanes),
        "address": Instruction(opcode=Opcode.LOAD, target=lanes, count=lanes,
                               address=config.memory_bytes - 2 * lanes + config.port_bytes),
        "store": Instruction(opcode=Opcode.STORE, a=lanes, count=lanes,
                             address=config.memory_bytes - 2 * lanes + config.port_bytes),
        "not_finite": Instruction(opcode=Opcode.QUANTIZE, function=Function.SPARSE, target=1,
                                  a=config.vector_depth - lanes, count=lanes),
        "no_product": Instruction(opcode=Opcode.WRITE_BACK, function=Function.COPY, target=lanes,
                                  count=lanes),
    }[kind]
    at = body + 3
    program = [*writer.program[:at], wrong, *writer.program[at:]]
    program.insert(at, Instruction(opcode=Opcode.LOAD, target=config.vector_depth - lanes,
                                   count=lanes, address=infinite))
    await start(dut)
    driver = Driver(dut, program, writer.contents(), latency=5)
    driver.machine.vectors[:] = await vector_memory(driver, copy)
    driver.memory.contents[:] = writer.contents()
    await restart(driver, program)
    await driver.begin(7)
    fault = (await driver.streams["o_faults"].receive(1))[0]
    with pytest.raises(MachineFault) as found:
        driver.machine.run(7)
    assert (fault.fault, fault.instruction) == (found.value.fault, found.value.instruction)
    assert dut.executing.value.to_unsigned() == fault.instruction
    dut.i_tokens__valid.value = dut.i_program__valid.value = 1
    for number in range(200):
        await RisingEdge(dut.clk)
        assert not any(dut[name].value for name in (
            "o_faults__valid", "o_top_k__valid", "o_scale__valid", "memory__writes__valid",
            "i_tokens__ready", "i_program__ready"))
        # Prefetch stops at the same instruction, if the fault is one of its fields.
        seen = fault.fault in (Fault.NOT_FINITE, Fault.NO_PRODUCT)
        assert seen or number < 100 or not dut.memory__reads__valid.value
    dut.i_tokens__valid.value = dut.i_program__valid.value = 0
    assert driver.memory.contents == driver.machine.memory.tobytes()
    np.testing.assert_array_equal(await vector_memory(driver, copy), driver.machine.vectors)

    driver.memory.contents[:] = writer.contents()
    driver.machine = Machine(config, b"".join(map(encode, writer.program)), writer.contents())
    await restart(driver, writer.program)
    await driver.run([7])
    await driver.run([1], body)


def timed_attention(config: AcceleratorConfig, cache: int) -> list[tuple]:
    """As :func:`timed`, of attention at position 0; memory is free from ``cache`` on."""
    lanes = config.vector_lanes
    cases: list[tuple] = []
    for function, heads, elements in itertools.product(
            FUNCTIONS[Opcode.KV_APPEND], range(1, config.group + 1), (lanes, config.head_elements)):
        shape = {"function": function, "count": heads * elements, "constant": elements,
                 "address": cache}
        append = Instruction(opcode=Opcode.KV_APPEND, function=function, a=lanes, count=elements,
                             address=cache)
        score = Instruction(opcode=Opcode.QK, target=heads, a=lanes, **shape)
        mix = Instruction(opcode=Opcode.PV, target=lanes, **shape)
        cases += [(append, [], []), (score, [], []), (mix, [append, score], []),
                  (Instruction(opcode=Opcode.LOAD_AT, target=lanes, count=elements), [], [])]
    return cases


def timed(config: AcceleratorConfig, cache: int) -> list[
        tuple[Instruction, list[Instruction], list[Instruction]]]:
    """Instructions to be timed, what comes before each, and what must come behind it."""
    lanes, engine = config.vector_lanes, config.engine
    cases = []
    for words in (1, 2, 5):
        count = words * lanes
        cases += [(Instruction(opcode=Opcode.VECTOR, function=function, target=lanes, a=lanes,
                               count=count), [], []) for function in FUNCTIONS[Opcode.VECTOR]]
        cases += [
            (Instruction(opcode=Opcode.NORM, target=1, a=lanes, count=count), [], []),
            (Instruction(opcode=Opcode.QUANTIZE, function=Function.DENSE, target=1, a=lanes,
                         count=count), [], []),
            (Instruction(opcode=Opcode.LOAD, target=lanes, count=count), [], []),
            (Instruction(opcode=Opcode.STORE, a=lanes, count=count), [], []),
        ]
    if config.context:
        cases += timed_attention(config, cache)
    # The first word of the vector memory is zero.
    cases.append((Instruction(opcode=Opcode.QUANTIZE, function=Function.NONZERO, count=lanes), [],
                  []))
    token = Instruction(opcode=Opcode.TOKEN)
    cases.append((token, [], []))
    # What a product takes is over when an instruction of this length is.
    wait = Instruction(opcode=Opcode.VECTOR, function=Function.COPY, target=0, a=0,
                       count=config.vector_depth // 2)
    for rows in (1, lanes, 3 * lanes, engine.lanes + lanes):
        product = Instruction(opcode=Opcode.MATMUL, function=Function.BY_COLUMN, a=rows, b=1,
                              count=8)
        take = Instruction(opcode=Opcode.TOP_K, count=rows, constant=bf16.one)
        cases.append((take, [token, product, wait], []))
        cases.append((product, [token], [wait, take]))
        if rows % lanes == 0:
            cases.append((Instruction(opcode=Opcode.WRITE_BACK, function=Function.RELU,
                                      target=lanes,
                                      count=rows, constant=bf16.one), [token, product, wait], []))
        if rows > lanes:
            part, others = (Instruction(opcode=Opcode.WRITE_BACK, function=Function.COPY,
                                        target=lanes, count=count, constant=bf16.one)
                            for count in (lanes, rows - lanes))
            cases.append((part, [token, product, wait], [others]))
    if engine.max_batch > 1:
        cases += timed_batches(config, wait)
    return cases


def timed_batches(config: AcceleratorConfig, wait: Instruction) -> list[tuple]:
    """As :func:`timed`, of lists of two vectors, and of a product with one."""
    lanes = config.vector_lanes
    slots, across = (
        [Instruction(opcode=Opcode.QUANTIZE, function=Function.DENSE, target=1, a=lanes,
                     count=count, constant=Batch(log2=1, slot=slot, across=size == 1).constant)
         for slot in range(size)] for size, count in ((2, 2 * lanes), (1, 4 * lanes)))
    cases: list[tuple] = [(slots[0], [], []), (slots[1], slots[:1], []), (across[0], [], [])]
    for rows in (lanes, 3 * lanes):
        product = Instruction(opcode=Opcode.MATMUL, function=Function.BY_COLUMN, target=2, a=rows,
                              b=1, count=2 * lanes)
        one, both = (Instruction(opcode=Opcode.WRITE_BACK, function=Function.COPY, target=lanes,
                                 count=count, constant=bf16.one) for count in (rows, 2 * rows))
        for made in (slots, across):
            cases += [(product, made, [wait, both]), (both, [*made, product, wait], []),
                      (one, [*made, product, wait], [one])]
    return cases


@cocotb.test(timeout_time=500, timeout_unit="us")
async def cycles(dut):
    """Each instruction takes its formula's cycles, from dispatch to dispatch."""
    config = CONFIGURATIONS[bench_case()]
    writer = Writer(config, 1)
    writer.matrix(config.engine.max_rows, 8, 1)
    cache = writer.place(bytes(2 * config.head_elements))
    stop = Instruction(opcode=Opcode.STOP)
    # Long enough for decoding, and for what is fetched, to be no part of what is measured.
    rest = [Instruction(opcode=Opcode.VECTOR, function=Function.COPY, target=0, a=0,
                        count=config.vector_lanes)] * 4
    driver = Driver(dut, [stop], writer.contents())
    tokens = driver.streams["i_tokens"]
    taking = [cocotb.start_soon(driver.streams[name].receive(10 ** 9))
              for name in ("o_top_k", "o_scale")]

    async def measure(*parts: list[Instruction]) -> int:
        driver.program = [*itertools.chain(*parts), stop]
        await driver.load()
        await driver.begin(1)
        first = tokens.last_cycle
        await driver.begin(1, len(driver.program) - 1)
        return tokens.last_cycle - first

    def formula(instruction: Instruction) -> int:
        kept = 0
        if instruction.opcode is Opcode.TOP_K:
            product = Instruction(opcode=Opcode.MATMUL, function=Function.BY_COLUMN,
                                  a=instruction.count, b=1, count=8)
            program = [token, product, instruction, stop]
            machine = Machine(config, b"".join(map(encode, program)), writer.contents())
            kept = kept_count(machine.run(1)[0].integers, config.top_k)
        entries = [0] if instruction.function == Function.NONZERO else None
        return instruction_cycles(config, instruction, kept=kept, entries=entries)

    token = Instruction(opcode=Opcode.TOKEN)
    wrong = []
    # Norms are loaded while their list is packed; no word is without a code.
    for (words, loaded), function in itertools.product(((1, 1), (2, 40), (7, 7), (16, 40)), MASKED):
        count = words * config.vector_lanes
        x = from_float(writer.rng.choice([-1.0, 1.0], count) * writer.rng.uniform(1, 2, count))
        norms = writer.rng.integers(1, 1 << 16, loaded * config.vector_lanes).astype(np.uint16)
        places = [config.vector_lanes, config.vector_lanes + count]
        addresses = [writer.place(values.astype("<u2").tobytes()) for values in (x, norms)]
        driver.memory.contents[:] = writer.contents()
        loads = [Instruction(opcode=Opcode.LOAD, target=target, count=size, address=address)
                 for target, size, address in zip(places, (count, len(norms)), addresses,
                                                  strict=True)]
        pack = Instruction(opcode=Opcode.QUANTIZE, function=function, target=1, a=places[0],
                           b=places[1], count=count, constant=max(1, count // 2), address=1)
        took = await measure(loads[:1], rest, [loads[1], pack], rest)
        took -= await measure(loads[:1], rest, rest)
        keys = scores(quantize(x).values, norms[:count])
        selected = (select_cycles(keys, pack.constant) if function == Function.KEEP_TOP_K
                    else threshold_cycles(0))
        begun = instruction_cycles(config, loads[1], following=pack)
        loading = instruction_cycles(config, loads[1]) - 1 - begun
        cycles = begun + instruction_cycles(config, pack, selected=selected, loading=loading)
        if took != cycles:
            wrong.append(f"LOAD and {Function(function).name} of {count}: {took} cycles, "
                         f"not {cycles}")
    for instruction, before, behind in timed(config, cache):
        took = await measure(before, rest, [instruction], behind, rest)
        # A product is taken in both programs, or in none; what takes it has been measured.
        took -= await measure(before, rest, behind[:-1], rest)
        took -= sum(map(formula, behind[-1:]))
        if took != formula(instruction):
            wrong.append(f"{instruction.opcode.name} a={instruction.a} count={instruction.count}: "
                         f"{took} cycles, not {formula(instruction)}")
    for task in taking:
        task.cancel()
    assert not wrong, "\n".join(wrong)


@cocotb.test(timeout_time=1000, timeout_unit="us")
async def resets(dut):
    """Reset anywhere in passes: with reads owed, products queued, lists and caches half written.

    Memories keep what they hold, so a program begins by writing what it reads.
    """
    config = CONFIGURATIONS[bench_case()]
    await start(dut)
    short = Writer(config, 6)
    count = 2 * config.vector_lanes
    place = short.place(bytes(2 * count))
    short.add(Opcode.LOAD, target=count, count=count, address=short.vector(count))
    short.add(Opcode.NORM, target=2, a=count, count=count)
    short.add(Opcode.QUANTIZE, function=Function.SPARSE, target=1, a=count, count=count)
    short.add(Opcode.MATMUL, function=Function.BY_COLUMN, a=count, b=2, count=count,
              address=short.matrix(count, count, 2))
    short.add(Opcode.VECTOR, function=Function.SILU, target=count, a=count, count=count)
    short.add(Opcode.STORE, a=count, count=count, address=place)
    short.add(Opcode.TOP_K, a=1, b=2, count=count, constant=bf16.one)
    short.add(Opcode.STOP)
    longer = attending(config, 3) if config.context else two_layers(config, sparse=True)

    async def run(writer, token, *, latency, stall):
        driver = Driver(dut, writer.program, writer.contents(), latency=latency, stall=stall)
        await driver.write()
        await driver.run([token])

    await resets_in_mid_work(
        dut, Accelerator(config),
        lambda seed: run(longer[0], seed % 20, latency=9, stall=0.2),
        lambda: run(short, 3, latency=3, stall=0.0), resets=5)
