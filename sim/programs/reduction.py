"""The smallest case that differs."""

import dataclasses
from collections import deque
from collections.abc import Callable

from hw.isa import USED, Batch, Function, Opcode, decode_known, encode
from sim.programs.illegal import changed_field
from sim.programs.random import Case, Timing

__all__ = ["reduced"]


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
