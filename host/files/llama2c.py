"""Files of llama2.c, in all its versions, and its tokenizer, a file beside them.

The first version has no mark: 7 integers, then float32 arrays. The integers are width, feed-forward
width, layers, heads, key and value heads, vocabulary (negative, if the head has weights of its own)
and context. Versions 1 and 2 begin with "ak42", the version, the same integers (the vocabulary is
positive), a byte that is 1 if the head is the embedding, and in version 2 the size of a group; the
arrays begin at byte 256, those of norms first. In version 2 all others are int8, each matrix
followed by a float32 scale for each group of its elements (export.py of llama2.c).

The tokenizer, ``tokTOKENS.bin`` or ``tokenizer.bin``, holds the length of the longest piece, and
for each token a score, a length and a piece.
"""

import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from host.files.errors import ModelFileError, wrong_number
from host.files.kinds import read_head
from host.text.vocabulary import PieceVocabulary, wrong_tokens

__all__ = ["Llama2cFile"]

_HEADER = struct.Struct("<7i")
_MAGIC = b"24ka"        # 0x616b3432, "ak42", as a little-endian integer
_MARKED = struct.Struct("<4si7iBi")
_ARRAYS_AT = 256        # in files with a mark
_MOST = 1 << 24         # of any number of the header, so that other files are told from these
_LARGEST_TOKENIZER = 16 << 20     # bytes; that of Llama has less than one million
_START = _END = 1       # "<s>" stands in front of each story, and so behind the one before


class Llama2cFile:
    """Checked access to one file.

    Attributes
    ----------
    path : Path
    bytes : int
        Size of the file.
    version : int
        0 for a file without a mark.
    width, ffn_width, layers, heads, kv_heads, vocab, context : int
    arrays : dict of str to float32 array
        Called as in a GGUF file; those of the layers have the layer as their first axis.
    notes : list of str
        None: nothing is assumed.

    Raises
    ------
    ModelFileError
        If the file is not what its header says, or holds what is not finite.
    """

    architecture_key = "architecture"
    architecture: object = "llama"

    def __init__(self, path: Path):
        self.path = path
        self.notes: list[str] = []
        head = read_head(path)
        self.bytes = path.stat().st_size
        self.version, group, offset = 0, 1, _HEADER.size
        if len(head) < offset:
            raise self.error(f"neither a GGUF file nor one of llama2.c: it begins with "
                             f"{head[:4]!r} and has {len(head)} bytes")
        header = _HEADER.unpack_from(head)
        vocab = header[5]
        tied = vocab > 0
        if head.startswith(_MAGIC):
            if len(head) < _MARKED.size:
                raise self.error(f"truncated: the header has {_MARKED.size} bytes, "
                                 f"the file has {len(head)}")
            _, self.version, *numbers, shared, group = _MARKED.unpack_from(head)
            if self.version not in (1, 2) or shared not in (0, 1):
                raise self.error(f"a file of llama2.c must have version 1 or 2 and share its head "
                                 f"or not (1 or 0), not {self.version} and {shared}")
            header, tied, offset = tuple(numbers), bool(shared), _ARRAYS_AT
            vocab = header[5]
        (self.width, self.ffn_width, self.layers, self.heads, self.kv_heads, _,
         self.context) = header
        self.vocab = abs(vocab) if self.version == 0 else vocab
        sizes = (*header[:5], self.vocab, self.context)
        if (min(sizes) < 1 or max(sizes) >= _MOST or self.width % self.heads
                or self.heads % self.kv_heads or self.width // self.heads % 2):
            raise self.error(f"neither a GGUF file nor one of llama2.c: it begins with "
                             f"{head[:4]!r}, and its sizes would be {list(header)}")
        if self.version == 2 and (group < 1 or self.width % group or self.ffn_width % group):
            raise self.error(f"groups must divide the widths, {self.width} and {self.ffn_width}, "
                             f"not have {group} elements")
        self.arrays = self._read(offset, group, tied=tied)

    def error(self, message: str) -> ModelFileError:
        """Put the file's name in front of what is wrong with it."""
        return ModelFileError(f"{self.path}: {message}")

    def unread(self) -> list[tuple[str, str]]:
        """Return nothing: the arrays are those of the header, and all are read."""
        return []

    def _shapes(self, *, tied: bool) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the arrays, in the order of the file."""
        layers, width, ffn_width = self.layers, self.width, self.ffn_width
        kv_width = width // self.heads * self.kv_heads
        shapes: dict[str, tuple[int, ...]] = {
            "embedding": (self.vocab, width), "attn_norm": (layers, width),
            "attn_q": (layers, width, width), "attn_k": (layers, kv_width, width),
            "attn_v": (layers, kv_width, width), "attn_output": (layers, width, width),
            "ffn_norm": (layers, width), "ffn_gate": (layers, ffn_width, width),
            "ffn_down": (layers, width, ffn_width), "ffn_up": (layers, ffn_width, width),
            "norm": (width,)}
        if self.version:
            norms = ("attn_norm", "ffn_norm", "norm")
            shapes = {name: shapes[name] for name in (
                *norms, *(name for name in shapes if name not in norms))}
        else:
            # Cosines and sines, which follow from the rest.
            shapes["rotary"] = (2, self.context, width // self.heads // 2)
        return shapes if tied else {**shapes, "head": (self.vocab, width)}

    def _read(self, offset: int, group: int, *, tied: bool) -> dict[str, NDArray[np.float32]]:
        shapes = self._shapes(tied=tied)
        # Python's integers: the header can be anything.
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        quantized = [name for name, shape in shapes.items()
                     if self.version == 2 and name != "norm" and "_norm" not in name]
        expected = offset + sum(
            size + 4 * (size // group) if name in quantized else 4 * size
            for name, size in sizes.items())
        if self.bytes != expected:
            raise self.error(f"must have {expected} bytes, as its header says, not {self.bytes}")
        data = np.asarray(np.memmap(self.path, np.uint8, mode="r", offset=offset))
        arrays = {}
        at = 0
        for name, shape in shapes.items():
            if name in quantized:
                # Each matrix of a layer has its scales behind it.
                matrices = shape[0] if len(shape) == 3 else 1
                length = sizes[name] // matrices
                room = length + 4 * (length // group)
                values = np.empty(sizes[name], np.float32)
                for index in range(matrices):
                    part = data[at + index * room:at + (index + 1) * room]
                    scales = np.frombuffer(part[length:].tobytes(), "<f4")
                    with np.errstate(over="ignore", invalid="ignore"):
                        values[index * length:(index + 1) * length] = (
                            part[:length].view(np.int8).reshape(-1, group).astype(np.float32)
                            * scales[:, np.newaxis]).reshape(-1)
                at += matrices * room
            else:
                values = data[at:at + 4 * sizes[name]].view("<f4")
                at += 4 * sizes[name]
            wrong = wrong_number(values)
            if wrong:
                raise self.error(f"array {name} {wrong}")
            if name != "rotary" and not values.any():
                raise self.error(f"array {name} is zero everywhere: the file was not written, or "
                                 f"not downloaded, to its end")
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
