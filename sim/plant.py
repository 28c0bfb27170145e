"""Planting changes: a design's Verilog from changed source, while everything else stays as it is.

Only what is converted while a change is planted has it. Benches, golden functions and host run on
the project's own source, so a change of what they share with the hardware cannot hide itself.
"""

import contextlib
import importlib.machinery
import importlib.util
import pathlib
import sys
from collections.abc import Iterator

__all__ = ["fresh_modules", "planted"]

ROOT = pathlib.Path(__file__).parent.parent


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module from another text."""

    def __init__(self, name: str, path: str, text: str):
        super().__init__(name, path)
        self._text = text

    def get_code(self, fullname):
        """Return the code of the other text; nothing is cached."""
        return compile(self._text, self.path, "exec")


class _Finder:
    """Finds one module, by its name."""

    def __init__(self, path: str, text: str):
        self._name = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        self._path, self._text = str(ROOT / path), text

    def find_spec(self, fullname, path=None, target=None):
        """Return where to load the module from."""
        if fullname != self._name:
            return None
        loader = _Loader(fullname, self._path, self._text)
        return importlib.util.spec_from_file_location(fullname, self._path, loader=loader)


@contextlib.contextmanager
def fresh_modules() -> Iterator[None]:
    """Import the project's modules anew inside, and have the old ones back outside."""
    def ours() -> dict:
        return {name: module for name, module in sys.modules.items()
                if name.partition(".")[0] in ("hw", "sim", "host")}
    saved = ours()
    for name in saved:
        del sys.modules[name]
    try:
        yield
    finally:
        for name in ours():
            del sys.modules[name]
        sys.modules.update(saved)


@contextlib.contextmanager
def planted(path: str, text: str) -> Iterator[None]:
    """Have ``text`` in place of the file ``path``, from the project's root, for imports inside.

    Every module of the project is imported anew inside: use :func:`importlib.import_module`.
    """
    finder = _Finder(path, text)
    sys.meta_path.insert(0, finder)     # type: ignore[arg-type]
    try:
        with fresh_modules():
            yield
    finally:
        sys.meta_path.remove(finder)    # type: ignore[arg-type]
