"""Language models as the host holds them, whatever their family and their file.

A **family** is a module with a function ``read(source)`` that checks the source and returns a
:class:`LanguageModel`, and with that the one description of the network from which float reference,
golden model and program are made. :mod:`host.models.registry` lists the families.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from host.files.errors import ModelFileError
from host.text.vocabulary import Words
from sim.golden.graph import Network

__all__ = ["LanguageModel", "Source"]


class Source(Protocol):
    """What a model is read from; see :class:`host.files.gguf.GGUFFile` for its attributes."""

    path: Path
    bytes: int
    architecture: object
    architecture_key: str
    notes: list[str]

    def error(self, message: str) -> "ModelFileError":
        """Put the file's name in front of what is wrong with it."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LanguageModel(abc.ABC):
    """A model of any family.

    Attributes
    ----------
    name : str
    logit_scales : dict
        What the head's integers are scaled by in each arithmetic of
        :data:`sim.golden.arithmetic.ARITHMETICS`, apart from the norm. ``lmul`` is the arithmetic
        of docs/numerics.md.
    vocabulary : Vocabulary, PieceVocabulary or TokenizerFile
    layers : sequence
        Of what the family's layers are.
    notes : tuple of str
        What reading it has changed, for people.
    """

    name: str
    logit_scales: dict[str, float]
    vocabulary: Words
    layers: Sequence[Any]
    notes: tuple[str, ...] = ()

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """Elements of the residual stream."""

    @property
    @abc.abstractmethod
    def ffn_width(self) -> int:
        """Elements of the feed-forward network's hidden vector."""

    @property
    @abc.abstractmethod
    def vocab(self) -> int:
        """Number of tokens."""

    @property
    def layer_count(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def context(self) -> int:
        """Tokens of a sequence at most; 0 for a model without attention."""
        return 0

    def network(self) -> Network:
        """Describe what a token goes through; the FFN's last matrix is ``blk.N.ffn_down``."""
        return self._network

    def prepare(self, report: Callable[[float, str], None]) -> None:
        """Describe the network now, where that takes long.

        ``report`` is called with the share that is done (0 to 1) and what is under way.
        """
        self.network()

    @functools.cached_property
    def _network(self) -> Network:
        return self._describe()

    @abc.abstractmethod
    def _describe(self) -> Network:
        """Describe the network: once for each model."""
