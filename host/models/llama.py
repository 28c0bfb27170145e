# Ref: H. Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023
# Id: arXiv:2302.13971

"""The Llama family: transformers with a gated feed-forward network and norms in front of its parts.

One network for all of its members; what they differ in are optional parts of a layer: biases, norms
of queries and keys, norms behind each part, layers that turn nothing, ternary matrices.
:mod:`host.models.llama_files` reads them. docs/numerics.md, section 11, says what the machine
computes of such a model.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from host.checks import need_memory
from host.files.tensors import TernaryMatrix
from host.models.base import Source
from host.models.planes import ROWS, to_planes
from host.models.transformer import (
    Attention,
    Floats,
    Transformer,
    Turns,
    attend,
    balancing_powers,
    head_scale,
    layer_shapes,
    normalize,
    one_of,
    positions,
)
from host.text.tokenizer import open_tokenizer
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.evaluate import ExactProducts, GoldenLM
from sim.golden.graph import Kind, Matrix, Network, Value
from sim.golden.trits import plane_limit

__all__ = ["ACTIVATIONS", "PLANES", "AnyMatrix", "Layer", "Layers", "LlamaLM", "balanced",
           "finished"]

#: A matrix as a layer has it.
AnyMatrix = Floats | TernaryMatrix

#: Trit planes of the layers' matrices: integers of -121..121.
PLANES = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """One layer; fields are called as in a GGUF file.

    Element ``i`` of a head's first half and of its second half are a pair, in rows of queries and
    keys, their biases and gains. Matrices are all of float32, or all ternary.

    Attributes
    ----------
    attn_norm, ffn_norm : float32 array, shape (width,)
        Gains.
    attn_q : matrix, shape (heads * head_size, width)
    attn_k, attn_v : matrix, shape (kv_heads * head_size, width)
    attn_output : matrix, shape (width, heads * head_size)
    ffn_gate, ffn_up : matrix, shape (ffn_width, width)
    ffn_down : matrix, shape (width, ffn_width)
    biases : mapping of str to float32 array, shape (rows,)
        What is added behind some of the matrices, by their names.
    attn_q_norm, attn_k_norm : float32 array, shape (head_size,), optional
        Gains of a norm of each head of queries and of keys.
    post_attention_norm, post_ffw_norm : float32 array, shape (width,), optional
        Gains of a norm of what attention, and the feed-forward network, add.
    turned : bool
        Whether queries and keys are turned by their position.
    local : bool
        Whether they are turned by the local rotary embedding.
    """

    attn_norm: Floats
    ffn_norm: Floats
    attn_q: AnyMatrix
    attn_k: AnyMatrix
    attn_v: AnyMatrix
    attn_output: AnyMatrix
    ffn_gate: AnyMatrix
    ffn_up: AnyMatrix
    ffn_down: AnyMatrix
    biases: Mapping[str, Floats] = dataclasses.field(default_factory=dict)
    attn_q_norm: Floats | None = None
    attn_k_norm: Floats | None = None
    post_attention_norm: Floats | None = None
    post_ffw_norm: Floats | None = None
    turned: bool = True
    local: bool = False

    @property
    def normed(self) -> bool:
        """Whether a vector is normalized that is not in front of a matrix."""
        return not all(gains is None for gains in (self.attn_q_norm, self.attn_k_norm,
                                                   self.post_attention_norm, self.post_ffw_norm))


class Layers(Sequence[Layer]):
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
    activation : str
        Of the gate, one of :data:`ACTIVATIONS`.
    sizes : dict of str to array, shape (elements,)
        Largest magnitude of each element of the lists, by their labels, as some text has them.
    """

    layers: Sequence[Layer]
    sizes: Mapping[str, Floats]
    planes: int = PLANES
    rows: str = ROWS[-1]
    activation: str = "silu"

    @property
    def plain(self) -> bool:
        """Whether layers are nothing but matrices of float32 and two norms, as Llama's are."""
        return self.activation == "silu" and self.embedding_factor == 1 and all(
            not isinstance(layer.attn_q, TernaryMatrix) and layer.turned and not layer.local
            and not layer.biases and not layer.normed for layer in self.layers)

    @property
    def ffn_width(self) -> int:
        """Elements of the feed-forward network's hidden vector."""
        return len(self.layers[0].ffn_gate.trits if isinstance(
            self.layers[0].ffn_gate, TernaryMatrix) else self.layers[0].ffn_gate)

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
        x, turns = self.begin(n)
        local = turns if shape.local is None else positions(
            n, "_local", shape.local.tables(shape.head_size, shape.context))
        one: Value | None = None
        for index, layer in enumerate(self.layers):
            n.part = f"blk.{index}"
            if report:
                report((index + 1) / (len(self.layers) + 2), n.part)
            if layer.normed and one is None:
                one = one_of(n, x)
            if self.integers:
                layer = balanced(layer, shape, self.sizes.get(f"{n.part}.ffn_hidden"))
            x = self._describe_layer(n, layer, x, one, local if layer.local else turns)
        self.finish(n, x)
        return n

    def _describe_layer(self, n: Network, layer: Layer, x: Value, one: Value | None,
                        turns: Turns) -> Value:
        shape = self.attention

        def normed(name: str, vector: Value, gains: Floats | None, heads: int = 1) -> Value:
            """Describe a norm that is not in front of a matrix."""
            if gains is None:
                return vector
            assert one is not None
            vector = normalize(n, name, vector, one, shape.epsilon, heads)
            return n.gain(f"{name}_norm", vector, np.tile(gains, heads).astype(np.float64))

        def biased(name: str, vector: Value) -> Value:
            if name not in layer.biases:
                return vector
            return n.add(vector, n.constant(f"{name}_bias", layer.biases[name]), name)

        behind = _Norm(self, n, "mix_in", x, layer.attn_norm,
                       (layer.attn_q, layer.attn_k, layer.attn_v))
        octaves = shape.octaves
        # Keys and values are in their caches before the query's weights have been read.
        key = biased("attn_k", behind.linear("attn_k", layer.attn_k))
        value = biased("attn_v", behind.linear("attn_v", layer.attn_v))
        if layer.attn_q_norm is None:
            query = behind.linear("attn_q", _times(layer.attn_q, octaves))
            if "attn_q" in layer.biases:
                query = n.add(query, n.constant("attn_q_bias", layer.biases["attn_q"] * octaves))
        else:
            query = biased("attn_q", behind.linear("attn_q", layer.attn_q))
            query = normed("q", query, layer.attn_q_norm * np.float32(octaves), shape.heads)
        key = normed("k", key, layer.attn_k_norm, shape.kv_heads)
        mixed = attend(n, shape, self.cache, (query, key, value), turns if layer.turned else None)
        made = self.linear(n, "attn_output", layer.attn_output, n.codes("mix_out", mixed))
        made = normed("mixed", biased("attn_output", made), layer.post_attention_norm)
        x = n.add(x, made, "x")

        behind = _Norm(self, n, "ffn_in", x, layer.ffn_norm, (layer.ffn_gate, layer.ffn_up))
        gate = ACTIVATIONS[self.activation](
            n, biased("ffn_gate", behind.linear("ffn_gate", layer.ffn_gate)))
        up = biased("ffn_up", behind.linear("ffn_up", layer.ffn_up))
        made = self.linear(n, "ffn_down", layer.ffn_down,
                           n.codes("ffn_hidden", n.multiply(up, gate, "y")))
        made = normed("ffn", biased("ffn_down", made), layer.post_ffw_norm)
        return n.add(x, made, "x")

    def list_powers(self, label: str, matrices: Sequence[Floats]) -> NDArray[np.float64]:
        """Powers of two of a list behind a norm, for the matrices that it is multiplied by."""
        return balancing_powers(matrices, self.sizes[label])

    def linear(self, n: Network, name: str, weights: AnyMatrix, codes: Value,
               norm: Value | None = None) -> Value:
        """Multiply a matrix, ternary or as integers of some planes, by codes and a norm."""
        full = f"{n.part}.{name}"
        if isinstance(weights, TernaryMatrix):
            return n.linear(Matrix(full, weights.trits, weights.scale), codes, norm)
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
        first = self.layers[0].attn_q
        layer = sum(math.prod(shape) for shape in
                    layer_shapes(self.attention, self.width, self.ffn_width).values())
        each = 1 if plane_limit(self.planes) < 128 or isinstance(first, TernaryMatrix) else 2
        return len(self.layers) * layer * each + 2 * 2 * self.vocab * self.width

    def _float_matrix(self, index: int, name: str) -> Floats:
        """Make a matrix of the float network from a layer's arrays."""
        layer = self.layers[index]
        weights = getattr(layer, name)
        assert not isinstance(weights, TernaryMatrix)
        if name == "attn_q" and layer.attn_q_norm is None:
            weights = weights * np.float32(self.attention.octaves)
        gains = {"attn_q": layer.attn_norm, "attn_k": layer.attn_norm, "attn_v": layer.attn_norm,
                 "ffn_gate": layer.ffn_norm, "ffn_up": layer.ffn_norm}
        return weights * gains[name] if name in gains else weights


class _Norm:
    """The list behind a norm, and what is multiplied by it.

    Gains are multiplied into the columns of the matrices, but for powers of two, which are exact
    and make the list's codes, or the columns, better. Ternary matrices have no room for gains,
    which are multiplied into the list.
    """

    def __init__(self, model: LlamaLM, n: Network, name: str, x: Value, gains: Floats,
                 matrices: Sequence[AnyMatrix]):
        self._model = model
        self._network = n
        self._columns = gains
        vector = x
        if isinstance(matrices[0], TernaryMatrix):
            vector = n.gain(f"{name}_gains", x, gains.astype(np.float64))
        elif model.integers:
            powers = model.list_powers(f"{n.part}.{name}", [
                matrix * gains for matrix in matrices if not isinstance(matrix, TernaryMatrix)])
            self._columns = (gains / powers).astype(np.float32)
            vector = n.gain(f"{name}_powers", x, powers)
        self._codes = n.codes(name, vector)
        self._norm = n.norm(x, model.attention.epsilon)

    def linear(self, name: str, weights: AnyMatrix) -> Value:
        """Multiply a matrix by the vector behind the norm."""
        if not isinstance(weights, TernaryMatrix):
            weights = weights * self._columns
        return self._model.linear(self._network, name, weights, self._codes, self._norm)


def _gelu(n: Network, x: Value) -> Value:
    """Compute GELU by its approximation with tanh: ``x sigmoid(2 u)``.

    ``u`` is ``sqrt(2 / pi) (x + 0.044715 x**3)``; the tangent is a sigmoid of twice the size.
    """
    double = -2 * math.sqrt(2 / math.pi)
    inner = n.add(n.constant("gelu_1", np.full(x.elements, double)), n.multiply(
        n.multiply(x, x), n.constant("gelu_3", np.full(x.elements, 0.044715 * double),
                                     factor=True)))
    return n.multiply(x, n.sigmoid_of_negative(n.multiply(x, inner)), f"gelu({x.name})")


#: What a gate goes through, by the names that configurations have for it.
ACTIVATIONS: Mapping[str, Callable[[Network, Value], Value]] = {
    "silu": lambda n, x: n.silu(x), "gelu_pytorch_tanh": _gelu}


def balanced(layer: Layer, shape: Attention, hidden: Floats | None) -> Layer:
    """Move powers of two from one matrix to another, where no result changes.

    Keys and values come near 1, where e4m3 has room on both sides, by powers of a head that move to
    the query and to the output matrix; ternary matrices have one power for all heads, and keys with
    a norm of their own need none. Elements of the hidden vector, whose largest magnitudes are
    ``hidden``, are balanced with the columns of the down matrix by the rows of the up matrix.
    """
    moved: dict[str, Any] = {}
    biases = dict(layer.biases)
    for name, other in (("attn_k", "attn_q"), ("attn_v", "attn_output")):
        if name == "attn_k" and layer.attn_k_norm is not None:
            continue
        weights, target = getattr(layer, name), getattr(layer, other)
        # With a normalized vector in front, a row's norm is about what its product is.
        rows = _row_squares(weights, layer.attn_norm)
        if name in biases:
            rows = rows + np.square(biases[name], dtype=np.float64)
        means = rows.reshape(shape.kv_heads, -1).mean(axis=1)
        if isinstance(weights, TernaryMatrix):
            means[:] = means.mean()
        powers = np.exp2(np.rint(np.log2(np.where(means > 0, means, 1)) / 2)).astype(np.float32)
        own = np.repeat(powers, shape.head_size)
        theirs = np.repeat(powers, shape.heads // shape.kv_heads * shape.head_size)
        if name in biases:
            biases[name] = biases[name] / own
        if other == "attn_q" and other in biases:
            biases[other] = biases[other] * theirs
        if isinstance(weights, TernaryMatrix):
            moved[name] = _times(weights, 1 / float(powers[0]))
            moved[other] = _times(target, float(powers[0]))
        else:
            moved[name] = weights / own[:, np.newaxis]
            moved[other] = target * (theirs[:, np.newaxis] if other == "attn_q" else theirs)
    up, down = layer.ffn_up, layer.ffn_down
    if not isinstance(up, TernaryMatrix) and not isinstance(down, TernaryMatrix):
        powers = balancing_powers([down], hidden).astype(np.float32)
        moved["ffn_up"] = up * powers[:, np.newaxis]
        moved["ffn_down"] = down / powers
        if "ffn_up" in biases:
            biases["ffn_up"] = biases["ffn_up"] * powers
    return dataclasses.replace(layer, **moved, biases=biases)


def _row_squares(weights: AnyMatrix, columns: Floats) -> NDArray[np.float64]:
    """Sum of squares of each row, of a matrix whose columns are multiplied."""
    if isinstance(weights, TernaryMatrix):
        return weights.scale ** 2 * np.square(weights.trits * columns).sum(axis=1, dtype=np.float64)
    return np.square(weights * columns).sum(axis=1, dtype=np.float64)


def _times(weights: AnyMatrix, factor: float) -> AnyMatrix:
    """Multiply a matrix by a number."""
    if isinstance(weights, TernaryMatrix):
        return dataclasses.replace(weights, scale=weights.scale * factor)
    return weights * np.float32(factor)


def finished(source: Source, **parts: Any) -> LlamaLM:
    """Make the model of what was read: find the sizes of its lists, and balance its head with them.

    Parameters
    ----------
    source : Source
    **parts
        Fields of :class:`LlamaLM` but for ``sizes``, ``head_powers`` and ``logit_scales``.

    Raises
    ------
    ModelFileError
        If the model's tokenizer cannot be used, or the model cannot read a text.
    """
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
