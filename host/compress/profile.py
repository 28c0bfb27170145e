# Ref: A. Tomut et al., "CompactifAI: Extreme Compression of Large Language Models using
#      Quantum-Inspired Tensor Networks", 2024
# Id: arXiv:2401.14109

"""How much each matrix of a model can lose, and what becomes of it for a size or a divergence.

**Profile.** One matrix at a time is replaced by a low-rank product of some bonds, or rounded to few
trit planes, and the float network reads a calibration text with it. What the next-token
distributions then differ by (Jensen-Shannon, bits a token) is, divided by the relative squared
error of the matrix, its **sensitivity**: one to what is cut off, and one to rounding.

**Search.** The divergence of a choice is taken to be its errors times the sensitivities, and those
of different matrices to add up. Bytes and divergence are then weighed by one price for the whole
model: each matrix takes the choice with the smallest sum, and the price is searched for the budget.
So planes, shapes and bonds are chosen together. What is chosen is measured in the end.
"""

import concurrent.futures
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.checks import LONGEST_JSON, FileError, JSONError, parse_json
from host.compress.chains import Choice, Layers
from host.errors import TallyError
from host.measure.compare import jensen_shannon, log_softmax
from host.models.mpo_llama import MATRICES, ChainMatrix, MpoLlamaLM
from host.models.planes import ROWS, PlaneMatrix, to_planes
from host.models.tensor_train import (
    Shape,
    bond_for,
    bonds_up_to,
    full_bonds,
    shapes,
    site_by_site,
    tensorize,
)
from host.models.transformer import EMBEDDING_PLANES, Floats
from hw.config import EngineConfig
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.evaluate import ExactProducts, GoldenLM, Hidden, model_matrices
from sim.golden.graph import Value
from sim.timing.program import BITS_PER_TRIT

__all__ = ["EMBEDDING", "METHODS", "BudgetError", "Option", "Plan", "Profile", "Sensitivity",
           "cycles_of", "plan_for", "profile"]

#: Bonds that are measured, as shares of the elements of a matrix that are kept.
_KEPT = (0.5, 0.25)

#: Planes that are measured.
_PLANES = 2

#: What a matrix may become, by the name of what is searched.
METHODS: dict[str, tuple[str, ...]] = {
    "quantized": ("quantized",), "low-rank": ("low-rank",), "mpo": ("mpo-2", "mpo-3"),
    "joint": ("quantized", "low-rank", "mpo-2", "mpo-3")}

_CHOSEN_PLANES = (1, 2, 3, 4, 5)
_CHOSEN_SHARES = (0.9, 0.75, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1)
_EMBEDDING_PLANES = (2, 3, 4, 5, 6)

#: Name of embedding and head in a profile.
EMBEDDING = "embedding"


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """A measurement of a profile.

    Attributes
    ----------
    layer : int
        -1 for embedding and head.
    matrix : str
    method : str
        ``low-rank`` or ``quantized``.
    bond, planes : int
        Whichever the method has; the other is 0.
    error : float
        Relative squared error of the matrix.
    perplexity, jsd : float
        Of the calibration text, and from the model as it was read.
    """

    layer: int
    matrix: str
    method: str
    bond: int
    planes: int
    error: float
    perplexity: float
    jsd: float


class _Text:
    """The float network, which has read a text, and reads it again from some layer on."""

    def __init__(self, layers: Layers, tokens: NDArray[np.integer]):
        self._model = _floats(layers)
        self._products = ExactProducts(model_matrices(self._model))
        self._changed: dict[str, Floats] = {}
        self._lm = GoldenLM(self._model, ARITHMETICS["float"], self._product)
        self._tokens = tokens[:, :-1]
        self._targets = tokens[:, 1:].reshape(-1)
        self._parts = self._lm.parts()
        self._before: dict[str, dict[Value, Any]] = {}
        values: dict[Value, Any] = {}
        for part, steps in self._parts.items():
            self._before[part] = dict(values)
            self._lm.execute(steps, values, self._tokens, self._lm.start(len(tokens)))
        self._reference = self._logarithms(values)

    def _product(self, name: str, activations: NDArray) -> NDArray:
        if name in self._changed:
            return activations @ self._changed[name].T
        return self._products(name, activations)

    def _logarithms(self, values: dict[Value, Any]) -> NDArray[np.float32]:
        codes, norm = (values[operand] for operand in self._model.network().steps[-1].operands)
        return log_softmax(self._lm.logits(Hidden(codes, norm)))

    def _perplexity(self, logarithms: NDArray) -> float:
        nats = -logarithms[np.arange(len(logarithms)), self._targets]
        return float(np.exp(nats.mean(dtype=np.float64)))

    def measure(self, layer: int, changed: Mapping[str, Floats]) -> tuple[float, float]:
        """Return perplexity and divergence with other matrices in a layer."""
        self._changed = {f"blk.{layer}.{name}": matrix for name, matrix in changed.items()}
        return self._read(f"blk.{layer}")

    def measure_embedding(self, embedding: Floats, head: Floats) -> tuple[float, float]:
        """Return perplexity and divergence with another embedding and head."""
        self._changed = {"head": head}
        values: dict[Value, Any] = {}
        first, *others = self._parts["embedding"]
        values[first] = embedding[self._tokens.reshape(-1)]
        self._lm.execute(others, values, self._tokens, self._lm.start(len(self._tokens)))
        return self._read(None, values)

    def _read(self, first: str | None, values: dict[Value, Any] | None = None,
              ) -> tuple[float, float]:
        names = list(self._parts)
        begin = 1 if first is None else names.index(first)
        values = dict(self._before[names[begin]]) if values is None else values
        for name in names[begin:]:
            self._lm.execute(self._parts[name], values, self._tokens,
                             self._lm.start(len(self._tokens)))
        found = self._logarithms(values)
        self._changed = {}
        return self._perplexity(found), float(jensen_shannon(found, self._reference).mean())


def _floats(layers: Layers) -> MpoLlamaLM:
    """Return the machine's network of a model with matrices of floating point."""
    model = layers.model

    def whole(matrix: Floats) -> PlaneMatrix:
        return PlaneMatrix(matrix, 1.0, np.ones(len(matrix)))

    return MpoLlamaLM(
        name=model.name, vocabulary=model.vocabulary, attention=model.attention,
        logit_scales={"float": 1.0}, embedding=whole(model.embedding), head=layers.head,
        head_powers=model.head_powers, powers=layers.powers,
        layers=tuple({name: ChainMatrix(Shape((len(matrix),), (matrix.shape[1],)),
                                        (whole(matrix),))
                      for name, matrix in matrices.items()} for matrices in layers.matrices))


def _relative(found: NDArray, matrix: NDArray) -> float:
    return float(np.square(found - matrix).sum(dtype=np.float64)
                 / (np.square(matrix).sum(dtype=np.float64) or 1.0))


def _low_rank(matrix: Floats) -> Shape:
    return Shape((1, len(matrix)), (matrix.shape[1], 1))


def profile(layers: Layers, tokens: NDArray[np.integer], path: Path,
            report: Callable[[float, str], None] = lambda done, what: None) -> "Profile":
    """Measure how much each matrix can lose; go on where the file ``path`` ends.

    Parameters
    ----------
    layers : Layers
    tokens : integer array, shape (documents, 1 + steps)
        The calibration text; the first of each row is the one that documents begin with.
    path : Path
        A line of JSON for each measurement.
    report : callable
        Called with the share that is done, and what is done next.

    Raises
    ------
    ValueError
        If the file is of another model or another text.
    """
    key = {"model": layers.model.name, "layers": layers.model.layer_count,
           "tokens": int(tokens.size), "text": int(np.int64(tokens).sum())}
    done: dict[tuple, Sensitivity] = {}
    if path.exists():
        first, found = _read(path, key)
        done = {(row.layer, row.matrix, row.method, row.bond, row.planes): row for row in found}
        # An interrupted run can have left half a line.
        path.write_text("\n".join([first, *(json.dumps(dataclasses.asdict(row)) for row in found)])
                        + "\n", encoding="utf-8")
    else:
        path.write_text(json.dumps(key) + "\n", encoding="utf-8")
    text: _Text | None = None
    wanted = list(_wanted(layers))
    rows = []
    with open(path, "a", encoding="utf-8") as file:
        for index, (layer, name, method, bond, planes) in enumerate(wanted):
            label = name if layer < 0 else f"layer {layer}, {name}"
            change = f"bond {bond}" if bond else f"{planes} planes"
            report(index / len(wanted), f"{label}: {change}")
            row = done.get((layer, name, method, bond, planes))
            if row is None:
                text = text or _Text(layers, tokens)
                row = _measure(layers, text, layer, name, bond, planes)
                file.write(json.dumps(dataclasses.asdict(row)) + "\n")
                file.flush()
            rows.append(row)
    report(1.0, "done")
    return Profile(layers, tuple(rows))


def _read(path: Path, key: dict[str, object]) -> tuple[str, list[Sensitivity]]:
    """Return the first line of a profile, and its measurements, but for a last line that is cut."""
    size = path.stat().st_size
    if size > LONGEST_JSON:
        raise FileError(f"{path}: must have at most {LONGEST_JSON} bytes, not {size}")
    try:
        first, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
        found = parse_json(first)
    except ValueError:
        raise FileError(f"{path}: is not a profile, which begins with {json.dumps(key)} "
                        f"(try another file)") from None
    if found != key:
        raise FileError(f"{path}: is the profile of another model or text, {first}; it must be "
                        f"{json.dumps(key)} (try another file)")
    return first, [_row(path, number, line) for number, line in enumerate(lines, start=2)
                   if line.endswith("}")]


def _row(path: Path, number: int, line: str) -> Sensitivity:
    try:
        row = parse_json(line)
    except JSONError as error:
        raise FileError(f"{path}: line {number} is not JSON: {error}") from None
    kinds = {field.name: field.type for field in dataclasses.fields(Sensitivity)}
    if not isinstance(row, dict) or row.keys() != kinds.keys() or any(
            type(row[name]) is not kind for name, kind in kinds.items()) or min(
            row["layer"] + 1, row["bond"], row["planes"], row["error"], row["perplexity"],
            row["jsd"] + 1e-6) < 0:     # a divergence of nothing can be rounded below 0
        raise FileError(f"{path}: line {number} is no measurement: {line} (delete the line)")
    return Sensitivity(**row)


def _wanted(layers: Layers) -> Iterator[tuple[int, str, str, int, int]]:
    for planes in _EMBEDDING_PLANES:
        yield -1, EMBEDDING, "quantized", 0, planes
    for layer, matrices in enumerate(layers.matrices):
        for name, matrix in matrices.items():
            for kept in _KEPT:
                yield layer, name, "low-rank", round(kept * matrix.size / sum(matrix.shape)), 0
            yield layer, name, "quantized", 0, _PLANES


def _measure(layers: Layers, text: _Text, layer: int, name: str, bond: int,
             planes: int) -> Sensitivity:
    model = layers.model
    if layer < 0:
        embedding, head = (to_planes(matrix, planes).floats().astype(np.float32)
                           for matrix in (model.embedding, layers.head))
        error = _relative(embedding, model.embedding)
        perplexity, jsd = text.measure_embedding(embedding, head)
        return Sensitivity(layer, name, "quantized", 0, planes, error, perplexity, jsd)
    matrix = layers.matrices[layer][name]
    if bond:
        changed = tensorize(matrix, _low_rank(matrix), (bond,)).dense().astype(np.float32)
    else:
        changed = to_planes(matrix, planes, ROWS[-1]).floats().astype(np.float32)
    perplexity, jsd = text.measure(layer, {name: changed})
    return Sensitivity(layer, name, "low-rank" if bond else "quantized", bond, planes,
                       _relative(changed, matrix), perplexity, jsd)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What becomes of every matrix.

    Attributes
    ----------
    choices : tuple of mapping
        Of the matrices of each layer.
    embedding_planes : int
        Of embedding and head.
    bytes : int
        Of the model, in memory, by 1.6 bits a trit.
    divergence : float
        As it is predicted, bits a token.
    """

    choices: tuple[Mapping[str, Choice], ...]
    embedding_planes: int
    bytes: int
    divergence: float


@dataclasses.dataclass(frozen=True)
class Option:
    """A choice, and what it costs; of embedding and head it is a number of planes."""

    choice: Choice | int
    bytes: float
    divergence: float

    def cost(self, engine: EngineConfig | None, width: int) -> float:
        """Count bytes, or cycles of an engine; of embedding and head the head's, ``width`` wide."""
        if engine is None:
            return self.bytes
        if isinstance(self.choice, Choice):
            return self.choice.cycles(engine)
        vocab = round(self.bytes * 8 / BITS_PER_TRIT / (2 * width * self.choice))
        whole = Choice(Shape((vocab,), (width,)), (), self.choice)
        return whole.cycles(engine) - 4 * vocab / engine.port_bytes


class Profile:
    """Sensitivities of a model's matrices, and what follows from them for other choices.

    Attributes
    ----------
    rows : tuple of Sensitivity
    """

    def __init__(self, layers: Layers, rows: tuple[Sensitivity, ...]):
        self.layers = layers
        self.rows = rows
        #: Bytes of what is no matrix: powers of two of lists, and tables of positions.
        self.constants = sum(2 * step.constant.size for step in _floats(layers).network()
                             if step.constant is not None)
        kinds = {(row.layer, row.matrix, row.method) for row in rows}
        #: Divergence for each unit of relative squared error, by layer, matrix and method.
        self.sensitivities = {kind: self._sensitivity(*kind) for kind in kinds}
        self._spectra: dict[tuple[int, str, Shape], list[NDArray[np.float64]]] = {}
        self._rounding: dict[tuple[int, str, int], float] = {}

    def _sensitivity(self, layer: int, name: str, method: str) -> float:
        """Fit what was measured: least squares."""
        rows = [row for row in self.rows if (row.layer, row.matrix, row.method) == (
            layer, name, method)]
        return sum(row.error * row.jsd for row in rows) / (
            sum(row.error ** 2 for row in rows) or 1.0)

    def options(self, layer: int, name: str, methods: Sequence[str]) -> Iterator[Option]:
        """List choices for a matrix, of some :attr:`host.compress.chains.Choice.method`."""
        matrix = self.layers.matrices[layer][name]
        for shape in self.shapes(name, matrix, methods):
            bonds = {bonds_up_to(shape, bond_for(shape, share * matrix.size))
                     for share in _CHOSEN_SHARES} if shape.sites > 1 else {()}
            for bond in bonds:
                for planes in _CHOSEN_PLANES:
                    yield self.option(layer, name, Choice(shape, bond, planes))

    def prepare(self, method: str, workers: int) -> None:
        """Compute in some threads what the choices of a method need of the matrices."""
        places = [(layer, name, shape) for layer, matrices in enumerate(self.layers.matrices)
                  for name, matrix in matrices.items()
                  for shape in self.shapes(name, matrix, METHODS[method])]
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(lambda place: self._cut(place[0], place[1], place[2],
                                                      full_bonds(place[2])), places):
                pass

    def option(self, layer: int, name: str, choice: Choice) -> Option:
        """Predict what a choice costs."""
        rounding, cutting = (self.sensitivities[layer, name, method]
                             for method in ("quantized", "low-rank"))
        error = choice.shape.sites * self._rounded(layer, name, choice.planes)
        cut = self._cut(layer, name, choice.shape, choice.bonds)
        return Option(choice, choice.bytes, cutting * cut + rounding * error)

    def why_alone(self, layer: int, name: str, choice: Choice) -> float:
        """How many times the divergence of a choice the best chain of no more bytes has."""
        own = self.option(layer, name, choice)
        chains = [option.divergence for option in self.options(
            layer, name, ("low-rank", "mpo-2", "mpo-3")) if option.bytes <= own.bytes]
        return min(chains, default=float("inf")) / max(own.divergence, 1e-12)

    def shapes(self, name: str, matrix: NDArray, methods: Sequence[str]) -> Iterator[Shape]:
        """List the shapes that a matrix may have, few of each kind."""
        # Heads that are turned, or that fill up words, are no vector in order.
        shape = self.layers.model.attention
        even = shape.head_size % 16 == 0
        rows = name not in ("attn_q", "attn_k") and (name != "attn_v" or even)
        columns = name != "attn_output" or even
        for count in (1, 2, 3):
            for found in shapes(len(matrix), matrix.shape[1], count, row_digits=rows,
                                column_digits=columns):
                # More vectors cost cycles, and no byte less.
                few = max(found.vectors) <= 2 or (count == 2 and max(found.vectors) == 4)
                if few and Choice(found, (), 1).method in methods:
                    yield found

    def embedding_options(self) -> Iterator[Option]:
        """List choices for embedding and head."""
        size = self.layers.model.embedding.size
        for row in self.rows:
            if row.layer < 0:
                yield Option(row.planes, 2 * size * row.planes * BITS_PER_TRIT / 8, row.jsd)

    def _cut(self, layer: int, name: str, shape: Shape, bonds: Sequence[int]) -> float:
        """Relative squared error of what the bonds cut off, at most."""
        key = layer, name, shape
        if shape.sites == 1:
            return 0.0
        if key not in self._spectra:
            digits = site_by_site(self.layers.matrices[layer][name], shape)
            spectra = []
            for site in range(1, shape.sites):
                left = math.prod(shape.rows[:site]) * math.prod(shape.columns[:site])
                part = digits.reshape(left, -1).astype(np.float64)
                part = part if len(part) <= part.shape[1] else part.T
                values = np.linalg.eigvalsh(part @ part.T)[::-1]
                spectra.append(np.maximum(values, 0) / (values.sum() or 1.0))
            self._spectra[key] = spectra
        return sum(float(values[bond:].sum())
                   for values, bond in zip(self._spectra[key], bonds, strict=True))

    def _rounded(self, layer: int, name: str, planes: int) -> float:
        """Relative squared error of some rows that are rounded."""
        key = layer, name, planes
        if key not in self._rounding:
            rows = self.layers.matrices[layer][name][:64]
            self._rounding[key] = _relative(to_planes(rows, planes, ROWS[-1]).floats(), rows)
        return self._rounding[key]


class BudgetError(TallyError, ValueError):
    """No plan is so small.

    Attributes
    ----------
    least : int
        The smallest budget of which there is a plan.
    """

    def __init__(self, message: str, least: int):
        super().__init__(message)
        self.least = least


def plan_for(found: Profile, method: str, budget: float,
             fixed: Mapping[str, Choice] | None = None,
             engine: EngineConfig | None = None) -> Plan:
    """Choose what becomes of every matrix for a number of bytes.

    Parameters
    ----------
    found : Profile
    method : str
        One of :data:`METHODS`.
    budget : float
        Bytes of the model; with an ``engine``, its cycles for all matrices of a token.
    fixed : mapping, optional
        Choices of matrices, by their names, in the place of what is best.
    engine : EngineConfig, optional

    Raises
    ------
    BudgetError
        If there is no plan with so few; the message has the fewest.
    """
    layers = found.layers

    def cost(option: Option) -> float:
        return option.cost(engine, layers.model.width)

    fixed = fixed or {}
    places = [(layer, name) for layer in range(len(layers.matrices)) for name in MATRICES]
    sets = [[found.option(layer, name, fixed[name])] if name in fixed
            else list(found.options(layer, name, METHODS[method])) for layer, name in places]
    embeddings = list(found.embedding_options())
    constants = found.constants if engine is None else 0
    least = constants + sum(min(map(cost, options)) for options in (*sets, embeddings))
    if budget < least:
        raise BudgetError(f"{'Cycles' if engine else 'Bytes'} of method {method} must be at least "
                          f"{math.ceil(least):,}, not {budget:,.0f}", math.ceil(least))
    # A plane of the embedding is a large step, which no price finds: each number is tried.
    tried = []
    for embedding in embeddings:
        room = budget - constants - cost(embedding)
        if room >= sum(min(map(cost, options)) for options in sets):
            chosen = _cheapest(sets, room, cost)
            tried.append((embedding.divergence + sum(option.divergence for option in chosen),
                          embedding, chosen))
    divergence, embedding, chosen = min(tried, key=lambda entry: entry[0])
    assert isinstance(embedding.choice, int)
    choices: list[dict[str, Choice]] = [{} for _ in layers.matrices]
    for (layer, name), option in zip(places, chosen, strict=True):
        assert isinstance(option.choice, Choice)
        choices[layer][name] = option.choice
    return Plan(tuple(choices), embedding.choice,
                round(found.constants + embedding.bytes + sum(option.bytes for option in chosen)),
                divergence)


def cycles_of(layers: Layers, engine: EngineConfig) -> float:
    """Cycles of a token's matrices as the family ``llama`` has them: five planes, six in front."""
    model = layers.model
    whole = [Choice(Shape((len(matrix),), (matrix.shape[1],)), (), model.planes)
             for matrices in layers.matrices for matrix in matrices.values()]
    head = Option(EMBEDDING_PLANES, 2 * model.embedding.size * EMBEDDING_PLANES * BITS_PER_TRIT / 8,
                  0.0)
    return sum(choice.cycles(engine) for choice in whole) + head.cost(engine, model.width)


def _cheapest(sets: Sequence[Sequence[Option]], room: float,
              cost: Callable[[Option], float]) -> list[Option]:
    """Choose one option of each set: the least divergence at the price that fills the room."""
    costs = [np.array([cost(option) for option in options]) for options in sets]
    divergences = [np.array([option.divergence for option in options]) for options in sets]

    def at(price: float) -> tuple[list[int], float]:
        chosen = [int(np.lexsort((known, found + price * known))[0])
                  for known, found in zip(costs, divergences, strict=True)]
        return chosen, sum(float(known[index]) for known, index in
                           zip(costs, chosen, strict=True))

    low, high = 0.0, 1e-12
    while at(high)[1] > room:
        high *= 4
    for _ in range(40):
        middle = (low + high) / 2
        if at(middle)[1] > room:
            low = middle
        else:
            high = middle
    return [options[index] for options, index in zip(sets, at(high)[0], strict=True)]
