"""What commands have in common: mistakes of the user, numbers as options, output.

What comes from a file, such as a model's name, or from a model, as its text, must not command the
terminal: a :class:`Terminal` shows control characters as :func:`host.checks.printable` writes them.
Where standard output is no terminal, generated text is written as it is.
"""

import argparse
import contextlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment

from host.checks import printable
from host.errors import UserError

__all__ = ["Terminal", "integer", "need_package", "plain", "positive", "progress_bars",
           "write_text"]

_KEPT = "\n\t"

__all__ = ["integer", "need_package", "positive", "progress_bars"]


class Terminal(Console):
    """Console whose only control characters are its own, and those of lines and tabs."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None,
               ) -> Iterable[Segment]:
        """Yield the segments of something to be shown."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(
                text=printable(segment.text, _KEPT))


def plain(text: str) -> str:
    """Write a name that a file holds so that it can stand in a title or a cell of a table."""
    return escape(printable(text))


def write_text(console: Console, text: str, style: str = "") -> None:
    """Write text in one piece: with escapes on a terminal, and as it is elsewhere."""
    if console.is_terminal:
        console.print(printable(text, _KEPT), end="", style=style, markup=False, emoji=False,
                      highlight=False, soft_wrap=True)
    else:
        console.file.write(text)
    console.file.flush()


def need_package(package: str, option: str, extra: str) -> None:
    """Raise a UserError if an option's package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"Option {option} needs {package}, an optional extra: "
                        f"pip install -e '.[{extra}]'")


def integer(least: int) -> Callable[[str], int]:
    """Return what converts an option to an integer of at least so much."""
    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"must be an integer of at least {least}, "
                                             f"not {text!r}")
        return value
    return convert


def positive(text: str) -> float:
    """Convert an option to a positive number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, not {text!r}")
    return value


@contextlib.contextmanager
def progress_bars(console: Console) -> Iterator[Callable[[str], Callable[[float, str], None]]]:
    """Show bars on a terminal; the function adds one by its title and returns what moves it."""
    with Progress(SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(),
                  TextColumn("{task.fields[note]}", markup=False), TimeElapsedColumn(),
                  console=console, transient=True, disable=not console.is_terminal) as progress:
        def add(title: str) -> Callable[[float, str], None]:
            task = progress.add_task(printable(title), total=1.0, note="")
            return lambda done, what: progress.update(task, completed=done, note=printable(what))
        yield add
