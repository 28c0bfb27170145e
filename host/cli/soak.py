"""``tally soak``: simulated boards over a serial line that loses and changes bytes."""

import argparse

from rich.console import Console

from host.cli.options import integer, positive
from host.cli.terminal import command_line, say
from host.errors import UserError
from host.measure.soak import BOARDS, soak, write_outcomes
from sim.tools import ToolMissing

NAME = "soak"
HELP = "use simulated boards over a serial line that loses and changes bytes"
DESCRIPTION = ("Simulate a board with an engine and one with an accelerator, spoil bytes on their "
               "serial line at random, and compare every result with the golden model's. The exit "
               "status is 1 if a result is wrong.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("boards", nargs="*", choices=[*BOARDS, []], metavar="BOARD",
                        help=f"boards to simulate: {', '.join(BOARDS)} (default: all)")
    parser.add_argument("--seconds", type=positive, default=300.0, metavar="S",
                        help="duration of the noise over all boards, in seconds (default: 300)")
    parser.add_argument("--seed", type=integer(0), default=1, metavar="N",
                        help="seed of the requests and of the faults (default: 1)")
    parser.add_argument("--rate", type=positive, default=0.002, metavar="R",
                        help="faults injected for each byte (default: 0.002)")
    parser.add_argument("--timeout", type=positive, default=1.0, metavar="S",
                        help="seconds until a request fails, which is sent up to four times "
                             "(default: 1)")
    parser.add_argument("--record", action="store_true",
                        help="write docs/results/link_soak.json")


def run(console: Console, options: argparse.Namespace) -> int:
    """Simulate, and print what was injected and what came of it; a wrong result is a failure."""
    boards = options.boards or list(BOARDS)
    outcomes = []
    for board in boards:
        try:
            outcome = soak(board, options.seconds / len(boards), seed=options.seed,
                           rate=options.rate, timeout=options.timeout)
        except ToolMissing as problem:
            raise UserError(str(problem)) from None
        outcomes.append(outcome)
        faults = ", ".join(f"{count:,} {kind}" for kind, count in outcome.faults.items())
        say(console, f"{board}: {faults}; {outcome.repetitions:,} requests sent again, "
                     f"{outcome.dropped_frames:,} replies dropped; {outcome.right:,} results "
                     f"right, {outcome.errors:,} errors reported, {outcome.wrong:,} results wrong")
        for mismatch in outcome.mismatches[:5]:
            say(console, mismatch)
    if options.record:
        write_outcomes(command_line(), outcomes, seed=options.seed, rate=options.rate,
                       timeout=options.timeout)
    return int(any(outcome.wrong for outcome in outcomes))
