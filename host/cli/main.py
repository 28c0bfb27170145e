"""The command line: one list of commands, and what becomes of errors."""

import argparse
import difflib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn, Protocol

from rich.console import Console

from host.checks import printable
from host.cli import (
    attention,
    calibrate,
    compare,
    compile,
    compress,
    disassemble,
    doctor,
    evaluate,
    experiment,
    fit,
    fuzz,
    models,
    prefill,
    results,
    run,
    soak,
    speed,
    train,
)
from host.errors import TallyError

__all__ = ["COMMANDS", "main"]


class Command(Protocol):
    """A command: a module with its options, what it does and what it prints."""

    NAME: str
    HELP: str
    DESCRIPTION: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's options."""

    def run(self, console: Console, options: argparse.Namespace) -> int:
        """Do it, and return the exit status."""


class Group(Protocol):
    """Commands under one name: a package that lists them."""

    NAME: str
    HELP: str
    DESCRIPTION: str

    @property
    def COMMANDS(self) -> Sequence[Command]:
        """All of them."""


#: All commands, in the order of ``--help``.
COMMANDS: tuple[Command | Group, ...] = (
    run, compile, evaluate, compare, calibrate, compress, train, fit, speed, attention,
    prefill, disassemble, fuzz, models, soak, doctor, results, experiment)


class _Terminated(BaseException):
    """The process was asked to end."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)}\n")

    def unknown(self, words: Sequence[str]) -> NoReturn:
        """Refuse words that are neither options nor arguments of a command."""
        word = words[0].partition("=")[0]
        if not word.startswith("-"):
            self.error(f"unexpected argument {word!r}: a text of several words needs quotes, and "
                       f"arguments come before options")
        known = [option for action in self._actions for option in action.option_strings]
        near = difflib.get_close_matches(word, known) or ["--help"]
        self.error(f"{word!r} is not an option (try {', '.join(near)})")


def _add_commands(parser: argparse.ArgumentParser, commands: Sequence[Command | Group]) -> None:
    """Give a parser subcommands; ``command`` and ``parser`` tell which one was chosen."""
    choices = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in commands:
        sub = choices.add_parser(command.NAME, help=command.HELP, description=command.DESCRIPTION)
        if hasattr(command, "COMMANDS"):
            _add_commands(sub, command.COMMANDS)
        else:
            command.add_arguments(sub)
            sub.set_defaults(command=command, parser=sub)


def _terminate(number: int, frame: object) -> None:
    raise _Terminated


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal's encoding lacks is written as an escape.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    parser = _Parser(prog="tally", description="Run language models on FPGAs by adding: write text "
                                               "on a device, compile, measure and compress models.")
    _add_commands(parser, COMMANDS)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        options.parser.unknown(unknown)
    # Only the main thread may change how signals are answered.
    handled = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if handled else None
    try:
        return options.command.run(Console(), options)
    except (TallyError, OverflowError) as error:
        message, status = str(error), 1
    except ModuleNotFoundError as error:
        # Some packages are for some commands alone; what belongs to this project is never missing.
        package = str(error.name).partition(".")[0]
        if package in ("host", "hw", "sim"):
            raise
        message, status = (f"Python package {package} is not installed; 'tally doctor' says how "
                           f"to get what is missing"), 1
    except BrokenPipeError:
        # Whoever read the output has enough; nothing is left to be flushed at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        status = 1
    except KeyboardInterrupt:
        message, status = "stopped by Ctrl-C", 128 + signal.SIGINT
    except _Terminated:
        message, status = "stopped by SIGTERM", 128 + signal.SIGTERM
    finally:
        if handled:
            signal.signal(signal.SIGTERM, before)
    print(f"{options.parser.prog}: {printable(message)}", file=sys.stderr)
    return status
