# amaranth: UnusedElaboratable=no

"""An accelerator behind AXI4-Lite registers: tokens on the written Verilog, and other devices."""

import dataclasses
import json
import re
import sys
import types

import numpy as np
import pytest
from cocotb_tools.runner import get_results, get_runner

from host.compiler.compile import compile_model
from host.devices.axi_accelerator import BusError, MappedAccelerator
from host.devices.errors import DeviceError
from host.devices.pynq_overlay import pynq_driver
from host.files.image import write_image
from host.models.examples import tiny_model
from hw.config import AcceleratorConfig, EngineConfig
from hw.export import write_unit
from hw.isa import Fault, MemoryFailure
from hw.link.control import description
from hw.link.registers import DESCRIPTION_ADDRESS, IDENTIFICATION, REGISTERS, VLNV
from sim.golden.machine import MachineFault
from sim.runner import cocotb_without_spaces, with_starters
from sim.tools import missing_tools, simulation_environment, spaceless

CONFIG = AcceleratorConfig(
    engine=EngineConfig(lanes=8, accumulator_width=20, accumulator_depth=64, max_planes=3,
                        max_batch=1, index_width=9, port_bytes=8, result_lanes=4),
    vector_depth=512, program_depth=128, list_depth=64, queue_words=64, top_k=5, address_width=14)
MODEL = tiny_model(width=16, ffn_width=32, layers=1)
#: The widest port: a transfer fills a word of the vector memory.
WIDE = dataclasses.replace(CONFIG, address_width=16, engine=dataclasses.replace(
    CONFIG.engine, lanes=32, accumulator_depth=16, port_bytes=64, result_lanes=32))
TOOLS = {"verilator": ("verilator", "g++", "make", "perl"), "icarus": ("iverilog",)}


@pytest.fixture(scope="module")
def image():
    return compile_model(MODEL, CONFIG)


@pytest.mark.parametrize(("simulator", "config", "tests"), [
    pytest.param("verilator", CONFIG, 4, id="verilator"),
    pytest.param("icarus", CONFIG, 4, id="icarus"),
    pytest.param("icarus", WIDE, 1, id="widest-port", marks=pytest.mark.slow)])
def test_the_driver_on_the_written_verilog(simulator, config, tests, tmp_path, monkeypatch):
    model = MODEL if config is CONFIG else tiny_model(width=32, ffn_width=64, layers=1)
    missing = missing_tools(*TOOLS[simulator])
    if missing:
        pytest.skip("; ".join(missing))
    folder = spaceless(tmp_path)
    write_image(folder / "image", compile_model(model, config))
    verilog = write_unit("axi-accelerator", config, folder / "tally_axi_accelerator.v")[0]
    if simulator == "icarus":
        verilog.write_text(with_starters(verilog.read_text()))
    for name, value in simulation_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MAKEFLAGS", simulation_environment()["MAKEFLAGS"]
                       + " OPT_FAST=-O0 OPT_SLOW=-O0 OPT_GLOBAL=-O0")
    runner = get_runner(simulator)
    with cocotb_without_spaces():
        runner.build(sources=[verilog], hdl_toplevel="tally_axi_accelerator",
                     build_dir=folder / "build", timescale=("1ns", "1ps"), always=True)
        results = runner.test(
            hdl_toplevel="tally_axi_accelerator",
            test_module="tests.host.devices.axi_driver_on_verilog", build_dir=folder / "build",
            test_dir=folder, results_xml=str(folder / "results.xml"),
            extra_env={"TALLY_IMAGE": str(folder / "image"),
                       "COCOTB_TEST_FILTER": "tokens_equal_golden" if tests == 1 else ""})
    assert get_results(results) == (tests, 0)


class Registers:
    """Registers without an accelerator behind them: values to read, and what was written."""

    def __init__(self, **values):
        text = description(CONFIG)
        self.words = dict.fromkeys(REGISTERS, 0) | {
            "IDENTIFICATION": IDENTIFICATION, "VERSION": 1 << 16, "DESCRIPTION": len(text),
            "CONFIGURATION": CONFIG.configuration_hash()} | values
        self.text, self.opened = text, True
        self.written = []
        self.fails = set()
        self.freed = []

    def read(self, address, size):
        if address >= DESCRIPTION_ADDRESS:
            place = address - DESCRIPTION_ADDRESS
            return int.from_bytes(self.text[place:place + size], "little")
        name = next(name for name, register in REGISTERS.items() if register.address == address)
        if name in self.fails:
            raise BusError("read", address, 2)
        if name == "STATUS":
            return self.words[name] | REGISTERS[name].pack(open=int(self.opened))
        return self.words[name]

    def write(self, address, value):
        name = next(name for name, register in REGISTERS.items() if register.address == address)
        self.written.append((name, value))
        if name == "CONTROL":
            self.opened = value == REGISTERS[name].pack(reset=1)
        elif name.startswith("BASE"):
            self.words[name] = value

    def allocate(self, size):
        registers = self

        class Memory:
            address = 0x1_2345_6000
            contents = bytearray(size)

            def write(self, offset, data):
                self.contents[offset:offset + len(data)] = data

            def read(self, offset, size):
                return bytes(self.contents[offset:offset + size])

            def free(self):
                registers.freed.append(self)

        return Memory()


def opened(registers, **settings):
    ticks = iter(range(1000))
    return MappedAccelerator(registers, clock=lambda: next(ticks) / 10, pause=lambda: None,
                             **settings)


@pytest.mark.parametrize(("values", "message"), [
    ({"IDENTIFICATION": 0}, "The accelerator on AXI must have 0x594c4154 in IDENTIFICATION, not "
                            r"0x00000000: is it another core, or another address\?"),
    ({"VERSION": 2 << 16 | 7}, "The accelerator on AXI must have registers of version 1, not 2.7"),
    ({"DESCRIPTION": 0xFFF}, "The description of the accelerator on AXI must have at most 2048 "
                             "bytes, not 4095"),
    ({"DESCRIPTION": 10}, "The description of the accelerator on AXI must be that of an "
                          "accelerator: .*"),
    ({"CONFIGURATION": 5}, "The configuration of the accelerator on AXI must have the hash "
                           "00000005, but its description has .*")])
def test_another_device_is_refused(values, message):
    with pytest.raises(DeviceError, match=f"^{message}$"):
        opened(Registers(**values))


def test_another_configuration_is_refused():
    other = dataclasses.replace(CONFIG, top_k=7)
    with pytest.raises(DeviceError, match="has another configuration: top_k must be 7, not 5"):
        opened(Registers(), config=other)


def test_a_newer_minor_version_is_accepted():
    assert opened(Registers(VERSION=1 << 16 | 9)).config == CONFIG


def test_an_error_of_the_bus_names_the_register(image):
    registers = Registers()
    accelerator = opened(registers)
    registers.fails.add("STATUS")
    with pytest.raises(DeviceError, match=re.escape(
            "The accelerator on AXI must let STATUS be read: the bus answered a read of 0x014 with "
            "SLVERR")):
        accelerator.load(image)


def test_an_image_is_loaded_in_order(image):
    registers = Registers()
    accelerator = opened(registers)
    done = []
    accelerator.load(image, lambda share, what: done.append(share))
    assert done[0] == 0
    assert done[-1] == 1
    names = [name for name, _ in registers.written]
    assert names[:4] == ["CONTROL", "BASE_LOW", "BASE_HIGH", "PROGRAM_INDEX"]
    assert registers.written[1:3] == [("BASE_LOW", 0x2345_6000), ("BASE_HIGH", 1)]
    words = np.array([value for name, value in registers.written[4:]], "<u4").tobytes()
    assert words == image.program.encoded() + bytes(16)
    assert names[4:] == [f"PROGRAM_{k}" for k in range(4)] * (len(words) // 16)
    assert accelerator.memory(0, len(image.memory)) == bytes(image.memory)
    with pytest.raises(ValueError, match="Memory must be read below"):
        accelerator.memory(0, 1 << 20)
    accelerator.close()
    assert len(registers.freed) == 1


@pytest.mark.parametrize(("values", "fault"), [
    ({"FAULT": 7, "FAULT_INSTRUCTION": 3}, MachineFault(Fault.NOT_FINITE, 3)),
    ({"FAULT": 12, "FAULT_INSTRUCTION": 2, "FAULT_ACCESS": 7, "FAULT_ADDRESS": 0x40},
     MachineFault(Fault.MEMORY, 2, MemoryFailure(write=True, response=3, address=0x40)))])
def test_a_fault_is_that_of_the_machine(image, values, fault):
    registers = Registers()
    accelerator = opened(registers)
    accelerator.load(image)
    registers.words |= values | {"STATUS": REGISTERS["STATUS"].pack(fault=1)}
    with pytest.raises(DeviceError, match=f"instruction {fault.instruction}") as told:
        accelerator.token(1, new=True)
    assert str(told.value.__cause__) == str(fault)


def test_an_error_of_a_write_names_the_register(image):
    registers = Registers()
    accelerator = opened(registers)
    accelerator.load(image)

    def refuse(address, value):
        raise BusError("write", address, 2)

    registers.write = refuse
    with pytest.raises(DeviceError, match=re.escape(
            "must let TOKEN be written with {'token': 1}: the bus answered a write of 0x034 with "
            "SLVERR")) as told:
        accelerator._token(1, 0)
    assert isinstance(told.value.__cause__, BusError)


def test_an_unknown_fault_and_a_pass_without_results(image):
    registers = Registers()
    accelerator = opened(registers)
    accelerator.load(image)
    with pytest.raises(DeviceError, match="its pass ended behind 0 of them"):
        accelerator.token(1, new=True)
    registers.words |= {"STATUS": REGISTERS["STATUS"].pack(fault=1), "FAULT": 99}
    with pytest.raises(DeviceError, match="must have a fault that is known, not 99"):
        accelerator.token(1, new=True)


@pytest.mark.parametrize("lost", ["base", "open"])
def test_a_reset_of_somebody_else_is_noticed(image, lost):
    registers = Registers()
    accelerator = opened(registers)
    accelerator.load(image)
    if lost == "base":
        registers.words["BASE_HIGH"] = 0
    else:
        registers.opened = False
    with pytest.raises(DeviceError, match="must be left alone between tokens"):
        accelerator.token(1, new=True)
    assert registers.words["BASE_HIGH"] == 1    # of the reset that follows


def test_memory_that_begins_inside_a_page_is_refused(image):
    registers = Registers()
    allocate = registers.allocate

    def shifted(size):
        memory = allocate(size)
        memory.address += 0x800
        return memory

    registers.allocate = shifted
    with pytest.raises(DeviceError, match="must begin at a multiple of 4096 bytes below 2"):
        opened(registers).load(image)


def test_pynq_finds_the_class_by_the_cores_name(monkeypatch, image):
    """A stand-in for pynq, which installs on boards only: nothing more is known of the real one."""
    registers = Registers()

    class Buffer(np.ndarray):
        device_address, flushed, freed = 0x6000_0000, 0, 0

        def flush(self):
            type(self).flushed += 1

        def invalidate(self):
            pass

        def freebuffer(self):
            type(self).freed += 1

    class DefaultIP:
        def __init__(self, description):
            self.mmio = registers

    stand_in = types.ModuleType("pynq")
    stand_in.DefaultIP = DefaultIP
    stand_in.allocate = lambda shape, dtype: np.zeros(shape, dtype).view(Buffer)
    monkeypatch.setitem(sys.modules, "pynq", stand_in)
    driver = pynq_driver()
    assert VLNV in driver.bindto
    accelerator = driver({"fullpath": "tally_0"}).accelerator(
        clock=iter(range(1000)).__next__, pause=lambda: None)
    assert accelerator.label == "accelerator on tally_0"
    accelerator.load(image)
    assert Buffer.flushed
    assert ("BASE_LOW", 0x6000_0000) in registers.written
    assert accelerator.memory(0, len(image.memory)) == bytes(image.memory)
    accelerator.close()
    assert Buffer.freed == 1


def test_pynq_is_not_needed_before_it_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynq", None)
    with pytest.raises(ModuleNotFoundError):
        pynq_driver()


def test_the_description_is_json():
    assert json.loads(description(CONFIG))["configuration_hash"] == (
        f"{CONFIG.configuration_hash():08x}")
