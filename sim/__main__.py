"""``python -m sim``: list and run the cocotb benches."""

import argparse
import pathlib
import sys

from sim.runner import SIMULATORS, bench_cases, bench_names, run_bench
from sim.tools import ToolMissing


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sim", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the benches and their cases")
    run = commands.add_parser("run", help="run benches and print a table")
    run.add_argument("units", nargs="*", metavar="UNIT", help="units to run (default: all)")
    run.add_argument("--simulator", choices=[*SIMULATORS, "all"], default="all")
    run.add_argument("--case", help="run only this case")
    run.add_argument("--waves", action="store_true", help="record waves under build/waves")
    options = parser.parse_args(arguments)

    if options.command == "list":
        for name in bench_names():
            print(f"{name:16} {', '.join(bench_cases(name))}")
        return 0

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
        work_dir = pathlib.Path("build/waves") / f"{name}-{case}-{simulator}" if options.waves else None
        try:
            result = run_bench(name, case, simulator, work_dir=work_dir, waves=options.waves)
            verdict = "passed" if result.failed == 0 else f"{result.failed} FAILED"
            rows.append((name, case, simulator, str(result.tests), verdict, f"{result.seconds:.1f}"))
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
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
