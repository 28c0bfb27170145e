"""``tally experiment netlist``: synthesized boards, from their pins to results."""

import argparse
import tempfile
from pathlib import Path

from rich.console import Console

from host.cli.terminal import say
from host.errors import UserError
from host.measure.board_netlist import run_board
from hw.boards.catalog import BOARDS
from hw.build import BuildError
from hw.synth.netlist import NetlistError
from hw.synth.tool import ToolFailed
from sim.netlist import record
from sim.tools import ToolMissing

NAME = "netlist"
HELP = "simulate the synthesized netlists of whole boards"
DESCRIPTION = ("Synthesize whole boards as hw.build does, simulate the netlists under Verilator, "
               "and compare what their pins deliver with the golden model. It takes a quarter of "
               "an hour or more for each board.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("boards", nargs="*", choices=[*BOARDS, []], metavar="BOARD",
                        help=f"boards to simulate: {', '.join(BOARDS)} (default: all)")
    parser.add_argument("--record", action="store_true",
                        help="keep the outcomes in docs/results/netlists.json")


def run(console: Console, options: argparse.Namespace) -> int:
    """Simulate; a result that differs from the golden model's is a failure."""
    equal = True
    for board in options.boards or BOARDS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                result = run_board(board, Path(folder))
            except (BuildError, NetlistError, ToolFailed, ToolMissing) as problem:
                raise UserError(str(problem)) from None
        say(console, str(result))
        equal &= result.equal
        if options.record:
            record(result)
    return int(not equal)
