"""``tally experiment operands``: what the golden machine computes with, for ``hw.energy``."""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from rich.console import Console

from host.cli.options import DEFAULT_MODEL, add_corpus, integer, read_texts
from host.measure.operands import record_operands
from host.models.registry import read_model
from host.text.tokenizer import open_tokenizer
from hw.energy.operands import RECORDED

NAME = "operands"
HELP = "record operands of the shipped model for the measurement of energies"
DESCRIPTION = ("Run the shipped model on the golden machine and record what one layer multiplies "
               "and quantizes: the recorded operands of 'python -m hw.energy'.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_corpus(parser)
    parser.add_argument("--layer", type=integer(0), default=8, metavar="N",
                        help="layer whose operands are recorded (default: 8)")
    parser.add_argument("--tokens", type=integer(4), default=32, metavar="N",
                        help="tokens of the first held-out document to read (default: 32)")
    parser.add_argument("--output", type=Path, default=RECORDED, metavar="FILE.npz",
                        help="file to write (default: hw/energy/recorded.npz)")


def run(console: Console, options: argparse.Namespace) -> int:
    """Record, and write the file."""
    model = read_model(DEFAULT_MODEL)
    text = read_texts(options.corpus, "heldout", "held-out text")[0]
    tokens = [model.vocabulary.start,
              *open_tokenizer(model.vocabulary).encode(text)][:options.tokens]
    recorded = record_operands(model, tokens, options.layer)
    np.savez_compressed(options.output, **{
        field.name: getattr(recorded, field.name) for field in dataclasses.fields(recorded)})
    console.print(f"Written to {options.output}")
    return 0
