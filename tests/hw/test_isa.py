"""Instructions as bytes, as text, and back."""

import dataclasses
import re

import numpy as np
import pytest

from hw.isa import (
    FIELDS,
    FUNCTIONS,
    INSTRUCTION_BYTES,
    USED,
    Fault,
    Function,
    Instruction,
    Opcode,
    decode,
    disassemble,
    encode,
)


def random_instruction(rng, opcode):
    fields = {name: int(rng.integers(0, 2 ** FIELDS[name])) for name in USED[opcode]}
    if "function" in fields:
        fields["function"] = int(rng.choice(FUNCTIONS[opcode]))
    return Instruction(opcode=opcode, **fields)


def test_fields_fill_an_instruction():
    assert sum(FIELDS.values()) == 8 * INSTRUCTION_BYTES
    assert list(FIELDS) == [field.name for field in dataclasses.fields(Instruction)]


def test_every_opcode_has_its_fields():
    assert set(USED) == set(Opcode)
    assert set(FUNCTIONS) == {opcode for opcode, used in USED.items() if "function" in used}
    assert {function for functions in FUNCTIONS.values() for function in functions} == set(Function)
    for used in USED.values():
        assert set(used) <= set(FIELDS) - {"opcode"}


def test_every_fault_is_a_sentence():
    assert len({fault.sentence for fault in Fault}) == len(Fault)


@pytest.mark.parametrize("opcode", Opcode)
def test_round_trip(opcode):
    rng = np.random.default_rng(seed=int(opcode))
    for _ in range(50):
        instruction = random_instruction(rng, opcode)
        data = encode(instruction)
        assert len(data) == INSTRUCTION_BYTES
        assert decode(data) == instruction


def test_bit_positions():
    """Positions written out, little endian: opcode, function and count share four bytes."""
    instruction = Instruction(opcode=Opcode.VECTOR, function=Function.LMUL, target=0x0201, a=0x0403,
                              b=0x0605, count=0x090807)
    first = (0x10 | 0x12 << 5 | 0x090807 << 10).to_bytes(4, "little")
    assert encode(instruction) == first + bytes([1, 2, 3, 4, 5, 6, 0, 0, 0, 0, 0, 0])
    instruction = Instruction(opcode=Opcode.WRITE_BACK, constant=0x3F81)
    assert encode(instruction)[10:12] == b"\x81\x3F"
    instruction = Instruction(opcode=Opcode.MATMUL, address=0x04030201)
    assert encode(instruction)[12:] == bytes([1, 2, 3, 4])


@pytest.mark.parametrize(("instruction", "text"), [
    (Instruction(opcode=Opcode.STOP), "STOP"),
    (Instruction(opcode=Opcode.VECTOR, function=Function.LMUL, target=768, a=512, b=256, count=256),
     "VECTOR     LMUL target=768 a=512 b=256 count=256"),
    (Instruction(opcode=Opcode.QUANTIZE, function=0x1F, target=1, a=8, count=16),
     "QUANTIZE   function=0x1f target=1 a=8 count=16"),
    (Instruction(opcode=Opcode.QUANTIZE, function=Function.ADD, target=1, a=8, count=16),
     "QUANTIZE   function=0x10 target=1 a=8 count=16"),
    (Instruction(opcode=Opcode.QUANTIZE, function=Function.KEEP_TOP_K, target=1, a=8, b=16,
                 count=16,
                 constant=12), "QUANTIZE   KEEP_TOP_K target=1 a=8 b=16 count=16 constant=0xc"),
    (Instruction(opcode=Opcode.WRITE_BACK, function=Function.RELU, target=8, a=1, b=2, count=64,
                 constant=0x3F80), "WRITE_BACK RELU target=8 a=1 b=2 count=64 constant=0x3f80"),
    (Instruction(opcode=Opcode.LOAD, target=8, count=64, address=4096),
     "LOAD       target=8 count=64 address=0x1000"),
])
def test_disassemble(instruction, text):
    assert disassemble(instruction) == text


class TestErrors:
    @pytest.mark.parametrize(("field", "limit"), [
        ("a", 65535), ("count", 4194303), ("address", 4294967295)])
    def test_field_too_large(self, field, limit):
        with pytest.raises(ValueError, match=rf"^Field {field} of MATMUL must be in 0\.\.{limit}, "
                                             rf"not {limit + 1}$"):
            Instruction(opcode=Opcode.MATMUL, **{field: limit + 1})
        with pytest.raises(ValueError, match=r"not -1$"):
            Instruction(opcode=Opcode.MATMUL, **{field: -1})

    def test_field_without_use(self):
        with pytest.raises(ValueError, match=r"^Field count of TOKEN must be 0, not 3$"):
            Instruction(opcode=Opcode.TOKEN, count=3)

    def test_length(self):
        with pytest.raises(ValueError, match=r"^Instruction must have 16 bytes, not 15$"):
            decode(bytes(15))

    def test_opcode(self):
        known = ", ".join(f"{code:#04x}" for code in Opcode)
        with pytest.raises(ValueError, match=rf"^Opcode must be one of {re.escape(known)}, "
                                             rf"not 0x1f$"):
            decode(b"\x7f" + bytes(15))
