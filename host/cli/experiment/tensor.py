"""``tally experiment tensor``: chains of tensors beside plain quantization and low rank."""

import argparse
import functools
import importlib.metadata
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from host.checks import printable
from host.cli.compress import check_device, healing_tokens
from host.cli.experiment.common import command_line, print_row, versions
from host.cli.options import add_corpus, integer, output_file, positive, read_texts
from host.compress.chains import layers_of
from host.compress.pareto import Tokens, pareto, row_key
from host.compress.plots import plot_pareto
from host.compress.profile import METHODS, profile
from host.errors import UserError
from host.measure.compare import Text, read_llama
from hw import records
from hw.records import write_record

NAME = "tensor"
HELP = "measure chains of tensors beside quantization and low rank"
DESCRIPTION = ("Measure chains of tensors beside plain quantization and low-rank products, at "
               "several sizes, and write docs/results/compression.json.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="model file of the Llama family")
    add_corpus(parser)
    parser.add_argument("--megabytes", type=positive, nargs="+", required=True, metavar="MB",
                        help="sizes of the results in megabytes")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS),
                        help="what a matrix may become (default: each of them)")
    parser.add_argument("--profile", type=Path, required=True, metavar="FILE",
                        help="sensitivities of the matrices: made if the file is not there, "
                             "continued if it is")
    parser.add_argument("--documents", type=integer(1), default=8, metavar="N",
                        help="number of held-out documents (default: 8)")
    parser.add_argument("--tokens", type=integer(1), default=160, metavar="N",
                        help="tokens of each held-out document (default: 160)")
    parser.add_argument("--calibration", type=integer(1), default=128, metavar="N",
                        help="tokens of each calibration document (default: 128)")
    parser.add_argument("--heal", type=integer(0), default=0, metavar="STEPS",
                        help="also train each result for so many steps on the float model's "
                             "distributions (needs PyTorch; default: 0)")
    parser.add_argument("--batch", type=integer(1), default=16, metavar="ROWS",
                        help="rows in each step of healing (default: 16)")
    parser.add_argument("--steps", type=integer(1), default=128, metavar="TOKENS",
                        help="tokens of a row (default: 128)")
    parser.add_argument("--rows", type=integer(1), default=1 << 20, metavar="N",
                        help="rows of training text at most, which are then read again "
                             "(default: 1048576)")
    parser.add_argument("--rate", type=positive, default=0.01, metavar="R",
                        help="largest learning rate of healing (default: 0.01)")
    parser.add_argument("--device", default="cpu", metavar="DEVICE",
                        help="device of PyTorch for healing (default: cpu)")
    parser.add_argument("--workers", type=integer(1), metavar="N",
                        help="number of processes (default: one for each CPU)")
    parser.add_argument("--output", type=Path, metavar="DIR",
                        help="folder for the models (default: they are not kept)")
    parser.add_argument("--plot", type=output_file, metavar="FILE.svg",
                        default=records.RESULTS.parent / "compression.svg",
                        help="picture of all rows (default: docs/compression.svg)")


def run(console: Console, options: argparse.Namespace) -> int:
    """Measure, print the rows and write the record after each."""
    if options.heal:
        check_device(options.device)
    model = read_llama(options.model)
    held_out = read_texts(options.corpus, "heldout", "held-out text")
    calibrating = read_texts(options.corpus, "calibration", "calibration")
    layers, healing = layers_of(model), None
    try:
        text = Text.read(model, held_out, options.documents, options.tokens)
        calibration = Text.read(model, calibrating, 2, options.calibration)
        if options.heal:
            packed = healing_tokens(model, read_texts(options.corpus, "train", "training"),
                                    min(options.heal * options.batch, options.rows), options.steps)
            healing = Tokens(packed, options.heal, options.batch, options.rate, options.device)
        found = profile(layers, calibration.tokens, options.profile, _say_tenths())
    except ValueError as error:
        raise UserError(str(error)) from None
    name = options.model.stem
    same = {"documents": options.documents, "tokens_per_document": options.tokens}
    settings: dict[str, Any] = {**same}
    made_with = versions()
    if healing:
        made_with["torch"] = importlib.metadata.version("torch")
        settings |= {"healing_tokens": healing.tokens[:, 1:].size, "batch": options.batch,
                     "tokens_per_row": options.steps, "device": options.device}
    # Rows of other models stay, with the commands that made them.
    old: dict[str, Any] = records.read_record("compression")
    # What was measured of this model on the same text is not measured again, unless it is stale.
    before = old["configuration"].get(name, {})
    if not same.items() <= before.items():
        before = {}
    commands = before["command"].split("; ") if before else []
    if command_line() not in commands:
        commands.append(command_line())
    configuration = old["configuration"] | {
        name: {**before, "command": "; ".join(commands), **settings}}
    hashes = functools.cache(records.source_hash)
    known = {row_key(row) for row in old["rows"] if row["model"] == name and before
             and not records.stale(row, [f"host experiment {NAME}"], hashes)}
    rows: list[dict[str, Any]] = []
    for row in pareto(name, layers, found, text,
                      [megabytes * 1e6 for megabytes in options.megabytes], healing,
                      options.workers or os.cpu_count() or 1, options.output,
                      lambda line: print(printable(line), flush=True), methods=options.methods,
                      known=known):
        print_row(row)
        if row_key(row) in known:
            continue                            # the float model
        rows.append(row)
        # Each time, so that a run that is cut off keeps what it has.
        write_record("compression", maker=f"host experiment {NAME}", configuration=configuration,
                     versions=old["versions"] | made_with, rows=rows,
                     command="; ".join(made["command"] for made in configuration.values()),
                     key=("model", "method", "budget", "digits", "rate"),
                     keep=lambda row: row["model"] != name or bool(before), order=_order)
    try:
        plot_pareto(records.RESULTS / "compression.json", options.plot)
    except UserError as error:                  # no matplotlib; the table is there
        print(printable(str(error)), file=sys.stderr)
    return 0


def _order(row: dict[str, Any]) -> tuple:
    """Sort by model and size, the largest first; healed rows come behind those they were."""
    return (row["model"], -row.get("budget", 0), ["float32", *METHODS].index(row["method"]),
            row.get("rate", 0.0), row["digits"])


def _say_tenths() -> Callable[[float, str], None]:
    said = -1

    def say(done: float, what: str) -> None:
        nonlocal said
        if int(10 * done) > said:
            said = int(10 * done)
            print(printable(f"profile: {done:.0%}, {what}"), flush=True)
    return say
