"""Changes to the files of a model, for the fuzzer: of their bytes, and of what they mean.

A change of **bytes** knows nothing of a file. A change of **meaning** takes the file apart, changes
one to three values, such as a number, a scale, a name, a token, a shape or a type, to extremes, and
puts it together again, checksums and lengths included: what is then read is well-formed.
"""

import copy
import json
import lzma
import math
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from host.files.gguf import Header
from host.models.examples import gguf_bytes

__all__ = ["Files", "mutate"]

#: A model as its files; the first is what is opened, "." the directory.
Files = dict[str, bytes]

_NUMBERS = (0, 1, 2, 3, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1,
            2**40, 2**63 - 1, 2**63, 2**64 - 1)
_FLOATS = (0.0, -0.0, -1.0, 1e-45, 1e-38, 1e-12, 0.3, 1e12, 1e30, 3e38, math.inf, -math.inf,
           math.nan)
_VALUES: tuple[object, ...] = (None, True, -1, 0, 1, 3, 2**40, 10**30, 1e-300, 1e300, "", "other",
                               [], [0], {}, {"a": 1}, [[[[]]]], "\x1b[2J\n", "x" * 5000)
_TEXTS = ("", " ", "a", "\x1b]0;title\x07", "two\nlines", "\u202eback", "[red]", "[/]", "../up",
          "x" * 5000, "\u2581", "\U0001f409", "<0x00>", "th e", "the <|endoftext|>")


def mutate(files: Files, rng: np.random.Generator) -> Files:
    """Change one file of a model: its bytes in one to four places, or what it means."""
    name = str(rng.choice([name for name, data in files.items() if data]))
    change = _MEANINGS.get(Path(name).suffix if name != "splits.tsv" else name, _change_bytes)
    if rng.random() < (0.2 if name == "config.json" else 0.5):
        change = _change_bytes
    return {**files, name: change(files[name], rng)}


def _chance(rng: np.random.Generator, share: float) -> bool:
    return bool(rng.random() < share)


def _pick(rng: np.random.Generator, values: Any) -> Any:
    return values[int(rng.integers(0, len(values)))]


def _change_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        # Mostly where the structure is: weights can be anything.
        end = len(data) if rng.random() < 0.3 else min(len(data), 12000 if rng.random() < 0.5
                                                       else 600)
        at = int(rng.integers(0, max(end, 1)))
        match int(rng.integers(0, 7)):
            case 0 | 1:
                data[at:at + 1] = bytes([int(rng.integers(0, 256))])
            case 2:
                data[at:at + 1] = bytes([data[at] ^ 1 << int(rng.integers(0, 8))]) if data else b""
            case 3 | 4:
                width = "<I" if rng.random() < 0.5 else "<Q"
                size = struct.calcsize(width)
                number = _NUMBERS[int(rng.integers(0, len(_NUMBERS)))] & (1 << 8 * size) - 1
                data[at:at + size] = struct.pack(width, number)
            case 5:
                del data[at:at + int(rng.integers(1, 64))]
            case 6:
                if rng.random() < 0.5:
                    del data[at:]
                else:
                    data[at:at] = data[at:at + int(rng.integers(1, 64))]
    return bytes(data)


def _other(value: object, rng: np.random.Generator) -> Any:
    """Return another value of the same kind, as a rule."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return _pick(rng, (*_NUMBERS, -1, value + 1 & 2**64 - 1, value // 2, -value >> 1))
    if isinstance(value, float):
        return _pick(rng, _FLOATS)
    if isinstance(value, str):
        return _pick(rng, (*_TEXTS, value + "\x1b", 2 * value))
    if isinstance(value, list) and value:
        at = int(rng.integers(0, len(value)))
        match int(rng.integers(0, 6)):
            case 0:
                return value[:at]
            case 1:
                return value[:at] + value[at + 1:]
            case 2:
                return value + value[at:at + 1]
            case 3:
                return [value[at]] * len(value)
            case _:
                return [*value[:at], _other(value[at], rng), *value[at + 1:]]
    return [0]


# JSON.

def _change_tree(tree: Any, rng: np.random.Generator) -> None:
    """Change one value in objects and arrays, at any depth; or leave out, double or rename it."""
    place = tree
    while True:
        names = list(place) if isinstance(place, dict) else range(len(place))
        if not names:
            return
        name = _pick(rng, list(names))
        inner = place[name]
        if not isinstance(inner, dict | list) or not inner or _chance(rng, 0.15):
            break
        place = inner
    match int(rng.integers(0, 8)):
        case 0:
            del place[name]
        case 1 if isinstance(place, dict):
            place[_pick(rng, _TEXTS)] = place.pop(name)
        case 1:
            place.append(inner)
        case 2 | 3:
            place[name] = copy.deepcopy(_pick(rng, _VALUES))     # it can be changed again
        case _:
            place[name] = _other(inner, rng)


def _times(rng: np.random.Generator) -> range:
    return range(int(rng.integers(1, 4)))


def _change_json(data: bytes, rng: np.random.Generator) -> bytes:
    tree = json.loads(data)
    for _ in _times(rng):
        _change_tree(tree, rng)
    if _chance(rng, 0.02):
        return b"[" * 100_000
    if _chance(rng, 0.02):
        return b'{"a": 1, "a": 2, ' + data.lstrip()[1:]
    return json.dumps(tree).encode()


# GGUF.

def _change_gguf(data: bytes, rng: np.random.Generator) -> bytes:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        header = Header(Path(file.name))
    keys: dict[str, Any] = {key: header.read(key) for key in header.values}
    tensors = {name: (tensor.shape, tensor.kind,
                      data[tensor.offset:tensor.offset + tensor.size])
               for name, tensor in header.tensors.items()}
    for _ in _times(rng):
        key, name = _pick(rng, list(keys)), _pick(rng, list(tensors))
        shape, kind, content = tensors[name]
        match int(rng.integers(0, 10)):
            case 0:
                del keys[key]
            case 1:
                keys[_pick(rng, _TEXTS)] = keys.pop(key)
            case 2 | 3 | 4:
                keys[key] = _other(keys[key], rng)
            case 5:
                keys[key] = _pick(rng, (*_NUMBERS, *_FLOATS, *_TEXTS, True, [], [0], ["a", "a"]))
            case 6:
                tensors[name + _pick(rng, _TEXTS)] = tensors.pop(name)
            case 7:
                sizes = list(shape)
                sizes[int(rng.integers(0, len(sizes)))] = _pick(
                    rng, (*_NUMBERS, 2 * sizes[0], sizes[0] // 2))
                tensors[name] = (tuple(sizes), kind, content)
            case 8:
                tensors[name] = (shape, _pick(rng, [*range(40), 2**31]), content)
            case 9:
                tensors[name] = (shape, kind, _change_scale(content, rng))
    if _chance(rng, 0.2):
        keys["general.alignment"] = _pick(rng, _NUMBERS)
    return gguf_bytes(keys, tensors)


def _change_scale(content: bytes, rng: np.random.Generator) -> bytes:
    """Change a number where a tensor can have one: at its beginning, its end or in front of it."""
    data = bytearray(content)
    number = _pick(rng, _FLOATS)
    at = _pick(rng, (0, max(0, len(data) - 32), max(0, len(data) - 4)))
    if _chance(rng, 0.3):       # the last of a block of TQ1_0
        with np.errstate(over="ignore"):
            data[52::54] = bytes(len(data[52::54]))
            half = np.float16(number).tobytes()
        data[52:54] = half[:len(data[52:54])]
    else:
        with np.errstate(over="ignore"):
            data[at:at + 4] = np.float32(number).tobytes()[:len(data) - at]
    return bytes(data)


# The other files.

def _change_safetensors(data: bytes, rng: np.random.Generator) -> bytes:
    length, = struct.unpack_from("<Q", data)
    header, content = json.loads(data[8:8 + length]), data[8 + length:]
    if _chance(rng, 0.3):
        name = _pick(rng, [name for name in header if name != "__metadata__"])
        begin, end = header[name]["data_offsets"]
        content = content[:begin] + _change_scale(content[begin:end], rng) + content[end:]
    else:
        for _ in _times(rng):
            _change_tree(header, rng)
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + content


def _change_bin(data: bytes, rng: np.random.Generator) -> bytes:
    """Change a number of llama2.c's header or weights, or a score, length or text of a piece."""
    content = bytearray(data)
    for _ in _times(rng):
        at = 4 * int(rng.integers(0, 8 if _chance(rng, 0.7) else len(content) // 4))
        if _chance(rng, 0.5):
            struct.pack_into("<I", content, at, _pick(rng, _NUMBERS) & 2**32 - 1)
        else:
            content[at:at + 4] = struct.pack("<f", _pick(rng, _FLOATS))
    return bytes(content)


def _change_image(data: bytes, rng: np.random.Generator) -> bytes:
    """Change an image's header or program; all checksums are right."""
    length, _ = struct.unpack_from("<II", data, 8)
    header, rest = json.loads(data[16:16 + length]), bytearray(data[16 + length:])
    if _chance(rng, 0.3):
        size = header["program"]["bytes"]
        at = int(rng.integers(0, size))
        rest[at] = int(rng.integers(0, 256))
        header["program"]["crc32"] = zlib.crc32(rest[:size])
    else:
        for _ in _times(rng):
            _change_tree(header, rng)
    head = json.dumps(header).encode()
    return data[:8] + struct.pack("<II", len(head), zlib.crc32(head)) + head + rest


def _change_table(data: bytes, rng: np.random.Generator) -> bytes:
    """Change fields of a table whose columns are divided by tabs."""
    rows = [line.split("\t") for line in data.decode().split("\n")]
    for _ in _times(rng):
        row = _pick(rng, rows)
        at = int(rng.integers(0, len(row)))
        row[at] = _pick(rng, (*_TEXTS, *map(str, _NUMBERS), "-1", "\u00b2", "9" * 5000,
                              row[at] + "\x1b", _pick(rng, _pick(rng, rows))))
    return "\n".join("\t".join(row) for row in rows).encode()


def _change_text(data: bytes, rng: np.random.Generator) -> bytes:
    """Change a compressed text."""
    text = lzma.decompress(data)
    match int(rng.integers(0, 3)):
        case 0:
            text = _change_bytes(text, rng)
        case 1:
            text *= int(rng.integers(2, 2000))
        case 2:
            text = text.replace(b"<|endoftext|>", _pick(rng, _TEXTS).encode())
    return lzma.compress(text, preset=0)


# By the end of the file's name.
_MEANINGS: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    ".gguf": _change_gguf, ".json": _change_json, ".safetensors": _change_safetensors,
    ".bin": _change_bin, ".tally": _change_image, "splits.tsv": _change_table, ".xz": _change_text}
