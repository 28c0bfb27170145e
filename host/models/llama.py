# Ref: H. Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023
# Id: arXiv:2302.13971

"""Llama: transformers with a gated SiLU, from GGUF files and those of llama2.c.

docs/numerics.md, section 11, says what the machine computes of such a model.

Both kinds of file turn neighbouring elements of a head as a pair. The network wants the pairs'
first elements in front of their second ones, so rows of the query and key matrices are put in that
order, which changes no score.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from host.checks import need_memory
from host.files.gguf import GGUFFile
from host.files.llama2c import Llama2cFile
from host.models.base import Source
from host.models.planes import ROWS, to_planes
from host.models.transformer import (
    Attention,
    Floats,
    Transformer,
    attend,
    balancing_powers,
    gguf_attention,
    head_scale,
    layer_shapes,
)
from host.text.tokenizer import open_tokenizer
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.evaluate import ExactProducts, GoldenLM
from sim.golden.graph import Kind, Matrix, Network, Value
from sim.golden.trits import plane_limit

__all__ = ["PLANES", "Layer", "LlamaLM", "balanced", "read"]

#: Trit planes of the layers' matrices: integers of -121..121.
PLANES = 5


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


class _Layers(Sequence[Layer]):
    """Layers that are read from a file each time that they are asked for, but for the newest one.

    ``read`` makes the layer of an index. All of them as float32 would fill the memory.
    """

    def __init__(self, count: int, read: Callable[[int], Layer]):
        self._count = count
        self._read = read
        self._newest: tuple[int, Layer] | None = None

    def __len__(self) -> int:
        return self._count

    def __reduce__(self) -> tuple[type, tuple[tuple[Layer, ...]]]:
        # Another process has them all.
        return tuple, (tuple(self),)

    @overload
    def __getitem__(self, index: int) -> Layer: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Layer, ...]: ...

    def __getitem__(self, index: int | slice) -> Layer | tuple[Layer, ...]:
        if isinstance(index, slice):
            return tuple(self[each] for each in range(self._count)[index])
        index = range(self._count)[index]
        newest = self._newest
        if newest is None or newest[0] != index:
            self._newest = None         # never two at a time
            newest = self._newest = index, self._read(index)
        return newest[1]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LlamaLM(Transformer):
    """A transformer of the Llama family.

    Attributes
    ----------
    layers : sequence of Layer
    planes : int
        Trit planes of the layers' matrices.
    rows : str
        What their rows have of their own, one of :data:`host.models.planes.ROWS`.
    sizes : dict of str to array, shape (elements,)
        Largest magnitude of each element of the lists, by their labels, as some text has them.
    """

    layers: Sequence[Layer]
    sizes: Mapping[str, Floats]
    planes: int = PLANES
    rows: str = ROWS[-1]

    @property
    def ffn_width(self) -> int:
        """Elements of the feed-forward network's hidden vector."""
        return self.layers[0].ffn_down.shape[1]

    def prepare(self, report: Callable[[float, str], None]) -> None:
        """Find the integers of all matrices now, which takes long."""
        if "_network" not in vars(self):
            vars(self)["_network"] = self._describe(report)

    def _describe(self, report: Callable[[float, str], None] | None = None) -> Network:
        if self.integers:
            need_memory(self._integer_bytes(), f"Model {self.name}")
        n = Network()
        shape = self.attention
        if report:
            report(0.0, "embedding")
        x, cosine, sine = self.begin(n)
        for index, layer in enumerate(self.layers):
            n.part = f"blk.{index}"
            if report:
                report((index + 1) / (len(self.layers) + 2), n.part)
            if self.integers:
                layer = balanced(layer, shape, self.sizes[f"{n.part}.ffn_hidden"])
            behind = _Norm(self, n, "mix_in", x, layer.attn_norm,
                           (layer.attn_q, layer.attn_k, layer.attn_v))
            octaves = np.float32(shape.octaves)
            # Keys and values are in their caches before the query's weights have been read.
            key = behind.linear("attn_k", _split_pairs(layer.attn_k, shape.kv_heads))
            value = behind.linear("attn_v", layer.attn_v)
            query = behind.linear("attn_q", _split_pairs(layer.attn_q * octaves, shape.heads))
            mixed = attend(n, self.attention, self.cache, (query, key, value), cosine, sine)
            codes = n.codes("mix_out", mixed)
            x = n.add(x, self.linear(n, "attn_output", layer.attn_output, codes), "x")

            behind = _Norm(self, n, "ffn_in", x, layer.ffn_norm, (layer.ffn_gate, layer.ffn_up))
            gate = n.silu(behind.linear("ffn_gate", layer.ffn_gate))
            up = behind.linear("ffn_up", layer.ffn_up)
            codes = n.codes("ffn_hidden", n.multiply(up, gate, "y"))
            x = n.add(x, self.linear(n, "ffn_down", layer.ffn_down, codes), "x")
        self.finish(n, x)
        return n

    def list_powers(self, label: str, matrices: Sequence[Floats]) -> NDArray[np.float64]:
        """Powers of two of a list behind a norm, for the matrices that it is multiplied by."""
        return balancing_powers(matrices, self.sizes[label])

    def linear(self, n: Network, name: str, weights: Floats, codes: Value,
               norm: Value | None = None) -> Value:
        """Multiply a matrix, as integers of some planes, by codes and a norm."""
        full = f"{n.part}.{name}"
        if not self.integers:
            index = int(n.part.removeprefix("blk."))
            again = functools.partial(self._float_matrix, index, name)
            return n.linear(Matrix(full, again, 1.0, weights.shape), codes, norm)
        root = 1.0 if norm is None else math.sqrt(norm.elements)
        found = to_planes(weights, self.planes, self.rows, root)
        product = n.linear(Matrix(full, found.weights, found.scale), codes, norm)
        return n.gain(f"{name}_rows", product, found.factors)

    def _integer_bytes(self) -> int:
        """Count bytes of the integers of all matrices, before they are there."""
        layer = sum(math.prod(shape) for shape in
                    layer_shapes(self.attention, self.width, self.ffn_width).values())
        each = 1 if plane_limit(self.planes) < 128 else 2
        return len(self.layers) * layer * each + 2 * 2 * self.vocab * self.width

    def _float_matrix(self, index: int, name: str) -> Floats:
        """Make a matrix of the float network from a layer's arrays."""
        layer, shape = self.layers[index], self.attention
        weights: Floats = getattr(layer, name)
        if name == "attn_q":
            weights = _split_pairs(weights * np.float32(shape.octaves), shape.heads)
        elif name == "attn_k":
            weights = _split_pairs(weights, shape.kv_heads)
        gains = {"attn_q": layer.attn_norm, "attn_k": layer.attn_norm, "attn_v": layer.attn_norm,
                 "ffn_gate": layer.ffn_norm, "ffn_up": layer.ffn_norm}
        return weights * gains[name] if name in gains else weights


class _Norm:
    """The list behind a norm, and what is multiplied by it.

    Gains are multiplied into the columns of the matrices, but for powers of two, which are exact
    and make the list's codes, or the columns, better.
    """

    def __init__(self, model: LlamaLM, n: Network, name: str, x: Value, gains: Floats,
                 matrices: Sequence[Floats]):
        self._model = model
        self._network = n
        self._columns = gains
        vector = x
        if model.integers:
            powers = model.list_powers(f"{n.part}.{name}", [matrix * gains for matrix in matrices])
            self._columns = (gains / powers).astype(np.float32)
            vector = n.gain(f"{name}_powers", x, powers)
        self._codes = n.codes(name, vector)
        self._norm = n.norm(x, model.attention.epsilon)

    def linear(self, name: str, weights: Floats) -> Value:
        """Multiply a matrix by the vector behind the norm."""
        return self._model.linear(self._network, name, weights * self._columns, self._codes,
                                  self._norm)


def balanced(layer: Layer, shape: Attention, hidden: Floats) -> Layer:
    """Move powers of two from one matrix to another, where no result changes.

    Keys and values come near 1, where e4m3 has room on both sides, by powers of a head that move to
    the query and to the output matrix. Elements of the hidden vector, whose largest magnitudes are
    ``hidden``, are balanced with the columns of the down matrix by the rows of the up matrix.
    """
    moved = {}
    for name, other in (("attn_k", "attn_q"), ("attn_v", "attn_output")):
        weights = getattr(layer, name)
        # With a normalized vector in front, a row's norm is about what its product is.
        rows = np.square(weights * layer.attn_norm).sum(axis=1, dtype=np.float64)
        means = rows.reshape(shape.kv_heads, -1).mean(axis=1)
        powers = np.exp2(np.rint(np.log2(np.where(means > 0, means, 1)) / 2)).astype(np.float32)
        moved[name] = weights / np.repeat(powers, shape.head_size)[:, np.newaxis]
        factors = np.repeat(powers, shape.heads // shape.kv_heads * shape.head_size)
        moved[other] = getattr(layer, other) * (
            factors[:, np.newaxis] if other == "attn_q" else factors)
    powers = balancing_powers([layer.ffn_down], hidden).astype(np.float32)
    moved["ffn_up"] = layer.ffn_up * powers[:, np.newaxis]
    moved["ffn_down"] = layer.ffn_down / powers
    return dataclasses.replace(layer, **moved)


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
        parts = _parts_of_llama2c(source)
    elif isinstance(source, GGUFFile):
        parts = _parts_of_gguf(source)
    else:
        raise source.error("a model of architecture 'llama' must be a GGUF file or a file of "
                           "llama2.c")
    head, norm = parts["head"], parts["norm"]
    reference = LlamaLM(**parts, sizes={}, head_powers=np.ones(len(norm)), integers=False,
                        logit_scales={"float": 1.0})
    try:
        sizes = _list_sizes(reference)
    except ValueError as error:
        raise source.error(str(error)) from None
    powers = balancing_powers([head * norm], sizes["head.head_in"])
    scales = dict.fromkeys(ARITHMETICS, head_scale(head, norm, powers))
    return dataclasses.replace(reference, sizes=sizes, head_powers=powers, integers=True,
                               logit_scales=scales)


#: Any text would do: what is large in a vector is large in that of nearly every token.
_TEXT = """\
The old house at the end of the road had been empty for ten years when Anna first saw it. "Who lives
there?" she asked her brother, but he only laughed. In 1987, about 3,500 people worked in the mines
north of the river; today there are fewer than forty. To measure the speed of light, we need a clock
and a mirror that is far away. He said: never mind, we will go on without them.
"""


def _list_sizes(model: LlamaLM) -> dict[str, Floats]:
    """Read a text with the float reference; return the largest magnitudes of each list's elements.

    Raises
    ------
    ValueError
        If the model's tokenizer cannot be used, or the model cannot read the text.
    """
    tokens = open_tokenizer(model.vocabulary).encode(_TEXT)
    tokens = [model.vocabulary.start, *tokens][:min(128, model.attention.context)]
    sizes: dict[str, Floats] = {}

    def recorder(label: str) -> Callable[[NDArray], NDArray]:
        def record(vectors: NDArray) -> NDArray:
            sizes[label] = np.abs(vectors).max(axis=0)
            return vectors
        return record

    gates = {step.label: recorder(step.label) for step in model.network()
             if step.kind is Kind.CODES}
    matrices = {step.weights.name: step.weights for step in model.network()
                if step.kind is Kind.LINEAR}

    def products(name: str, activations: NDArray) -> NDArray:
        # One matrix at a time: all of them as float32 would fill the memory.
        return ExactProducts({name: matrices[name].weights})(name, activations)

    lm = GoldenLM(model, ARITHMETICS["float"], products, gates)
    with np.errstate(over="ignore", invalid="ignore"):
        lm.forward(np.array([tokens]), lm.start())
    if not all(np.isfinite(found).all() for found in sizes.values()):
        raise ValueError("vectors overflow: the model's weights are too large")
    return sizes


def _parts_of_llama2c(file: Llama2cFile) -> dict[str, Any]:
    return {
        "name": file.path.stem, "vocabulary": file.vocabulary(),
        **{name: file.arrays[name] for name in ("embedding", "head", "norm")},
        "layers": tuple(Layer(**{field.name: file.arrays[field.name][index]
                                 for field in dataclasses.fields(Layer)})
                        for index in range(file.layers)),
        # The format has no place for the last two; these are llama2.c's own.
        "attention": Attention(heads=file.heads, kv_heads=file.kv_heads,
                               head_size=file.width // file.heads, context=file.context,
                               base=10000.0, epsilon=1e-5)}


def _parts_of_gguf(file: GGUFFile) -> dict[str, Any]:
    width = file.positive_int("llama.embedding_length")
    ffn_width = file.positive_int("llama.feed_forward_length")
    layer_count = file.positive_int("llama.block_count")
    attention = gguf_attention(file, "llama")
    vocabulary = file.vocabulary()
    vocab = vocabulary.size
    shapes = layer_shapes(attention, width, ffn_width)

    def read_layer(index: int) -> Layer:
        norms = {name: file.vector(f"blk.{index}.{name}.weight", width)
                 for name in ("attn_norm", "ffn_norm")}
        matrices = {name: file.matrix(f"blk.{index}.{name}.weight", shape)
                    for name, shape in shapes.items()}
        return Layer(**norms, **matrices)

    layers = _Layers(layer_count, read_layer)
    for _ in layers:        # which checks them
        pass
    if file.has("blk.0.attn_q.bias") or file.has("rope_freqs.weight"):
        raise file.error("biases and factors of the rotary embedding are not supported")
    embedding = file.matrix("token_embd.weight", (vocab, width))
    head = embedding
    if file.has("output.weight"):
        head = file.matrix("output.weight", (vocab, width))
    return {"name": str(file.general().get("name", file.path.stem)), "vocabulary": vocabulary,
            "embedding": embedding, "head": head,
            "norm": file.vector("output_norm.weight", width), "layers": layers,
            "attention": attention}
