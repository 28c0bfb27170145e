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
from collections.abc import Iterator, Mapping, Sequence
from unittest import mock
from xml.etree import ElementTree

import cocotb_tools.config
from amaranth.back import verilog
from cocotb_tools.runner import get_results, get_runner

from sim.tools import ToolMissing, missing_tools, simulation_environment, spaceless

__all__ = ["SIMULATORS", "BenchResult", "TestRun", "bench_case", "bench_cases", "bench_names",
           "cocotb_without_spaces",
           "bench_verilog", "run_bench", "slow_runs", "with_starters"]

#: Simulators by name, each with the programs that it needs.
SIMULATORS = {"verilator": ("verilator", "g++", "make", "perl"), "icarus": ("iverilog",)}

#: What Yosys writes for correct Amaranth code; every other Verilator warning stops the build.
_YOSYS_IDIOMS = ("CASEINCOMPLETE", "CASEOVERLAP", "WIDTHEXPAND", "WIDTHTRUNC", "UNSIGNED",
                 "CMPCONST", "ASCRANGE", "ALWNEVER")
_BUILD_ARGS = {
    # SYMRSVDWORD: a port is called `interrupt`, which is a function of the C library too.
    "verilator": ["--assert", "-Wno-SYMRSVDWORD", *(f"-Wno-{rule}" for rule in _YOSYS_IDIOMS)],
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
class TestRun:
    """One test of a bench: its name, whether it passed, and its simulated and real time."""

    name: str
    passed: bool
    simulated_ns: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class BenchResult:
    """Outcome of one case of one bench under one simulator.

    Attributes
    ----------
    tests, failed : int
        Tests that ran, and how many of them failed.
    seconds : float
        Time that passed.
    runs : tuple of TestRun
        Each test that ran.
    """

    bench: str
    case: str
    simulator: str
    tests: int
    failed: int
    seconds: float
    runs: tuple[TestRun, ...]

    @property
    def simulated_ns(self) -> float:
        """Time that passed in the simulation."""
        return sum(run.simulated_ns for run in self.runs)


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


def bench_verilog(name: str, case: str) -> str:
    """Return the Verilog of one case of a bench."""
    with _environment(simulation_environment()):
        return verilog.convert(_bench_module(name).DUTS[case](), name=name, emit_src=False,
                               strip_internal_attrs=True)


def run_bench(name: str, case: str, simulator: str, *, work_dir: pathlib.Path | None = None,
              waves: bool = False, text: str | None = None,
              netlist: Sequence[pathlib.Path] = (), module: str = "",
              environment: Mapping[str, str] | None = None,
              log: pathlib.Path | None = None) -> BenchResult:
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
    text : str, optional
        Verilog to run in place of :func:`bench_verilog`'s.
    netlist : sequence of path
        Verilog files to run in place of the component's own: a netlist with the component's ports,
        whose module is called ``name``, and the models of its cells.
    module : str, optional
        Module with the tests; by default the bench itself.
    environment : mapping, optional
        More variables for the tests.
    log : path, optional
        Where the simulator's output goes; by default it is printed.

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
        work_dir.mkdir(parents=True, exist_ok=True)
        work_dir = spaceless(work_dir.resolve())
        tools = simulation_environment()
        tools["MAKEFLAGS"] += f" {_COMPILER_LEVELS}"
        stack.enter_context(_environment(tools))
        stack.enter_context(cocotb_without_spaces())
        sources = [spaceless(source.parent) / source.name for source in
                   netlist or _own_sources(name, case, simulator, work_dir, text)]
        # ccache compares command lines too, so one folder serves equal Verilog in all runs.
        contents = b"".join(source.read_bytes() for source in sources)
        digest = hashlib.sha256(contents).hexdigest()[:12]
        build_dir = work_dir / f"build-{simulator}-{digest}"
        runner = get_runner(simulator)
        arguments = _NETLIST_BUILD_ARGS if netlist else _BUILD_ARGS
        runner.build(sources=list(sources), hdl_toplevel=name, build_dir=build_dir,
                     build_args=arguments[simulator], timescale=("1ns", "1ps"), waves=waves,
                     always=True, log_file=log)
        results = runner.test(hdl_toplevel=name, test_module=module or f"sim.bench.bench_{name}",
                              build_dir=build_dir, test_dir=work_dir, waves=waves, log_file=log,
                              extra_env={_CASE_VARIABLE: case, "PYTHONHASHSEED": "0",
                                         **(environment or {})},
                              results_xml=str(work_dir / f"results-{simulator}.xml"))
        _, failed = get_results(results)
        runs = tuple(_test_run(item) for item in ElementTree.parse(results).iter("testcase")
                     if item.find("skipped") is None)
    if not runs:
        raise RuntimeError(f"Bench {name}, case {case}, ran no test under {simulator}")
    return BenchResult(name, case, simulator, len(runs), failed, time.monotonic() - started, runs)


def cocotb_without_spaces() -> contextlib.AbstractContextManager:
    """Let cocotb give makefiles paths without spaces to its own files."""
    return mock.patch.multiple(cocotb_tools.config,
                               libs_dir=spaceless(cocotb_tools.config.libs_dir),
                               share_dir=spaceless(cocotb_tools.config.share_dir))


def _own_sources(name: str, case: str, simulator: str, folder: pathlib.Path,
                 text: str | None) -> list[pathlib.Path]:
    """Write the Verilog of a case, and return it with the models of cells that it instantiates."""
    if text is None:
        text = bench_verilog(name, case)
    if simulator == "icarus":
        text = with_starters(text)
    source = folder / f"{name}.v"
    source.write_text(text)
    return [source, *map(pathlib.Path, getattr(_bench_module(name), "MODELS", ()))]


def with_starters(text: str) -> str:
    """Return Verilog of Yosys that starts under Icarus too."""
    return _STARTER.sub(r"\1 ;\n  initial #0 \2 = 0;", text)


def _test_run(item: ElementTree.Element) -> TestRun:
    properties = {entry.get("name"): entry.get("value", "") for entry in item.iter("property")}
    failed = item.find("failure") is not None or item.find("error") is not None
    return TestRun(item.attrib["name"], passed=not failed,
                   simulated_ns=float(properties.get("sim_time_duration", 0)),
                   seconds=float(item.attrib["time"]))


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    saved = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)
