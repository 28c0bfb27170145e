# Ref: J. Liu et al., "Training-Free Activation Sparsity in Large Language Models", 2024
# Id: arXiv:2408.14690

"""Calibration of a model's masks on a text: how many entries each list keeps, and its threshold.

A sparsity is a share of a layer's trits. It is shared out between the lists of a layer by
TEAL's greedy search: in steps that take the same number of trits from whichever list they take
them, always from the list where the layer's output changes least. Layers are searched apart, each
on its input in the model without masks.
"""

import concurrent.futures
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.compress.masks import ListMask, Masks, fingerprint, list_columns, list_norms, list_rows
from host.measure.workers import default_workers, worker_pool
from host.models.base import LanguageModel
from host.text.tokenizer import AnyTokenizer
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.bf16 import to_float32
from sim.golden.evaluate import ExactProducts, GoldenLM, model_matrices
from sim.golden.graph import Value
from sim.golden.wina import Mask, scores

__all__ = ["ALLOCATIONS", "calibrate", "calibration_tokens"]

#: ``greedy`` as described above; ``uniform`` drops the same share of each list's columns.
ALLOCATIONS = ("greedy", "uniform")

#: Share of a layer's trits that one step of the greedy search takes.
_STEP = 0.01


def calibration_tokens(model: LanguageModel, tokenizer: AnyTokenizer,
                       documents: Sequence[str], count: int, length: int) -> NDArray[np.int64]:
    """First ``length`` tokens of the first ``count`` documents that have as many.

    Raises
    ------
    ValueError
        If there are fewer such documents.
    """
    start = model.vocabulary.start
    long = [tokens[:length] for text in documents
            if len(tokens := [start, *tokenizer.encode(text)]) >= length][:count]
    if len(long) < count:
        raise ValueError(f"Calibration needs {count} documents of {length} tokens, but the text "
                         f"has {len(long)}")
    return np.array(long)


@dataclasses.dataclass(frozen=True, eq=False)
class _Text:
    """What a part of a model reads in the calibration text.

    Attributes
    ----------
    part : str
    inputs : list of array
        Results of earlier steps, in the order in which the part's steps read them.
    shape : (documents, steps)
    """

    part: str
    inputs: list[NDArray[np.uint16]]
    shape: tuple[int, int]


def _outside(steps: Sequence[Value]) -> list[Value]:
    """Earlier steps that ``steps`` read, in that order."""
    found = dict.fromkeys(operand for step in steps for operand in step.operands)
    return [operand for operand in found if operand not in steps]


class _Layer:
    """One layer of a model by itself, reading the calibration text.

    Parameters
    ----------
    model : LanguageModel
    text : _Text
    method : str
    """

    def __init__(self, model: LanguageModel, text: _Text, method: str):
        self._text = text
        self.lists = {label: matrices for label, matrices in model.network().lists().items()
                      if label.startswith(f"{text.part}.")}
        self._lm = GoldenLM(model, ARITHMETICS["lmul"], ExactProducts(
            {matrix.name: matrix.weights for matrices in self.lists.values()
             for matrix in matrices}))
        self._steps = self._lm.parts()[text.part]
        self._inputs = dict(zip(_outside(self._steps), text.inputs, strict=True))
        self.columns = {label: list_columns(found) for label, found in self.lists.items()}
        self.rows = {label: list_rows(found) for label, found in self.lists.items()}
        self.trits = sum(self.rows[label] * self.columns[label] for label in self.lists)
        self._norms = {label: list_norms(found, method) for label, found in self.lists.items()}
        self._codes: dict[str, NDArray[np.int8]] = {}
        self._expected = self._run({label: self._recorder(label) for label in self.lists})

    def _recorder(self, name: str) -> Callable[[NDArray], NDArray]:
        def record(codes: NDArray) -> NDArray:
            self._codes[name] = codes
            return codes
        return record

    def _run(self, masks: dict[str, Callable[[NDArray], NDArray]]) -> NDArray[np.float32]:
        """Residual stream behind the layer: the result of its last step."""
        self._lm.masks = masks
        values: dict[Value, Any] = dict(self._inputs)
        self._lm.execute(self._steps, values, np.zeros(self._text.shape, int),
                         self._lm.start(self._text.shape[0]))
        return to_float32(values[self._steps[-1]])

    def error(self, keep: Mapping[str, int]) -> float:
        """Mean distance of the layer's output from that without masks."""
        found = self._run({name: Mask(self._norms[name], count) for name, count in keep.items()
                           if count < self.columns[name]})
        return float(np.linalg.norm(found - self._expected, axis=1).mean(dtype=np.float64))

    def dropped(self, keep: Mapping[str, int]) -> float:
        """Share of the trits that no list reaches."""
        return 1 - sum(self.rows[name] * keep[name] for name in self.lists) / self.trits

    def threshold(self, name: str, keep: int) -> int:
        """Smallest score that no more than ``keep`` entries of a token exceed, in the mean."""
        pooled = scores(self._codes[name], self._norms[name]).reshape(-1)
        rank = pooled.size - keep * math.prod(self._text.shape)
        return int(np.partition(pooled, rank - 1)[rank - 1]) if rank else 0


def _uniform(layer: _Layer, sparsity: float) -> dict[str, int]:
    return {name: max(1, round((1 - sparsity) * columns))
            for name, columns in layer.columns.items()}


def _greedy(layer: _Layer, sparsities: Sequence[float]) -> Iterator[dict[str, int]]:
    """Find what each list keeps at each of several sparsities, which ascend.

    A list's error is measured again only when it would be chosen by the one measured last, since an
    error hardly ever falls when other lists lose entries.
    """
    steps = dict.fromkeys(layer.lists, 0)

    def keep(name: str, more: int = 0) -> int:
        columns = (steps[name] + more) * _STEP * layer.trits / layer.rows[name]
        return max(1, layer.columns[name] - round(columns))

    def kept(deeper: str | None = None) -> dict[str, int]:
        return {name: keep(name, int(name == deeper)) for name in layer.lists}

    errors = dict.fromkeys(layer.lists, 0.0)
    for sparsity in sparsities:
        while layer.dropped(kept()) < sparsity:
            measured: set[str] = set()
            while True:
                best = min((name for name in layer.lists if keep(name) > 1), key=errors.__getitem__)
                if best in measured:
                    break
                errors[best] = layer.error(kept(best))
                measured.add(best)
            steps[best] += 1
        yield kept()


def _search(model: LanguageModel, text: _Text, method: str, allocation: str,
            sparsities: Sequence[float]) -> list[list[ListMask]]:
    """Masks of one layer at each sparsity."""
    layer = _Layer(model, text, method)
    found = (list(_greedy(layer, sparsities)) if allocation == "greedy"
             else [_uniform(layer, sparsity) for sparsity in sparsities])
    return [[ListMask(label, layer.columns[label], keep[label],
                      layer.threshold(label, keep[label]))
             for label in layer.lists] for keep in found]


def _texts(model: LanguageModel, tokens: NDArray[np.integer]) -> Iterator[_Text]:
    """Read a text with the model as it is; deliver what each part with lists reads."""
    lm = GoldenLM(model, ARITHMETICS["lmul"], ExactProducts(model_matrices(model)))
    state = lm.start(len(tokens))
    values: dict[Value, Any] = {}
    lists = model.network().lists()
    for part, steps in lm.parts().items():
        if any(label.startswith(f"{part}.") for label in lists):
            yield _Text(part, [values[step] for step in _outside(steps)], tokens.shape)
        lm.execute(steps, values, tokens, state)


def _limit(model: LanguageModel) -> float:
    """Sparsity at which every list has one entry, in the layer that has the least to drop."""
    rows: dict[str, int] = {}
    trits: dict[str, int] = {}
    for label, matrices in model.network().lists().items():
        part, _, _ = label.rpartition(".")
        rows[part] = rows.get(part, 0) + list_rows(matrices)
        trits[part] = trits.get(part, 0) + list_rows(matrices) * list_columns(matrices)
    return min(1 - rows[part] / trits[part] for part in rows)


def calibrate(model: LanguageModel, tokens: NDArray[np.integer], sparsities: Sequence[float], *,
              method: str = "wina", allocation: str = "greedy",
              provenance: dict[str, Any] | None = None,
              report: Callable[[], None] = lambda: None,
              workers: int | None = None) -> list[Masks]:
    """Calibrate a model's masks.

    Parameters
    ----------
    model : LanguageModel
    tokens : integer array, shape (documents, steps)
        Calibration text: the beginnings of documents, read from the zero state.
    sparsities : sequence of float
        Shares of each layer's trits to drop, ascending. A greedy search passes through all of them.
    method : str
        One of :data:`host.compress.masks.METHODS`.
    allocation : str
        One of :data:`ALLOCATIONS`.
    provenance : dict, optional
        What to note in the result, besides the text's size.
    report : callable
        Called whenever a layer is done.
    workers : int, optional
        Processes; by default one for each CPU, at most 4. With 1 all happens in this process.

    Returns
    -------
    list of Masks
        One for each sparsity.

    Raises
    ------
    ValueError
        If there is no text, or a sparsity is negative, out of order or more than one entry in each
        list leaves.
    """
    if not tokens.size:
        raise ValueError("Calibration text must not be empty")
    limit = _limit(model)
    for sparsity in sparsities:
        if not 0 <= sparsity <= limit:
            raise ValueError(f"Sparsity must be 0 to {limit:.4f}, where one entry is left in each "
                             f"list, not {sparsity}")
    if list(sparsities) != sorted(sparsities):
        raise ValueError(f"Sparsities must ascend, not be {list(sparsities)}")
    count = min(workers or default_workers(), model.layer_count)
    jobs = ((model, text, method, allocation, sparsities) for text in _texts(model, tokens))
    found: list[list[list[ListMask]]] = []
    if count == 1:
        for job in jobs:
            found.append(_search(*job))
            report()
    else:
        with worker_pool(count) as pool:
            futures = [pool.submit(_search, *job) for job in jobs]
            for future in concurrent.futures.as_completed(futures):
                future.result()
                report()
            found = [future.result() for future in futures]
    noted = {**(provenance or {}), "documents": tokens.shape[0],
             "tokens_per_document": tokens.shape[1]}
    return [Masks(model.name, fingerprint(model), method, allocation, float(sparsity),
                  tuple(mask for layer in found for mask in layer[point]), noted)
            for point, sparsity in enumerate(sparsities)]
