"""A compiled model: its program, what lies in the device's memory, and the file that holds both.

The file: 8 bytes :data:`MAGIC`, the header's length and its CRC-32 (4 bytes each, little endian),
the header, the program, the memory. The header is JSON: the configuration with its
configuration_hash, facts about the model, and the table of parts with the CRC-32 of each.
"""

import dataclasses
import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from host.checks import LONGEST_JSON, FileError, JSONError, parse_json, printable
from host.text.splits import SPLITS
from host.text.vocabulary import LONGEST_TEMPLATE, Vocabulary, wrong_merges, wrong_tokens
from hw.config import INDEX_BITS, AcceleratorConfig, EngineConfig
from hw.isa import INSTRUCTION_BYTES, Instruction, Opcode, decode, disassemble, encode
from hw.order import OrderError, check_order

__all__ = ["Image", "ImageError", "Part", "Program", "check_configuration", "is_image", "listing",
           "read_image", "write_image"]

MAGIC = b"TALLY\x00\x05\n"
_LENGTHS = struct.Struct("<II")

# Bounds of a header's numbers; a program of SmolLM2 has some thousand instructions.
_MOST_INSTRUCTIONS = 1 << 16
_MOST_VOCAB = 1 << INDEX_BITS
_LARGEST_CRC = (1 << 32) - 1
_LARGEST_FIELD = 1 << 24        # of a configuration

class ImageError(FileError):
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
        Where a token begins that continues a sequence. A new sequence begins at 0.
    heads : tuple of (first row, rows)
        Rows of the head that each TOP_K covers.
    vectors : dict of (first element, elements)
        Vector memory by name.
    prefill : tuple of int
        Where the passes begin that read tokens of a prompt together: the first token of a new
        sequence, then the first, second, ... token of a sequence that goes on. Empty if each token
        is read on its own.
    """

    instructions: tuple[Instruction, ...]
    notes: tuple[str, ...]
    body: int
    heads: tuple[tuple[int, int], ...]
    vectors: dict[str, tuple[int, int]]
    prefill: tuple[int, ...] = ()

    @property
    def prefill_tokens(self) -> int:
        """Tokens of a prompt that are read together."""
        return max(1, len(self.prefill) - 1)

    def start(self, *, new: bool, slot: int | None = None) -> int:
        """Where a pass begins: that of a token, or of token ``slot`` of those read together."""
        if slot is None:
            return 0 if new else self.body
        return self.prefill[0 if new and slot == 0 else 1 + slot]

    @property
    def starts(self) -> tuple[int, ...]:
        """Where passes begin."""
        return tuple(dict.fromkeys((0, self.body, *self.prefill)))

    def token(self) -> tuple[Instruction, ...]:
        """Return the instructions of a token that continues a sequence, up to their STOP."""
        return self._pass(self.body)

    def emissions(self, start: int) -> int:
        """Count what a pass from ``start`` on delivers."""
        return sum(instruction.opcode is Opcode.TOP_K for instruction in self._pass(start))

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
    config : AcceleratorConfig
    model : str
        Name of the model.
    vocab : int
        Tokens are below this.
    program : Program
    parts : tuple of Part
        In the order of their addresses.
    memory : bytes or memoryview
        From address 0.
    vocabulary : Vocabulary or None
        What the tokens are, if the model knows it.
    context : int
        Tokens of a sequence at most; 0 if there is no limit.
    room : int
        Bytes behind ``memory`` that the program uses, and writes before it reads them.
    """

    config: AcceleratorConfig
    model: str
    vocab: int
    program: Program
    parts: tuple[Part, ...]
    memory: bytes | memoryview
    vocabulary: Vocabulary | None = None
    context: int = 0
    room: int = 0

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory that the program uses."""
        return len(self.memory) + self.room

    def contents(self) -> bytes:
        """Copy all memory that the program uses; what it writes before it reads is 0."""
        return b"".join((self.memory, bytes(self.room)))


def listing(program: Program) -> str:
    """Print a program for people: index, instruction, what it is for."""
    lines = []
    for index, (instruction, note) in enumerate(
            zip(program.instructions, program.notes, strict=True)):
        if index == program.body:
            lines.append("body:")
        lines.append(f"{index:5}  {disassemble(instruction):72}  ; {printable(note)}")
    return "\n".join(lines)


def write_image(path: str | os.PathLike, image: Image) -> None:
    """Write an image to a file."""
    program = image.program.encoded()
    header = json.dumps({
        "configuration": dataclasses.asdict(image.config),
        "configuration_hash": f"{image.config.configuration_hash():08x}",
        "model": image.model,
        "vocab": image.vocab,
        "vocabulary": image.vocabulary and dataclasses.asdict(image.vocabulary),
        "program": {"bytes": len(program), "crc32": zlib.crc32(program),
                    "body": image.program.body, "heads": image.program.heads,
                    "notes": image.program.notes, "vectors": image.program.vectors,
                    "prefill": image.program.prefill},
        "memory_bytes": len(image.memory),
        "context": image.context,
        "room": image.room,
        "parts": [dataclasses.asdict(part) | {"crc32": _crc(image.memory, part)}
                  for part in image.parts],
    }).encode()
    with open(path, "wb") as file:
        file.write(MAGIC)
        file.write(_LENGTHS.pack(len(header), zlib.crc32(header)))
        file.write(header)
        file.write(program)
        file.write(image.memory)


def _crc(memory: bytes | memoryview, part: Part) -> int:
    return zlib.crc32(memory[part.address:part.address + part.bytes])


def is_image(path: str | os.PathLike) -> bool:
    """Whether a file begins like an image, of whatever version."""
    with open(path, "rb") as file:
        return file.read(6) == MAGIC[:6]


def check_configuration(what: str, made_for: AcceleratorConfig, device: AcceleratorConfig) -> None:
    """Refuse an image that was made for another configuration.

    Raises
    ------
    ImageError
        If the device would compute something else; it begins with ``what`` and names the fields.
    """
    if made_for.configuration_hash() != device.configuration_hash():
        theirs, ours = _flat(made_for), _flat(device)
        differences = [f"{name} {theirs[name]!r} (the device has {ours[name]!r})"
                       for name in theirs if theirs[name] != ours[name] and name != "target"]
        raise ImageError(f"{what}: made for another configuration: {', '.join(differences)}")


def read_image(path: str | os.PathLike, config: AcceleratorConfig | None = None, *,
               mapped: bool = False) -> Image:
    """Read an image and check every part of it.

    Parameters
    ----------
    path : path
    config : AcceleratorConfig, optional
        Of the device that it is for.
    mapped : bool
        Leave the memory in the file, which the system reads as it is needed: nobody may write to
        that file as long as the image is used, but it may be replaced or removed.

    Raises
    ------
    ImageError
        If the file cannot be opened, is no image, is damaged, or was made for a configuration
        under which the device would compute something else; or if its program has an order of
        instructions that the device would wait in for ever.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            return _read(path, file, os.fstat(file.fileno()).st_size, config, mapped)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from None


def _read(path: Path, file: BinaryIO, size: int, config: AcceleratorConfig | None,
          mapped: bool) -> Image:
    begin = file.read(len(MAGIC) + _LENGTHS.size)
    if begin[:6] == MAGIC[:6] and begin[:len(MAGIC)] != MAGIC:
        raise ImageError(f"{path}: an image of version {begin[7]}, but this driver reads version "
                         f"{MAGIC[7]}: compile the model again")
    if begin[:len(MAGIC)] != MAGIC:
        raise ImageError(f"{path}: not an image: it must begin with {MAGIC!r}, "
                         f"not {begin[:len(MAGIC)]!r}")
    start = len(MAGIC) + _LENGTHS.size
    if size < start:
        raise ImageError(f"{path}: truncated: the header begins at byte {start}, "
                         f"the file has {size}")
    length, crc = _LENGTHS.unpack_from(begin, len(MAGIC))
    if length > LONGEST_JSON:
        raise ImageError(f"{path}: the header must have at most {LONGEST_JSON} bytes, "
                         f"not {length}")
    _check_end(path, size, "the header", start + length)
    header = file.read(length)
    _check_crc(path, header, "the header", crc)
    try:
        fields = _Fields(path, "", parse_json(header))
    except JSONError as error:
        raise ImageError(f"{path}: the header is not JSON: {error}") from None
    made_for = _configuration(path, fields)
    if config is not None:
        check_configuration(str(path), made_for, config)

    start += length
    facts = fields.object("program")
    length = facts.integer("bytes", INSTRUCTION_BYTES, _MOST_INSTRUCTIONS * INSTRUCTION_BYTES)
    _check_end(path, size, "the program", start + length)
    encoded = file.read(length)
    _check_crc(path, encoded, "the program", facts.integer("crc32", 0, _LARGEST_CRC))
    program = _program(path, facts, encoded)

    start += length
    memory_bytes = fields.integer("memory_bytes", 0, made_for.memory_bytes)
    parts, checks, end = [], [], 0
    for entry in fields.objects("parts"):
        part = Part(name=entry.text("name"), kind=entry.text("kind"),
                    address=entry.integer("address", end, memory_bytes),
                    bytes=entry.integer("bytes", 0, memory_bytes),
                    trits=entry.integer("trits", 0, 5 * memory_bytes))
        end = part.address + part.bytes
        if end > memory_bytes:
            raise entry.error(f"part {part.name} must end within the memory's {memory_bytes} "
                              f"bytes, not at {end}")
        _check_end(path, size, f"part {part.name}", start + end)
        parts.append(part)
        checks.append(entry.integer("crc32", 0, _LARGEST_CRC))
    if start + memory_bytes != size:
        raise ImageError(f"{path}: must have {start + memory_bytes} bytes, as its header says, "
                         f"not {size}")
    memory: bytes | memoryview
    if mapped:
        memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[start:]
    else:
        memory = file.read(memory_bytes)
    for part, crc in zip(parts, checks, strict=True):
        _check_crc(path, memoryview(memory)[part.address:part.address + part.bytes],
                   f"part {part.name}", crc)
    vocab = fields.integer("vocab", 1, _MOST_VOCAB)
    image = Image(
        config=config or made_for, model=fields.text("model"), vocab=vocab, program=program,
        parts=tuple(parts), memory=memory, vocabulary=_vocabulary(fields, vocab),
        context=fields.integer("context", 0, 1 << 30),
        room=fields.integer("room", 0, made_for.memory_bytes - memory_bytes))
    try:
        check_order(image.config, image.program.instructions, image.program.starts)
    except OrderError as error:
        raise ImageError(f"{path}: its program cannot be executed: {error}") from None
    return image


class _Fields:
    """Fields of an object of the header, each checked as it is asked for."""

    def __init__(self, path: Path, place: str, fields: object):
        self._path = path
        self._place = place
        if not isinstance(fields, dict):
            raise self.error(f"{place[:-1] or 'it'} must be an object, not {fields!r:.80}")
        self.fields: dict[str, Any] = fields

    def error(self, message: str) -> ImageError:
        return ImageError(f"{self._path}: the header: {message}")

    def _wrong(self, name: str, must: str) -> ImageError:
        return self.error(f"field {self._place}{name} must be {must}, "
                          f"not {self.fields.get(name)!r:.80}")

    def integer(self, name: str, least: int, most: int) -> int:
        value = self.fields.get(name)
        if type(value) is not int or not least <= value <= most:
            raise self._wrong(name, f"an integer from {least} to {most}")
        return value

    def text(self, name: str) -> str:
        value = self.fields.get(name)
        if not isinstance(value, str):
            raise self._wrong(name, "a text")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.fields.get(name)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self._wrong(name, "an array of texts")
        return tuple(value)

    def object(self, name: str) -> "_Fields":
        return _Fields(self._path, f"{self._place}{name}.", self.fields.get(name))

    def objects(self, name: str) -> Iterator["_Fields"]:
        value = self.fields.get(name)
        if not isinstance(value, list):
            raise self._wrong(name, "an array of objects")
        for index, entry in enumerate(value):
            yield _Fields(self._path, f"{self._place}{name}[{index}].", entry)

    def integers(self, name: str, most: int) -> tuple[int, ...]:
        value = self.fields.get(name)
        if not _are_integers(value, most):
            raise self._wrong(name, f"an array of integers from 0 to {most}")
        return tuple(value)         # type: ignore[arg-type]

    def rows(self, name: str, columns: int, most: int) -> tuple[tuple[int, ...], ...]:
        value = self.fields.get(name, [])
        if not isinstance(value, list) or not all(
                _are_integers(row, most) and len(row) == columns for row in value):
            raise self._wrong(name, f"an array of arrays of {columns} integers from 0 to {most}")
        return tuple(map(tuple, value))


def _are_integers(value: object, most: int) -> bool:
    return isinstance(value, list) and all(type(entry) is int and 0 <= entry <= most
                                           for entry in value)


def _configuration(path: Path, fields: _Fields) -> AcceleratorConfig:
    facts = fields.object("configuration")
    engine = facts.object("engine")
    for place in (facts, engine):
        for name, value in place.fields.items():
            if type(value) is int:
                place.integer(name, 0, _LARGEST_FIELD)
    try:
        return AcceleratorConfig(**facts.fields | {"engine": EngineConfig(**engine.fields)})
    except (TypeError, ValueError) as error:
        raise ImageError(f"{path}: the header: configuration: {error}") from None


def _program(path: Path, facts: _Fields, encoded: bytes) -> Program:
    if len(encoded) % INSTRUCTION_BYTES:
        raise facts.error(f"field program.bytes must be a multiple of {INSTRUCTION_BYTES}, "
                          f"not {len(encoded)}")
    instructions = []
    for index in range(len(encoded) // INSTRUCTION_BYTES):
        begin = index * INSTRUCTION_BYTES
        try:
            instructions.append(decode(encoded[begin:begin + INSTRUCTION_BYTES]))
        except ValueError as error:
            raise ImageError(f"{path}: instruction {index}: {error}") from None
    last = len(instructions) - 1
    notes = facts.texts("notes")
    if len(notes) != len(instructions):
        raise facts.error(f"field program.notes must have {len(instructions)} entries, "
                          f"not {len(notes)}")
    vectors = facts.object("vectors")
    places = {}
    for name in vectors.fields:
        places[name] = vectors.integers(name, 1 << 16)
        if len(places[name]) != 2:
            raise facts.error(f"field program.vectors.{name} must have 2 integers, "
                              f"not {len(places[name])}")
    return Program(
        instructions=tuple(instructions), notes=notes, body=facts.integer("body", 0, last),
        heads=tuple((first, rows) for first, rows in facts.rows("heads", 2, _MOST_VOCAB)),
        vectors={name: (first, count) for name, (first, count) in places.items()},
        prefill=facts.integers("prefill", last))


def _vocabulary(fields: _Fields, vocab: int) -> Vocabulary | None:
    if fields.fields.get("vocabulary") is None:
        return None
    words = fields.object("vocabulary")
    tokens, merges = words.texts("tokens"), words.texts("merges")
    if len(tokens) > vocab:
        raise words.error(f"field vocabulary.tokens must have at most {vocab} entries, "
                          f"not {len(tokens)}")
    last = len(tokens) - 1
    found = Vocabulary(
        tokens=tokens, merges=merges, end_of_document=words.integer("end_of_document", 0, last),
        first=None if words.fields.get("first") is None else words.integer("first", 0, last),
        prompted=words.fields.get("prompted") is not False, split=words.text("split"),
        controls=words.integers("controls", last),
        template=words.text("template") if words.fields.get("template") is not None else None,
        opened=words.fields.get("opened") is not False,
        **{name: words.integers(name, last) for name in ("ends", "user", "stripped")
           if name in words.fields})
    if found.template and len(found.template) > LONGEST_TEMPLATE:
        raise words.error(f"field vocabulary.template must have at most {LONGEST_TEMPLATE} "
                          f"characters, not {len(found.template)}")
    if found.split not in SPLITS:
        raise words.error(f"field vocabulary.split must be one of {', '.join(SPLITS)}, "
                          f"not {found.split!r}")
    silent = {found.end_of_document, *found.controls}
    for name, wrong in (("tokens", wrong_tokens(tokens)),
                        ("merges", wrong_merges(tokens, merges, silent))):
        if wrong:
            raise words.error(f"field vocabulary.{name} {wrong}")
    return found


def _check_end(path: Path, size: int, what: str, end: int) -> None:
    if end > size:
        raise ImageError(f"{path}: truncated: {what} ends at byte {end}, the file has {size}")


def _check_crc(path: Path, section: bytes | memoryview, what: str, crc: int) -> None:
    actual = zlib.crc32(section)
    if actual != crc:
        raise ImageError(f"{path}: damaged: {what} must have the CRC-32 {crc:08x}, "
                         f"not {actual:08x}")


def _flat(config: AcceleratorConfig) -> dict[str, Any]:
    fields = dataclasses.asdict(config)
    return fields.pop("engine") | fields
