"""Illegal programs: legal ones with one mistake."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from hw.formats.minifloat import bf16
from hw.isa import FIELDS, INSTRUCTION_BYTES, USED, Function, Instruction, Opcode, decode, encode
from sim.programs.random import Case

__all__ = ["MISTAKES", "changed_field", "with_mistake"]


def changed_field(instruction: Instruction, name: str, value: int) -> Instruction:
    """Return an instruction with another value of a field."""
    fields: dict[str, Any] = {name: value}
    return dataclasses.replace(instruction, **fields)


def _instructions(case: Case) -> list[Instruction]:
    return list(map(decode, case.program))


def _changed(case: Case, index: int, count: int, *instructions: Instruction) -> Case:
    """Replace ``count`` instructions at ``index``; passes begin at the same ones as before."""
    moved = len(instructions) - count
    return dataclasses.replace(
        case, program=(*case.program[:index], *map(encode, instructions),
                       *case.program[index + count:]),
        passes=tuple((token, start + moved if start > index else start)
                     for token, start in case.passes))


def _field(case: Case, rng: np.random.Generator) -> Case | None:
    """Change a field of an instruction: to an edge, to its neighbour, by a bit, to anything."""
    config, engine = case.config, case.config.engine
    index = int(rng.integers(len(case.program)))
    instruction = decode(case.program[index])
    if not USED[instruction.opcode]:
        return None
    name = str(rng.choice(USED[instruction.opcode]))
    value, lanes = int(getattr(instruction, name)), config.vector_lanes
    edges = [0, 1, lanes, 16, config.list_depth, config.list_depth + lanes,
             config.vector_depth - lanes, config.vector_depth, engine.max_rows + 1,
             engine.max_columns, engine.max_columns + 1, engine.max_planes + 1, engine.row_columns,
             config.caches, config.group + 1, 2 * engine.max_batch, config.head_elements + lanes,
             config.memory_bytes - config.port_bytes, config.memory_bytes, 2 ** FIELDS[name] - 1]
    steps = [1, -1, lanes, -lanes, config.port_bytes, -config.port_bytes]
    changed = (int(rng.choice(edges)), value + int(rng.choice(steps)),
               value ^ 1 << int(rng.integers(FIELDS[name])),
               int(rng.integers(2 ** FIELDS[name])))[rng.integers(4)]
    if not 0 <= changed < 2 ** FIELDS[name]:
        return None
    return _changed(case, index, 1, changed_field(instruction, name, changed))


def _opcode(case: Case, rng: np.random.Generator) -> Case | None:
    """Put another opcode in front of the same fields, or one that is none."""
    index = int(rng.integers(len(case.program)))
    codes = 2 ** FIELDS["opcode"]
    code = int(rng.choice(np.array([*Opcode, rng.integers(codes), 0])))
    if code not in set(Opcode):
        # The opcode is in the lowest bits of the first byte.
        anything = rng.bytes(INSTRUCTION_BYTES)
        data = bytes([anything[0] // codes * codes + code]) + anything[1:]
        return dataclasses.replace(case, program=(*case.program[:index], data,
                                                  *case.program[index + 1:]))
    fields = dataclasses.asdict(decode(case.program[index]))
    return _changed(case, index, 1, Instruction(opcode=Opcode(code), **{
        name: fields[name] for name in USED[Opcode(code)]}))


def _missing(case: Case, rng: np.random.Generator) -> Case | None:
    """Leave an instruction out."""
    return _changed(case, int(rng.integers(len(case.program))), 1)


def _twice(case: Case, rng: np.random.Generator) -> Case | None:
    """Execute an instruction twice."""
    index = int(rng.integers(len(case.program)))
    return _changed(case, index, 0, decode(case.program[index]))


def _swapped(case: Case, rng: np.random.Generator) -> Case | None:
    """Exchange two instructions that follow one another."""
    index = int(rng.integers(len(case.program) - 1))
    one, other = map(decode, case.program[index:index + 2])
    return _changed(case, index, 2, other, one)


def _not_finite(case: Case, rng: np.random.Generator) -> Case | None:
    """Load an infinity in front of an instruction that takes none, or anywhere."""
    words = np.frombuffer(case.memory, "<u2")
    step = case.config.port_bytes // 2 or 1
    places = np.flatnonzero(words[:len(words) - case.config.vector_lanes:step] == bf16.infinity)
    takers = [index for index, data in enumerate(case.program)
              if decode(data).opcode in (Opcode.QUANTIZE, Opcode.KV_APPEND, Opcode.QK)]
    if not places.size or not takers:
        return None
    index = int(rng.choice(takers))
    target = decode(case.program[index]).a or case.config.vector_lanes
    return _changed(case, index, 0, Instruction(
        opcode=Opcode.LOAD, target=target, count=case.config.vector_lanes,
        address=2 * step * int(rng.choice(places))))


def _no_end(case: Case, rng: np.random.Generator) -> Case | None:
    """Cut the program off."""
    length = len(case.program)
    end = (length - 1, int(rng.integers(1, length)))[rng.integers(2)]
    return dataclasses.replace(case, program=case.program[:end])


def _start(case: Case, rng: np.random.Generator) -> Case | None:
    """Begin the last pass at any instruction, or behind all of them."""
    length = len(case.program)
    start = (int(rng.integers(length)), length, case.config.program_depth - 1)[rng.integers(3)]
    return dataclasses.replace(case, passes=(*case.passes[:-1], (case.passes[-1][0], start)))


def _long_sequence(case: Case, rng: np.random.Generator) -> Case | None:
    """Go on with a sequence beyond the context."""
    if not case.config.context or not case.passes[-1][1]:
        return None
    return dataclasses.replace(case, passes=case.passes + case.passes[-1:] * case.config.context)


def _batch(case: Case, rng: np.random.Generator) -> Case | None:
    """Make a list one of a batch, or a product one of another."""
    places = [index for index, instruction in enumerate(map(decode, case.program))
              if instruction.opcode is Opcode.MATMUL
              or (instruction.opcode is Opcode.QUANTIZE
                  and instruction.function == Function.DENSE)]
    if not places:
        return None
    index = int(rng.choice(places))
    instruction = decode(case.program[index])
    name = "target" if instruction.opcode is Opcode.MATMUL else "constant"
    return _changed(case, index, 1, changed_field(
        instruction, name, int(rng.integers(2 ** int(rng.integers(1, 13))))))


#: Mistakes by name, and how often each is made.
MISTAKES: dict[str, tuple[float, Callable[[Case, np.random.Generator], Case | None]]] = {
    "field": (10, _field), "opcode": (2, _opcode), "missing": (2, _missing), "twice": (2, _twice),
    "swapped": (2, _swapped), "not finite": (3, _not_finite), "no end": (1, _no_end),
    "start": (1, _start), "long sequence": (1, _long_sequence), "batch": (2, _batch),
}


def with_mistake(case: Case, rng: np.random.Generator) -> tuple[str, Case]:
    """Make a mistake in a legal case; return its name, and the case."""
    names, weights = list(MISTAKES), np.array([weight for weight, _ in MISTAKES.values()])
    while True:
        name = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        made = MISTAKES[name][1](case, rng)
        if (made is not None and made != case and made.program
                and len(made.program) <= case.config.program_depth):
            return name, made
