# Ref: S. Ma et al., "BitNet b1.58 2B4T Technical Report", 2025
# Id: arXiv:2504.12285

"""BitNet b1.58: transformers with ternary matrices, a norm behind attention and one behind the FFN.

docs/numerics.md, section 11, says what the machine computes of such a model.

Read from checkpoints (``BitNetForCausalLM``, packed), and from GGUF files of architecture
``bitnet-b1.58``, ``bitnet-25`` or ``bitnet``, whose matrices are I2_S, TQ1_0 or TQ2_0. In all,
element ``i`` of a head's first half and of its second half are a pair, as the network wants it.
"""

import dataclasses
from typing import Any

import numpy as np

from host.files.gguf import GGUFFile
from host.files.safetensors import Checkpoint
from host.files.tensors import TernaryMatrix
from host.models.base import Source
from host.models.transformer import (
    Attention,
    Floats,
    Transformer,
    attend,
    balancing_powers,
    checkpoint_attention,
    gguf_attention,
    head_scale,
    layer_shapes,
)
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.graph import Matrix, Network, Value

__all__ = ["GGUFS", "BitNetLM", "Layer", "attention_of", "read"]


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """One layer; fields are called as in a GGUF file.

    Attributes
    ----------
    attn_norm, attn_sub_norm, ffn_norm : float32 array, shape (width,)
        Gains.
    ffn_sub_norm : float32 array, shape (ffn_width,)
        Gains.
    attn_q, attn_k, attn_v, attn_output : TernaryMatrix
    ffn_gate, ffn_up : TernaryMatrix, shape (ffn_width, width)
    ffn_down : TernaryMatrix, shape (width, ffn_width)
    """

    attn_norm: Floats
    attn_sub_norm: Floats
    ffn_norm: Floats
    ffn_sub_norm: Floats
    attn_q: TernaryMatrix
    attn_k: TernaryMatrix
    attn_v: TernaryMatrix
    attn_output: TernaryMatrix
    ffn_gate: TernaryMatrix
    ffn_up: TernaryMatrix
    ffn_down: TernaryMatrix


#: Architectures of GGUF files, and whether the gate is the square of a ReLU, or else a SiLU.
GGUFS = {"bitnet-b1.58": True, "bitnet-25": True, "bitnet": False}

# Tensor of a checkpoint behind "model.layers.N.", by field of Layer.
_NORMS = {"attn_norm": "input_layernorm", "attn_sub_norm": "self_attn.attn_sub_norm",
          "ffn_norm": "post_attention_layernorm", "ffn_sub_norm": "mlp.ffn_sub_norm"}
_MATRICES = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
             "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class BitNetLM(Transformer):
    """A transformer of the BitNet family.

    Attributes
    ----------
    layers : tuple of Layer
    squared : bool
        Whether the gate is the square of a ReLU, or else a SiLU.
    """

    layers: tuple[Layer, ...]
    squared: bool = True

    @property
    def ffn_width(self) -> int:
        """Elements of the feed-forward network's hidden vector."""
        return len(self.layers[0].ffn_sub_norm)

    def _describe(self) -> Network:
        n = Network()
        epsilon = self.attention.epsilon

        def behind_norm(name: str, x: Value, gains: Floats, *, sparse: bool = False,
                        factor: float = 1.0) -> tuple[Value, Value]:
            """Make the list behind a norm: a ternary matrix has no room for its gains.

            ``factor`` is what the vector is multiplied by: epsilon belongs to one without.
            """
            vector = n.gain(f"{name}_gains", x, gains.astype(np.float64))
            return n.codes(name, vector, sparse=sparse), n.norm(x, epsilon * factor ** 2)

        x, turns = self.begin(n)
        for index, layer in enumerate(self.layers):
            n.part = f"blk.{index}"

            def linear(field: str, behind: tuple[Value, Value], factor: float = 1.0,
                       layer: Layer = layer) -> Value:
                ternary: TernaryMatrix = getattr(layer, field)
                matrix = Matrix(f"{n.part}.{field}", ternary.trits, ternary.scale * factor)
                return n.linear(matrix, *behind)

            behind = behind_norm("mix_in", x, layer.attn_norm)
            # The norm behind attention makes the scale of the values free.
            key, value = (_balance(matrix, layer.attn_norm)
                          for matrix in (layer.attn_k, layer.attn_v))
            # Keys and values are in their caches before the query's weights have been read.
            keys, values = linear("attn_k", behind, key), linear("attn_v", behind, value)
            query = linear("attn_q", behind, self.attention.octaves / key)
            mixed = attend(n, self.attention, self.cache, (query, keys, values), turns)
            behind = behind_norm("mix_out", mixed, layer.attn_sub_norm, factor=value)
            x = n.add(x, linear("attn_output", behind), "x")

            behind = behind_norm("ffn_in", x, layer.ffn_norm)
            gate = linear("ffn_gate", behind)
            gate = n.relu(gate) if self.squared else n.silu(gate)
            up = linear("ffn_up", behind)
            hidden = n.multiply(n.multiply(gate, gate) if self.squared else gate, up, "y")
            behind = behind_norm("ffn_hidden", hidden, layer.ffn_sub_norm, sparse=self.squared)
            x = n.add(x, linear("ffn_down", behind), "x")
        self.finish(n, x)
        return n


def _balance(matrix: TernaryMatrix, gains: Floats) -> float:
    """Power of two that brings the products of a matrix near 1, where e4m3 has room.

    With a normalized vector in front, the norm of a row is about what its product is.
    """
    rows = np.square(matrix.trits * gains).sum(axis=1).mean(dtype=np.float64)
    size = matrix.scale * float(np.sqrt(rows))
    return float(np.exp2(-np.rint(np.log2(size)))) if size > 0 else 1.0


def read(source: Source) -> BitNetLM:
    """Read and check a checkpoint or a GGUF file.

    Raises
    ------
    ModelFileError
        If a key or a tensor is missing or not as it must be, or an option is not supported.
    """
    return _read_checkpoint(source) if isinstance(source, Checkpoint) else _read_gguf(source)


def attention_of(source: Source) -> Attention:
    """Read the shape of a model's attention, and no matrix.

    Raises
    ------
    ModelFileError
        As :func:`read` does.
    """
    if isinstance(source, Checkpoint):
        return checkpoint_attention(source, base=500000.0)
    assert isinstance(source, GGUFFile)
    return gguf_attention(source, str(source.architecture))


def _read_gguf(file: Source) -> BitNetLM:
    attention = attention_of(file)
    assert isinstance(file, GGUFFile)
    prefix = str(file.architecture)
    width = file.positive_int(f"{prefix}.embedding_length")
    ffn_width = file.positive_int(f"{prefix}.feed_forward_length")
    vocabulary = file.vocabulary()
    shapes = layer_shapes(attention, width, ffn_width)
    layers = []
    for index in range(file.positive_int(f"{prefix}.block_count")):
        fields: dict[str, Any] = {
            name: file.vector(f"blk.{index}.{name}.weight",
                              ffn_width if name == "ffn_sub_norm" else width)
            for name in _NORMS}
        fields |= {name: file.ternary(f"blk.{index}.{name}.weight", shape, exact=False)
                   for name, shape in shapes.items()}
        layers.append(Layer(**fields))
    embedding = file.matrix("token_embd.weight", (vocabulary.size, width))
    head = embedding
    if file.has("output.weight"):
        head = file.matrix("output.weight", embedding.shape)
    return BitNetLM(
        name=str(file.general().get("name", file.path.stem)), vocabulary=vocabulary,
        embedding=embedding, attention=attention, layers=tuple(layers), squared=GGUFS[prefix],
        **_head(head, file.vector("output_norm.weight", width)))


def _head(head: Floats, norm: Floats) -> dict[str, Any]:
    """Return the fields of the head."""
    powers = balancing_powers([head * norm])
    return {"head": head, "norm": norm, "head_powers": powers,
            "logit_scales": dict.fromkeys(ARITHMETICS, head_scale(head, norm, powers))}


def _read_checkpoint(file: Checkpoint) -> BitNetLM:
    file.must_be("architectures", ["BitNetForCausalLM"])
    file.must_be("hidden_act", "relu2")
    file.must_be("attention_bias", False)
    width, ffn_width = file.positive_int("hidden_size"), file.positive_int("intermediate_size")
    attention = attention_of(file)
    vocab = file.positive_int("vocab_size")
    vocabulary = file.vocabulary(vocab)
    matrix = file.ternary_reader()
    if matrix is None:
        raise file.error("key quantization_config of config.json must have the quant_method "
                         "'bitnet': matrices must be packed")
    shapes = layer_shapes(attention, width, ffn_width)
    layers = []
    for index in range(file.positive_int("num_hidden_layers")):
        layer = f"model.layers.{index}"
        fields: dict[str, Any] = {
            field: file.tensor(f"{layer}.{name}.weight",
                               (ffn_width if field == "ffn_sub_norm" else width,))
            for field, name in _NORMS.items()}
        fields |= {field: matrix(f"{layer}.{name}", shapes[field])
                   for field, name in _MATRICES.items()}
        layers.append(Layer(**fields))
    embedding = file.tensor("model.embed_tokens.weight", (vocab, width))
    # The class's default is not tied, the released model is.
    tied = file.value("tie_word_embeddings", False)
    head = embedding if tied is True else file.tensor("lm_head.weight", (vocab, width))
    return BitNetLM(
        name=file.path.resolve().name, vocabulary=vocabulary, embedding=embedding,
        attention=attention, layers=tuple(layers),
        **_head(head, file.tensor("model.norm.weight", (width,))))
