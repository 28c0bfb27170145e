"""The families of models by architecture, and the one function that reads any model."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from host.files.errors import ModelFileError
from host.files.gguf import GGUFFile, split_files
from host.files.kinds import read_head as read_first_bytes
from host.files.llama2c import Llama2cFile
from host.files.safetensors import Checkpoint
from host.models import bitnet, hgrn_bit, llama_files, mmfreelm, mpo_llama
from host.models.base import LanguageModel
from host.models.harmless import is_harmless
from host.models.transformer import Attention
from host.text.vocabulary import Words

__all__ = ["model_files", "read_head", "read_model"]


@dataclasses.dataclass(frozen=True)
class _Family:
    """What reads the models of an architecture.

    Attributes
    ----------
    read : callable
        Takes a source, and returns the model.
    attention : callable, optional
        Takes a source, and returns the shape of its attention; None for models without.
    """

    read: Callable[[Any], LanguageModel]
    attention: Callable[[Any], Attention] | None = None


_LLAMA = _Family(llama_files.read, llama_files.attention_of)
_BITNET = _Family(bitnet.read, bitnet.attention_of)

# Families of GGUF files by ``general.architecture``, of checkpoints by ``model_type``.
_GGUFS = {**dict.fromkeys(bitnet.GGUFS, _BITNET), **dict.fromkeys(llama_files.GGUFS, _LLAMA),
          "mmfreelm": _Family(mmfreelm.read),
          "mpo_llama": _Family(mpo_llama.read, mpo_llama.attention_of)}
_CHECKPOINTS = {"bitnet": _BITNET, **dict.fromkeys(llama_files.CHECKPOINTS, _LLAMA),
                "hgrn_bit": _Family(hgrn_bit.read)}

_Source = Checkpoint | Llama2cFile | GGUFFile


def model_files(path: Path) -> list[Path]:
    """List the files that a model is read from."""
    if path.is_dir():
        return sorted([*path.glob("*.safetensors"), *path.glob("*.json")])
    # What is no GGUF file has its tokenizer beside it.
    beside = [] if path.suffix == ".gguf" else sorted(path.parent.glob("tok*.bin"))
    return [*split_files(path), *beside]


def _open(path: Path) -> _Source:
    if path.is_dir():
        inside = sorted(path.glob("*.gguf"))
        if inside and not (path / "config.json").exists():
            raise ModelFileError(f"{path}: a folder with GGUF files: name one of them, such as "
                                 f"{inside[0].name}")
        return Checkpoint(path)
    head = read_first_bytes(path)
    return GGUFFile(path) if b"GGUF".startswith(head[:4]) else Llama2cFile(path)


def _family(source: _Source) -> _Family:
    """Return what reads a source."""
    if isinstance(source, Llama2cFile):
        return _LLAMA
    families = _CHECKPOINTS if isinstance(source, Checkpoint) else _GGUFS
    name = source.architecture
    if not isinstance(name, str) or name not in families:
        raise source.error(f"{source.architecture_key} must be "
                           f"{' or '.join(map(repr, sorted(families)))}, not {name!r}")
    return families[name]


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
    attention = _family(source).attention
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
    model = _family(source).read(source)
    _refuse_unread(source)
    return dataclasses.replace(model, notes=(*model.notes, *source.notes))


def _refuse_unread(source: _Source) -> None:
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
