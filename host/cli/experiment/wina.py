"""``tally experiment wina``: bits per byte with masked activations, by WINA and by TEAL."""

import argparse
from collections.abc import Sequence

import numpy as np
from rich.console import Console

from host.cli.experiment import common
from host.cli.experiment.common import (
    add_model_and_text,
    command_line,
    held_out,
    print_row,
    versions,
)
from host.cli.options import read_texts
from host.compress.calibrate import ALLOCATIONS, calibrate, calibration_tokens
from host.compress.masks import METHODS, Masks, fingerprint, list_rows
from host.errors import UserError
from host.measure.evaluate import Measurement, evaluate
from host.measure.workers import default_workers, worker_pool
from host.models.base import LanguageModel
from host.models.registry import read_model
from hw.records import write_record
from sim.golden.wina import MaskMap

NAME = "wina"
HELP = "measure bits per byte with masked activations, by WINA and by TEAL"
DESCRIPTION = ("Measure bits per byte of a model with its activations masked, by WINA and by TEAL, "
               "and write docs/results/wina.json.")

_PARTS = 4      # that the documents are measured in


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model_and_text(parser)
    parser.add_argument("--keep", action="store_true",
                        help="continue behind the rows that an interrupted run has left")


def _read_share(model: LanguageModel, measurement: Measurement) -> float:
    """Share of the layers' trits whose column is listed: what a token reads on average."""
    read, trits = 0.0, 0
    for label, matrices in model.network().lists().items():
        rows, counts = list_rows(matrices), measurement.live[label]
        trits += rows * (len(counts) - 1)
        read += rows * float(counts @ np.arange(len(counts))) / measurement.tokens
    return read / trits


def _points(model: LanguageModel, tokens: np.ndarray,
            workers: int) -> list[tuple[dict[str, object], MaskMap]]:
    """List what to measure: a row's first fields, and its masks."""
    calibrated: dict[tuple[str, str], list[Masks]] = {}
    for allocation in ALLOCATIONS:
        for method in METHODS:
            print(f"Calibrating {method}, {allocation}", flush=True)
            calibrated[allocation, method] = calibrate(
                model, tokens, common.SPARSITIES, method=method, allocation=allocation,
                workers=workers)
    points: list[tuple[dict[str, object], MaskMap]] = [({"method": "none", "sparsity": 0.0}, {})]
    points += [({"method": method, "sparsity": masks.sparsity, "allocation": allocation,
                 "mode": "top-k", "dropped": round(masks.dropped(model), 4)}, masks.of(model))
               for (allocation, method), found in calibrated.items() for masks in found]
    points += [({"method": method, "sparsity": masks.sparsity, "allocation": "greedy",
                 "mode": "threshold", "dropped": round(masks.dropped(model), 4)},
                masks.of(model, "threshold"))
               for method in METHODS for masks in calibrated["greedy", method]
               if masks.sparsity == 0.5]
    return points


def run(console: Console, options: argparse.Namespace) -> int:
    """Measure, print the rows and write the record."""
    model = read_model(options.model)
    tokenizer, documents = held_out(model, options.corpus, options.documents)
    calibration = calibration_tokens(model, tokenizer, read_texts(
        options.corpus, "calibration", "calibration"),
                                     common.CALIBRATION_DOCUMENTS, common.CALIBRATION_TOKENS)
    workers = options.workers or default_workers()
    # Every point in parts of equal length: that keeps all workers busy to the end.
    encoded = sorted(((tokenizer.encode(text), len(text.encode())) for text in documents),
                     key=lambda document: len(document[0]), reverse=True)
    parts = [part for first in range(_PARTS) if (part := encoded[first::_PARTS])]
    configuration = {"model": fingerprint(model), "documents": len(documents),
                     "bytes": sum(size for _, size in encoded),
                     "calibration": {"documents": calibration.shape[0],
                                     "tokens_per_document": calibration.shape[1]}}
    rows = _kept_rows(configuration) if options.keep else []
    kept = len(rows)
    points = _points(model, calibration, workers)[len(rows):]
    with worker_pool(workers) as pool:
        futures = [[pool.submit(evaluate, model, [tokens for tokens, _ in part],
                                sum(size for _, size in part), "lmul", masks=masks, workers=1)
                    for part in parts] for _, masks in points]
        for (fields, _), measured in zip(points, futures, strict=True):
            rows.append({"model": model.name, **fields,
                         **_joined(model, [part.result() for part in measured], rows)})
            print_row(rows[-1])
            write_record("wina", maker=f"host experiment {NAME}", command=command_line(),
                         versions=versions(),
                         configuration=configuration, rows=rows[kept:],
                         key=("method", "sparsity", "allocation", "mode"),
                         keep=lambda row: options.keep)
    return 0


def _kept_rows(configuration: dict[str, object]) -> list[dict[str, object]]:
    """Rows that an interrupted run has left, in the order of its points."""
    record = common.read_record("wina", "wina")
    if record["configuration"] != configuration:
        raise UserError(f"docs/results/wina.json cannot be continued: its configuration is "
                         f"{record['configuration']}, not {configuration}")
    return record["rows"]


def _joined(model: LanguageModel, parts: Sequence[Measurement],
            rows: Sequence[dict[str, object]]) -> dict[str, float]:
    """Figures of one point from those of its parts; the first of ``rows`` has no mask."""
    size = sum(part.bytes for part in parts)
    bits = sum(part.bits_per_byte[0] * part.bytes for part in parts) / size
    tokens = sum(part.tokens for part in parts)
    read = sum(_read_share(model, part) * part.tokens for part in parts) / tokens
    dense = rows[0]["bits_per_byte"] if rows else bits
    assert isinstance(dense, float)
    return {"trits_read": round(read, 4), "bits_per_byte": round(bits, 5),
            "loss_percent": round(100 * (bits / dense - 1), 3)}
