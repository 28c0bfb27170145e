# amaranth: UnusedElaboratable=no

import hashlib
import json
import pathlib
import re
import sys

import pytest

from hw.boards.catalog import BOARDS
from hw.boards.top import BoardTop, load_platform
from hw.build import build, main
from hw.engine.trit_decoder import TritDecoder
from hw.synth.tool import ToolFailed
from tests.hw.engine.kept_decoder import decode_with_kept_state

pytest.importorskip("amaranth_boards", reason="amaranth-boards is not installed")


@pytest.mark.parametrize("name", BOARDS)
def test_every_board_elaborates(name):
    board = BOARDS[name]
    plan = load_platform(board).build(BoardTop(board), do_build=False)
    assert "top.il" in plan.files
    router = {"icebreaker": "ICE40", "tang-nano-20k": "HIMBAECHEL_GOWIN"}.get(name, "ECP5")
    assert f'"$NEXTPNR_{router}"' in plan.files["build_top.sh"]


def test_list(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for name in BOARDS:
        assert re.search(f"^{name} ", printed, re.MULTILINE)


def test_unknown_board(capsys):
    assert main(["ulx4s"]) == 2
    known = ", ".join(map(repr, BOARDS))
    assert capsys.readouterr().err == f"'ulx4s' is not a board (try {known})\n"


def test_wrong_configuration(capsys):
    assert main(["verilog", "--lanes", "10"]) == 2
    assert capsys.readouterr().err == ("Lane count (10) must be a multiple of the result lane "
                                       "count (8)\n")


def test_board_is_not_built_from_a_netlist_that_lost_a_driver(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(TritDecoder, "_decode_5in8", decode_with_kept_state)
    output = tmp_path / "board"
    status = main(["ulx3s", "--lanes", "8", "--result-lanes", "4", "--accumulator-depth", "16",
                   "--port-bytes", "2", "--output", str(output)])
    error = capsys.readouterr().err
    if "is not installed" in error:
        pytest.skip(error)
    assert status == 1
    assert re.search(r"undefined input: port [A-D] of LUT4 system\.device\.slice\.\S+ is the "
                     r"constant x \(and \d+ more\); nothing is made from it$", error)
    assert not list(output.glob("*.bit"))


def test_record_refuses_other_configurations(capsys):
    assert main(["ulx3s", "--record", "--lanes", "8"]) == 2
    assert capsys.readouterr().err == ("Option --record keeps routed builds of a board's own "
                                       "configuration only\n")


def test_missing_tool(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.delenv("YOSYS", raising=False)
    assert main(["icebreaker", "--output", str(tmp_path / "build")]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("yosys is not installed; pip install -e '.[build]'")
    assert last.endswith("or name a program in the variable YOSYS")


def test_missing_boards(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "amaranth_boards.icebreaker", None)
    assert main(["icebreaker", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "amaranth-boards is not installed; pip install -e '.[build]'")


# What nextpnr writes before it gives up.
OVERFULL = """\
Info: Device utilisation:
Info: \t         ICESTORM_LC:    9042/   5280   171%
Info: \t        ICESTORM_RAM:      52/     30   173%
Info: \t               SB_IO:       3/     39     7%
ERROR: Unable to place cell 'x', no BELs remaining to implement cell type 'ICESTORM_RAM'
"""


def write_netlist(folder, cells):
    """Write what Yosys writes of cells without a connection."""
    top = {"ports": {}, "netnames": {}, "cells": {
        name: {"type": cell, "connections": {}} for name, cell in cells.items()}}
    (folder / "top.json").write_text(json.dumps({"modules": {"top": top}}))


@pytest.fixture
def tools(monkeypatch):
    """Stand for the tools; the test changes what nextpnr does."""
    clock = {"achieved": 31.5, "constraint": 12.0}

    def run_tool(command, folder):
        if command[-1] == "--version":
            return f"{command[0]} (Version nextpnr-0.9)\n"
        if command[0] == "yosys":
            cells = {"system.device.slice.engine.a_SB_LUT4_O": "SB_LUT4",
                     "system.device.lmul.b": "SB_DFFESR",
                     "system.device.target.c": "SB_RAM40_4KNR", "cd_sync.d": "SB_CARRY"}
            write_netlist(folder, cells)
        if command[0].startswith("nextpnr"):
            (folder / "nextpnr.json").write_text(json.dumps({"fmax": {"clk": clock}}))
        if command[0] == "icepack":
            (folder / "top.bin").write_bytes(b"bits")
        return ""

    monkeypatch.setattr("hw.build.run_tool", run_tool)
    return clock


def test_report(tools, tmp_path, capsys):
    assert main(["icebreaker", "--output", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    parts = {part["part"]: part for part in report["parts"]}
    assert parts["engine"]["lut4"] == parts["lmul"]["ff"] == parts["link"]["block_ram"] == 1
    assert parts["other"]["carry"] == 1
    assert [report[name] for name in ("lut4", "carry", "ff", "block_ram", "dsp")] == [1, 1, 1, 1, 0]
    assert report["fmax_mhz"] == 31.5
    assert report["meets_clock"]
    assert report["versions"]["nextpnr-ice40"] == "nextpnr-0.9"
    assert report["bitstream_sha256"] == hashlib.sha256(b"bits").hexdigest()
    assert "31.5 MHz achieved, 12 MHz requested: met" in capsys.readouterr().out


@pytest.mark.parametrize(("main", "sdram", "met"), [(80, 140, True), (74, 140, False),
                                                    (80, 119, False)])
def test_each_clock_is_compared_with_its_own_constraint(tools, tmp_path, capsys, monkeypatch,
                                                        main, sdram, met):
    clocks = {"clk": {"achieved": main, "constraint": 75.0},
              "memory_clk": {"achieved": sdram, "constraint": 120.01},
              "sdram_clk": {"achieved": 600.0, "constraint": 120.01}}

    def run_tool(command, folder):
        if command[-1] == "--version":
            return "nextpnr-ecp5 (Version nextpnr-0.9)\n"
        if command[0] == "yosys":
            write_netlist(folder, {"system.pll": "EHXPLLL"})
        if command[0].startswith("nextpnr"):
            (folder / "nextpnr.json").write_text(json.dumps({"fmax": clocks}))
        if command[0] == "ecppack":
            (folder / "top.bit").write_bytes(b"bits")
        return ""

    monkeypatch.setattr("hw.build.run_tool", run_tool)
    report = build(BOARDS["ulx3s-85f"], tmp_path)
    assert (report["fmax_mhz"], report["sdram_fmax_mhz"]) == (main, sdram)
    assert report["sdram_clock_mhz"] == 120
    assert report["meets_clock"] is met


def test_report_of_an_accelerator(tools, tmp_path, capsys, monkeypatch):
    def run_tool(command, folder):
        if command[-1] == "--version":
            return "nextpnr-ecp5 (Version nextpnr-0.9)\n"
        if command[0] == "yosys":
            cells = {"system.device.accelerator.engine_slice.engine.a_LUT4_Z": "LUT4",
                     "system.device.accelerator.sparse_vector.b": "DP16KD",
                     "system.device.accelerator.vector_unit.c": "CCU2C",
                     "system.device.shared.d": "TRELLIS_FF",
                     "system.device.queue.queue.e": "LUT4", "system.pll": "EHXPLLL"}
            write_netlist(folder, cells)
        return ""

    monkeypatch.setattr("hw.build.run_tool", run_tool)
    assert main(["ulx3s-85f", "--no-pnr", "--lanes", "32", "--top-k", "8",
                 "--output", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    parts = {part["part"]: part for part in report["parts"]}
    assert parts["engine"]["lut4"] == parts["link"]["lut4"] == 1
    assert parts["quantizer and lists"]["block_ram"] == 1
    assert parts["vector unit"]["carry"] == parts["memory"]["ff"] == 1
    assert (report["memory_bytes"], report["weight_trits"]) == (1 << 25, (1 << 25) // 7 * 32)
    assert report["configuration"]["engine"]["lanes"] == 32
    printed = capsys.readouterr().out
    assert re.search(r"^accelerator: +vector_depth 8192, .*top_k 8, .*context 0, ", printed,
                     re.MULTILINE)
    assert re.search(r"^engine: +lanes 32, ", printed, re.MULTILINE)
    assert ("model:     33,554,432 bytes of memory, full with 153,391,680 trits; 'python -m host "
            "fit ulx3s-85f' says which shapes fit\n") in printed


def test_engine_has_no_accelerator(capsys):
    assert main(["icebreaker", "--list-depth", "8", "--top-k", "4"]) == 2
    assert capsys.readouterr().err == ("Board icebreaker has an engine and no accelerator: there "
                                       "is no list_depth, top_k to be set\n")


def test_clock_that_is_not_met(tools, tmp_path, capsys):
    tools["achieved"] = 11.0
    assert main(["icebreaker", "--output", str(tmp_path)]) == 1
    assert "11.0 MHz achieved, 12 MHz requested: NOT MET" in capsys.readouterr().out


def test_configuration_that_does_not_fit(tools, tmp_path, capsys, monkeypatch):
    import hw.build
    working = hw.build.run_tool

    def full(command, folder):
        if command[0].startswith("nextpnr") and command[-1] != "--version":
            pathlib.Path(folder / "top.tim").write_text(OVERFULL)
            raise ToolFailed("nextpnr-ice40 stopped: ERROR: Unable to place cell 'x'")
        return working(command, folder)

    monkeypatch.setattr("hw.build.run_tool", full)
    assert main(["icebreaker", "--lanes", "16", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "The configuration does not fit board icebreaker: it needs 9,042 logic cells of the 5,280 "
        "available and 52 block RAM of the 30 available")


@pytest.mark.slow
def test_configuration_that_does_not_fit_for_real(tmp_path, capsys):
    assert main(["icebreaker", "--lanes", "16", "--output", str(tmp_path)]) == 1
    assert re.fullmatch(r"The configuration does not fit board icebreaker: it needs .*\d+ "
                        r"block RAM of the 30 available", capsys.readouterr().err.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", BOARDS)
def test_bitstream(name, tmp_path):
    assert main([name, "--output", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["meets_clock"]
    assert report["dsp"] == 0
