"""Compiled images in the user's cache: a large model starts without being compiled again.

An entry is an image file without its vocabulary, which is the model file's. Its name is a hash of
all that the image is made of: the model's files, the options, the configuration, and the compiler.
The checks of an image file find an entry that is damaged.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import platform
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from host.files.image import Image, ImageError, read_image, write_image
from sim.tools import cache_folder

__all__ = ["LARGEST", "find_image", "image_folder", "image_key", "keep_image"]

ROOT = Path(__file__).parents[2]

#: What makes an image of a model: files and folders from the root.
_SOURCES = ("host/checks.py", "host/compiler", "host/compress/masks.py", "host/files",
            "host/models", "host/text", "hw", "hw/formats", "sim/golden")

_PACKAGES = ("gguf", "numpy", "safetensors", "tokenizers")

#: Bytes of all entries at most; the ones that were used longest ago are dropped.
LARGEST = 4 << 30

# Seconds after which an unfinished file is that of a process that was killed.
_ABANDONED = 3600


def image_folder() -> Path:
    """Return the folder of the entries, beside the simulators that were built."""
    return cache_folder() / "images"


@functools.cache
def _compiler_digest() -> bytes:
    """Hash what makes an image: the compiler's own sources, and the packages below it."""
    digest = hashlib.sha256(platform.python_version().encode())
    for package in _PACKAGES:
        digest.update(f" {package} {importlib.metadata.version(package)}".encode())
    for source in _SOURCES:
        path = ROOT / source
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.digest()


def image_key(files: Iterable[Path], *options: object) -> str:
    """Hash all that an image is made of.

    Parameters
    ----------
    files : iterable of Path
        What the model is read from, and other files that change the image.
    options : objects
        How it is compiled; each tells itself apart by its ``repr``.

    Raises
    ------
    OSError
        If a file cannot be read.
    """
    digest = hashlib.sha256(_compiler_digest())
    digest.update(repr(options).encode())
    for path in files:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def _entry(key: str) -> Path:
    return image_folder() / f"{key}.image"


def find_image(key: str) -> tuple[Image | None, str]:
    """Read an image from the cache; its memory is mapped, not copied.

    Returns
    -------
    tuple of Image or None and str
        None if there is none; if there is one that cannot be used, the text says why.
    """
    path = _entry(key)
    if not path.exists():
        return None, ""
    try:
        image = read_image(path, mapped=True)
    except ImageError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        return None, str(error)
    with contextlib.suppress(OSError):
        os.utime(path)          # it was used
    return image, ""


def keep_image(key: str, image: Image) -> str:
    """Put an image into the cache, unless it is too large; drop the entries used longest ago.

    Another process sees all of the entry or nothing.

    Returns
    -------
    str
        Why that is not possible, if it is not: the image is as good without the cache.
    """
    folder = image_folder()
    if len(image.memory) > LARGEST:
        return ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, suffix=".part")
        os.close(handle)
        try:
            write_image(name, dataclasses.replace(image, vocabulary=None))
            os.replace(name, _entry(key))
        finally:
            Path(name).unlink(missing_ok=True)
        _drop(folder)
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return ""


def _drop(folder: Path) -> None:
    """Drop what was used longest ago until all entries are small enough together."""
    entries = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):      # another process drops them as well
            found = path.stat()
            if path.suffix == ".image":
                entries.append((found.st_mtime, found.st_size, path))
            elif path.suffix == ".part" and time.time() - found.st_mtime > _ABANDONED:
                path.unlink()
    total = sum(each for _, each, _ in entries)
    for _, each, path in sorted(entries):
        if total <= LARGEST:
            break
        path.unlink(missing_ok=True)
        total -= each
