"""A case, simulated and on the golden machine, and the smallest case that differs."""

import dataclasses
import functools
import json
import pathlib
import zlib
from base64 import b85decode, b85encode
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from hw.isa import USED, Batch, Function, Opcode, decode_known, disassemble, encode
from sim.fast.library import SimulatorStopped
from sim.fast.machine import VerilatedAccelerator
from sim.golden.machine import Machine, MachineFault, TopKResult
from sim.programs_illegal import changed_field
from sim.programs_random import CONFIGURATIONS, Case, Timing

__all__ = ["Expected", "Outcome", "expected", "listing", "read_case", "reduced", "run_case",
           "write_case"]

#: Cycles that a case may take: more than ten times those of the longest, which
#: docs/results/programs.json has.
_LIMIT = 3_000_000
#: Cycles without any transfer after which an accelerator is stuck: more than any instruction works
#: on what it has, with the largest list and vector of :data:`sim.programs_random.CONFIGURATIONS`.
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


# The smallest form.

def reduced(case: Case, differs: Callable[[Case], bool]) -> Case:
    """Make a case smaller as long as it differs: passes, instructions, fields, memory, timing.

    Parameters
    ----------
    case : Case
        One that differs.
    differs : callable
        Tells whether a case is one that has a result, and differs.
    """
    def attempt(**changes) -> bool:
        nonlocal case
        smaller = dataclasses.replace(case, **changes)
        if smaller == case or not smaller.passes or not differs(smaller):
            return False
        case = smaller
        return True

    before = None
    while case != before:
        before = case
        attempt(timing=Timing())
        attempt(timing=dataclasses.replace(case.timing, stall=0.0))
        _without(case.passes, lambda kept: attempt(passes=kept), lambda: case.passes)
        _without(tuple(range(len(case.program))), lambda kept: attempt(**_kept(case, kept)),
                 lambda: tuple(range(len(case.program))))
        for number in reversed(range(len(_groups(case)))):
            group = _groups(case)[number]       # those before it are still there
            attempt(**_kept(case, tuple(index for index in range(len(case.program))
                                        if index not in group)))
        for index in range(len(case.program)):
            for simpler in _simpler(case, index):
                attempt(program=(*case.program[:index], simpler, *case.program[index + 1:]))
        attempt(passes=tuple((0, start) for _, start in case.passes))
    size = len(case.memory)
    while size >= 64:
        for first in range(0, len(case.memory), size):
            if any(case.memory[first:first + size]):
                attempt(memory=case.memory[:first] + bytes(size) + case.memory[first + size:])
        size //= 2
    return case


def _without(items: tuple, keep: Callable[[tuple], bool], present: Callable[[], tuple]) -> None:
    """Leave out as many items as can be: halves first, then ever smaller parts."""
    size = max(1, len(items) // 2)
    while True:
        first = 0
        while first < len(items):
            if keep(items[:first] + items[first + size:]):
                items = present()
            else:
                first += size
        if size == 1:
            return
        size //= 2


def _groups(case: Case) -> list[set[int]]:
    """Return instructions that go together: a product with what takes it, vectors of a batch."""
    groups: list[set[int]] = []
    queued: deque[tuple[set[int], int]] = deque()       # products with their rows left
    slots: set[int] = set()
    for index, data in enumerate(case.program):
        instruction = decode_known(data)
        if instruction is None:
            continue
        match instruction.opcode:
            case Opcode.MATMUL:
                groups.append({index})
                queued.append((groups[-1], instruction.a * max(1, instruction.target)))
            case Opcode.WRITE_BACK | Opcode.TOP_K if queued:
                group, rows = queued.popleft()
                group.add(index)
                if rows > instruction.count:
                    queued.appendleft((group, rows - instruction.count))
            case Opcode.QUANTIZE if instruction.function == Function.DENSE and instruction.constant:
                slots.add(index)
                if Batch.of(instruction.constant).last:
                    groups.append(slots)
                    slots = set()
    return groups


def _kept(case: Case, kept: tuple[int, ...]) -> dict:
    """Return the program with these instructions alone; passes begin at the same ones, or next."""
    return {"program": tuple(case.program[index] for index in kept),
            "passes": tuple((token, sum(index < start for index in kept))
                            for token, start in case.passes)}


def _simpler(case: Case, index: int) -> list[bytes]:
    """Return simpler variants of an instruction: a smaller count, smaller or no other fields."""
    instruction, lanes = decode_known(case.program[index]), case.config.vector_lanes
    if instruction is None:
        return []
    found = []
    for name in USED[instruction.opcode]:
        value = getattr(instruction, name)
        smaller = {"count": (lanes, value // 2 // lanes * lanes), "function": ()}.get(
            name, (0, lanes))
        found += [encode(changed_field(instruction, name, other))
                  for other in smaller if 0 <= other < value]
    return found
