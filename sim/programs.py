"""``python -m sim programs``: random programs on the simulated core and on the golden machine."""

import argparse
import dataclasses
import datetime
import importlib.metadata
import pathlib
import sys
import time
from collections import Counter

import numpy as np

from hw.isa import Opcode, decode
from hw.order import OrderError, check_order
from sim.golden.machine import HazardError
from sim.programs_coverage import FEATURES, features
from sim.programs_illegal import with_mistake
from sim.programs_random import CONFIGURATIONS, Case, random_case
from sim.programs_run import (
    Outcome,
    expected,
    listing,
    read_case,
    reduced,
    run_case,
    write_case,
)
from sim.tables import write_record
from sim.tools import missing_tools

__all__ = ["Campaign", "NAME", "HELP", "add_arguments", "campaign", "run", "seed_of_day", "verdict"]

NAME = "programs"
HELP = "run random programs, legal and illegal ones, and reduce what differs"

ROOT = pathlib.Path(__file__).parent.parent

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
        On the simulated core.
    instructions : int
        That the golden machine executed.
    """

    kind: str
    why: str = ""
    cycles: int = 0
    instructions: int = 0

    @property
    def failed(self) -> bool:
        """The core does not what the documents say."""
        return self.kind in ("differs", "hangs")


def verdict(case: Case) -> Verdict:
    """Run a case on both machines."""
    program = [decode(data) if data[0] in set(Opcode) else None for data in case.program]
    wanted, undefined = None, ""
    try:
        wanted = expected(case)
        if wanted.fault is not None:
            program[wanted.fault.instruction:] = [None]
    except (HazardError, ValueError) as error:
        undefined = str(error)
    try:
        check_order(case.config, program, sorted({start for _, start in case.passes}))
    except OrderError as error:
        return Verdict("refused", str(error))
    outcome: Outcome = run_case(case, wanted)
    executed = wanted.executed if wanted else 0
    if outcome.hangs:
        return Verdict("hangs", outcome.difference, outcome.cycles, executed)
    if wanted is None:
        return Verdict("undefined", undefined, outcome.cycles, executed)
    if outcome.difference:
        return Verdict("differs", outcome.difference, outcome.cycles, executed)
    kind = "equal" if wanted.fault is None else f"fault {wanted.fault.fault.name}"
    return Verdict(kind, "", outcome.cycles, executed)
