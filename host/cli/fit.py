"""``tally fit``: the models that fit a board."""

import argparse
from pathlib import Path

from rich.console import Console

from host.cli.options import (
    DEFAULT_MODEL,
    accelerator_board,
    add_json,
    integer,
    read_model_and_tokenizer,
)
from host.cli.terminal import command_line, fact_table, say, size, table
from host.compiler.errors import CompileError
from host.compiler.fit import Shape, fit, fit_model, largest, write_fits
from host.errors import UserError
from hw.boards.board import AcceleratorBoard

NAME = "fit"
HELP = "derive what a model costs on a board, or find the models that fit it"
DESCRIPTION = ("For a board with an SDRAM, derive what a token of a model costs and what binds. "
               "With --width, or where block RAM is the memory, find the largest models that fit, "
               "and what a token of each costs: for each width the most layers, or the number that "
               "is given.")

_TEXT = "Once upon a time there was a little girl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("board", metavar="BOARD", help="a board of 'python -m hw.build list'")
    parser.add_argument("model", nargs="?", type=Path, metavar="MODEL",
                        help=f"a model file (default: models/{DEFAULT_MODEL.name}, for a board "
                             f"with an SDRAM)")
    parser.add_argument("--width", type=integer(1), nargs="+", metavar="WIDTH",
                        help="widths of the models to be found (default: 64 96 128)")
    parser.add_argument("--ffn-width", type=integer(1), metavar="WIDTH",
                        help="width of the feed-forward networks (default: twice the width)")
    parser.add_argument("--vocab", type=integer(1), default=512, metavar="TOKENS",
                        help="tokens of the vocabulary (default: 512)")
    parser.add_argument("--layers", type=integer(1), metavar="N",
                        help="number of layers (default: as many as fit)")
    add_json(parser)


def _run_model(console: Console, board: AcceleratorBoard, path: Path) -> int:
    model, tokenizer = read_model_and_tokenizer(path)
    found = fit_model(board, model, tokenizer.encode(_TEXT))
    console.print(fact_table(f"{model.name} on board {board.name}", [
        ("Memory used", size(found.bytes), f"derived, of {size(board.config.memory_bytes)}"),
        ("Cycles per token", f"{found.cycles:,.0f}", "derived, zeros left out"),
        ("What binds", found.limit, "derived"),
        ("Tokens a second", f"{found.tokens_per_second:.1f}",
         f"derived, at the board's clock of {board.clock_hz / 1e6:g} MHz"),
    ]))
    return 0


def run(console: Console, options: argparse.Namespace) -> int:
    """Derive what a model costs, or find models; print a table."""
    board = accelerator_board(options.board)
    shaped = [name for name in ("width", "layers", "ffn_width", "json") if getattr(options, name)]
    if options.model is not None and shaped:
        raise UserError(f"Option --{shaped[0].replace('_', '-')} finds models of its own: leave it "
                        f"out, or {options.model}")
    if options.model is not None or (board.sdram is not None and not shaped):
        return _run_model(console, board, options.model or DEFAULT_MODEL)
    options.width = options.width or [64, 96, 128]
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
