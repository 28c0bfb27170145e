"""The driver on the written Verilog: cocotbext-axi joins its registers and is its memory.

The driver blocks, as on a board: it runs in a thread of its own, and each access of a register
takes its time in the simulation.
"""

import os
import random
import re

import cocotb
import pytest
from cocotb.clock import Clock
from cocotb.simtime import get_sim_time
from cocotb.task import bridge, resume
from cocotb.triggers import ClockCycles

from host.devices.axi_accelerator import BusError, MappedAccelerator
from host.devices.checked import CheckedTokens
from host.devices.errors import DeviceError
from host.files.image import read_image
from hw.isa import Fault
from hw.link.registers import PAGE_BITS, REGISTERS
from sim.axi4 import DECERR, SLVERR, Rules, Subordinate
from sim.axi_lite import RegisterPort

CLOCK_NS = 10
MEMORY_BYTES = 1 << 16
#: Where the memory begins that the driver is given: the bus's addresses are modulo its size.
BASE = 0x7_8000_5000
#: Seconds of the simulation, more than a pass takes.
TIMEOUT = 400e-6


class Memory:
    """A piece of the simulated memory."""

    def __init__(self, ram, address):
        self._ram, self.address, self.freed = ram, address, False

    def write(self, offset, data):
        self._ram.write((self.address + offset) % MEMORY_BYTES, bytes(data))

    def read(self, offset, size):
        return bytes(self._ram.read((self.address + offset) % MEMORY_BYTES, size))

    def free(self):
        self.freed = True


class Bus:
    """Registers and memory as the driver wants them; everything is called in its thread."""

    def __init__(self, port, ram):
        self._write, self._read = resume(port.write_word), resume(port.read_word)
        self._ram = ram
        self.memory = None

    def read(self, address, size):
        assert size == 4
        data, response = self._read(address)
        if response:
            raise BusError("read", address, response)
        return data

    def write(self, address, value):
        response = self._write(address, value)
        if response:
            raise BusError("write", address, response)

    def allocate(self, size):
        assert size % (1 << PAGE_BITS) == 0
        assert BASE % MEMORY_BYTES + size <= MEMORY_BYTES
        self.memory = Memory(self._ram, BASE)
        return self.memory


class Bench:
    """The module with its buses."""

    def __init__(self, dut, *, stall):
        self.dut, self.image = dut, read_image(os.environ["TALLY_IMAGE"])
        ends = {"clock": dut.aclk, "reset": dut.aresetn, "active_high": False}
        self.memory = Subordinate(dut, "m_axi", MEMORY_BYTES, stall=stall, seed=3, **ends)
        self.memory.ram.write(0, random.Random(1).randbytes(MEMORY_BYTES))
        self.rules = Rules(dut, "m_axi", self.image.config.port_bytes, **ends)
        port = RegisterPort(dut, "s_axi", **ends, stall=stall, seed=4)
        self.bus = Bus(port, self.memory.ram)
        self._wait = resume(self._some_cycles)

    async def start(self):
        Clock(self.dut.aclk, CLOCK_NS, unit="ns").start()
        self.dut.aresetn.value = 0
        await ClockCycles(self.dut.aclk, 4)
        self.dut.aresetn.value = 1

    async def _some_cycles(self):
        await ClockCycles(self.dut.aclk, 20)

    def open(self, **settings):
        """Open the accelerator and load the image; in the driver's thread."""
        accelerator = MappedAccelerator(
            self.bus, name="simulated buses", clock=lambda: get_sim_time("sec"), pause=self._wait,
            **{"timeout": TIMEOUT, "config": self.image.config} | settings)
        accelerator.load(self.image)
        return accelerator


async def started(dut, *, stall=0.0):
    bench = Bench(dut, stall=stall)
    await bench.start()
    return bench


def check(accelerator, image, tokens):
    """Make passes; each logit must be the golden machine's."""
    checked = CheckedTokens(accelerator, image)
    for number, token in enumerate(tokens):
        result = checked.token(token, new=number == 0)
        assert result.cycles > 100
        assert result.transfers > 10
    assert checked.checked == len(tokens) * image.config.top_k * len(image.program.heads)


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def tokens_equal_golden(dut):
    """Two sequences through buses that pause; addresses are those of the memory's piece."""
    bench = await started(dut, stall=0.3)
    image = bench.image

    def drive():
        accelerator = bench.open()
        assert accelerator.config == image.config
        assert accelerator.info()["registers"] == "1.0"
        check(accelerator, image, (5, 258))
        check(accelerator, image, (17,))
        counters = accelerator.counters()
        assert 0 < counters["reads"] + counters["waits"] <= counters["cycles"]
        assert accelerator.memory(0, len(image.memory)) == bytes(image.memory)
        accelerator.close()
        assert bench.bus.memory.freed

    await bridge(drive)()
    addresses = bench.rules.read_addresses
    assert all(BASE <= address < BASE + image.memory_bytes for address in addresses)
    assert {address >> PAGE_BITS for address in addresses} > {BASE >> PAGE_BITS}


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def errors_of_the_memory_are_named(dut):
    """SLVERR and DECERR stop the accelerator; the driver tells which read it was, and goes on."""
    bench = await started(dut)

    def drive():
        accelerator = bench.open()
        for response, name, after in ((SLVERR, "SLVERR", 0), (DECERR, "DECERR", 30)):
            bench.memory.read_failures.clear()
            number = bench.memory.sent["r"] + after
            bench.memory.read_failures[number] = response
            asked = len(bench.rules.read_addresses) + after
            with pytest.raises(DeviceError) as told:
                accelerator.token(5, new=True)
            address = bench.rules.read_addresses[asked] - BASE
            assert str(told.value).startswith(
                "The accelerator on simulated buses stopped at instruction ")
            assert str(told.value).endswith(
                f"the memory answered a read of address {address:#x} with {name}")
            assert told.value.__cause__.fault is Fault.MEMORY
            with pytest.raises(DeviceError, match="must begin a new sequence"):
                accelerator.token(5)
        check(accelerator, bench.image, (5,))

    await bridge(drive)()


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def a_reset_of_the_bus_is_noticed(dut):
    """Go on with a new sequence when somebody has pulled aresetn, which takes the base."""
    bench = await started(dut)

    async def reset():
        dut.aresetn.value = 0
        await ClockCycles(dut.aclk, 3)
        dut.aresetn.value = 1
        await ClockCycles(dut.aclk, 2)

    def drive():
        accelerator = bench.open()
        accelerator.token(5, new=True)
        resume(reset)()
        with pytest.raises(DeviceError, match="somebody else has reset or used it"):
            accelerator.token(5)
        check(accelerator, bench.image, (5,))

    await bridge(drive)()


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def nothing_waits_forever(dut):
    """Raise when the memory does not answer, and when somebody else uses the registers."""
    bench = await started(dut)
    requests = bench.memory.channels["ar"]

    def drive():
        accelerator = bench.open(timeout=60e-6)
        requests.pause = True
        with pytest.raises(DeviceError, match=re.escape(
                "The accelerator on simulated buses must end its reset, for which its memory must "
                "answer within 6e-05 s; its status is resetting")) as told:
            accelerator.token(5, new=True)
        assert "must deliver its results within 6e-05 s; its status is busy" in str(
            told.value.__context__)
        with pytest.raises(DeviceError, match="its status is resetting"):
            accelerator.close()
        assert not bench.bus.memory.freed
        requests.pause = False

        accelerator = bench.open()
        requests.pause = True
        start = REGISTERS["CONTROL"].address, REGISTERS["CONTROL"].pack(start=1)
        bench.bus.write(*start)
        with pytest.raises(BusError, match="answered a write of 0x010 with SLVERR"):
            bench.bus.write(*start)
        with pytest.raises(BusError, match="answered a read of 0x0a4 with DECERR"):
            bench.bus.read(0x0A4, 4)
        requests.pause = False
        with pytest.raises(DeviceError, match="somebody else has reset or used it"):
            accelerator.token(5, new=True)
        check(accelerator, bench.image, (5,))

    await bridge(drive)()
