"""What commands have in common: mistakes of the user, numbers as options, progress bars."""

import argparse
import contextlib
import importlib.util
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from host.errors import UserError

__all__ = ["integer", "need_package", "positive", "progress_bars"]


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
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(),
                  TextColumn("{task.fields[note]}"), TimeElapsedColumn(), console=console,
                  transient=True, disable=not console.is_terminal) as progress:
        def add(title: str) -> Callable[[float, str], None]:
            task = progress.add_task(title, total=1.0, note="")
            return lambda done, what: progress.update(task, completed=done, note=what)
        yield add
