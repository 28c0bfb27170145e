"""What the families of transformers have in common: embedding, attention and head.

docs/numerics.md, section 11, says what the machine computes of them.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from host.files.gguf import GGUFFile
from host.files.safetensors import Checkpoint
from host.files.tensors import to_bf16
from host.models.base import LanguageModel, Source
from host.models.planes import row_pieces, to_planes
from host.models.rope import Rope, rope_of_checkpoint, rope_of_gguf
from sim.golden.graph import CACHES, Matrix, Network, Value
from sim.golden.trits import plane_limit

__all__ = ["EMBEDDING_PLANES", "EPSILONS", "MULTIPLIERS", "Attention", "Floats", "Transformer",
           "attend", "balancing_powers", "checkpoint_attention", "gguf_attention", "head_scale",
           "layer_shapes", "normalize", "one_of", "positions", "Turns"]

#: Trit planes of embedding and head, which have one scale: -364..364.
EMBEDDING_PLANES = 6

#: Bounds of what is added to a norm's mean square, and of a model's own factors.
EPSILONS = {"least": 1e-20, "most": 1.0}
MULTIPLIERS = {"least": 1e-6, "most": 1e6}

# Of the differences between a list's elements, how much goes into the matrix' columns. Of 0.3, 0.4,
# 0.5, 0.6 and 0.75, this one cost SmolLM2 least with five planes (docs/numerics.md, section 11).
_SHARE = 0.3

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
    rope : Rope
        Rotary embedding of the heads.
    epsilon : float
        Added to the mean square of every norm, in the float reference.
    multiplier : float, optional
        Factor of the scores; where it is missing, one over the root of the head's size.
    local : Rope, optional
        Of layers that attend to a sliding window, where it is another one.
    """

    heads: int
    kv_heads: int
    head_size: int
    context: int
    rope: Rope
    epsilon: float
    multiplier: float | None = None
    local: Rope | None = None

    @property
    def octaves(self) -> float:
        """Factor of the queries, by which scores are in octaves."""
        multiplier = self.multiplier or 1 / math.sqrt(self.head_size)
        return math.log2(math.e) * multiplier

    def tables(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Cosines and sines of the angles of each position, shape (context, head_size / 2)."""
        return self.rope.tables(self.head_size, self.context)


def gguf_attention(file: GGUFFile, prefix: str, *, scaled: bool = False) -> Attention:
    """Read the shape of the attention from the keys of a GGUF file.

    Parameters
    ----------
    file : GGUFFile
    prefix : str
        Of the keys: the architecture.
    scaled : bool
        Whether the architecture has the key ``attention.scale``.

    Raises
    ------
    ModelFileError
        If a key is missing, or does not fit the others.
    """
    width = file.positive_int(f"{prefix}.embedding_length")
    heads = file.positive_int(f"{prefix}.attention.head_count")
    kv_heads = file.positive_int(f"{prefix}.attention.head_count_kv", heads)
    head_size = file.positive_int(f"{prefix}.attention.key_length", max(1, width // heads))
    if heads % kv_heads or head_size % 2 or (
            width % heads and file.value(f"{prefix}.attention.key_length") is None):
        raise file.error(f"key {prefix}.attention.head_count must divide the width, {width}, into "
                         f"heads of an even size, and be a multiple of "
                         f"{prefix}.attention.head_count_kv, {kv_heads}, not {heads}")
    _check_sizes(file, heads, head_size)
    for key in ("rope.dimension_count", "attention.value_length"):
        if file.positive_int(f"{prefix}.{key}", head_size) != head_size:
            raise file.error(f"key {prefix}.{key} must be {head_size}, the size of a head")
    multiplier = f"{prefix}.attention.scale"
    scaled = scaled and bool(file.value(multiplier))
    return Attention(
        heads=heads, kv_heads=kv_heads, head_size=head_size,
        context=context_of(file, file.positive_int(f"{prefix}.context_length"), head_size,
                           file.value(f"{prefix}.attention.sliding_window") and
                           file.positive_int(f"{prefix}.attention.sliding_window")),
        rope=rope_of_gguf(file, prefix, head_size),
        epsilon=file.positive_float(f"{prefix}.attention.layer_norm_rms_epsilon", **EPSILONS),
        multiplier=file.positive_float(multiplier, **MULTIPLIERS) if scaled else None)


def checkpoint_attention(file: Checkpoint, *, base: float, size: int | None = None,
                         window: int | None = None, part: str = "") -> Attention:
    """Read the shape of the attention from the configuration of a checkpoint.

    Parameters
    ----------
    file : Checkpoint
    base : float
        Of the rotary embedding, where the configuration has none.
    size : int, optional
        Of a head, where the configuration has none; by default the heads divide the width.
    window : int, optional
        Tokens that a token attends to at most.
    part : str
        Kind of layers that the rotary embedding is of, where each kind has its own.

    Raises
    ------
    ModelFileError
        If a key is missing, or does not fit the others.
    """
    width, heads = (file.positive_int(key) for key in ("hidden_size", "num_attention_heads"))
    kv_heads = file.positive_int("num_key_value_heads", heads)
    head_size = file.positive_int("head_dim", size or max(1, width // heads))
    if heads % kv_heads or head_size % 2 or (
            width % heads and size is None and file.value("head_dim") is None):
        raise file.error(f"key num_attention_heads of config.json must divide hidden_size, {width},"
                         f" into heads of an even size, and be a multiple of num_key_value_heads, "
                         f"{kv_heads}, not {heads}")
    _check_sizes(file, heads, head_size)
    return Attention(
        heads=heads, kv_heads=kv_heads, head_size=head_size,
        context=context_of(file, file.positive_int("max_position_embeddings"), head_size, window),
        rope=rope_of_checkpoint(file, head_size, base, part),
        epsilon=file.positive_float("rms_norm_eps", 1e-6, **EPSILONS))


def _check_sizes(source: Source, heads: int, head_size: int) -> None:
    """Refuse heads that a file of this size cannot have: their tables would fill the memory."""
    if heads * head_size > max(1 << 16, source.bytes):
        raise source.error(f"must not have {heads} heads of {head_size} elements: the matrices of "
                           f"so many are not in a file of {source.bytes} bytes")


def context_of(source: Source, asked: int, head_size: int, window: int | None = None) -> int:
    """Return how many tokens a sequence may have, and note it where a file says more.

    Each position has a row of the tables, half a head wide, so that a wrong number would fill the
    memory: tables may have four million elements, or an eighth of the file's bytes if that is more.
    Within a sliding window attention sees all tokens, as that of the machine does.
    """
    most = min(1 << 17, max(1 << 22, source.bytes // 8) // (head_size // 2))
    limits = {"the tables of positions": most}
    if window:
        limits["the sliding window of its attention"] = window
    what, limit = min(limits.items(), key=lambda item: item[1])
    if asked <= limit:
        return asked
    source.notes.append(f"Context of {limit:,} tokens and not {asked:,}: that is what {what} "
                        f"{'allow' if limit == most else 'allows'}")
    return limit


def layer_shapes(attention: Attention, width: int, ffn_width: int) -> dict[str, tuple[int, int]]:
    """Rows and columns of a Llama layer's matrices, which are called as in a GGUF file."""
    q_width, kv_width = (heads * attention.head_size
                         for heads in (attention.heads, attention.kv_heads))
    return {"attn_q": (q_width, width), "attn_k": (kv_width, width), "attn_v": (kv_width, width),
            "attn_output": (width, q_width), "ffn_gate": (ffn_width, width),
            "ffn_up": (ffn_width, width), "ffn_down": (width, ffn_width)}


def balancing_powers(columns: Sequence[Floats], sizes: NDArray | None = None,
                     ) -> NDArray[np.float64]:
    """Powers of two by which a list's elements are multiplied, and its matrices' columns divided.

    An int8 code has the same step for all elements of a vector, so that elements which are
    typically large leave few steps to the others; a row of a matrix has one step for all columns.
    The powers share the differences between the two.

    Parameters
    ----------
    columns : sequence of array, shape (rows, columns)
        Matrices that the list is multiplied by.
    sizes : array, shape (columns,), optional
        Largest magnitudes of the elements; without them only the columns are made equal.
    """
    sums = [_squares(matrix) for matrix in columns]
    norms = np.sqrt(sum((found / (found.sum() or 1.0) for found in sums),
                        np.zeros(columns[0].shape[1])))
    logarithms = (1 - _SHARE) * _log2(norms)
    if sizes is not None:
        logarithms -= _SHARE * _log2(sizes)
    return np.exp2(np.rint(logarithms - np.median(logarithms)))


def _squares(matrix: Floats) -> NDArray[np.float64]:
    """Sum of squares of each column."""
    return sum((np.square(matrix[some], dtype=np.float64).sum(axis=0)
                for some in row_pieces(matrix)), np.zeros(matrix.shape[1]))


def _log2(sizes: NDArray) -> NDArray[np.float64]:
    """Logarithms; what is zero counts as the smallest other number."""
    positive = sizes[sizes > 0].astype(np.float64)
    return np.log2(np.maximum(sizes, positive.min())) if positive.size else np.zeros(len(sizes))


def head_scale(head: Floats, norm: Floats, powers: NDArray[np.float64]) -> float:
    """Scale of the head's integers: bf16 over the root that the norm behind them lacks."""
    root = math.sqrt(len(norm))
    factors = (norm / powers).astype(np.float32)
    top = max(float(np.abs(head[some] * factors).max()) for some in row_pieces(head))
    largest = top / plane_limit(EMBEDDING_PLANES)
    # Rounded upwards, so that the largest weight still fits.
    return to_bf16(largest * root * (1 + 2 ** -8)) / root or 1.0


def attend(n: Network, shape: Attention, cache: str, vectors: tuple[Value, Value, Value],
           turns: "Turns | None") -> Value:
    """Describe attention of queries, keys and values, as the matrices deliver them.

    ``turns`` are cosines and sines of the position; without them nothing is turned.
    """
    query, key, value = vectors
    if turns:
        query = n.rotate(query, *turns, shape.heads, "q")
        key = n.rotate(key, *turns, shape.kv_heads, "k")
    keys, values = (n.append(vector, shape.kv_heads, shape.context, cache, name)
                    for vector, name in ((key, "keys"), (value, "values")))
    return n.attend(query, keys, values, shape.heads, "o")


# Norms of heads that wait for their products at once: the machine has 16 scalar registers, one of
# them 1, one of the list, and one or two of norms in front of a matrix.
_NORMS_AT_ONCE = 8


#: Cosines and sines of the position.
Turns = tuple[Value, Value]


def positions(n: Network, name: str,
              tables: tuple[NDArray[np.float64], NDArray[np.float64]]) -> Turns:
    """Describe cosines and sines of the position."""
    cosine, sine = tables
    return n.position(f"cos{name}", cosine), n.position(f"sin{name}", sine)


@functools.lru_cache(512)
def _head_mask(elements: int, heads: int, head: int) -> tuple[NDArray[np.int8], Floats]:
    """Ones in the places of a head, zeros elsewhere, of two types: the same for all layers."""
    mask = np.zeros(elements, np.int8)
    mask[head * (elements // heads):][:elements // heads] = 1
    return mask, mask.astype(np.float32)


def one_of(n: Network, x: Value) -> Value:
    """Make the vector [1], for each token, of any vector: :func:`normalize` needs it."""
    nothing = n.linear(Matrix(f"{n.part}.nothing", np.zeros((1, x.elements), np.int8), 1.0),
                       n.codes("any", x), name="nothing")
    return n.add(nothing, n.constant("1", np.ones(1)), "one")


def normalize(n: Network, name: str, x: Value, one: Value, epsilon: float, heads: int = 1) -> Value:
    """Divide each head of a vector by its root mean square.

    The machine has a norm only in a scalar register, and scalars only behind a matrix. So a matrix
    of ones in the rows of a head, times [1] and the head's norm, puts the norm into the places of
    its elements, exactly; then one product of two vectors is left. The norm of one head is that of
    the vector with zeros in the place of all other ones.

    Parameters
    ----------
    n : Network
    name : str
        Of the vector, and of what is made here.
    x, one : Value
        A vector, and that of :func:`one_of`.
    epsilon : float
        Added to the mean square, in the float reference.
    heads : int
        Equal parts of the vector, one behind the other.
    """
    spread: Value | None = None
    for head in range(heads):
        if head % _NORMS_AT_ONCE == 0:
            codes = n.codes(f"{name}_one{head // _NORMS_AT_ONCE or ''}", one)
        own, mask = _head_mask(x.elements, heads, head)
        part = x if heads == 1 else n.multiply(x, n.constant(f"{name}_head{head}", mask,
                                                             factor=True))
        # The norm's elements are those of all heads: part of the scale and of epsilon.
        norm = n.norm(part, epsilon / heads)
        matrix = Matrix(f"{n.part}.{name}_ones{head}", own[:, np.newaxis], 1 / math.sqrt(heads))
        norms = n.linear(matrix, codes, norm, f"norm of {name} {head}")
        spread = norms if spread is None else n.add(spread, norms, f"norms of {name}")
    assert spread is not None
    return n.multiply(x, spread, f"normalized {name}")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Transformer(LanguageModel):
    """A transformer with RMSNorm, rotary embedding and grouped-query attention.

    Attributes
    ----------
    embedding, head : float32 array, shape (vocab, width)
        The same array where they are tied.
    norm : float32 array, shape (width,)
        Gains of the norm in front of the head.
    attention : Attention
    head_powers : float64 array, shape (width,)
        Powers of two that move from the head's columns to its list.
    cache : str
        Format of keys and values, one of :data:`sim.golden.graph.CACHES`.
    integers : bool
        Whether matrices are integers; otherwise they are as they were read, for arithmetic
        ``float``.
    embedding_factor : float
        By which the embedding is multiplied, and the head is not.
    """

    embedding: Floats
    head: Floats
    norm: Floats
    attention: Attention
    head_powers: NDArray[np.float64]
    cache: str = CACHES[0]
    integers: bool = True
    embedding_factor: float = 1.0

    @property
    def width(self) -> int:
        """Elements of the residual stream."""
        return self.embedding.shape[1]

    @property
    def vocab(self) -> int:
        """Number of tokens."""
        return self.embedding.shape[0]

    @property
    def context(self) -> int:
        """Tokens of a sequence at most."""
        return self.attention.context

    def reference(self) -> Self:
        """Return the model with its matrices as they were read: for arithmetic ``float``."""
        return dataclasses.replace(self, integers=False)

    def begin(self, n: Network) -> tuple[Value, Turns]:
        """Describe the embedding; return its vector, and the position's cosines and sines."""
        n.part = "embedding"
        weights, scale = self.embedding.T, self.embedding_factor
        if self.integers:
            found = to_planes(weights, EMBEDDING_PLANES)
            weights, scale = found.weights, found.scale * self.embedding_factor
        x = n.embed(Matrix("embedding", weights, scale), "x")
        return x, positions(n, "", self.attention.tables())

    def finish(self, n: Network, x: Value) -> None:
        """Describe the last norm and the head."""
        n.part = "head"
        norm = n.norm(x, self.attention.epsilon)
        if not self.integers:
            n.head("head", self._float_head, n.codes("head_in", x), norm, self.head.shape)
            return
        x = n.gain("head_powers", x, self.head_powers)
        factors = (self.norm / self.head_powers).astype(np.float32)
        scale = np.float32(self.logit_scales["float"])
        head: NDArray[np.int16] = np.empty(self.head.shape, np.int16)
        for some in row_pieces(head):
            head[some] = np.rint(self.head[some] / scale * factors)
        n.head("head", head, n.codes("head_in", x), norm)

    def _float_head(self) -> Floats:
        return self.head / np.float32(self.logit_scales["float"]) * self.norm
