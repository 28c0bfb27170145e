"""``tally fuzz``: model files that are wrong."""

import argparse

from rich.console import Console

from host.cli.options import add_json, integer
from host.cli.terminal import command_line, progress_bars, say
from host.fuzz.fuzz import READERS, fuzz, write_outcomes

NAME = "fuzz"
HELP = "fuzz the model-file readers"
DESCRIPTION = ("Fuzz the model-file readers: change bytes of small model files and read them. Each "
               "file must give a model, or one line that says why it does not.")


def _reader(text: str) -> str:
    if text not in READERS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a reader "
                                         f"(try {', '.join(map(repr, READERS))})")
    return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("readers", nargs="*", type=_reader, metavar="READER",
                        help=f"readers to fuzz: {', '.join(READERS)} (default: all)")
    parser.add_argument("--files", type=integer(1), default=10000, metavar="N",
                        help="number of files for each reader (default: 10000)")
    add_json(parser)


def run(console: Console, options: argparse.Namespace) -> int:
    """Fuzz, and print what was found; a crash is a failure."""
    with progress_bars(console) as bar:
        outcomes = [fuzz(reader, options.files, bar(reader))
                    for reader in options.readers or READERS]
    for outcome in outcomes:
        say(console, f"{outcome.reader}: {outcome.files:,} files, {outcome.errors:,} errors, "
                     f"{outcome.models:,} models, {len(outcome.crashes):,} crashes")
        for crash in outcome.crashes[:20]:
            say(console, crash)
    if options.json:
        write_outcomes(options.json, command_line(), outcomes)
    return int(any(outcome.crashes for outcome in outcomes))
