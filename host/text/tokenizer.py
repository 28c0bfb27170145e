"""Text to tokens and back: by the byte-level BPE that a model file carries, or by a file."""

import codecs
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from tokenizers import Tokenizer as BPETokenizer
from tokenizers import decoders, models, normalizers

from host.checks import FileError
from host.errors import TallyError
from host.text.special import SpecialTokenFinder
from host.text.splits import SPLITS
from host.text.vocabulary import PieceVocabulary, TokenizerFile, Vocabulary, Words, wrong_merges

__all__ = ["AnyTokenizer", "ByteTokenizer", "FileTokenizer", "PieceTokenizer",
           "StreamDecoder", "TextError", "Tokenizer", "byte_symbols", "open_tokenizer"]

_SPACE = "\u2581"       # SentencePiece's

# Ways to make pieces of two others; the largest vocabularies in use have about 600,000.
_MOST_WAYS = 5 << 17

# Bytes of a tokenizer's file; the largest in use have about 33 million.
_LARGEST_FILE = 64 << 20


def byte_symbols() -> list[str]:
    """List the printable character of each byte in GPT-2's vocabularies, in byte order.

    Printable Latin-1 characters stand for themselves; the other bytes, in order, are the characters
    from U+0100 on.
    """
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(0x100, 0x200))
    return [chr(byte) if byte in plain else chr(next(moved)) for byte in range(256)]


class TextError(TallyError, ValueError):
    """A text has no tokens; the message is one sentence."""


class ByteTokenizer:
    """A tokenizer whose tokens are bytes each.

    Parameters
    ----------
    vocabulary : Vocabulary or PieceVocabulary
    pieces : list of bytes
        By token; those that stand for no text have none.
    bpe : BPETokenizer
    """

    def __init__(self, vocabulary: Vocabulary | PieceVocabulary, pieces: list[bytes],
                 bpe: BPETokenizer):
        self._tokens = vocabulary.tokens
        self._bytes = pieces
        self._bpe = bpe
        self._finders = {special: SpecialTokenFinder(vocabulary, special=special)
                         for special in (False, True)}

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the tokens of ``text``; none are added.

        Tokens that a user has added to the vocabulary are found in any text. Those that stand for
        no text, such as the end of a turn, are found only in a ``special`` one: a prompt.
        """
        tokens: list[int] = []
        for part in self._finders[special].parts(text):
            tokens += [part] if isinstance(part, int) else self._bpe.encode(part).ids
        return tokens

    def text_of(self, token: int) -> str:
        """Return a special token as a prompt has it."""
        return self._tokens[token]

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """Return the bytes of ``tokens``."""
        return b"".join(self._bytes[token] for token in tokens)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of ``tokens``; what is not valid UTF-8 becomes U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", "replace")

    def stream(self) -> "StreamDecoder":
        """Begin to decode tokens that come one at a time."""
        return StreamDecoder(self)


class Tokenizer(ByteTokenizer):
    """Byte-level BPE: tokens give exactly the text back that they were made of.

    Some published vocabularies lack bytes that no text should have, such as control characters.

    Parameters
    ----------
    vocabulary : Vocabulary

    Raises
    ------
    ValueError
        If a merge needs what is no token, or one that stands for no text.
    """

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        silent = {vocabulary.end_of_document, *vocabulary.controls}
        wrong = wrong_merges(vocabulary.tokens, vocabulary.merges, silent)
        if wrong:
            raise FileError(f"Merges of the vocabulary: the list {wrong}")
        byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        # Tokens that a user has added are plain text, whatever a file calls them.
        user = set(vocabulary.user)
        pieces = [b"" if index in silent else bytes(byte_of[symbol] for symbol in token)
                  if index not in user and set(token) <= byte_of.keys() else token.encode()
                  for index, token in enumerate(vocabulary.tokens)]
        ids = {token: index for index, token in enumerate(vocabulary.tokens)
               if index not in silent}
        merges = [(left, right) for left, _, right in
                  (merge.partition(" ") for merge in vocabulary.merges)]
        split = SPLITS[vocabulary.split]
        bpe = BPETokenizer(models.BPE(vocab=ids, merges=merges,
                                      ignore_merges=split.whole_words))
        if split.composed:
            bpe.normalizer = normalizers.NFC()
        bpe.pre_tokenizer = split.pre_tokenizer()
        super().__init__(vocabulary, pieces, bpe)
        self._missing = {byte for symbol, byte in byte_of.items() if symbol not in ids}

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """As :meth:`ByteTokenizer.encode`.

        Raises
        ------
        TextError
            If a byte of the text has no token.
        """
        missing = self._missing and self._missing.intersection(text.encode())
        if missing:
            raise TextError(f"Text must have only bytes that the vocabulary has a token for, "
                            f"not {min(missing):#04x}")
        return super().encode(text, special=special)


class PieceTokenizer(ByteTokenizer):
    """BPE of SentencePiece; what has no piece is written as bytes.

    Parameters
    ----------
    vocabulary : PieceVocabulary

    Raises
    ------
    ValueError
        If a byte has no token, or there are too many ways to make pieces of others.
    """

    def __init__(self, vocabulary: PieceVocabulary):
        self.vocabulary = vocabulary
        silent = {vocabulary.start, vocabulary.end_of_document, *vocabulary.controls}
        of_byte = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}
        missing = of_byte.keys() - set(vocabulary.tokens)
        if missing:
            raise FileError(f"Vocabulary must have a token for every byte, "
                             f"but none for {min(missing)[1:-1]}")
        pieces = [b"" if index in silent else
                  of_byte.get(token) or token.replace(_SPACE, " ").encode()
                  for index, token in enumerate(vocabulary.tokens)]
        ids = {token: index for index, token in enumerate(vocabulary.tokens)
               if index not in silent}
        bpe = BPETokenizer(models.BPE(vocab=ids, merges=_ways(vocabulary, ids, of_byte),
                                      byte_fallback=True))
        prefix = [normalizers.Prepend(_SPACE)] if vocabulary.space else []
        bpe.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", _SPACE)])
        super().__init__(vocabulary, pieces, bpe)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of ``tokens``, as :meth:`encode` was given it."""
        text = super().decode(tokens)
        return text.removeprefix(" ") if self.vocabulary.space else text


def _ways(vocabulary: PieceVocabulary, ids: Mapping[str, int], whole: Collection[str],
          ) -> list[tuple[str, str]]:
    """List all ways to make a piece of two, in the order of its score, then of the token.

    SentencePiece merges the neighbours whose piece has the best score.

    Parameters
    ----------
    vocabulary : PieceVocabulary
        Its tokens have at most :data:`host.text.vocabulary.LONGEST_TOKEN` characters, so that time
        is linear.
    ids : mapping of str to int
        Pieces that text can be made of.
    whole : collection of str
        Those that are not made of others.
    """
    pieces = {token: token for token in ids}        # one text for all ways
    scores = np.array([vocabulary.scores[index] for index in ids.values()])
    names = list(ids)
    found: list[tuple[str, str]] = []
    for place in np.lexsort((np.array(list(ids.values())), -scores)).tolist():
        token = names[place]
        if token in whole:
            continue
        for cut in range(1, len(token)):
            first = pieces.get(token[:cut])
            if first:
                second = pieces.get(token[cut:])
                if second:
                    found.append((first, second))
        if len(found) > _MOST_WAYS:
            raise FileError(f"Vocabulary must have at most {_MOST_WAYS} ways to make a piece of "
                            f"two others")
    return found


class StreamDecoder:
    """Decoder of tokens that come one at a time: a character appears with its last byte."""

    def __init__(self, tokenizer: ByteTokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """Return the text that ``token`` completes."""
        return self._decoder.decode(self._tokenizer.decode_bytes([token]))

    def finish(self) -> str:
        """Return what the bytes still waiting stand for: U+FFFD, or nothing where none wait."""
        return self._decoder.decode(b"", final=True)


class FileTokenizer:
    """A tokenizer in a file of its own.

    Parameters
    ----------
    vocabulary : TokenizerFile

    Raises
    ------
    ValueError
        If the file is missing, too large or damaged, or has other tokens than the model.
    """

    def __init__(self, vocabulary: TokenizerFile):
        self.vocabulary = vocabulary
        path = vocabulary.path
        try:
            size = path.stat().st_size
            if size > _LARGEST_FILE:
                raise FileError(f"{path.name} must have at most {_LARGEST_FILE} bytes, not {size}")
            self._tokenizer = BPETokenizer.from_str(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise FileError(f"{path.name}: {error.strerror}") from None
        except FileError:
            raise
        except Exception as error:      # what the package raises, and text that is not UTF-8
            raise FileError(f"{path.name}: not a tokenizer: {error}") from None
        if self._tokenizer.get_vocab_size() > vocabulary.vocab:
            raise FileError(f"{path.name} must have at most {vocabulary.vocab} tokens, "
                            f"not {self._tokenizer.get_vocab_size()}")
        last = max(self._tokenizer.get_vocab().values(), default=0)
        if last >= vocabulary.vocab:
            raise FileError(f"{path.name} must have tokens below {vocabulary.vocab}, not {last}")

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """As :meth:`ByteTokenizer.encode`."""
        self._tokenizer.encode_special_tokens = not special
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def text_of(self, token: int) -> str:
        """As :meth:`ByteTokenizer.text_of`."""
        return self._tokenizer.id_to_token(token) or ""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of ``tokens``."""
        return self._tokenizer.decode(list(tokens))

    def stream(self) -> "FileStreamDecoder":
        """Begin to decode tokens that come one at a time."""
        return FileStreamDecoder(self._tokenizer)


class FileStreamDecoder:
    """As :class:`StreamDecoder`, for a tokenizer in a file of its own."""

    def __init__(self, tokenizer: BPETokenizer):
        self._tokenizer = tokenizer
        self._stream = decoders.DecodeStream(skip_special_tokens=True)

    def feed(self, token: int) -> str:
        """Return the text that ``token`` completes."""
        return self._stream.step(self._tokenizer, token) or ""

    def finish(self) -> str:
        """Return nothing: what the bytes still waiting stand for is not known."""
        return ""


AnyTokenizer = ByteTokenizer | FileTokenizer


def open_tokenizer(vocabulary: Words) -> AnyTokenizer:
    """Make the tokenizer of a model.

    Raises
    ------
    ValueError
        If it cannot be used.
    """
    if isinstance(vocabulary, TokenizerFile):
        return FileTokenizer(vocabulary)
    if isinstance(vocabulary, PieceVocabulary):
        return PieceTokenizer(vocabulary)
    return Tokenizer(vocabulary)
