"""The ternary language model as the host holds it, and the GGUF file that it is shipped in.

docs/numerics.md, section 6, says what a model computes. This module only knows its numbers: NumPy
and the ``gguf`` package, nothing else.

The file: ``general.architecture`` is ``mmfreelm``; ``mmfreelm.block_count``, ``embedding_length``,
``feed_forward_length``, ``vocab_size``, ``embedding_planes`` and ``logit_scale.ARITHMETIC`` give
the shape and the head's constants. A matrix is one tensor of ternary blocks that all have the same
scale, which both fp16 and bf16 hold exactly. The embedding is three such tensors; plane ``p``
weighs ``3**p``.
"""

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES

__all__ = ["PLANES", "Layer", "ModelFileError", "TernaryLM", "TernaryMatrix", "Vocabulary",
           "is_bf16", "read_model", "to_bf16", "write_model"]

ARCHITECTURE = "mmfreelm"

#: Trit planes of the embedding: its integers are -13..13.
PLANES = 3

_TERNARY_TYPES = (gguf.GGMLQuantizationType.TQ1_0, gguf.GGMLQuantizationType.TQ2_0)
_BLOCK = 256        # elements of a block of either ternary type; its fp16 scale is the last 2 bytes

_LONGEST_ARRAY = 1 << 20    # of a key; the largest vocabularies in use have about 2**18 tokens

# Tensor name in the file, by field of Layer.
_MATRICES = {"forget": "mix_forget", "candidate": "mix_candidate", "gate": "mix_gate",
             "output": "mix_output", "ffn_gate": "ffn_gate", "ffn_up": "ffn_up",
             "ffn_down": "ffn_down"}


class ModelFileError(ValueError):
    """A model file cannot be used; the message is one line that names file, place and reason."""


def to_bf16(value: float) -> float:
    """Round ``value`` to the nearest bf16 number, ties to even."""
    bits = int(np.float32(value).view(np.uint32))
    bits += 0x7FFF + ((bits >> 16) & 1)
    return float(np.uint32(bits & 0xFFFF0000).view(np.float32))


def is_bf16(value: float) -> bool:
    """Whether ``value`` is a finite bf16 number."""
    return bool(np.isfinite(value)) and to_bf16(value) == value


@dataclasses.dataclass(frozen=True, eq=False)
class TernaryMatrix:
    """``scale * trits``.

    Attributes
    ----------
    trits : int8 array of -1, 0 or +1, shape (rows, columns)
    scale : float
        Positive; exact in bf16 and in fp16.
    """

    trits: np.ndarray
    scale: float


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """One layer: the token mixer, then the gated feed-forward network.

    Attributes
    ----------
    forget, candidate, gate, output : TernaryMatrix, shape (width, width)
    ffn_gate, ffn_up : TernaryMatrix, shape (ffn_width, width)
    ffn_down : TernaryMatrix, shape (width, ffn_width)
    forget_bias : float32 array of bf16 numbers, shape (width,)
    """

    forget: TernaryMatrix
    candidate: TernaryMatrix
    gate: TernaryMatrix
    output: TernaryMatrix
    ffn_gate: TernaryMatrix
    ffn_up: TernaryMatrix
    ffn_down: TernaryMatrix
    forget_bias: np.ndarray


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Byte-level BPE as GGUF stores it (``tokenizer.ggml.model`` is ``gpt2``).

    Attributes
    ----------
    tokens : tuple of str
        Text of each token in the printable byte alphabet of GPT-2.
    merges : tuple of str
        ``"left right"``, in order of priority.
    end_of_document : int
        Token that ends a document; a model starts from the zero state by reading it.
    """

    tokens: tuple[str, ...]
    merges: tuple[str, ...]
    end_of_document: int


@dataclasses.dataclass(frozen=True, eq=False)
class TernaryLM:
    """A ternary MatMul-free language model.

    Attributes
    ----------
    name : str
    embedding : int8 array of -13..13, shape (vocab, width)
        Input embedding and output head.
    embedding_scale : float
        ``s_E``: what the embedding's integers are scaled by on their way in.
    layers : tuple of Layer
    logit_scales : dict
        ``s_head`` of each arithmetic: what the head's integers are scaled by, apart from the norm's
        scalar. ``lmul`` is the arithmetic of docs/numerics.md; ``float`` is the same trits with
        float32 activations, never quantized, and exact products.
    vocabulary : Vocabulary
    metadata : dict
        The file's ``general.*`` keys without the prefix: a string or a tuple of strings each.
    """

    name: str
    embedding: np.ndarray
    embedding_scale: float
    layers: tuple[Layer, ...]
    logit_scales: dict[str, float]
    vocabulary: Vocabulary
    metadata: dict[str, str | tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @property
    def width(self) -> int:
        """Elements of the residual stream."""
        return self.embedding.shape[1]

    @property
    def ffn_width(self) -> int:
        """Elements of the feed-forward network's hidden vector."""
        return self.layers[0].ffn_down.trits.shape[1]

    @property
    def vocab(self) -> int:
        """Number of tokens."""
        return self.embedding.shape[0]

    @property
    def planes(self) -> int:
        """Trit planes of the embedding."""
        return PLANES


def write_model(path: str | os.PathLike, model: TernaryLM) -> None:
    """Write ``model`` to a GGUF file, its matrices as TQ1_0.

    Raises
    ------
    ValueError
        If a scale is not exact in both bf16 and fp16.
    """
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_name(model.name)
    for key, value in model.metadata.items():
        add = writer.add_string if isinstance(value, str) else writer.add_array
        add(f"general.{key}", value)        # type: ignore[arg-type]
    writer.add_block_count(len(model.layers))
    writer.add_embedding_length(model.width)
    writer.add_feed_forward_length(model.ffn_width)
    writer.add_vocab_size(model.vocab)
    writer.add_uint32(f"{ARCHITECTURE}.embedding_planes", model.planes)
    for arithmetic, scale in model.logit_scales.items():
        writer.add_float32(f"{ARCHITECTURE}.logit_scale.{arithmetic}", scale)

    vocabulary = model.vocabulary
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types([control if token == vocabulary.end_of_document else normal
                            for token in range(len(vocabulary.tokens))])
    writer.add_token_merges(list(vocabulary.merges))
    writer.add_bos_token_id(vocabulary.end_of_document)
    writer.add_eos_token_id(vocabulary.end_of_document)

    def add_ternary(name: str, trits: np.ndarray, scale: float) -> None:
        if not (scale > 0 and is_bf16(scale) and float(np.float16(scale)) == scale):
            raise ValueError(f"Scale of tensor {name} must be positive and exact in bf16 and fp16, "
                             f"not {scale!r}")
        packed = gguf.quants.quantize(trits.astype(np.float32), gguf.GGMLQuantizationType.TQ1_0)
        # Blocks of zeros would get scale 0: give every block the scale.
        _, block_bytes = GGML_QUANT_SIZES[gguf.GGMLQuantizationType.TQ1_0]
        packed.reshape(-1, block_bytes)[:, -2:] = np.array([scale], "<f2").view(np.uint8)
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.TQ1_0)

    remainder = model.embedding.astype(np.int64)
    for plane in range(model.planes):
        trits = (remainder + 1) % 3 - 1
        add_ternary(f"token_embd.plane{plane}.weight", trits, model.embedding_scale)
        remainder = (remainder - trits) // 3
    for index, layer in enumerate(model.layers):
        for field, name in _MATRICES.items():
            matrix: TernaryMatrix = getattr(layer, field)
            add_ternary(f"blk.{index}.{name}.weight", matrix.trits, matrix.scale)
        writer.add_tensor(f"blk.{index}.mix_forget.bias", layer.forget_bias.astype(np.float32))

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
        for field in fields:
            _, name_bytes, _, dims, raw_type, offset = field.parts
            name = bytes(name_bytes).decode("utf-8", "replace")
            if int(raw_type[0]) not in (known.value for known in gguf.GGMLQuantizationType):
                raise ModelFileError(f"{self._path}: tensor {name} has the unknown type "
                                     f"{int(raw_type[0])}")
            elements = 1
            for dim in dims.tolist():
                elements *= dim
            block, block_bytes = GGML_QUANT_SIZES[gguf.GGMLQuantizationType(int(raw_type[0]))]
            end = int(start_offs) + int(offset[0]) + elements * block_bytes // block
            if end > len(self.data):
                raise ModelFileError(f"{self._path}: truncated: tensor {name} ends at byte {end}, "
                                     f"the file has {len(self.data)}")
        super()._build_tensors(start_offs, fields)


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


class _File:
    """Checked access to the keys and tensors of one file."""

    def __init__(self, path: Path):
        self.path = path
        reader = _open(path)
        self._fields = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    def error(self, message: str) -> ModelFileError:
        return ModelFileError(f"{self.path}: {message}")

    def value(self, key: str) -> Any:
        """Return the value of a metadata key, None where it is missing."""
        field = self._fields.get(key)
        try:
            return None if field is None else field.contents()
        except UnicodeDecodeError:
            raise self.error(f"key {key} is not valid UTF-8") from None

    def keys(self, prefix: str) -> list[str]:
        return [key for key in self._fields if key.startswith(prefix)]

    def positive_int(self, key: str) -> int:
        value = self.value(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(f"key {key} must be a positive integer, not {value!r}")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        value = self.value(key)
        if not _is_strings(value):
            raise self.error(f"key {key} must be an array of strings, not {value!r}"[:300])
        return tuple(value)

    def _tensor(self, name: str, shape: tuple[int, ...],
                types: tuple[gguf.GGMLQuantizationType, ...]) -> gguf.ReaderTensor:
        tensor = self._tensors.get(name)
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

    def ternary(self, name: str, shape: tuple[int, int]) -> TernaryMatrix:
        """Return a matrix of trits that share one scale."""
        tensor = self._tensor(name, shape, _TERNARY_TYPES)
        _, block_bytes = GGML_QUANT_SIZES[tensor.tensor_type]
        blocks = tensor.data.reshape(-1, block_bytes)
        scales = np.ascontiguousarray(blocks[:, -2:]).view("<f2").astype(np.float32)[:, 0]
        scale = float(scales.max())     # NaN if any is
        if not (np.isfinite(scale) and scale > 0):
            raise self.error(f"tensor {name} must have a positive and finite scale, not {scale}")
        if not is_bf16(scale):
            raise self.error(f"tensor {name} must have a scale that bf16 holds exactly, "
                             f"not {scale!r}")
        odd = np.flatnonzero((scales != scale) & (scales != 0))
        if odd.size:
            raise self.error(f"tensor {name} must have one scale, but block {int(odd[0])} has "
                             f"{float(scales[odd[0]])!r} and another block has {scale!r}")
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        trits = np.rint(values / np.float32(scale)).astype(np.int8)
        wrong = np.argwhere(np.abs(trits) > 1)
        if wrong.size:
            row, column = wrong[0].tolist()
            raise self.error(f"tensor {name} must be ternary, but row {row} column {column} holds "
                             f"{int(trits[row, column])} times the scale")
        return TernaryMatrix(trits, scale)

    def vector(self, name: str, size: int) -> np.ndarray:
        """Return a finite float32 vector."""
        tensor = self._tensor(name, (size,), (gguf.GGMLQuantizationType.F32,))
        values = np.array(tensor.data, dtype=np.float32)
        odd = np.flatnonzero(~np.isfinite(values))
        if odd.size:
            raise self.error(f"tensor {name} must be finite, but element {int(odd[0])} is "
                             f"{float(values[odd[0]])}")
        return values


def _read_vocabulary(file: _File, vocab: int) -> Vocabulary:
    kind = file.value("tokenizer.ggml.model")
    if kind != "gpt2":
        raise file.error(f"key tokenizer.ggml.model must be 'gpt2', not {kind!r}")
    tokens = file.strings("tokenizer.ggml.tokens")
    if len(tokens) != vocab:
        raise file.error(f"key tokenizer.ggml.tokens must hold {vocab} tokens, not {len(tokens)}")
    if len(set(tokens)) != vocab:
        raise file.error("key tokenizer.ggml.tokens holds a token twice")
    merges = file.strings("tokenizer.ggml.merges")
    end = file.value("tokenizer.ggml.eos_token_id")
    if not isinstance(end, int) or not 0 <= end < vocab:
        raise file.error(f"key tokenizer.ggml.eos_token_id must be a token below {vocab}, "
                         f"not {end!r}")
    known = set(tokens)
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= known:
            raise file.error(f"key tokenizer.ggml.merges has the entry {merge!r}, "
                             f"whose parts or result are no tokens")
    return Vocabulary(tokens, merges, end)


def _read_logit_scales(file: _File) -> dict[str, float]:
    prefix = f"{ARCHITECTURE}.logit_scale."
    scales = {}
    for key in file.keys(prefix):
        value = file.value(key)
        if not isinstance(value, float) or not value > 0 or not is_bf16(value):
            raise file.error(f"key {key} must be a positive bf16 number, not {value!r}")
        scales[key.removeprefix(prefix)] = value
    if not scales:
        raise file.error(f"keys {prefix}ARITHMETIC are missing")
    return scales


def read_model(path: str | os.PathLike) -> TernaryLM:
    """Read and check a model file.

    Raises
    ------
    ModelFileError
        If the file cannot be opened, is no GGUF file or a truncated one, is of another
        architecture, or has a key or a tensor missing or not as this module's docstring says.
    """
    file = _File(Path(path))
    architecture = file.value("general.architecture")
    if architecture != ARCHITECTURE:
        raise file.error(f"key general.architecture must be {ARCHITECTURE!r}, not {architecture!r}")
    layer_count = file.positive_int(f"{ARCHITECTURE}.block_count")
    width = file.positive_int(f"{ARCHITECTURE}.embedding_length")
    ffn_width = file.positive_int(f"{ARCHITECTURE}.feed_forward_length")
    vocab = file.positive_int(f"{ARCHITECTURE}.vocab_size")
    planes = file.positive_int(f"{ARCHITECTURE}.embedding_planes")
    if planes != PLANES:
        raise file.error(f"key {ARCHITECTURE}.embedding_planes must be {PLANES}, not {planes}")
    for key, value in (("embedding_length", width), ("feed_forward_length", ffn_width)):
        if value % _BLOCK:
            raise file.error(f"key {ARCHITECTURE}.{key} must be a multiple of {_BLOCK}, "
                             f"not {value}")
    vocabulary = _read_vocabulary(file, vocab)

    planes_read = [file.ternary(f"token_embd.plane{plane}.weight", (vocab, width))
                   for plane in range(planes)]
    for plane, matrix in enumerate(planes_read):
        if matrix.scale != planes_read[0].scale:
            raise file.error(f"tensor token_embd.plane{plane}.weight must have the scale of "
                             f"plane 0, {planes_read[0].scale!r}, not {matrix.scale!r}")
    embedding: np.ndarray = np.zeros((vocab, width), np.int8)
    for plane, matrix in enumerate(planes_read):
        embedding += np.int8(3 ** plane) * matrix.trits

    shapes: Mapping[str, tuple[int, int]] = {
        "ffn_gate": (ffn_width, width), "ffn_up": (ffn_width, width),
        "ffn_down": (width, ffn_width)}
    layers = []
    for index in range(layer_count):
        matrices = {field: file.ternary(f"blk.{index}.{name}.weight",
                                        shapes.get(field, (width, width)))
                    for field, name in _MATRICES.items()}
        bias = file.vector(f"blk.{index}.mix_forget.bias", width)
        odd = [element for element in bias.tolist() if not is_bf16(element)]
        if odd:
            raise file.error(f"tensor blk.{index}.mix_forget.bias must hold bf16 numbers, "
                             f"not {odd[0]!r}")
        layers.append(Layer(**matrices, forget_bias=bias))

    metadata: dict[str, str | tuple[str, ...]] = {}
    for key in file.keys("general."):
        value = file.value(key)
        if isinstance(value, str):
            metadata[key.removeprefix("general.")] = value
        elif _is_strings(value):
            metadata[key.removeprefix("general.")] = tuple(value)
    name = metadata.pop("name", Path(path).stem)
    del metadata["architecture"]
    return TernaryLM(name=str(name), embedding=embedding, embedding_scale=planes_read[0].scale,
                     layers=tuple(layers), logit_scales=_read_logit_scales(file),
                     vocabulary=vocabulary, metadata=metadata)
