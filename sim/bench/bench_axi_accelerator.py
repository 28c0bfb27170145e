"""The accelerator behind AXI4 and AXI4-Lite: registers, tokens, faults and resets.

The judges are cocotbext-axi's memory and manager, whose channels pause on their own.
"""

import itertools
import json
import random
from collections.abc import Iterator

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, RisingEdge

from hw.axi_accelerator import AxiAccelerator
from hw.isa import INSTRUCTION_BYTES, Fault, encode
from hw.link.control import description, result_depth
from hw.link.registers import (
    ADDRESS_BITS,
    DESCRIPTION_ADDRESS,
    IDENTIFICATION,
    MAP_VERSION,
    PAGE_BITS,
    PROGRAM_WORDS,
    REGISTERS,
)
from sim.axi4 import DECERR, SLVERR, Rules, Subordinate, pauses
from sim.axi_lite import LiteRules, RegisterPort
from sim.bench.bench_accelerator import CONFIGURATIONS
from sim.bench.bench_accelerator_axi4 import network
from sim.golden.machine import Emission, Machine
from sim.runner import bench_case
from sim.streams import CLOCK_NS

DUTS = {"small": lambda: AxiAccelerator(CONFIGURATIONS["small"])}

#: Bytes of the memory; addresses beyond it are those of its beginning.
MEMORY_BYTES = 1 << 17
#: Address of the image: in both halves there is something, and the memory has something before it.
BASE = 0x5A_C001_3000
#: Bytes of the image before all that is used, so that a matrix lies on both sides of a page's end.
ROOM = (1 << PAGE_BITS) - 656
#: Cycles within which an access of the registers is answered.
LONGEST = 4
#: Cycles from the one in which a pass has ended to the one with the interrupt.
INTERRUPT_CYCLES = 2


class Device:
    """The accelerator with its memory and registers, and the golden machine beside it."""

    def __init__(self, dut, *, stall: float = 0.0, register_stall: float = 0.0, seed: int = 1):
        self.dut, self.config = dut, CONFIGURATIONS[bench_case()]
        self.program, self.body, contents = network(self.config, room=ROOM)
        self.image = len(contents)
        self.machine = Machine(self.config, b"".join(map(encode, self.program)), contents)
        self.memory = Subordinate(dut, "m_axi_", MEMORY_BYTES, stall=stall, seed=seed)
        rng = random.Random(seed)
        self.memory.ram.write(0, rng.randbytes(MEMORY_BYTES))   # nothing that is right by chance
        self.memory.ram.write(BASE % MEMORY_BYTES, contents)
        self.rules = Rules(dut, "m_axi_", self.config.port_bytes)
        LiteRules(dut, "s_axi_", longest=LONGEST)
        self.registers = RegisterPort(dut, "s_axi_", dut.clk, dut.rst, stall=register_stall,
                                      seed=seed)

    async def start(self) -> None:
        """Reset all."""
        Clock(self.dut.clk, CLOCK_NS, unit="ns").start(start_high=False)
        await self.reset_bus()

    async def reset_bus(self, cycles: int = 4) -> None:
        """Reset both buses and all behind them."""
        self.dut.rst.value = 1
        await ClockCycles(self.dut.clk, cycles)
        self.dut.rst.value = 0
        await RisingEdge(self.dut.clk)
        self.machine.reset()

    async def prepare(self, *, program: bool = True) -> None:
        """Write base and program."""
        write = self.registers.write
        await write("BASE_LOW", address=(BASE & 0xFFFF_FFFF) >> PAGE_BITS)
        await write("BASE_HIGH", address=BASE >> 32)
        if program:
            await self.write_program()

    async def write_program(self) -> None:
        """Write the program."""
        await self.registers.write("PROGRAM_INDEX", index=0)
        for instruction in self.program:
            for word, name in zip(words(encode(instruction)), PROGRAM_WORDS, strict=True):
                await self.registers.write(name, word=word)

    async def reset(self) -> None:
        """Reset the accelerator alone, and wait until its bus owes nothing."""
        await self.registers.write("CONTROL", reset=1)
        while (await self.registers.read("STATUS"))["resetting"]:
            pass
        self.machine.reset()

    async def begin(self, token: int, first: int = 0) -> None:
        """Begin a pass."""
        await self.registers.write("TOKEN", token=token)
        await self.registers.write("FIRST", instruction=first)
        await self.registers.write("CONTROL", start=1)

    async def end(self) -> dict[str, int]:
        """Wait until no pass is under way; return the status."""
        while True:
            status = await self.registers.read("STATUS")
            if not status["busy"]:
                return status

    async def pop(self) -> tuple[int, int, int]:
        """Take the oldest result: kind, index and value."""
        read = self.registers.read
        head = await read("RESULT")
        assert head["valid"]
        index, value = await read("RESULT_INDEX"), await read("RESULT_VALUE")
        await self.registers.write("RESULT_POP", pop=1)
        return head["kind"], index["index"], value["value"]

    async def compare(self, emissions) -> None:
        """Take the results of a pass and compare them."""
        for expected in emissions:
            entries = wanted(expected)
            assert [await self.pop() for _ in entries] == entries

    async def run(self, token: int, first: int = 0) -> None:
        """Make a pass on both; compare what it delivers and what it leaves in memory."""
        expected = self.machine.run(token, first)
        await self.begin(token, first)
        status = await self.end()
        assert not status["fault"]
        await self.compare(expected)
        await self.idle()
        start = BASE % MEMORY_BYTES
        assert self.memory.ram.read(start, self.image) == self.machine.memory.tobytes()
        addresses = self.rules.read_addresses + self.rules.write_addresses
        assert all(BASE <= address < BASE + self.image for address in addresses)

    async def idle(self) -> None:
        """Wait until nothing that was written is unanswered."""
        while self.rules.unanswered:
            await RisingEdge(self.dut.clk)


def wanted(emission: Emission) -> list[tuple[int, int, int]]:
    """Return the results of a TOP_K as :meth:`Device.pop` returns them."""
    logits = zip(emission.rows.tolist(), emission.values.tolist(), strict=True)
    return [*((0, row, value) for row, value in logits),
            (1, int(emission.number), int(emission.exponent))]


def words(data: bytes) -> Iterator[int]:
    """Take bytes apart into words of 32 bits."""
    return (int.from_bytes(data[place:place + 4], "little") for place in range(0, len(data), 4))


async def ready(dut, **settings) -> Device:
    """Return a device with base and program."""
    device = Device(dut, **settings)
    await device.start()
    await device.prepare()
    return device


@cocotb.test(timeout_time=500, timeout_unit="us")
async def every_address_is_answered(dut):
    """Answer as the map says: known, unknown and unaligned addresses, read and written."""
    device = Device(dut, register_stall=0.4)
    await device.start()
    port, rng = device.registers, random.Random(2)
    text = description(device.config)
    fixed = {"IDENTIFICATION": IDENTIFICATION, "CONFIGURATION": device.config.configuration_hash(),
             "VERSION": MAP_VERSION[0] << 16 | MAP_VERSION[1], "DESCRIPTION": len(text),
             "STATUS": REGISTERS["STATUS"].pack(open=1)}
    by_address = {register.address: register for register in REGISTERS.values()}
    addresses = [*range(0, 0xA0, 4), *rng.sample(range(0xA0, DESCRIPTION_ADDRESS, 4), 12),
                 *(4 * rng.randrange(1 << ADDRESS_BITS - 2) + rng.randint(1, 3) for _ in range(8)),
                 *(register.address + rng.randint(1, 3) for register in by_address.values())]
    rng.shuffle(addresses)
    for address in addresses:
        register = by_address.get(address)
        data, response = await port.read_word(address) if address % 4 == 0 else (
            await read_unaligned(port, address))
        if register is None:
            assert response == DECERR, hex(address)
        elif not register.readable:
            assert (data, response) == (0, SLVERR), register.name
        else:
            assert (data, response) == (fixed.get(register.name, 0), 0), register.name
        # What a register does not take changes nothing, which the reads behind it show.
        response = await port.write_strobes(address, 0xFFFF_FFFF, 0xF)
        if register is None:
            assert response == DECERR, hex(address)
        elif not register.writable or register.mask != 0xFFFF_FFFF:
            assert response == SLVERR, register.name
        elif register.name == PROGRAM_WORDS[-1]:
            await port.write("PROGRAM_INDEX", index=0)
        elif register.name == "BASE_HIGH":
            await port.write("BASE_HIGH", address=0)
    for place, word in enumerate(words(text + bytes(-len(text) % 4 + 8))):
        assert await port.read_word(DESCRIPTION_ADDRESS + 4 * place) == (word, 0)
    assert await port.read_word(2 * DESCRIPTION_ADDRESS - 4) == (0, 0)
    assert await port.write_word(DESCRIPTION_ADDRESS, 0) == SLVERR
    facts = json.loads(text)
    assert facts["results"] == result_depth(device.config)
    assert facts["memory_bytes"] == 1 << device.config.address_width


async def read_unaligned(port: RegisterPort, address: int) -> tuple[int, int]:
    """Read with an address that is not that of a word; cocotbext-axi would read two."""
    half = port.master.read_if
    await half.ar_channel.send(half.ar_channel._transaction_obj(araddr=address, arprot=0))
    answer = await half.r_channel.recv()
    return int(answer.rdata), int(answer.rresp)


@cocotb.test(timeout_time=200, timeout_unit="us")
async def writes_are_taken_whole_or_refused(dut):
    """Change nothing with some or no strobes, with bits that do not fit, or out of order."""
    device = Device(dut)
    await device.start()
    port, config = device.registers, device.config
    for name, value in (("BASE_LOW", 0xABCD_E000), ("BASE_HIGH", 0x1234_5678),
                        ("TOKEN", (1 << config.engine.index_width) - 1),
                        ("FIRST", config.program_depth - 1),
                        ("PROGRAM_INDEX", config.program_depth - 1), ("INTERRUPT_ENABLE", 7)):
        address = REGISTERS[name].address
        assert await port.write_word(address, value) == 0
        for strobe in range(1, 15):
            assert await port.write_strobes(address, 0, strobe) == SLVERR
        assert await port.write_strobes(address, 0, 0) == 0
        assert await port.read_word(address) == (value, 0), name
    for name, values in (("BASE_LOW", (0x800, 1)), ("INTERRUPT_ENABLE", (8,)),
                         ("TOKEN", (1 << config.engine.index_width, 1 << 31)),
                         ("FIRST", (config.program_depth, 1 << 15, 1 << 16)),
                         ("PROGRAM_INDEX", (config.program_depth, 1 << 16)),
                         ("CONTROL", (3, 4)), ("RESULT_POP", (1, 2))):
        address = REGISTERS[name].address
        before = await port.read_word(address)
        for value in values:
            assert await port.write_word(address, value) == SLVERR, (name, value)
        assert await port.read_word(address) == before, name
    assert await port.try_write("RESULT_POP", pop=0) == 0
    # The last instruction is written; there is none behind it.
    for expected in (0, SLVERR):
        for name in PROGRAM_WORDS[:-1]:
            await port.write(name, word=0)
        assert await port.try_write(PROGRAM_WORDS[-1], word=0) == expected
    assert await port.read("PROGRAM_INDEX") == {"index": config.program_depth}


@cocotb.test(timeout_time=200, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.6])
async def accesses_under_way_together(dut, stall):
    """Ask for several writes and reads at once: addresses and data come at any distance."""
    device = Device(dut, register_stall=stall, seed=9)
    await device.start()
    port, rng = device.registers, random.Random(8)
    bits = {"BASE_HIGH": 32, "TOKEN": device.config.engine.index_width, "INTERRUPT_ENABLE": 3,
            "FIRST": device.config.program_depth.bit_length() - 1}
    for _ in range(12):
        values = {name: rng.getrandbits(width) for name, width in bits.items()}
        order = rng.sample(list(bits), len(bits))
        writes = [cocotb.start_soon(port.write_word(REGISTERS[name].address, values[name]))
                  for name in order]
        reads = [cocotb.start_soon(port.read_word(REGISTERS["IDENTIFICATION"].address + place))
                 for place in (0, 4, 8)]
        assert [await task for task in writes] == [0] * len(writes)
        assert [await task for task in reads] == [
            (IDENTIFICATION, 0), (MAP_VERSION[0] << 16 | MAP_VERSION[1], 0),
            (device.config.configuration_hash(), 0)]
        for name, value in values.items():
            assert await port.read_word(REGISTERS[name].address) == (value, 0), name


@cocotb.test(timeout_time=400, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.5])
async def tokens_equal_golden(dut, stall):
    """Deliver and store what the golden machine does, from the base on, over a page's end."""
    device = await ready(dut, stall=stall, register_stall=stall / 2)
    await device.run(7)
    await device.run(1, device.body)
    await device.run(2, device.body)
    addresses = device.rules.read_addresses
    assert any(end % (1 << PAGE_BITS) == 0 and end - begin == device.config.port_bytes
               for begin, end in itertools.pairwise(addresses))
    device.memory.pause(0.0)
    await ClockCycles(dut.clk, 300)
    device.rules.stop()


async def count_a_pass(device: Device) -> None:
    """Make a pass of token 0; its counters must be what is seen on the buses."""
    dut, port = device.dut, device.registers
    await port.write("INTERRUPT_ENABLE", done=1)
    for name in ("TOKEN", "FIRST"):
        assert await port.write_word(REGISTERS[name].address, 0) == 0
    seen = []

    async def watch():
        while True:
            await RisingEdge(dut.clk)
            at = {name: int(dut[f"m_axi__{name}"].value == 1) for name in (   # X is not 1
                "arvalid", "arready", "rvalid", "rready", "rlast", "wvalid", "wready")}
            seen.append(at | {"b": int(dut.s_axi__bvalid.value), "irq": int(dut.interrupt.value)})

    watching = cocotb.start_soon(watch())
    await port.write("CONTROL", start=1)
    status = await device.end()
    await ClockCycles(dut.clk, 2 * INTERRUPT_CYCLES)
    watching.cancel()
    assert status["results"]
    assert not status["fault"]
    begin = next(k for k, at in enumerate(seen) if at["b"])
    end = next(k for k, at in enumerate(seen) if at["irq"]) - INTERRUPT_CYCLES
    owed, waits = 0, 0
    for at in seen[:end]:
        waits += owed > 0 and not at["rvalid"]
        owed += (at["arvalid"] & at["arready"]) - (at["rvalid"] & at["rready"] & at["rlast"])
    counted = seen[begin:end]
    expected = {"CYCLES": end - begin,
                "READS": sum(at["rvalid"] & at["rready"] for at in counted),
                "WRITES": sum(at["wvalid"] & at["wready"] for at in counted), "WAITS": waits}
    found = {name: next(iter((await port.read(name)).values())) for name in expected}
    assert found == expected
    assert all(expected.values())


@cocotb.test(timeout_time=200, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.6])
async def a_pass_is_counted_and_interrupts(dut, stall):
    """Count cycles, transfers and waits exactly; the interrupt is a level, by what is enabled."""
    device = await ready(dut, stall=stall)
    port = device.registers
    await count_a_pass(device)

    assert dut.interrupt.value == 1
    await port.write("INTERRUPT_STATUS", results=1)
    assert await port.read("INTERRUPT_STATUS") == {"done": 1, "results": 0, "fault": 0}
    await port.write("INTERRUPT_STATUS", results=1, fault=1)
    assert dut.interrupt.value == 1
    await port.write("INTERRUPT_ENABLE", results=1, fault=1)
    await ClockCycles(dut.clk, INTERRUPT_CYCLES)
    assert dut.interrupt.value == 0
    await port.write("INTERRUPT_ENABLE", done=1)
    await ClockCycles(dut.clk, INTERRUPT_CYCLES)
    assert dut.interrupt.value == 1
    await port.write("INTERRUPT_STATUS", done=1)
    await ClockCycles(dut.clk, INTERRUPT_CYCLES)
    assert dut.interrupt.value == 0
    assert await port.read("INTERRUPT_STATUS") == {"done": 0, "results": 0, "fault": 0}
    device.machine.run(0, 0)
    while (await port.read("STATUS"))["results"]:
        await device.pop()
    await device.run(3, device.body)


@cocotb.test(timeout_time=300, timeout_unit="us")
async def nothing_hangs_the_registers_during_a_pass(dut):
    """Refuse a program, a base and a start while a pass is under way; results wait for whoever."""
    device = await ready(dut, register_stall=0.3)
    port, machine = device.registers, device.machine
    expected = machine.run(7, 0)
    rows = len(expected[0].rows) + 1
    # Nothing can be read, so the pass lasts.
    device.memory.channels["ar"].clear_pause_generator()
    device.memory.channels["ar"].pause = True
    await device.begin(7)
    assert await port.read("STATUS") == {
        "busy": 1, "fault": 0, "results": 0, "open": 0, "resetting": 0}
    for name in PROGRAM_WORDS[:-1]:
        await port.write(name, word=0xFFFF_FFFF)
    await port.write("PROGRAM_INDEX", index=0)
    for name, fields in ((PROGRAM_WORDS[-1], {"word": 0xFFFF_FFFF}), ("BASE_LOW", {"address": 0}),
                         ("BASE_HIGH", {"address": 0}), ("CONTROL", {"start": 1}),
                         ("RESULT_POP", {"pop": 1})):
        assert await port.try_write(name, **fields) == SLVERR, name
    assert await port.read("PROGRAM_INDEX") == {"index": 0}
    assert await port.read("RESULT") == {"valid": 0, "kind": 0}
    device.memory.channels["ar"].pause = False
    # The queue has room for two passes; a third one waits until something is taken.
    assert result_depth(device.config) == 2 * rows
    assert not (await device.end())["fault"]
    expected += machine.run(1, device.body)
    await device.begin(1, device.body)
    assert not (await device.end())["fault"]
    assert await port.read("RESULTS") == {"count": 2 * rows}
    expected += machine.run(2, device.body)
    await device.begin(2, device.body)
    await ClockCycles(dut.clk, 3000)
    assert (await port.read("STATUS"))["busy"]
    await port.write("RESULT_POP", pop=0)
    assert await port.read("RESULTS") == {"count": 2 * rows}
    # A logit enters for each result that leaves, and the scale for the last one of them.
    await port.write("INTERRUPT_STATUS", done=1, results=1)
    taken = []
    for number in range(rows):
        assert not (await port.read("INTERRUPT_STATUS"))["results"], number
        taken.append(await device.pop())
        await ClockCycles(dut.clk, 10)
    assert (await port.read("INTERRUPT_STATUS"))["results"]
    first, *others = expected
    assert taken == wanted(first)
    await device.compare(others)
    assert not (await device.end())["fault"]
    assert await port.read("RESULTS") == {"count": 0}
    assert await port.try_write("RESULT_POP", pop=1) == SLVERR
    # Between passes the program still cannot be written: some of it has been read ahead.
    assert await port.try_write(PROGRAM_WORDS[-1], word=0) == SLVERR
    assert await port.try_write("BASE_LOW", address=0) == SLVERR
    await device.run(3, device.body)


@cocotb.test(timeout_time=300, timeout_unit="us")
@cocotb.parametrize(kind=["read", "write", "opcode"])
async def a_fault_stops_the_accelerator(dut, kind):
    """Tell what happened, interrupt, and do nothing until a reset; the program is still there."""
    device = await ready(dut, stall=0.3)
    port, memory, rules = device.registers, device.memory, device.rules
    await port.write("INTERRUPT_ENABLE", fault=1)
    if kind == "read":
        memory.read_failures[40] = DECERR
    elif kind == "write":
        memory.write_failures[0] = SLVERR
    first = len(device.program) if kind == "opcode" else 0
    await device.begin(7, first)
    assert (await device.end())["fault"]
    await ClockCycles(dut.clk, INTERRUPT_CYCLES)
    assert dut.interrupt.value == 1
    fault, access = await port.read("FAULT"), await port.read("FAULT_ACCESS")
    instruction, address = await port.read("FAULT_INSTRUCTION"), await port.read("FAULT_ADDRESS")
    if kind == "opcode":
        assert (fault["fault"], access, address["address"]) == (
            Fault.OPCODE, {"response": 0, "write": 0}, 0)
        assert instruction["index"] == first
    else:
        failed = rules.read_addresses[40] if kind == "read" else rules.write_addresses[0]
        assert (fault["fault"], access) == (Fault.MEMORY, {
            "response": DECERR if kind == "read" else SLVERR, "write": int(kind == "write")})
        assert BASE + address["address"] == failed
        assert instruction["index"] < len(device.program)
    assert await port.try_write("CONTROL", start=1) == SLVERR
    assert await port.try_write(PROGRAM_WORDS[-1], word=0) == SLVERR
    await port.write("INTERRUPT_STATUS", fault=1)
    await ClockCycles(dut.clk, INTERRUPT_CYCLES)
    assert dut.interrupt.value == 0
    assert (await port.read("STATUS"))["fault"]

    await device.reset()
    assert await port.read("STATUS") == {
        "busy": 0, "fault": 0, "results": 0, "open": 1, "resetting": 0}
    for name in ("FAULT", "FAULT_ACCESS", "FAULT_INSTRUCTION", "FAULT_ADDRESS", "CYCLES",
                 "INTERRUPT_STATUS", "PROGRAM_INDEX"):
        assert not any((await port.read(name)).values()), name
    assert await port.read("INTERRUPT_ENABLE") == {"done": 0, "results": 0, "fault": 1}
    # Nothing is asked for before a pass begins, so the base can be written.
    asked = len(rules.read_addresses)
    await ClockCycles(dut.clk, 200)
    assert len(rules.read_addresses) == asked
    await device.run(7)
    await device.run(1, device.body)


@cocotb.test(timeout_time=600, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.5])
async def resets_of_the_accelerator_in_mid_pass(dut, stall):
    """Reset the accelerator at random times while the bus owes answers; the next pass is right."""
    device = await ready(dut, stall=stall)
    port, rng, cut, waited = device.registers, random.Random(4), 0, 0
    device.memory.channels["r"].set_pause_generator(pauses(random.Random(5), 0.8))
    for number in range(14):
        await device.begin(7)
        await ClockCycles(dut.clk, rng.choice((1, rng.randint(2, 60), rng.randint(60, 500))))
        cut += bool(device.rules.owed["ar"])
        await port.write("CONTROL", reset=1)
        status = await port.read("STATUS")
        waited += status["resetting"]
        assert not status["busy"]
        if status["resetting"]:
            assert not status["open"]
            # The bus may have owed its last answer in between, but then the register is written.
            if await port.try_write("BASE_LOW", address=(BASE & 0xFFFF_FFFF) >> PAGE_BITS):
                waited += 1
        while (await port.read("STATUS"))["resetting"]:
            pass
        assert not any(device.rules.owed.values())
        assert device.rules.unanswered == 0
        assert (await port.read("STATUS"))["open"]
        assert not any((await port.read("INTERRUPT_STATUS")).values())
        if number % 2:
            await device.write_program()
    assert cut > 3
    assert waited > 3
    device.machine.reset()
    await device.run(7)
    await device.run(1, device.body)
    device.memory.pause(0.0)
    await ClockCycles(dut.clk, 300)
    device.rules.stop()


@cocotb.test(timeout_time=200, timeout_unit="us")
async def a_memory_that_does_not_answer(dut):
    """Reset behind it stays under way, while the registers answer; it ends with the last answer."""
    device = await ready(dut, register_stall=0.2)
    port, channel = device.registers, device.memory.channels["r"]
    channel.pause = True
    await device.begin(7)
    await ClockCycles(dut.clk, 300)
    await port.write("CONTROL", reset=1)
    await ClockCycles(dut.clk, 300)
    assert await port.read("STATUS") == {
        "busy": 0, "fault": 0, "results": 0, "open": 0, "resetting": 1}
    for name, fields in (("CONTROL", {"start": 1}), ("BASE_HIGH", {"address": 1}),
                         (PROGRAM_WORDS[-1], {"word": 1})):
        assert await port.try_write(name, **fields) == SLVERR, name
    channel.pause = False
    await device.reset()
    await device.run(7)


@cocotb.test(timeout_time=400, timeout_unit="us")
async def resets_of_the_bus_in_mid_pass(dut):
    """Reset all at random times: registers have their initial values, the bus is legal."""
    device = await ready(dut, stall=0.3)
    port, rng = device.registers, random.Random(6)
    for _ in range(5):
        await port.write("INTERRUPT_ENABLE", done=1, results=1, fault=1)
        await device.begin(7)
        await ClockCycles(dut.clk, rng.randint(1, 400))
        await device.reset_bus(rng.randint(2, 5))
        for name in ("BASE_LOW", "BASE_HIGH", "INTERRUPT_ENABLE", "INTERRUPT_STATUS", "TOKEN",
                     "CYCLES", "RESULTS"):
            assert not any((await port.read(name)).values()), name
        assert await port.read("STATUS") == {
            "busy": 0, "fault": 0, "results": 0, "open": 1, "resetting": 0}
        assert dut.interrupt.value == 0
        await device.prepare(program=False)     # the program's memory keeps it
    await count_a_pass(device)                  # the bus owes nothing of before
    await device.reset()
    await device.run(7)
    await device.run(1, device.body)


assert INSTRUCTION_BYTES == 4 * len(PROGRAM_WORDS)
