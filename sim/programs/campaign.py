"""Random cases of a configuration on both machines, and what became of them."""

import dataclasses
import datetime
import pathlib
from collections import Counter
from collections.abc import Callable

import numpy as np

from hw.isa import decode_known
from hw.order import OrderError, check_order
from sim.golden.machine import HazardError, Machine
from sim.programs.comparison import expected, listing, run_case, write_case
from sim.programs.coverage import features, missing_features
from sim.programs.illegal import with_mistake
from sim.programs.random import CONFIGURATIONS, Case, random_case
from sim.programs.reduction import reduced

__all__ = ["Campaign", "Verdict", "seed_of_day", "verdict"]

#: Illegal cases that are made of one legal one.
_MISTAKES = 4


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
        Key of :data:`sim.programs.random.CONFIGURATIONS`.
    seed : int
    make : callable
        Makes the golden machine.
    verdicts : Counter of str
        Kinds of :class:`Verdict`.
    seen : Counter of str
        What :func:`sim.programs.coverage.features` finds in legal cases.
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
