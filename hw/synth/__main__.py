"""``python -m hw.synth``: size and clock of single units on ECP5, by Yosys and nextpnr.

Every figure comes from one flow, :mod:`hw.synth.measure`.
"""

import argparse
import pathlib
import sys

from hw.bars import sentence, shares
from hw.records import read_record, write_record
from hw.synth.measure import measure, tool_versions
from hw.synth.netlist import NetlistError
from hw.synth.tool import ToolFailed
from hw.synth.units import UNITS


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
    units = UNITS
    if options.list:
        for key, unit in units.items():
            print(f"{key:24} {unit.unit}, {unit.format}")
        return 0
    for key in options.units:
        if key not in units:
            print(f"'{key}' is not a unit (try {', '.join(units)})", file=sys.stderr)
            return 2
    versions = tool_versions()
    configuration = {"device": "LFE5U-85F", "speed": 6, "package": "CABGA381",
                     "seeds": options.seeds}
    if options.output and options.units and options.output.exists():
        old = read_record(options.output)
        for what, now in (("versions", versions), ("configuration", configuration)):
            if old[what] != now:
                print(f"Rows of single units must have the {what} of {options.output}, "
                      f"{old[what]}, not {now}", file=sys.stderr)
                return 2
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
               "bar": sentence(unit.bars),
               "options": f"{unit.synthesis} {unit.placement}".strip(),
               "floorplan": unit.floorplan is not None, "module": unit.module, **found}
        share = ""
        for name, value in shares(found, lane=unit.lanes, trit=unit.trits).items():
            if name.startswith("lut4_eq_"):
                row[name] = value
                share = f"{value:.2f} / {name.rpartition('_')[2]}"
        rows.append(row)
        print(f"{key:24} {found['lut4_eq']:8} {share:>14} {found['ff']:6} "
              f"{found['block_ram']:5} {found['dsp']:4} "
              f"{found.get('fmax_mhz', float('nan')):7.1f}  {row['bar']}", flush=True)
    if options.output:
        write_record(options.output, maker="hw.synth",
                     command=f"python -m hw.synth --output {options.output}", versions=versions,
                     configuration=configuration, rows=rows, key=("name",),
                     keep=lambda row: bool(options.units) and row["name"] in units,
                     order=lambda row: list(units).index(row["name"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
