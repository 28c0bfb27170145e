"""Text to tokens and back: by the byte-level BPE that a model file carries, or by a file."""

import codecs
from collections.abc import Sequence

from tokenizers import Tokenizer as BPETokenizer
from tokenizers import decoders, models, pre_tokenizers

from host.model import TokenizerFile, Vocabulary

__all__ = ["FileTokenizer", "StreamDecoder", "Tokenizer", "byte_symbols", "open_tokenizer"]


def byte_symbols() -> list[str]:
    """List the printable character of each byte in GPT-2's vocabularies, in byte order.

    Printable Latin-1 characters stand for themselves; the other bytes, in order, are the characters
    from U+0100 on.
    """
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(0x100, 0x200))
    return [chr(byte) if byte in plain else chr(next(moved)) for byte in range(256)]


class Tokenizer:
    """Byte-level BPE: any text has tokens, and they give exactly that text back.

    Parameters
    ----------
    vocabulary : Vocabulary

    Raises
    ------
    ValueError
        If a byte has no token.
    """

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        known = set(vocabulary.tokens)
        symbols = byte_symbols()
        for byte, symbol in enumerate(symbols):
            if symbol not in known:
                raise ValueError(f"Vocabulary must have a token for every byte, "
                                 f"but none for {byte:#04x}")
        byte_of = {symbol: byte for byte, symbol in enumerate(symbols)}
        end = vocabulary.end_of_document
        self._bytes = [b"" if index == end else bytes(byte_of[symbol] for symbol in token)
                       for index, token in enumerate(vocabulary.tokens)]
        ids = {token: index for index, token in enumerate(vocabulary.tokens) if index != end}
        merges = [(left, right) for left, _, right in
                  (merge.partition(" ") for merge in vocabulary.merges)]
        self._bpe = BPETokenizer(models.BPE(vocab=ids, merges=merges))
        self._bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of ``text``; no end-of-document token is added or recognized."""
        return self._bpe.encode(text).ids

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """Return the bytes of ``tokens``; the end-of-document token has none."""
        return b"".join(self._bytes[token] for token in tokens)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of ``tokens``; what is not valid UTF-8 becomes U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", "replace")

    def stream(self) -> "StreamDecoder":
        """Begin to decode tokens that come one at a time."""
        return StreamDecoder(self)


class StreamDecoder:
    """Decoder of tokens that come one at a time: a character appears with its last byte."""

    def __init__(self, tokenizer: Tokenizer):
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
        If the file is missing or damaged, or has other tokens than the model.
    """

    def __init__(self, vocabulary: TokenizerFile):
        self.vocabulary = vocabulary
        path = vocabulary.path
        try:
            self._tokenizer = BPETokenizer.from_str(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{path.name}: {error.strerror}") from None
        except Exception as error:      # what the package raises, and text that is not UTF-8
            raise ValueError(f"{path.name}: not a tokenizer: {error}") from None
        if self._tokenizer.get_vocab_size() > vocabulary.vocab:
            raise ValueError(f"{path.name} must have at most {vocabulary.vocab} tokens, "
                             f"not {self._tokenizer.get_vocab_size()}")

    def encode(self, text: str) -> list[int]:
        """Return the tokens of ``text``; none are added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

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


def open_tokenizer(vocabulary: Vocabulary | TokenizerFile) -> Tokenizer | FileTokenizer:
    """Make the tokenizer of a model.

    Raises
    ------
    ValueError
        If it cannot be used.
    """
    if isinstance(vocabulary, TokenizerFile):
        return FileTokenizer(vocabulary)
    return Tokenizer(vocabulary)
