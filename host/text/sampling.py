"""How the next token of a text is chosen."""

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Sampler"]


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
        """Begin a sequence of choices; the function takes logits and returns an index of them."""
        random = np.random.default_rng(self.seed)

        def choose(logits: NDArray[np.floating]) -> int:
            if self.temperature == 0:
                return int(logits.argmax())
            # A stable sort: among equal logits the first tokens stay, on every machine.
            kept = np.argsort(-logits, kind="stable")[:self.top_k or None]
            weights = np.exp((logits[kept] - logits[kept[0]]) / self.temperature)
            return int(kept[np.searchsorted(np.cumsum(weights), random.random() * weights.sum())])

        return choose
