"""What the families of transformers have in common: embedding, attention and head.

docs/numerics.md, section 11, says what the machine computes of them.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from host.files.gguf import GGUFFile
from host.files.tensors import to_bf16
from host.models.base import LanguageModel, Source
from host.models.planes import row_pieces, to_planes
from sim.golden.graph import CACHES, Matrix, Network, Value
from sim.golden.trits import plane_limit

__all__ = ["BASES", "EMBEDDING_PLANES", "EPSILONS", "Attention", "Floats", "Transformer", "attend",
           "balancing_powers", "gguf_attention", "head_scale", "layer_shapes", "most_positions"]

#: Trit planes of embedding and head, which have one scale: -364..364.
EMBEDDING_PLANES = 6

#: Bounds of a rotary embedding's base, and of what is added to a norm's mean square.
BASES = {"least": 1.0, "most": 1e12}
EPSILONS = {"least": 1e-20, "most": 1.0}

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
    base : float
        Of the rotary embedding: pair ``i`` turns by ``base**(-2 i / head_size)`` a token.
    epsilon : float
        Added to the mean square of every norm, in the float reference.
    """

    heads: int
    kv_heads: int
    head_size: int
    context: int
    base: float
    epsilon: float

    @property
    def octaves(self) -> float:
        """Factor of the queries, by which scores are in octaves."""
        return math.log2(math.e) / math.sqrt(self.head_size)

    def tables(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Cosines and sines of the angles of each position, shape (context, head_size / 2)."""
        turns = self.base ** (-np.arange(0, self.head_size, 2) / self.head_size)
        angles = np.arange(self.context)[:, np.newaxis] * turns
        return np.cos(angles), np.sin(angles)


def gguf_attention(file: GGUFFile, prefix: str) -> Attention:
    """Read the shape of the attention from the keys of a GGUF file.

    Raises
    ------
    ModelFileError
        If a key is missing, or does not fit the others.
    """
    width = file.positive_int(f"{prefix}.embedding_length")
    heads = file.positive_int(f"{prefix}.attention.head_count")
    kv_heads = file.positive_int(f"{prefix}.attention.head_count_kv", heads)
    if width % heads or heads % kv_heads or width // heads % 2:
        raise file.error(f"key {prefix}.attention.head_count must divide the width, {width}, into "
                         f"heads of an even size, and be a multiple of "
                         f"{prefix}.attention.head_count_kv, {kv_heads}, not {heads}")
    head_size = width // heads
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        if file.positive_int(f"{prefix}.{key}", head_size) != head_size:
            raise file.error(f"key {prefix}.{key} must be {head_size}, the size of a head")
    if file.value(f"{prefix}.rope.scaling.type") not in (None, "none"):
        raise file.error(f"key {prefix}.rope.scaling.type must be 'none'")
    return Attention(
        heads=heads, kv_heads=kv_heads, head_size=head_size,
        context=file.positive_int(f"{prefix}.context_length",
                                  most=most_positions(file, head_size)),
        base=file.positive_float(f"{prefix}.rope.freq_base", 10000.0, **BASES),
        epsilon=file.positive_float(f"{prefix}.attention.layer_norm_rms_epsilon", **EPSILONS))


def most_positions(source: Source, head_size: int) -> int:
    """Return how many positions a file may ask for.

    Each has a row of the tables, half a head wide, so that a wrong number would fill the memory:
    tables may have four million elements, or an eighth of the file's bytes if that is more.
    """
    return min(1 << 17, max(1 << 22, source.bytes // 8) // (head_size // 2))


def layer_shapes(attention: Attention, width: int, ffn_width: int) -> dict[str, tuple[int, int]]:
    """Rows and columns of a Llama layer's matrices, which are called as in a GGUF file."""
    kv_width = attention.kv_heads * attention.head_size
    return {"attn_q": (width, width), "attn_k": (kv_width, width), "attn_v": (kv_width, width),
            "attn_output": (width, width), "ffn_gate": (ffn_width, width),
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
           cosine: Value, sine: Value) -> Value:
    """Describe attention of queries, keys and values, as the matrices deliver them."""
    query, key, value = vectors
    query = n.rotate(query, cosine, sine, shape.heads, "q")
    key = n.rotate(key, cosine, sine, shape.kv_heads, "k")
    keys, values = (n.append(vector, shape.kv_heads, shape.context, cache, name)
                    for vector, name in ((key, "keys"), (value, "values")))
    return n.attend(query, keys, values, shape.heads, "o")


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
    """

    embedding: Floats
    head: Floats
    norm: Floats
    attention: Attention
    head_powers: NDArray[np.float64]
    cache: str = CACHES[0]
    integers: bool = True

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

    def begin(self, n: Network) -> tuple[Value, Value, Value]:
        """Describe the embedding; return its vector, and the position's cosines and sines."""
        n.part = "embedding"
        if self.integers:
            found = to_planes(self.embedding.T, EMBEDDING_PLANES)
            x = n.embed(Matrix("embedding", found.weights, found.scale), "x")
        else:
            x = n.embed(Matrix("embedding", self.embedding.T, 1.0), "x")
        cosine, sine = self.attention.tables()
        return x, n.position("cos", cosine), n.position("sin", sine)

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
