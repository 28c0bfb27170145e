"""What a file is, by its first bytes: people have files of many kinds, with any ending."""

import struct
from pathlib import Path

from host.files.errors import ModelFileError

__all__ = ["foreign", "read_head"]

# Bytes of a file that its kind is told from.
_HEAD = 64

# First bytes of files that are no models here, and what to say of them.
_FOREIGN = {
    b"version https://git-lfs": "a pointer of git-lfs, and not the file that it points to: fetch "
                                "that with 'git lfs pull', or download it",
    b"PK\x03\x04": "a zip archive, as PyTorch writes checkpoints: a pickle in it can run any "
                   "program; save the weights as safetensors, or convert them to GGUF",
    b"\x80\x02": "a pickle of Python, which can run any program; save the weights as safetensors, "
                 "or convert them to GGUF",
    b"tjgg": "a GGJT file, which llama.cpp wrote before GGUF: convert the original weights to GGUF",
    b"fmgg": "a GGMF file, which llama.cpp wrote before GGUF: convert the original weights to GGUF",
    b"lmgg": "a GGML file, which llama.cpp wrote before GGUF: convert the original weights to GGUF",
    b"<!DOCTYPE": "a page of HTML, and not the file that was to be downloaded",
    b"<html": "a page of HTML, and not the file that was to be downloaded",
    bytes(16): "zeros: the file was not written, or not downloaded",
}


def foreign(head: bytes) -> str | None:
    """Say what a file is that begins with some bytes, if it is of a kind that is not read here."""
    if not head:
        return "an empty file"
    return next((what for magic, what in _FOREIGN.items() if head.startswith(magic)), None)


def _is_safetensors(head: bytes) -> bool:
    """Whether a file begins as one of safetensors: a length, and an object of JSON."""
    return len(head) > 9 and head[8:9] == b"{" and struct.unpack_from("<Q", head)[0] < 1 << 32


def read_head(path: Path) -> bytes:
    """Read the first bytes of a file that may be a model.

    Raises
    ------
    ModelFileError
        If it cannot be read, or is of a kind that is not read here, which the message names.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror}") from None
    what = foreign(head)
    if what is None and _is_safetensors(head):
        what = ("a safetensors file: name the folder that it lies in, with config.json and "
                "tokenizer.json")
    if what:
        raise ModelFileError(f"{path}: this is {what}")
    return head
