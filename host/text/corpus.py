"""Texts to train on and to measure with, and which document is for what.

**Plain text.** A text file, or a folder of files ``*.txt``, in UTF-8. A line ``<|endoftext|>`` ends
a document; a file without such lines is cut at blank lines into documents of at least 2,000
characters. The documents, in the order of the files' names, are dealt out in turn: held out, for
calibration, two for training.

**A corpus with a record.** A directory holds ``TEXT.txt.xz`` files, in which each document ends
with a line ``<|endoftext|>``, and ``splits.tsv``, which assigns each document to ``train``,
``heldout`` or ``dropped`` and carries the first 16 hexadecimal digits of its SHA-256.

Of these, one in 128 of the ``train`` documents is set aside as ``calibration``: training never sees
it, so that constants fitted on it (the logit scales) are fitted neither on held-out text nor on
text that the model has memorized.
"""

import hashlib
import itertools
import lzma
import os
import re
from collections.abc import Sequence
from pathlib import Path

from host.checks import FileError

__all__ = ["PARTS", "CorpusError", "read_corpus"]

#: What a document is for.
PARTS = ("train", "calibration", "heldout")

_END = "<|endoftext|>"
_CALIBRATION_SHARE = 128
_ASSIGNED = ("train", "heldout", "dropped")

# Bytes that a text may have beyond 8 times those of its file, and its decompressor's memory: xz
# makes a file that is all alike some thousand times smaller, and text four times.
_MOST_TEXT = 8 << 20
_DECOMPRESSOR = 128 << 20

_LARGEST_SPLITS = 64 << 20      # bytes; 40 a document
_NAME = re.compile(r"[\w.-]+")

_PLAIN_CHARACTERS = 2000        # of a document that is cut out of a plain text: some 500 tokens
_DEALT = ("heldout", "calibration", "train", "train")


class CorpusError(FileError):
    """Texts cannot be used; the message names file, document and reason."""


def _documents(path: Path) -> list[str]:
    decompressor = lzma.LZMADecompressor(memlimit=_DECOMPRESSOR)
    try:
        data = path.read_bytes()
        most = 8 * len(data) + _MOST_TEXT
        # Not decoded as a whole: one character can make all others four times as large.
        parts = decompressor.decompress(data, most).split(_END.encode())
        documents = [document for part in parts if (document := part.strip().decode().strip())]
    except (OSError, lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}: cannot be read as xz-compressed UTF-8: {error}") from None
    if not decompressor.eof or decompressor.unused_data:
        raise CorpusError(f"{path}: cannot be read as xz-compressed UTF-8: it must be one whole "
                          f"stream of at most {most} bytes of text")
    return documents


def _fields(splits: Path, number: int, line: str) -> tuple[str, int, str, str]:
    fields = line.split("\t")
    # No more digits than 9: a number of thousands of them is an error of its own.
    if len(fields) != 4 or not re.fullmatch("[0-9]{1,9}", fields[1]) or (
            fields[2] not in _ASSIGNED or not _NAME.fullmatch(fields[0])):
        raise CorpusError(f"{splits}: line {number} must be text, document number, "
                          f"train, heldout or dropped, and digest, not {line!r}")
    text, index, part, digest = fields
    return text, int(index), part, digest


def _plain_documents(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: must be UTF-8, but byte {error.start} is "
                          f"{error.object[error.start]:#04x}") from None
    except OSError as error:
        raise CorpusError(f"{path}: {error.strerror}") from None
    if _END in text:
        return [document for part in text.split(_END) if (document := part.strip())]
    documents, paragraphs, size = [], [], 0
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        paragraphs.append(paragraph)
        size += len(paragraph)
        if size >= _PLAIN_CHARACTERS:
            documents.append("\n\n".join(paragraphs))
            paragraphs, size = [], 0
    rest = "\n\n".join(paragraphs)
    return [*documents, rest] if rest else documents


def _plain_corpus(files: Sequence[Path]) -> dict[str, list[str]]:
    documents = [document for file in files for document in _plain_documents(file)]
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for part, document in zip(itertools.cycle(_DEALT), documents, strict=False):
        parts[part].append(document)
    return parts


def read_corpus(path: str | os.PathLike) -> dict[str, list[str]]:
    """Return the documents of each part, stripped, in the order of ``splits.tsv`` or of the files.

    Parameters
    ----------
    path : path
        A plain text file, a folder of them, or a folder with ``splits.tsv``.

    Raises
    ------
    CorpusError
        If a file is missing or unreadable, or a document is not the one that was split.
    """
    directory = Path(path)
    if directory.is_file():
        return _plain_corpus([directory])
    splits = directory / "splits.tsv"
    if directory.is_dir() and not splits.exists():
        files = sorted(directory.glob("*.txt"))
        if not files:
            raise CorpusError(f"{directory}: must hold plain texts (*.txt) or splits.tsv")
        return _plain_corpus(files)
    if not directory.is_dir():
        raise CorpusError(f"{directory}: No such file or directory")
    try:
        size = splits.stat().st_size
        if size > _LARGEST_SPLITS:
            raise CorpusError(f"{splits}: must have at most {_LARGEST_SPLITS} bytes, not {size}")
        lines = splits.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise CorpusError(f"{splits}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CorpusError(f"{splits}: is not valid UTF-8") from None
    texts: dict[str, list[str]] = {}
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    seen: set[tuple[str, int]] = set()
    for number, line in enumerate(lines[1:], start=2):
        text, index, part, digest = _fields(splits, number, line)
        if text not in texts:
            texts[text] = _documents(Path(directory, f"{text}.txt.xz"))
        if index >= len(texts[text]):
            raise CorpusError(f"{splits}: line {number} names document {index} of {text}, "
                              f"which has {len(texts[text])}")
        if (text, index) in seen:
            raise CorpusError(f"{splits}: line {number} names document {index} of {text} again")
        seen.add((text, index))
        document = texts[text][index]
        actual = hashlib.sha256(document.encode()).hexdigest()[:16]
        if actual != digest:
            raise CorpusError(f"{splits}: document {index} of {text} must have the SHA-256 "
                              f"{digest}..., not {actual}...")
        if part == "train" and int(digest, 16) % _CALIBRATION_SHARE == 0:
            part = "calibration"
        if part in parts:
            parts[part].append(document)
    return parts
