"""A compiled model: its program, what lies in the device's memory, and the file that holds both.

The file: 8 bytes :data:`MAGIC`, the header's length and its CRC-32 (4 bytes each, little endian),
the header, the program, the memory. The header is JSON: the configuration with its fingerprint,
facts about the model, and the table of parts with the CRC-32 of each. Where the vocabulary is
divided into ranges, the version in the first 8 bytes is one higher: a driver that knows none would
send what is no column.
"""

import bisect
import dataclasses
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

from host.errors import TallyError
from host.text.vocabulary import Vocabulary
from hw.config import CoreConfig, EngineConfig
from hw.isa import INSTRUCTION_BYTES, Instruction, Opcode, decode, disassemble, encode
from hw.order import OrderError, check_order

__all__ = ["Image", "ImageError", "Part", "Program", "check_configuration", "is_image", "listing",
           "read_image", "write_image"]

MAGIC = b"TALLY\x00\x03\n"
_MAGIC_RANGES = b"TALLY\x00\x04\n"
_LENGTHS = struct.Struct("<II")


class ImageError(TallyError, ValueError):
    """An image cannot be used; the message is one line that names file, place and reason."""


@dataclasses.dataclass(frozen=True)
class Program:
    """Instructions, and what the host must know of them.

    Attributes
    ----------
    instructions : tuple of Instruction
    notes : tuple of str
        What each instruction is for.
    body : int
        Where a token begins that continues a sequence; of ranges, one of the last, which has the
        longest way. A new sequence begins at 0.
    heads : tuple of (first row, rows)
        Rows of the head that each EMIT covers.
    vectors : dict of (first element, elements)
        Vector memory by name.
    prefill : tuple of int
        Where the passes begin that read tokens of a prompt together: the first token of a new
        sequence, then the first, second, ... token of a sequence that goes on. Empty if each token
        is read on its own.
    ranges : tuple of (first token, start, announced)
        Of a vocabulary with more tokens than a product has columns, its ranges in order: its first
        token, where a token of it begins that continues a sequence, and where the pass begins that
        comes before one that begins a sequence. Empty if it is not divided.
    """

    instructions: tuple[Instruction, ...]
    notes: tuple[str, ...]
    body: int
    heads: tuple[tuple[int, int], ...]
    vectors: dict[str, tuple[int, int]]
    prefill: tuple[int, ...] = ()
    ranges: tuple[tuple[int, int, int], ...] = ()

    @property
    def prefill_tokens(self) -> int:
        """Tokens of a prompt that are read together."""
        return max(1, len(self.prefill) - 1)

    def start(self, *, new: bool, slot: int | None = None) -> int:
        """Where a pass begins: that of a token, or of token ``slot`` of those read together.

        It knows no ranges; :meth:`passes` does.
        """
        if slot is None:
            return 0 if new else self.body
        return self.prefill[0 if new and slot == 0 else 1 + slot]

    def passes(self, token: int, *, new: bool,
               slot: int | None = None) -> tuple[tuple[int, int], ...]:
        """Return the passes that a token takes: each {what is sent for the token, start}.

        There are two where a sequence begins with a token of a range. A position is counted for
        each pass, and 0 is that of a pass at instruction 0; so the range is announced before that.
        The last pass delivers the logits.
        """
        if not self.ranges:
            return (token, self.start(new=new, slot=slot)),
        first, start, announced = self.ranges[
            bisect.bisect(self.ranges, token, key=lambda entry: entry[0]) - 1]
        column = token - first
        return ((column, announced), (column, 0)) if new else ((column, start),)

    @property
    def starts(self) -> tuple[int, ...]:
        """Where passes begin."""
        ranges = [start for _, *starts in self.ranges for start in starts]
        return tuple(dict.fromkeys((0, self.body, *self.prefill, *ranges)))

    def token(self) -> tuple[Instruction, ...]:
        """Return the instructions of a token that continues a sequence, up to their STOP."""
        return self._pass(self.body)

    def emissions(self, start: int) -> int:
        """Count what a pass from ``start`` on delivers."""
        return sum(instruction.opcode is Opcode.EMIT for instruction in self._pass(start))

    def _pass(self, start: int) -> tuple[Instruction, ...]:
        stop = next((index for index in range(start, len(self.instructions))
                     if self.instructions[index].opcode is Opcode.STOP), len(self.instructions))
        return self.instructions[start:stop + 1]

    def encoded(self) -> bytes:
        """Return the program as the device takes it."""
        return b"".join(map(encode, self.instructions))


@dataclasses.dataclass(frozen=True)
class Part:
    """What lies where in the memory.

    Attributes
    ----------
    name : str
    kind : str
        ``trits`` or ``vector``.
    address, bytes : int
        ``address`` is a multiple of ``port_bytes``.
    trits : int
        Trits of a matrix that have a meaning; 0 of a vector.
    """

    name: str
    kind: str
    address: int
    bytes: int
    trits: int


@dataclasses.dataclass(frozen=True, eq=False)
class Image:
    """All that a device of one configuration needs to run one model.

    Attributes
    ----------
    config : CoreConfig
    model : str
        Name of the model.
    vocab : int
        Tokens are below this.
    program : Program
    parts : tuple of Part
        In the order of their addresses.
    memory : bytes
        From address 0.
    vocabulary : Vocabulary or None
        What the tokens are, if the model knows it.
    context : int
        Tokens of a sequence at most; 0 if there is no limit.
    room : int
        Bytes behind ``memory`` that the program uses, and writes before it reads them.
    """

    config: CoreConfig
    model: str
    vocab: int
    program: Program
    parts: tuple[Part, ...]
    memory: bytes
    vocabulary: Vocabulary | None = None
    context: int = 0
    room: int = 0

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory that the program uses."""
        return len(self.memory) + self.room


def listing(program: Program) -> str:
    """Print a program for people: index, instruction, what it is for."""
    lines = []
    labels = {program.body: ["body:"]}
    for first, start, announced in program.ranges:
        labels.setdefault(start, []).append(f"token from {first}:")
        labels.setdefault(announced, []).append(f"new sequence, token from {first}:")
    for index, (instruction, note) in enumerate(
            zip(program.instructions, program.notes, strict=True)):
        lines += labels.get(index, [])
        lines.append(f"{index:5}  {disassemble(instruction):72}  ; {note}")
    return "\n".join(lines)


def write_image(path: str | os.PathLike, image: Image) -> None:
    """Write an image to a file."""
    program, ranges = image.program.encoded(), image.program.ranges
    header = json.dumps({
        "configuration": dataclasses.asdict(image.config),
        "fingerprint": f"{image.config.fingerprint():08x}",
        "model": image.model,
        "vocab": image.vocab,
        "vocabulary": image.vocabulary and dataclasses.asdict(image.vocabulary),
        "program": {"bytes": len(program), "crc32": zlib.crc32(program),
                    "body": image.program.body, "heads": image.program.heads,
                    "notes": image.program.notes, "vectors": image.program.vectors,
                    "prefill": image.program.prefill} | ({"ranges": ranges} if ranges else {}),
        "memory_bytes": len(image.memory),
        "context": image.context,
        "room": image.room,
        "parts": [dataclasses.asdict(part) | {"crc32": _crc(image.memory, part)}
                  for part in image.parts],
    }).encode()
    with open(path, "wb") as file:
        file.write(_MAGIC_RANGES if ranges else MAGIC)
        file.write(_LENGTHS.pack(len(header), zlib.crc32(header)))
        file.write(header)
        file.write(program)
        file.write(image.memory)


def _crc(memory: bytes, part: Part) -> int:
    return zlib.crc32(memory[part.address:part.address + part.bytes])


def is_image(path: str | os.PathLike) -> bool:
    """Whether a file begins like an image, of whatever version."""
    with open(path, "rb") as file:
        return file.read(6) == MAGIC[:6]


def check_configuration(what: str, made_for: CoreConfig, device: CoreConfig) -> None:
    """Refuse an image that was made for another configuration.

    Raises
    ------
    ImageError
        If the device would compute something else; it begins with ``what`` and names the fields.
    """
    if made_for.fingerprint() != device.fingerprint():
        theirs, ours = _flat(made_for), _flat(device)
        differences = [f"{name} {theirs[name]!r} (the device has {ours[name]!r})"
                       for name in theirs if theirs[name] != ours[name] and name != "target"]
        raise ImageError(f"{what}: made for another configuration: {', '.join(differences)}")


def read_image(path: str | os.PathLike, config: CoreConfig | None = None) -> Image:
    """Read an image and check every part of it.

    Parameters
    ----------
    path : path
    config : CoreConfig, optional
        Of the device that it is for.

    Raises
    ------
    ImageError
        If the file cannot be opened, is no image, is damaged, or was made for a configuration
        under which the device would compute something else; or if its program has an order of
        instructions that the device would wait in for ever.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from None
    if data[:len(MAGIC)] not in (MAGIC, _MAGIC_RANGES):
        raise ImageError(f"{path}: not an image: it must begin with {MAGIC!r}, "
                         f"not {data[:len(MAGIC)]!r}")
    start = len(MAGIC) + _LENGTHS.size
    if len(data) < start:
        raise ImageError(f"{path}: truncated: the header begins at byte {start}, "
                         f"the file has {len(data)}")
    length, crc = _LENGTHS.unpack_from(data, len(MAGIC))
    header = _section(path, data, "the header", start, length, crc)
    fields = json.loads(header)
    made_for = CoreConfig(**fields["configuration"]
                          | {"engine": EngineConfig(**fields["configuration"]["engine"])})
    if config is not None:
        check_configuration(str(path), made_for, config)

    start += length
    facts = fields["program"]
    program = _section(path, data, "the program", start, facts["bytes"], facts["crc32"])
    start += facts["bytes"]
    parts = []
    for entry in fields["parts"]:
        crc = entry.pop("crc32")
        part = Part(**entry)
        _section(path, data, f"part {part.name}", start + part.address, part.bytes, crc)
        parts.append(part)
    memory = data[start:start + fields["memory_bytes"]]
    # Arrays of JSON are lists, those of a vocabulary tuples.
    words: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value
                             for key, value in (fields["vocabulary"] or {}).items()}
    image = Image(
        config=config or made_for, model=fields["model"], vocab=fields["vocab"],
        program=Program(
            instructions=tuple(decode(program[k:k + INSTRUCTION_BYTES])
                               for k in range(0, len(program), INSTRUCTION_BYTES)),
            notes=tuple(facts["notes"]), body=facts["body"],
            heads=tuple((first, rows) for first, rows in facts["heads"]),
            vectors={name: (first, count) for name, (first, count) in facts["vectors"].items()},
            prefill=tuple(facts["prefill"]),
            ranges=tuple((first, start, announced)
                         for first, start, announced in facts.get("ranges", ()))),
        parts=tuple(parts), memory=memory,
        vocabulary=Vocabulary(**words) if words else None, context=fields["context"],
        room=fields["room"])
    try:
        check_order(image.config, image.program.instructions, image.program.starts)
    except OrderError as error:
        raise ImageError(f"{path}: its program cannot be executed: {error}") from None
    return image


def _section(path: Path, data: bytes, what: str, start: int, length: int, crc: int) -> bytes:
    if start + length > len(data):
        raise ImageError(f"{path}: truncated: {what} ends at byte {start + length}, "
                         f"the file has {len(data)}")
    section = data[start:start + length]
    actual = zlib.crc32(section)
    if actual != crc:
        raise ImageError(f"{path}: damaged: {what} must have the CRC-32 {crc:08x}, "
                         f"not {actual:08x}")
    return section


def _flat(config: CoreConfig) -> dict[str, Any]:
    fields = dataclasses.asdict(config)
    return fields.pop("engine") | fields
