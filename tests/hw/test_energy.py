"""Energies of netlists: the Liberty reader, the sums, the check of outputs, the command."""

import dataclasses
import json

import numpy as np
import pytest

from hw import records
from hw.energy import __main__ as command
from hw.energy import measure as measuring
from hw.energy import operands
from hw.energy.cells import Netlist
from hw.energy.liberty import LibraryError, find_library, read_library
from hw.energy.measure import Check, OutputDiffers, Trace, check_outputs, energy_of
from hw.energy.simulate import Run, simulate
from hw.energy.units import UNITS
from hw.formats.minifloat import FORMATS, bf16
from hw.synth.tool import ToolFailed

# Units of their own: fF, ps and uW, so that every scale counts. Energies are in fF V**2.
LIBRARY = """
/* some cells */
library (small) {
  time_unit : "1ps"; voltage_unit : "1V"; leakage_power_unit : "1uW";
  capacitive_load_unit (1, ff);
  nom_voltage : 2.0; nom_temperature : 25;
  lu_table_template (by_slew) { variable_1 : input_net_transition;
    variable_2 : total_output_net_capacitance; index_1 ("0, 100"); index_2 ("0, 10"); }
  power_lut_template (one) { variable_1 : input_transition_time; index_1 ("0"); }
  cell (INV) { area : 1; cell_leakage_power : 2;
    pin (A) { direction : input; capacitance : 3; }
    pin (Y) { direction : output; function : "A'";
      timing () { related_pin : "A";
        cell_rise (by_slew) { values ("10, 20", \\
                                      "30, 40"); }
        cell_fall (by_slew) { values ("10, 20", "30, 40"); }
        rise_transition (by_slew) { values ("100, 100", "100, 100"); }
        fall_transition (by_slew) { values ("100, 100", "100, 100"); } }
      internal_power () { related_pin : "A";
        rise_power (one) { values ("5"); } fall_power (one) { values ("7"); } } } }
  cell (ODD) { area : 1; cell_leakage_power : 0;
    pin (A, B, C) { direction : input; capacitance : 1; }
    pin (Y) { direction : output; function : "!(A B + B'*C) ^ (A | 1)"; } }
  cell (DFFX) { area : 5; ff ("IQ", "IQN") { clocked_on : "CK"; next_state : "D"; }
    pin (CK) { direction : input; capacitance : 2; clock : true; }
    pin (D) { direction : input; capacitance : 4; }
    pin (Q) { direction : output; function : "IQ"; }
    pin (QN) { direction : output; function : "IQN"; } }
  cell (DFF) { area : 4; leakage_power () { value : 1; } leakage_power () { value : 3; }
    ff (IQ, IQN) { clocked_on : "CK"; next_state : "D"; }
    pin (CK) { direction : input; capacitance : 2; clock : true;
      internal_power () { rise_power (one) { values ("1"); } fall_power (one) { values ("2"); } } }
    pin (D) { direction : input; capacitance : 4; }
    pin (Q) { direction : output; function : "IQ";
      internal_power () { rise_power (one) { values ("10"); }
                          fall_power (one) { values ("20"); } } } }
  cell (LATCH) { area : 4; latch (IQ, IQN) { enable : "G"; data_in : "D"; }
    pin (D, G) { direction : input; capacitance : 1; }
    pin (Q) { direction : output; function : "IQ"; } }
}
"""


@pytest.fixture
def library(tmp_path):
    path = tmp_path / "small.lib"
    path.write_text(LIBRARY)
    return read_library(path)


def test_liberty(library):
    assert (library.name, library.voltage) == ("small", 2.0)
    assert {name for name, cell in library.cells.items() if cell.usable} == {"INV", "ODD", "DFF",
                                                                               "DFFX"}
    inverter, flip_flop = library.cells["INV"], library.cells["DFF"]
    assert inverter.leakage == pytest.approx(2000)              # nW
    assert flip_flop.leakage == pytest.approx(2000)             # the mean of its states
    assert inverter.pins["A"].capacitance == pytest.approx(0.003)
    assert inverter.pins["Y"].function == "(~A)"
    assert library.cells["ODD"].pins["Y"].function == "((~((A & B) | ((~B) & C))) ^ (A | 1'b1))"
    assert (flip_flop.clock, flip_flop.data, flip_flop.states) == ("CK", "D", ("IQ", "IQN"))
    # Half of the load and a quarter of the slew; beyond the table its edge counts.
    assert inverter.pins["Y"].delay("cell_rise", 0.005, 0.025) == pytest.approx(0.020)
    assert inverter.pins["Y"].delay("cell_rise", 9.0, 9.0) == pytest.approx(0.040)
    assert inverter.pins["Y"].energy("fall_power", 0.0, 0.0) == pytest.approx(0.007)


@pytest.mark.parametrize(("text", "wrong"), [
    ("nothing of the kind", "cannot be read as a Liberty file"),
    (LIBRARY.replace('"1ps"', '"1h"'), "unit '1h' is not one of s"),
    (LIBRARY[:400], "cannot be read as a Liberty file"),
    (LIBRARY.replace("\"A'\"", '"A # B"'), "function 'A # B' has an unknown sign"),
])
def test_wrong_liberty(tmp_path, text, wrong):
    path = tmp_path / "wrong.lib"
    path.write_text(text)
    with pytest.raises(LibraryError, match=wrong) as raised:
        read_library(path)
    assert str(path) in str(raised.value)


def test_missing_library(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hw.energy.liberty.DEFAULT_LIBRARY", tmp_path / "none.lib")
    with pytest.raises(LibraryError, match="apt install qflow-tech-osu018"):
        find_library()
    monkeypatch.setattr(command, "tool_versions", dict)
    assert command.main(["lmul-e4m3", "--library", str(tmp_path / "x.lib")]) == 1
    assert "x.lib is not a file" in capsys.readouterr().err


def chain(library):
    """Return an inverter behind a flip-flop: nets 2 clk, 3 d, 4 q, 5 y."""
    cell = {"port_directions": {}}
    return Netlist({
        "ports": {"clk": {"direction": "input", "bits": [2]},
                  "d": {"direction": "input", "bits": [3]},
                  "y": {"direction": "output", "bits": [5]}},
        "cells": {"f": cell | {"type": "DFF", "connections": {"CK": [2], "D": [3], "Q": [4]}},
                  "i": cell | {"type": "INV", "connections": {"A": [4], "Y": [5]}}}}, library)


def test_energy_by_hand(library):
    run = Run({"y": [None, 1, 0]}, {2: 10, 3: 3, 4: 3, 5: 2}, {2: 10, 3: 2, 4: 2, 5: 3})
    trace = Trace({}, range(1, 11), 5, (Check("y", [1, 0], latency=1),))
    energy = energy_of(chain(library), run, trace, period_ns=10.0)
    # C V**2 / 2 of a pin is 2 C: of the inverter's 3 fF 6 fJ a toggle, of CK 4 and of D 8.
    assert energy.logic * 5 == pytest.approx((5 * 6 + 2 * 5 + 3 * 7) / 1000)
    assert energy.registers * 5 == pytest.approx(
        (20 * 4 + 10 * 1 + 10 * 2 + 5 * 8 + 3 * 10 + 2 * 20) / 1000)
    assert energy.leakage * 5 == pytest.approx(4000e-9 * 10e-9 * 10 / 1e-12)
    assert (energy.outputs, energy.cells, energy.flip_flops, energy.area) == (2, 2, 1, 5.0)


@pytest.mark.parametrize(("outputs", "check", "wrong"), [
    ({"y": [1, 2, 4]}, Check("y", [1, 2, 3]), "Output 2 of y is 0x4 .* 0x3 by the golden"),
    ({"y": [1, None]}, Check("y", [1, 2]), "Output 1 of y is unknown"),
    ({"y": [1, 2], "v": [1, 0]}, Check("y", [1, 2], valid="v"), "delivered 1 outputs y"),
    ({"y": [1, 2], "v": [1, 1]}, Check("y", [1], valid="v"), "delivered 2 outputs y"),
    ({"y": [1, 2]}, Check("y", [1, 2], latency=1), "delivered 1 outputs y"),
    ({"y": []}, Check("y", []), "No output was compared"),
])
def test_outputs_that_differ(outputs, check, wrong):
    with pytest.raises(OutputDiffers, match=wrong):
        check_outputs(Run(outputs, {}, {}), Trace({}, range(0), 1, (check,)))


def test_outputs_that_are_equal():
    run = Run({"y": [7, 5, 9], "v": [0, 1, 1]}, {}, {})
    check = Check("y", [1, 9], valid="v", masks=[3, 15])
    assert check_outputs(run, Trace({}, range(0), 1, (check,))) == 2


def test_random_operands():
    """They are the same on every machine: sums of raw integers."""
    assert operands.normal(1, 3).tolist() == [0.3959628939628601, -0.6255223155021667,
                                               1.197550356388092]
    drawn = operands.normal(2, 20000)
    assert abs(drawn.mean()) < 0.03
    assert abs(drawn.var() - 1) < 0.03
    assert np.bincount(operands.trits(3, 3000) + 1).min() > 900


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_rounding_to_a_format(fmt):
    """Zero is what is below the smallest normal number; values survive the way back."""
    smallest = 2.0 ** (1 - fmt.bias)
    bits = operands.to_bits(fmt, np.array([0.0, 1.5, -2.0, smallest, 0.75 * smallest]))
    assert operands.from_bits(fmt, bits).tolist() == [0.0, 1.5, -2.0, smallest, 0.0]


def test_recorded_operands():
    recorded = operands.recorded()
    assert np.isfinite(operands.from_bits(bf16, recorded.vectors)).all()
    assert recorded.codes.shape == recorded.vectors.shape
    assert set(np.unique(recorded.trits)) == {-1, 0, 1}
    assert len(recorded.lmul_x) == len(recorded.float_x) == 1280


# With the tools.

def _missing() -> str:
    try:
        find_library()
        measuring.tool_versions()
    except (LibraryError, ToolFailed) as problem:
        return str(problem)
    return ""


needs_tools = pytest.mark.skipif(bool(_missing()), reason=_missing())


@needs_tools
@pytest.mark.parametrize("key", ["lmul-e4m3", "ternary-lane"])
def test_figures_are_those_of_the_record(key, tmp_path):
    """To the last digit, with the tools and the cells of the record."""
    output = tmp_path / "energy.json"
    assert command.main([key, "--output", str(output)]) == 0
    found, record = json.loads(output.read_text()), records.read_record("energy")
    name, cells = next(iter(found["configuration"]["libraries"].items()))
    tools = {tool: version for tool, version in found["versions"].items() if tool != "numpy"}
    if (record["configuration"]["libraries"].get(name) != cells
            or not tools.items() <= record["versions"].items()):
        pytest.skip(f"docs/results/energy.json was made with {record['versions']} and other cells")
    recorded = [row for row in record["rows"] if row["name"] == key and row["library"] == name]
    for row in (*found["rows"], *recorded):
        del row["sources"]
    assert found["rows"] == recorded
    assert {row["operands"] for row in recorded} == {"random", "recorded"}


@needs_tools
def test_simulation_by_hand(library, tmp_path):
    """A flip-flop with both outputs: what they are each cycle, and how often they change."""
    cell = {"type": "DFFX", "connections": {"CK": [2], "D": [3], "Q": [4], "QN": [5]}}
    netlist = Netlist({
        "ports": {"clk": {"direction": "input", "bits": [2]},
                  "d": {"direction": "input", "bits": [3]},
                  "o": {"direction": "output", "bits": [4, 5]}}, "cells": {"f": cell}}, library)
    run = simulate(netlist, {"d": [0, 1, 1, 0, 1, 0, 0]}, range(2, 6), period_ns=1.0,
                   folder=tmp_path)
    assert run.outputs == {"o": [None, 2, 1, 1, 2, 1, 2]}
    assert (run.rises, run.falls) == ({2: 4, 3: 1, 4: 2, 5: 1}, {2: 4, 3: 2, 4: 1, 5: 2})


@needs_tools
def test_a_wrong_netlist_has_no_figure(monkeypatch, capsys):
    """One cell of another function, and the command prints the difference and nothing else."""
    def spoiled(*arguments, **options):
        netlist = honest(*arguments, **options)
        instance = next(instance for instance in netlist.instances if not instance.cell.clock)
        output = instance.outputs[0]
        pin = instance.cell.pins[output]
        wrong = dataclasses.replace(pin, function=f"~({pin.function})")
        instance.cell = dataclasses.replace(instance.cell,
                                            pins={**instance.cell.pins, output: wrong})
        return netlist

    honest = measuring.map_to_cells
    monkeypatch.setattr(measuring, "map_to_cells", spoiled)
    assert command.main(["ternary-lane"]) == 1
    printed = capsys.readouterr()
    assert "ternary-lane: Output" in printed.err
    assert "no energy is reported" in printed.err
    assert len(printed.out.splitlines()) == 1           # the head of the table


def test_unknown_unit(capsys):
    assert command.main(["lmul-fp12"]) == 2
    assert "'lmul-fp12' is not a unit" in capsys.readouterr().err


def test_list(capsys):
    assert command.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(UNITS)
