"""The families of models by architecture, and the one function that reads any model."""

import importlib
import os
import pkgutil
from pathlib import Path

import host.families
from host.models.base import LanguageModel, Source

__all__ = ["read_model"]


def read_model(path: str | os.PathLike) -> LanguageModel:
    """Read and check a model: a GGUF file, one of llama2.c, or a directory with a checkpoint.

    Raises
    ------
    ModelFileError
        If it cannot be opened, is damaged, of an unknown architecture, or has a key or a tensor
        missing or not as its family's module says.
    """
    path = Path(path)
    # Imported where they are asked for: a GGUF file needs no safetensors.
    source: Source
    if path.is_dir():
        from host.files.safetensors import Checkpoint
        source = Checkpoint(path)
    elif path.suffix == ".bin":
        from host.files.llama2c import Llama2cFile
        source = Llama2cFile(path)
    else:
        from host.files.gguf import GGUFFile
        source = GGUFFile(path)
    known = [module.name for module in pkgutil.iter_modules(host.families.__path__)]
    name = source.architecture
    if name == "bitnet-b1.58":      # no name of a module
        name = "bitnet"
    if name not in known:
        raise source.error(f"{source.architecture_key} must be "
                           f"{' or '.join(map(repr, known))}, not {source.architecture!r}")
    family = importlib.import_module(f"host.families.{name}")
    return family.read(source)
