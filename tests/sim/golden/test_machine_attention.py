"""The golden machine attends: sequences against golden attention, faults, and hazards."""

import dataclasses

import numpy as np
import pytest

from hw.config import AcceleratorConfig, EngineConfig
from hw.formats.minifloat import bf16
from hw.isa import Fault, Function, Instruction, Opcode, encode
from sim.golden.attention import attend_sequence, from_cache, to_cache
from sim.golden.bf16 import from_float
from sim.golden.machine import HazardError, Machine, MachineFault

CONFIG = AcceleratorConfig(engine=EngineConfig(lanes=8, result_lanes=4, port_bytes=4),
                           vector_depth=256,
                           address_width=14, context=16, head_elements=16, group=3, caches=4)
HEADS, ELEMENTS = 3, 16
# Vector memory: queries, key, value, mixture. Memory: tables of them, caches, and what is mixed.
Q, KEY, VALUE, OUT = 4, 60, 80, 100
TABLES = (0, 2048, 4096)
KEYS, VALUES, MIXED = 5120, 6144, 8192
START = Instruction(opcode=Opcode.STORE, a=0, count=4, address=7168)
STOP = Instruction(opcode=Opcode.STOP)


def body(cache, *, split=False):
    """Attend with three heads; with ``split`` queries and keys are two halves."""
    function = Function.BF16 if cache == "bf16" else Function.E4M3
    half = ELEMENTS // 2 if split else 0
    both = {"function": function, "count": HEADS * ELEMENTS, "constant": ELEMENTS}
    loads = [Instruction(opcode=Opcode.LOAD_AT, target=target, count=count, address=address)
             for target, count, address in zip((Q, KEY, VALUE), (HEADS * ELEMENTS, ELEMENTS,
                                                                 ELEMENTS), TABLES, strict=True)]
    return [
        *loads,
        Instruction(opcode=Opcode.KV_APPEND, function=function, a=KEY, b=half and KEY + half,
                    count=ELEMENTS, constant=3, address=KEYS),
        Instruction(opcode=Opcode.KV_APPEND, function=function, a=VALUE, count=ELEMENTS, constant=1,
                    address=VALUES),
        Instruction(opcode=Opcode.QK, target=HEADS, a=Q, b=half and Q + HEADS * half,
                    address=KEYS, **both),
        Instruction(opcode=Opcode.PV, target=OUT, a=1, address=VALUES, **both),
        *(Instruction(opcode=Opcode.KV_APPEND, function=Function.BF16, a=OUT + head * ELEMENTS,
                      count=ELEMENTS, constant=3,
                      address=MIXED + head * 2 * ELEMENTS * CONFIG.context)
          for head in range(HEADS)),
        STOP]


def machine_of(instructions, tables=()):
    memory = np.zeros(CONFIG.memory_bytes, np.uint8)
    for address, table in zip(TABLES, tables, strict=False):
        memory[address:address + 2 * table.size] = table.astype("<u2").reshape(-1).view(np.uint8)
    return Machine(CONFIG, b"".join(map(encode, [START, *instructions])), memory.tobytes())


def tables_of(seed):
    rng = np.random.default_rng(seed)
    return [from_float(rng.normal(size=(CONFIG.context, count)))
            for count in (HEADS * ELEMENTS, ELEMENTS, ELEMENTS)]


@pytest.mark.parametrize("cache", ["bf16", "e4m3"])
@pytest.mark.parametrize("split", [False, True])
def test_sequence(cache, split):
    """Sequences, each behind one that ended early, of which nothing may be left."""
    for seed, tokens in ((1, 5), (2, CONFIG.context)):
        q, keys, values = tables_of(seed)
        machine = machine_of(body(cache, split=split), (q, keys, values))
        for first in (3, tokens):
            for token in range(first):
                machine.run(token, int(token > 0))
                assert machine.position == token
        q = q[:tokens].reshape(tokens, HEADS, ELEMENTS)
        if split:       # halves of all heads, one behind the other
            q = q.reshape(tokens, 2, HEADS, ELEMENTS // 2).swapaxes(1, 2).reshape(q.shape)
        expected = attend_sequence(q, *(from_cache(to_cache(x[:tokens, np.newaxis], cache))
                                        for x in (keys, values)))
        size = 2 * ELEMENTS * CONFIG.context
        for head in range(HEADS):
            found = machine.memory[MIXED + head * size:][:size].view("<u2")
            np.testing.assert_array_equal(found.reshape(-1, ELEMENTS)[:tokens], expected[:, head])


def test_the_context_ends():
    machine = machine_of(body("bf16"), tables_of(1))
    for token in range(CONFIG.context):
        machine.run(0, int(token > 0))
    with pytest.raises(MachineFault, match=r"^Instruction 1: the sequence is longer than the "
                                           r"context$"):
        machine.run(0, 1)
    machine.reset()
    machine.run(0)


def changed(opcode, index=0, **fields):
    """Return the body with other fields of its ``index``-th instruction of an opcode."""
    program = body("e4m3")
    places = [k for k, instruction in enumerate(program) if instruction.opcode is opcode]
    program[places[index]] = dataclasses.replace(program[places[index]], **fields)
    return program, places[index] + 1


@pytest.mark.parametrize(("opcode", "fields", "fault"), [
    (Opcode.KV_APPEND, {"function": Function.COPY}, Fault.FUNCTION),
    (Opcode.KV_APPEND, {"a": 6}, Fault.VECTOR_ADDRESS),
    (Opcode.KV_APPEND, {"b": 252}, Fault.VECTOR_ADDRESS),
    (Opcode.LOAD_AT, {"count": 0}, Fault.VECTOR_ADDRESS),
    (Opcode.QK, {"b": 236}, Fault.VECTOR_ADDRESS),
    (Opcode.PV, {"target": 212}, Fault.VECTOR_ADDRESS),
    (Opcode.LOAD_AT, {"address": 2 ** 14 - 8}, Fault.MEMORY_ADDRESS),
    (Opcode.QK, {"address": 2}, Fault.MEMORY_ADDRESS),
    (Opcode.PV, {"address": 2 ** 14 - 12}, Fault.MEMORY_ADDRESS),
    (Opcode.KV_APPEND, {"constant": 4}, Fault.HEADS),
    (Opcode.KV_APPEND, {"count": 32}, Fault.HEADS),
    (Opcode.QK, {"target": 0}, Fault.HEADS),
    (Opcode.QK, {"target": 4}, Fault.HEADS),
    (Opcode.QK, {"constant": 0}, Fault.HEADS),
    (Opcode.QK, {"constant": 20}, Fault.HEADS),
    (Opcode.QK, {"constant": 4, "b": 60}, Fault.HEADS),
    (Opcode.PV, {"a": 4}, Fault.HEADS),
    (Opcode.PV, {"constant": 6}, Fault.HEADS),
])
def test_fault(opcode, fields, fault):
    program, place = changed(opcode, **fields)
    with pytest.raises(MachineFault) as found:
        machine_of(program, tables_of(1)).run(0)
    assert (found.value.fault, found.value.instruction) == (fault, place)


@pytest.mark.parametrize("table", [0, 1])
@pytest.mark.parametrize("bits", [bf16.infinity, 0xFFC0])
def test_not_finite(table, bits):
    tables = tables_of(1)
    tables[table][0, 3] = bits
    with pytest.raises(MachineFault) as found:
        machine_of(body("e4m3"), tables).run(0)
    assert (found.value.fault, found.value.instruction) == (Fault.NOT_FINITE, (6, 4)[table])


def test_without_a_context_there_is_no_attention():
    config = dataclasses.replace(CONFIG, context=0)
    for opcode, at in ((Opcode.LOAD_AT, 0), (Opcode.KV_APPEND, 3), (Opcode.QK, 5),
                       (Opcode.PV, 6)):
        instruction = body("bf16")[at]
        assert instruction.opcode is opcode
        with pytest.raises(MachineFault) as found:
            Machine(config, encode(instruction), bytes(16)).run(0)
        assert found.value.fault is Fault.OPCODE


def test_a_narrow_word_holds_no_e4m3():
    config = dataclasses.replace(CONFIG, engine=EngineConfig(lanes=8, result_lanes=4, port_bytes=8))
    assert config.cache_formats == ("bf16",)
    with pytest.raises(MachineFault) as found:
        Machine(config, encode(body("e4m3")[3]), bytes(16)).run(0)
    assert found.value.fault is Fault.FUNCTION


@pytest.mark.parametrize(("opcode", "fields", "message"), [
    (Opcode.QK, {"count": 32}, "6: 3 heads of 16 elements have 48, not 32"),
    (Opcode.PV, {"count": 32}, "7: 3 heads of 16 elements have 48, not 32"),
    (Opcode.PV, {"constant": 8, "count": 24},
     "7: Values of 8 elements are mixed, but no heads of so many were scored"),
    (Opcode.PV, {"a": 2}, "7: Cache 2 is mixed, but nothing was appended to it at position 0"),
    (Opcode.PV, {"target": 0}, "7: The first word is written, but must stay zero"),
    (Opcode.QK, {"a": 120}, "6: Element 120 is read, but was never written"),
])
def test_hazard(opcode, fields, message):
    program, _ = changed(opcode, **fields)
    with pytest.raises(HazardError, match=rf"^Instruction {message}$"):
        machine_of(program, tables_of(1)).run(0)


def test_hazards_of_a_cache():
    program = [instruction for instruction in body("bf16")
               if instruction.opcode is not Opcode.QK]
    with pytest.raises(HazardError, match="no heads of so many were scored"):
        machine_of(program, tables_of(1)).run(0)
    # Appended at position 0 and 2, not at 1.
    skips = [*body("bf16"), *body("bf16")[:1], STOP]
    machine = machine_of(skips, tables_of(1))
    machine.run(0)
    machine.run(0, len(skips) - 1)
    with pytest.raises(HazardError, match="got no vector at position 1"):
        machine.run(0, 1)
    # Somebody wrote an infinity over a key.
    machine = machine_of(body("bf16"), tables_of(1))
    machine.run(0)
    machine.memory[KEYS:KEYS + 2] = [0x80, 0x7F]
    with pytest.raises(HazardError, match="A cache holds an infinity or a NaN"):
        machine.run(0, 1)
