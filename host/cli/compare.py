"""``tally compare``: what arithmetics and formats cost a transformer."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from host.cli.options import add_corpus, add_json, integer, read_texts
from host.cli.terminal import command_line, progress_bars, table
from host.errors import UserError
from host.measure.compare import (
    Text,
    compare,
    read_llama,
    rows_of,
    variants,
    write_comparisons,
)

NAME = "compare"
HELP = "measure what arithmetics and formats cost a transformer"
DESCRIPTION = ("Compare models of the Llama family with their float references on held-out text: "
               "trit planes, int8 activations, L-Mul, and formats of keys and values.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL",
                        help="model files of the Llama family")
    add_corpus(parser)
    parser.add_argument("--documents", type=integer(1), default=8, metavar="N",
                        help="number of held-out documents (default: 8)")
    parser.add_argument("--tokens", type=integer(1), default=160, metavar="N",
                        help="tokens of each document (default: 160)")
    add_json(parser)


def run(console: Console, options: argparse.Namespace) -> int:
    """Measure all variants of each model, and print a table for it."""
    documents = read_texts(options.corpus, "heldout", "held-out text")
    rows: list[dict[str, object]] = []
    for path in options.models:
        model = read_llama(path)
        try:
            text = Text.read(model, documents, options.documents, options.tokens)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
        with progress_bars(console) as bar:
            found = compare(model, text, variants(), bar(path.stem))
        made = list(rows_of(path, options.documents, found))
        console.print(_comparison(path.stem, made))
        rows += made
    if options.json:
        write_comparisons(options.json, command_line(), rows)
    return 0


def _comparison(name: str, rows: Sequence[dict[str, object]]) -> Table:
    columns = {"arithmetic": "arithmetic", "rows": "rows", "kv": "KV", "planes": "planes",
               "bits_per_byte": "bits/byte", "cost_percent": "+%", "top1_agreement": "top 1",
               "jsd": "JSD"}
    return table(f"{name}: {rows[0]['tokens']:,} tokens of {rows[0]['documents']} held-out "
                 f"documents", list(columns.values()),
                 [["" if row[column] is None else str(row[column]) for column in columns]
                  for row in rows], names=3,
                 caption="+%: bits more than the float reference needs; top 1: share of the tokens "
                         "where the likeliest one is the same; JSD: Jensen-Shannon divergence in "
                         "bits a token")
