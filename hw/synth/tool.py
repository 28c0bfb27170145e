"""Running the synthesis tools, which come as WebAssembly wheels (YoWASP) or from ``PATH``."""

import os
import pathlib
import shutil
import subprocess
import sys

__all__ = ["ToolFailed", "find_program", "run_tool", "search_path"]


class ToolFailed(RuntimeError):
    """A synthesis tool is missing or stopped; the message is one sentence."""


def search_path() -> str:
    """Return ``PATH``, and behind it the folder of the Python that runs: its own programs."""
    return f"{os.environ.get('PATH', '')}{os.pathsep}{pathlib.Path(sys.executable).parent}"


def find_program(name: str) -> str | None:
    """Return where a program is, on ``PATH`` or beside the Python that runs."""
    return shutil.which(name, path=search_path())


def run_tool(command: list[str], folder: pathlib.Path) -> str:
    """Run a tool in ``folder`` and return what it printed.

    The program is the one that a variable named after it gives (``YOSYS``, ``NEXTPNR_ECP5``),
    else its YoWASP wheel, else the one that :func:`find_program` finds. YoWASP tools see only the
    current folder: all paths in ``command`` are relative to it.

    Raises
    ------
    ToolFailed
        If the program is missing, or stops with an error; the message ends in its last error line.
    """
    tool = command[0]
    variable = tool.upper().replace("-", "_")
    candidates = [os.environ.get(variable), f"yowasp-{tool}", tool]
    program = next(filter(None, (find_program(name) for name in candidates if name)), None)
    if program is None:
        raise ToolFailed(f"{tool} is not installed; pip install -e '.[build]', or name a program "
                         f"in the variable {variable}")
    done = subprocess.run([program, *command[1:]], cwd=folder, text=True, errors="replace",
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if "ERROR" in line] or lines[-1:] or ["no output"]
        raise ToolFailed(f"{tool} stopped: {errors[-1]}")
    return done.stdout
