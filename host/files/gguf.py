"""GGUF files, read with checks: every message names file, key or tensor, and what is wrong.

The header is read here and not by ``gguf.GGUFReader``, which makes some objects for every entry of
every array, 2 kilobytes for each byte at worst. Here a key's value is a place in the file until it
is asked for.
"""

import dataclasses
import math
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGUF_VERSION

from host.files.errors import ModelFileError, wrong_number, wrong_scale
from host.files.kinds import read_head
from host.files.tensors import TernaryMatrix, is_bf16
from host.files.vocabulary import read_byte_vocabulary, read_vocabulary
from host.text.vocabulary import PieceVocabulary, Vocabulary

__all__ = ["GGUFFile", "Header", "split_files"]

_Type = gguf.GGMLQuantizationType
_TERNARY_TYPES = (_Type.TQ1_0, _Type.TQ2_0)
_INTEGER_TYPES = (_Type.I8, _Type.I16)
_VECTOR_TYPES = (_Type.F32, _Type.F16, _Type.BF16)

# What the package dequantizes: it has the list of them nowhere else.
_QUANTIZED_TYPES = tuple(gguf.quants._type_traits)
_MATRIX_TYPES = (*_VECTOR_TYPES, *(kind for kind in _QUANTIZED_TYPES if kind != _Type.BF16))

# Type of the files of bitnet.cpp, which the package does not know: blocks of 128 elements in 32
# bytes. Byte j holds elements j, j + 32, j + 64, j + 96, the first in its highest bits; a trit is
# the code less 1. Behind the blocks, 32 bytes begin with the scale of all of them, a float32.
_I2_S = 36
_I2_S_BLOCK = 128
_I2_S_TAIL = 32

# Ternary types with a scale for each 128 weights, of a fork of llama.cpp.
_BONSAI = (42, 142, 143)

# Bounds of a header. In the files in use, arrays are vocabularies of up to 2**18 tokens with as
# many merges, scores and types; models have some hundred keys and some thousand tensors.
_MOST_KEYS = _MOST_TENSORS = 1 << 16
_LONGEST_ARRAY = 1 << 20
_MOST_ENTRIES = 1 << 22     # of all arrays together
_LONGEST_KEY = (1 << 16) - 1            # of the format's specification
_LONGEST_NAME = 256                     # the specification's 64, and some more
_LONGEST_STRING = 1 << 20               # of a value that is asked for
_MOST_DIMENSIONS = 4                    # of ggml

# Zeros at the end of a file that say something: an unused row of an embedding may be zero.
_LEAST_TAIL = 4096

# Elements that are unpacked together; a multiple of every block.
_CHUNK = 1 << 18

_NUMBERS = {gguf.GGUFValueType[name]: np.dtype(kind) for name, kind in {
    "UINT8": "u1", "INT8": "i1", "UINT16": "<u2", "INT16": "<i2", "UINT32": "<u4", "INT32": "<i4",
    "FLOAT32": "<f4", "UINT64": "<u8", "INT64": "<i8", "FLOAT64": "<f8", "BOOL": "?"}.items()}


@dataclasses.dataclass(frozen=True, slots=True)
class _Value:
    """Where a key's value lies: ``count`` entries of a kind, or one if it is no array."""

    kind: int
    offset: int
    count: int | None


def _type_name(kind: int) -> str:
    return "I2_S" if kind == _I2_S else _Type(kind).name


@dataclasses.dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor: its shape as NumPy has it, its type's number, and its place in a file's bytes."""

    shape: tuple[int, ...]
    kind: int
    offset: int
    size: int
    data: np.ndarray

    @property
    def kind_name(self) -> str:
        """Name of the type."""
        return _type_name(self.kind)


class Header:
    """Keys and tensors of a file, all within it.

    Attributes
    ----------
    data : uint8 array
        The whole file, which the system reads as it is needed.
    values : dict of str to _Value
    tensors : dict of str to _Tensor
    start : int
        Where the tensors' data begin.
    """

    def __init__(self, path: Path):
        self._path = path
        self.data = np.asarray(np.memmap(path, np.uint8, mode="r"))
        self._bytes = self.data.data
        self._offset = 4        # behind the magic
        self._entries = 0
        version = self._integer("<I")
        if version & 0xFFFF == 0 or sys.byteorder != "little":
            raise self._error("a big-endian GGUF file, or a big-endian machine: both must be "
                              "little-endian; gguf-convert-endian of the package gguf converts "
                              "files")
        if version not in (2, GGUF_VERSION):
            raise self._error(f"malformed GGUF header: version must be 2 or {GGUF_VERSION}, "
                              f"not {version}")
        tensors, keys = self._integer("<Q"), self._integer("<Q")
        for what, count, most in (("tensors", tensors, _MOST_TENSORS), ("keys", keys, _MOST_KEYS)):
            if count > most:
                raise self._error(f"malformed GGUF header: must have at most {most} {what}, "
                                  f"not {count}")
        self.values: dict[str, _Value] = {}
        for _ in range(keys):
            key = self._name("key", _LONGEST_KEY)
            if key in self.values:
                raise self._error(f"key {key} comes twice")
            self.values[key] = self._value(key)
        self.tensors: dict[str, _Tensor] = {}
        for _ in range(tensors):
            name = self._name("tensor", _LONGEST_NAME)
            if name in self.tensors:
                raise self._error(f"tensor {name} comes twice")
            self.tensors[name] = self._tensor(name)
        self._place_tensors()

    def _error(self, message: str) -> ModelFileError:
        return ModelFileError(f"{self._path}: {message}")

    def _skip(self, size: int) -> int:
        """Return the offset, and go on behind ``size`` bytes."""
        offset = self._offset
        if offset + size > len(self.data):
            raise self._error(f"truncated: bytes up to {offset + size} are needed, "
                              f"the file has {len(self.data)}")
        self._offset += size
        return offset

    def _integer(self, kind: str) -> int:
        return struct.unpack_from(kind, self._bytes, self._skip(struct.calcsize(kind)))[0]

    def _name(self, what: str, longest: int) -> str:
        at, size = self._offset, self._integer("<Q")
        if size > longest:
            raise self._error(f"the name of the {what} at byte {at} must have at most {longest} "
                              f"bytes, not {size}")
        offset = self._skip(size)
        try:
            return bytes(self._bytes[offset:offset + size]).decode()
        except UnicodeDecodeError:
            raise self._error(f"the name of the {what} at byte {at} is not valid UTF-8") from None

    def _value(self, key: str) -> _Value:
        kind = self._integer("<I")
        if kind != gguf.GGUFValueType.ARRAY:
            return self._entry(key, kind, None)
        at, kind, count = self._offset, self._integer("<I"), self._integer("<Q")
        if count > _LONGEST_ARRAY:
            raise self._error(f"the array at byte {at} must have at most {_LONGEST_ARRAY} entries, "
                              f"not {count}")
        self._entries += count
        if self._entries > _MOST_ENTRIES:
            raise self._error(f"all arrays up to key {key} must have at most {_MOST_ENTRIES} "
                              f"entries, not {self._entries}")
        return self._entry(key, kind, count)

    def _entry(self, key: str, kind: int, count: int | None) -> _Value:
        """Go on behind the entries of a value."""
        value = _Value(kind, self._offset, count)
        times = 1 if count is None else count
        if kind == gguf.GGUFValueType.STRING:
            # Strings' lengths are read here again and again: without a call for each.
            data, end, offset = self._bytes, len(self.data), self._offset
            length = struct.Struct("<Q").unpack_from
            for _ in range(times):
                if offset + 8 > end:
                    self._skip(offset + 8 - self._offset)       # which says so
                offset += 8 + length(data, offset)[0]
            self._skip(offset - self._offset)
        elif kind in _NUMBERS:
            self._skip(times * _NUMBERS[gguf.GGUFValueType(kind)].itemsize)
        else:
            raise self._error(f"key {key} has the unknown type {kind}")
        return value

    def _tensor(self, name: str) -> _Tensor:
        """Read a tensor's entry; its offset is yet that in the tensors' data."""
        dimensions = self._integer("<I")
        if dimensions > _MOST_DIMENSIONS:
            raise self._error(f"tensor {name} must have at most {_MOST_DIMENSIONS} dimensions, "
                              f"not {dimensions}")
        shape = tuple(self._integer("<Q") for _ in range(dimensions))
        kind, offset = self._integer("<I"), self._integer("<Q")
        if kind == _I2_S:
            block, block_bytes, tail = 4, 1, _I2_S_TAIL
        elif kind in set(_Type):
            (block, block_bytes), tail = GGML_QUANT_SIZES[_Type(kind)], 0
        else:
            what = " (Ternary Bonsai's, which is not supported)" if kind in _BONSAI else ""
            raise self._error(f"tensor {name} has the unknown type {kind}{what}")
        elements = math.prod(shape)
        if (shape[0] if shape else 1) % block:
            raise self._error(f"tensor {name} must have a multiple of {block} columns, "
                              f"not {shape[0]}")
        # GGUF's first dimension is the fastest.
        return _Tensor(shape[::-1], kind, offset, elements // block * block_bytes + tail,
                       self.data)

    def _place_tensors(self) -> None:
        """Find the tensors' data; no tensor may share bytes with another."""
        alignment = GGUF_DEFAULT_ALIGNMENT
        if "general.alignment" in self.values:
            alignment = self.read("general.alignment")
            if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
                raise self._error(f"key general.alignment must be a power of two, "
                                  f"not {alignment!r}")
        self.start = start = -(-self._offset // alignment) * alignment
        end, before = start, ""
        for name, tensor in sorted(self.tensors.items(), key=lambda item: item[1].offset):
            if tensor.offset % alignment:
                raise self._error(f"tensor {name} must be at a multiple of {alignment} bytes, "
                                  f"not at {tensor.offset}")
            offset = start + tensor.offset
            if offset < end:
                raise self._error(f"tensor {name} overlaps tensor {before}")
            end, before = offset + tensor.size, name
            if end > len(self.data):
                raise self._error(f"truncated: tensor {name} ends at byte {end}, "
                                  f"the file has {len(self.data)}")
            self.tensors[name] = dataclasses.replace(tensor, offset=offset)

    def read(self, key: str) -> Any:
        """Return the value of a key: bool, int, float, str, or a list of one of these."""
        kind, offset, count = dataclasses.astuple(self.values[key])
        times = 1 if count is None else count
        if kind == gguf.GGUFValueType.STRING:
            values: list = []
            for _ in range(times):
                size, = struct.unpack_from("<Q", self._bytes, offset)
                if size > _LONGEST_STRING:
                    raise self._error(f"key {key} must have strings of at most {_LONGEST_STRING} "
                                      f"bytes, not {size}")
                offset += 8 + size
                try:
                    values.append(bytes(self._bytes[offset - size:offset]).decode())
                except UnicodeDecodeError:
                    raise self._error(f"key {key} is not valid UTF-8") from None
        else:
            values = np.frombuffer(self._bytes, _NUMBERS[gguf.GGUFValueType(kind)], times,
                                   offset).tolist()
        return values[0] if count is None else values


def _open(path: Path) -> Header:
    magic = read_head(path)[:4]
    if magic != b"GGUF":
        raise ModelFileError(f"{path}: not a GGUF file: it must begin with {b'GGUF'!r}, "
                             f"not {magic!r}")
    try:
        return Header(path)
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror}") from None


# A file of a model in several, "NAME-00001-of-00003.gguf".
_SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_MOST_FILES = 1000


def split_files(path: Path) -> list[Path]:
    """List all files of the model that a file belongs to, as their names say it."""
    match = _SPLIT.fullmatch(path.name)
    count = int(match[3]) if match else 1
    if match is None or not 1 <= int(match[2]) <= count <= _MOST_FILES:
        return [path]
    return [path.with_name(f"{match[1]}-{number:05}-of-{count:05}.gguf")
            for number in range(1, count + 1)]


def _same(one: Header, other: Header, key: str) -> bool:
    return key in other.values and one.read(key) == other.read(key)


def _is_strings(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


class GGUFFile:
    """Checked access to the keys and tensors of one file, or of one that was split into several.

    Parameters
    ----------
    path : Path
        Of a split one, any of its files.

    Attributes
    ----------
    path : Path
    bytes : int
        Size of the file, or of all of them.
    architecture : object
        What the file says that its architecture is.
    notes : list of str
        What reading it had to assume, for people.

    Raises
    ------
    ModelFileError
        By every method as well, if what is asked for is missing or not as it must be.
    """

    architecture_key = "key general.architecture"

    def __init__(self, path: Path):
        self.path = path
        self.notes: list[str] = []
        self._asked_keys: set[str] = set()
        self._asked_tensors: set[str] = set()
        paths = split_files(path)
        headers = [_open(part) for part in paths]
        self._header = headers[0]
        self._tensors = dict(self._header.tensors)
        if len(headers) > 1 or "split.count" in self._header.values:
            self._join(paths, headers)
        self.bytes = sum(len(header.data) for header in headers)
        for part, header in zip(paths, headers, strict=True):
            tail = header.data[max(header.start, len(header.data) * 15 // 16):]
            if tail.size >= _LEAST_TAIL and not tail.any():
                raise ModelFileError(f"{part}: the last {tail.size} bytes are zero: the file was "
                                     f"not written, or not downloaded, to its end")
        self.architecture: object = self.value("general.architecture")

    def _join(self, paths: list[Path], headers: list[Header]) -> None:
        """Check that files are those of one model, and put their tensors together."""
        for number, (path, header) in enumerate(zip(paths, headers, strict=True)):
            for key, wanted in (("split.no", number), ("split.count", len(headers))):
                found = header.read(key) if key in header.values else None
                if found != wanted:
                    raise ModelFileError(
                        f"{path}: key {key} must be {wanted}, not {found!r}: a model of several "
                        f"files has names that end in -00001-of-0000N.gguf, in one folder")
            odd = [key for key in header.values if number and not key.startswith("split.")
                   and not _same(header, self._header, key)]
            if odd:
                raise ModelFileError(f"{path}: key {odd[0]} must be as in {paths[0].name}")
            for name, tensor in header.tensors.items() if number else ():
                if name in self._tensors:
                    raise ModelFileError(f"{path}: tensor {name} is in another file as well")
                self._tensors[name] = tensor
        count = self.value("split.tensors.count")
        if count is not None and count != len(self._tensors):
            raise self.error(f"key split.tensors.count must be {len(self._tensors)}, the number of "
                             f"tensors in all files, not {count!r}")
        self._asked_keys |= {"split.no", "split.count"}

    def unread(self) -> list[tuple[str, str]]:
        """List what nobody has asked for: ``("key", name)`` and ``("tensor", name)``."""
        return [*(("key", key) for key in self._header.values if key not in self._asked_keys),
                *(("tensor", name) for name in self._tensors if name not in self._asked_tensors)]

    def error(self, message: str) -> ModelFileError:
        """Put the file's name in front of what is wrong with it."""
        return ModelFileError(f"{self.path}: {message}")

    def value(self, key: str) -> Any:
        """Return the value of a metadata key, None where it is missing."""
        self._asked_keys.add(key)
        return self._header.read(key) if key in self._header.values else None

    def keys(self, prefix: str) -> list[str]:
        """List the metadata keys that begin with ``prefix``."""
        return [key for key in self._header.values if key.startswith(prefix)]

    def positive_int(self, key: str, default: int | None = None, most: int = 2**31 - 1) -> int:
        """Return a metadata key that must be a positive integer, or missing with a default.

        An array of equal integers, one for each layer, stands for one.
        """
        value = self.value(key) if key in self._header.values else default
        if isinstance(value, list) and value and value.count(value[0]) == len(value):
            value = value[0]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(f"key {key} must be a positive integer, not {value!r}"[:300])
        if value > most:
            raise self.error(f"key {key} must be at most {most}, not {value}")
        return value

    def positive_float(self, key: str, default: float | None = None, *, least: float = 0.0,
                       most: float = math.inf) -> float:
        """Return a metadata key that must be a positive number, or missing with a default.

        It is finite, and from ``least`` to ``most``.
        """
        value = self.value(key) if key in self._header.values else default
        if not isinstance(value, float | int) or isinstance(value, bool) or not (
                0 < value < math.inf):
            raise self.error(f"key {key} must be a positive number, not {value!r}"[:300])
        if not least <= value <= most:
            raise self.error(f"key {key} must be from {least} to {most}, not {value!r}")
        return float(value)

    def strings(self, key: str) -> tuple[str, ...]:
        """Return a metadata key that must be an array of strings."""
        value = self.value(key)
        if not _is_strings(value):
            raise self.error(f"key {key} must be an array of strings, not {value!r}"[:300])
        return tuple(value)

    def _tensor(self, name: str, shape: tuple[int, ...], types: tuple[int, ...]) -> _Tensor:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise self.error(f"tensor {name} is missing")
        self._asked_tensors.add(name)
        if tensor.shape != shape:
            raise self.error(f"tensor {name} must have shape {shape}, not {tensor.shape}")
        if tensor.kind not in types:
            allowed = (" or ".join(map(_type_name, types)) if types != _MATRIX_TYPES
                       else "of floating-point or quantized numbers")
            raise self.error(f"tensor {name} must have type {allowed}, not {tensor.kind_name}")
        return tensor

    def _blocks(self, tensor: _Tensor) -> np.ndarray:
        """Return the tensor's blocks, shape (blocks, bytes), in the file."""
        block_bytes = (_I2_S_BLOCK // 4 if tensor.kind == _I2_S
                       else GGML_QUANT_SIZES[_Type(tensor.kind)][1])
        size = tensor.size - (_I2_S_TAIL if tensor.kind == _I2_S else 0)
        return tensor.data[tensor.offset:tensor.offset + size].reshape(-1, block_bytes)

    def _unpacked(self, tensor: _Tensor) -> Iterator[tuple[int, np.ndarray]]:
        """Yield pieces of a tensor: index of the first element, and float32 numbers."""
        kind = _Type(tensor.kind)
        blocks = self._blocks(tensor)
        block, _ = GGML_QUANT_SIZES[kind]
        for first in range(0, len(blocks), _CHUNK // block):
            part = np.ascontiguousarray(blocks[first:first + _CHUNK // block])
            with np.errstate(over="ignore", invalid="ignore"):      # scales can be anything
                yield first * block, gguf.quants.dequantize(part.reshape(-1), kind)

    def ternary(self, name: str, shape: tuple[int, int], *,
                exact: bool = True) -> TernaryMatrix:
        """Return a matrix of trits that share one scale, which bf16 holds if it is ``exact``."""
        tensor = self._tensor(name, shape, (*_TERNARY_TYPES, _I2_S))
        trits = np.empty(math.prod(shape), np.int8)
        if tensor.kind == _I2_S:
            self._note_i2_s()
            scale = self._i2_s_scale(name, tensor)
            self._check_scale(name, scale, exact)
            blocks = self._blocks(tensor)[:, np.newaxis]
            shifts = np.array([[6], [4], [2], [0]], np.uint8)
            step = _CHUNK // _I2_S_BLOCK
            for first in range(0, len(blocks), step):
                codes = (blocks[first:first + step] >> shifts & 3).astype(np.int8) - np.int8(1)
                self._check_trits(name, codes.reshape(-1), first * _I2_S_BLOCK, shape)
                trits[first * _I2_S_BLOCK:][:codes.size] = codes.reshape(-1)
        else:
            scale = self._block_scale(name, tensor, exact)
            for first, values in self._unpacked(tensor):
                values = np.rint(values / np.float32(scale))
                self._check_trits(name, values, first, shape)
                trits[first:first + values.size] = values
        return TernaryMatrix(trits.reshape(shape), scale)

    def _note_i2_s(self) -> None:
        note = ("Matrices of type I2_S are read as bitnet.cpp writes them on x86: a file made on "
                "ARM has another order and no mark of it, and would answer nonsense")
        if note not in self.notes:
            self.notes.append(note)

    def _i2_s_scale(self, name: str, tensor: _Tensor) -> float:
        if tensor.shape[-1] % _I2_S_BLOCK:
            raise self.error(f"tensor {name} must have, as I2_S, a multiple of {_I2_S_BLOCK} "
                             f"columns, not {tensor.shape[-1]}")
        tail = tensor.data[tensor.offset + tensor.size - _I2_S_TAIL:][:4]
        return float(np.frombuffer(tail.tobytes(), "<f4")[0])

    def _scales(self, tensor: _Tensor) -> np.ndarray:
        """Return the scale of each block of a ternary type of the package."""
        return np.frombuffer(self._blocks(tensor)[:, -2:].tobytes(), "<f2")

    def _block_scale(self, name: str, tensor: _Tensor, exact: bool) -> float:
        """Return the scale that all blocks have, but for those of zeros."""
        scales = self._scales(tensor)
        with np.errstate(invalid="ignore"):
            scale = float(scales.max())     # NaN if any is
        self._check_scale(name, scale, exact)
        odd = np.flatnonzero((scales != scale) & (scales != 0))
        if odd.size:
            raise self.error(f"tensor {name} must have one scale, but block {int(odd[0])} has "
                             f"{float(scales[odd[0]])!r} and another block has {scale!r}")
        return scale

    def _check_scale(self, name: str, scale: float, exact: bool) -> None:
        if not (np.isfinite(scale) and scale > 0):
            raise self.error(f"tensor {name} must have a positive and finite scale, not {scale}")
        wrong = wrong_scale(scale)
        if wrong:
            raise self.error(f"the scale of tensor {name} {wrong}")
        if exact and not is_bf16(scale):
            raise self.error(f"tensor {name} must have a scale that bf16 holds exactly, "
                             f"not {scale!r}")

    def _check_trits(self, name: str, values: np.ndarray, first: int,
                     shape: tuple[int, int]) -> None:
        """Check a piece of a matrix that begins with element ``first``."""
        wrong = np.flatnonzero(np.abs(values) > 1)
        if wrong.size:
            row, column = divmod(first + int(wrong[0]), shape[1])
            raise self.error(f"tensor {name} must be ternary, but row {row} column {column} holds "
                             f"{int(values[wrong[0]])} times the scale")

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._tensors

    def is_ternary(self, name: str) -> bool:
        """Whether there is a tensor of this name that holds trits and one scale."""
        tensor = self._tensors.get(name)
        if tensor is None or tensor.kind == _I2_S or tensor.kind not in _TERNARY_TYPES:
            return tensor is not None and tensor.kind == _I2_S
        scales = self._scales(tensor)
        return bool((scales[scales != 0] == scales.max()).all())

    def matrix(self, name: str, shape: tuple[int, int]) -> np.ndarray:
        """Return a finite matrix as float32, whatever it was quantized to."""
        return self._floats(name, shape, _MATRIX_TYPES)

    def integers(self, name: str, shape: tuple[int, int]) -> np.ndarray:
        """Return a matrix of int8 or int16."""
        tensor = self._tensor(name, shape, _INTEGER_TYPES)
        kind = "i1" if tensor.kind == _Type.I8 else "<i2"
        return np.array(self._blocks(tensor)).view(kind).reshape(shape)

    def rows(self, name: str) -> int:
        """Return how many rows a matrix has."""
        tensor = self._tensors.get(name)
        if tensor is None or len(tensor.shape) != 2:
            raise self.error(f"tensor {name} must be there, and a matrix")
        return tensor.shape[0]

    def vector(self, name: str, size: int) -> np.ndarray:
        """Return a finite vector as float32."""
        return self._floats(name, (size,), _VECTOR_TYPES)

    def _floats(self, name: str, shape: tuple[int, ...], types: tuple[_Type, ...]) -> np.ndarray:
        tensor = self._tensor(name, shape, types)
        if tensor.kind == _Type.F32 and len(shape) > 1 and tensor.offset % 4 == 0:
            # As it lies in the file, which needs no memory.
            values = self._blocks(tensor).reshape(-1).view(np.float32)
        else:
            values = np.empty(math.prod(shape), np.float32)
            for first, part in self._unpacked(tensor):
                values[first:first + part.size] = part
        values = values.reshape(shape)
        wrong = wrong_number(values)
        if wrong:
            raise self.error(f"tensor {name} {wrong}")
        if len(shape) > 1 and not values.any():
            raise self.error(f"tensor {name} is zero everywhere: the file was not written, or not "
                             f"downloaded, to its end")
        return values

    def vocabulary(self, vocab: int | None = None) -> Vocabulary | PieceVocabulary:
        """Return the tokenizer, of ``vocab`` tokens if that is given."""
        return read_vocabulary(self, vocab)

    def byte_vocabulary(self, vocab: int) -> Vocabulary:
        """Return the tokenizer, which must be a byte-level BPE of ``vocab`` tokens."""
        return read_byte_vocabulary(self, vocab)

    def general(self) -> dict[str, str | tuple[str, ...]]:
        """Return the ``general.*`` keys that hold strings, without the prefix."""
        metadata: dict[str, str | tuple[str, ...]] = {}
        for key in self.keys("general."):
            value = self.value(key)
            if isinstance(value, str):
                metadata[key.removeprefix("general.")] = value
            elif _is_strings(value):
                metadata[key.removeprefix("general.")] = tuple(value)
        return metadata
