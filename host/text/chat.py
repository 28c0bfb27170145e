"""Dialogues: the chat template of a model, rendered in a sandbox, and the messages so far."""

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from host.checks import LONGEST_MESSAGE
from host.text.tokenizer import AnyTokenizer, TextError
from host.text.vocabulary import Words, begin, endings

__all__ = ["ChatTemplate", "Dialogue", "Message"]

#: ``role`` (system, user or assistant) and ``content``.
Message = Mapping[str, str]

# Characters or entries of anything that a template makes; a dialogue is shorter.
_LARGEST = 1 << 24


class _Generation(Extension):
    """The block of a template that an answer stands in, which only training asks for."""

    tags = {"generation"}       # noqa: RUF012 - as the package declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _bounded(value: Any) -> Any:
    if isinstance(value, str | list | tuple) and len(value) > _LARGEST:
        raise jinja2.exceptions.SecurityError(f"it makes more than {_LARGEST} characters")
    return value


class _Code(CodeGenerator):
    """Code in which nothing can grow by ``~`` without a bound."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.bounded(")
        super().visit_Concat(node, frame)
        self.write(")")


class _Environment(ImmutableSandboxedEnvironment):
    """A sandbox in which sums and products have a bound."""

    code_generator_class = _Code
    intercepted_binops = frozenset(("+", "*", "**"))
    bounded = staticmethod(_bounded)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(value) if isinstance(value, str | list | tuple) else abs(value)
                 for value in (left, right)] if operator != "+" else [0, 0]
        # Powers of up to 64 are computed to see how large they are.
        if (sizes[1] > 64 and operator == "**") or (
                sizes[0] ** sizes[1] if operator == "**" else sizes[0] * sizes[1]) > _LARGEST:
            raise jinja2.exceptions.SecurityError("a product is too large")
        return _bounded(super().call_binop(context, operator, left, right))


def _raise(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _as_json(value: object, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter writes for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


class ChatTemplate:
    """How a model writes a dialogue as text, rendered as the ``transformers`` package does.

    Parameters
    ----------
    source : str
        In Jinja.
    tokens : mapping of str to str
        Texts of special tokens, such as ``bos_token``.

    Raises
    ------
    TextError
        If it is no template.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]):
        environment = _Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False,
                                   extensions=["jinja2.ext.loopcontrols", _Generation])
        environment.filters["tojson"] = _as_json
        environment.globals |= {
            "raise_exception": _raise,
            "strftime_now": _now}
        self._tokens = dict(tokens)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TextError(f"Chat template, line {error.lineno}: {error.message}") from None
        except RecursionError:
            raise TextError("Chat template: nested too deeply") from None

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """Return the text of a dialogue.

        Parameters
        ----------
        messages : sequence of Message
        answer : bool
            Whether an answer is to follow.

        Raises
        ------
        TextError
            If the template refuses the messages, or fails.
        """
        try:
            pieces, length = [], 0
            for piece in self._template.generate(
                    messages=list(map(dict, messages)), tools=None, documents=None,
                    add_generation_prompt=answer, **self._tokens):
                pieces.append(piece)
                length += len(piece)
                if length > _LARGEST:
                    raise jinja2.exceptions.SecurityError(
                        f"it makes more than {_LARGEST} characters")
            return "".join(pieces)
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError,
                RecursionError, TypeError, ValueError) as error:
            said = str(error)[:LONGEST_MESSAGE // 2] or type(error).__name__
            raise TextError(f"The chat template of the model refuses the dialogue: "
                            f"{said}") from None


@dataclasses.dataclass
class _Turn:
    """What the device has read and written last: the text of the prompt, and all tokens."""

    text: str
    tokens: list[int]


class Dialogue:
    """Messages so far, and the tokens that ask a model for the next one.

    Parameters
    ----------
    words : Vocabulary, PieceVocabulary or TokenizerFile
        With a template.
    tokenizer : AnyTokenizer
    context : int
        Tokens that a sequence may have; 0 means any number.
    system : str, optional
        Message that the dialogue begins with.

    Attributes
    ----------
    messages : list of Message

    Raises
    ------
    TextError
        If the model has no template, or one that is none.
    """

    def __init__(self, words: Words, tokenizer: AnyTokenizer, context: int,
                 system: str | None = None):
        if not words.template:
            raise TextError("The model has no chat template (key tokenizer.chat_template); it "
                            "continues texts, but has learned no dialogue")
        self._words, self._tokenizer, self._context = words, tokenizer, context
        self._opening = tokenizer.text_of(words.start) if words.opened else ""
        self._template = ChatTemplate(words.template, {
            "bos_token": self._opening, "eos_token": tokenizer.text_of(words.end_of_document)})
        self._system: list[Message] = (
            [] if system is None else [{"role": "system", "content": system}])
        self.messages: list[Message] = []
        self._last: _Turn | None = None

    def ask(self, message: str, reserve: int = 1) -> tuple[list[int], int]:
        """Add a message of the user, and return the prompt that asks for the answer.

        Parameters
        ----------
        message : str
        reserve : int
            Tokens that the context must have room for behind the prompt, as long as older messages
            can be left out for them; the message alone needs room for one.

        Returns
        -------
        list of int
            Without the token that documents begin with, where prompts begin with it.
        int
            Messages that have been left out, the oldest, so that the prompt fits.

        Raises
        ------
        TextError
            If the message does not fit alone, or the template refuses it: it is not added.
        """
        self.messages.append({"role": "user", "content": message})
        dropped = 0
        try:
            while True:
                text = self._template.render([*self._system, *self.messages])
                if self._opening and self._words.prompted:
                    text = text.removeprefix(self._opening)
                tokens = self._continued(text) or self._tokenizer.encode(text, special=True)
                count = len(begin(self._words, tokens))
                alone = len(self.messages) == 1
                if not self._context or (
                        count + (1 if alone else reserve) - 1 <= self._context):
                    break
                if alone:
                    raise TextError(f"The message makes a prompt of {count} tokens, but the "
                                    f"context has {self._context} for prompt and answer; shorten "
                                    f"it, or take a larger context")
                del self.messages[:2]
                dropped += 2
                self._last = None
        except TextError:
            self.messages.pop()
            raise
        self._last = _Turn(text, tokens)
        return list(tokens), dropped

    def answer(self, tokens: Sequence[int], text: str) -> None:
        """Add the model's answer: its tokens, and their text."""
        self.messages.append({"role": "assistant", "content": text.strip()})
        if self._last is not None:
            self._last.tokens += tokens

    def withdraw(self) -> None:
        """Take back the last message, which has no answer."""
        self.messages.pop()
        self._last = None

    def _continued(self, text: str) -> list[int] | None:
        """Return the tokens of a dialogue by those read before it, if it continues these.

        The tokens of an answer are those that the model wrote, which need not be those that its
        text would be cut into.
        """
        if self._last is None or len(self.messages) < 3 or not text.startswith(self._last.text):
            return None
        added = text[len(self._last.text):].lstrip()
        said = self.messages[-2]["content"]
        if not added.startswith(said):
            return None
        behind = self._tokenizer.encode(added[len(said):].lstrip(), special=True)
        # Text without such a token before it may have other tokens.
        if not behind or behind[0] not in endings(self._words):
            return None
        return [*self._last.tokens, *behind]
