"""The families of models by architecture, and the one function that reads any model."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from host.files.gguf import GGUFFile, split_files
from host.files.kinds import read_head as read_first_bytes
from host.files.llama2c import Llama2cFile
from host.files.safetensors import Checkpoint
from host.models import bitnet, hgrn_bit, llama_files, mmfreelm, mpo_llama
from host.models.base import LanguageModel
from host.models.harmless import is_harmless
from host.text.vocabulary import Words

__all__ = ["ARCHITECTURES", "model_files", "read_head", "read_model"]

_ATTENTION = {
    **dict.fromkeys((*llama_files.GGUFS, *llama_files.CHECKPOINTS), llama_files.attention_of),
    **dict.fromkeys(("bitnet", "bitnet-25", "bitnet-b1.58"), bitnet.attention_of),
    "mpo_llama": mpo_llama.attention_of}

#: What reads a source of each architecture: the ``general.architecture`` of a GGUF file, or the
#: ``model_type`` of a checkpoint.
ARCHITECTURES: dict[str, Callable[[Any], LanguageModel]] = {
    **dict.fromkeys(("bitnet", "bitnet-25", "bitnet-b1.58"), bitnet.read),
    "hgrn_bit": hgrn_bit.read,
    **dict.fromkeys(sorted({*llama_files.GGUFS, *llama_files.CHECKPOINTS}), llama_files.read),
    "mmfreelm": mmfreelm.read,
    "mpo_llama": mpo_llama.read,
}


def model_files(path: Path) -> list[Path]:
    """List the files that a model is read from."""
    if path.is_dir():
        return sorted([*path.glob("*.safetensors"), *path.glob("*.json")])
    # What is no GGUF file has its tokenizer beside it.
    beside = [] if path.suffix == ".gguf" else sorted(path.parent.glob("tok*.bin"))
    return [*split_files(path), *beside]


def _open(path: Path) -> Checkpoint | Llama2cFile | GGUFFile:
    if path.is_dir():
        return Checkpoint(path)
    head = read_first_bytes(path)
    return GGUFFile(path) if b"GGUF".startswith(head[:4]) else Llama2cFile(path)


def _reader(source: Checkpoint | Llama2cFile | GGUFFile) -> Callable[[Any], LanguageModel]:
    """Return what reads a source."""
    read = ARCHITECTURES.get(source.architecture) if isinstance(source.architecture, str) else None
    if read is None:
        known = " or ".join(map(repr, ARCHITECTURES))
        raise source.error(f"{source.architecture_key} must be {known}, "
                           f"not {source.architecture!r}")
    return read


def read_head(path: Path) -> tuple[Words, int]:
    """Read the vocabulary of a model and the tokens that its sequences may have, and no tensor.

    Returns
    -------
    Vocabulary, PieceVocabulary or TokenizerFile
    int
        0 for a model without attention, whose sequences may have any length.

    Raises
    ------
    ModelFileError
        As :func:`read_model` does, as far as the file is read.
    """
    source = _open(path)
    _reader(source)
    attention = _ATTENTION.get(str(source.architecture))
    context = attention(source).context if attention else 0
    if isinstance(source, Checkpoint):
        return source.vocabulary(source.positive_int("vocab_size")), context
    return source.vocabulary(), context


def read_model(path: str | os.PathLike) -> LanguageModel:
    """Read and check a model: a GGUF file, one of llama2.c, or a directory with a checkpoint.

    Raises
    ------
    ModelFileError
        If it cannot be opened, is damaged, of an unknown architecture, has a key or a tensor
        missing or not as its family's module says, or one that nobody reads and that is not in
        :mod:`host.models.harmless`.
    """
    source = _open(Path(path))
    model = _reader(source)(source)
    _refuse_unread(source)
    return dataclasses.replace(model, notes=(*model.notes, *source.notes))


def _refuse_unread(source: Checkpoint | Llama2cFile | GGUFFile) -> None:
    """Refuse what the file holds, nobody has read, and is not known to change nothing."""
    odd = [(kind, name) for kind, name in source.unread() if not is_harmless(
        source.architecture, kind, name, None if kind == "tensor" or isinstance(source, Llama2cFile)
        else source.value(name))]
    if odd:
        kind, name = odd[0]
        more = f" (nor {len(odd) - 1} more)" if len(odd) > 1 else ""
        raise source.error(f"{kind} {name} is not known for architecture "
                           f"{source.architecture!r}{more}, and a model without it could be "
                           f"another one")
