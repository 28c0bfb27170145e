"""The register map: places that do not overlap, packing, and the table in docs/verilog.md."""

import itertools
from pathlib import Path

import pytest

from hw.config import AcceleratorConfig
from hw.link.control import ControlRegisters, description
from hw.link.registers import (
    ADDRESS_BITS,
    DESCRIPTION_ADDRESS,
    DESCRIPTION_BYTES,
    REGISTERS,
    Access,
    table,
)

DOCS = Path(__file__).parents[3] / "docs" / "verilog.md"


def test_addresses_are_aligned_and_in_order():
    addresses = [register.address for register in REGISTERS.values()]
    assert all(address % 4 == 0 for address in addresses)
    assert all(a < b for a, b in itertools.pairwise(addresses))
    assert addresses[-1] < DESCRIPTION_ADDRESS
    assert DESCRIPTION_ADDRESS + DESCRIPTION_BYTES == 1 << ADDRESS_BITS
    assert all(name == register.name for name, register in REGISTERS.items())


def test_fields_do_not_overlap():
    for register in REGISTERS.values():
        assert register.fields
        assert sum(field.width for field in register.fields) == register.mask.bit_count()
        assert register.mask < 1 << 32
        assert len({field.name for field in register.fields}) == len(register.fields)


def test_a_write_that_is_refused_is_one_of_a_register_that_is_written():
    assert all(register.writable for register in REGISTERS.values() if register.refused)
    assert not REGISTERS["STATUS"].writable
    assert not REGISTERS["CONTROL"].readable
    assert {register.access for register in REGISTERS.values()} == set(Access)


def test_packing():
    status = REGISTERS["STATUS"]
    assert status.unpack(status.pack(busy=1, open=1)) == {
        "busy": 1, "fault": 0, "results": 0, "open": 1, "resetting": 0}
    assert REGISTERS["BASE_LOW"].pack(address=0x12345) == 0x1234_5000
    value = REGISTERS["RESULT_VALUE"]
    assert value.pack(value=-2) == 0xFFFF_FFFE
    assert [value.unpack(word)["value"] for word in (0x7FFF_FFFF, 0x8000_0000)] == [
        2 ** 31 - 1, -2 ** 31]


@pytest.mark.parametrize(("name", "fields", "message"), [
    ("CONTROL", {"stop": 1}, "Register CONTROL has no field stop"),
    ("CONTROL", {"start": 2}, "Field start of register CONTROL must be from 0 to 1, not 2"),
    ("TOKEN", {"token": -1}, "Field token of register TOKEN must be from 0 to 4194303, not -1"),
    ("RESULT_VALUE", {"value": 1 << 31},
     "Field value of register RESULT_VALUE must be from -2147483648 to 2147483647, "
     "not 2147483648")])
def test_what_does_not_fit_is_refused(name, fields, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        REGISTERS[name].pack(**fields)


def test_the_table_in_docs_is_that_of_the_map():
    """Print it with ``python -c 'from hw.link.registers import table; print(table())'``."""
    text = DOCS.read_text()
    assert table() in text
    assert text.count("| address | register |") == 1


def test_room_of_programs_and_description():
    assert len(description(AcceleratorConfig())) < DESCRIPTION_BYTES
    with pytest.raises(ValueError, match="Program depth must be at most 65536 behind registers"):
        ControlRegisters(AcceleratorConfig(program_depth=1 << 17))
