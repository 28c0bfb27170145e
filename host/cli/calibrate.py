"""``tally calibrate``: which activations a model can do without."""

import argparse
import platform

from numpy import __version__ as numpy_version
from rich.console import Console
from rich.table import Table

from host.cli.options import (
    add_corpus,
    add_model,
    add_workers,
    integer,
    output_file,
    read_model_and_tokenizer,
    read_texts,
    share,
)
from host.cli.terminal import command_line, progress_bars, say, table
from host.compress.calibrate import ALLOCATIONS, calibrate, calibration_tokens
from host.compress.masks import METHODS, Masks, write_masks
from host.errors import UserError
from host.models.base import LanguageModel

NAME = "calibrate"
HELP = "find which activations a model can do without"
DESCRIPTION = ("Calibrate the masks of a model's activations on calibration text: how many "
               "entries each activation vector keeps, and the score that they must exceed. "
               "'run', 'compile' and 'evaluate' take the file with --masks.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model(parser)
    add_corpus(parser, use="text whose calibration part is read")
    parser.add_argument("--sparsity", type=share, default=0.5, metavar="SHARE",
                        help="share of each layer's trits that is not to be read (default: 0.5)")
    parser.add_argument("--method", choices=METHODS, default=METHODS[0],
                        help=f"wina weighs activations with the norms of their columns, teal does "
                             f"not (default: {METHODS[0]})")
    parser.add_argument("--allocation", choices=ALLOCATIONS, default=ALLOCATIONS[0],
                        help=f"greedy searches what each activation vector of a layer can spare, "
                             f"uniform takes the same share of each (default: {ALLOCATIONS[0]})")
    parser.add_argument("--documents", type=integer(1), default=8, metavar="N",
                        help="number of calibration documents (default: 8)")
    parser.add_argument("--tokens", type=integer(1), default=256, metavar="N",
                        help="tokens of each document (default: 256)")
    parser.add_argument("--output", type=output_file, required=True, metavar="FILE",
                        help="mask file to write")
    add_workers(parser)


def run(console: Console, options: argparse.Namespace) -> int:
    """Calibrate, write the masks and print what they keep."""
    model, tokenizer = read_model_and_tokenizer(options.model)
    documents = read_texts(options.corpus, "calibration", "calibration")
    try:
        tokens = calibration_tokens(model, tokenizer, documents, options.documents, options.tokens)
        with progress_bars(console) as bar:
            move, done = bar("Calibrating"), 0
            move(0, f"0 of {model.layer_count} layers")

            def report() -> None:
                nonlocal done
                done += 1
                move(done / model.layer_count, f"{done} of {model.layer_count} layers")

            masks, = calibrate(
                model, tokens, [options.sparsity], method=options.method,
                allocation=options.allocation, workers=options.workers,
                provenance={"command": command_line(), "text": "calibration",
                            "python": platform.python_version(), "numpy": numpy_version},
                report=report)
    except ValueError as error:
        raise UserError(str(error)) from None
    write_masks(options.output, masks)
    console.print(_kept(model, masks))
    say(console, f"Wrote {options.output}")
    return 0


def _kept(model: LanguageModel, masks: Masks) -> Table:
    """List what each activation vector keeps: a row for each part of the model."""
    rows: dict[str, dict[str, int]] = {}
    columns: dict[str, int] = {}
    for mask in masks.lists:
        part, _, name = mask.list.rpartition(".")
        rows.setdefault(part, {})[name] = mask.keep
        columns[name] = mask.columns
    return table(f"Columns that each list of {model.name} keeps: {masks.method}, "
                 f"{masks.dropped(model):.1%} of the trits dropped",
                 ["part", *(f"{name} of {count}" for name, count in columns.items())],
                 [[part, *(str(kept.get(name, "")) for name in columns)]
                  for part, kept in rows.items()])
