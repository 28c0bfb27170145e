# Ref: R. Zhu et al., "Scalable MatMul-free Language Modeling", 2024
# Id: arXiv:2406.02528

"""Published MatMul-free checkpoints: ``HGRNBitForCausalLM``.

docs/numerics.md, section 7, says what the machine computes of such a model.

The checkpoint holds 16-bit masters of the weights. **Ternary** are all matrices but the embedding:
trits and one scale by the mean of the magnitudes, in float32 as it is read. The **embedding** is
rounded to integers of :data:`PLANES` trit planes with one scale.

Every matrix has a norm of its own, and most stand behind another norm: *outer* gains, then *inner*
ones. With the vector ``x`` and no epsilon, ``norm(norm(x) * outer) * inner`` is
``x * (outer * inner) / rms(x * outer)``. So codes are made of ``x`` times one vector of gains,
multiplied offline, and the scalar comes from ``x`` times the outer gains. Gains that are all equal
only scale a matrix. Matrices with the same gains share a list.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from host.files.safetensors import Checkpoint
from host.files.tensors import to_bf16
from host.models.base import LanguageModel, Source
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.graph import Matrix, Network, Value

__all__ = ["PLANES", "BitLinear", "HGRNBitLM", "Layer", "read"]

#: Trit planes of the embedding: its integers are -364..364.
PLANES = 6

Gains = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class BitLinear:
    """A ternary matrix with a norm in front of it.

    Attributes
    ----------
    trits : int8 array, shape (rows, columns)
    scale : float
    gains : float64 array, shape (columns,)
        Of its norm.
    """

    trits: NDArray[np.int8]
    scale: float
    gains: Gains


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """One layer; fields are called as in the checkpoint.

    Attributes
    ----------
    attn_norm, mlp_norm, g_norm : float64 array, shape (width,)
        Gains.
    f_proj, i_proj, g_proj, o_proj : BitLinear, shape (width, width)
    gate_proj : BitLinear, shape (2 ffn_width, width)
        Rows of the gate, then those of what it gates.
    down_proj : BitLinear, shape (width, ffn_width)
    share : float64 array, shape (width,)
        Largest share of the state that a token replaces: 1 less the lower bound; 1 in layer 0.
    """

    attn_norm: Gains
    mlp_norm: Gains
    g_norm: Gains
    f_proj: BitLinear
    i_proj: BitLinear
    g_proj: BitLinear
    o_proj: BitLinear
    gate_proj: BitLinear
    down_proj: BitLinear
    share: Gains


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class HGRNBitLM(LanguageModel):
    """A MatMul-free language model as it is published.

    Attributes
    ----------
    embedding : int16 array, shape (vocab, width)
    embedding_scale : float
    embedding_error : float
        What rounding the embedding did to it: root mean square, relative.
    layers : tuple of Layer
    norm : float64 array, shape (width,)
        Gains of the norm in front of the head.
    lm_head : BitLinear, shape (vocab, width)
    """

    embedding: NDArray[np.int16]
    embedding_scale: float
    embedding_error: float
    layers: tuple[Layer, ...]
    norm: Gains
    lm_head: BitLinear

    @property
    def width(self) -> int:
        """Elements of the residual stream."""
        return self.embedding.shape[1]

    @property
    def ffn_width(self) -> int:
        """Elements of the feed-forward network's hidden vector."""
        return self.layers[0].down_proj.trits.shape[1]

    @property
    def vocab(self) -> int:
        """Number of tokens."""
        return self.embedding.shape[0]

    def _describe(self) -> Network:
        n = Network()
        n.part = "embedding"
        x = n.embed(Matrix("embedding", self.embedding.T, self.embedding_scale), "x")
        for index, layer in enumerate(self.layers):
            n.part = f"blk.{index}"
            behind = _Norms(n, "mix_in", x, layer.attn_norm)
            update = n.sigmoid_of_negative(behind.linear("forget", layer.f_proj))
            if not (layer.share == 1).all():
                update = n.multiply(n.constant("share", layer.share, factor=True), update)
            candidate = n.silu(behind.linear("candidate", layer.i_proj), "c")
            gate = behind.linear("gate", layer.g_proj)
            state = n.recur(update, candidate)
            # The norm of the gate is only a scalar, which the norm of the output cancels.
            output = n.multiply(gate, n.silu(state), "o")
            behind = _Norms(n, "mix_out", output, layer.g_norm)
            x = n.add(x, behind.linear("output", layer.o_proj), "x")

            behind = _Norms(n, "ffn_in", x, layer.mlp_norm)
            rows = self.ffn_width
            gate = n.silu(behind.linear("ffn_gate", layer.gate_proj, slice(rows)))
            up = behind.linear("ffn_up", layer.gate_proj, slice(rows, None))
            behind = _Norms(n, "ffn_hidden", n.multiply(up, gate, "y"), np.ones(rows))
            x = n.add(x, behind.linear("ffn_down", layer.down_proj), "x")
        n.part = "head"
        behind = _Norms(n, "head_in", x, self.norm)
        n.head("head", self.lm_head.trits, behind.codes(self.lm_head.gains), behind.norm)
        return n


class _Norms:
    """A vector behind two norms: lists with the inner gains of each matrix, one scalar."""

    def __init__(self, network: Network, name: str, x: Value, outer: Gains):
        self._network = network
        self._name = name
        self._x = x
        self._outer = outer
        self._vectors: dict[bytes, Value] = {}
        self._codes: tuple[Value, Value] | None = None
        self._lists = 0
        self._norm: Value | None = None

    def _times(self, gains: Gains) -> Value:
        """Return the vector times ``gains``, but for what all of them have in common."""
        if _uniform(gains):
            return self._x
        key = gains.tobytes()
        if key not in self._vectors:
            name = f"{self._name}_gains{len(self._vectors) + 1}"
            self._vectors[key] = self._network.gain(name, self._x, gains)
        return self._vectors[key]

    def codes(self, inner: Gains) -> Value:
        """Make a list, unless the last one is the same."""
        vector = self._times(self._outer * inner)
        if self._codes is None or self._codes[0] is not vector:
            self._lists += 1
            name = f"{self._name}{self._lists if self._lists > 1 else ''}"
            self._codes = vector, self._network.codes(name, vector)
        return self._codes[1]

    @property
    def norm(self) -> Value:
        """The scalar."""
        if self._norm is None:
            self._norm = self._network.norm(self._times(self._outer))
        return self._norm

    def linear(self, name: str, matrix: BitLinear, rows: slice = slice(None)) -> Value:
        """Multiply a matrix by the vector behind the two norms."""
        codes = self.codes(matrix.gains)
        scale = matrix.scale * _common(self._outer, matrix.gains)
        return self._network.linear(
            Matrix(f"{self._network.part}.{name}", matrix.trits[rows], scale), codes, self.norm)


def _uniform(gains: Gains) -> bool:
    return bool(gains[0] > 0 and (gains == gains[0]).all())


def _common(outer: Gains, inner: Gains) -> float:
    """Return the factor that equal gains have in common, of the list over that of the scalar."""
    both = outer * inner
    return float((both[0] if _uniform(both) else 1) / (outer[0] if _uniform(outer) else 1))


def read(source: Source) -> HGRNBitLM:
    """Read and check a checkpoint.

    Raises
    ------
    ModelFileError
        If a key or a tensor is missing or not as it must be, or an option is not supported.
    """
    assert isinstance(source, Checkpoint)
    file = source
    file.must_be("architectures", ["HGRNBitForCausalLM"])
    file.must_be("num_heads", 1)
    file.must_be("expand_ratio", 1)
    file.must_be("use_short_conv", False)
    file.must_be("use_lower_bound", True)
    file.must_be("hidden_act", "swish", "silu")
    file.must_be("tie_word_embeddings", False)
    vocab, width = file.positive_int("vocab_size"), file.positive_int("hidden_size")
    layer_count = file.positive_int("num_hidden_layers")
    if file.value("intermediate_size") is None:
        ratio = 4 if file.value("hidden_ratio") is None else file.positive_int("hidden_ratio",
                                                                               most=1 << 16)
        ffn_width = 256 * math.ceil(int(width * ratio * 2 / 3) / 256)
    else:
        ffn_width = file.positive_int("intermediate_size")
    vocabulary = file.vocabulary(vocab)

    def gains(name: str, size: int) -> Gains:
        return file.tensor(f"{name}.weight", (size,)).astype(np.float64)

    def linear(name: str, rows: int, columns: int) -> BitLinear:
        trits, scale = _ternary(file.tensor(f"{name}.weight", (rows, columns)))
        return BitLinear(trits, scale, gains(f"{name}.norm", columns))

    shares = _shares(file.tensor("model.lower_bounds", (layer_count, width)))
    layers = []
    for index, share in enumerate(shares):
        layer = f"model.layers.{index}"
        layers.append(Layer(
            attn_norm=gains(f"{layer}.attn_norm", width),
            mlp_norm=gains(f"{layer}.mlp_norm", width),
            g_norm=gains(f"{layer}.attn.g_norm", width),
            **{f"{name}_proj": linear(f"{layer}.attn.{name}_proj", width, width)
               for name in "figo"},
            gate_proj=linear(f"{layer}.mlp.gate_proj", 2 * ffn_width, width),
            down_proj=linear(f"{layer}.mlp.down_proj", width, ffn_width), share=share))
    embedding, scale, error = _integers(file.tensor("model.embeddings.weight", (vocab, width)))
    norm, lm_head = gains("model.norm", width), linear("lm_head", vocab, width)
    logit_scale = lm_head.scale * _common(norm, lm_head.gains)
    return HGRNBitLM(
        name=file.path.resolve().name, vocabulary=vocabulary,
        logit_scales=dict.fromkeys(ARITHMETICS, logit_scale),
        notes=(f"Embedding rounded to {PLANES} trit planes: error {error:.2%} (root mean square)",),
        embedding=embedding, embedding_scale=scale, embedding_error=error, layers=tuple(layers),
        norm=norm, lm_head=lm_head)


def _ternary(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], float]:
    """Round to trits by the mean of the magnitudes: float64, then float32."""
    mean = np.float32(max(float(np.abs(weights).mean(dtype=np.float64)), 1e-5))
    trits = np.clip(np.rint(weights * (np.float32(1) / mean)), -1, 1)
    return trits.astype(np.int8), float(mean)


def _integers(weights: NDArray[np.float32]) -> tuple[NDArray[np.int16], float, float]:
    """Round to integers of some planes: integers, scale, and relative error."""
    limit = (3 ** PLANES - 1) // 2
    scale = to_bf16(float(np.abs(weights).max()) / limit) or 1.0
    integers = np.clip(np.rint(weights / np.float32(scale)), -limit, limit)
    error = float(np.linalg.norm(weights - integers * np.float32(scale)))
    return integers.astype(np.int16), scale, error / (float(np.linalg.norm(weights)) or 1.0)


def _shares(bounds: NDArray[np.float32]) -> Gains:
    """Return 1 less the lower bound of the forget gate, layer by layer."""
    weights = np.exp(bounds.astype(np.float64) - bounds.max(axis=0))
    weights /= weights.sum(axis=0)
    return 1 - (weights.cumsum(axis=0) - weights[0])
