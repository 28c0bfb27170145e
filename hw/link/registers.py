"""The register map of the accelerator with AXI4-Lite control: for hardware, driver and docs.

This module imports no Amaranth. All registers have 32 bits and are read and written whole, at
addresses that are multiples of 4. docs/verilog.md has the table, made by :func:`table`, and the
order in which a driver uses them. What an access of the bus is answered with:

- DECERR at an address where there is no register, aligned or not;
- OKAY to a write with no strobe, which changes nothing;
- SLVERR to a write with some strobes, of a register that is only read, with a bit set outside of
  the register's fields or a number that the configuration has no room for, or while
  :attr:`Register.refused` says so; nothing changes then;
- SLVERR to a read of a register that is only written;
- OKAY otherwise.
"""

import dataclasses
import enum

from hw.config import INDEX_BITS

__all__ = ["ADDRESS_BITS", "DESCRIPTION_ADDRESS", "DESCRIPTION_BYTES", "IDENTIFICATION",
           "INTERRUPTS", "MAP_VERSION", "PAGE_BITS", "PROGRAM_WORDS", "REGISTERS", "RESULT_KINDS",
           "VLNV", "Access", "Field", "Register", "table"]

#: Vendor, library, name and version of the packaged core, by which drivers find it.
VLNV = "tally:tally:tally_axi_accelerator:1.0"

#: Bits of an address of the control port: 4 KiB.
ADDRESS_BITS = 12

#: What IDENTIFICATION holds: "TALY" in ASCII, the first letter in the lowest byte.
IDENTIFICATION = int.from_bytes(b"TALY", "little")

#: Major and minor version of this map. A driver refuses another major version; a minor version only
#: adds registers.
MAP_VERSION = (1, 0)

#: Where the description begins, and how much room it has.
DESCRIPTION_ADDRESS, DESCRIPTION_BYTES = 0x800, 0x800

#: The image begins at a multiple of ``2**PAGE_BITS`` bytes, over which no burst of AXI4 goes.
PAGE_BITS = 12

#: Words of an instruction, the lowest first.
PROGRAM_WORDS = tuple(f"PROGRAM_{number}" for number in range(4))

#: What an entry of the results is, by RESULT.kind.
RESULT_KINDS = ("top_k", "scale")


class Access(enum.Enum):
    """What a register takes part in."""

    READ = "read"
    WRITE = "write"
    BOTH = "read, write"


@dataclasses.dataclass(frozen=True)
class Field:
    """Some bits of a register.

    Attributes
    ----------
    name : str
    low, width : int
        Lowest bit, and how many.
    meaning : str
    signed : bool
        Whether it is a two's complement number.
    """

    name: str
    low: int
    width: int
    meaning: str
    signed: bool = False

    @property
    def mask(self) -> int:
        """Its bits of the register."""
        return ((1 << self.width) - 1) << self.low


@dataclasses.dataclass(frozen=True)
class Register:
    """One register.

    Attributes
    ----------
    name : str
    address : int
        In bytes.
    access : Access
    fields : tuple of Field
    refused : str
        When a write is answered with SLVERR although its value is one that the register takes.
    """

    name: str
    address: int
    access: Access
    fields: tuple[Field, ...]
    refused: str = ""

    @property
    def readable(self) -> bool:
        """Whether a read is answered with OKAY."""
        return self.access is not Access.WRITE

    @property
    def writable(self) -> bool:
        """Whether there is a write that is answered with OKAY."""
        return self.access is not Access.READ

    @property
    def mask(self) -> int:
        """Bits of the fields; all others are 0."""
        return sum(field.mask for field in self.fields)

    def pack(self, **values: int) -> int:
        """Return the word with these fields; those that are not given are 0.

        Raises
        ------
        ValueError
            If there is no such field, or a value does not fit it.
        """
        word = 0
        for name, value in values.items():
            field = next((field for field in self.fields if field.name == name), None)
            if field is None:
                raise ValueError(f"Register {self.name} has no field {name}")
            low = -(1 << field.width - 1) if field.signed else 0
            if not low <= value < low + (1 << field.width):
                raise ValueError(f"Field {name} of register {self.name} must be from {low} to "
                                 f"{low + (1 << field.width) - 1}, not {value}")
            word |= value << field.low & field.mask
        return word

    def unpack(self, word: int) -> dict[str, int]:
        """Return the fields of a word, {name: value}."""
        values = {}
        for field in self.fields:
            value = (word & field.mask) >> field.low
            if field.signed and value >> field.width - 1:
                value -= 1 << field.width
            values[field.name] = value
        return values


def _whole(name: str, meaning: str) -> tuple[Field, ...]:
    return (Field(name, 0, 32, meaning),)


_UNTIL_RESET = "unless STATUS.open is 1"
_READ, _WRITE, _BOTH = Access.READ, Access.WRITE, Access.BOTH

#: Why there is an interrupt: fields of INTERRUPT_ENABLE and INTERRUPT_STATUS.
INTERRUPTS = (
    Field("done", 0, 1, "a pass has ended without a fault"),
    Field("results", 1, 1, "the scale of a TOP_K, its last entry, is among the results"),
    Field("fault", 2, 1, "a fault has stopped the accelerator"),
)

#: All registers by name, in the order of their addresses.
REGISTERS = {register.name: register for register in (
    Register("IDENTIFICATION", 0x000, _READ, _whole("number", f"{IDENTIFICATION:#x}: TALY")),
    Register("VERSION", 0x004, _READ, (
        Field("minor", 0, 16, "of this map: a newer one has more registers"),
        Field("major", 16, 16, "a driver refuses one that it does not know"))),
    Register("CONFIGURATION", 0x008, _READ, _whole(
        "hash", "the configuration's; an image must have the same")),
    Register("DESCRIPTION", 0x00C, _READ, (
        Field("bytes", 0, 12, f"length of the JSON text from {DESCRIPTION_ADDRESS:#x} on"),)),
    Register("CONTROL", 0x010, _WRITE, (
        Field("reset", 0, 1, "1: the accelerator begins anew; program and memory stay"),
        Field("start", 1, 1, "1: a pass of TOKEN begins at instruction FIRST")),
        "with both bits; with `start` while STATUS has `busy`, `fault` or `resetting`"),
    Register("STATUS", 0x014, _READ, (
        Field("busy", 0, 1, "a pass is under way"),
        Field("fault", 1, 1, "a fault has stopped the accelerator: only a reset helps"),
        Field("results", 2, 1, "there is a result"),
        Field("open", 3, 1, "no pass has begun since the reset: program and base can be written"),
        Field("resetting", 4, 1, "`m_axi` still owes something of before the reset"))),
    Register("INTERRUPT_ENABLE", 0x018, _BOTH, INTERRUPTS),
    Register("INTERRUPT_STATUS", 0x01C, _BOTH, tuple(
        dataclasses.replace(field, meaning=f"{field.meaning}; a 1 that is written clears it")
        for field in INTERRUPTS)),
    Register("BASE_LOW", 0x020, _BOTH, (
        Field("address", PAGE_BITS, 32 - PAGE_BITS, "bits 31 to 12 of the image's address"),),
        _UNTIL_RESET),
    Register("BASE_HIGH", 0x024, _BOTH, _whole("address", "bits 63 to 32 of the image's address"),
             _UNTIL_RESET),
    Register("PROGRAM_INDEX", 0x030, _BOTH, (
        Field("index", 0, 17, "of the instruction that is written next"),)),
    Register("TOKEN", 0x034, _BOTH, (Field("token", 0, INDEX_BITS, "of the next pass"),),
             "until a pass that was started has begun, a few cycles"),
    Register("FIRST", 0x038, _BOTH, (
        Field("instruction", 0, 16, "at which the next pass begins: 0 for a new sequence"),),
        "as TOKEN"),
    *(Register(name, 0x040 + 4 * number, _WRITE, _whole(
        "word", f"bits {32 * number + 31} to {32 * number} of the instruction"
        + ("; it is written, and PROGRAM_INDEX goes one up" if number == 3 else "")),
        f"{_UNTIL_RESET}, or if PROGRAM_INDEX is behind the last instruction" if number == 3
        else "") for number, name in enumerate(PROGRAM_WORDS)),
    Register("RESULTS", 0x050, _READ, (Field("count", 0, 16, "of the results that wait here"),)),
    Register("RESULT", 0x054, _READ, (
        Field("valid", 0, 1, "there is an oldest result; if not, all its fields are 0"),
        Field("kind", 1, 1, "0: one of the largest logits; 1: their scale, behind them"))),
    Register("RESULT_INDEX", 0x058, _READ, (
        Field("index", 0, 16, "row of the logit, or bf16 number of the scale"),)),
    Register("RESULT_VALUE", 0x05C, _READ, (
        Field("value", 0, 32, "integer logit, or the scale's power of two; two's complement",
              signed=True),)),
    Register("RESULT_POP", 0x060, _WRITE, (Field("pop", 0, 1, "1: the oldest result leaves"),),
             "with `pop` if there is no result"),
    Register("FAULT", 0x070, _READ, (
        Field("fault", 0, 8, "why the accelerator stopped (machine.md); 0 for no fault"),)),
    Register("FAULT_INSTRUCTION", 0x074, _READ, (
        Field("index", 0, 17, "of the instruction that was executed"),)),
    Register("FAULT_ACCESS", 0x078, _READ, (
        Field("response", 0, 2, "of `m_axi`: 2 is SLVERR, 3 is DECERR; 0 for other faults"),
        Field("write", 2, 1, "1: to a write, 0: to a read"))),
    Register("FAULT_ADDRESS", 0x07C, _READ, _whole(
        "address", "that was answered so, from the beginning of the image on")),
    Register("CYCLES", 0x080, _READ, _whole("cycles", "of the latest pass, modulo 2^32")),
    Register("READS", 0x084, _READ, _whole(
        "transfers", "on R during the latest pass, modulo 2^32")),
    Register("WRITES", 0x088, _READ, _whole(
        "transfers", "on W during the latest pass, modulo 2^32")),
    Register("WAITS", 0x08C, _READ, _whole(
        "cycles", "of the latest pass in which R owed data and had none, modulo 2^32")),
)}


def table() -> str:
    """Return the map as a table in Markdown, a line for each field."""
    lines = ["| address | register | access | bits | field | meaning | write refused |",
             "|---|---|---|---|---|---|---|"]
    for register in REGISTERS.values():
        begins = (f"`{register.address:#05x}`", f"`{register.name}`", register.access.value)
        refused = register.refused
        for field in register.fields:
            high = field.low + field.width - 1
            bits = f"{high}" if field.width == 1 else f"{high}:{field.low}"
            lines.append("| " + " | ".join((*begins, bits, f"`{field.name}`", field.meaning,
                                            refused)) + " |")
            begins, refused = ("", "", ""), ""
    end = DESCRIPTION_ADDRESS + DESCRIPTION_BYTES - 4
    lines.append(f"| `{DESCRIPTION_ADDRESS:#05x}` to `{end:#05x}` | | read | 31:0 | | the "
                 f"description, JSON in ASCII, the first letter in the lowest byte; 0 behind its "
                 f"end | |")
    return "\n".join(lines) + "\n"
