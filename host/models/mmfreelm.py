# Ref: R. Zhu et al., "Scalable MatMul-free Language Modeling", 2024
# Id: arXiv:2406.02528

"""The shipped family: ternary MatMul-free language models of this project, in GGUF files.

docs/numerics.md, section 6, says what a model computes.

The file: ``general.architecture`` is ``mmfreelm``; ``mmfreelm.block_count``, ``embedding_length``,
``feed_forward_length``, ``vocab_size``, ``embedding_planes`` and ``logit_scale.ARITHMETIC`` give
the shape and the head's constants. A matrix is one tensor of ternary blocks that all have the same
scale, which both fp16 and bf16 hold exactly. The embedding is three such tensors; plane ``p``
weighs ``3**p``.
"""

import dataclasses
import os
from collections.abc import Mapping

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES

from host.files.errors import wrong_scale
from host.files.gguf import GGUFFile
from host.files.tensors import TernaryMatrix, is_bf16
from host.files.vocabulary import write_vocabulary
from host.models.base import LanguageModel, Source
from host.text.vocabulary import Vocabulary
from sim.golden.graph import Matrix, Network

__all__ = ["PLANES", "Layer", "TernaryLM", "read", "write_model"]

ARCHITECTURE = "mmfreelm"

#: Trit planes of the embedding: its integers are -13..13.
PLANES = 3

_BLOCK = 256        # elements of a block of either ternary type; its fp16 scale is the last 2 bytes

# Tensor name in the file, by field of Layer.
_MATRICES = {"forget": "mix_forget", "candidate": "mix_candidate", "gate": "mix_gate",
             "output": "mix_output", "ffn_gate": "ffn_gate", "ffn_up": "ffn_up",
             "ffn_down": "ffn_down"}


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


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TernaryLM(LanguageModel):
    """A ternary MatMul-free language model.

    Attributes
    ----------
    name, logit_scales, vocabulary
        As of every model. ``float`` is the same trits with float32 activations, never quantized,
        and exact products.
    embedding : int8 array of -13..13, shape (vocab, width)
        Input embedding and output head.
    embedding_scale : float
        ``s_E``: what the embedding's integers are scaled by on their way in.
    layers : tuple of Layer
    metadata : dict
        The file's ``general.*`` keys without the prefix: a string or a tuple of strings each.
    """

    embedding: np.ndarray
    embedding_scale: float
    layers: tuple[Layer, ...]
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

    def _describe(self) -> Network:
        """Do as docs/numerics.md, section 6, says."""
        n = Network()
        n.part = "embedding"
        x = n.embed(Matrix("embedding", self.embedding.T, self.embedding_scale), "x")
        for index, layer in enumerate(self.layers):
            n.part = f"blk.{index}"

            def matrix(field: str, index: int = index, layer: Layer = layer) -> Matrix:
                ternary: TernaryMatrix = getattr(layer, field)
                return Matrix(f"blk.{index}.{field}", ternary.trits, ternary.scale)

            # Token mixer: the MLGRU.
            codes, norm = n.codes("mix_in", x), n.norm(x)
            forget = n.add(n.linear(matrix("forget"), codes, norm),
                           n.constant("forget_bias", layer.forget_bias), "a")
            update = n.sigmoid_of_negative(forget, "z")
            candidate = n.silu(n.linear(matrix("candidate"), codes, norm), "c")
            gate = n.silu(n.linear(matrix("gate"), codes, norm), "g")
            state = n.recur(update, candidate)
            norm = n.norm(state)
            codes = n.codes("mix_out", n.multiply(state, gate, "o"), sparse=True)
            x = n.add(x, n.linear(matrix("output"), codes, norm), "x")

            # Channel mixer: a gated network whose ReLU makes most of the hidden vector zero.
            codes, norm = n.codes("ffn_in", x), n.norm(x)
            hidden = n.relu(n.linear(matrix("ffn_gate"), codes, norm))
            up = n.linear(matrix("ffn_up"), codes, norm)
            codes = n.codes("ffn_hidden", n.multiply(up, hidden, "y"), sparse=True)
            x = n.add(x, n.linear(matrix("ffn_down"), codes), "x")
        n.part = "head"
        codes, norm = n.codes("head_in", x), n.norm(x)
        n.head("head", self.embedding, codes, norm)
        return n


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

    write_vocabulary(writer, model.vocabulary)

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


def _read_logit_scales(file: GGUFFile) -> dict[str, float]:
    prefix = f"{ARCHITECTURE}.logit_scale."
    scales = {}
    for key in file.keys(prefix):
        value = file.value(key)
        if not isinstance(value, float) or not value > 0 or not is_bf16(value):
            raise file.error(f"key {key} must be a positive bf16 number, not {value!r}"[:300])
        wrong = wrong_scale(value)
        if wrong:
            raise file.error(f"key {key} {wrong}")
        scales[key.removeprefix(prefix)] = value
    if not scales:
        raise file.error(f"keys {prefix}ARITHMETIC are missing")
    return scales


def read(source: Source) -> TernaryLM:
    """Read and check a model file.

    Raises
    ------
    ModelFileError
        If it is not as this module's docstring says.
    """
    assert isinstance(source, GGUFFile)
    file = source
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
    vocabulary = file.byte_vocabulary(vocab)

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

    metadata = file.general()
    name = metadata.pop("name", file.path.stem)
    del metadata["architecture"]
    return TernaryLM(name=str(name), embedding=embedding, embedding_scale=planes_read[0].scale,
                     layers=tuple(layers), logit_scales=_read_logit_scales(file),
                     vocabulary=vocabulary, metadata=metadata)
