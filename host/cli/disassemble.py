"""``tally disassemble``: the program of an image."""

import argparse
from pathlib import Path

from rich.console import Console

from host.checks import printable
from host.files.image import listing, read_image

NAME = "disassemble"
HELP = DESCRIPTION = "print the program of an image"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("image", type=Path, metavar="IMAGE",
                        help="image of 'compile --output'")


def run(console: Console, options: argparse.Namespace) -> int:
    """Print the program."""
    print(printable(listing(read_image(options.image).program), "\n"))
    return 0
