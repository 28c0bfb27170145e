"""``tally attention``: cycles of a token by its context."""

import argparse
from pathlib import Path

from rich.console import Console

from host.cli.options import CLOCK_MHZ, add_clock, add_json, integer, power_of_two
from host.cli.terminal import command_line, progress_bars, table
from host.compiler.compile import compile_fitted
from host.errors import UserError
from host.models.llama import LlamaLM
from host.models.registry import read_model
from hw.config import AcceleratorConfig

NAME = "attention"
HELP = "measure cycles of a token by its context"
DESCRIPTION = ("Simulate tokens of the first layer of a model of the Llama family, at its real "
               "size but with a small vocabulary, at several positions of a sequence, and compare "
               "each with the golden machine; compare their cycles with the formula, and derive "
               "those of the whole model.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("model", type=Path, metavar="MODEL",
                        help="model file of the Llama family")
    parser.add_argument("--contexts", type=integer(3), nargs="+", default=[16, 64, 128, 256],
                        metavar="TOKENS",
                        help="tokens of the sequence, the measured one included (default: 16 64 "
                             "128 256)")
    add_clock(parser)
    add_json(parser)


def run(console: Console, options: argparse.Namespace) -> int:
    """Measure, and print a table."""
    # Of all commands only those that simulate need Amaranth.
    from host.measure.speed import (
        attention_formula,
        first_layer,
        measure_attention,
        write_attention,
    )

    model = read_model(options.model)
    if not isinstance(model, LlamaLM):
        raise UserError(f"{options.model}: must be a model of the Llama family")
    contexts = sorted(set(options.contexts))
    most = contexts[-1]
    if most > model.attention.context:
        raise UserError(f"Option --contexts must be at most {model.attention.context}, the context "
                        f"of {model.name}, not {most}")
    base = AcceleratorConfig(context=power_of_two(most))
    layer = compile_fitted(first_layer(model), base)
    with progress_bars(console) as bar:
        rows = list(measure_attention(layer, contexts, bar("Opening the device"),
                                      bar("Running tokens")))
    whole = compile_fitted(model, base)
    rows += attention_formula(whole, model.layer_count, contexts)
    clock = options.clock or CLOCK_MHZ
    console.print(table(
        f"A token of {model.name}",
        ("layers", "context", "cycles", "by formula", "", "port", "tokens/s"),
        [(str(row.layers), str(row.context), f"{row.cycles:,}" if row.cycles else "",
          f"{row.formula_cycles:,}",
          f"{row.formula_cycles / row.cycles - 1:+.2%}" if row.cycles else "",
          f"{row.port_utilization:.2%}",
          f"{clock * 1e6 / (row.cycles or row.formula_cycles):,.1f}") for row in rows], names=0,
        caption=f"cycles: simulated; by formula: derived; port: share that carries weights, keys "
                f"and values; tokens/s: at {clock:g} MHz"))
    if options.json:
        write_attention(options.json, command_line(), [layer, whole], rows)
    return 0
