"""Models of the Llama family with chains of tensors in the place of matrices.

A **choice** says what becomes of one matrix: its shape, its bonds and its trit planes. Matrices are
those of the machine's network, in which gains and balancing powers are already multiplied; so a
chain replaces exactly what the engine would multiply by.
"""

import concurrent.futures
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from host.errors import UserError
from host.files.tensors import TernaryMatrix
from host.models.llama import AnyMatrix, LlamaLM
from host.models.mpo_llama import (
    LISTS,
    MATRICES,
    ChainMatrix,
    MpoLlamaLM,
    quantize_chain,
)
from host.models.planes import ROWS, to_planes
from host.models.tensor_train import Chain, Shape, tensorize
from host.models.transformer import Floats
from hw.config import EngineConfig
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.graph import Network, Value
from sim.golden.trits import plane_limit
from sim.timing.program import BITS_PER_TRIT

__all__ = ["Choice", "Layers", "compress", "layers_of"]


@dataclasses.dataclass(frozen=True)
class Choice:
    """What becomes of one matrix.

    Attributes
    ----------
    shape : Shape
    bonds : tuple of int
    planes : int
        Trit planes of all its cores.
    """

    shape: Shape
    bonds: tuple[int, ...]
    planes: int

    @property
    def bytes(self) -> float:
        """Of the cores, and of the factors of the rows: power of two and rest."""
        trits = self.shape.parameters(self.bonds) * self.planes
        return trits * BITS_PER_TRIT / 8 + 4 * math.prod(self.shape.rows[-2:])

    def cycles(self, engine: EngineConfig) -> float:
        """Cycles of a token: of each core those of port or lanes, whichever takes longer.

        Vectors cost lanes, and no byte: which shape and how many sites are best depends on the
        port. Constants and what is no matrix are left out.
        """
        ends = 1, *self.bonds, 1
        total = 4 * math.prod(self.shape.rows) / engine.port_bytes
        for site, vectors in enumerate(self.shape.vectors):
            rows = ends[site + 1] * self.shape.rows[site]
            words = engine.groups(rows) * self.shape.columns[site] * ends[site] * self.planes
            total += words * max(vectors, engine.word_bytes / engine.port_bytes)
        return total

    @property
    def method(self) -> str:
        """What the chain is, for people."""
        if self.shape.sites == 1:
            return "quantized"
        return "low-rank" if max(self.shape.vectors) == 1 else f"mpo-{self.shape.sites}"


@dataclasses.dataclass(frozen=True, eq=False)
class Layers:
    """What a model's layers multiply by, on the machine's network.

    Attributes
    ----------
    model : LlamaLM
    matrices : tuple of mapping to float32 array, shape (rows, columns)
        By :data:`host.models.mpo_llama.MATRICES`, of each layer.
    powers : tuple of mapping to array, shape (columns,)
        By :data:`host.models.mpo_llama.LISTS`, of each layer.
    """

    model: LlamaLM
    matrices: tuple[Mapping[str, Floats], ...]
    powers: tuple[Mapping[str, NDArray[np.float64]], ...]
    _newest: dict = dataclasses.field(default_factory=dict, repr=False)

    def chain(self, layer: int, name: str, choice: Choice) -> ChainMatrix:
        """Make the chain of a matrix."""
        return quantize_chain(self.tensors(layer, name, choice), choice.planes, self.root(name))

    def tensors(self, layer: int, name: str, choice: Choice) -> Chain:
        """Make the chain of a matrix, in floating point; the newest one is remembered."""
        key = choice.shape, choice.bonds
        known = self._newest.get((layer, name))
        if known is None or known[0] != key:
            known = key, tensorize(self.matrices[layer][name], *key)
            self._newest[layer, name] = known
        return known[1]

    def chains(self, choices: Sequence[Mapping[str, Choice]],
               workers: int = 1) -> tuple[dict[str, ChainMatrix], ...]:
        """Make the chains of all matrices, in some threads."""
        places = [(layer, name) for layer, found in enumerate(choices) for name in found]
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            made = pool.map(lambda place: self.chain(place[0], place[1],
                                                     choices[place[0]][place[1]]), places)
            whole = dict(zip(places, made, strict=True))
        return tuple({name: whole[layer, name] for name in found}
                     for layer, found in enumerate(choices))

    def root(self, name: str) -> float:
        """Return what a matrix' scale lacks for its list's norm: see :func:`quantize_chain`."""
        return math.sqrt(self.model.width) if MATRICES[name] in LISTS else 1.0

    @functools.cached_property
    def head(self) -> Floats:
        """What the head's list is multiplied by, shape (vocab, width)."""
        model = self.model
        return model.head * (model.norm / model.head_powers).astype(np.float32)


class _Recorder(LlamaLM):
    """Describes its network to find what it multiplies by."""

    def linear(self, n: Network, name: str, weights: AnyMatrix, codes: Value,
               norm: Value | None = None) -> Value:
        assert not isinstance(weights, TernaryMatrix)
        self.__dict__.setdefault("matrices", {})[f"{n.part}.{name}"] = weights
        # Of the right shape; nobody reads it.
        return n.constant(name, np.zeros(len(weights)))

    def list_powers(self, label, matrices):
        powers = super().list_powers(label, matrices)
        self.__dict__.setdefault("powers", {})[label] = powers
        return powers


def layers_of(model: LlamaLM) -> Layers:
    """Find what a model's layers multiply by.

    Raises
    ------
    UserError
        If they hold more than matrices and two norms.
    """
    if not model.plain:
        raise UserError(f"Model {model.name} must have layers as Llama's to be compressed: of "
                        f"floating-point matrices, without biases and further norms")
    recorder = _Recorder(**{field.name: getattr(model, field.name)
                            for field in dataclasses.fields(LlamaLM)})
    recorder.network()
    matrices, powers = recorder.__dict__["matrices"], recorder.__dict__["powers"]
    count = range(model.layer_count)
    return Layers(
        model,
        tuple({name: matrices[f"blk.{k}.{name}"] for name in MATRICES} for k in count),
        tuple({name: powers[f"blk.{k}.{name}"] for name in LISTS} for k in count))


def compress(layers: Layers, chains: Sequence[Mapping[str, ChainMatrix]],
             embedding_planes: int) -> MpoLlamaLM:
    """Put chains in the place of a model's matrices.

    Parameters
    ----------
    layers : Layers
    chains : sequence of mapping
        Of every matrix of every layer.
    embedding_planes : int
        Trit planes of embedding and head.
    """
    model = layers.model
    width, limit = model.width, plane_limit(embedding_planes)
    root = math.sqrt(width)
    embedding = to_planes(model.embedding, embedding_planes)
    head = to_planes(layers.head, embedding_planes, ROWS[0], root)
    assert np.abs(head.weights).max() <= limit
    return MpoLlamaLM(
        name=f"{model.name}-mpo", vocabulary=model.vocabulary, attention=model.attention,
        logit_scales=dict.fromkeys(ARITHMETICS, head.scale), embedding=embedding,
        head=head.weights, head_powers=model.head_powers, cache=model.cache,
        layers=tuple(chains), powers=layers.powers)
