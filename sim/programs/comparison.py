"""A case, simulated and on the golden machine, and the files that keep it."""

import dataclasses
import functools
import json
import pathlib
import zlib
from base64 import b85decode, b85encode
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from hw.isa import Opcode, decode_known, disassemble
from sim.fast.library import SimulatorStopped
from sim.fast.machine import VerilatedAccelerator
from sim.golden.machine import Machine, MachineFault, TopKResult
from sim.programs.random import CONFIGURATIONS, Case, Timing

__all__ = ["Expected", "Outcome", "expected", "listing", "read_case", "run_case", "write_case"]

#: Cycles that a case may take: more than ten times those of the longest, which
#: docs/results/programs.json has.
_LIMIT = 3_000_000
#: Cycles without any transfer after which an accelerator is stuck: more than any instruction works
#: on what it has, with the largest list and vector of :data:`sim.programs.random.CONFIGURATIONS`.
_PATIENCE = 20_000


@dataclasses.dataclass(frozen=True, eq=False)
class Expected:
    """What the golden machine makes of a case.

    Attributes
    ----------
    emissions : list of list of TopKResult
        Of each pass that ends.
    fault : MachineFault or None
        What the pass behind them ends with.
    memory : uint8 array
        In the end.
    executed : int
        Instructions.
    machine : Machine
    """

    emissions: list[list[TopKResult]]
    fault: MachineFault | None
    memory: NDArray[np.uint8]
    executed: int
    machine: Machine


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the simulated accelerator made of a case.

    Attributes
    ----------
    difference : str
        From the golden machine, in a sentence; empty if there is none.
    hangs : bool
        The accelerator made no progress, or too little.
    cycles : int
    """

    difference: str
    hangs: bool
    cycles: int


@functools.lru_cache(maxsize=1)
def expected(case: Case, make: Callable[[Case], Machine] = Case.machine) -> Expected:
    """Run a case on the golden machine.

    Parameters
    ----------
    case : Case
    make : callable
        Makes the machine.

    Raises
    ------
    HazardError
        If an instruction relies on what none has defined: the case has no result.
    ValueError
        If the program is none that a host would load.
    """
    machine = make(case)
    emissions: list[list[TopKResult]] = []
    fault = None
    for one in case.passes:
        try:
            emissions.append(list(machine.run(*one)))
        except MachineFault as found:
            fault = found
            break
    return Expected(emissions, fault, machine.memory.copy(), machine.executed, machine)


@functools.cache
def _simulator(configuration: str) -> VerilatedAccelerator:
    return VerilatedAccelerator(CONFIGURATIONS[configuration])


def run_case(case: Case, wanted: Expected | None) -> Outcome:
    """Simulate a case, and compare all that is delivered with what is wanted.

    Without anything that is wanted, it only has to end.
    """
    accelerator = _simulator(case.configuration)
    accelerator.set_timing(**dataclasses.asdict(case.timing))
    accelerator.load(b"".join(case.program), case.memory)
    begin = accelerator.cycles
    try:
        if wanted is None:
            accelerator.run(case.passes, patience=_PATIENCE, limit=_LIMIT)
            return Outcome("", False, accelerator.cycles - begin)
        difference = _run_passes(accelerator, case.passes, wanted)
    except MachineFault as found:
        if wanted is None:
            return Outcome("", False, accelerator.cycles - begin)
        difference = f"The accelerator stops. {found}"
    except SimulatorStopped as stopped:
        return Outcome(str(stopped), True, accelerator.cycles - begin)
    if not difference:
        # A KV_APPEND may have written some of its vector when it finds what is wrong in it.
        faulty = [decode_known(data) for data in case.program[wanted.fault.instruction:][:1]
                  ] if wanted.fault else []
        if not any(found is not None and found.opcode is Opcode.KV_APPEND for found in faulty):
            wrong = np.flatnonzero(accelerator.memory != wanted.memory)
            if wrong.size:
                at = int(wrong[0])
                difference = (f"Behind pass {len(wanted.emissions)}, byte {at:#x} of the memory is "
                              f"{accelerator.memory[at]:#04x}, not {wanted.memory[at]:#04x}; "
                              f"{wrong.size} bytes differ")
    return Outcome(difference, False, accelerator.cycles - begin)


def _run_passes(accelerator: VerilatedAccelerator, passes: Sequence[tuple[int, int]],
                wanted: Expected) -> str:
    """Run the passes; return what differs in what is delivered, or how the last one ends."""
    ended = len(wanted.emissions)
    if ended:
        runs = accelerator.run(passes[:ended], patience=_PATIENCE, limit=_LIMIT)
        for index, (run, emissions) in enumerate(zip(runs, wanted.emissions, strict=True)):
            got, right = [_facts(best) for best in run.emissions], [_facts(best)
                                                                    for best in emissions]
            if got != right:
                emit = next((k for k, (one, other) in enumerate(zip(got, right, strict=False))
                             if one != other), min(len(got), len(right)))
                return (f"Pass {index}, TOP_K {emit}: {dict(enumerate(got)).get(emit)}, not "
                        f"{dict(enumerate(right)).get(emit)}")
    if wanted.fault is None:
        return ""
    try:
        accelerator.run(passes[ended:ended + 1], patience=_PATIENCE, limit=_LIMIT)
    except MachineFault as found:
        if (found.fault, found.instruction) == (wanted.fault.fault, wanted.fault.instruction):
            return ""
        return f"{found}; but golden: {wanted.fault}"
    return f"The accelerator goes on; but golden: {wanted.fault}"


def _facts(best: TopKResult) -> tuple:
    return best.rows.tolist(), best.values.tolist(), best.number, best.exponent


def listing(case: Case) -> str:
    """Return the case for people: passes, timing and a line for each instruction."""
    lines = [f"configuration {case.configuration}; passes (token, start): {case.passes}",
             f"{case.timing}"]
    for index, data in enumerate(case.program):
        known = decode_known(data)
        lines.append(f"{index:4}  {data.hex() if known is None else disassemble(known)}")
    used = np.flatnonzero(np.frombuffer(case.memory, np.uint8))
    lines.append(f"{used.size} of {len(case.memory)} bytes of memory are not 0"
                 + (f", from {used[0]:#x} to {used[-1]:#x}" if used.size else ""))
    return "\n".join(lines)


# Files.

def write_case(case: Case, difference: str, path: pathlib.Path) -> None:
    """Write a case to a JSON file, with its listing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({
        "difference": difference, "listing": listing(case).splitlines(),
        "configuration": case.configuration, "program": [data.hex() for data in case.program],
        "memory": b85encode(zlib.compress(case.memory, 9)).decode(),
        "passes": case.passes, "timing": dataclasses.asdict(case.timing)}, indent=1) + "\n")


def read_case(path: pathlib.Path) -> Case:
    """Read a case that :func:`write_case` has written.

    Raises
    ------
    ValueError
        If the file holds none.
    """
    try:
        facts = json.loads(path.read_text())
        return Case(configuration=facts["configuration"],
                    program=tuple(map(bytes.fromhex, facts["program"])),
                    memory=zlib.decompress(b85decode(facts["memory"])),
                    passes=tuple((token, start) for token, start in facts["passes"]),
                    timing=Timing(**facts["timing"]))
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise ValueError(f"File {path} holds no case of random programs: {error!r}") from error
