"""Language models as the host holds them, whatever their family and their file.

A **family** is a module of :mod:`host.families`, called like the architecture that it reads: the
``general.architecture`` of a GGUF file, or the ``model_type`` of a checkpoint. It has a function
``read(source)`` that checks the source and returns a :class:`LanguageModel`, and with that the one
description of the network from which float reference, golden model and program are made.
"""

import abc
import dataclasses
import functools
import importlib
import os
import pkgutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import host.families
from host.checks import FileError
from sim.golden.network import Network

__all__ = ["LanguageModel", "ModelFileError", "PieceVocabulary", "Source", "TernaryMatrix",
           "TokenizerFile", "Vocabulary", "Words", "begin", "is_bf16", "read_model", "to_bf16",
           "wrong_merges", "wrong_number", "wrong_scale", "wrong_tokens"]


class Source(Protocol):
    """What a model is read from; see :class:`host.gguf_file.GGUFFile` for its attributes."""

    path: Path
    bytes: int
    architecture: object
    architecture_key: str

    def error(self, message: str) -> "ModelFileError":
        """Put the file's name in front of what is wrong with it."""


# Numbers that are looked at together, so that what is computed of them needs little memory.
_CHUNK = 1 << 20


class ModelFileError(FileError):
    """A model file cannot be used; the message is one line that names file, place and reason."""


#: Weights of a model are smaller in magnitude, so that no product or square of them overflows.
LARGEST = 2.0 ** 24

#: Scales of a matrix are at least this: one fp16 can hold, over the root of the widest vectors, and
#: 256 times less. So no product of a few of them is a subnormal number.
SMALLEST = 2.0 ** -40

#: Tokens of a vocabulary, and merges, at most; the largest vocabularies in use have about 2**18.
MOST_TOKENS = 1 << 19

#: Characters of a token; in the vocabularies in use, up to 128.
LONGEST_TOKEN = 512


def wrong_number(values: np.ndarray) -> str | None:
    """Say what is wrong with the first number that is not finite or too large, if there is one."""
    flat = values.reshape(-1)
    # Smallest and largest need no memory; both are NaN if any number is.
    with np.errstate(invalid="ignore"):
        if -LARGEST < flat.min() and flat.max() < LARGEST:
            return None
    for first in range(0, flat.size, _CHUNK):
        odd = np.flatnonzero(~(np.abs(flat[first:first + _CHUNK]) < LARGEST))
        if odd.size:
            break
    index = np.unravel_index(first + int(odd[0]), values.shape)
    where = " ".join(f"{axis} {int(place)}" for axis, place in
                     zip(("row", "column") if len(index) == 2 else ("element",), index,
                         strict=True))
    value = float(values[index])
    must = "below 2**24 in magnitude" if np.isfinite(value) else "finite"
    return f"must be {must}, but {where} is {value}"


def wrong_scale(value: float) -> str | None:
    """Say what a scale must be, if it is not positive and of a useful size."""
    if SMALLEST <= value < LARGEST:     # NaN is not
        return None
    return f"must be from 2**-40 to 2**24, not {value!r}"


def wrong_tokens(tokens: Sequence[str]) -> str | None:
    """Say what is wrong with the texts of a vocabulary's tokens, if something is."""
    if not 1 <= len(tokens) <= MOST_TOKENS:
        return f"must hold 1 to {MOST_TOKENS} tokens, not {len(tokens)}"
    known = set()
    for index, token in enumerate(tokens):
        if len(token) > LONGEST_TOKEN:
            return (f"must hold tokens of at most {LONGEST_TOKEN} characters, but token {index} "
                    f"has {len(token)}")
        if token in known:
            return f"holds a token twice: token {index}, {token!r}"
        known.add(token)
    return None


def wrong_merges(tokens: Sequence[str], merges: Sequence[str], silent: Collection[int],
                 ) -> str | None:
    """Say what is wrong with the merges of a byte-level BPE, if something is.

    Parameters
    ----------
    tokens, merges : sequence of str
        As :class:`Vocabulary` has them.
    silent : collection of int
        Tokens that stand for no text, which nothing can be merged to or from.
    """
    if len(merges) > MOST_TOKENS:
        return f"must hold at most {MOST_TOKENS} entries, not {len(merges)}"
    known = set(tokens)
    controls = {tokens[index] for index in silent}
    for merge in merges:
        left, _, right = merge.partition(" ")
        for word in (left, right, left + right):
            if word not in known:
                return f"has the entry {merge!r}, whose parts or result are no tokens"
            if word in controls:
                return (f"has the entry {merge!r}, but {word!r} is a control token, which stands "
                        f"for no text")
    return None


def to_bf16(value: float) -> float:
    """Round ``value`` to the nearest bf16 number, ties to even."""
    bits = int(np.float32(value).view(np.uint32))
    bits += 0x7FFF + ((bits >> 16) & 1)
    return float(np.uint32(bits & 0xFFFF0000).view(np.float32))


def is_bf16(value: float) -> bool:
    """Whether ``value`` is a finite bf16 number."""
    return bool(np.isfinite(value)) and to_bf16(value) == value


@dataclasses.dataclass(frozen=True, eq=False)
class TernaryMatrix:
    """``scale * trits``.

    Attributes
    ----------
    trits : int8 array of -1, 0 or +1, shape (rows, columns)
    scale : float
        Positive; exact in bf16 and in fp16.
    """

    trits: np.ndarray
    scale: float


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Byte-level BPE as GGUF stores it (``tokenizer.ggml.model`` is ``gpt2``).

    Attributes
    ----------
    tokens : tuple of str
        Text of each token in the printable byte alphabet of GPT-2.
    merges : tuple of str
        ``"left right"``, in order of priority.
    end_of_document : int
        Token that ends a document.
    first : int, optional
        Token that a document begins with, if it is not the one that ends it.
    prompted : bool
        Whether a prompt begins with that token.
    split : str
        How text is cut into words before they are merged: one of
        :data:`host.tokenizer.SPLITS`.
    controls : tuple of int
        Further tokens that stand for no text.
    """

    tokens: tuple[str, ...]
    merges: tuple[str, ...]
    end_of_document: int
    first: int | None = None
    prompted: bool = True
    split: str = "gpt-2"
    controls: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    @property
    def start(self) -> int:
        """Token that a document begins with."""
        return self.end_of_document if self.first is None else self.first


@dataclasses.dataclass(frozen=True)
class PieceVocabulary:
    """BPE of SentencePiece: of all neighbours, those whose piece has the best score are merged.

    Attributes
    ----------
    tokens : tuple of str
        Pieces; U+2581 stands for a space, ``<0xNN>`` for a byte.
    scores : tuple of float
    start : int
        Token that a document begins with.
    end_of_document : int
        Token that ends a document.
    prompted : bool
        Whether a prompt begins with that token.
    controls : tuple of int
        Tokens that stand for no text.
    space : bool
        Whether text begins with a space of its own.
    """

    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    start: int
    end_of_document: int
    prompted: bool = True
    controls: tuple[int, ...] = ()
    space: bool = True

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.tokens)


@dataclasses.dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer in a file of its own, as the ``tokenizers`` package has it.

    Attributes
    ----------
    path : Path
    vocab : int
        Tokens that the model has.
    start : int
        Token that a document begins with.
    end_of_document : int
        Token that ends a document.
    prompted : bool
        Whether a prompt begins with the token that a document begins with.
    """

    path: Path
    vocab: int
    start: int
    end_of_document: int
    prompted: bool = True

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self.vocab


#: Tokens of a model, whatever their kind.
Words = Vocabulary | PieceVocabulary | TokenizerFile


def begin(words: Words, prompt: Sequence[int]) -> list[int]:
    """Return the tokens of a document that begins with a prompt."""
    return [words.start, *prompt] if words.prompted or not prompt else [*prompt]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LanguageModel(abc.ABC):
    """A model of any family.

    Attributes
    ----------
    name : str
    logit_scales : dict
        What the head's integers are scaled by in each arithmetic of
        :data:`sim.golden.model.ARITHMETICS`, apart from the norm. ``lmul`` is the arithmetic of
        docs/numerics.md.
    vocabulary : Vocabulary, PieceVocabulary or TokenizerFile
    layers : tuple
        Of what the family's layers are.
    notes : tuple of str
        What reading it has changed, for people.
    """

    name: str
    logit_scales: dict[str, float]
    vocabulary: Words
    layers: tuple[Any, ...]
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

    def network(self) -> Network:
        """Describe what a token goes through; the FFN's last matrix is ``blk.N.ffn_down``."""
        return self._network

    @functools.cached_property
    def _network(self) -> Network:
        return self._describe()

    @abc.abstractmethod
    def _describe(self) -> Network:
        """Describe the network: once for each model."""


def read_model(path: str | os.PathLike) -> LanguageModel:
    """Read and check a model: a GGUF file, one of llama2.c, or a directory with a checkpoint.

    Raises
    ------
    ModelFileError
        If it cannot be opened, is damaged, of an unknown architecture, or has a key or a tensor
        missing or not as its family's module says.
    """
    path = Path(path)
    # Imported where they are asked for: a GGUF file needs no safetensors.
    source: Source
    if path.is_dir():
        from host.checkpoint import Checkpoint
        source = Checkpoint(path)
    elif path.suffix == ".bin":
        from host.llama2c_file import Llama2cFile
        source = Llama2cFile(path)
    else:
        from host.gguf_file import GGUFFile
        source = GGUFFile(path)
    known = [module.name for module in pkgutil.iter_modules(host.families.__path__)]
    name = source.architecture
    if name == "bitnet-b1.58":      # no name of a module
        name = "bitnet"
    if name not in known:
        raise source.error(f"{source.architecture_key} must be "
                           f"{' or '.join(map(repr, known))}, not {source.architecture!r}")
    family = importlib.import_module(f"host.families.{name}")
    return family.read(source)
