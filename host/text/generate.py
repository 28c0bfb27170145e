"""Text from a model, one token at a time, and what it took.

On an engine (:class:`Generator`) the tokens of a prompt go through the model together, since they
are known: the device reads each weight once for several of them. Every later token is a pass of its
own. On a core (:class:`TokenGenerator`) every token is.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from host.devices.accelerator import AcceleratorDevice, TokenResult
from host.devices.checked import CheckedProducts, CheckedTokens
from host.devices.engine import Counters, Driver, EngineDevice
from host.files.image import Image
from host.models.base import LanguageModel
from host.text.vocabulary import Words, begin
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.evaluate import ExactProducts, GoldenLM, State, model_matrices
from sim.golden.machine import Best

__all__ = ["Generator", "Phase", "Sampler", "TokenGenerator", "TokenPhase", "candidates"]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How the next token is chosen.

    Attributes
    ----------
    temperature : float
        0 always takes the most likely token.
    top_k : int
        Only that many of the most likely tokens are drawn from; 0 means all.
    seed : int
    """

    temperature: float = 0.7
    top_k: int = 40
    seed: int = 1

    def choices(self) -> Callable[[NDArray[np.floating]], int]:
        """Begin a sequence of choices; the function takes logits and returns a token."""
        random = np.random.default_rng(self.seed)

        def choose(logits: NDArray[np.floating]) -> int:
            if self.temperature == 0:
                return int(logits.argmax())
            # A stable sort: among equal logits the first tokens stay, on every machine.
            kept = np.argsort(-logits, kind="stable")[:self.top_k or None]
            weights = np.exp((logits[kept] - logits[kept[0]]) / self.temperature)
            return int(kept[np.searchsorted(np.cumsum(weights), random.random() * weights.sum())])

        return choose


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
        What the device did.
    """

    tokens: int
    seconds: float
    counters: Counters


@dataclasses.dataclass
class TokenPhase:
    """Work on some tokens of a core.

    Attributes
    ----------
    tokens : int
    seconds : float
        Wall time.
    cycles, transfers : int
        What the device did.
    """

    tokens: int = 0
    seconds: float = 0.0
    cycles: int = 0
    transfers: int = 0

    def __add__(self, other: "TokenPhase") -> "TokenPhase":
        return TokenPhase(self.tokens + other.tokens, self.seconds + other.seconds,
                          self.cycles + other.cycles, self.transfers + other.transfers)


def _continue(read: Callable[[Sequence[int]], NDArray[np.floating]], logits: NDArray[np.floating],
              end: int, count: int, sampler: Sampler) -> Iterator[int]:
    """Yield up to ``count`` tokens, the first of ``logits``, until the end of the document."""
    choose = sampler.choices()
    for remaining in range(count, 0, -1):
        token = choose(logits)
        if token == end:
            return
        yield token
        if remaining > 1:
            logits = read([token])


class Generator:
    """A model whose matrix products are computed by a device and checked against the golden model.

    Parameters
    ----------
    model : LanguageModel
    device : EngineDevice
    loaded : callable
        Called with the name of each matrix once it is on the device.

    Attributes
    ----------
    driver : Driver
    checked : CheckedProducts
    prompt, text : Phase
        Reading the prompt, and all passes after it.
    live, hidden : int
        Non-zero elements of the FFN's hidden vectors so far, and all their elements.

    Raises
    ------
    DeviceError
        If the device cannot hold the model.
    """

    def __init__(self, model: LanguageModel, device: EngineDevice,
                 loaded: Callable[[str], None] = lambda name: None):
        self.model = model
        self.driver = Driver(device)
        matrices = model_matrices(model)
        for name, weights in matrices.items():
            self.driver.load(name, weights)
            loaded(name)
        self.checked = CheckedProducts(self.driver, ExactProducts(matrices), device.label)
        self._lm = GoldenLM(model, ARITHMETICS["lmul"], self._product)
        self.prompt = Phase(0, 0.0, Counters())
        self.text = Phase(0, 0.0, Counters())
        self.live = self.hidden = 0

    def _product(self, name: str, activations: NDArray[np.int8]) -> NDArray[np.int32]:
        if name.endswith(".ffn_down"):
            self.live += int(np.count_nonzero(activations))
            self.hidden += activations.size
        return self.checked(name, activations)

    def _pass(self, tokens: Sequence[int], state: State, phase: Phase) -> NDArray[np.floating]:
        """Logits after ``tokens``."""
        began, before = time.perf_counter(), dataclasses.replace(self.driver.device.counters)
        hidden = self._lm.forward(np.array([tokens]), state)
        logits = self._lm.logits(hidden[-1:])[0]
        phase.tokens += len(tokens)
        phase.seconds += time.perf_counter() - began
        phase.counters += self.driver.device.counters - before
        return logits

    def generate(self, prompt: Sequence[int], count: int, sampler: Sampler) -> Iterator[int]:
        """Yield up to ``count`` tokens that follow ``prompt``, each as soon as it is known.

        It ends early with the end of the document, which is not yielded. A document begins with
        the prompt: the state is zero, and the token that documents begin with is read first, unless
        the model wants none.

        Raises
        ------
        MismatchError
            If a product of the device differs from the golden model's.
        DeviceError
            If the device fails.
        """
        vocabulary = self.model.vocabulary
        state = self._lm.start()
        logits = self._pass(begin(vocabulary, prompt), state, self.prompt)
        yield from _continue(lambda tokens: self._pass(tokens, state, self.text), logits,
                             vocabulary.end_of_document, count, sampler)


def candidates(image: Image, best: Sequence[Best],
               ) -> tuple[NDArray[np.integer], NDArray[np.floating]]:
    """Tokens with the largest logits, largest first and equal ones by token, and the logits.

    Parameters
    ----------
    image : Image
    best : sequence of Best
        Of all EMITs: each has the ``best`` largest of its rows, so that many of all are certain.
    """
    tokens = np.concatenate([first + emission.rows for (first, _), emission
                             in zip(image.program.heads, best, strict=True)])
    logits = np.concatenate([emission.values * emission.scale for emission in best])
    order = np.lexsort((tokens, -logits))[:image.config.best]
    return tokens[order], logits[order]


class TokenGenerator:
    """A model whose whole tokens are computed by a device.

    Parameters
    ----------
    device : AcceleratorDevice or CheckedTokens
        With ``image`` loaded.
    words : Vocabulary, PieceVocabulary or TokenizerFile
        Of the model: tokens that begin and end a document.

    Attributes
    ----------
    prompt, text : TokenPhase
        Reading the prompt, and all passes after it.
    """

    def __init__(self, device: AcceleratorDevice | CheckedTokens, image: Image,
                 words: Words):
        self._device = device
        self._image = image
        self._words = words
        self.prompt = TokenPhase()
        self.text = TokenPhase()

    def _pass(self, token: int, phase: TokenPhase, *, new: bool = False,
              slot: int | None = None) -> TokenResult:
        began = time.perf_counter()
        result = self._device.token(token, new=new, slot=slot)
        phase.tokens += 1
        phase.seconds += time.perf_counter() - began
        phase.cycles += result.cycles
        phase.transfers += result.transfers
        return result

    def generate(self, prompt: Sequence[int], count: int, sampler: Sampler) -> Iterator[int]:
        """Yield up to ``count`` tokens that follow ``prompt``, each as soon as it is known.

        It begins and ends as :meth:`Generator.generate` does. The sampler draws from the largest
        logits that the device delivers.

        Raises
        ------
        DeviceError
            As the device does.
        """
        choose = sampler.choices()
        tokens = list(begin(self._words, prompt))
        batch = self._image.program.prefill_tokens
        together = len(tokens) // batch * batch if batch > 1 else 0
        for index, token in enumerate(tokens):
            result = self._pass(token, self.prompt, new=index == 0,
                                slot=index % batch if index < together else None)
        for remaining in range(count, 0, -1):
            best, logits = candidates(self._image, result.best)
            token = int(best[choose(logits)])
            if token == self._words.end_of_document:
                return
            yield token
            if remaining > 1:
                result = self._pass(token, self.text)
