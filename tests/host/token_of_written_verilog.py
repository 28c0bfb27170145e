"""Run one token on the written Verilog: cocotb drives its ports, cocotbext-axi is its memory."""

import json
import os
import pathlib

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiBus, AxiRam

from hw.isa import INSTRUCTION_BYTES


async def send(dut, name, transfers):
    """Send transfers, {field: value}, to stream ``name``."""
    valid, ready = dut[f"{name}_valid"], dut[f"{name}_ready"]
    for fields in transfers:
        for field, value in fields.items():
            dut[f"{name}_{field}"].value = value
        valid.value = 1
        await RisingEdge(dut.aclk)
        while not ready.value:
            await RisingEdge(dut.aclk)
    valid.value = 0


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def token(dut):
    """Load a program, run a pass of a token, and write what was delivered into the folder."""
    folder = pathlib.Path(os.environ["TALLY_TOKEN_FOLDER"])
    memory, program = ((folder / name).read_bytes() for name in ("memory", "program"))
    for name in ("i_program", "i_tokens"):
        dut[f"{name}_valid"].value = 0
    bus = AxiRam(AxiBus.from_prefix(dut, "m_axi"), dut.aclk, dut.aresetn, False, size=len(memory))
    for half in (bus.write_if, bus.read_if):
        half.log.setLevel("WARNING")
    bus.write(0, memory)
    Clock(dut.aclk, 10, unit="ns").start()
    dut.aresetn.value = 0
    await ClockCycles(dut.aclk, 4)
    dut.aresetn.value = 1
    await send(dut, "i_program", (
        {"index": k // INSTRUCTION_BYTES,
         "instruction": int.from_bytes(program[k:k + INSTRUCTION_BYTES], "little")}
        for k in range(0, len(program), INSTRUCTION_BYTES)))
    for name in ("o_top_k", "o_scale", "o_faults"):
        dut[f"{name}_ready"].value = 1
    await send(dut, "i_tokens", [{"token": int(os.environ["TALLY_TOKEN"]), "start": 0}])
    rows, values = [], []
    while not dut.o_scale_valid.value:
        assert not dut.o_faults_valid.value
        if dut.o_top_k_valid.value:
            rows.append(int(dut.o_top_k_index.value))
            values.append(dut.o_top_k_value.value.to_signed())
        await RisingEdge(dut.aclk)
    (folder / "delivered.json").write_text(json.dumps({
        "rows": rows, "values": values, "number": int(dut.o_scale_number.value),
        "exponent": dut.o_scale_exponent.value.to_signed()}))
