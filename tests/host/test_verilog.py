# amaranth: UnusedElaboratable=no

"""The written Verilog of the whole accelerator runs a token of the shipped model."""

import json
from pathlib import Path

import pytest
from cocotb_tools.runner import get_runner

from host.compiler.compile import compile_fitted
from host.devices.accelerator import machine_of
from host.models.registry import read_model
from hw.config import AcceleratorConfig
from hw.export import write_unit
from sim.runner import cocotb_without_spaces
from sim.tools import missing_tools, simulation_environment

SHIPPED = Path(__file__).parents[2] / "models" / "tally-stories.gguf"
TOKEN = 17
MISSING = missing_tools("verilator", "g++", "make", "perl")


@pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING))
def test_a_token_equals_the_golden_machine(tmp_path, monkeypatch):
    image = compile_fitted(read_model(SHIPPED), AcceleratorConfig(), sparse=True)
    memory = b"".join((image.memory, bytes(image.room)))
    program = image.program.encoded()
    (tmp_path / "memory").write_bytes(memory)
    (tmp_path / "program").write_bytes(program)
    verilog, _ = write_unit("accelerator", image.config, tmp_path / "tally_accelerator.v")
    for name, value in simulation_environment().items():
        monkeypatch.setenv(name, value)
    # Most of the time goes to the bus in Python, the rest to the compiler.
    monkeypatch.setenv("MAKEFLAGS", simulation_environment()["MAKEFLAGS"]
                       + " OPT_FAST=-O1 OPT_SLOW=-O0 OPT_GLOBAL=-O0")
    runner = get_runner("verilator")
    with cocotb_without_spaces():
        runner.build(sources=[verilog], hdl_toplevel="tally_accelerator",
                     build_dir=tmp_path / "build", timescale=("1ns", "1ps"), always=True)
        runner.test(
            hdl_toplevel="tally_accelerator", test_module="tests.host.token_of_written_verilog",
            build_dir=tmp_path / "build", test_dir=tmp_path,
            extra_env={"TALLY_TOKEN_FOLDER": str(tmp_path), "TALLY_TOKEN": str(TOKEN)},
            results_xml=str(tmp_path / "results.xml"))
    delivered = json.loads((tmp_path / "delivered.json").read_text())
    expected, = machine_of(image).run(TOKEN, 0)
    assert delivered == {"rows": expected.rows.tolist(), "values": expected.values.tolist(),
                         "number": expected.number, "exponent": expected.exponent}
