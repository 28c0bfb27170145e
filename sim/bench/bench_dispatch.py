"""The parts of the dispatch, each against its golden function."""

import dataclasses
from collections import deque

import cocotb
import numpy as np
from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In
from cocotb.triggers import RisingEdge

from hw.activations.sparse_vector import SparseVectorMemory
from hw.config import AcceleratorConfig, EngineConfig
from hw.control.decode import Decoder
from hw.control.dispatch import Dispatch
from hw.formats.minifloat import bf16
from hw.isa import (
    ATTENTION,
    FIELDS,
    FUNCTIONS,
    MASKED,
    USED,
    Batch,
    Fault,
    Function,
    Instruction,
    Opcode,
    encode,
)
from hw.memory.port import error_layout
from hw.output.top_k import TopK
from sim.bench.programmed import Programmed, join
from sim.golden.lmul import exact_product
from sim.golden.machine import HazardError, Machine, MachineFault
from sim.golden.top_k import kept_count, largest_rows
from sim.resets import cancelled_tasks, resets_in_mid_work
from sim.runner import bench_case
from sim.streams import StreamSink, StreamSource, start
from sim.timing.units import decode_cycles, dispatch_cycles, list_cycles, top_k_cycles

CONFIGURATIONS = {
    # A batch may be as large as its fields allow.
    "sixteen": AcceleratorConfig(engine=EngineConfig(lanes=16, row_columns=64, index_width=20,
                                                     max_batch=128),
                                 list_depth=1024),
    "one": AcceleratorConfig(
        engine=EngineConfig(lanes=4, result_lanes=2, accumulator_width=20, index_width=9,
                            port_bytes=1),
        vector_depth=64, list_depth=8, product_depth=1, top_k=1, address_width=16),
    "attention": AcceleratorConfig(
        engine=EngineConfig(lanes=8, result_lanes=4, index_width=9, port_bytes=4),
        vector_depth=256, list_depth=16, product_depth=2, top_k=2, address_width=14, context=32,
        head_elements=16, caches=6),
}


def with_wide_port(config: AcceleratorConfig) -> AcceleratorConfig:
    """Return the configuration with transfers of two words of e4m3 numbers: a cache has none."""
    return dataclasses.replace(config, engine=dataclasses.replace(
        config.engine, port_bytes=2 * config.vector_lanes))


class Bench(wiring.Component):
    """The units side by side, their streams named ``STREAM_UNIT``."""

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        self.units = {"top_k": TopK(config), "list": SparseVectorMemory(config),
                      "decoder": Decoder(config), "dispatch": Programmed(Dispatch(config))}
        if config.context:
            self.units["wide_decoder"] = Decoder(with_wide_port(config))
        super().__init__({f"{port}_{name}": member for name, unit in self.units.items()
                          for port, member in unit.signature.members.items()})

    def elaborate(self, platform):
        """Join each stream with that of the bench."""
        m = Module()
        for name, unit in self.units.items():
            m.submodules[name] = unit
            for port, member in unit.signature.members.items():
                join(m, getattr(self, f"{port}_{name}"), getattr(unit, port), member)
        return m


DUTS = {name: lambda config=config: Bench(config) for name, config in CONFIGURATIONS.items()}
SLOW = ("sixteen-verilator",)


class Ends:
    """The streams of the bench by name."""

    def __init__(self, dut, *, stall: float, seed: int):
        self.spec = DUTS[bench_case()]()
        self.config = self.spec.config
        self.rng = np.random.default_rng(seed)
        self.streams = {}
        for number, (name, member) in enumerate(self.spec.signature.members.items()):
            if member.is_port:
                if member.flow is In:
                    dut[name].value = 0
                continue
            end = StreamSource if name.startswith("i") else StreamSink
            shape = getattr(self.spec, name).payload.shape()
            self.streams[name] = end(dut, name, shape, stall=stall, seed=seed + number)

    def __getitem__(self, name: str):
        return self.streams[name]


def products(rng: np.random.Generator, config: AcceleratorConfig):
    """Make products that put every place of the best to use."""
    high = (1 << (config.engine.accumulator_width - 1)) - 1
    low = -high - 1
    best, lanes = config.top_k, config.vector_lanes
    for rows in (1, 2, lanes - 1, lanes, lanes + 1, best, best + 1, 5 * lanes + 3, 200):
        rows = max(rows, 1)
        yield rng.integers(low, high + 1, rows)
        yield rng.integers(-3, 4, rows)             # many are equal
    ramp = np.arange(67)
    yield from (ramp, ramp[::-1], -ramp, ramp - 100, 100 - ramp, np.zeros(50, int),
                np.full(33, low), np.full(33, high), np.tile([low, high], 30),
                np.repeat(ramp[:9], 7), np.repeat(-ramp[:9], 7))


async def choose(ends: Ends, given: list[np.ndarray], *, timed: bool) -> None:
    """Find the largest of ``given`` products; compare them, and the cycles if ``timed``."""
    config, lanes = ends.config, ends.config.vector_lanes
    commands, sink = ends["i_commands_top_k"], ends["o_top_k_top_k"]
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
        rows = largest_rows(product, config.top_k)
        await commands.send([{"rows": len(product)}])
        found = await sink.receive(len(rows))
        assert [entry.index for entry in found] == rows.tolist()
        assert [entry.value for entry in found] == product[rows].tolist()
        assert [entry.last for entry in found] == [0] * (len(rows) - 1) + [1]
        if timed:
            cycles = sink.last_cycle - commands.last_cycle + 1
            assert cycles == top_k_cycles(config, len(product), kept_count(product, config.top_k))


@cocotb.test(timeout_time=2000, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.5])
async def largest(dut, stall):
    """Deliver the largest of products of all kinds, while lanes beyond them hold larger ones."""
    ends = Ends(dut, stall=stall, seed=1)
    await start(dut)
    await choose(ends, list(products(ends.rng, ends.config)), timed=stall == 0)


async def walk(ends: Ends, lists: list, uses: list[int]) -> None:
    """Make lists of indices, queue ``uses`` products of each, and compare what the engine takes."""
    config, rng, engine = ends.config, ends.rng, ends.config.engine
    jobs, walked = ends["o_jobs_list"], ends["o_entries_list"]
    expected: list = []
    taken: list = []

    async def engine_takes(count):
        for _ in range(count):
            job = (await jobs.receive(1))[0]
            taken.append(tuple(job[name] for name in job.shape().members))
            while True:
                entry = (await walked.receive(1))[0]
                taken.append("end" if entry.end else (entry.index, entry.value))
                if entry.end:
                    break

    reader = cocotb.start_soon(engine_takes(sum(uses)))
    for indices, count in zip(lists, uses, strict=True):
        made = [{"index": index, "value": int(rng.integers(-128, 128)), "end": 0}
                for index in indices.tolist()]
        # The index of the end says nothing.
        await ends["i_entries_list"].send([*made, {
            "index": config.list_depth, "value": int(rng.integers(-1, 2)), "end": 1}])
        for _ in range(count):
            job = engine.job(int(rng.integers(1, engine.max_rows + 1)))
            await ends["i_products_list"].send([job])
            expected.append(tuple(job.values()))
            expected += [(entry["index"], entry["value"]) for entry in made] + ["end"]
    await reader
    assert taken == expected


@cocotb.test(timeout_time=2000, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.7])
async def lists(dut, stall):
    """Walk each list once for each of its products; the next list overwrites none in use."""
    ends = Ends(dut, stall=stall, seed=2)
    await start(dut)
    config, rng = ends.config, ends.rng
    engine, depth = config.engine, config.list_depth
    entries, products_ = ends["i_entries_list"], ends["i_products_list"]
    jobs, walked = ends["o_jobs_list"], ends["o_entries_list"]
    end = {"index": 0, "value": 0, "end": 1}

    # Entries of each list: none, all, a tile and its neighbours, single ones as a token makes them,
    # few in each tile, and any.
    elements = np.arange(depth)
    beyond = rng.integers(depth, 1 << engine.index_width, 2)
    lists = [elements[:0], elements[:1], elements, elements[:0], elements[:0], elements[-1:],
             *beyond[:, None], elements[:256], elements[-256:], elements[255:257],
             elements[::max(1, depth // 5)],
             *(np.flatnonzero(rng.random(depth) < share) for share in rng.random(14) ** 3)]
    uses = [1, 2, config.product_depth + 2, 0, 0, 1, 2, 1, *rng.integers(0, 3, 18).tolist()]
    await walk(ends, lists, uses)

    # A list alone: exact cycles, with and without entries in its first tiles.
    for indices in (elements, elements[-1:], elements[::max(1, depth // 5)], elements[:0]):
        jobs_taken = cocotb.start_soon(jobs.receive(1))
        await entries.send([*({"index": index, "value": 1, "end": 0}
                              for index in indices.tolist()), end])
        await products_.send([engine.job(1)])
        await walked.receive(len(indices) + 1)
        await jobs_taken
        if stall == 0:
            assert walked.last_cycle - products_.last_cycle + 1 == list_cycles(len(indices))


def expected_fault(config: AcceleratorConfig, instruction: Instruction, position: int) -> Fault:
    """Return what the golden machine says of an instruction, if it says it before executing it."""
    machine = Machine(config, 2 * encode(instruction), b"")
    machine.position = position - 1
    start = int(position > 0)
    try:
        machine.run(0, start)
    except MachineFault as found:
        if found.instruction == start and found.fault not in (Fault.NOT_FINITE, Fault.NO_PRODUCT):
            return found.fault
    except HazardError:
        pass
    return Fault.NONE


def placed_address(config: AcceleratorConfig, instruction: Instruction, position: int) -> int:
    """Return the address as it is decoded: at the position, for vectors that have one each."""
    size = 2 * instruction.count
    if not config.context or instruction.opcode not in (Opcode.LOAD_AT, Opcode.KV_APPEND):
        return instruction.address
    if instruction.opcode is Opcode.KV_APPEND and instruction.function == Function.E4M3:
        size //= 2
    return (instruction.address + position * size) % 2 ** 32


def random_instruction(rng: np.random.Generator, config: AcceleratorConfig,
                       opcode: Opcode) -> Instruction:
    """Make an instruction whose fields are legal, at the edges of it, or anything."""
    lanes, engine = config.vector_lanes, config.engine
    edges = [0, 1, lanes, 2 * lanes, lanes + 1, 15, 16, config.list_depth,
             config.list_depth + lanes, config.vector_depth - lanes, config.vector_depth,
             engine.max_rows, engine.max_rows + 1, engine.max_columns, engine.max_columns + 1,
             engine.max_planes, engine.max_planes + 1, 2 ** 16 - lanes, 2 ** 16 - 1, 2 ** 16,
             2 ** FIELDS["count"] - 1]
    registers = [(Opcode.QUANTIZE, "target"), (Opcode.NORM, "target"),
                 *((reader, name) for reader in (Opcode.WRITE_BACK, Opcode.TOP_K) for name in "ab")]
    values = {}
    for name in USED[opcode]:
        kind = rng.integers(8)
        if name == "function":
            legal = [int(function) for function in FUNCTIONS[opcode]]
            values[name] = int(rng.choice(legal)) if kind else int(
                rng.integers(2 ** FIELDS[name]))
        elif name == "address":
            anywhere = int(rng.integers(2 ** 32))
            step = config.port_bytes
            values[name] = (anywhere, anywhere % config.memory_bytes // step * step, 0, step,
                            config.memory_bytes - int(rng.integers(1, 9)) * step,
                            min(config.memory_bytes, 2 ** 32 - step), 1,
                            anywhere % 4096 // step * step)[kind]
        elif kind == 0:
            values[name] = int(rng.integers(2 ** FIELDS[name]))
        elif kind < 3:
            values[name] = int(rng.choice([edge for edge in edges if edge < 2 ** FIELDS[name]]))
        elif (opcode, name) in registers:
            values[name] = int(rng.integers(1, 16))
        elif opcode is Opcode.MATMUL or (opcode, name) in (
                (Opcode.QK, "target"), (Opcode.PV, "a"), (Opcode.KV_APPEND, "constant")):
            values[name] = int(rng.integers(1, 7))
        else:
            values[name] = int(rng.integers(1, 4)) * lanes
    return Instruction(opcode=opcode, **values)


@cocotb.test(timeout_time=3000, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.5])
async def instructions(dut, stall):
    """Decode all opcodes, all functions, matrices at the end of the memory, and random fields."""
    ends = Ends(dut, stall=stall, seed=3)
    await start(dut)
    config, rng = ends.config, ends.rng
    source, sink = ends["i_decoder"], ends["o_decoder"]
    engine = config.engine
    cases = []
    for opcode in Opcode:
        for _ in range(40):
            cases.append(random_instruction(rng, config, opcode))
    for opcode in FUNCTIONS:
        for function in range(2 ** FIELDS["function"]):
            fields = dict.fromkeys(("target", "a", "count"), config.vector_lanes)
            if opcode is Opcode.MATMUL:
                fields["b"] = 1
            elif opcode in (Opcode.QUANTIZE, Opcode.QK):
                fields["target"] = 1
            if opcode is Opcode.PV:
                fields["a"] = 1
            if opcode in (Opcode.QK, Opcode.PV):
                fields["constant"] = config.vector_lanes
            fields = {name: value for name, value in fields.items() if name in USED[opcode]}
            cases.append(Instruction(opcode=opcode, function=function, **fields))
    for _ in range(60):
        # The last byte of the matrix is the memory's last one, or the next transfer's.
        rows, columns = (int(rng.integers(1, limit + 1))
                         for limit in (4 * engine.lanes, rng.choice((40, engine.max_columns))))
        function = Function.BY_COLUMN
        if engine.row_columns and columns < 2 ** FIELDS["a"] and rng.integers(2):
            function = Function.BY_ROW
        matrix = {"a": rows, "b": int(rng.integers(1, engine.max_planes + 1)), "count": columns}
        size = columns * engine.column_bytes(rows, matrix["b"])
        if function is Function.BY_ROW:
            matrix["a"], matrix["count"] = columns, rows
        first = (config.memory_bytes - size) // config.port_bytes * config.port_bytes
        for address in (first, first + config.port_bytes):
            if 0 <= address < 2 ** 32:
                cases.append(Instruction(opcode=Opcode.MATMUL, function=function,
                                         address=address, **matrix))
    seen = set()
    position = 0
    for instruction in cases:
        if config.context:
            position = int(rng.choice([0, 1, 5, config.context - 1, config.context]))
            dut.position_decoder.value = position
            waits = stall and instruction.opcode in ATTENTION and rng.integers(8) == 0
            dut.known_decoder.value = int(not waits)
        await source.send([int.from_bytes(encode(instruction), "little")])
        if config.context and waits:
            # Without the position nothing is decoded that depends on it.
            for _ in range(30):
                await RisingEdge(dut.clk)
                assert not dut.o_decoder__valid.value
            dut.known_decoder.value = 1
        decoded = (await sink.receive(1))[0]
        assert {name: decoded[name] for name in FIELDS} == {
            name: getattr(instruction, name) for name in FIELDS} | {
            "address": placed_address(config, instruction, position)}
        expected = expected_fault(config, instruction, position)
        assert decoded.fault == expected, (instruction, position)
        seen.add(expected)
        if stall == 0:
            cycles = sink.last_cycle - source.last_cycle + 1
            assert cycles == decode_cycles(config, instruction, position=position)
    missing = {Fault.NOT_FINITE, Fault.NO_PRODUCT, Fault.MEMORY}
    missing |= {Fault.OPCODE} if config.context else {Fault.CONTEXT, Fault.HEADS}
    assert seen == set(Fault) - missing
    opcodes = {opcode for opcode in Opcode if config.context or opcode not in ATTENTION}
    for code in range(2 ** FIELDS["opcode"]):
        rest = int(rng.integers(1 << 60)) << 60
        await source.send([rest | code])
        decoded = (await sink.receive(1))[0]
        assert (decoded.fault == Fault.OPCODE) == (code not in opcodes)


@cocotb.test(timeout_time=300, timeout_unit="us")
async def heads(dut):
    """Decode heads of every width, in two halves or whole, of each format that a cache can have."""
    ends = Ends(dut, stall=0.0, seed=11)
    await start(dut)
    config, lanes = ends.config, ends.config.vector_lanes
    if not config.context:
        return
    instructions_ = []
    for elements in range(lanes, config.head_elements + 2 * lanes, lanes):
        for function in FUNCTIONS[Opcode.QK]:
            instructions_.append(Instruction(opcode=Opcode.PV, function=function, a=1,
                                             count=elements, constant=elements))
            for b in (0, 8 * lanes):
                instructions_ += [
                    Instruction(opcode=Opcode.QK, function=function, target=1, b=b, count=elements,
                                constant=elements),
                    Instruction(opcode=Opcode.KV_APPEND, function=function, b=b, count=elements,
                                constant=1)]
    for name, its in (("decoder", config), ("wide_decoder", with_wide_port(config))):
        dut[f"position_{name}"].value = 1
        dut[f"known_{name}"].value = 1
        seen = set()
        for instruction in instructions_:
            await ends[f"i_{name}"].send([int.from_bytes(encode(instruction), "little")])
            decoded = (await ends[f"o_{name}"].receive(1))[0]
            assert decoded.fault == expected_fault(its, instruction, 1), (name, instruction)
            seen.add(decoded.fault)
        assert {Fault.NONE, Fault.HEADS} <= seen


class Units:
    """What stands around the dispatch: answers each command, and notes it with its answer."""

    def __init__(self, dut, ends: Ends, *, stall: float):
        self.dut, self.ends, self.stall = dut, ends, stall
        self.rng = np.random.default_rng(9)
        self.log: list = []
        self.broken = False                     # the next vector to be packed is not finite
        self.held = ""                          # commands of this name are not answered yet
        self.heads = 0                          # that were scored last
        for name in ("vectors", "quantizes", "selections", "entries", "products", "write_backs",
                     "choices", "scale", "moves", "faults",
                     *["attends"] * bool(ends.config.context)):
            cocotb.start_soon(self._serve(name))

    async def _serve(self, name: str) -> None:
        sink = self.ends[f"o_{name}_dispatch"]
        while True:
            found = (await sink.receive(1))[0]
            shape = found.shape()
            entry = {field: found[field] for field in shape.members}
            self.log.append((name, entry))
            if name == "quantizes":
                entry["batch"] = self.dut.batch_dispatch.value.to_unsigned()
                entry["batch_incomplete"] = int(self.dut.batch_incomplete_dispatch.value)
            elif name == "attends":
                entry["cache"] = self.dut.cache_dispatch.value.to_unsigned()
            while self.held == name or self.rng.random() < self.stall:
                await RisingEdge(self.dut.clk)
            match name:
                case "vectors":
                    number = int(self.rng.integers(1 << 15)) if entry["norm"] else 0
                    entry["answer"] = number
                    await self.ends["i_numbers_dispatch"].send([{"number": number}])
                case "quantizes":
                    entry["answer"] = int(self.rng.integers(-133, 122))
                    await self.ends["i_quantized_dispatch"].send(
                        [{"exponent": entry["answer"], "fault": self.broken}])
                    if not self.broken:
                        await self._pulse("list_complete")
                case "write_backs" | "choices" | "moves":
                    await self._pulse({"write_backs": "written_back", "choices": "chosen",
                                       "moves": "moved"}[name])
                    if name == "write_backs" and self.ends.config.context:
                        entry["of_attention"] = int(self.dut.pv_results_dispatch.value)
                case "attends":
                    if not entry["pv"]:
                        self.heads = entry["heads"]
                    entry["answers"] = [
                        {"number": int(self.rng.integers(1 << 15)),
                         "exponent": int(self.rng.integers(-512, 512))}
                        for _ in range(self.heads if entry["pv"] else 1)]
                    await self.ends["i_attended_dispatch"].send(entry["answers"])

    async def _pulse(self, name: str) -> None:
        pulse = self.dut[f"{name}_dispatch"]
        pulse.value = 1
        await RisingEdge(self.dut.clk)
        assert self.dut.active_dispatch.value, f"{name} comes without a clock"
        pulse.value = 0


def scalar(instruction: Instruction, registers: dict) -> tuple[int, int]:
    """Return number and exponent of ``constant * r[a] * r[b]``."""
    number, exponent = instruction.constant, 0
    for name in (instruction.a, instruction.b):
        factor = registers[name]
        number = int(exact_product(bf16, *np.array([[number], [factor[0]]], np.uint16))[0])
        exponent += factor[1]
    return number, exponent


def check_log(config: AcceleratorConfig, program: list[Instruction], token: int, registers: dict,
              log: list) -> None:
    """Compare the commands of a pass with the program, in its order."""
    lanes, rest = config.vector_lanes, iter(log)
    waiting: deque[list] = deque()              # products with rows left: by row? and how many
    for instruction in program:
        target, a, b = instruction.target, instruction.a, instruction.b
        words = instruction.count // lanes
        if instruction.opcode is Opcode.STOP:
            break
        name, found = next(rest)
        match instruction.opcode:
            case Opcode.LOAD | Opcode.STORE:
                store = instruction.opcode is Opcode.STORE
                assert name == "moves"
                assert not found.get("append")
                assert [found[field] for field in ("store", "address", "vector", "words")] == [
                    store, instruction.address, (a if store else target) // lanes, words]
            case Opcode.TOKEN:
                assert (name, found) == ("entries", {"index": token, "value": 1, "end": 0})
                assert next(rest)[1]["end"] == 1
            case Opcode.QUANTIZE:
                if instruction.function in MASKED:
                    assert (name, found) == ("selections", {
                        "largest": instruction.function == Function.KEEP_TOP_K, "norms": b // lanes,
                        "keep": instruction.constant, "threshold": instruction.address})
                    name, found = next(rest)
                nonzero = instruction.function == Function.NONZERO
                assert name == "quantizes"
                assert (found["sparse"], found["nonzero"], found["a"], found["words"]) == (
                    instruction.function != Function.DENSE, nonzero, a // lanes, words)
                dense = instruction.function == Function.DENSE
                part = Batch.of(instruction.constant if dense else 0)
                assert (found["batch"], found["batch_incomplete"]) == (part.constant, not part.last)
                if not nonzero:
                    registers[target] = (bf16.one, found["answer"])
            case Opcode.MATMUL:
                by_row = instruction.function == Function.BY_ROW
                batch = max(1, target)
                job = (config.engine.row_job(instruction.count, planes=b) if by_row
                       else config.engine.job(a, planes=b, batch=batch))
                if by_row:                      # a walk by row has no last group
                    job["tail"] = found["tail"]
                assert (name, found) == ("products", job)
                waiting.append([by_row, a * batch])
            case Opcode.WRITE_BACK | Opcode.TOP_K:
                number, exponent = scalar(instruction, registers)
                by_row = waiting[0][0]
                waiting[0][1] -= instruction.count
                if waiting[0][1] == 0:
                    waiting.popleft()
                if instruction.opcode is Opcode.WRITE_BACK:
                    assert (name, found["target"], found["by_row"], found["relu"]) == (
                        "write_backs", target // lanes, by_row,
                        instruction.function == Function.RELU)
                    assert by_row or found["words"] == words
                    factor = found["scalar"]
                else:
                    assert (name, found) == ("choices", {"rows": instruction.count})
                    assert not by_row
                    name, factor = next(rest)
                    assert name == "scale"
                assert (factor["number"], factor["exponent"]) == (number, exponent)
            case Opcode.VECTOR | Opcode.NORM:
                norm = instruction.opcode is Opcode.NORM
                assert (name, found["norm"], found["a"], found["words"]) == (
                    "vectors", norm, a // lanes, words)
                if norm:
                    registers[target] = (found["answer"], 0)
                else:
                    assert (found["function"], found["target"], found["b"]) == (
                        instruction.function, target // lanes, b // lanes)
    assert list(rest) == []


def random_batch(rng: np.random.Generator, config: AcceleratorConfig, count: int) -> int:
    """Make the constant of a DENSE QUANTIZE: of one vector, or of any vector of a batch."""
    log2 = int(rng.integers(config.engine.max_batch.bit_length()))
    if log2 and not count % (1 << log2) and rng.integers(2):
        return Batch(log2=log2, across=True).constant
    if log2 and count << log2 <= config.list_depth:
        return Batch(log2=log2, slot=int(rng.integers(1 << log2))).constant
    return 0


def random_program(rng: np.random.Generator, config: AcceleratorConfig) -> list[Instruction]:
    """Make a program without faults that takes each product that it queues, some in parts."""
    lanes, engine = config.vector_lanes, config.engine
    # Icarus leaves a field undefined until what it depends on has changed once: ``b`` too.
    program = [Instruction(opcode=Opcode.QUANTIZE, function=Function.DENSE, target=target, a=0,
                           b=lanes, count=lanes, constant=random_batch(rng, config, lanes))
               for target in range(1, 16)]
    rows: list[tuple[int, bool]] = []

    def vector():
        return int(rng.integers(0, config.vector_depth // lanes - 3)) * lanes

    def take():
        names = {name: int(rng.integers(16)) for name in "ab"}
        constant = (int(rng.integers(1 << 16)), 0x3F80,
                    int(rng.integers(0x3F00, 0x4100)))[rng.integers(3)]
        count, by_row = rows.pop(0)
        if not by_row and count > lanes and rng.integers(2):
            part = int(rng.integers(1, -(-count // lanes))) * lanes
            if part <= config.vector_depth:
                rows.insert(0, (count - part, False))
                return Instruction(opcode=Opcode.WRITE_BACK, function=Function.COPY, count=part,
                                   constant=constant, target=0, **names)
        if not by_row and (count % lanes or count > config.vector_depth or rng.integers(2)):
            return Instruction(opcode=Opcode.TOP_K, count=count, constant=constant, **names)
        return Instruction(opcode=Opcode.WRITE_BACK,
                           function=int(rng.choice(FUNCTIONS[Opcode.WRITE_BACK])),
                           count=count, constant=constant, target=0, **names)

    for _ in range(25):
        count = int(rng.integers(1, 4)) * lanes
        opcode = rng.choice(np.array([opcode for opcode in Opcode if opcode not in ATTENTION][1:],
                                     object))
        match opcode:
            case Opcode.LOAD:
                values = {"target": vector(), "address": int(rng.integers(1000)) * 8}
            case Opcode.STORE:
                values = {"a": vector(), "address": int(rng.integers(1000)) * 8}
            case Opcode.TOKEN:
                values, count = {}, 0
            case Opcode.QUANTIZE | Opcode.NORM:
                values = {"target": int(rng.integers(1, 16)), "a": vector()}
                if opcode is Opcode.QUANTIZE:
                    values |= {"function": int(rng.choice(FUNCTIONS[opcode])), "b": vector(),
                               "constant": int(rng.integers(1 << 16)),
                               "address": int(rng.integers(1 << 30))}
                    if values["function"] == Function.DENSE:
                        values["constant"] = random_batch(rng, config, count)
            case Opcode.VECTOR:
                values = {"function": int(rng.choice(FUNCTIONS[opcode])), "target": vector(),
                          "a": vector(), "b": vector()}
            case Opcode.MATMUL:
                while len(rows) == config.product_depth:
                    program.append(take())
                by_row = bool(engine.row_columns and rng.integers(2))
                some = lanes if by_row or rng.integers(2) else int(rng.integers(1, 200))
                target = 0
                if not by_row and some % lanes == 0:
                    most = min(engine.max_batch, engine.accumulator_depth // engine.groups(some))
                    target = int(rng.choice([0, *(1 << k for k in range(most.bit_length()))]))
                rows.append((some * max(1, target), by_row))
                values = {"function": Function.BY_ROW if by_row else Function.BY_COLUMN,
                          "target": target, "a": some,
                          "b": int(rng.integers(1, engine.max_planes + 1)),
                          "address": 64}
                count = int(rng.integers(1, 9))
            case _:
                if rows:
                    program.append(take())
                continue
        program.append(Instruction(opcode=opcode, count=count, **values))
    while rows:
        program.append(take())
    return [*program, Instruction(opcode=Opcode.STOP)]


async def load(ends: Ends, program: list[Instruction], first: int = 0) -> None:
    """Write a program."""
    await ends["i_program_dispatch"].send(
        {"index": first + k, "instruction": int.from_bytes(encode(instruction), "little")}
        for k, instruction in enumerate(program))


async def execute(ends: Ends, units: Units, count: int) -> None:
    """Execute ``count`` random programs, and compare the commands of each with it."""
    config, rng = ends.config, ends.rng
    tokens = ends["i_tokens_dispatch"]
    registers = {0: (bf16.one, 0)}
    for number in range(count):
        program = random_program(rng, config)
        first = (0, 3, config.program_depth - len(program))[number % 3]
        await load(ends, program, first)
        token = int(rng.integers(1 << config.engine.index_width))
        units.log.clear()
        await tokens.send([{"token": token, "start": first}])
        # A program of one instruction, once the pass has ended.
        await load(ends, [Instruction(opcode=Opcode.STOP)])
        check_log(config, program, token, registers, units.log)


@cocotb.test(timeout_time=300, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.5])
async def passes(dut, stall):
    """Execute random programs: every command in order, with the scalars of their time."""
    ends = Ends(dut, stall=stall, seed=4)
    await start(dut)
    await execute(ends, Units(dut, ends, stall=stall), 12)


def attention_program(rng: np.random.Generator, config: AcceleratorConfig) -> list[Instruction]:
    """Make a program of vectors that have a position, scores of heads, and their mixtures."""
    lanes = config.vector_lanes
    program = []
    for split in (1, 0):                        # in two halves first: Icarus has to see ``b``
        heads = 1 + int(rng.integers(config.group))
        step = lanes << split
        elements = step * int(rng.integers(1, config.head_elements // step + 1))
        last = (config.vector_depth - heads * elements) // lanes
        a, b, target = (int(x) * lanes for x in rng.integers(1, last + 1, 3))
        function = int(rng.choice(FUNCTIONS[Opcode.QK]))
        cache = int(rng.integers(config.caches))
        addresses = [64 * int(x) for x in rng.integers(100, size=4)]
        program += [
            Instruction(opcode=Opcode.QK, function=function, target=heads, a=a, b=split * b,
                        count=heads * elements, constant=elements, address=addresses[2]),
            *[Instruction(opcode=Opcode.PV, function=function, target=target, a=cache,
                          count=heads * elements, constant=elements, address=addresses[3])]
            * int(rng.integers(3)),
            Instruction(opcode=Opcode.LOAD_AT, target=target, count=elements,
                        address=addresses[0]),
            Instruction(opcode=Opcode.KV_APPEND, function=function, a=a, b=split * b,
                        count=elements, constant=cache, address=addresses[1])]
    return [*program, Instruction(opcode=Opcode.STOP)]


def check_attention(config: AcceleratorConfig, program: list[Instruction], position: int,
                    bound: int, log: list) -> None:
    """Compare the commands of a pass of :func:`attention_program` with it."""
    lanes, rest, heads = config.vector_lanes, iter(log), 0
    for instruction in program[:-1]:
        appends = instruction.opcode is Opcode.KV_APPEND
        target, a, b = instruction.target // lanes, instruction.a // lanes, instruction.b // lanes
        words = (instruction.constant if instruction.opcode in (Opcode.QK, Opcode.PV)
                 else instruction.count) // lanes
        e4m3 = instruction.function == Function.E4M3
        name, found = next(rest)
        if name == "moves":
            assert (found["address"], found["words"]) == (
                placed_address(config, instruction, position), words)
            assert (found["store"], found["append"]) == (appends, appends)
            assert found["vector"] == (a if appends else target)
            if appends:
                assert [found[field] for field in ("e4m3", "split", "second", "cache")] == [
                    e4m3, b > 0, b, instruction.constant]
            continue
        mixes = instruction.opcode is Opcode.PV
        assert (name, found["pv"], found["e4m3"], found["tokens"], found["words"]) == (
            "attends", mixes, e4m3, position + 1, words)
        if not mixes:
            heads = instruction.target
            assert [found[field] for field in ("heads", "split", "a", "b")] == [heads, b > 0, a, b]
            continue
        assert (found["cache"], found["bound"]) == (instruction.a, bound)
        for head, answer in enumerate(found["answers"]):
            name, drained = next(rest)
            assert (name, drained["target"], drained["words"], drained["of_attention"]) == (
                "write_backs", target + head * words, words, 1)
            assert (drained["by_row"], drained["relu"]) == (0, 0)
            assert {field: drained["scalar"][field] for field in answer} == answer
        assert len(found["answers"]) == heads
    assert list(rest) == []


@cocotb.test(timeout_time=300, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.5])
async def attention(dut, stall):
    """Place, score and mix at each position: a mixture is drained head by head."""
    ends = Ends(dut, stall=stall, seed=12)
    await start(dut)
    config, rng = ends.config, ends.rng
    if not config.context:
        return
    units = Units(dut, ends, stall=stall)
    for position in range(8):
        program = attention_program(rng, config)
        bound = int(rng.integers(256))
        dut.bound_dispatch.value = bound
        first = 0 if position == 0 else int(rng.integers(1, 9))
        await load(ends, program, first)
        units.log.clear()
        await ends["i_tokens_dispatch"].send([{"token": 0, "start": first}])
        await load(ends, [Instruction(opcode=Opcode.STOP)])     # once the pass has ended
        check_attention(config, program, position, bound, units.log)


@cocotb.test(timeout_time=300, timeout_unit="us")
async def dispatch(dut):
    """Count cycles of a pass whose commands are accepted at once and have no answers."""
    ends = Ends(dut, stall=0.0, seed=5)
    await start(dut)
    cocotb.start_soon(ends["o_entries_dispatch"].receive(1000))
    cocotb.start_soon(ends["o_products_dispatch"].receive(1000))
    config, tokens = ends.config, ends["i_tokens_dispatch"]
    stop, list_of_token = Instruction(opcode=Opcode.STOP), Instruction(opcode=Opcode.TOKEN)
    product = Instruction(opcode=Opcode.MATMUL, function=Function.BY_COLUMN, a=200, b=5, count=30)
    products_ = [product] * config.product_depth
    for program in ([stop], [list_of_token, stop], [list_of_token] * 5 + [stop],
                    [list_of_token, *products_, list_of_token, stop]):
        await load(ends, program)
        await tokens.send([{"token": 1, "start": 0}])
        first = tokens.last_cycle
        await tokens.send([{"token": 1, "start": len(program) - 1}])
        assert tokens.last_cycle - first == dispatch_cycles(config, program)


@cocotb.test(timeout_time=300, timeout_unit="us")
async def begins(dut):
    """Begin no pass while prefetch is late; count positions up to the context, from each start."""
    ends = Ends(dut, stall=0.0, seed=10)
    await start(dut)
    config, tokens = ends.config, ends["i_tokens_dispatch"]
    await load(ends, [Instruction(opcode=Opcode.STOP)] * 2)
    dut.prefetch_behind_dispatch.value = 1
    sending = cocotb.start_soon(tokens.send([{"token": 1, "start": 0}]))
    for _ in range(10):
        await RisingEdge(dut.clk)
        assert not dut.i_tokens_dispatch__ready.value
    dut.prefetch_behind_dispatch.value = 0
    await sending
    if not config.context:
        return
    position = 0
    for first in [*[1] * (config.context + 3), 0, 1, 1, 0, 0, 1]:
        await tokens.send([{"token": 1, "start": first}])
        position = min(position + 1, config.context) if first else 0
        await RisingEdge(dut.clk)
        assert dut.position_dispatch.value == position


@cocotb.test(timeout_time=1000, timeout_unit="us")
@cocotb.parametrize(during=["entries", "choices", "quantizes"])
async def errors_of_the_memory(dut, during):
    """Begin nothing, and end no TOP_K, once the memory has failed; tell where and how.

    The vector that is packed is not finite then: it comes from what was read.
    """
    ends = Ends(dut, stall=0.3, seed=8)
    await start(dut)
    units = Units(dut, ends, stall=0.3)
    units.broken, units.held = during == "quantizes", during
    lanes = ends.config.vector_lanes
    product = Instruction(opcode=Opcode.MATMUL, function=Function.BY_COLUMN, a=2 * lanes, b=1,
                          count=1)
    token = Instruction(opcode=Opcode.TOKEN)
    program = [token, product,
               Instruction(opcode=Opcode.QUANTIZE, function=Function.DENSE, target=1, count=lanes)
               if during == "quantizes" else Instruction(opcode=Opcode.TOP_K, count=2 * lanes),
               token, Instruction(opcode=Opcode.STOP)]
    await load(ends, program)
    await ends["i_tokens_dispatch"].send([{"token": 1, "start": 0}])
    while during not in [name for name, _ in units.log]:
        await RisingEdge(dut.clk)
    error: dict[int | str, int] = {"write": 1, "response": 2,
                                   "address": 8 * ends.config.port_bytes}
    dut.error_dispatch.value = error_layout(ends.config.address_width).const(
        error | {"valid": 1}).as_bits()
    await RisingEdge(dut.clk)
    units.held = ""
    while units.log[-1][0] != "faults":
        await RisingEdge(dut.clk)
    for _ in range(100):
        await RisingEdge(dut.clk)
    name, found = units.log[-1]
    commands = {"entries": ["entries"], "quantizes": ["entries"] * 2 + ["products", "quantizes"],
                "choices": ["entries"] * 2 + ["products", "choices"]}[during]
    names = [name for name, _ in units.log]
    # The end of the list that TOKEN makes may have been accepted.
    assert names[:-1] in ([commands, [*commands, "entries"]] if during == "entries"
                          else [commands])
    # Of an instruction that ends it is the next one that does not begin.
    assert (name, found["instruction"]) == ("faults", 1 if during == "entries" else 2)
    assert {key: found[key] for key in error} == error
    assert found["fault"] == Fault.MEMORY


@cocotb.test(timeout_time=1000, timeout_unit="us")
@cocotb.parametrize(kind=["static", "not_finite", "no_product", "fewer_rows", "more_rows",
                          "part_by_row", "chosen_by_row", "no_stop"])
async def faults(dut, kind):
    """Stop at a fault, tell it once, and do nothing more; a reset starts the accelerator again."""
    ends = Ends(dut, stall=0.3, seed=6)
    await start(dut)
    units = Units(dut, ends, stall=0.3)
    config, tokens = ends.config, ends["i_tokens_dispatch"]
    lanes = config.vector_lanes
    pack = Instruction(opcode=Opcode.QUANTIZE, function=Function.DENSE, target=1, count=lanes)
    take = Instruction(opcode=Opcode.TOP_K, count=lanes)
    drain = Instruction(opcode=Opcode.WRITE_BACK, function=Function.COPY, count=lanes)
    product = Instruction(opcode=Opcode.MATMUL, function=Function.BY_COLUMN, a=2 * lanes - 1, b=1,
                          count=1)
    by_row = Instruction(opcode=Opcode.MATMUL, function=Function.BY_ROW, a=2 * lanes, b=1, count=1)
    choose_all = Instruction(opcode=Opcode.TOP_K, count=2 * lanes)
    several = [product] * min(2, config.product_depth)
    if kind in ("part_by_row", "chosen_by_row") and not config.engine.row_columns:
        return
    stop = Instruction(opcode=Opcode.STOP)
    units.broken = kind == "not_finite"
    first = config.program_depth - 3 if kind == "no_stop" else 5
    token = Instruction(opcode=Opcode.TOKEN)
    program, fault, at = {
        "static": ([token, Instruction(opcode=Opcode.NORM, count=lanes), pack, stop],
                   Fault.REGISTER, 1),
        "not_finite": ([token, token, pack, token, stop], Fault.NOT_FINITE, 2),
        "no_product": ([token, take, token, stop], Fault.NO_PRODUCT, 1),
        "fewer_rows": ([token, product, take, token, stop], Fault.NO_PRODUCT, 2),
        "more_rows": ([token, *several, drain, drain, stop], Fault.NO_PRODUCT, len(several) + 2),
        "part_by_row": ([token, by_row, drain, token, stop], Fault.NO_PRODUCT, 2),
        "chosen_by_row": ([token, by_row, choose_all, token, stop], Fault.NO_PRODUCT, 2),
        "no_stop": ([token, token, token], Fault.OPCODE, 3),
    }[kind]
    await load(ends, [stop])
    await load(ends, program, first)
    await tokens.send([{"token": 1, "start": first}])
    for _ in range(400):
        await RisingEdge(dut.clk)
    assert units.log[-1] == ("faults", {"fault": fault, "instruction": first + at, "write": 0,
                                        "response": 0, "address": 0})
    commands = [name for name, _ in units.log[:-1]]
    expected = {"static": ["entries"] * 2, "not_finite": ["entries"] * 4 + ["quantizes"],
                "no_product": ["entries"] * 2, "fewer_rows": ["entries"] * 2 + ["products"],
                "more_rows": ["entries"] * 2 + ["products"] * len(several) + ["write_backs"],
                "part_by_row": ["entries"] * 2 + ["products"],
                "chosen_by_row": ["entries"] * 2 + ["products"],
                "no_stop": ["entries"] * 6}[kind]
    assert commands == expected
    assert not dut.i_tokens_dispatch__ready.value
    dut.rst.value = 1
    await RisingEdge(dut.clk)
    dut.rst.value = 0
    await RisingEdge(dut.clk)
    await RisingEdge(dut.clk)
    assert dut.i_tokens_dispatch__ready.value


@cocotb.test(timeout_time=1000, timeout_unit="us")
async def resets(dut):
    """Reset while integers compete, lists are walked, instructions decoded and executed."""
    ends = Ends(dut, stall=0.0, seed=4)
    await start(dut)
    # Icarus leaves a field undefined until what it depends on has changed once.
    with cancelled_tasks():
        await execute(ends, Units(dut, ends, stall=0.0), 1)

    async def decode(ends):
        config, rng = ends.config, ends.rng
        if config.context:
            dut.known_decoder.value = 1
        instructions = [random_instruction(rng, config, opcode)
                        for opcode in rng.permutation(np.array(list(Opcode), object))]
        cocotb.start_soon(ends["i_decoder"].send(
            int.from_bytes(encode(instruction), "little") for instruction in instructions))
        for instruction in instructions:
            decoded = (await ends["o_decoder"].receive(1))[0]
            assert decoded.fault == expected_fault(config, instruction, 0), instruction
            assert decoded.count == instruction.count

    async def run(ends, *, stall, programs):
        rng, depth = ends.rng, ends.config.list_depth

        async def use_others():
            lists = [np.flatnonzero(rng.random(depth) < share) for share in (.5, .01, .9, .1)]
            lists = [indices[:60] for indices in lists]
            given = [rng.integers(-1000, 1000, count) for count in (1, 40, 17)]
            tasks = [cocotb.start_soon(task) for task in (
                choose(ends, given, timed=not stall), walk(ends, lists, [2, 0, 1, 1]),
                decode(ends))]
            for task in tasks:
                await task

        executed = cocotb.start_soon(execute(ends, Units(dut, ends, stall=stall), programs))
        await use_others()
        while stall and not executed.done():    # what is to be cut off is at work all the time
            await use_others()
        await executed

    await resets_in_mid_work(
        dut, ends.spec, lambda seed: run(Ends(dut, stall=0.3, seed=seed), stall=0.3, programs=2),
        lambda: run(Ends(dut, stall=0.0, seed=8), stall=0.0, programs=1), resets=8)
