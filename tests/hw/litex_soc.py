"""Make a SoC of LiteX with the wrapper: WRAPPER STANDARD OUTPUT; print the Verilog it asks for."""

import importlib.util
import pathlib
import sys

from litex.build.generic_platform import Pins
from litex.build.sim import SimPlatform
from litex.gen import LiteXModule
from litex.soc.integration.soc import SoCRegion
from litex.soc.integration.soc_core import SoCCore
from migen import ClockDomain


class ClockAndReset(LiteXModule):
    """A clock and a reset from pins."""

    def __init__(self, platform):
        self.cd_sys = ClockDomain()
        self.comb += [self.cd_sys.clk.eq(platform.request("sys_clk")),
                      self.cd_sys.rst.eq(platform.request("sys_rst"))]


def main(wrapper: str, standard: str, output: str) -> None:
    """Write the Verilog of a SoC without a CPU: memory, registers and the accelerator on a bus."""
    spec = importlib.util.spec_from_file_location("tally_wrapper", wrapper)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    platform = SimPlatform("SIM", [("sys_clk", 0, Pins(1)), ("sys_rst", 0, Pins(1))])
    soc = SoCCore(platform, 1_000_000, cpu_type=None, integrated_rom_size=0,
                  integrated_sram_size=0, integrated_main_ram_size=0x1000, with_uart=False,
                  with_timer=False, bus_standard=standard)
    soc.crg = ClockAndReset(platform)
    soc.tally = tally = module.TallyAccelerator(platform)
    soc.bus.add_slave("tally", tally.control, SoCRegion(origin=0x8000_0000, size=0x1000,
                                                        cached=False))
    soc.bus.add_master("tally", tally.memory)
    soc.finalize()
    written = platform.get_verilog(soc, name="top")
    pathlib.Path(output).write_text(written.main_source)
    for name, contents in written.data_files.items():
        pathlib.Path(output).with_name(name).write_text(contents)
    print(*(source[0] for source in platform.sources), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
