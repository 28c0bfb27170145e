"""Vocabularies: the tokens of a model, whatever their kind."""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path

__all__ = ["END_TEXTS", "LONGEST_TEMPLATE", "PieceVocabulary", "SpecialTokens", "TokenizerFile",
           "Vocabulary", "Words", "begin",
           "endings", "wrong_merges", "wrong_tokens"]

#: Tokens of a vocabulary, and merges, at most; the largest vocabularies in use have about 2**18.
MOST_TOKENS = 1 << 19

#: Characters of a token; in the vocabularies in use, up to 128.
LONGEST_TOKEN = 512

#: Characters of a chat template; the longest in use have some thirty thousand.
LONGEST_TEMPLATE = 1 << 18

#: Texts of tokens that end an answer, whatever a file says of them: those of llama.cpp.
END_TEXTS = frozenset((
    "</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>", "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "[EOS]", "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<turn|>",
    "<EOT>", "_<EOT>", "[EOT]", "<end_of_utterance>", "<|return|>", "<|call|>", "<|fim_pad|>",
    "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>",
    "<REPO>", "<reponame>", "<|file_sep|>"))


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """What a model file says of its special tokens, for a vocabulary of any kind.

    Attributes
    ----------
    ends : tuple of int
        Further tokens that end an answer, such as the end of a turn.
    user : tuple of int
        Tokens that a user has added: text has them wherever their own text stands.
    stripped : tuple of int
        Special tokens behind which white space is left out.
    template : str, optional
        How a dialogue is written as text, in Jinja.
    opened : bool
        Whether the file names the token that a document begins with.
    """

    ends: tuple[int, ...] = ()
    user: tuple[int, ...] = ()
    stripped: tuple[int, ...] = ()
    template: str | None = None
    opened: bool = True


@dataclasses.dataclass(frozen=True)
class Vocabulary(SpecialTokens):
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
        :data:`host.text.splits.SPLITS`.
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
class PieceVocabulary(SpecialTokens):
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
class TokenizerFile(SpecialTokens):
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


def endings(words: Words) -> frozenset[int]:
    """Return the tokens that end a text."""
    return frozenset((words.end_of_document, *words.ends))


def begin(words: Words, prompt: Sequence[int]) -> list[int]:
    """Return the tokens of a document that begins with a prompt."""
    return [words.start, *prompt] if words.prompted or not prompt else [*prompt]
