"""``python -m sim programs``: random programs, simulated and on the golden machine."""

import argparse
import concurrent.futures
import importlib.metadata
import pathlib
import sys
import time

from hw.records import ROOT, read_record, write_record
from sim.fast.library import SimulatorStopped
from sim.programs.campaign import Campaign, seed_of_day, verdict
from sim.programs.comparison import listing, read_case
from sim.programs.random import CONFIGURATIONS
from sim.tools import missing_tools

__all__ = ["HELP", "NAME", "add_arguments", "run"]

NAME = "programs"
HELP = "run random programs, legal and illegal ones, and reduce one that differs"

#: Cases from which on a configuration has all features.
_COMPLETE = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--count", type=int, default=200,
                        help="legal programs, of all configurations together (default: 200)")
    parser.add_argument("--illegal", type=int, default=200,
                        help="programs with a mistake (default: 200)")
    parser.add_argument("--seed", type=int, help="of the programs (default: that of the day)")
    parser.add_argument("--config", choices=CONFIGURATIONS, action="append",
                        help="configuration of the accelerator, may be repeated (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--record", action="store_true",
                        help="keep the results in docs/results/programs.json")
    parser.add_argument("--replay", type=pathlib.Path, metavar="FILE",
                        help="run a program that was kept, and nothing else")


def run(options: argparse.Namespace) -> int:
    """Run the command; 0 if no program differs or hangs."""
    missing = missing_tools("verilator", "g++", "make", "perl")
    if missing:
        print("; ".join(missing), file=sys.stderr)
        return 2
    if options.replay is not None:
        return _replay(options.replay)
    seed = seed_of_day() if options.seed is None else options.seed
    if min(seed, options.count, options.illegal) < 0 or options.jobs < 1:
        print("Seed and counts must be at least 0, and there must be a process", file=sys.stderr)
        return 2
    names = options.config or list(CONFIGURATIONS)
    # Each configuration gets its share, the first ones what is left over.
    jobs = [(name, seed, (options.count + len(names) - 1 - number) // len(names),
             (options.illegal + len(names) - 1 - number) // len(names))
            for number, name in enumerate(names)]
    rows, bad = [], False
    with concurrent.futures.ProcessPoolExecutor(options.jobs) as pool:
        for row, lines, problems in pool.map(_campaign, jobs):
            rows.append(row)
            print("\n".join(lines), flush=True)
            for problem in problems:
                print(problem, file=sys.stderr)
                bad = True
    if options.record:
        _record(rows)
    return int(bad)


def _campaign(job: tuple[str, int, int, int]) -> tuple[dict, list[str], list[str]]:
    """Run the programs of a configuration; return its row, what to print, and what is wrong."""
    name, seed, *counts = job
    campaign, begin = Campaign(name, seed), time.monotonic()
    campaign.legal(counts[0])
    legal = dict(campaign.verdicts)
    campaign.illegal(counts[1])
    lines = [f"{name}: {counts[0]} legal and {counts[1]} illegal programs, {campaign.cycles} "
             f"cycles in {time.monotonic() - begin:.0f} s; "
             + ", ".join(f"{kind} {count}" for kind, count in sorted(campaign.verdicts.items()))]
    lines += [f"    {feature:48} {count}" for feature, count in sorted(campaign.seen.items())]
    problems = []
    if campaign.failed is not None:
        problems.append(campaign.report(ROOT / "build" / "programs"))
    if counts[0] >= _COMPLETE and campaign.missing:
        problems.append(f"{name}: no program has {', '.join(campaign.missing)}")
    return _row(campaign, counts, legal), lines, problems


def _row(campaign: Campaign, counts: list[int], legal: dict[str, int]) -> dict:
    """Return the row of a configuration in the record."""
    verdicts = campaign.verdicts
    return {
        "configuration": campaign.configuration, "seed": campaign.seed,
        "programs": counts[0], "equal": legal.get("equal", 0), "illegal": counts[1],
        "equal_after_all": verdicts["equal"] - legal.get("equal", 0),
        "faults": {kind.removeprefix("fault "): count for kind, count in sorted(verdicts.items())
                   if kind.startswith("fault ")},
        "refused": verdicts["refused"], "undefined": verdicts["undefined"],
        "differing": verdicts["differs"], "hangs": verdicts["hangs"],
        "instructions": campaign.instructions, "cycles": campaign.cycles,
        "longest": campaign.longest, "features": dict(sorted(campaign.seen.items())),
        "mistakes": dict(sorted(campaign.mistakes.items())),
    }


def _record(rows: list[dict]) -> None:
    """Keep rows; those of other configurations stay as they were."""
    known = read_record("programs")["rows"]
    kept = {row["configuration"]: row for row in (*known, *rows)
            if row["configuration"] in CONFIGURATIONS}
    counts = [sum(row[name] for row in kept.values()) for name in ("programs", "illegal")]
    seeds = " or ".join(sorted({str(row["seed"]) for row in kept.values()}))
    write_record(
        "programs", maker="sim programs", rows=rows, key=("configuration",),
        keep=lambda row: row["configuration"] in CONFIGURATIONS,
        order=lambda row: list(CONFIGURATIONS).index(row["configuration"]),
        command=f"python -m sim programs --count {counts[0]} --illegal {counts[1]} --seed {seeds} "
                f"--record",
        versions={package: importlib.metadata.version(package)
                  for package in ("amaranth", "verilator", "numpy")},
        configuration={name: CONFIGURATIONS[name].facts() for name in kept})


def _replay(path: pathlib.Path) -> int:
    """Run a program that was kept, and say what becomes of it."""
    try:
        case = read_case(path)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    try:
        found = verdict(case)
    except SimulatorStopped as error:
        print(error, file=sys.stderr)
        return 1
    print(listing(case))
    print(f"{found.kind}: {found.why}" if found.why else found.kind)
    return int(found.failed)
