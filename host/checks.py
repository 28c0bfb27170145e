"""What all readers of files share: messages that a terminal can show, and JSON within bounds."""

import json
import math
import re
from pathlib import Path
from typing import Any

from host.errors import MemoryMissing, TallyError

__all__ = ["LONGEST_JSON", "LONGEST_MESSAGE", "FileError", "JSONError", "need_memory", "parse_json",
           "printable"]

#: Characters of a message; what a file holds can be as long as the file.
LONGEST_MESSAGE = 2000

#: Bytes of a JSON text. The largest in use, an index of tensors or the vocabulary of an image, have
#: some megabytes.
LONGEST_JSON = 16 << 20

# Objects and arrays of a JSON text: Python needs up to 72 bytes for each, which can be two
# characters of the text.
_MOST_CONTAINERS = 1 << 20

# C0 and C1 controls, which a terminal obeys; line and paragraph separators; marks that change the
# direction of the text around them; halves of surrogate pairs, which no output can encode.
_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
                          "\ud800-\udfff]")


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def printable(text: str, keep: str = "") -> str:
    r"""Write control characters as escapes, ESC as ``\x1b``; a second call changes nothing more.

    Everything that comes from a file goes through this on its way to a terminal: messages, tables,
    progress and generated text.

    Parameters
    ----------
    text : str
    keep : str
        Control characters that stay.
    """
    return _UNPRINTABLE.sub(lambda match: match[0] if match[0] in keep else _escaped(match), text)


class FileError(TallyError, ValueError):
    """A file cannot be used; the message is one line, and short, whatever the file holds."""

    def __init__(self, message: str):
        if len(message) > LONGEST_MESSAGE:
            message = f"{message[:LONGEST_MESSAGE - 300]} ... {message[-200:]}"
        super().__init__(printable(message))


class JSONError(ValueError):
    """A text is not JSON, or not within bounds; the message says why."""


#: Where Linux says how much memory there is.
_MEMORY = Path("/proc/meminfo")


def need_memory(count: int, what: str) -> None:
    """Refuse what this machine has no memory for, where the system says how much there is.

    Parameters
    ----------
    count : int
        Bytes that are needed beside those in use.
    what : str
        What needs them; begins the message.

    Raises
    ------
    MemoryMissing
        If there are fewer, with those that can be swapped out.
    """
    try:
        lines = _MEMORY.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return
    found = dict(re.findall(r"(MemAvailable|SwapFree): +(\d+) kB", "\n".join(lines)))
    if "MemAvailable" not in found:
        return
    available = 1024 * sum(map(int, found.values()))
    if count > available:
        raise MemoryMissing(f"{what} needs {count / 1e9:,.1f} GB of memory, but this machine has "
                            f"{available / 1e9:,.1f} GB left")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise JSONError(f"key {name!r} comes twice in an object")
        found[name] = value
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise JSONError(f"number {text[:40]} is not finite")
    return value


def parse_json(data: bytes | str) -> Any:
    """Parse a JSON text of at most :data:`LONGEST_JSON` bytes; every number in it is finite.

    Raises
    ------
    JSONError
        If it is not JSON, too long, has too many or too deeply nested objects and arrays, or an
        object with a key twice.
    """
    if len(data) > LONGEST_JSON:
        raise JSONError(f"must have at most {LONGEST_JSON} bytes, not {len(data)}")
    if isinstance(data, str):
        containers = data.count("[") + data.count("{")
    else:
        containers = data.count(b"[") + data.count(b"{")
    if containers > _MOST_CONTAINERS:
        raise JSONError(f"must have at most {_MOST_CONTAINERS} objects and arrays, "
                        f"not {containers}")
    try:
        return json.loads(data, object_pairs_hook=_once, parse_float=_finite,
                          parse_constant=_finite)
    except RecursionError:
        raise JSONError("objects and arrays are nested too deeply") from None
    except JSONError:
        raise
    except ValueError as error:
        raise JSONError(str(error)) from None
