"""What commands print: text that is safe on a terminal, tables and progress bars."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from host.checks import printable

__all__ = ["Report", "command_line", "fact_table", "listing_of", "progress_bars", "say", "size",
           "table", "write"]

#: What moves a progress bar: the share that is done (0 to 1), and what is under way.
Report = Callable[[float, str], None]

_LINES = "\n\t"         # the only control characters of a text


def write(console: Console, text: str, style: str | None = None) -> None:
    """Write a piece of a text at once: with escapes on a terminal, and as it is elsewhere."""
    if console.is_terminal:
        console.print(Text(printable(text, _LINES)), style=style, end="", soft_wrap=True)
    else:
        console.file.write(text)
    console.file.flush()


def say(console: Console, text: str, style: str | None = None) -> None:
    """Write a line as it is, however long."""
    console.print(Text(printable(text)), style=style, soft_wrap=True)


def listing_of(names: Iterable[object], last: str = "and") -> str:
    """Join names for a sentence: ``a, b and c``."""
    *most, end = map(str, names)
    return f"{', '.join(most)} {last} {end}" if most else end


def command_line() -> str:
    """Return the command that runs, for a record."""
    return " ".join(["python -m host", *sys.argv[1:]])


def size(count: float) -> str:
    """Write a number of bytes."""
    for unit in ("B", "KB"):
        if count < 1000:
            return f"{count:,.0f} {unit}"
        count /= 1000
    return f"{count:,.2f} MB"


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *,
          caption: str = "", names: int = 1) -> Table:
    """Make a table whose first ``names`` columns are text, and all others numbers.

    It fits 80 columns as long as its rows do: numbers are never cut.
    """
    made = Table(box=SIMPLE_HEAD, title=Text(printable(title)), title_style="bold",
                 title_justify="left", caption=Text(printable(caption)) if caption else None,
                 caption_justify="left", padding=(0, 1, 0, 0), pad_edge=False)
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index < names else "right",
                        overflow="fold", no_wrap=index >= names)
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))
    return made


def fact_table(title: str, rows: Iterable[tuple[str, str, str]]) -> Table:
    """Make a table of facts: a name, a value, and how the value is known."""
    made = Table(box=SIMPLE_HEAD, show_header=False, title=Text(printable(title)),
                 title_style="bold", title_justify="left")
    made.add_column(overflow="fold")
    made.add_column(justify="right", overflow="fold")
    made.add_column(style="dim", overflow="fold")
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))
    return made


@contextlib.contextmanager
def progress_bars(console: Console) -> Iterator[Callable[[str], Report]]:
    """Show bars on a terminal; the function adds one by its title and returns what moves it."""
    with Progress(SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(),
                  TextColumn("{task.fields[note]}", markup=False), TimeElapsedColumn(),
                  TextColumn("left:"), TimeRemainingColumn(), console=console,
                  transient=True, disable=not console.is_terminal) as progress:
        def add(title: str) -> Report:
            task = progress.add_task(printable(title), total=1.0, note="")
            return lambda done, what: progress.update(task, completed=done, note=printable(what))
        yield add
