# Ref: H. Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023
# Id: arXiv:2302.13971

"""Llama: transformers with RMSNorm, rotary embedding, grouped-query attention and gated SiLU.

docs/numerics.md, sections 10 and 11, say what the machine computes of such a model.

Read from GGUF files of architecture ``llama``, whatever their tensors' types, and from the files
of llama2.c. Both turn neighbouring elements of a head as a pair. The network wants the pairs'
first elements in front of their second ones, so rows of the query and key matrices are put in that
order, which changes no score.
"""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.gguf_file import GGUFFile
from host.llama2c_file import Llama2cFile
from host.model import LanguageModel, Source, to_bf16
from host.planes import to_planes
from sim.golden.model import ARITHMETICS
from sim.golden.network import CACHES, Matrix, Network, Value
from sim.golden.trits import plane_limit

__all__ = ["EMBEDDING_PLANES", "PLANES", "Attention", "Layer", "LlamaLM", "read", "rotary_tables"]

#: Trit planes of the layers' matrices: integers of -121..121.
PLANES = 5

#: Trit planes of embedding and head, which have one scale: -364..364.
EMBEDDING_PLANES = 6

Floats = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Attention:
    """Shape of a transformer's attention.

    Attributes
    ----------
    heads, kv_heads : int
        Heads of the queries, and of keys and values; the first is a multiple of the second.
    head_size : int
        Elements of a head, an even number.
    context : int
        Largest number of tokens.
    base : float
        Of the rotary embedding: pair ``i`` turns by ``base**(-2 i / head_size)`` a token.
    epsilon : float
        Added to the mean square of every norm.
    """

    heads: int
    kv_heads: int
    head_size: int
    context: int
    base: float
    epsilon: float

    def tables(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Cosines and sines of each position, shape (context, head_size / 2)."""
        return rotary_tables(self.context, self.head_size, self.base)


def rotary_tables(context: int, head_size: int,
                  base: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosines and sines of the angles of each position, shape (context, head_size / 2)."""
    turns = base ** (-np.arange(0, head_size, 2) / head_size)
    angles = np.arange(context)[:, np.newaxis] * turns
    return np.cos(angles), np.sin(angles)


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """One layer; fields are called as in a GGUF file.

    Attributes
    ----------
    attn_norm, ffn_norm : float32 array, shape (width,)
        Gains.
    attn_q : float32 array, shape (heads * head_size, width)
    attn_k, attn_v : float32 array, shape (kv_heads * head_size, width)
    attn_output : float32 array, shape (width, heads * head_size)
    ffn_gate, ffn_up : float32 array, shape (ffn_width, width)
    ffn_down : float32 array, shape (width, ffn_width)
    """

    attn_norm: Floats
    ffn_norm: Floats
    attn_q: Floats
    attn_k: Floats
    attn_v: Floats
    attn_output: Floats
    ffn_gate: Floats
    ffn_up: Floats
    ffn_down: Floats


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LlamaLM(LanguageModel):
    """A transformer of the Llama family.

    Attributes
    ----------
    embedding, head : float32 array, shape (vocab, width)
        The same array where they are tied.
    layers : tuple of Layer
    norm : float32 array, shape (width,)
        Gains of the norm in front of the head.
    attention : Attention
    planes : int or None
        Trit planes of the layers' matrices; None for the float reference, whose matrices are as
        they were read.
    rows : str
        What their rows have of their own, one of :data:`host.planes.ROWS`.
    cache : str
        Format of keys and values, one of :data:`sim.golden.network.CACHES`.
    """

    embedding: Floats
    head: Floats
    layers: tuple[Layer, ...]
    norm: Floats
    attention: Attention
    planes: int | None = PLANES
    rows: str = "power"
    cache: str = CACHES[0]

    @property
    def width(self) -> int:
        """Elements of the residual stream."""
        return self.embedding.shape[1]

    @property
    def ffn_width(self) -> int:
        """Elements of the feed-forward network's hidden vector."""
        return self.layers[0].ffn_down.shape[1]

    @property
    def vocab(self) -> int:
        """Number of tokens."""
        return self.embedding.shape[0]

    @property
    def layer_count(self) -> int:
        """Number of layers."""
        return len(self.layers)

    def reference(self) -> "LlamaLM":
        """Return the model with its matrices as they were read: for arithmetic ``float``."""
        return dataclasses.replace(self, planes=None)

    def network(self) -> Network:
        """Describe what a token goes through."""
        return self._network

    @functools.cached_property
    def _network(self) -> Network:
        n = Network()
        shape = self.attention
        n.part = "embedding"
        x = n.embed(self._matrix("embedding", self.embedding.T, 1.0), "x")
        cosine, sine = (n.position(name, table) for name, table in
                        zip(("cos", "sin"), shape.tables(), strict=True))
        for index, layer in enumerate(self.layers):
            n.part = f"blk.{index}"
            behind = _Norm(self, n, "mix_in", x, layer.attn_norm)
            # Scores are in octaves.
            octaves = np.float32(math.log2(math.e) / math.sqrt(shape.head_size))
            query = behind.linear("attn_q", _split_pairs(layer.attn_q * octaves, shape.heads))
            key = behind.linear("attn_k", _split_pairs(layer.attn_k, shape.kv_heads))
            value = behind.linear("attn_v", layer.attn_v)
            query = n.rotate(query, cosine, sine, shape.heads, "q")
            key = n.rotate(key, cosine, sine, shape.kv_heads, "k")
            keys, values = (n.append(vector, shape.kv_heads, shape.context, self.cache, name)
                            for vector, name in ((key, "keys"), (value, "values")))
            mixed = n.attend(query, keys, values, shape.heads, "o")
            codes = n.codes("mix_out", mixed)
            x = n.add(x, self.linear(n, "attn_output", layer.attn_output, codes), "x")

            behind = _Norm(self, n, "ffn_in", x, layer.ffn_norm)
            gate = n.silu(behind.linear("ffn_gate", layer.ffn_gate))
            up = behind.linear("ffn_up", layer.ffn_up)
            codes = n.codes("ffn_hidden", n.multiply(up, gate, "y"))
            x = n.add(x, self.linear(n, "ffn_down", layer.ffn_down, codes), "x")
        n.part = "head"
        behind = _Norm(self, n, "head_in", x, self.norm)
        head: NDArray = self.head * behind.columns / np.float32(self.logit_scales["float"])
        if self.planes is not None:
            head = np.rint(head).astype(np.int16)
        n.head("head", head, behind.codes, behind.norm)
        return n

    def _matrix(self, name: str, weights: Floats, root: float) -> Matrix:
        if self.planes is None:
            return Matrix(name, weights, 1.0)
        found = to_planes(weights, EMBEDDING_PLANES, root=root)
        return Matrix(name, found.weights, found.scale)

    def linear(self, n: Network, name: str, weights: Floats, codes: Value,
               norm: Value | None = None) -> Value:
        """Multiply a matrix, as integers of some planes, by codes and a norm."""
        full = f"{n.part}.{name}"
        if self.planes is None:
            return n.linear(Matrix(full, weights, 1.0), codes, norm)
        root = 1.0 if norm is None else math.sqrt(norm.elements)
        found = to_planes(weights, self.planes, self.rows, root)
        product = n.linear(Matrix(full, found.weights, found.scale), codes, norm)
        return n.gain(f"{name}_rows", product, found.factors)


class _Norm:
    """The list behind a norm, and what is multiplied by it.

    Gains cost nothing when they are multiplied into the columns of the matrices. But where a gain
    is small, the vector has elements that are large, and these would leave the others few steps of
    the codes. So the gains' powers of two, which are exact, are multiplied into the vector first,
    and the columns get what is left.
    """

    def __init__(self, model: LlamaLM, n: Network, name: str, x: Value, gains: Floats):
        self._model = model
        self._network = n
        self.columns = gains
        vector = x
        if model.planes is not None:
            powers = _powers(gains)
            self.columns = (gains / powers).astype(np.float32)
            vector = n.gain(f"{name}_gains", x, powers)
        self.codes = n.codes(name, vector)
        self.norm = n.norm(x, model.attention.epsilon)

    def linear(self, name: str, weights: Floats) -> Value:
        """Multiply a matrix by the vector behind the norm."""
        return self._model.linear(self._network, name, weights * self.columns, self.codes,
                                  self.norm)


def _powers(gains: Floats) -> NDArray[np.float64]:
    """Powers of two nearest to gains, over their median."""
    magnitudes = np.abs(gains.astype(np.float64))
    magnitudes[magnitudes == 0] = np.median(magnitudes) or 1.0
    exponents = np.rint(np.log2(magnitudes))
    return np.exp2(exponents - np.rint(np.median(exponents)))


def _split_pairs(weights: Floats, heads: int) -> Floats:
    """Put the first elements of each head's pairs in front of their second ones."""
    rows, columns = weights.shape
    pairs = weights.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.transpose(0, 2, 1, 3).reshape(rows, columns)


def read(source: Source) -> LlamaLM:
    """Read and check a GGUF file or a file of llama2.c.

    Raises
    ------
    ModelFileError
        If a key or a tensor is missing or not as it must be.
    """
    if isinstance(source, Llama2cFile):
        tensors = _tensors_of_llama2c(source)
    elif isinstance(source, GGUFFile):
        tensors = _tensors_of_gguf(source)
    else:
        raise source.error("a model of architecture 'llama' must be a GGUF file or a file of "
                           "llama2.c")
    # Of the head, the scale is what the machine multiplies its integers by: bf16 over the root.
    norm = tensors["norm"]
    head = tensors["head"] * (norm / _powers(norm)).astype(np.float32)
    root = math.sqrt(len(norm))
    largest = float(np.abs(head).max()) / plane_limit(EMBEDDING_PLANES)
    scale = to_bf16(largest * root * (1 + 2 ** -8)) / root or 1.0
    return LlamaLM(**tensors, logit_scales=dict.fromkeys(ARITHMETICS, scale))


def _tensors_of_llama2c(file: Llama2cFile) -> dict[str, Any]:
    return {
        "name": file.path.stem, "vocabulary": file.vocabulary(),
        **{name: file.arrays[name] for name in ("embedding", "head", "norm")},
        "layers": tuple(Layer(**{field.name: file.arrays[field.name][index]
                                 for field in dataclasses.fields(Layer)})
                        for index in range(file.layers)),
        "attention": Attention(heads=file.heads, kv_heads=file.kv_heads,
                               head_size=file.width // file.heads, context=file.context,
                               base=10000.0, epsilon=1e-5)}


def _tensors_of_gguf(file: GGUFFile) -> dict[str, Any]:
    width = file.positive_int("llama.embedding_length")
    ffn_width = file.positive_int("llama.feed_forward_length")
    layer_count = file.positive_int("llama.block_count")
    heads = file.positive_int("llama.attention.head_count")
    kv_heads = file.positive_int("llama.attention.head_count_kv", heads)
    if width % heads or heads % kv_heads:
        raise file.error(f"key llama.attention.head_count must divide the width, {width}, and be a "
                         f"multiple of llama.attention.head_count_kv, {kv_heads}, not {heads}")
    head_size = file.positive_int("llama.rope.dimension_count", width // heads)
    if head_size != width // heads or head_size % 2:
        raise file.error(f"key llama.rope.dimension_count must be {width // heads}, the size of a "
                         f"head, and even, not {head_size}")
    for suffix in ("type", "factor"):
        if file.value(f"llama.rope.scaling.{suffix}") not in (None, "none"):
            raise file.error(f"key llama.rope.scaling.{suffix} is not supported")
    vocabulary = file.vocabulary()
    vocab = vocabulary.size
    attention = Attention(
        heads=heads, kv_heads=kv_heads, head_size=head_size,
        context=file.positive_int("llama.context_length"),
        base=file.positive_float("llama.rope.freq_base", 10000.0),
        epsilon=file.positive_float("llama.attention.layer_norm_rms_epsilon"))
    kv_width = kv_heads * head_size
    shapes = {"attn_q": (width, width), "attn_k": (kv_width, width), "attn_v": (kv_width, width),
              "attn_output": (width, width), "ffn_gate": (ffn_width, width),
              "ffn_up": (ffn_width, width), "ffn_down": (width, ffn_width)}
    layers = []
    for index in range(layer_count):
        norms = {name: file.vector(f"blk.{index}.{name}.weight", width)
                 for name in ("attn_norm", "ffn_norm")}
        matrices = {name: file.matrix(f"blk.{index}.{name}.weight", shape)
                    for name, shape in shapes.items()}
        layers.append(Layer(**norms, **matrices))
    embedding = file.matrix("token_embd.weight", (vocab, width))
    head = embedding
    if file.has("output.weight"):
        head = file.matrix("output.weight", (vocab, width))
    return {"name": str(file.general().get("name", file.path.stem)), "vocabulary": vocabulary,
            "embedding": embedding, "head": head,
            "norm": file.vector("output_norm.weight", width), "layers": tuple(layers),
            "attention": attention}
