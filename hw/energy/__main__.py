"""``python -m hw.energy``: energy an operation of single units, from netlists of standard cells.

A unit is synthesized onto a library of standard cells by Yosys and simulated by Icarus with the
cells' delays. Every output is compared with the golden function; if one differs, no figure of the
unit is printed. docs/energy.md has the method and its limits.
"""

import argparse
import concurrent.futures
import hashlib
import pathlib
import sys

from hw.energy.liberty import Library, LibraryError, find_library, read_library
from hw.energy.measure import Energy, OutputDiffers, measure, tool_versions
from hw.energy.units import UNITS, Unit
from hw.records import read_record, write_record
from hw.synth.netlist import NetlistError
from hw.synth.tool import ToolFailed

_DIGITS = 6     # of a figure in the record


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _row(key: str, unit: Unit, library: Library, operands: str, form: str, best: bool,
         found: Energy) -> dict[str, object]:
    return {"name": key, "unit": unit.unit, "format": unit.format, "operation": unit.operation,
            "library": library.name, "operands": operands, "form": form, "best": best,
            "picojoules": _rounded(found.total), "picojoules_logic": _rounded(found.logic),
            "picojoules_registers": _rounded(found.registers),
            "picojoules_leakage": _rounded(found.leakage), "outputs_checked": found.outputs,
            "cells": found.cells, "flip_flops": found.flip_flops, "area": _rounded(found.area),
            "path_ns": _rounded(found.path_ns), "period_ns": found.period_ns}


def _rows(key: str, path: pathlib.Path) -> list[dict[str, object]]:
    """Measure a unit in all its forms; the best is the one that takes least of random operands."""
    unit, library = UNITS[key], read_library(path)
    traces = unit.traces()
    try:
        found = {form: measure(unit.build, traces, library, form=form) for form in unit.forms}
    except OutputDiffers as problem:
        raise OutputDiffers(f"{key}: {problem}") from None
    best = min(found, key=lambda form: next(iter(found[form].values())).total)
    return [_row(key, unit, library, operands, form, form == best, energy)
            for form, energies in found.items() for operands, energy in energies.items()]


def _described(library: Library) -> dict[str, object]:
    return {"volts": library.voltage, "celsius": library.temperature,
            "sha256": hashlib.sha256(library.path.read_bytes()).hexdigest()}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m hw.energy", description=__doc__)
    parser.add_argument("units", nargs="*", metavar="UNIT", help="units to measure (default: all)")
    parser.add_argument("--list", action="store_true", help="list the units and stop")
    parser.add_argument("--library", type=pathlib.Path, action="append", metavar="FILE.lib",
                        help="Liberty file of standard cells; may be given several times "
                             "(default: Debian's package qflow-tech-osu018)")
    parser.add_argument("--workers", type=int, default=1, metavar="N",
                        help="units that are measured at a time (default: 1)")
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE.json",
                        help="write the rows to this JSON file; with UNITs, it keeps all others")
    options = parser.parse_args(arguments)
    if options.list:
        for key, unit in UNITS.items():
            print(f"{key:24} {unit.unit}, {unit.format}")
        return 0
    for key in options.units:
        if key not in UNITS:
            print(f"'{key}' is not a unit (try {', '.join(UNITS)})", file=sys.stderr)
            return 2
    if options.output and not options.output.parent.is_dir():
        print(f"{options.output.parent}, where the rows are to be written, is not a folder",
              file=sys.stderr)
        return 2
    rows: list[dict[str, object]] = []
    # Rows of single units stand among those of the command that made the others.
    old = (read_record(options.output) if options.output and options.units
           else {"rows": [], "configuration": {}})
    try:
        versions = tool_versions()
        if old["rows"] and old["versions"] != versions:
            print(f"Rows of single units must have the versions of {options.output}, "
                  f"{old['versions']}, not {versions}", file=sys.stderr)
            return 2
        libraries = [read_library(find_library(path)) for path in options.library or [None]]
        print(f"{'unit':22} {'form':16} {'library':16} {'operands':9} {'logic':>9} "
              f"{'registers':>9} {'leakage':>8} pJ  outputs equal")
        tasks = [(key, library.path) for library in libraries for key in options.units or UNITS]
        with concurrent.futures.ProcessPoolExecutor(options.workers) as pool:
            # With one worker all happens in this process.
            made = (pool.map if options.workers > 1 else map)(_rows, *zip(*tasks, strict=True))
            for found in made:
                for row in found:
                    print(f"{row['name']:22} {row['form']:16} {row['library']:16} "
                          f"{row['operands']:9} {row['picojoules_logic']:9.3f} "
                          f"{row['picojoules_registers']:9.3f} {row['picojoules_leakage']:8.2g}  "
                          f"   {row['outputs_checked']}{'  best' if row['best'] else ''}",
                          flush=True)
                rows += found
    except (ToolFailed, NetlistError, LibraryError, OutputDiffers) as problem:
        print(problem, file=sys.stderr)
        return 1
    if options.output:
        files = "".join(f" --library {path}" for path in options.library or ())
        command = f"python -m hw.energy{files} --output {options.output}"
        write_record(options.output, maker="hw.energy", versions=versions,
                     command=old["command"] if old["rows"] else command,
                     configuration={"libraries": old["configuration"].get("libraries", {}) | {
                         library.name: _described(library) for library in libraries}},
                     rows=rows, key=("name", "library", "operands", "form"),
                     keep=lambda row: bool(options.units),
                     order=lambda row: ([*UNITS].index(row["name"]), row["library"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
