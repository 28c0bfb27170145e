"""``tally speed``: cycles of a token, and the simulator's speed."""

import argparse

from rich.console import Console

from host.cli.images import compiled_image
from host.cli.options import (
    CLOCK_MHZ,
    add_clock,
    add_fields,
    add_model,
    configuration,
    integer,
)
from host.cli.terminal import command_line, fact_table, progress_bars, say
from host.errors import UserError
from host.files.image import Image, is_image, read_image
from hw.config import AcceleratorConfig

NAME = "speed"
HELP = "measure cycles of a token and the simulator's speed"
DESCRIPTION = ("Run consecutive tokens on the simulated accelerator, compare each with the golden "
               "machine, and compare their cycles with the formula.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model(parser)
    parser.add_argument("--tokens", type=integer(1), default=16, metavar="N",
                        help="number of tokens in steady state (default: 16)")
    add_fields(parser)
    add_clock(parser)
    parser.add_argument("--record", action="store_true",
                        help="write docs/results/token.json and simulator.json; this times the "
                             "demo on a fresh clone as well")


def _image(console: Console, options: argparse.Namespace) -> Image:
    """Read an image, or compile a model with all its weight columns."""
    if options.model.is_file() and is_image(options.model):
        if options.fields:
            raise UserError(f"{options.model}: option --set needs the model that the image was "
                            f"made of, since the image is compiled already")
        return read_image(options.model)
    with progress_bars(console) as bar:
        image, *_ = compiled_image(console, options.model, configuration(
            AcceleratorConfig(), options.fields), bar, fitted=True)
    return image


def run(console: Console, options: argparse.Namespace) -> int:
    """Measure, and print a table."""
    # Of all commands only those that simulate need Amaranth.
    from host.measure.speed import measure_tokens, time_fresh_demo, write_records

    image = _image(console, options)
    with progress_bars(console) as bar:
        measured = measure_tokens(image, options.tokens, bar("Opening the device"),
                                  bar("Running tokens"))
    clock = options.clock or CLOCK_MHZ
    console.print(fact_table(
        f"{image.model}: {options.tokens} consecutive tokens on the simulated accelerator",
        [("Cycles per token", f"{measured.cycles:,.0f}",
          f"simulated; {measured.least:,} to {measured.most:,}"),
         ("... by the formula", f"{measured.formula_cycles:,.0f}",
          f"derived; {measured.formula_cycles / measured.cycles - 1:+.2%}"),
         ("Tokens a second", f"{clock * 1e6 / measured.cycles:,.1f}",
          f"simulated cycles at {clock:g} MHz"),
         ("Memory port, useful", f"{measured.port_utilization:.2%}", "simulated"),
         ("Simulated cycles", f"{measured.cycles_per_second:,.0f} / s",
          "measured, of one CPU accelerator")]))
    if options.record:
        seconds = time_fresh_demo()
        for path in write_records(command_line(), image, measured, seconds):
            say(console, f"Wrote {path}")
    return 0
