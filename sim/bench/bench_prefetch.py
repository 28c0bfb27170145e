"""Prefetch on random programs: which fetches, in which order, and what it waits for."""

from collections.abc import Iterable

import cocotb
import numpy as np
from cocotb.triggers import RisingEdge

from hw.config import AcceleratorConfig, EngineConfig
from hw.control.prefetch import Prefetch
from hw.isa import Function, Instruction, Opcode, encode
from hw.legality import CACHE_BYTES
from hw.memory.read_engine import Kind
from sim.bench.programmed import Programmed
from sim.resets import resets_in_mid_work
from sim.runner import bench_case
from sim.streams import StreamSink, start

_ENGINE = EngineConfig(lanes=8, result_lanes=4, row_columns=64, max_batch=1, index_width=9,
                       accumulator_width=24, accumulator_depth=16, max_planes=3, port_bytes=4)
CONFIGURATIONS = {
    "plain": AcceleratorConfig(engine=_ENGINE, vector_depth=1024, program_depth=64, list_depth=64,
                               queue_words=32, address_width=16),
    "attention": AcceleratorConfig(engine=_ENGINE, vector_depth=1024, program_depth=64,
                                   list_depth=64, queue_words=32, address_width=16, context=8,
                                   head_elements=16, attention_heads=2, attention_elements=2,
                                   caches=5),
}

DUTS = {name: lambda config=config: Programmed(Prefetch(config))
        for name, config in CONFIGURATIONS.items()}

_FENCES = (Opcode.STORE, Opcode.KV_APPEND)
_READS = (Opcode.MATMUL, Opcode.LOAD, Opcode.LOAD_AT, Opcode.QK, Opcode.PV)


def random_program(rng: np.random.Generator, config: AcceleratorConfig, *, waits: bool, prefix: int
                   ) -> list[Instruction]:
    """Make legal instructions, from a TOKEN to a STOP, and ``prefix`` before it.

    These are skipped by most passes. Where STOPs do not wait, prefetch does not know of that: they
    read nothing then.
    """
    lanes = config.vector_lanes
    port = config.port_bytes

    def address() -> int:
        return int(rng.integers(1 << 13)) * port

    def make() -> Instruction:
        words = int(rng.integers(1, 5)) * lanes
        kinds = ["vector", "load", "store", "token", "dense", "sparse", "column", "row"]
        kinds += ["load_at", "append", "qk", "pv"] if config.context else []
        form = {"function": int(rng.choice((Function.BF16, Function.E4M3)))}
        match str(rng.choice(kinds)):
            case "load":
                return Instruction(opcode=Opcode.LOAD, target=lanes, count=words,
                                   address=address())
            case "load_at":
                return Instruction(opcode=Opcode.LOAD_AT, target=lanes, count=words,
                                   address=address())
            case "store":
                return Instruction(opcode=Opcode.STORE, a=lanes, count=words, address=address())
            case "append":
                return Instruction(opcode=Opcode.KV_APPEND, a=lanes, count=16, constant=1,
                                   address=address(), **form)
            case "qk":
                return Instruction(opcode=Opcode.QK, target=1, a=lanes, count=16, constant=16,
                                   address=address(), **form)
            case "pv":
                return Instruction(opcode=Opcode.PV, target=lanes, a=1, count=16, constant=16,
                                   address=address(), **form)
            case "token":
                return Instruction(opcode=Opcode.TOKEN)
            case "dense":
                return Instruction(opcode=Opcode.QUANTIZE, function=Function.DENSE, target=1,
                                   a=lanes, count=words)
            case "sparse":
                return Instruction(opcode=Opcode.QUANTIZE, function=Function.SPARSE, target=1,
                                   a=lanes, count=words)
            case "column":
                return Instruction(opcode=Opcode.MATMUL, function=Function.BY_COLUMN,
                                   a=int(rng.integers(1, 100)), b=int(rng.integers(1, 4)),
                                   count=int(rng.integers(1, 100)), address=address())
            case "row":
                return Instruction(opcode=Opcode.MATMUL, function=Function.BY_ROW,
                                   a=int(rng.integers(1, 100)), b=int(rng.integers(1, 4)),
                                   count=int(rng.integers(1, 65)), address=address())
        return Instruction(opcode=Opcode.VECTOR, function=Function.COPY, target=lanes, a=lanes,
                           count=words)

    quiet = [Instruction(opcode=Opcode.VECTOR, function=Function.COPY, target=lanes, a=lanes,
                         count=lanes)] * prefix
    # How matrices are read depends on the list before them.
    token = Instruction(opcode=Opcode.TOKEN)
    if waits:
        quiet = [make() if index else token for index in range(prefix)]
    body = [make() for _ in range(int(rng.integers(1, config.program_depth - prefix - 2)))]
    return [*quiet, token, *body,
            Instruction(opcode=Opcode.STOP, constant=int(waits))]


class Walk:
    """What prefetch must ask for: the golden model, one pass after the other."""

    def __init__(self, config: AcceleratorConfig, program: list[Instruction]):
        self.config, self.program = config, program
        self._on_demand = False

    def pass_(self, first: int, position: int) -> list[tuple[dict | None, bool]]:
        """Return {the fetch, is it a fence} of each instruction from ``first`` to the STOP."""
        found = []
        for instruction in self.program[first:]:
            if instruction.opcode in (Opcode.TOKEN, Opcode.QUANTIZE):
                self._on_demand = instruction.function != Function.DENSE
            fetch = self._fetch(instruction, position) if instruction.opcode in _READS else None
            found.append((fetch, instruction.opcode in _FENCES))
        return found

    def _fetch(self, instruction: Instruction, position: int) -> dict:
        config, opcode = self.config, instruction.opcode
        lanes, address = config.vector_lanes, instruction.address
        if opcode is Opcode.MATMUL:
            by_row = instruction.function == Function.BY_ROW
            across = instruction.count if by_row else instruction.a
            return {"kind": Kind.COLUMNS if by_row or self._on_demand else Kind.WHOLE,
                    "address": address, "count": instruction.count,
                    "size": config.engine.column_bytes(across, instruction.b)}
        if opcode in (Opcode.QK, Opcode.PV):
            return {"kind": Kind.CACHE, "address": address, "count": position + 1,
                    "size": instruction.constant * CACHE_BYTES[Function(instruction.function)]}
        if opcode is Opcode.LOAD_AT:
            address += position * 2 * instruction.count
        return {"kind": Kind.VECTOR, "address": address, "count": instruction.count // lanes,
                "size": 2 * lanes}


async def idle(dut, cycles: int) -> None:
    """Let ``cycles`` go by."""
    for _ in range(cycles):
        await RisingEdge(dut.clk)


async def load(dut, spec: Programmed, program: Iterable[bytes]) -> None:
    """Write a program, from instruction 0 on."""
    layout = spec.i_program.p.shape()
    for index, instruction in enumerate(program):
        dut.i_program__payload.value = layout.const({
            "index": index, "instruction": int.from_bytes(instruction, "little")}).as_bits()
        dut.i_program__valid.value = 1
        await RisingEdge(dut.clk)
    dut.i_program__valid.value = 0
    dut.i_program__payload.value = 0


async def run(dut, *, stall: float, seed: int, waits: bool, passes: int) -> None:
    """Execute passes of a random program beside prefetch, and compare its fetches."""
    config = CONFIGURATIONS[bench_case()]
    spec = DUTS[bench_case()]()
    rng = np.random.default_rng(seed)
    prefix = int(rng.integers(0, 4))
    program = random_program(rng, config, waits=waits, prefix=prefix)
    await load(dut, spec, map(encode, program))
    sink = StreamSink(dut, "o_fetches", spec.o_fetches.p.shape(), stall=stall, seed=seed)
    #: Fetches that came, each with the fences that had been executed.
    came: list[tuple[dict, int]] = []
    executed = 0

    async def take() -> None:
        while True:
            fetch, = await sink.receive(1)
            came.append(({name: int(fetch[name]) if name != "kind" else Kind(int(fetch.kind.value))
                          for name in ("kind", "address", "count", "size")}, executed))

    cocotb.start_soon(take())
    walk = Walk(config, program)
    wanted: list[tuple[dict, int]] = []         # with the fences before it
    fences = position = 0
    for number in range(passes):
        new = number == 0 or rng.random() < 0.2
        if waits:
            first = 0 if new else prefix
        else:
            # Execution may begin behind what reads nothing; prefetch goes on at 0.
            first = 0 if new else int(rng.integers(0, prefix + 1))
        position = 0 if first == 0 else min(position + 1, config.context) if config.context else 0
        while dut.behind.value:
            await RisingEdge(dut.clk)
        await idle(dut, int(rng.choice((0, 60))))
        dut.pass_begins.value, dut.start.value = 1, first
        await RisingEdge(dut.clk)
        dut.pass_begins.value = 0
        dut.start.value = int(rng.integers(1 << len(spec.start)))
        if config.context:
            if position >= config.context:
                return                          # the next instruction with a position is a fault
            dut.position.value = position
        for fetch, fence in walk.pass_(first if waits or number == 0 else 0, position):
            await idle(dut, int(rng.integers(0, 3)))
            if fence:
                # Long enough for prefetch to come here first.
                await idle(dut, int(rng.choice((0, 0, 40))))
                fences += 1
                executed += 1
                dut.stored.value = 1
                await RisingEdge(dut.clk)
                dut.stored.value = 0
            if fetch is not None:
                wanted.append((fetch, fences))
                # Execution goes on with what was read.
                while len(came) < len(wanted):
                    await RisingEdge(dut.clk)
        assert [fetch for fetch, _ in came[:len(wanted)]] == [fetch for fetch, _ in wanted]
        for (fetch, after), (_, fences_before) in zip(came, wanted, strict=False):
            assert after >= fences_before, f"{fetch} overtakes a STORE"
        if waits:
            assert len(came) == len(wanted)


async def begin(dut) -> None:
    """Reset, with all inputs idle."""
    for name in ("i_program__valid", "i_program__payload", "pass_begins", "start", "stored",
                 "o_fetches__ready"):
        dut[name].value = 0
    if hasattr(dut, "position"):
        dut.position.value = 0
    await start(dut)


async def again(dut) -> None:
    """Reset once more: a new program."""
    dut.rst.value = 1
    await RisingEdge(dut.clk)
    dut.rst.value = 0


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.6], waits=[False, True])
async def programs(dut, stall, waits):
    """Walk random programs, whose STOPs wait or not."""
    await begin(dut)
    for seed in range(12):
        task = cocotb.start_soon(run(dut, stall=stall, seed=seed, waits=waits, passes=7))
        await task
        dut.stored.value = dut.pass_begins.value = 0
        await again(dut)


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def faults(dut):
    """Stop for ever at an instruction with a fault, and ask for nothing behind it."""
    await begin(dut)
    config = CONFIGURATIONS[bench_case()]
    spec = DUTS[bench_case()]()
    vector = Instruction(opcode=Opcode.LOAD, target=4, count=4, address=16)
    program = [encode(vector), bytes([0xEE]) + bytes(15), encode(vector)]
    await load(dut, spec, program)
    dut.pass_begins.value = 1
    await RisingEdge(dut.clk)
    dut.pass_begins.value = 0
    sink = StreamSink(dut, "o_fetches", spec.o_fetches.p.shape())
    assert (await sink.receive(1))[0].address == 16
    dut.o_fetches__ready.value = 1
    for _ in range(100):
        await RisingEdge(dut.clk)
        assert not dut.o_fetches__valid.value
        assert dut.behind.value
    assert config.program_depth > len(program)


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def resets(dut):
    """Reset at any time in a walk: the next one begins with its own program."""
    await begin(dut)
    await resets_in_mid_work(
        dut, DUTS[bench_case()](),
        lambda seed: run(dut, stall=(0.0, 0.5)[seed % 2], seed=seed % 97, waits=True, passes=4),
        lambda: run(dut, stall=0.0, seed=3, waits=True, passes=2), resets=10)
