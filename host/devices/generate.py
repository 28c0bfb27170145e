"""Text from a model, one token at a time, and what it took.

One loop (:class:`Generator`) writes the text. What reads its tokens is a :class:`Reader`: an engine
computes the matrix products and the host the rest (:class:`EngineReader`), or an accelerator
computes whole tokens (:class:`AcceleratorReader`).
"""

import abc
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from host.devices.accelerator import AcceleratorDevice, Report, TokenResult
from host.devices.checked import CheckedProducts, CheckedTokens
from host.devices.engine import Counters, Driver, EngineDevice
from host.devices.errors import DeviceError
from host.files.image import Image
from host.models.base import LanguageModel
from host.text.sampling import REPEATED, Sampler
from host.text.vocabulary import Words, begin, endings
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.evaluate import ExactProducts, GoldenLM, State, model_matrices
from sim.golden.machine import TopKResult

__all__ = ["AcceleratorReader", "EngineReader", "Generator", "Phase", "Reader", "candidates",
           "check_length"]

#: Tokens that may follow, and their logits.
Candidates = tuple[NDArray[np.integer], NDArray[np.floating]]


@dataclasses.dataclass
class Phase:
    """Work on some tokens.

    Attributes
    ----------
    tokens : int
        Tokens read by the model.
    seconds : float
        Wall time.
    counters : Counters
        What the device did; of an accelerator only cycles and transfers are counted.
    """

    tokens: int = 0
    seconds: float = 0.0
    counters: Counters = dataclasses.field(default_factory=Counters)

    def __add__(self, other: "Phase") -> "Phase":
        return Phase(self.tokens + other.tokens, self.seconds + other.seconds,
                     self.counters + other.counters)


class Reader(abc.ABC):
    """A model on a device: it reads tokens and tells which ones may follow.

    Attributes
    ----------
    words : Vocabulary, PieceVocabulary or TokenizerFile
    context : int
        Tokens of a sequence at most; 0 means any number.
    """

    words: Words
    context: int

    @property
    @abc.abstractmethod
    def counters(self) -> Counters:
        """What the device has done so far."""

    @abc.abstractmethod
    def read_prompt(self, tokens: Sequence[int], report: Report) -> Candidates:
        """Begin a new sequence with ``tokens``; ``report`` takes the share that is done."""

    @abc.abstractmethod
    def read(self, token: int) -> Candidates:
        """Continue the sequence with one token."""


def check_length(prompt: int, count: int, context: int) -> None:
    """Refuse a text that is longer than a sequence may be.

    Parameters
    ----------
    prompt, count : int
        Tokens of the prompt, with the one that documents begin with, and of the text after it.
    context : int
        Tokens of a sequence at most; 0 means any number.

    Raises
    ------
    DeviceError
        If the context is too short.
    """
    needed = prompt + count - 1         # the last token of the text is not read
    if context and needed > context:
        most = context + 1 - prompt
        advice = f"ask for at most {most}" if most > 0 else "shorten the prompt"
        raise DeviceError(f"A prompt of {prompt} token{'s' * (prompt != 1)} and a text of {count} "
                          f"need a context of {needed} tokens, but it has {context}; {advice}, or "
                          f"take a larger context")


class Generator:
    """What writes a text.

    Parameters
    ----------
    reader : Reader

    Attributes
    ----------
    prompt, text : Phase
        Reading the prompts, and all tokens after them.
    """

    def __init__(self, reader: Reader):
        self._reader = reader
        # Tokens of the sequence that the reader is in; none while a pass runs, which may fail.
        self._sequence: list[int] = []
        self.prompt = Phase()
        self.text = Phase()

    def generate(self, prompt: Sequence[int], count: int, sampler: Sampler,
                 report: Report = lambda done, what: None, *,
                 resume: bool = False) -> Iterator[int]:
        """Return an iterator of up to ``count`` tokens that follow ``prompt``.

        Each is yielded as soon as it is known. The text ends early with a token that ends texts,
        which is not yielded. A document begins with the prompt: the state is zero, and the token
        that documents begin with is read first, unless the model wants none.

        Parameters
        ----------
        prompt : sequence of int
        count : int
        sampler : Sampler
            An accelerator lets it draw from the largest logits only, as many as it delivers.
        report : callable
            Called with the share of the prompt that has been read (0 to 1), and what is under way.
        resume : bool
            Do not read again what the device has read of this prompt last time, where the prompt
            begins with all of that.

        Raises
        ------
        DeviceError
            At once if the context is too short for prompt and text; later if the device fails.
        MismatchError
            If a result of the device differs from the golden model's.
        """
        tokens = begin(self._reader.words, prompt)
        check_length(len(tokens), count, self._reader.context)
        return self._generate(tokens, count, sampler, report, resume)

    def length(self, prompt: Sequence[int]) -> int:
        """Count the tokens of a document that begins with a prompt."""
        return len(begin(self._reader.words, prompt))

    def _generate(self, tokens: list[int], count: int, sampler: Sampler, report: Report,
                  resume: bool) -> Iterator[int]:
        choose, ends = sampler.choices(), endings(self._reader.words)
        found, logits = self._read_prompt(tokens, report, resume)
        tokens = list(tokens)
        for remaining in range(count, 0, -1):
            repeated = (None if sampler.repetition_penalty == 1 else
                        np.isin(found, tokens[-REPEATED:]))
            token = int(found[choose(logits, repeated)])
            if token in ends:
                return
            tokens.append(token)
            yield token
            if remaining > 1:
                found, logits = self._read(self.text, token)

    def _read_prompt(self, tokens: list[int], report: Report, resume: bool) -> Candidates:
        known = len(self._sequence)
        if not (resume and 0 < known < len(tokens) and tokens[:known] == self._sequence):
            self._sequence = []
            result = self._timed(self.prompt, len(tokens), functools.partial(
                self._reader.read_prompt, tokens, report))
            self._sequence = list(tokens)
            return result
        for index, token in enumerate(tokens[known:]):
            report(index / (len(tokens) - known), f"{index} of {len(tokens) - known} tokens")
            result = self._read(self.prompt, token)
        return result

    def _read(self, phase: Phase, token: int) -> Candidates:
        """Continue the sequence with one token."""
        sequence, self._sequence = self._sequence, []
        result = self._timed(phase, 1, functools.partial(self._reader.read, token))
        sequence.append(token)
        self._sequence = sequence
        return result

    def _timed(self, phase: Phase, tokens: int, read: Callable[[], Candidates]) -> Candidates:
        began, before = time.perf_counter(), dataclasses.replace(self._reader.counters)
        found = read()
        phase.tokens += tokens
        phase.seconds += time.perf_counter() - began
        phase.counters += self._reader.counters - before
        return found


class EngineReader(Reader):
    """A model whose matrix products are computed by an engine, each checked.

    The tokens of a prompt go through the model together: the device reads each weight once for
    several of them. Every later token is a pass of its own.

    Parameters
    ----------
    model : LanguageModel
    device : EngineDevice
    loaded : callable
        Called with the share that is done (0 to 1), and each matrix that is on the device.

    Attributes
    ----------
    model : LanguageModel
    driver : Driver
    checked : CheckedProducts
    live, hidden : int
        Non-zero elements of the FFN's hidden vectors so far, and all their elements.

    Raises
    ------
    DeviceError
        If the device cannot hold the model.
    """

    def __init__(self, model: LanguageModel, device: EngineDevice,
                 loaded: Report = lambda done, what: None):
        self.model, self.words, self.context = model, model.vocabulary, model.context
        self.driver = Driver(device)
        matrices = model_matrices(model)
        for number, (name, weights) in enumerate(matrices.items(), start=1):
            self.driver.load(name, weights)
            loaded(number / len(matrices), name)
        self.checked = CheckedProducts(self.driver, ExactProducts(matrices), device.label)
        self._lm = GoldenLM(model, ARITHMETICS["lmul"], self._product)
        self._state: State | None = None
        self._count, self._products = len(matrices), 0
        self._report: Report = lambda done, what: None
        self.live = self.hidden = 0

    @property
    def counters(self) -> Counters:
        """What the device has done so far."""
        return self.driver.device.counters

    def _product(self, name: str, activations: NDArray[np.int8]) -> NDArray[np.int32]:
        if name.endswith(".ffn_down"):
            self.live += int(np.count_nonzero(activations))
            self.hidden += activations.size
        self._report(self._products / self._count, name)
        self._products += 1
        return self.checked(name, activations)

    def _logits(self, tokens: Sequence[int], state: State) -> Candidates:
        hidden = self._lm.forward(np.array([tokens]), state)
        logits = self._lm.logits(hidden[-1:])[0]
        return np.arange(len(logits)), logits

    def read_prompt(self, tokens: Sequence[int], report: Report) -> Candidates:
        """Read the tokens together."""
        self._state = self._lm.start()
        self._report, self._products = report, 0
        try:
            return self._logits(tokens, self._state)
        finally:
            self._report = lambda done, what: None

    def read(self, token: int) -> Candidates:
        """Read one token."""
        assert self._state is not None
        return self._logits([token], self._state)


def candidates(image: Image, best: Sequence[TopKResult]) -> Candidates:
    """Tokens with the largest logits, largest first and equal ones by token, and the logits.

    Parameters
    ----------
    image : Image
    best : sequence of TopKResult
        Of all TOP_Ks: each has the ``top_k`` largest of its rows, so that many of all are certain.
    """
    tokens = np.concatenate([first + emission.rows for (first, _), emission
                             in zip(image.program.heads, best, strict=True)])
    logits = np.concatenate([emission.values * emission.scale for emission in best])
    order = np.lexsort((tokens, -logits))[:image.config.top_k]
    return tokens[order], logits[order]


class AcceleratorReader(Reader):
    """A model whose whole tokens are computed by a device.

    Parameters
    ----------
    device : AcceleratorDevice or CheckedTokens
        With ``image`` loaded.
    image : Image
    words : Vocabulary, PieceVocabulary or TokenizerFile
        Of the model: tokens that begin and end a document.
    """

    def __init__(self, device: AcceleratorDevice | CheckedTokens, image: Image, words: Words):
        self._device = device
        self._image = image
        self.words, self.context = words, image.context
        self._counters = Counters()

    @property
    def counters(self) -> Counters:
        """Cycles and transfers so far."""
        return self._counters

    def _pass(self, token: int, *, new: bool = False, slot: int | None = None) -> TokenResult:
        result = self._device.token(token, new=new, slot=slot)
        self._counters += Counters(cycles=result.cycles, transfers=result.transfers)
        return result

    def read_prompt(self, tokens: Sequence[int], report: Report) -> Candidates:
        """Read the tokens, several at once as far as the program was compiled for that."""
        batch = self._image.program.prefill_tokens
        together = len(tokens) // batch * batch if batch > 1 else 0
        for index, token in enumerate(tokens):
            report(index / len(tokens), f"{index} of {len(tokens)} tokens")
            result = self._pass(token, new=index == 0,
                                slot=index % batch if index < together else None)
        return candidates(self._image, result.top_k)

    def read(self, token: int) -> Candidates:
        """Read one token."""
        return candidates(self._image, self._pass(token).top_k)
