"""GGUF files, read with checks: every message names file, key or tensor, and what is wrong."""

import dataclasses
import sys
from pathlib import Path
from typing import Any, TypeGuard

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES

from host.files.errors import ModelFileError, wrong_number
from host.files.tensors import TernaryMatrix, is_bf16
from host.text.tokenizer import SPLITS
from host.text.vocabulary import PieceVocabulary, Vocabulary

__all__ = ["GGUFFile", "write_vocabulary"]

_Type = gguf.GGMLQuantizationType
_TERNARY_TYPES = (_Type.TQ1_0, _Type.TQ2_0)
_INTEGER_TYPES = (_Type.I8, _Type.I16)
_MATRIX_TYPES = (_Type.F32, _Type.F16, _Type.BF16, _Type.Q8_0, _Type.Q4_0, _Type.Q4_1)

# Type of the files of bitnet.cpp, which the package does not know: blocks of 128 elements in 32
# bytes. Byte j holds elements j, j + 32, j + 64, j + 96, the first in its highest bits; a trit is
# the code less 1. Behind the blocks, 32 bytes begin with the scale of all of them, a float32.
_I2_S = 36
_I2_S_BLOCK = 128
_I2_S_TAIL = 32

_LONGEST_ARRAY = 1 << 20    # of a key; the largest vocabularies in use have about 2**18 tokens


@dataclasses.dataclass(frozen=True, eq=False)
class _Packed:
    """A tensor of type I2_S."""

    shape: tuple[int, ...]
    data: np.ndarray

    def ternary(self) -> tuple[np.ndarray, float]:
        """Return codes, and the scale."""
        blocks = self.data[:-_I2_S_TAIL].reshape(-1, 1, _I2_S_BLOCK // 4)
        codes = blocks >> np.array([[6], [4], [2], [0]], np.uint8) & 3
        scale = float(self.data[-_I2_S_TAIL:][:4].copy().view("<f4")[0])
        return codes.reshape(self.shape), scale


class _Reader(gguf.GGUFReader):
    """``GGUFReader`` that never reads beyond the end of the file.

    The base class maps the file and slices it, and a slice beyond the end is just shorter: an array
    that claims 2**60 entries would be walked to its end, each entry an object.
    """

    def __init__(self, path: Path):
        self._path = path
        super().__init__(path)

    def _get(self, offset: Any, dtype: Any, count: Any = 1,
             override_order: Any = None) -> np.ndarray:
        end = int(offset) + int(count) * np.dtype(dtype).itemsize
        if end > len(self.data):
            raise ModelFileError(f"{self._path}: truncated: bytes up to {end} are needed, "
                                 f"the file has {len(self.data)}")
        return super()._get(offset, dtype, count, override_order)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type == gguf.GGUFValueType.ARRAY:
            entries = int(self._get(orig_offs + 4, np.uint64)[0])
            if entries > _LONGEST_ARRAY:
                raise ModelFileError(f"{self._path}: the array at byte {orig_offs} must have at "
                                     f"most {_LONGEST_ARRAY} entries, not {entries}")
        return super()._get_field_parts(orig_offs, raw_type)

    def _build_tensors(self, start_offs: int, fields: list[gguf.ReaderField]) -> None:
        self.packed: dict[str, _Packed] = {}
        known = []
        for field in fields:
            _, name_bytes, _, dims, raw_type, offset = field.parts
            name = bytes(name_bytes).decode("utf-8", "replace")
            start = int(start_offs) + int(offset[0])
            elements = 1
            for dim in dims.tolist():
                elements *= dim
            if int(raw_type[0]) == _I2_S:
                size = elements // 4 + _I2_S_TAIL
            elif int(raw_type[0]) in (kind.value for kind in gguf.GGMLQuantizationType):
                block, block_bytes = GGML_QUANT_SIZES[gguf.GGMLQuantizationType(int(raw_type[0]))]
                size = elements * block_bytes // block
                known.append(field)
            else:
                raise ModelFileError(f"{self._path}: tensor {name} has the unknown type "
                                     f"{int(raw_type[0])}")
            if start + size > len(self.data):
                raise ModelFileError(f"{self._path}: truncated: tensor {name} ends at byte "
                                     f"{start + size}, the file has {len(self.data)}")
            if int(raw_type[0]) == _I2_S:
                if name in self.packed:
                    raise ModelFileError(f"{self._path}: tensor {name} comes twice")
                self.packed[name] = _Packed(tuple(reversed(dims.tolist())),
                                            np.asarray(self.data[start:start + size]))
        super()._build_tensors(start_offs, known)


def _open(path: Path) -> _Reader:
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror}") from None
    if magic != b"GGUF":
        raise ModelFileError(f"{path}: not a GGUF file: it must begin with {b'GGUF'!r}, "
                             f"not {magic!r}")
    try:
        reader = _Reader(path)
    except ModelFileError:
        raise
    except (ValueError, KeyError, IndexError, OverflowError, RecursionError) as error:
        # What the package raises for a malformed header; its messages are one line each.
        raise ModelFileError(f"{path}: malformed GGUF header: {error}") from None
    if reader.byte_order != "I" or sys.byteorder != "little":
        raise ModelFileError(f"{path}: file and machine must be little-endian")
    return reader


def _is_strings(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


class GGUFFile:
    """Checked access to the keys and tensors of one file.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    path : Path
    architecture : object
        What the file says that its architecture is.

    Raises
    ------
    ModelFileError
        By every method as well, if what is asked for is missing or not as it must be.
    """

    architecture_key = "key general.architecture"

    def __init__(self, path: Path):
        self.path = path
        reader = _open(path)
        self._fields = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._packed = reader.packed
        self.architecture: object = self.value("general.architecture")

    def error(self, message: str) -> ModelFileError:
        """Put the file's name in front of what is wrong with it."""
        return ModelFileError(f"{self.path}: {message}")

    def value(self, key: str) -> Any:
        """Return the value of a metadata key, None where it is missing."""
        field = self._fields.get(key)
        try:
            return None if field is None else field.contents()
        except UnicodeDecodeError:
            raise self.error(f"key {key} is not valid UTF-8") from None

    def keys(self, prefix: str) -> list[str]:
        """List the metadata keys that begin with ``prefix``."""
        return [key for key in self._fields if key.startswith(prefix)]

    def positive_int(self, key: str, default: int | None = None,
                     most: int | None = None) -> int:
        """Return a metadata key that must be a positive integer, or missing with a default."""
        value = default if key not in self._fields else self.value(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(f"key {key} must be a positive integer, not {value!r}")
        if most is not None and value > most:
            raise self.error(f"key {key} must be at most {most}, not {value}")
        return value

    def positive_float(self, key: str, default: float | None = None) -> float:
        """Return a metadata key that must be a positive number, or missing with a default."""
        value = default if key not in self._fields else self.value(key)
        if not isinstance(value, float) or not 0 < value < float("inf"):
            raise self.error(f"key {key} must be a positive number, not {value!r}")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        """Return a metadata key that must be an array of strings."""
        value = self.value(key)
        if not _is_strings(value):
            raise self.error(f"key {key} must be an array of strings, not {value!r}"[:300])
        return tuple(value)

    def _tensor(self, name: str, shape: tuple[int, ...],
                types: tuple[gguf.GGMLQuantizationType, ...]) -> gguf.ReaderTensor:
        tensor = self._tensors.get(name)
        if tensor is None and name in self._packed:
            allowed = " or ".join(known.name for known in types)
            raise self.error(f"tensor {name} must have type {allowed}, not I2_S")
        if tensor is None:
            raise self.error(f"tensor {name} is missing")
        actual = tuple(reversed(tensor.shape.tolist()))     # GGUF's first dimension is the fastest
        if actual != shape:
            raise self.error(f"tensor {name} must have shape {shape}, not {actual}")
        if tensor.tensor_type not in types:
            allowed = " or ".join(known.name for known in types)
            raise self.error(f"tensor {name} must have type {allowed}, "
                             f"not {tensor.tensor_type.name}")
        return tensor

    def ternary(self, name: str, shape: tuple[int, int], *,
                exact: bool = True) -> TernaryMatrix:
        """Return a matrix of trits that share one scale, which bf16 holds if it is ``exact``."""
        if name in self._packed:
            return self._unpacked(name, shape, exact)
        tensor = self._tensor(name, shape, _TERNARY_TYPES)
        _, block_bytes = GGML_QUANT_SIZES[tensor.tensor_type]
        blocks = tensor.data.reshape(-1, block_bytes)
        scales = np.ascontiguousarray(blocks[:, -2:]).view("<f2").astype(np.float32)[:, 0]
        scale = float(scales.max())     # NaN if any is
        self._check_scale(name, scale, exact)
        odd = np.flatnonzero((scales != scale) & (scales != 0))
        if odd.size:
            raise self.error(f"tensor {name} must have one scale, but block {int(odd[0])} has "
                             f"{float(scales[odd[0]])!r} and another block has {scale!r}")
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        return TernaryMatrix(self._trits(name, np.rint(values / np.float32(scale))), scale)

    def _unpacked(self, name: str, shape: tuple[int, int], exact: bool) -> TernaryMatrix:
        packed = self._packed[name]
        if packed.shape != shape or shape[1] % _I2_S_BLOCK:
            raise self.error(f"tensor {name} must have shape {shape} and, as I2_S, a multiple of "
                             f"{_I2_S_BLOCK} columns, not {packed.shape}")
        codes, scale = packed.ternary()
        self._check_scale(name, scale, exact)
        return TernaryMatrix(self._trits(name, codes.astype(np.int8) - 1), scale)

    def _check_scale(self, name: str, scale: float, exact: bool) -> None:
        if not (np.isfinite(scale) and scale > 0):
            raise self.error(f"tensor {name} must have a positive and finite scale, not {scale}")
        if exact and not is_bf16(scale):
            raise self.error(f"tensor {name} must have a scale that bf16 holds exactly, "
                             f"not {scale!r}")

    def _trits(self, name: str, values: np.ndarray) -> np.ndarray:
        wrong = np.argwhere(np.abs(values) > 1)
        if wrong.size:
            row, column = wrong[0].tolist()
            raise self.error(f"tensor {name} must be ternary, but row {row} column {column} holds "
                             f"{int(values[row, column])} times the scale")
        return values.astype(np.int8)

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._tensors

    def matrix(self, name: str, shape: tuple[int, int]) -> np.ndarray:
        """Return a finite matrix as float32, whatever it was quantized to."""
        return self._floats(name, shape, _MATRIX_TYPES)

    def integers(self, name: str, shape: tuple[int, int]) -> np.ndarray:
        """Return a matrix of int8 or int16."""
        tensor = self._tensor(name, shape, _INTEGER_TYPES)
        return np.array(tensor.data).reshape(shape)

    def rows(self, name: str) -> int:
        """Return how many rows a matrix has."""
        tensor = self._tensors.get(name)
        if tensor is None or len(tensor.shape) != 2:
            raise self.error(f"tensor {name} must be there, and a matrix")
        return int(tensor.shape[1])

    def vector(self, name: str, size: int) -> np.ndarray:
        """Return a finite float32 vector."""
        return self._floats(name, (size,), (_Type.F32,))

    def _floats(self, name: str, shape: tuple[int, ...], types: tuple[_Type, ...]) -> np.ndarray:
        tensor = self._tensor(name, shape, types)
        with np.errstate(over="ignore", invalid="ignore"):      # scales can be anything
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        values = np.array(values, dtype=np.float32).reshape(shape)
        wrong = wrong_number(values)
        if wrong:
            raise self.error(f"tensor {name} {wrong}")
        return values

    def vocabulary(self, vocab: int | None = None) -> Vocabulary | PieceVocabulary:
        """Return the tokenizer, of ``vocab`` tokens if that is given."""
        kind = self._tokenizer_model("gpt2", "llama")
        tokens = self.strings("tokenizer.ggml.tokens")
        if vocab is not None and len(tokens) != vocab:
            raise self.error(f"key tokenizer.ggml.tokens must hold {vocab} tokens, "
                             f"not {len(tokens)}")
        if len(set(tokens)) != len(tokens):
            raise self.error("key tokenizer.ggml.tokens holds a token twice")
        end = self._token("eos", len(tokens))
        # Files of older converters, ours among them, have no begin but the end of another document.
        start = end
        if "tokenizer.ggml.bos_token_id" in self._fields:
            start = self._token("bos", len(tokens))
        prompted = self.value("tokenizer.ggml.add_bos_token") is not False
        controls = tuple(token for token in self._controls(len(tokens)) if token != end)
        if kind == "llama":
            space = self.value("tokenizer.ggml.add_space_prefix") is not False
            return PieceVocabulary(tokens, self._scores(len(tokens)), start, end,
                                   prompted=prompted, controls=controls, space=space)
        split = self.value("tokenizer.ggml.pre")
        if split not in SPLITS:
            raise self.error(f"key tokenizer.ggml.pre must be {' or '.join(map(repr, SPLITS))}, "
                             f"not {split!r}")
        merges = self.strings("tokenizer.ggml.merges")
        known = set(tokens)
        for merge in merges:
            left, _, right = merge.partition(" ")
            if not {left, right, left + right} <= known:
                raise self.error(f"key tokenizer.ggml.merges has the entry {merge!r}, "
                                 f"whose parts or result are no tokens")
        return Vocabulary(tokens, merges, end, None if start == end else start,
                          prompted=prompted, split=split, controls=controls)

    def byte_vocabulary(self, vocab: int) -> Vocabulary:
        """Return the tokenizer, which must be a byte-level BPE of ``vocab`` tokens."""
        self._tokenizer_model("gpt2")
        found = self.vocabulary(vocab)
        assert isinstance(found, Vocabulary)
        return found

    def _tokenizer_model(self, *allowed: str) -> str:
        key = "tokenizer.ggml.model"
        kind = self.value(key)
        if kind is None:
            raise self.error(f"tokenizer is missing: key {key}")
        if kind not in allowed:
            raise self.error(f"key {key} must be {' or '.join(map(repr, allowed))}, not {kind!r}")
        return kind

    def _token(self, name: str, vocab: int) -> int:
        key = f"tokenizer.ggml.{name}_token_id"
        value = self.value(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocab:
            raise self.error(f"key {key} must be a token below {vocab}, not {value!r}")
        return value

    def _controls(self, vocab: int) -> tuple[int, ...]:
        """List the tokens that stand for no text."""
        key = "tokenizer.ggml.token_type"
        types = self.value(key)
        if types is None:
            return ()
        if not isinstance(types, list) or len(types) != vocab:
            raise self.error(f"key {key} must be an array of {vocab} integers")
        silent = (gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN, gguf.TokenType.UNUSED)
        return tuple(token for token, kind in enumerate(types) if kind in silent)

    def _scores(self, vocab: int) -> tuple[float, ...]:
        """Return the score of each token."""
        key = "tokenizer.ggml.scores"
        scores = self.value(key)
        if not isinstance(scores, list) or len(scores) != vocab or not all(
                isinstance(score, float) and np.isfinite(score) for score in scores):
            raise self.error(f"key {key} must be an array of {vocab} finite numbers")
        return tuple(scores)

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


def write_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary | PieceVocabulary) -> None:
    """Write the keys from which :meth:`GGUFFile.vocabulary` reads the same tokenizer."""
    silent = {vocabulary.end_of_document, *vocabulary.controls}
    if isinstance(vocabulary, Vocabulary):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(vocabulary.split)
        writer.add_token_merges(list(vocabulary.merges))
    else:
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(list(vocabulary.scores))
        writer.add_add_space_prefix(vocabulary.space)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types([gguf.TokenType.CONTROL if token in silent else gguf.TokenType.NORMAL
                            for token in range(vocabulary.size)])
    writer.add_bos_token_id(vocabulary.start)
    writer.add_eos_token_id(vocabulary.end_of_document)
    writer.add_add_bos_token(vocabulary.prompted)
