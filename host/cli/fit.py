"""``tally fit``: the models that fit a board."""

import argparse

from rich.console import Console

from host.cli.options import accelerator_board, add_json, integer
from host.cli.terminal import command_line, say, table
from host.compiler.errors import CompileError
from host.compiler.fit import Shape, fit, largest, write_fits
from host.errors import UserError

NAME = "fit"
HELP = "find the models that fit a board"
DESCRIPTION = ("Find the largest models that fit a board with an accelerator, and what a token of "
               "each costs: for each width the most layers, or the number that is given.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("board", metavar="BOARD", help="a board of 'python -m hw.build list'")
    parser.add_argument("--width", type=integer(1), nargs="+", default=[64, 96, 128],
                        metavar="WIDTH", help="widths of the models (default: 64 96 128)")
    parser.add_argument("--ffn-width", type=integer(1), metavar="WIDTH",
                        help="width of the feed-forward networks (default: twice the width)")
    parser.add_argument("--vocab", type=integer(1), default=512, metavar="TOKENS",
                        help="tokens of the vocabulary (default: 512)")
    parser.add_argument("--layers", type=integer(1), metavar="N",
                        help="number of layers (default: as many as fit)")
    add_json(parser)


def run(console: Console, options: argparse.Namespace) -> int:
    """Find the models, and print a table."""
    board = accelerator_board(options.board)
    fits, failed = [], []
    for width in options.width:
        shape = Shape(width=width, layers=options.layers or 1, vocab=options.vocab,
                      ffn_width=options.ffn_width or 2 * width)
        try:
            fits.append(fit(board, shape) if options.layers else largest(board, shape))
        except CompileError as error:
            failed.append(f"Width {width}: {error}")
    if not fits:
        raise UserError(failed[0])
    rows = []
    for found in fits:
        shape = found.shape
        rows.append([*(f"{value:,}" for value in (
            shape.width, shape.layers, shape.ffn_width, shape.vocab, found.trits, found.bytes,
            found.left)), f"{found.cycles:,.0f}", found.limit, f"{found.tokens_per_second:,.0f}"])
    console.print(table(
        f"Models in the {board.config.memory_bytes:,} bytes of board {board.name}",
        ("width", "layers", "FFN", "vocab", "trits", "bytes", "free", "cycles", "limit",
         "tokens/s"), rows,
        caption=f"cycles of a token and tokens per second: derived, at {board.clock_hz / 1e6:g} "
                f"MHz; free: bytes of the memory; limit: what takes longest"))
    for line in failed:
        say(console, line)
    if options.json:
        write_fits(options.json, command_line(), board, fits)
    return 0
