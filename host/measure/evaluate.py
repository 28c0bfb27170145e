"""Bits per byte of a model on a corpus, as the golden functions execute it.

The documents go through :class:`sim.golden.evaluate.GoldenLM` side by side, as matrices: each
document starts from the zero state by reading the token that documents begin with, and the
end-of-document token is predicted too. Worker processes share the documents.
"""

import dataclasses
import math
import multiprocessing
import platform
import queue
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from host.files.tensors import to_bf16
from host.measure.workers import default_workers, worker_pool
from host.models.base import LanguageModel
from hw.records import write_record
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.evaluate import ExactProducts, GoldenLM, model_matrices
from sim.golden.wina import MaskMap

__all__ = ["Measurement", "evaluate", "fit_logit_scale", "write_results"]

#: Tokens that go through the model at once, over all documents: vectors that still fit a cache.
_TOKENS = 768

_FFN_PRODUCT = ".ffn_down"      # the product whose activations are the FFN's hidden vector


@dataclasses.dataclass(frozen=True, eq=False)
class Measurement:
    """What :func:`evaluate` found.

    Attributes
    ----------
    arithmetic : str
    documents, tokens, bytes : int
        Tokens include one end-of-document token for each document; bytes are those of the texts.
    logit_scales : tuple of float
    bits_per_byte : tuple of float
        With each of the logit scales.
    live : dict of label to int array, shape (columns + 1,)
        Of each list, the number of tokens with that many entries: elements that are neither zero
        nor masked away.
    hidden : tuple of str
        Label of the list of each layer's FFN hidden vector.
    """

    arithmetic: str
    documents: int
    tokens: int
    bytes: int
    logit_scales: tuple[float, ...]
    bits_per_byte: tuple[float, ...]
    live: dict[str, NDArray[np.int64]]
    hidden: tuple[str, ...]

    @property
    def density(self) -> float:
        """Mean share of non-zero elements in the FFN's hidden vector."""
        return float(np.mean([self.list_density(label)["density"] for label in self.hidden]))

    def layer_density(self, layer: int) -> dict[str, float]:
        """Share of non-zero elements of one FFN's hidden vector, as :meth:`list_density`."""
        return self.list_density(self.hidden[layer])

    def list_density(self, label: str) -> dict[str, float]:
        """Share of the columns that a list names: mean, 99th percentile and maximum of a token."""
        counts = self.live[label]
        elements = len(counts) - 1
        present = np.flatnonzero(counts)
        percentile = np.searchsorted(counts.cumsum(), 0.99 * counts.sum())
        return {"density": float(counts @ np.arange(elements + 1) / counts.sum() / elements),
                "density_p99": float(percentile / elements),
                "density_max": float(present[-1] / elements)}


class _LiveCounter:
    """Matrix products, noting how many elements of each list are not zero."""

    def __init__(self, model: LanguageModel):
        self._products = ExactProducts(model_matrices(model))
        lists = model.network().lists()
        self._label = {matrices[0].name: label for label, matrices in lists.items()}
        self.live: dict[str, NDArray[np.int64]] = {
            label: np.zeros(matrices[0].weights.shape[1] + 1, np.int64)
            for label, matrices in lists.items()}
        self.valid: NDArray[np.bool_] = np.ones(0, bool)

    def __call__(self, name: str, activations: NDArray) -> NDArray:
        if name in self._label:
            live = self.live[self._label[name]]
            counts = np.count_nonzero(activations[self.valid], axis=1)
            live += np.bincount(counts, minlength=len(live))
        return self._products(name, activations)


def _negative_log(logits: NDArray, targets: NDArray[np.integer]) -> float:
    """Sum over tokens of ``-log(softmax(logits)[target])``, in nats."""
    shifted = (logits - logits.max(axis=1, keepdims=True)).astype(np.float32)
    chosen = shifted[np.arange(len(targets)), targets]
    return float((np.log(np.exp(shifted).sum(axis=1)) - chosen).sum(dtype=np.float64))


def _measure(model: LanguageModel, documents: Sequence[Sequence[int]], arithmetic: str,
             logit_scales: Sequence[float], masks: MaskMap,
             report: Callable[[int], None]) -> tuple[list[float], dict[str, NDArray[np.int64]]]:
    """Nats with each logit scale, and live counts, of documents given as tokens."""
    start_token, end = model.vocabulary.start, model.vocabulary.end_of_document
    documents = sorted(documents, key=len, reverse=True)
    lengths = np.array([len(document) + 1 for document in documents])
    products = _LiveCounter(model)
    lm = GoldenLM(model, ARITHMETICS[arithmetic], products, masks)
    state = lm.start(len(documents))
    nats = [0.0] * len(logit_scales)
    start = 0
    while start < lengths[0]:
        active = int(np.count_nonzero(lengths > start))
        steps = min(max(8, _TOKENS // active), int(lengths[0]) - start)
        tokens = np.full((active, steps + 1), end)
        for row, document in zip(tokens, documents, strict=False):
            # Position p reads the token before p; position 0 reads what a document begins with.
            piece = document[max(start - 1, 0):start + steps]
            first = start == 0
            if first:
                row[0] = start_token
            row[first:first + len(piece)] = piece
        valid = (start + np.arange(steps) < lengths[:active, np.newaxis]).reshape(-1)
        products.valid = valid
        state = state.first(active)
        hidden = lm.forward(tokens[:, :-1], state)[valid]
        targets = tokens[:, 1:].reshape(-1)[valid]
        for index, logit_scale in enumerate(logit_scales):
            nats[index] += _negative_log(lm.logits(hidden, logit_scale), targets)
        start += steps
        report(int(valid.sum()))
    return nats, products.live


# Set in each worker process by _start_worker.
_reports: "multiprocessing.Queue[int] | None" = None


def _start_worker(reports: "multiprocessing.Queue[int]") -> None:
    global _reports
    _reports = reports


def _work(model: LanguageModel, documents: Sequence[Sequence[int]], arithmetic: str,
          logit_scales: Sequence[float],
          masks: MaskMap) -> tuple[list[float], dict[str, NDArray[np.int64]]]:
    assert _reports is not None
    return _measure(model, documents, arithmetic, logit_scales, masks, _reports.put)


def _shares(documents: Sequence[Sequence[int]], count: int) -> list[list[Sequence[int]]]:
    """Documents dealt to workers, the longest first, each to whoever has the fewest tokens."""
    shares: list[list[Sequence[int]]] = [[] for _ in range(min(count, len(documents)))]
    for document in sorted(documents, key=len, reverse=True):
        min(shares, key=lambda share: sum(map(len, share))).append(document)
    return shares


def evaluate(model: LanguageModel, documents: Sequence[Sequence[int]], byte_count: int,
             arithmetic: str, *, logit_scales: Sequence[float] | None = None,
             masks: MaskMap | None = None,
             report: Callable[[int], None] = lambda tokens: None,
             workers: int | None = None) -> Measurement:
    """Measure a model.

    Parameters
    ----------
    model : LanguageModel
    documents : sequence of token sequences
        Without end-of-document tokens.
    byte_count : int
        Bytes of the documents' texts.
    arithmetic : str
        A key of :data:`sim.golden.arithmetic.ARITHMETICS`.
    logit_scales : sequence of float, optional
        Constants of the head to measure with; by default the model's own for this arithmetic.
    masks : mapping of label to Mask, optional
        As of :meth:`host.compress.masks.Masks.of`.
    report : callable
        Called with the number of tokens done since the last call.
    workers : int, optional
        Processes; by default one for each CPU, at most 4. With 1 all happens in this process.

    Raises
    ------
    ValueError
        If there is no document, no logit scale for this arithmetic, or nothing that could be
        masked.
    """
    if not documents:
        raise ValueError("Documents must not be empty")
    if logit_scales is None:
        if arithmetic not in model.logit_scales:
            raise ValueError(f"Model {model.name} has no logit scale for arithmetic "
                             f"{arithmetic!r}; fit it with --fit")
        logit_scales = (model.logit_scales[arithmetic],)
    if masks and ARITHMETICS[arithmetic].activations != "int8":
        raise ValueError(f"Arithmetic {arithmetic!r} has no int8 codes to mask")
    masks = masks or {}
    shares = _shares(documents, workers or default_workers())
    if len(shares) == 1:
        parts = [_measure(model, documents, arithmetic, logit_scales, masks, report)]
    else:
        parts = _in_parallel(model, shares, arithmetic, logit_scales, masks, report)
    nats = np.sum([part[0] for part in parts], axis=0)
    bits = nats / math.log(2) / byte_count
    return Measurement(arithmetic, len(documents), sum(map(len, documents)) + len(documents),
                       byte_count, tuple(logit_scales), tuple(bits.tolist()),
                       {label: np.sum([part[1][label] for part in parts], axis=0)
                        for label in parts[0][1]},
                       tuple(label for label, matrices in model.network().lists().items()
                             if matrices[0].name.endswith(_FFN_PRODUCT)))


def _in_parallel(model, shares, arithmetic, logit_scales, masks, report):
    reports = multiprocessing.get_context("spawn").Queue()
    with worker_pool(len(shares), _start_worker, (reports,)) as pool:
        futures = [pool.submit(_work, model, share, arithmetic, logit_scales, masks)
                   for share in shares]
        while not all(future.done() for future in futures):
            try:
                report(reports.get(timeout=0.5))
            except queue.Empty:
                continue
        return [future.result() for future in futures]


#: Logit scales that a fit tries, over the one in the middle: 9 from -20 % to +25 %.
_GRID = tuple(1.25 ** (step / 4) for step in range(-4, 5))
_GRIDS = 8


def fit_logit_scale(measure: Callable[[Sequence[float]], Sequence[float]], start: float) -> float:
    """Find the logit scale with the smallest loss: a parabola through the best of a grid.

    Parameters
    ----------
    measure : callable
        Loss with each of several logit scales.
    start : float
        Middle of the first grid; a grid whose best is at its edge is moved there, a few times.

    Returns
    -------
    float
        A bf16 number.
    """
    for _ in range(_GRIDS):
        scales = [to_bf16(start * factor) for factor in _GRID]
        losses = np.asarray(measure(scales))
        best = int(losses.argmin())
        if 0 < best < len(scales) - 1:
            x, y = np.log(scales[best - 1:best + 2]), losses[best - 1:best + 2]
            curvature, slope, _ = np.polyfit(x - x[1], y, 2)
            return to_bf16(float(np.exp(x[1] - slope / (2 * curvature))))
        start = scales[best]
    return start


def _result_name(measurement: Measurement) -> str:
    return "golden" if measurement.arithmetic == "lmul" else measurement.arithmetic


def write_results(path: Path, command: str, model: LanguageModel, text: str,
                  measurements: Sequence[Measurement]) -> None:
    """Write measurements as the JSON that the tables of the docs are made from.

    One row for each arithmetic with its bits per byte, then one for each layer with its density.
    The definition of the model, ``lmul``, is called ``golden`` there. What an arithmetic costs is
    measured from ``float``, where that was measured too.
    """
    rows: list[dict[str, object]] = []
    bits_of_float = next((measurement.bits_per_byte[0] for measurement in measurements
                          if measurement.arithmetic == "float"), None)
    for measurement in measurements:
        arithmetic = ARITHMETICS[measurement.arithmetic]
        bits = measurement.bits_per_byte[0]
        cost = {} if bits_of_float is None else {
            "cost_percent": round(100 * (bits / bits_of_float - 1), 3)}
        rows.append({
            "arithmetic": _result_name(measurement), "text": text,
            "vectors": arithmetic.vectors, "activations": arithmetic.activations,
            "bits_per_byte": round(bits, 5), **cost,
            "logit_scale": measurement.logit_scales[0], "density": round(measurement.density, 5),
            "documents": measurement.documents, "tokens": measurement.tokens,
            "bytes": measurement.bytes})
    for measurement in measurements:
        rows += [{"arithmetic": _result_name(measurement), "text": text, "layer": layer,
                  **{key: round(value, 5) for key, value
                     in measurement.layer_density(layer).items()}}
                 for layer in range(len(measurement.hidden))]
    write_record(
        path, maker="host evaluate", command=command,
        versions={"python": platform.python_version(), "numpy": np.__version__},
        configuration={"model": model.name, "layers": model.layer_count, "width": model.width,
                       "ffn_width": model.ffn_width, "vocab": model.vocab}, rows=rows)
