"""Vocabularies: the tokens of a model, whatever their kind."""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path

__all__ = ["PieceVocabulary", "TokenizerFile", "Vocabulary", "Words", "begin", "wrong_merges",
           "wrong_tokens"]

#: Tokens of a vocabulary, and merges, at most; the largest vocabularies in use have about 2**18.
MOST_TOKENS = 1 << 19

#: Characters of a token; in the vocabularies in use, up to 128.
LONGEST_TOKEN = 512


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
        :data:`host.text.tokenizer.SPLITS`.
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
