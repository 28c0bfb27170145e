"""A dialogue in the terminal: ``tally run --chat``."""

import contextlib
import dataclasses
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from rich.console import Console

from host.checks import printable
from host.cli.terminal import progress_bars, say, write
from host.devices.generate import Generator
from host.errors import UserError
from host.text.chat import Dialogue
from host.text.sampling import Sampler
from host.text.tokenizer import AnyTokenizer, TextError
from host.text.vocabulary import Words

__all__ = ["converse", "open_dialogue"]

#: Older messages are left out so that an answer may have so many tokens, or a quarter of a context.
_RESERVE = 64


class _StoppedError(Exception):
    """The user does not want the rest of an answer."""


class _Stop:
    """Ctrl-C during an answer: the first stops it behind the token that is under way.

    The second is an interrupt as everywhere.
    """

    def __init__(self) -> None:
        self.wanted = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True

    def check(self, *_: object) -> None:
        """Raise an error if Ctrl-C was pressed."""
        if self.wanted:
            raise _StoppedError


@contextlib.contextmanager
def _stoppable() -> Iterator[_Stop]:
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop          # only the main thread may change how signals are answered
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def open_dialogue(words: Words, tokenizer: AnyTokenizer, context: int,
                  system: str | None) -> Dialogue:
    """Begin a dialogue, before anything that takes long.

    Raises
    ------
    UserError
        If the model has learned none.
    """
    try:
        return Dialogue(words, tokenizer, context, system)
    except TextError as error:
        raise UserError(f"Option --chat: {error}") from None


def _messages(console: Console, first: str | None) -> Iterator[str]:
    """Yield what the user says, until the input ends."""
    if first is not None:
        say(console, f"> {first}", "bold")
        yield first
    while True:
        try:
            line = input("> " if console.is_terminal and sys.stdin.isatty() else "")
            # In a locale without UTF-8, Python keeps each byte that is none.
            line.encode()
        except EOFError:
            return
        except KeyboardInterrupt:
            console.print()
            say(console, "Ctrl-D ends the dialogue.", "dim")
            continue
        except UnicodeError:
            say(console, "A message must be UTF-8; this line is not.", "dim")
            continue
        if line.strip():
            yield line.strip()


def converse(console: Console, generator: Generator, dialogue: Dialogue, tokenizer: AnyTokenizer,
             sampler: Sampler, *, limit: int, context: int,
             first: str | None = None) -> tuple[int, float]:
    """Answer what the user says until the input ends.

    Parameters
    ----------
    console : Console
    generator : Generator
    dialogue : Dialogue
    tokenizer : AnyTokenizer
    sampler : Sampler
        Each answer has a seed of its own: this one's, and one more for each answer before.
    limit : int
        Tokens of an answer at most.
    context : int
        Tokens that a sequence may have; 0 means any number.
    first : str, optional
        The first message.

    Returns
    -------
    int
        Tokens of all answers.
    float
        When the first token came, as :func:`time.perf_counter` has it.
    """
    say(console, "Ctrl-C stops an answer, Ctrl-D ends the dialogue.", "dim")
    written, came = 0, 0.0
    for number, message in enumerate(_messages(console, first)):
        try:
            prompt, dropped = dialogue.ask(
                message, min(limit, _RESERVE, max(context // 4, 1)) if context else 1)
        except TextError as error:
            say(console, printable(str(error)), "dim")
            continue
        if dropped:
            say(console, f"The context of {context} tokens is full: the {dropped} oldest messages "
                         f"are left out.", "dim")
        room = context + 1 - generator.length(prompt) if context else limit
        seeded = dataclasses.replace(sampler, seed=sampler.seed + number)
        tokens, text, stopped, when = _answer(console, generator, tokenizer, prompt,
                                              min(limit, room), seeded)
        written, came = written + len(tokens), came or when
        if tokens or not stopped:
            dialogue.answer(tokens, text)
        else:
            dialogue.withdraw()
        if stopped:
            say(console, "The answer is stopped.", "dim")
        elif len(tokens) == room < limit:
            say(console, f"The context of {context} tokens is full: the answer ends here, and the "
                         f"dialogue goes on without its oldest messages.", "dim")
        elif len(tokens) == limit:
            say(console, f"The answer ends after {limit} tokens; --tokens allows more.", "dim")
    console.print()
    return written, came


def _answer(console: Console, generator: Generator, tokenizer: AnyTokenizer, prompt: list[int],
            count: int, sampler: Sampler) -> tuple[list[int], str, bool, float]:
    """Write an answer as it comes; return tokens, text, whether Ctrl-C stopped it, its begin."""
    decoder, tokens, text, came = tokenizer.stream(), [], "", 0.0
    with _stoppable() as stop:
        try:
            with progress_bars(console) as bar:
                move = bar("Reading the prompt")

                def report(done: float, what: str) -> None:
                    stop.check()
                    move(done, what)

                found = generator.generate(prompt, count, sampler, report, resume=True)
                token = next(found, None)
            came = time.perf_counter()
            while token is not None:
                tokens.append(token)
                piece = decoder.feed(token)
                # Templates put white space before an answer, or take it off.
                piece = piece if text else piece.lstrip()
                text += piece
                write(console, piece)
                stop.check()
                token = next(found, None)
            text += (rest := decoder.finish())
            write(console, rest)
        except _StoppedError:
            pass
        finally:
            console.print()
    return tokens, text, stop.wanted, came
