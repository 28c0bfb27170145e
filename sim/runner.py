"""Run a cocotb bench: Amaranth component to Verilog to Verilator or Icarus."""

import contextlib
import dataclasses
import hashlib
import importlib
import os
import pathlib
import re
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Iterator, Sequence

from amaranth.back import verilog
from cocotb_tools.runner import get_results, get_runner

from sim.tools import ToolMissing, missing_tools, simulation_environment

__all__ = ["SIMULATORS", "BenchResult", "bench_case", "bench_cases", "bench_names", "run_bench",
           "slow_runs"]

#: Simulators by name, each with the programs that it needs.
SIMULATORS = {"verilator": ("verilator", "g++", "make", "perl"), "icarus": ("iverilog",)}

#: What Yosys writes for correct Amaranth code; every other Verilator warning stops the build.
_YOSYS_IDIOMS = ("CASEINCOMPLETE", "CASEOVERLAP", "WIDTHEXPAND", "WIDTHTRUNC", "UNSIGNED",
                 "CMPCONST", "ASCRANGE", "ALWNEVER")
_BUILD_ARGS = {
    "verilator": ["--assert", *(f"-Wno-{rule}" for rule in _YOSYS_IDIOMS)],
    "icarus": [],
}
# The models of the cells are not Tally's; where they have warnings is none of its business.
_NETLIST_BUILD_ARGS = {"verilator": ["--assert", "-Wno-fatal", "-Wno-lint"], "icarus": []}
# Most of a bench under Verilator is compiling what runs for seconds.
_COMPILER_LEVELS = "OPT_FAST=-O0 OPT_SLOW=-O0 OPT_GLOBAL=-O0"
_CASE_VARIABLE = "TALLY_CASE"

# Yosys gives every `always @*` a register that is meant to start it. Icarus gives it its value
# before anything waits for it: logic whose inputs keep their initial values stays undefined.
_STARTER = re.compile(r"^( *reg (\\\$auto\$verilog_backend\S+)) += 0;$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class BenchResult:
    """Outcome of one case of one bench under one simulator.

    Attributes
    ----------
    tests, failed : int
        Tests that ran, and how many of them failed.
    simulated_ns : float
        Time that passed in the simulation.
    seconds : float
        Time that passed.
    """

    bench: str
    case: str
    simulator: str
    tests: int
    failed: int
    simulated_ns: float
    seconds: float


def bench_names() -> list[str]:
    """Return the units that have a bench, in alphabetical order."""
    folder = pathlib.Path(__file__).parent / "bench"
    return sorted(path.stem.removeprefix("bench_") for path in folder.glob("bench_*.py"))


def bench_cases(name: str) -> list[str]:
    """Return the cases of bench ``name``, in the order of its ``DUTS``."""
    return list(_bench_module(name).DUTS)


def slow_runs(name: str) -> set[tuple[str, str]]:
    """Return the runs of bench ``name``, {case, simulator}, that a short test run leaves out.

    A bench names them in ``SLOW``: cases, or cases with one simulator, as ``wide-icarus``. They
    take minutes, or show under the slower simulator what the faster one has shown.
    """
    return {(case, simulator) for entry in getattr(_bench_module(name), "SLOW", ())
            for case, _, only in [entry.partition("-")]
            for simulator in SIMULATORS if only in ("", simulator)}


def bench_case() -> str:
    """Return the case that the running bench was started for."""
    return os.environ[_CASE_VARIABLE]


def _bench_module(name: str):
    return importlib.import_module(f"sim.bench.bench_{name}")


def run_bench(name: str, case: str, simulator: str, *, work_dir: pathlib.Path | None = None,
              waves: bool = False,
              netlist: Sequence[pathlib.Path] | None = None) -> BenchResult:
    """Run one case of a bench.

    Parameters
    ----------
    name : str
        Unit, one of :func:`bench_names`.
    case : str
        Key of the bench's ``DUTS``.
    simulator : str
        Key of :data:`SIMULATORS`.
    work_dir : path, optional
        Where Verilog, build and results go; a temporary folder by default.
    waves : bool
        Record waves in ``work_dir``.
    netlist : sequence of path, optional
        Verilog that is simulated in place of the component's own: a netlist with the component's
        ports, whose module is named ``name``, and the models of its cells.

    Raises
    ------
    ToolMissing
        If a program that the simulator needs is not installed.
    RuntimeError
        If the bench ran no test.
    """
    missing = missing_tools(*SIMULATORS[simulator])
    if missing:
        raise ToolMissing("; ".join(missing))
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        if work_dir is None:
            work_dir = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work_dir = work_dir.resolve()
        work_dir.mkdir(parents=True, exist_ok=True)
        environment = simulation_environment()
        environment["MAKEFLAGS"] += f" {_COMPILER_LEVELS}"
        stack.enter_context(_environment(environment))
        sources = _own_verilog(name, case, simulator, work_dir) if netlist is None else netlist
        # ccache compares command lines too, so one folder serves equal Verilog in all runs.
        text = b"".join(source.read_bytes() for source in sources)
        digest = hashlib.sha256(text).hexdigest()[:12]
        build_dir = work_dir / f"build-{simulator}-{digest}"
        runner = get_runner(simulator)
        arguments = _BUILD_ARGS if netlist is None else _NETLIST_BUILD_ARGS
        runner.build(sources=list(sources), hdl_toplevel=name, build_dir=build_dir,
                     build_args=arguments[simulator], timescale=("1ns", "1ps"), waves=waves,
                     always=True)
        results = runner.test(hdl_toplevel=name, test_module=f"sim.bench.bench_{name}",
                              build_dir=build_dir, test_dir=work_dir, waves=waves,
                              extra_env={_CASE_VARIABLE: case, "PYTHONHASHSEED": "0"},
                              results_xml=str(work_dir / f"results-{simulator}.xml"))
        tests, failed = get_results(results)
        report = xml.etree.ElementTree.parse(results)
    tests -= len(report.findall(".//skipped"))
    if tests == 0:
        raise RuntimeError(f"Bench {name}, case {case}, ran no test under {simulator}")
    end = max(float(stop.attrib["value"])
              for stop in report.findall(".//property[@name='sim_time_stop']"))
    return BenchResult(name, case, simulator, tests, failed, end, time.monotonic() - started)


def _own_verilog(name: str, case: str, simulator: str, folder: pathlib.Path) -> list[pathlib.Path]:
    """Write the component of a case as Verilog, and return that and the models that it needs."""
    text = verilog.convert(_bench_module(name).DUTS[case](), name=name, emit_src=False,
                           strip_internal_attrs=True)
    if simulator == "icarus":
        text = _STARTER.sub(r"\1 ;\n  initial #0 \2 = 0;", text)
    source = folder / f"{name}.v"
    source.write_text(text)
    return [source, *map(pathlib.Path, getattr(_bench_module(name), "MODELS", ()))]


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    saved = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)
