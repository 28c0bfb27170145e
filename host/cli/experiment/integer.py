"""``tally experiment integer``: bits per byte of a Llama with masked activations."""

import argparse
from pathlib import Path

from rich.console import Console

from host.cli.experiment import common
from host.cli.experiment.common import command_line, print_row, versions
from host.cli.options import add_corpus, integer, read_texts
from host.compress.calibrate import calibrate
from host.compress.masks import METHODS
from host.compress.pareto import logarithms, measure
from host.errors import UserError
from host.measure.compare import Text, read_llama
from hw.records import write_record
from sim.golden.wina import MaskMap

NAME = "integer"
HELP = "measure bits per byte of a Llama with masked activations"
DESCRIPTION = ("Measure bits per byte of an integer model of the Llama family with its activations "
               "masked, and write docs/results/wina_integer.json.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="model file of the Llama family")
    add_corpus(parser)
    parser.add_argument("--documents", type=integer(1), default=8, metavar="N",
                        help="number of held-out documents (default: 8)")
    parser.add_argument("--tokens", type=integer(1), default=160, metavar="N",
                        help="tokens of each document (default: 160)")


def run(console: Console, options: argparse.Namespace) -> int:
    """Measure, print the rows and write the record."""
    model = read_llama(options.model)
    held_out = read_texts(options.corpus, "heldout", "held-out text")
    calibrating = read_texts(options.corpus, "calibration", "calibration")
    try:
        text = Text.read(model, held_out, options.documents, options.tokens)
        calibration = Text.read(model, calibrating, 4, 128).tokens[:, :-1]
    except ValueError as error:
        raise UserError(str(error)) from None
    points: list[tuple[dict[str, object], MaskMap]] = [({"method": "none", "sparsity": 0.0}, {})]
    for method in METHODS:
        points += [({"method": method, "sparsity": masks.sparsity, "allocation": "uniform",
                     "mode": "top-k", "dropped": round(masks.dropped(model), 4)}, masks.of(model))
                   for masks in calibrate(model, calibration, common.SPARSITIES, method=method,
                                          allocation="uniform", workers=1)]
    expected = logarithms(model.reference(), "float", text)
    rows: list[dict[str, object]] = []
    dense = 0.0
    for fields, masks in points:
        found = measure(model, text, expected, masks=masks)
        dense = dense or found.bits_per_byte
        rows.append({"model": options.model.stem, **fields,
                     "bits_per_byte": round(found.bits_per_byte, 5),
                     "loss_percent": round(100 * (found.bits_per_byte / dense - 1), 3),
                     "jsd": round(found.jsd, 5),
                     "top1_agreement": round(found.top1_agreement, 4)})
        print_row(rows[-1])
    write_record("wina_integer", maker=f"host experiment {NAME}", command=command_line(),
                 versions=versions(),
                 configuration={"tokens": text.tokens[:, 1:].size, "bytes": text.bytes,
                                "planes": model.planes}, rows=rows)
    return 0
