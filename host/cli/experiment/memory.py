"""``tally experiment memory``: what the SDRAM controller reaches, alone."""

import argparse
from functools import partial

from rich.console import Console

from host.cli.terminal import progress_bars, table
from host.errors import UserError
from hw.memory.sdram import SdramController
from hw.memory.sdram_chip import SdramChip
from hw.records import write_record
from hw.synth.measure import Unit, measure, tool_versions
from hw.synth.tool import ToolFailed
from sim.timing.units import sdram_share

NAME = "memory"
HELP = "measure the SDRAM controller: share of the bus, area, clock"
DESCRIPTION = ("Synthesize the SDRAM controller for three chips, place and route it alone with "
               "three seeds each, and derive which share of the data bus a stream of reads uses, "
               "refreshes included; bench sdram asserts the formula. It takes about ten minutes.")

_CL3 = SdramChip(cas_latency=3)
#: Chip, its clock in Hz, bytes of a transfer.
_SETUPS = ((SdramChip(), 80_000_000, 4), (_CL3, 133_000_000, 4),
           (SdramChip(data_bits=32, rows=2048, columns=256, refresh_rows=4096), 80_000_000, 8))
_ROUTED_MHZ = 170


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--record", action="store_true",
                        help="keep the figures in docs/results/memory.json")


def run(console: Console, options: argparse.Namespace) -> int:
    """Measure all chips; print and record a row for each."""
    rows = []
    with progress_bars(console) as bar:
        show = bar("Placing and routing")
        for number, (chip, hertz, port_bytes) in enumerate(_SETUPS):
            show(number / len(_SETUPS), f"x{chip.data_bits} at {hertz // 10**6} MHz")
            unit = Unit(unit="SDRAM controller", format=f"x{chip.data_bits}", clock_mhz=_ROUTED_MHZ,
                        build=partial(SdramController, chip=chip, clock_hz=hertz,
                                      address_width=(chip.memory_bytes - 1).bit_length(),
                                      port_bytes=port_bytes, target="ecp5"))
            try:
                found = measure(unit)
            except ToolFailed as error:
                raise UserError(str(error)) from None
            rows.append({
                "controller": "Tally", "bus_bits": chip.data_bits, "mhz": hertz // 10**6,
                "cas_latency": chip.cas_latency, "port_bytes": port_bytes,
                "share_of_bus": round(sdram_share(chip, hertz, port_bytes=port_bytes), 4),
                "lut4_eq": found["lut4_eq"], "block_ram": found["block_ram"],
                "fmax_mhz": found["fmax_mhz"]})
    names = ("bus_bits", "mhz", "cas_latency", "port_bytes", "share_of_bus", "lut4_eq", "fmax_mhz")
    console.print(table(
        "SDRAM controller on ECP5", [name.replace("_", " ") for name in names],
        [[f"{row[name]:.2%}" if name == "share_of_bus" else f"{row[name]:,}" for name in names]
         for row in rows], caption="Clocks are measured, the share of the bus is derived"))
    if options.record:
        write_record("memory", maker="host experiment memory",
                     command="python -m host experiment memory --record", versions=tool_versions(),
                     configuration={"share_of_bus": "derived; bench sdram asserts the formula",
                                    "fmax_mhz": "median of three seeds, placed and routed alone",
                                    "requested_mhz": _ROUTED_MHZ}, rows=rows)
    return 0
