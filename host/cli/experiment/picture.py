"""``tally experiment picture``: the demo's terminal as a picture."""

import argparse
import io
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from host.errors import UserError

NAME = "picture"
HELP = "draw the terminal of the demo"
DESCRIPTION = "Run the demo and draw what its terminal shows, as docs/demo.svg."

_COLUMNS = 84
_PROMPT = "Once upon a time"
_PATH = Path(__file__).parents[3] / "docs" / "demo.svg"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--tokens", type=int, default=48, metavar="N",
                        help="tokens that the demo writes (default: 48)")
    parser.add_argument("--output", type=Path, default=_PATH, metavar="FILE",
                        help="picture to write (default: docs/demo.svg)")


def run(console: Console, options: argparse.Namespace) -> int:
    """Run the demo in a process of its own, and draw its output."""
    command = [sys.executable, "-m", "host", "run", "--prompt", _PROMPT, "--tokens",
               str(options.tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"The demo failed: {done.stderr.strip()}")
    lines = _without_times(done.stdout.splitlines())
    picture = Console(record=True, file=io.StringIO(), width=_COLUMNS, force_terminal=True)
    picture.print(Text(f"$ make demo TOKENS={options.tokens}\n", style="bold green"))
    first, *rest = "\n".join(lines).strip().split(_PROMPT, 1)
    text = Text(first)
    text.append(_PROMPT, style="bold")
    text.append("".join(rest))
    picture.print(text)
    # A picture must not fetch a font.
    drawn = re.sub(r" *@font-face \{.*?\}\n", "", picture.export_svg(
        title="Tally", unique_id="tally"), flags=re.DOTALL)
    options.output.write_text(re.sub(r"[ \t]+$", "", drawn, flags=re.MULTILINE))
    console.print(f"Written to {options.output}")
    return 0


def _without_times(lines: list[str]) -> list[str]:
    """Leave out what this machine's clock measured: it says nothing about the accelerator."""
    kept, measured = [], False
    for line in lines:
        # A fact that does not fit its line goes on in the last column.
        measured = "measured" in line or (measured and line.startswith(40 * " "))
        if not measured:
            kept.append(line.rstrip())
    return kept
