"""Experiments on activation sparsity: ``python -m host.compress --help``.

Each command writes one file of docs/results.
"""

import argparse
import concurrent.futures
import importlib.metadata
import json
import multiprocessing
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from host.compress.calibrate import ALLOCATIONS, calibrate, calibration_tokens
from host.compress.gates import METHODS, Gates, fingerprint, list_rows
from host.corpus import read_corpus
from host.evaluate import GateMap, Measurement, evaluate, single_threaded_blas
from host.model import TernaryLM, read_model
from host.tokenizer import Tokenizer
from sim.golden.model import LISTS
from sim.tables import RESULTS, write_record

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


def _texts(model: TernaryLM, corpus: Path, documents: int | None) -> tuple[Tokenizer, list[str]]:
    return Tokenizer(model.vocabulary), read_corpus(corpus)["heldout"][:documents]


# density

def _density(options: argparse.Namespace) -> int:
    """Measure which share of each list's columns is live, layer by layer."""
    model = read_model(options.model)
    tokenizer, documents = _texts(model, options.corpus, options.documents)
    measurement = evaluate(model, [tokenizer.encode(text) for text in documents],
                           sum(len(text.encode()) for text in documents), "lmul",
                           workers=options.workers)
    rows = []
    for name in ("ffn_hidden", *(name for name in LISTS if name != "ffn_hidden")):
        for layer in range(measurement.layers):
            shares = measurement.layer_density(layer, name)
            rows.append({"list": name, "layer": layer,
                         **{key.replace("density", "density_mean") if key == "density" else key:
                            round(value, 5) for key, value in shares.items()}})
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    write_record("twell", command=_command(), versions=_versions(),
                 configuration={"model": model.name, "documents": measurement.documents,
                                "tokens": measurement.tokens, "bytes": measurement.bytes},
                 rows=rows)
    return 0


# wina

def _read_share(model: TernaryLM, measurement: Measurement) -> float:
    """Share of the layers' trits whose column is listed: what a token reads on average."""
    read, trits = 0.0, 0
    for name, live in measurement.live.items():
        columns = live.shape[1] - 1
        for layer, counts in enumerate(live):
            rows = list_rows(model, layer, name)
            trits += rows * columns
            read += rows * float(counts @ np.arange(columns + 1)) / measurement.tokens
    return read / trits


def _points(model: TernaryLM, tokens: np.ndarray,
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


def _kept_rows(configuration: dict[str, object]) -> list[dict[str, object]]:
    """Rows that an interrupted run has left, in the order of its points."""
    record = json.loads((RESULTS / "wina.json").read_text(encoding="utf-8"))
    if record["configuration"] != configuration:
        raise SystemExit(f"docs/results/wina.json cannot be continued: its configuration is "
                         f"{record['configuration']}, not {configuration}")
    return record["rows"]


def _joined(model: TernaryLM, parts: Sequence[Measurement],
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


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m host.compress",
                                     description="Measure activation sparsity; write docs/results.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in (("density", _density), ("wina", _wina)):
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
    options = parser.parse_args(arguments)
    return options.function(options)


if __name__ == "__main__":
    sys.exit(main())
