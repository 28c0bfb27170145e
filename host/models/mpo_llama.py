# Ref: A. Tomut et al., "CompactifAI: Extreme Compression of Large Language Models using
#      Quantum-Inspired Tensor Networks", 2024
# Id: arXiv:2401.14109

"""Llama whose matrices are chains of tensors, as ``python -m host compress`` writes it.

Every matrix is as the machine multiplies it: gains of norms and all that is moved between matrices
are in it, and its cores are integers of a few trit planes. A matrix that was left alone is a chain
of one core. docs/numerics.md, sections 11 and 12, say what the machine computes of such a model.

A file is GGUF, with these keys and tensors beside those of a Llama's shape and tokenizer:

=====================================  ==========================================================
``mpo_llama.blk.N.MATRIX.rows``        digits of the rows, for each core; ``columns`` likewise
``blk.N.MATRIX.K.weight``              integers of core K, (right bond, row digit) by
                                       (column digit, left bond)
``blk.N.MATRIX.K.scale``               a bf16 number; core 0 behind a norm lacks the norm's root
``blk.N.MATRIX.factors``               of the rows of the last core
``blk.N.LIST.powers``                  powers of two, of each element
``token_embd.weight``, ``output.weight``  integers; each has a ``scale``
=====================================  ==========================================================
"""

import dataclasses
import math
import os
from collections.abc import Mapping

import gguf
import numpy as np
from numpy.typing import NDArray

from host.files.errors import LARGEST, SMALLEST, wrong_scale
from host.files.gguf import GGUFFile
from host.files.vocabulary import write_vocabulary
from host.models.base import LanguageModel, Source
from host.models.planes import ROWS, PlaneMatrix, to_planes
from host.models.tensor_train import Chain, Shape
from host.models.transformer import (
    Attention,
    attend,
    gguf_attention,
    layer_shapes,
    positions,
)
from host.text.vocabulary import PieceVocabulary, Vocabulary
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.graph import CACHES, Matrix, Network, Value

__all__ = ["LISTS", "MATRICES", "ChainMatrix", "MpoLlamaLM", "attention_of", "quantize_chain",
           "read", "write_model"]

ARCHITECTURE = "mpo_llama"

_MOST_SITES = 8

#: Matrices of a layer, with the list that each is multiplied by.
MATRICES = {"attn_q": "mix_in", "attn_k": "mix_in", "attn_v": "mix_in", "attn_output": "mix_out",
            "ffn_gate": "ffn_in", "ffn_up": "ffn_in", "ffn_down": "ffn_hidden"}

#: Lists behind a norm: their vectors are multiplied by powers of two.
LISTS = ("mix_in", "ffn_in")


@dataclasses.dataclass(frozen=True, eq=False)
class ChainMatrix:
    """A chain whose cores are integers.

    Attributes
    ----------
    shape : Shape
    cores : tuple of PlaneMatrix
        As :meth:`host.models.tensor_train.Chain.matrices` has them. Only the last one's rows have
        factors.
    """

    shape: Shape
    cores: tuple[PlaneMatrix, ...]

    @property
    def columns(self) -> int:
        """Columns of the matrix."""
        return math.prod(self.shape.columns)

    @property
    def bonds(self) -> tuple[int, ...]:
        """Sizes of the bonds between neighbouring cores."""
        return tuple(len(core.weights) // digit for core, digit in
                     zip(self.cores[:-1], self.shape.rows[:-1], strict=True))


def quantize_chain(chain: Chain, planes: int, root: float = 1.0) -> ChainMatrix:
    """Round the cores of a chain to integers of some trit planes.

    Parameters
    ----------
    chain : Chain
    planes : int
    root : float
        Of the norm that is multiplied behind the first core: see
        :func:`host.models.planes.to_planes`.
    """
    cores = []
    *inner, last = chain.matrices()
    for index, matrix in enumerate((*inner, last)):
        found = to_planes(matrix.astype(np.float32), planes,
                          ROWS[-1] if matrix is last else ROWS[0], root if index == 0 else 1.0)
        # As a file holds them.
        factors = found.factors.astype(np.float32).astype(np.float64)
        cores.append(dataclasses.replace(found, factors=factors))
    return ChainMatrix(chain.shape, tuple(cores))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class MpoLlamaLM(LanguageModel):
    """A transformer of the Llama family whose matrices are chains.

    Attributes
    ----------
    embedding : PlaneMatrix
        Of shape (vocab, width), with one scale.
    head : integer array, shape (vocab, width)
        Of floating point, as the other matrices, where nothing but a float network reads them.
    head_powers : float64 array, shape (width,)
        Powers of two that move from the head's columns to its list.
    attention : Attention
    layers : tuple of mapping
        For each of :data:`MATRICES`.
    powers : tuple of mapping
        For each of :data:`LISTS`.
    cache : str
        Format of keys and values, one of :data:`sim.golden.graph.CACHES`.
    """

    embedding: PlaneMatrix
    head: NDArray
    head_powers: NDArray[np.float64]
    attention: Attention
    layers: tuple[Mapping[str, ChainMatrix], ...]
    powers: tuple[Mapping[str, NDArray[np.float64]], ...]
    cache: str = CACHES[0]

    @property
    def width(self) -> int:
        """Elements of the residual stream."""
        return self.head.shape[1]

    @property
    def ffn_width(self) -> int:
        """Elements of the feed-forward network's hidden vector."""
        return self.layers[0]["ffn_down"].columns

    @property
    def vocab(self) -> int:
        """Number of tokens."""
        return self.head.shape[0]

    @property
    def context(self) -> int:
        """Tokens of a sequence at most."""
        return self.attention.context

    def _describe(self) -> Network:
        n = Network()
        shape = self.attention
        n.part = "embedding"
        x = n.embed(Matrix("embedding", self.embedding.weights.T, self.embedding.scale), "x")
        turns = positions(n, "", shape.tables())
        for index, (layer, powers) in enumerate(zip(self.layers, self.powers, strict=True)):
            n.part = f"blk.{index}"
            behind = _List(n, "mix_in", layer, n.gain("mix_in_powers", x, powers["mix_in"]),
                           n.norm(x, shape.epsilon))
            key, value, query = (behind.multiply(name) for name in ("attn_k", "attn_v", "attn_q"))
            mixed = attend(n, shape, self.cache, (query, key, value), turns)
            x = n.add(x, _List(n, "mix_out", layer, mixed).multiply("attn_output"), "x")
            behind = _List(n, "ffn_in", layer, n.gain("ffn_in_powers", x, powers["ffn_in"]),
                           n.norm(x, shape.epsilon))
            gate = n.silu(behind.multiply("ffn_gate"))
            hidden = n.multiply(behind.multiply("ffn_up"), gate, "y")
            x = n.add(x, _List(n, "ffn_hidden", layer, hidden).multiply("ffn_down"), "x")
        n.part = "head"
        norm = n.norm(x, shape.epsilon)
        n.head("head", self.head, n.codes("head_in", n.gain("head_powers", x, self.head_powers)),
               norm)
        return n


class _List:
    """A vector, and what is multiplied by it.

    Matrices of one core come before others: a list is made once for all that want it alike.
    """

    def __init__(self, n: Network, name: str, layer: Mapping[str, ChainMatrix], vector: Value,
                 norm: Value | None = None):
        self._network = n
        self._name = name
        self._layer = layer
        self._vector = vector
        self._norm = norm
        self._codes: tuple[int, Value] | None = None    # the newest list of the vector

    def multiply(self, name: str) -> Value:
        """Multiply a matrix of the layer, core by core."""
        n, chain = self._network, self._layer[name]
        x, norm = self._vector, self._norm
        for site, (core, vectors) in enumerate(zip(chain.cores, chain.shape.vectors,
                                                   strict=True)):
            if site == 0:
                codes = self._list(vectors)
            else:
                codes = n.codes(f"{name}.{site}_in", x, vectors=vectors)
                self._codes = None              # which replaces the list before
            last = site == len(chain.cores) - 1
            full = f"{n.part}.{name}" if len(chain.cores) == 1 else f"{n.part}.{name}.{site}"
            x = n.linear(Matrix(full, core.weights, core.scale), codes, norm,
                         name if last else f"{name}.{site}")
            norm = None
        factors = np.tile(chain.cores[-1].factors, chain.shape.vectors[-1])
        return n.gain(f"{name}_rows", x, factors)

    def _list(self, vectors: int) -> Value:
        if self._codes is None or self._codes[0] != vectors:
            name = self._name if vectors == 1 else f"{self._name}.{vectors}"
            self._codes = vectors, self._network.codes(name, self._vector, vectors=vectors)
        return self._codes[1]


def write_model(path: str | os.PathLike, model: MpoLlamaLM) -> None:
    """Write a model to a GGUF file; :func:`read` returns the same one.

    Raises
    ------
    ValueError
        If the model's tokenizer is a file of its own.
    """
    if not isinstance(model.vocabulary, Vocabulary | PieceVocabulary):
        raise ValueError(f"Model {model.name} must have its tokenizer in its own file")
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    shape = model.attention
    writer.add_name(model.name)
    writer.add_block_count(model.layer_count)
    writer.add_embedding_length(model.width)
    writer.add_feed_forward_length(model.ffn_width)
    writer.add_context_length(shape.context)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_freq_base(shape.rope.base)
    if shape.rope.divisors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(shape.rope.divisors, np.float32))
    if shape.rope.scale != 1:
        writer.add_float32(f"{ARCHITECTURE}.rope.scaling.attn_factor", shape.rope.scale)
    if shape.head_size * shape.heads != model.width:
        writer.add_key_length(shape.head_size)
    if shape.multiplier is not None:
        writer.add_float32(f"{ARCHITECTURE}.attention.scale", shape.multiplier)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_float32(f"{ARCHITECTURE}.logit_scale",
                       model.logit_scales["lmul"] * math.sqrt(model.width))
    write_vocabulary(writer, model.vocabulary)

    def add(name: str, matrix: PlaneMatrix, root: float = 1.0) -> None:
        writer.add_tensor(f"{name}.weight", np.ascontiguousarray(matrix.weights))
        writer.add_tensor(f"{name}.scale", np.array([matrix.scale * root], np.float32))

    add("token_embd", model.embedding)
    writer.add_tensor("output.weight", np.ascontiguousarray(model.head))
    writer.add_tensor("output.powers", model.head_powers.astype(np.float32))
    for index, (layer, powers) in enumerate(zip(model.layers, model.powers, strict=True)):
        for name, list_name in MATRICES.items():
            chain = layer[name]
            full = f"blk.{index}.{name}"
            writer.add_array(f"{ARCHITECTURE}.{full}.rows", list(chain.shape.rows))
            writer.add_array(f"{ARCHITECTURE}.{full}.columns", list(chain.shape.columns))
            for site, core in enumerate(chain.cores):
                behind_norm = site == 0 and list_name in LISTS
                add(f"{full}.{site}", core, math.sqrt(model.width) if behind_norm else 1.0)
            writer.add_tensor(f"{full}.factors", chain.cores[-1].factors.astype(np.float32))
        for name in LISTS:
            writer.add_tensor(f"blk.{index}.{name}.powers", powers[name].astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def attention_of(source: Source) -> Attention:
    """Read the shape of a model's attention, and no matrix.

    Raises
    ------
    ModelFileError
        As :func:`read` does.
    """
    assert isinstance(source, GGUFFile)
    return gguf_attention(source, ARCHITECTURE, scaled=True)


def read(source: Source) -> MpoLlamaLM:
    """Read and check a GGUF file.

    Raises
    ------
    ModelFileError
        If a key or a tensor is missing or not as it must be.
    """
    attention = attention_of(source)
    assert isinstance(source, GGUFFile)
    file = source
    width = file.positive_int(f"{ARCHITECTURE}.embedding_length")
    ffn_width = file.positive_int(f"{ARCHITECTURE}.feed_forward_length")
    vocabulary = file.vocabulary()
    root = math.sqrt(width)
    sizes = layer_shapes(attention, width, ffn_width)
    layers, powers = [], []
    for index in range(file.positive_int(f"{ARCHITECTURE}.block_count")):
        layers.append({
            name: _read_chain(file, f"blk.{index}.{name}", sizes[name],
                              root if list_name in LISTS else 1.0)
            for name, list_name in MATRICES.items()})
        powers.append({name: _powers(file, f"blk.{index}.{name}.powers", width)
                       for name in LISTS})
    scale = file.positive_float(f"{ARCHITECTURE}.logit_scale", least=SMALLEST,
                                most=LARGEST) / root
    return MpoLlamaLM(
        name=str(file.general().get("name", file.path.stem)), vocabulary=vocabulary,
        logit_scales=dict.fromkeys(ARITHMETICS, scale), attention=attention,
        embedding=_read_matrix(file, "token_embd", (vocabulary.size, width)),
        head=file.integers("output.weight", (vocabulary.size, width)),
        head_powers=_powers(file, "output.powers", width), layers=tuple(layers),
        powers=tuple(powers))


def _read_matrix(file: GGUFFile, name: str, shape: tuple[int, int],
                 root: float = 1.0) -> PlaneMatrix:
    scale, = file.vector(f"{name}.scale", 1).tolist()
    wrong = wrong_scale(scale)
    if wrong:
        raise file.error(f"tensor {name}.scale {wrong}")
    return PlaneMatrix(file.integers(f"{name}.weight", shape), scale / root, np.ones(shape[0]))


def _read_chain(file: GGUFFile, name: str, size: tuple[int, int], root: float) -> ChainMatrix:
    digits = []
    for axis, whole in zip(("rows", "columns"), size, strict=True):
        key = f"{ARCHITECTURE}.{name}.{axis}"
        found = file.value(key)
        # The machine applies no chain of many sites, and a product of many numbers takes long.
        if not isinstance(found, list) or len(found) > _MOST_SITES or not all(
                type(digit) is int and digit > 0 for digit in found) or math.prod(found) != whole:
            raise file.error(f"key {key} must be at most {_MOST_SITES} positive integers that "
                             f"multiply to {whole}, not {found!r}"[:300])
        digits.append(tuple(found))
    try:
        shape = Shape(*digits)
    except ValueError as error:
        raise file.error(f"tensor {name}: {error}") from None
    if shape.obstacle:
        raise file.error(f"tensor {name}: {shape.obstacle}")
    cores: list[PlaneMatrix] = []
    bond = 1
    for site, (row, column) in enumerate(zip(shape.rows, shape.columns, strict=True)):
        full, last = f"{name}.{site}", site == shape.sites - 1
        rows = row if last else file.rows(f"{full}.weight")
        if rows % row:
            raise file.error(f"tensor {full}.weight must have a multiple of {row} rows, "
                             f"not {rows}")
        cores.append(_read_matrix(file, full, (rows, column * bond), root if site == 0 else 1.0))
        bond = rows // row
    factors = file.vector(f"{name}.factors", shape.rows[-1]).astype(np.float64)
    cores[-1] = dataclasses.replace(cores[-1], factors=factors)
    return ChainMatrix(shape, tuple(cores))


def _powers(file: GGUFFile, name: str, size: int) -> NDArray[np.float64]:
    found = file.vector(name, size).astype(np.float64)
    wrong = np.flatnonzero((np.frexp(found)[0] != 0.5) | (found < SMALLEST))
    if wrong.size:
        raise file.error(f"tensor {name} must hold powers of two of at least 2**-40, but element "
                         f"{int(wrong[0])} is {found[wrong[0]]}")
    return found
