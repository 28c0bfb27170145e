"""Files of llama2.c: 7 integers, then float32 arrays; and its tokenizer, a file beside them.

The integers are width, feed-forward width, layers, heads, key and value heads, vocabulary
(negative, if the head has weights of its own) and context. The tokenizer, ``tokTOKENS.bin`` or
``tokenizer.bin``, holds the length of the longest piece, and for each token a score, a length and a
piece.
"""

import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from host.files.errors import ModelFileError, wrong_number
from host.text.vocabulary import PieceVocabulary, wrong_tokens

__all__ = ["Llama2cFile"]

_HEADER = struct.Struct("<7i")
_LARGEST_TOKENIZER = 16 << 20     # bytes; that of Llama has less than one million
_START = _END = 1       # "<s>" stands in front of each story, and so behind the one before


class Llama2cFile:
    """Checked access to one file.

    Attributes
    ----------
    path : Path
    bytes : int
        Size of the file.
    width, ffn_width, layers, heads, kv_heads, vocab, context : int
    arrays : dict of str to float32 array
        Called as in a GGUF file; those of the layers have the layer as their first axis.

    Raises
    ------
    ModelFileError
        If the file is not what its header says, or holds what is not finite.
    """

    architecture_key = "architecture"
    architecture: object = "llama"

    def __init__(self, path: Path):
        self.path = path
        try:
            self.bytes = path.stat().st_size
            with open(path, "rb") as file:
                data = file.read(_HEADER.size)
        except OSError as error:
            raise ModelFileError(f"{path}: {error.strerror}") from None
        if len(data) < _HEADER.size:
            raise self.error(f"must have a header of {_HEADER.size} bytes, "
                             f"not {len(data)} bytes")
        header = _HEADER.unpack(data)
        (self.width, self.ffn_width, self.layers, self.heads, self.kv_heads, vocab,
         self.context) = header
        self.vocab = abs(vocab)
        if (min(*header[:5], self.vocab, self.context) < 1 or self.width % self.heads
                or self.heads % self.kv_heads or self.width // self.heads % 2):
            raise self.error(f"neither a GGUF file nor one of llama2.c, whose header of sizes it "
                             f"has not: {list(header)}")
        self.arrays = self._read(tied=vocab > 0)

    def error(self, message: str) -> ModelFileError:
        """Put the file's name in front of what is wrong with it."""
        return ModelFileError(f"{self.path}: {message}")

    def _read(self, *, tied: bool) -> dict[str, NDArray[np.float32]]:
        layers, width, ffn_width = self.layers, self.width, self.ffn_width
        kv_width = width // self.heads * self.kv_heads
        shapes: dict[str, tuple[int, ...]] = {
            "embedding": (self.vocab, width), "attn_norm": (layers, width),
            "attn_q": (layers, width, width), "attn_k": (layers, kv_width, width),
            "attn_v": (layers, kv_width, width), "attn_output": (layers, width, width),
            "ffn_norm": (layers, width), "ffn_gate": (layers, ffn_width, width),
            "ffn_down": (layers, width, ffn_width), "ffn_up": (layers, ffn_width, width),
            "norm": (width,),
            # Cosines and sines, which follow from the rest.
            "rotary": (2, self.context, width // self.heads // 2)}
        if not tied:
            shapes["head"] = (self.vocab, width)
        # Python's integers: the header can be anything.
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        expected = _HEADER.size + 4 * sum(sizes.values())
        if self.bytes != expected:
            raise self.error(f"must have {expected} bytes, as its header says, not {self.bytes}")
        data = np.memmap(self.path, "<f4", mode="r", offset=_HEADER.size)
        arrays = {}
        offset = 0
        for name, shape in shapes.items():
            values = np.asarray(data[offset:offset + sizes[name]])
            offset += values.size
            wrong = wrong_number(values)
            if wrong:
                raise self.error(f"array {name} {wrong}")
            arrays[name] = values.reshape(shape)
        arrays.setdefault("head", arrays["embedding"])
        return arrays

    def vocabulary(self) -> PieceVocabulary:
        """Read the tokenizer that lies beside the model."""
        names = (f"tok{self.vocab}.bin", "tokenizer.bin")
        path = next((self.path.with_name(name) for name in names
                     if self.path.with_name(name).is_file()), None)
        if path is None:
            raise self.error(f"tokenizer is missing: {' or '.join(names)} must lie beside it")
        return read_pieces(path, self.vocab)


def read_pieces(path: Path, vocab: int) -> PieceVocabulary:
    """Read a tokenizer of llama2.c that must have ``vocab`` tokens.

    Raises
    ------
    ModelFileError
        If it is truncated or has other tokens.
    """
    try:
        size = path.stat().st_size
        if size > _LARGEST_TOKENIZER:
            raise ModelFileError(f"{path}: must have at most {_LARGEST_TOKENIZER} bytes, "
                                 f"not {size}")
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror}") from None
    tokens: list[str] = []
    scores: list[float] = []
    offset = 4
    while offset < len(data):
        if len(data) - offset < 8:
            raise ModelFileError(f"{path}: truncated in token {len(tokens)}")
        score, length = struct.unpack_from("<fi", data, offset)
        offset += 8
        if not 0 <= length <= len(data) - offset or not np.isfinite(score):
            raise ModelFileError(f"{path}: token {len(tokens)} must have a finite score and a "
                                 f"length up to the file's end, not {score} and {length}")
        try:
            tokens.append(data[offset:offset + length].decode())
        except UnicodeDecodeError:
            raise ModelFileError(f"{path}: token {len(tokens)} is not valid UTF-8") from None
        scores.append(score)
        offset += length
    if len(tokens) != vocab:
        raise ModelFileError(f"{path}: must have {vocab} tokens, not {len(tokens)}")
    # Spaces are what SentencePiece writes as U+2581.
    tokens = [token.replace(" ", "\u2581") for token in tokens]
    wrong = wrong_tokens(tokens)
    if wrong:
        raise ModelFileError(f"{path}: {wrong}")
    return PieceVocabulary(tuple(tokens), tuple(scores), controls=(0, 1, 2), start=_START,
                           end_of_document=_END)
