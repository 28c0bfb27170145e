"""Bits per byte of a model on a corpus, as the golden functions execute it.

The documents go through :class:`sim.golden.model.GoldenLM` side by side, as matrices: each
document starts from the zero state by reading the end-of-document token, and its own such token at
the end is predicted too. Worker processes share the documents.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import platform
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from host.model import TernaryLM, to_bf16
from sim.golden.model import ARITHMETICS, LISTS, ExactProducts, GoldenLM, model_matrices
from sim.golden.wina import Gate

__all__ = ["GateMap", "Measurement", "evaluate", "fit_logit_scale", "single_threaded_blas",
           "write_results"]

#: Tokens that go through the model at once, over all documents: vectors that still fit a cache.
_TOKENS = 768

_HIDDEN = "ffn_hidden"
_LIST_OF = {matrices[0]: name for name, matrices in LISTS.items()}

#: The gate of each list that has one, by layer and list.
GateMap = Mapping[tuple[int, str], Gate]


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
    live : dict of list name to int array, shape (layers, columns + 1)
        Number of tokens with that many entries in the list: elements that are neither zero nor
        gated away.
    """

    arithmetic: str
    documents: int
    tokens: int
    bytes: int
    logit_scales: tuple[float, ...]
    bits_per_byte: tuple[float, ...]
    live: dict[str, NDArray[np.int64]]

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.live[_HIDDEN])

    @property
    def density(self) -> float:
        """Mean share of non-zero elements in the FFN's hidden vector."""
        return float(np.mean([self.layer_density(layer)["density"]
                              for layer in range(self.layers)]))

    def layer_density(self, layer: int, name: str = _HIDDEN) -> dict[str, float]:
        """Share of the columns that a list names: mean, 99th percentile and maximum of a token."""
        counts = self.live[name][layer]
        elements = len(counts) - 1
        present = np.flatnonzero(counts)
        percentile = np.searchsorted(counts.cumsum(), 0.99 * counts.sum())
        return {"density": float(counts @ np.arange(elements + 1) / counts.sum() / elements),
                "density_p99": float(percentile / elements),
                "density_max": float(present[-1] / elements)}


class _LiveCounter:
    """Matrix products, noting how many elements of each list are not zero."""

    def __init__(self, model: TernaryLM):
        self._products = ExactProducts(model_matrices(model))
        self.live: dict[str, NDArray[np.int64]] = {
            name: np.zeros((len(model.layers),
                            getattr(model.layers[0], matrices[0]).trits.shape[1] + 1), np.int64)
            for name, matrices in LISTS.items()}
        self.valid: NDArray[np.bool_] = np.ones(0, bool)

    def __call__(self, name: str, activations: NDArray) -> NDArray:
        _, _, matrix = name.rpartition(".")
        if matrix in _LIST_OF:
            live, layer = self.live[_LIST_OF[matrix]], int(name.split(".")[1])
            counts = np.count_nonzero(activations[self.valid], axis=1)
            live[layer] += np.bincount(counts, minlength=live.shape[1])
        return self._products(name, activations)


def _negative_log(logits: NDArray, targets: NDArray[np.integer]) -> float:
    """Sum over tokens of ``-log(softmax(logits)[target])``, in nats."""
    shifted = (logits - logits.max(axis=1, keepdims=True)).astype(np.float32)
    chosen = shifted[np.arange(len(targets)), targets]
    return float((np.log(np.exp(shifted).sum(axis=1)) - chosen).sum(dtype=np.float64))


def _measure(model: TernaryLM, documents: Sequence[Sequence[int]], arithmetic: str,
             logit_scales: Sequence[float], gates: GateMap,
             report: Callable[[int], None]) -> tuple[list[float], dict[str, NDArray[np.int64]]]:
    """Nats with each logit scale, and live counts, of documents given as tokens."""
    end = model.vocabulary.end_of_document
    documents = sorted(documents, key=len, reverse=True)
    lengths = np.array([len(document) + 1 for document in documents])
    products = _LiveCounter(model)
    lm = GoldenLM(model, ARITHMETICS[arithmetic], products, gates)
    state = lm.start(len(documents))
    nats = [0.0] * len(logit_scales)
    start = 0
    while start < lengths[0]:
        active = int(np.count_nonzero(lengths > start))
        steps = min(max(8, _TOKENS // active), int(lengths[0]) - start)
        tokens = np.full((active, steps + 1), end)
        for row, document in zip(tokens, documents, strict=False):
            # Position p reads the token before p; position 0 reads the end of a document.
            piece = document[max(start - 1, 0):start + steps]
            first = start == 0
            row[first:first + len(piece)] = piece
        valid = (start + np.arange(steps) < lengths[:active, np.newaxis]).reshape(-1)
        products.valid = valid
        hidden = lm.forward(tokens[:, :-1], state[:, :active])[valid]
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


def _work(model: TernaryLM, documents: Sequence[Sequence[int]], arithmetic: str,
          logit_scales: Sequence[float],
          gates: GateMap) -> tuple[list[float], dict[str, NDArray[np.int64]]]:
    assert _reports is not None
    return _measure(model, documents, arithmetic, logit_scales, gates, _reports.put)


def _shares(documents: Sequence[Sequence[int]], count: int) -> list[list[Sequence[int]]]:
    """Documents dealt to workers, the longest first, each to whoever has the fewest tokens."""
    shares: list[list[Sequence[int]]] = [[] for _ in range(min(count, len(documents)))]
    for document in sorted(documents, key=len, reverse=True):
        min(shares, key=lambda share: sum(map(len, share))).append(document)
    return shares


def evaluate(model: TernaryLM, documents: Sequence[Sequence[int]], byte_count: int,
             arithmetic: str, *, logit_scales: Sequence[float] | None = None,
             gates: GateMap | None = None,
             report: Callable[[int], None] = lambda tokens: None,
             workers: int | None = None) -> Measurement:
    """Measure a model.

    Parameters
    ----------
    model : TernaryLM
    documents : sequence of token sequences
        Without end-of-document tokens.
    byte_count : int
        Bytes of the documents' texts.
    arithmetic : str
        A key of :data:`sim.golden.model.ARITHMETICS`.
    logit_scales : sequence of float, optional
        Constants of the head to measure with; by default the model's own for this arithmetic.
    gates : mapping of (layer, list) to Gate, optional
        As of :meth:`host.compress.gates.Gates.of`.
    report : callable
        Called with the number of tokens done since the last call.
    workers : int, optional
        Processes; by default one for each CPU, at most 4. With 1 all happens in this process.

    Raises
    ------
    ValueError
        If there is no document, no logit scale for this arithmetic, or nothing that could be gated.
    """
    if not documents:
        raise ValueError("Documents must not be empty")
    if logit_scales is None:
        if arithmetic not in model.logit_scales:
            raise ValueError(f"Model {model.name} has no logit scale for arithmetic "
                             f"{arithmetic!r}; fit it with --fit")
        logit_scales = (model.logit_scales[arithmetic],)
    if gates and ARITHMETICS[arithmetic].activations != "int8":
        raise ValueError(f"Arithmetic {arithmetic!r} has no int8 codes to gate")
    gates = gates or {}
    shares = _shares(documents, workers or min(4, os.cpu_count() or 1))
    if len(shares) == 1:
        parts = [_measure(model, documents, arithmetic, logit_scales, gates, report)]
    else:
        parts = _in_parallel(model, shares, arithmetic, logit_scales, gates, report)
    nats = np.sum([part[0] for part in parts], axis=0)
    bits = nats / math.log(2) / byte_count
    return Measurement(arithmetic, len(documents), sum(map(len, documents)) + len(documents),
                       byte_count, tuple(logit_scales), tuple(bits.tolist()),
                       {name: np.sum([part[1][name] for part in parts], axis=0)
                        for name in LISTS})


@contextlib.contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Start worker processes with one BLAS thread each: the workers are the threads."""
    # Read by NumPy when a worker imports it.
    previous = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if previous is None:
            del os.environ["OPENBLAS_NUM_THREADS"]
        else:
            os.environ["OPENBLAS_NUM_THREADS"] = previous


def _in_parallel(model, shares, arithmetic, logit_scales, gates, report):
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    with single_threaded_blas(), concurrent.futures.ProcessPoolExecutor(
            len(shares), mp_context=context, initializer=_start_worker,
            initargs=(reports,)) as pool:
        futures = [pool.submit(_work, model, share, arithmetic, logit_scales, gates)
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


def write_results(path: Path, command: str, model: TernaryLM, text: str,
                  measurements: Sequence[Measurement]) -> None:
    """Write measurements as the JSON that the tables of the docs are made from.

    One row for each arithmetic with its bits per byte, then one for each layer with its density.
    The definition of the model, ``lmul``, is called ``golden`` there.
    """
    rows: list[dict[str, object]] = []
    for measurement in measurements:
        rows.append({
            "arithmetic": _result_name(measurement), "text": text,
            "bits_per_byte": round(measurement.bits_per_byte[0], 5),
            "logit_scale": measurement.logit_scales[0], "density": round(measurement.density, 5),
            "documents": measurement.documents, "tokens": measurement.tokens,
            "bytes": measurement.bytes})
    for measurement in measurements:
        rows += [{"arithmetic": _result_name(measurement), "text": text, "layer": layer,
                  **{key: round(value, 5) for key, value
                     in measurement.layer_density(layer).items()}}
                 for layer in range(measurement.layers)]
    record = {
        "command": command,
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "configuration": {"model": model.name, "layers": len(model.layers), "width": model.width,
                          "ffn_width": model.ffn_width, "vocab": model.vocab},
        "rows": rows}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
