"""An accelerator behind an AXI4 manager: errors of the bus, and resets of the accelerator alone."""

import random

import cocotb
from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cocotb.triggers import ClockCycles, RisingEdge

from hw.accelerator import Accelerator
from hw.common.stream import connect_stream
from hw.config import AcceleratorConfig
from hw.formats.minifloat import bf16
from hw.isa import Fault, Function, Instruction, Opcode
from hw.memory.axi4 import AXI4_IDENTIFIERS, Axi4Master, axi4_signature
from sim.axi4 import DECERR, SLVERR, Rules, Subordinate, pauses
from sim.bench.bench_accelerator import CONFIGURATIONS, Driver, Writer
from sim.runner import bench_case
from sim.streams import StreamSink

STREAMS = ("i_program", "i_tokens", "o_top_k", "o_scale", "o_faults")


class AcceleratorOnBus(wiring.Component):
    """An accelerator with its manager; ``reset_accelerator`` leaves the bus, ``rst`` doesn't."""

    def __init__(self, config: AcceleratorConfig):
        self._accelerator = Accelerator(config)
        bus = axi4_signature(address_width=config.address_width, data_width=8 * config.port_bytes)
        super().__init__({
            **{name: self._accelerator.signature.members[name] for name in STREAMS},
            **{f"bus__{name}": member for name, member in AXI4_IDENTIFIERS.items()},
            "bus": Out(bus), "reset_accelerator": In(1),
        })

    def elaborate(self, platform):
        """Join accelerator and manager."""
        m = Module()
        accelerator, config = self._accelerator, self._accelerator.config
        m.submodules.accelerator = ResetInserter(self.reset_accelerator)(accelerator)
        m.submodules.master = master = Axi4Master(address_width=config.address_width,
                                                  port_bytes=config.port_bytes)
        wiring.connect(m, accelerator.memory, master.port)
        wiring.connect(m, master.bus, wiring.flipped(self.bus))
        m.d.comb += master.restart.eq(self.reset_accelerator)
        for name in STREAMS:
            outer, inner = wiring.flipped(getattr(self, name)), getattr(accelerator, name)
            ends = (outer, inner) if name.startswith("i_") else (inner, outer)
            connect_stream(m, *ends)
        return m


DUTS = {"small": lambda: AcceleratorOnBus(CONFIGURATIONS["small"])}
SLOW = ("small-verilator",)


class BusMemory(Subordinate):
    """The memory as :class:`Driver` compares it."""

    def __init__(self, dut, contents: bytes, *, stall: float):
        super().__init__(dut, "bus_", 1 << 16, stall=stall, seed=3)
        self._bytes = len(contents)
        self.ram.write(0, contents)

    @property
    def contents(self) -> bytes:
        """Return what it holds."""
        return bytes(self.ram.read(0, self._bytes))


def network(config: AcceleratorConfig, *, room: int = 0) -> tuple[list[Instruction], int, bytes]:
    """Return a program with a state in memory, where its body begins, and the memory.

    There are ``room`` bytes before all that is used.
    """
    writer = Writer(config, 3)
    writer.place(bytes(room))
    add, lanes, vocab = writer.add, config.vector_lanes, 50
    width = 2 * config.engine.lanes
    x, y, state = (lanes + k * width for k in range(3))

    def multiply(rows: int, columns: int) -> None:
        add(Opcode.MATMUL, function=Function.BY_COLUMN, a=rows, b=2, count=columns,
            address=writer.matrix(rows, columns, 2))

    add(Opcode.VECTOR, function=Function.COPY, target=state, a=0, count=lanes)
    body = len(writer.program)
    add(Opcode.TOKEN)
    multiply(width, vocab)
    add(Opcode.LOAD, target=y, count=width, address=writer.vector(width))
    add(Opcode.WRITE_BACK, function=Function.COPY, target=x, a=0, b=0, count=width,
        constant=bf16.one)
    add(Opcode.VECTOR, function=Function.ADD, target=x, a=x, b=y, count=width)
    add(Opcode.QUANTIZE, function=Function.DENSE, target=1, a=x, count=width)
    multiply(vocab, width)
    add(Opcode.TOP_K, a=0, b=1, count=vocab, constant=bf16.one)
    place = writer.place(bytes(2 * width))
    add(Opcode.STORE, a=x, count=width, address=place)
    add(Opcode.LOAD, target=y, count=width, address=place)
    add(Opcode.STOP)
    return writer.program, body, writer.contents()


async def begin(dut, *, stall: float):
    """Reset all; return the driver with :func:`network`, the rules, and where its body begins."""
    config = CONFIGURATIONS[bench_case()]
    program, body, contents = network(config)
    memory = BusMemory(dut, contents, stall=stall)
    for name in ("bid", "rid"):
        dut[f"bus__{name}"].value = 0
    dut.reset_accelerator.value = 0
    rules = Rules(dut, "bus_", config.port_bytes)
    driver = Driver(dut, program, contents, stall=stall / 2, memory=memory)
    await driver.load()
    return driver, rules, body


async def reset_accelerator(driver: Driver) -> None:
    """Reset the accelerator for a cycle, and write its program again."""
    driver.dut.reset_accelerator.value = 1
    await RisingEdge(driver.dut.clk)
    driver.dut.reset_accelerator.value = 0
    driver.machine.reset()
    await driver.write()


@cocotb.test(timeout_time=200, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.5])
async def tokens_equal_golden(dut, stall):
    """Deliver and store on the bus what the golden machine does."""
    driver, rules, body = await begin(dut, stall=stall)
    await driver.run([7])
    await driver.run([1, 2], body)
    driver.memory.pause(0.0)
    await ClockCycles(dut.clk, 300)
    rules.stop()


@cocotb.test(timeout_time=200, timeout_unit="us")
@cocotb.parametrize(kind=["first", "middle", "ahead", "write"])
async def an_error_stops_the_accelerator(dut, kind):
    """Tell address and response, and end no TOP_K; after a reset the accelerator works again.

    What was read ahead of the next pass stops that one. The write is that of the STORE behind the
    TOP_K.
    """
    driver, rules, body = await begin(dut, stall=0.3)
    memory, token, first = driver.memory, 7, 0
    write, response = kind == "write", SLVERR if kind in ("first", "write") else DECERR
    number = {"first": 0, "middle": 60, "ahead": 0, "write": 0}[kind]
    if kind == "ahead":
        await driver.run([token])
        number, token, first = memory.sent["r"] + 3, 1, body
    (memory.write_failures if write else memory.read_failures)[number] = response
    ended = []

    async def note_scales():
        while True:
            ended.append(await driver.streams["o_scale"].receive(1))

    noting = [cocotb.start_soon(driver.streams["o_top_k"].receive(1000)),
              cocotb.start_soon(note_scales())]
    await driver.begin(token, first)
    fault = (await driver.streams["o_faults"].receive(1))[0]
    addresses = rules.write_addresses if write else rules.read_addresses
    assert (fault.fault, fault.write, fault.response, fault.address) == (
        Fault.MEMORY, write, response, addresses[number])
    assert first <= fault.instruction < len(driver.program)
    assert len(ended) == write
    for _ in range(300):
        await RisingEdge(dut.clk)
        assert not dut.o_faults__valid.value
        assert not dut.i_tokens__ready.value
        assert not dut.i_program__ready.value
    for task in noting:
        task.cancel()
    for name in ("o_top_k", "o_scale"):
        shape = getattr(Accelerator(driver.config), name).payload.shape()
        driver.streams[name] = StreamSink(dut, name, shape)

    await reset_accelerator(driver)
    await driver.run([7])
    await driver.run([1], body)


@cocotb.test(timeout_time=200, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.5])
async def resets_of_the_accelerator_in_mid_pass(dut, stall):
    """Reset the accelerator at random times while the bus owes answers; the next pass is right."""
    driver, rules, body = await begin(dut, stall=stall)
    rng, cut = random.Random(4), 0
    driver.memory.channels["r"].set_pause_generator(pauses(random.Random(5), 0.7))
    for _ in range(16):
        await driver.begin(7)
        await ClockCycles(dut.clk, rng.choice((1, rng.randint(2, 60), rng.randint(60, 500))))
        cut += bool(rules.owed["ar"])
        await reset_accelerator(driver)
    assert cut > 3
    await driver.run([7])
    await driver.run([1], body)
    driver.memory.pause(0.0)
    await ClockCycles(dut.clk, 300)
    rules.stop()
