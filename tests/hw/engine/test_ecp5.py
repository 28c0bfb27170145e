"""What is built of ECP5 cells proved equal to plain logic, and Tally's models to Yosys' ones.

The formal equivalence is SAT over all inputs, not a sample.
"""

import pathlib
import re

import pytest
from amaranth.back import rtlil

from hw.common.register_copy import RegisterCopy
from hw.engine.carry import ADD_GATED, ADD_OR_SUBTRACT, ADD_TRIT, CARRY_IN, CARRY_IN_BOTH
from hw.engine.dot_tree import TritAdder
from hw.engine.gated_adder import GatedAdder
from hw.engine.lane import LaneAdder
from hw.engine.trit_decoder import TritDecoder
from hw.synth.tool import ToolFailed, run_tool

MODELS = pathlib.Path(__file__).parents[3] / "sim" / "models" / "ecp5.v"

#: Cells of ``MODELS`` of which Yosys has a model as well.
PROVED = ("LUT4", "CCU2C", "TRELLIS_FF")

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


def prove(folder, read, induction=""):
    """Prove modules ``gold`` and ``gate`` equal; ``read`` defines them.

    Registers take ``-tempinduct`` as ``induction``: equal from their start on, in any state.
    """
    run_yosys(folder, f"{read}; setattr -mod -unset top gold gate; hierarchy; proc; "
                      "flatten gold gate; miter -equiv -flatten gold gate miter; "
                      "hierarchy -top miter; opt -fast; "
                      f"sat -verify {induction} -prove trigger 0 -set-def-inputs miter")


def write_both(folder, component, **parameters):
    for name, target in (("gold", "generic"), ("gate", "ecp5")):
        text = rtlil.convert(component(**parameters, target=target), name=name, emit_src=False)
        (folder / f"{name}.il").write_text(text)


@pytest.mark.parametrize(("component", "width"), [
    (LaneAdder, 1), (LaneAdder, 4), (LaneAdder, 24), (LaneAdder, 28), (GatedAdder, 8),
    (GatedAdder, 17), (TritAdder, 1), (TritAdder, 9), (TritAdder, 10)])
def test_carry_cells_equal_plain_adder(component, width, tmp_path):
    write_both(tmp_path, component, width=width)
    prove(tmp_path, f"{VENDOR}; read_rtlil gold.il; read_rtlil gate.il")


def test_instantiated_decoder_equals_plain_one(tmp_path):
    write_both(tmp_path, TritDecoder, packing="5in8", lanes=12)
    prove(tmp_path, f"{VENDOR}; read_rtlil gold.il; read_rtlil gate.il")


def test_a_wrong_lane_is_refuted(tmp_path):
    write_both(tmp_path, LaneAdder, width=4)
    gate = tmp_path / "gate.il"
    broken = gate.read_text().replace("1110000100011110", "1110000100010110", 1)
    assert broken != gate.read_text()
    gate.write_text(broken)
    with pytest.raises(ToolFailed, match="proof did fail"):
        prove(tmp_path, f"{VENDOR}; read_rtlil gold.il; read_rtlil gate.il")


def both_models(folder, cell, ports, outputs, parameters):
    """Write ``gold`` around Yosys' model of ``cell`` and ``gate`` around Tally's; how to read."""
    (folder / "ours.v").write_text(MODELS.read_text())
    wired = ", ".join(f".{port}({port})" for port in [*ports, *outputs])
    values = ", ".join(f".{name}({value})" for name, value in parameters.items())
    for name, model in (("gold", cell), ("gate", f"ours_{cell}")):
        (folder / f"{name}.v").write_text(
            f"module {name} (input {', '.join(ports)}, output {', '.join(outputs)});\n"
            f"{model} #({values}) cell ({wired});\nendmodule\n")
    renamed = "; ".join(f"rename {name} ours_{name}" for name in PROVED)
    return f"read_verilog ours.v; {renamed}; {VENDOR}; read_verilog gold.v gate.v"


@pytest.mark.parametrize("inits", INITS)
def test_model_of_carry_cell_equals_vendor_model(inits, tmp_path):
    prove(tmp_path, both_models(
        tmp_path, "CCU2C", ["CIN", "A0", "B0", "C0", "D0", "A1", "B1", "C1", "D1"],
        ["S0", "S1", "COUT"], {"INIT0": inits[0], "INIT1": inits[1],
                               "INJECT1_0": '"NO"', "INJECT1_1": '"NO"'}))


@pytest.mark.parametrize("table", [0xCAFE, 0x8001, 0x6A96])
def test_model_of_lut_equals_vendor_model(table, tmp_path):
    prove(tmp_path, both_models(tmp_path, "LUT4", list("ABCD"), ["Z"], {"INIT": table}))


def register_copy(folder):
    """Write both models of the flip-flop as :class:`RegisterCopy` instantiates it."""
    cell = rtlil.convert(RegisterCopy(width=1, target="ecp5"), emit_src=False)
    parameters = {name: f'"{value}"' for name, value in
                  re.findall(r'parameter \\(\w+) "(\w+)"', cell)}
    assert parameters["REGSET"] == '"RESET"'
    return both_models(folder, "TRELLIS_FF", ["CLK", "LSR", "DI"], ["Q"], parameters)


def test_model_of_flip_flop_equals_vendor_model(tmp_path):
    prove(tmp_path, register_copy(tmp_path), "-tempinduct")


def test_a_wrong_flip_flop_is_refuted(tmp_path):
    read = register_copy(tmp_path)
    ours = tmp_path / "ours.v"
    ours.write_text(ours.read_text().replace("LSR ? 1'b0 : DI", "LSR ? 1'b1 : DI"))
    with pytest.raises(ToolFailed, match="proof did fail"):
        prove(tmp_path, read, "-tempinduct")
