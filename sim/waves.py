"""A save file for GTKWave: the signals of a bench that have names, grouped by module."""

import pathlib
import re
from collections.abc import Iterator

__all__ = ["write_save_file"]

_MODULE = re.compile(r"^module \\?(\S+?) ?\((.*?)^endmodule", re.DOTALL | re.MULTILINE)
_SIGNAL = re.compile(r"^ +(input|output|wire|reg) (?:signed )?(?:\[(\d+):0\] )?(\S+)(?: =.*)?;$",
                     re.MULTILINE)
_INSTANCE = re.compile(r"^  \\?(\S+) +\\?(\S+) \($", re.MULTILINE)
_NAME = re.compile(r"\w+")

#: GTKWave's flags of a trace: hexadecimal or binary, and a comment.
_WORD, _BIT, _COMMENT = "@22", "@28", "@200"


def _signals(text: str) -> list[tuple[bool, str]]:
    """Return the named signals of a module as {is a port, name with its range}, ports first."""
    found: dict[str, tuple[bool, str]] = {}
    for kind, high, name in _SIGNAL.findall(text):
        # Amaranth's names of unnamed signals have a $, those of a struct's fields a dot.
        if _NAME.fullmatch(name):
            port = kind in ("input", "output") or found.get(name, (False, ""))[0]
            found[name] = port, f"{name}[{high}:0]" if high else name
    return sorted(found.values(), key=lambda item: (not item[0], item[1]))


def _traces(modules: dict[str, str], module: str, path: str) -> Iterator[str]:
    """Yield the lines of an instance and of those in it."""
    text = modules.get(module, "")
    signals = _signals(text)
    if signals:
        yield from (_COMMENT, f"-{path}")
    for _, name in signals:
        yield from (_WORD if name.endswith("]") else _BIT, f"{path}.{name}")
    for inner, instance in _INSTANCE.findall(text):
        if inner in modules:
            yield from _traces(modules, inner, f"{path}.{instance}")


def write_save_file(verilog: pathlib.Path, top: str, waves: pathlib.Path) -> pathlib.Path:
    """Write a save file beside the waves of module ``top``, and return its path.

    Parameters
    ----------
    verilog : path
        What was simulated.
    top : str
        The module that the bench drives.
    waves : path
        The recorded waves.
    """
    modules = {match[1]: match[2] for match in _MODULE.finditer(verilog.read_text())}
    save = waves.with_suffix(".gtkw")
    save.write_text("\n".join([f'[dumpfile] "{waves.resolve()}"', *_traces(modules, top, top), ""]))
    return save
