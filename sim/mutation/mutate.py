"""``python -m sim mutate``: break the hardware in many small ways and see which bench notices.

A mutant (:mod:`sim.mutation.mutants`) is planted for the conversion to Verilog only; benches and
golden functions stay as they are. It runs under Icarus against the benches of its unit, then that
of the accelerator, then those of the boards, each time only where its Verilog differs from the
original, until a test fails. A bench belongs to a unit if converting it executes a function of the
unit's file.

A mutant is killed by a test that fails, or that takes more than three times the simulated time of
the unmutated run, or by a simulator that takes more than three times the processor time and ten
seconds. One that doesn't elaborate, or whose Verilog equals the original's in every case, isn't
counted: another one is drawn. Tests without a bench, in pytest or proofs, do not count.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import hashlib
import importlib
import importlib.metadata
import json
import math
import multiprocessing
import os
import pathlib
import resource
import signal
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator

from hw.records import RESULTS, ROOT, write_record
from sim.mutation.equivalence import proved_equal
from sim.mutation.limited import limits
from sim.mutation.mutants import Mutant, draw, mutants, unit_path, units
from sim.plant import fresh_modules, planted
from sim.runner import BenchResult, bench_cases, bench_names, run_bench
from sim.tools import icarus_version, missing_tools

__all__ = ["HELP", "NAME", "Survey", "add_arguments", "own_hash", "run", "try_mutant"]

NAME = "mutate"
HELP = "break units in many small ways, list what no bench notices, keep the table"

JUDGEMENTS = pathlib.Path(__file__).parent / "judged.json"
BUILD = ROOT / "build" / "mutate"

_SIMULATOR = "icarus"
_ACCELERATOR = ("accelerator", "accelerator_axi4")
_BOARDS = ("board", "accelerator_board", "axi_accelerator")
_STAGES = ("unit", "accelerator", "boards")
#: Minutes each under Icarus; smaller configurations of the same benches have all but the width.
_LEFT_OUT = {("engine", "wide"), ("engine", "wide_rows"), ("accelerator", "equal"),
             ("vector", "eight"),
             ("sparsity", "eight"), ("attention", "wide"),
             ("axi4", "between")}

_SLACK = 3              # of simulated and processor time, times the unmutated run
_SLACK_NS = 10_000      # for a test of a few cycles
_SLACK_SECONDS = 10
_ELABORATION_SECONDS = 300

#: Of the tests of each case of a larger design: what no bench of its own unit has noticed costs all
#: of them. One that would be noticed later counts as a survivor.
_LARGER_SECONDS = 12


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One case of one bench: its original Verilog, and the lines of hw/ that made it.

    ``lines`` are all lines executed, by file; ``files`` are those of which a function ran.
    """

    bench: str
    case: str
    verilog: pathlib.Path
    lines: dict[str, frozenset[int]]
    files: frozenset[str]


class Survey:
    """What each case of the benches is made of, from one traced conversion of each."""

    def __init__(self, cases: list[Case]):
        self.cases = cases

    @classmethod
    def make(cls, chosen: list[tuple[str, str]], jobs: int) -> "Survey":
        """Convert the cases ``chosen``, {bench, case}, unless the same sources were before."""
        (BUILD / "survey").mkdir(parents=True, exist_ok=True)
        hardware = _hash(*_sources("hw"))
        paths = {(bench, case): BUILD / "survey" / "-".join((
            bench, case, _hash(hardware, _bench_source(bench)))) for bench, case in chosen}
        missing = {pair: path for pair, path in paths.items()
                   if not path.with_suffix(".json").exists()}
        with _pool(jobs) as pool:
            list(pool.map(_trace, missing, missing.values()))
        return cls([_read_case(pair, path) for pair, path in paths.items()])

    def own_benches(self, path: str) -> list[str]:
        """Return the benches of the file ``path`` itself: the smallest that make anything of it."""
        benches = {case.bench for case in self.cases if path in case.files}
        for integrating in (set(), set(_ACCELERATOR), set(_BOARDS)):
            own = benches & integrating if integrating else benches - {*_ACCELERATOR, *_BOARDS}
            if own:
                return sorted(own)
        return []

    def stages(self, mutant: Mutant) -> dict[str, list[Case]]:
        """Return the cases that the mutant's statement is part of, by stage."""
        own = self.own_benches(mutant.path)
        first, last = mutant.lines
        found: dict[str, list[Case]] = {stage: [] for stage in _STAGES}
        for case in self.cases:
            if any(first <= line <= last for line in case.lines.get(mutant.path, ())):
                stage = ("unit" if case.bench in own else "accelerator"
                         if case.bench in _ACCELERATOR
                         else "boards" if case.bench in _BOARDS else "")
                if stage:
                    found[stage].append(case)
        return found


def all_cases() -> list[tuple[str, str]]:
    """Return {bench, case} of every case that takes part."""
    return [(bench, case) for bench in bench_names() for case in bench_cases(bench)
            if (bench, case) not in _LEFT_OUT]


def _pool(jobs: int) -> concurrent.futures.ProcessPoolExecutor:
    """Return processes whose sets have one order: the order of Verilog depends on it."""
    os.environ["PYTHONHASHSEED"] = "0"
    # Quiet: what mutants leave unused is no news.
    return concurrent.futures.ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), warnings.simplefilter, ("ignore",))


def _hash(*texts: str | bytes) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() if isinstance(text, str) else text)
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def _sources(*folders: str) -> list[bytes]:
    return [path.read_bytes() for folder in folders
            for path in sorted((ROOT / folder).rglob("*.py"))]


def _everything() -> str:
    return _hash(*_sources("hw", "sim/bench", "sim/golden"))


def own_hash(path: str, benches: list[str]) -> str:
    """Return the hash of a unit: its file ``path``, and its ``benches``."""
    return _hash((ROOT / path).read_bytes(), *map(_bench_source, benches))


def _bench_source(bench: str) -> bytes:
    return (ROOT / f"sim/bench/bench_{bench}.py").read_bytes()


def _trace(pair: tuple[str, str], path: pathlib.Path) -> None:
    """Convert one case, and write its Verilog and which lines of hw/ ran beside ``path``."""
    lines: dict[str, set[int]] = collections.defaultdict(set)
    files: set[str] = set()
    prefix = f"{ROOT / 'hw'}{os.sep}"

    def enter(frame: types.FrameType, event: str, argument: object):
        code = frame.f_code
        if not code.co_filename.startswith(prefix):
            return None
        name = code.co_filename.removeprefix(f"{ROOT}{os.sep}")
        if code.co_flags & 1:           # a function, not a module or a class
            files.add(name)
        here = lines[name]

        def step(frame: types.FrameType, event: str, argument: object):
            here.add(frame.f_lineno)
            return step
        return step(frame, event, argument)

    with fresh_modules():
        runner = importlib.import_module("sim.runner")
        sys.settrace(enter)
        try:
            text = runner.bench_verilog(*pair)
        finally:
            sys.settrace(None)
    path.with_suffix(".v").write_text(text)
    record = {"files": sorted(files), "lines": {name: sorted(numbers)
                                                for name, numbers in sorted(lines.items())}}
    path.with_suffix(".json").write_text(json.dumps(record))


def _read_case(pair: tuple[str, str], path: pathlib.Path) -> Case:
    record = json.loads(path.with_suffix(".json").read_text())
    return Case(*pair, path.with_suffix(".v"),
                {name: frozenset(numbers) for name, numbers in record["lines"].items()},
                frozenset(record["files"]))


# Running one case.

def _run(case: Case, text: str, environment: dict[str, str], *, module: str = ""
         ) -> BenchResult | None:
    """Run one case on the Verilog ``text``; None if the simulator ended without results.

    Raises
    ------
    _Stillborn
        If Icarus doesn't compile the Verilog.
    """
    # Where a test of pytest runs this, cocotb's runner would exit at a test that fails.
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        try:
            return run_bench(case.bench, case.case, _SIMULATOR, work_dir=folder, text=text,
                             module=module, environment={"COCOTB_RANDOM_SEED": "1", **environment},
                             log=folder / "log")
        except RuntimeError:
            # Without a result of the compiler there was no simulation.
            if not any(folder.glob("build-*/sim.vvp")):
                raise _Stillborn from None
            return None


class CampaignError(RuntimeError):
    """A campaign can't go on; the message says why, and what to do."""


class _Stillborn(Exception):
    """The mutant is no design."""


def _seconds() -> float:
    """Return the processor time of this process and those that it started."""
    return sum(usage.ru_utime + usage.ru_stime for usage in (
        resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)))


def _unmutated(case: Case) -> dict:
    """Return the tests of ``case`` in the order to run, {name: ns}, and the seconds of them all."""
    text = case.verilog.read_text()
    digest = _hash(text, case.case, _bench_source(case.bench), *_sources("sim/golden"))
    path = BUILD / "unmutated" / f"{digest}.json"
    if path.exists():
        return json.loads(path.read_text())
    before = _seconds()
    result = _run(case, text, {})
    seconds = _seconds() - before
    if result is None or result.failed:
        raise CampaignError(f"Bench {case.bench}, case {case.case}, fails without a mutant: "
                            f"repair it first")
    # Quickest first, unless a test needs those before it: what nothing has driven is undefined.
    for runs in (sorted(result.runs, key=lambda run: run.seconds), result.runs):
        record = {"seconds": seconds, "tests": {run.name: run.simulated_ns for run in runs}}
        failed = _killer(case, text, record)
        if not failed:
            break
    else:
        raise CampaignError(f"Bench {case.bench}, case {case.case}, fails without a mutant when "
                            f"its tests end after {_SLACK} times their simulated time: {failed}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(record))
    temporary.rename(path)
    return record


def _first_tests(unmutated: dict, seconds: float) -> dict[str, float]:
    """Return the first tests, {name: ns}, that take ``seconds`` together; at least one."""
    chosen: dict[str, float] = {}
    rate = unmutated["seconds"] / max(1, sum(unmutated["tests"].values()))
    for name, nanoseconds in unmutated["tests"].items():
        if chosen and rate * (sum(chosen.values()) + nanoseconds) > seconds:
            break
        chosen[name] = nanoseconds
    return chosen


def _killer(case: Case, text: str, unmutated: dict, seconds: float = math.inf) -> str:
    """Return the test of ``case`` that fails on ``text``, or an empty string.

    Only the first tests that take ``seconds`` together run.
    """
    allowed = {name: _SLACK * round(nanoseconds) + _SLACK_NS
               for name, nanoseconds in _first_tests(unmutated, seconds).items()}
    environment = limits(case.bench, allowed, _SLACK * unmutated["seconds"] + _SLACK_SECONDS)
    result = _run(case, text, environment | {"COCOTB_MAX_FAILURES": "1"},
                  module="sim.mutation.limited")
    if result is None:
        return "the simulator's end"
    return next((run.name for run in result.runs if not run.passed), "")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a mutant.

    Attributes
    ----------
    verdict : str
        ``stillborn``, ``same``, ``killed``, ``proved`` equal, ``judged`` so, or ``survived``.
    stage : str
        Which benches killed it: ``unit``, ``accelerator`` or ``boards``.
    by : str
        Bench, case and test.
    seconds : float
        Processor time that it took.
    """

    verdict: str
    stage: str = ""
    by: str = ""
    seconds: float = 0.0


def try_mutant(mutant: Mutant, stages: dict[str, list[Case]], *, judged: bool = False) -> Outcome:
    """Run ``mutant`` against the cases of each stage until a test fails.

    What its unit's own benches do not kill is ``judged`` if it has a judgement, and ``proved`` if
    Yosys shows every differing module equal; only the others run against larger designs.
    """
    before = _seconds()
    text = mutant.plant((ROOT / mutant.path).read_text())
    changed: dict[Case, str] = {}       # Verilog of the cases that the mutant changes

    def outcome(verdict: str, stage: str = "", by: str = "") -> Outcome:
        return Outcome(verdict, stage, by, _seconds() - before)

    def convert(case: Case) -> bool:
        with planted(mutant.path, text):
            verilog = _convert(case)
        if verilog is not None:
            changed[case] = verilog
        return verilog is not None

    def killer(cases: list[Case], seconds: float = math.inf) -> str:
        # The smallest first; one that isn't reached needs no Verilog.
        for case in sorted(cases, key=lambda case: case.verilog.stat().st_size):
            if case in changed or convert(case):
                test = _killer(case, changed[case], _unmutated(case), seconds)
                if test:
                    return f"{case.bench} {case.case}: {test}"
        return ""

    try:
        own, *larger = stages
        by = killer(stages[own])
        if by:
            return outcome("killed", own, by)
        if judged:
            return outcome("judged")
        for stage in larger:
            for case in stages[stage]:
                convert(case)
        if not changed:
            return outcome("same")
        if proved_equal([(case.verilog.read_text(), verilog)
                         for case, verilog in changed.items()]):
            return outcome("proved")
        for stage in larger:
            by = killer([case for case in stages[stage] if case in changed], _LARGER_SECONDS)
            if by:
                return outcome("killed", stage, by)
    except _Stillborn:
        return outcome("stillborn")
    return outcome("survived")


def _convert(case: Case) -> str | None:
    """Return the Verilog of ``case`` with what is planted, or None if it is as before."""
    def expire(number: int, frame: types.FrameType | None):
        raise TimeoutError
    previous = signal.signal(signal.SIGALRM, expire)
    signal.alarm(_ELABORATION_SECONDS)
    try:
        text = importlib.import_module("sim.runner").bench_verilog(case.bench, case.case)
    # Anything may go wrong in a mutant: it is then no design.
    except Exception:
        raise _Stillborn from None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    return None if text == case.verilog.read_text() else text


# Judgements.

def judgements() -> dict[tuple[str, str, str, str], str]:
    """Return why a mutant is equivalent, by file, function, and the lines before and after."""
    return {(item["path"], item["function"], item["before"], item["after"]): item["why"]
            for item in json.loads(JUDGEMENTS.read_text())}


def _key(mutant: Mutant) -> tuple[str, str, str, str]:
    return mutant.path, mutant.function, mutant.before, mutant.after


def stale_judgements() -> list[str]:
    """Return a sentence for each judgement of a mutant that no longer exists."""
    known: set[tuple[str, str, str, str]] = set()
    for path in {path for path, *_ in judgements()}:
        if (ROOT / path).exists():
            known |= {_key(mutant) for mutant in mutants(path, (ROOT / path).read_text())}
    return [f"{path}, {function}: no mutant turns '{before}' into '{after}'"
            for path, function, before, after in judgements()
            if (path, function, before, after) not in known]


# The campaign.

class Campaign:
    """Mutants of one unit after the other, and what became of them.

    A mutant's outcome is kept in a journal as soon as it is known; one of the same sources is not
    run again.
    """

    def __init__(self, survey: Survey, *, seed: int, count: int | None):
        self._survey, self._seed, self._count = survey, seed, count
        self._everything = _everything()
        self._journal = BUILD / "journal.jsonl"
        self._known: dict[str, dict] = {}
        if self._journal.exists():
            for line in self._journal.read_text().splitlines():
                if line.endswith("}"):          # the last one may be cut off
                    entry = json.loads(line)
                    self._known[entry["key"]] = entry

    def _journal_key(self, drawn: "_Drawn", verdict: str) -> str:
        """Return the key under which ``verdict`` on a mutant is known.

        A kill holds while the unit and its benches stay, and that nothing kills while all does.
        """
        mutant = drawn.mutant
        sources = (drawn.own if verdict in ("killed", "stillborn")
                   else self._everything + judgements().get(_key(mutant), ""))
        return _hash(mutant.path, str(mutant.start), str(mutant.end), mutant.new, drawn.own,
                     sources)

    def _recall(self, drawn: "_Drawn") -> Outcome | None:
        for verdict in ("killed", "survived"):
            entry = self._known.get(self._journal_key(drawn, verdict))
            if entry is not None:
                return Outcome(**entry["outcome"])
        return None

    def _keep(self, drawn: "_Drawn", outcome: Outcome) -> None:
        if _everything() != self._everything:
            raise CampaignError("hw/, sim/bench/ or sim/golden/ changed while mutants ran: start "
                                "the command again; what is known of unchanged units is kept")
        entry = {"key": self._journal_key(drawn, outcome.verdict), "mutant": str(drawn.mutant),
                 "outcome": dataclasses.asdict(outcome)}
        with self._journal.open("a") as journal:
            journal.write(json.dumps(entry) + "\n")

    def run(self, chosen: list[str], jobs: int, deadline: float = float("inf"),
            finished: Callable[[str, list[tuple[Mutant, Outcome]]], None] = lambda *_: None,
            ) -> dict[str, list[tuple[Mutant, Outcome]]]:
        """Run the mutants of the units ``chosen``; those that count, in the order drawn.

        The mutants do not depend on ``jobs``: no more are under way than will count. After
        ``deadline``, of the monotonic clock, none is begun. ``finished`` is called with each unit
        and its results as soon as it has all of them.
        """
        judged = judgements()
        draws = {unit: self._draws(unit) for unit in chosen}
        wanted = {unit: self._wanted(unit) for unit in chosen}
        counted: dict[str, dict[int, tuple[Mutant, Outcome]]] = {unit: {} for unit in chosen}

        def count(unit: str, drawn: "_Drawn", outcome: Outcome) -> None:
            if outcome.verdict not in ("stillborn", "same"):
                counted[unit][drawn.number] = drawn.mutant, outcome

        waiting = list(chosen)                  # units that were not told to be finished

        def results_of(unit: str) -> list[tuple[Mutant, Outcome]]:
            return [found for _, found in sorted(counted[unit].items())]

        def tell_finished() -> None:
            for unit in [*waiting]:
                if not under_way[unit] and (unit not in draws
                                            or len(counted[unit]) >= wanted[unit]):
                    waiting.remove(unit)
                    finished(unit, results_of(unit))

        with _pool(jobs) as pool:
            running: dict[concurrent.futures.Future[Outcome], tuple[str, _Drawn]] = {}
            under_way: collections.Counter[str] = collections.Counter()
            while True:
                while len(running) < jobs and time.monotonic() < deadline:
                    unit = next((unit for unit in draws
                                 if len(counted[unit]) + under_way[unit] < wanted[unit]), None)
                    if unit is None:
                        break
                    drawn = next(draws[unit], None)
                    if drawn is None:
                        del draws[unit]
                        continue
                    known = self._recall(drawn)
                    if known is not None:
                        count(unit, drawn, known)
                        continue
                    future = pool.submit(try_mutant, drawn.mutant, drawn.stages,
                                         judged=_key(drawn.mutant) in judged)
                    running[future] = unit, drawn
                    under_way[unit] += 1
                tell_finished()
                if not running:
                    break
                done, _ = concurrent.futures.wait(
                    running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    unit, drawn = running.pop(future)
                    under_way[unit] -= 1
                    outcome = future.result()
                    self._keep(drawn, outcome)
                    count(unit, drawn, outcome)
                    print(f"{outcome.verdict:9} {outcome.seconds:6.1f} s  {drawn.mutant}  "
                          f"{outcome.by}", flush=True)
        return {unit: results_of(unit) for unit in chosen}

    def _wanted(self, unit: str) -> int:
        """Mutants of ``unit``: by default more of larger units."""
        if self._count is not None:
            return self._count
        path = unit_path(unit)
        return max(5, min(24, len(mutants(path, (ROOT / path).read_text())) // 30))

    def _draws(self, unit: str) -> Iterator["_Drawn"]:
        """Yield the mutants of which some case has the statement."""
        path = unit_path(unit)
        own = own_hash(path, self._survey.own_benches(path))
        found = mutants(path, (ROOT / path).read_text())
        for number, mutant in enumerate(draw(found, f"{self._seed} {unit}")):
            stages = self._survey.stages(mutant)
            if any(stages.values()):
                yield _Drawn(number, mutant, stages, own)


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """A mutant, its number among those of its unit, its cases, and the hash of the unit."""

    number: int
    mutant: Mutant
    stages: dict[str, list[Case]]
    own: str


def row(unit: str, survey: Survey, results: list[tuple[Mutant, Outcome]], seed: int) -> dict:
    """Return the record's row of ``unit``."""
    path = unit_path(unit)
    benches = survey.own_benches(path)
    by = collections.Counter(outcome.stage for _, outcome in results)
    verdicts = collections.Counter(outcome.verdict for _, outcome in results)
    return {
        "unit": unit, "mutants": len(results), "killed_by_unit": by["unit"],
        "killed_by_core": by["accelerator"], "killed_by_boards": by["boards"],
        "equivalent": verdicts["proved"] + verdicts["judged"], "survived": verdicts["survived"],
        "proved": verdicts["proved"], "seed": seed, "benches": benches,
        "sources": own_hash(path, benches),
        "survivors": [str(mutant) for mutant, outcome in results if outcome.verdict == "survived"],
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``python -m sim mutate``."""
    parser.add_argument("units", nargs="*", metavar="UNIT",
                        help="units to break, as folder or folder/file of hw/ (default: all)")
    parser.add_argument("--count", type=int, metavar="N",
                        help="mutants of each unit (default: 5 to 24, by its size)")
    parser.add_argument("--seed", type=int, default=0, metavar="S",
                        help="which mutants are drawn (default: 0)")
    parser.add_argument("--missing", action="store_true",
                        help="leave out units whose row in docs/results/mutants.json is of the "
                             "sources as they are")
    parser.add_argument("--jobs", type=int, default=2, metavar="J",
                        help="mutants that run at a time (default: 2)")


def run(options: argparse.Namespace) -> int:
    """Run the campaign, print and record its table; 1 if a survivor has no judgement."""
    chosen = [unit for unit in units() if not options.units
              or any(unit == name or unit.startswith(f"{name}/") for name in options.units)]
    for name in options.units:
        if not any(unit == name or unit.startswith(f"{name}/") for unit in units()):
            print(f"'{name}' is no unit of hw/ (try {', '.join(units())})", file=sys.stderr)
            return 2
    for name, value, least in (("count", options.count, 1), ("jobs", options.jobs, 1)):
        if value is not None and value < least:
            print(f"--{name} must be at least {least}, not {value}", file=sys.stderr)
            return 2
    missing = missing_tools("iverilog")
    if missing:
        print("; ".join(missing), file=sys.stderr)
        return 1
    BUILD.mkdir(parents=True, exist_ok=True)
    try:
        survey = Survey.make(all_cases(), options.jobs)
        campaign = Campaign(survey, seed=options.seed, count=options.count)
        if options.missing:
            chosen = [unit for unit in chosen if not _recorded(unit, survey)]
        # At once: all of them take hours.
        results = campaign.run(chosen, options.jobs, finished=lambda unit, found: _write(
            [row(unit, survey, found, options.seed)]))
    except CampaignError as problem:
        print(problem, file=sys.stderr)
        return 1
    return _report([row(unit, survey, results[unit], options.seed) for unit in chosen])


def _recorded(unit: str, survey: Survey) -> bool:
    """Return whether the record has a row of ``unit`` and of its benches as they are."""
    if not (RESULTS / "mutants.json").exists():
        return False
    path = unit_path(unit)
    now = own_hash(path, survey.own_benches(path))
    rows = json.loads((RESULTS / "mutants.json").read_text())["rows"]
    return any(item["unit"] == unit and item["sources"] == now for item in rows)


def _write(rows: list[dict]) -> None:
    """Write the record; rows of other units stay as they were, those of units gone go."""
    known: dict[str, dict] = {unit: {} for unit in units()}
    if (RESULTS / "mutants.json").exists():
        record = json.loads((RESULTS / "mutants.json").read_text())
        known |= {item["unit"]: item for item in record["rows"] if item["unit"] in known}
    known |= {item["unit"]: item for item in rows}
    versions = {name: importlib.metadata.version(name) for name in ("amaranth", "cocotb")}
    write_record("mutants", maker="sim mutate", command="python -m sim mutate",
                 versions=versions | {"icarus": icarus_version()},
                 configuration={"simulator": _SIMULATOR, "slack": _SLACK,
                                "larger_designs_seconds": _LARGER_SECONDS,
                                "left_out": sorted(f"{bench} {case}"
                                                   for bench, case in _LEFT_OUT)},
                 rows=[item for item in known.values() if item])


def _report(rows: list[dict]) -> int:
    columns = ("unit", "mutants", "killed_by_unit", "killed_by_core", "killed_by_boards",
               "equivalent", "survived")
    total: dict = {"unit": "all"} | {name: sum(item[name] for item in rows)
                                     for name in columns[1:]}
    for item in [dict(zip(columns, columns, strict=True)), *rows, total]:
        print("  ".join(f"{item[name]!s:{max(len(name), 24 if name == 'unit' else 0)}}"
                        for name in columns).rstrip())
    for item in rows:
        for survivor in item["survivors"]:
            print(f"Survived, not judged: {survivor}")
    stale = stale_judgements()
    for sentence in stale:
        print(f"Stale judgement in {JUDGEMENTS.relative_to(ROOT)}: {sentence}")
    return int(total["survived"] > 0 or bool(stale))
