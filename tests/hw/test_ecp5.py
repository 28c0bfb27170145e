"""Adders of carry cells proved equal to plain ones against the vendor cell's model in Yosys.

The formal equivalence is SAT over all inputs, not a sample.
"""

import pathlib

import pytest
from amaranth.back import rtlil

from hw.engine.carry import ADD_GATED, ADD_OR_SUBTRACT, ADD_TRIT, CARRY_IN, CARRY_IN_BOTH
from hw.engine.dot_tree import TritAdder
from hw.engine.gated_adder import GatedAdder
from hw.engine.lane import LaneAdder
from hw.synth.tool import ToolFailed, run_tool

MODELS = pathlib.Path(__file__).parents[2] / "sim" / "models" / "ecp5.v"

VENDOR = "read_verilog +/ecp5/ccu2c_sim.vh +/ecp5/common_sim.vh"

#: Every way in which the engine sets up a carry cell: two bits, carry-in and a bit, a bit alone.
INITS = [(ADD_OR_SUBTRACT, ADD_OR_SUBTRACT), (CARRY_IN, ADD_OR_SUBTRACT), (ADD_GATED, ADD_GATED),
         (ADD_GATED, 0), (CARRY_IN_BOTH, ADD_TRIT), (ADD_TRIT, ADD_TRIT), (ADD_TRIT, 0)]


def run_yosys(folder, script):
    try:
        return run_tool(["yosys", "-q", "-p", script], folder)
    except ToolFailed as problem:
        if "not installed" in str(problem):
            pytest.skip(str(problem))
        raise


def prove(folder, read):
    """Prove modules ``gold`` and ``gate`` equal; ``read`` defines them."""
    run_yosys(folder, f"{read}; setattr -mod -unset top gold gate; hierarchy; proc; "
                      "flatten gold gate; miter -equiv -flatten gold gate miter; "
                      "hierarchy -top miter; opt -fast; "
                      "sat -verify -prove trigger 0 -set-def-inputs miter")


def write_both(folder, component, width):
    for name, target in (("gold", "generic"), ("gate", "ecp5")):
        text = rtlil.convert(component(width=width, target=target), name=name, emit_src=False)
        (folder / f"{name}.il").write_text(text)


@pytest.mark.parametrize(("component", "width"), [
    (LaneAdder, 1), (LaneAdder, 4), (LaneAdder, 24), (LaneAdder, 28), (GatedAdder, 8),
    (GatedAdder, 17), (TritAdder, 1), (TritAdder, 9), (TritAdder, 10)])
def test_carry_cells_equal_plain_adder(component, width, tmp_path):
    write_both(tmp_path, component, width)
    prove(tmp_path, f"{VENDOR}; read_rtlil gold.il; read_rtlil gate.il")


def test_a_wrong_lane_is_refuted(tmp_path):
    write_both(tmp_path, LaneAdder, 4)
    gate = tmp_path / "gate.il"
    broken = gate.read_text().replace("1110000100011110", "1110000100010110", 1)
    assert broken != gate.read_text()
    gate.write_text(broken)
    with pytest.raises(ToolFailed, match="proof did fail"):
        prove(tmp_path, f"{VENDOR}; read_rtlil gold.il; read_rtlil gate.il")


@pytest.mark.parametrize("inits", INITS)
def test_simulation_model_equals_vendor_model(inits, tmp_path):
    cell, _, _ = MODELS.read_text().partition("module PDPW16KD")
    (tmp_path / "models.v").write_text(cell.replace("module CCU2C", "module OURS"))
    ports = "CIN, A0, B0, C0, D0, A1, B1, C1, D1"
    wired = ", ".join(f".{port}({port})" for port in [*ports.split(", "), "S0", "S1", "COUT"])
    for name, cell in (("gold", "CCU2C"), ("gate", "OURS")):
        (tmp_path / f"{name}.v").write_text(
            f"module {name} (input {ports}, output S0, S1, COUT);\n{cell} #(.INIT0({inits[0]}), "
            f'.INIT1({inits[1]}), .INJECT1_0("NO"), .INJECT1_1("NO")) cell ({wired});\nendmodule\n')
    prove(tmp_path, f"{VENDOR}; read_verilog models.v gold.v gate.v")
