"""How the next token of a text is chosen."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["REPEATED", "Sampler"]

#: Last tokens that the repetition penalty is for, as in llama.cpp.
REPEATED = 64

#: Takes logits, and optionally whether the token of each is one of the last :data:`REPEATED`;
#: returns an index.
Choose = Callable[..., int]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How the next token is chosen.

    As in llama.cpp, the repetition penalty comes first, then ``top_k``, ``top_p``, ``min_p``, and
    the temperature last.

    Attributes
    ----------
    temperature : float
        0 always takes the most likely token.
    top_k : int
        Only that many of the most likely tokens are drawn from; 0 means all.
    seed : int
    top_p : float
        The fewest of the most likely tokens are drawn from whose probabilities, at temperature 1,
        sum to at least this; 1 means all.
    min_p : float
        Tokens are drawn from whose probability is at least this share of the likeliest one's.
    repetition_penalty : float
        Positive logits of the last tokens are divided by it, negative ones multiplied.
    """

    temperature: float = 0.7
    top_k: int = 40
    seed: int = 1
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def choices(self) -> Choose:
        """Begin a sequence of choices; the function takes logits and returns an index of them."""
        random = np.random.default_rng(self.seed)

        def choose(logits: NDArray[np.floating],
                   repeated: NDArray[np.bool_] | None = None) -> int:
            if repeated is not None and self.repetition_penalty != 1:
                penalty = self.repetition_penalty
                logits = np.where(repeated, np.where(logits > 0, logits / penalty,
                                                     logits * penalty), logits)
            if self.temperature == 0:
                return int(logits.argmax())
            # A stable sort: among equal logits the first tokens stay, on every machine.
            kept = np.argsort(-logits, kind="stable")[:self.top_k or None]
            if self.top_p < 1:
                sums = np.cumsum(np.exp(logits[kept] - logits[kept[0]]))
                kept = kept[:np.searchsorted(sums, self.top_p * sums[-1]) + 1]
            if self.min_p > 0:
                kept = kept[logits[kept] >= logits[kept[0]] + math.log(self.min_p)]
            weights = np.exp((logits[kept] - logits[kept[0]]) / self.temperature)
            return int(kept[np.searchsorted(np.cumsum(weights), random.random() * weights.sum())])

        return choose
