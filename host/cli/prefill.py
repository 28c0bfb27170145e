"""``tally prefill``: cycles of a prompt by the tokens that are read together."""

import argparse
import dataclasses

from rich.console import Console

from host.cli.options import (
    CLOCK_MHZ,
    add_clock,
    add_fields,
    add_json,
    add_model,
    configuration,
    integer,
)
from host.cli.terminal import command_line, progress_bars, table
from host.compiler.compile import compile_fitted, compile_model
from host.errors import UserError
from host.models.registry import read_model
from hw.config import AcceleratorConfig

NAME = "prefill"
HELP = "measure cycles of a prompt by the tokens that are read together"
DESCRIPTION = ("Simulate a prompt of a model without attention, read in batches; compare each pass "
               "with the golden machine, and its cycles with the formula.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model(parser)
    parser.add_argument("--tokens", type=integer(1), default=64, metavar="N",
                        help="tokens of the prompt (default: 64)")
    parser.add_argument("--batches", type=integer(1), nargs="+", default=[1, 2, 4, 8],
                        metavar="TOKENS",
                        help="tokens that are read together (default: 1 2 4 8)")
    parser.add_argument("--ports", type=integer(1), nargs="+", metavar="BYTES",
                        help="widths of the memory port, in bytes, each of which is measured "
                             "(default: the configuration's)")
    add_fields(parser)
    add_clock(parser)
    add_json(parser)


def run(console: Console, options: argparse.Namespace) -> int:
    """Measure, and print a table."""
    # Of all commands only those that simulate need Amaranth.
    from host.measure.speed import measure_prefill, write_prefill

    for batch in options.batches:
        if options.tokens % batch:
            raise UserError(f"Option --batches must divide the {options.tokens} tokens of the "
                            f"prompt, which {batch} does not")
    model = read_model(options.model)
    base = configuration(AcceleratorConfig(), options.fields)
    clock = options.clock or CLOCK_MHZ
    measured = []
    for port in options.ports or [base.port_bytes]:
        widened = dataclasses.replace(base, engine=dataclasses.replace(
            base.engine, port_bytes=port))
        # One accelerator for all of them, so that its clock and its memories are the same.
        accelerator = compile_fitted(model, widened, prefill=max(options.batches)).config
        images = [compile_model(model, accelerator, prefill=batch) for batch in options.batches]
        with progress_bars(console) as bar:
            rows = list(measure_prefill(images, options.tokens, bar("Opening the device"),
                                        bar("Reading prompts")))
        measured.append((images[0], rows))
        console.print(table(
            f"A prompt of {options.tokens} tokens, {model.name}, memory port of {port} bytes",
            ("tokens at once", "cycles", "by formula", "", "speedup", "tokens/s"),
            [(str(row.batch), f"{row.cycles:,}", f"{row.formula_cycles:,}",
              f"{row.formula_cycles / row.cycles - 1:+.2%}", f"{rows[0].cycles / row.cycles:.2f}",
              f"{options.tokens * clock * 1e6 / row.cycles:,.1f}") for row in rows], names=0,
            caption=f"cycles: simulated; by formula: derived; tokens/s: at {clock:g} MHz"))
    if options.json:
        write_prefill(options.json, command_line(), measured)
    return 0
