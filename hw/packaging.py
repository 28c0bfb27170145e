"""What surrounds the written accelerator with registers: Vivado, FuseSoC and LiteX.

Vivado takes buses from attributes of the ports. The files are made of the module's name alone.
LiteX has elaborated its wrapper (tests/hw/test_packaging.py) and FuseSoC has read its file; Vivado
has run nothing of this, and nothing of it has run on hardware.
"""

import pathlib
from collections.abc import Iterable

from hw.link.registers import ADDRESS_BITS, VLNV

__all__ = ["interface_attributes", "write_packaging"]

#: Interfaces of Vivado by the prefix of their ports, and their parameters.
_BUSES = {"m_axi": "xilinx.com:interface:aximm:1.0", "s_axi": "xilinx.com:interface:aximm:1.0"}
_SIGNALS = {
    "aclk": ("xilinx.com:signal:clock:1.0 aclk CLK",
             "XIL_INTERFACENAME aclk, ASSOCIATED_BUSIF m_axi:s_axi, ASSOCIATED_RESET aresetn"),
    "aresetn": ("xilinx.com:signal:reset:1.0 aresetn RST",
                "XIL_INTERFACENAME aresetn, POLARITY ACTIVE_LOW"),
    "interrupt": ("xilinx.com:signal:interrupt:1.0 interrupt INTERRUPT",
                  "XIL_INTERFACENAME interrupt, SENSITIVITY LEVEL_HIGH"),
}


def interface_attributes(ports: Iterable[str], *, port_bytes: int) -> dict[str, dict[str, str]]:
    """Return the attributes of each port, {port: {attribute: value}}.

    Parameters
    ----------
    ports : iterable of str
        All ports of the module, with the buses' own names behind ``m_axi_`` and ``s_axi_``.
    port_bytes : int
        Bytes of a transfer of ``m_axi``.

    Raises
    ------
    ValueError
        If a port belongs to no interface.
    """
    # UG994: parameters stand at one port of an interface.
    parameters = {
        "m_axi": f"XIL_INTERFACENAME m_axi, PROTOCOL AXI4, DATA_WIDTH {8 * port_bytes}, "
                 f"ADDR_WIDTH 64, ID_WIDTH 1, READ_WRITE_MODE READ_WRITE, HAS_BURST 1, "
                 f"MAX_BURST_LENGTH 256, SUPPORTS_NARROW_BURST 0, NUM_READ_OUTSTANDING 32, "
                 f"NUM_WRITE_OUTSTANDING 16",
        "s_axi": f"XIL_INTERFACENAME s_axi, PROTOCOL AXI4LITE, DATA_WIDTH 32, "
                 f"ADDR_WIDTH {ADDRESS_BITS}, READ_WRITE_MODE READ_WRITE",
    }
    attributes = {}
    for port in ports:
        bus, name = port[:5], port[6:]
        if port in _SIGNALS:
            information, parameter = _SIGNALS[port]
        elif bus in _BUSES and port[5] == "_":
            information, parameter = f"{_BUSES[bus]} {bus} {name.upper()}", parameters.pop(bus, "")
        else:
            raise ValueError(f"Port {port} belongs to no interface")
        attributes[port] = {"X_INTERFACE_INFO": information} | (
            {"X_INTERFACE_PARAMETER": parameter} if parameter else {})
    return attributes


_TCL = """\
# Packages {module}.v as an IP core for Vivado block designs: {vlnv}.
# Vivado has not run this script: Tally is developed without it. Interfaces come from the
# attributes X_INTERFACE_INFO and X_INTERFACE_PARAMETER in the Verilog.
#   vivado -mode batch -source {stem}.tcl
set here [file dirname [file normalize [info script]]]
create_project -force {module} [file join $here {stem}_project]
add_files [file join $here {file}]
set_property top {module} [current_fileset]
update_compile_order -fileset sources_1
ipx::package_project -root_dir [file join $here {stem}_ip] -vendor {vendor} -library {library} \\
  -taxonomy /UserIP -import_files -force
set core [ipx::current_core]
set_property name {name} $core
set_property version {version} $core
set_property display_name "Tally accelerator" $core
set_property description "Language models by ternary products and L-Mul" $core
set_property auto_family_support_level level_2 $core
ipx::create_xgui_files $core
ipx::update_checksums $core
ipx::check_integrity $core
ipx::save_core $core
close_project
"""

_CORE = """\
CAPI=2:
# {module}.v for FuseSoC, which has read this file in a test; no tool was run by it.
name: {vendor}:{library}:{name}:{version}
description: Tally accelerator, AXI4 to its memory and AXI4-Lite to its registers

filesets:
  rtl:
    files:
      - {file}
    file_type: verilogSource

targets:
  default: &default
    filesets: [rtl]
    toplevel: {module}
  lint:
    <<: *default
    default_tool: verilator
    tools:
      verilator:
        mode: lint-only
        verilator_options: [-Wall]
"""

_LITEX = '''\
"""{module} for LiteX, around the Verilog beside this file.

LiteX 2024.12 has elaborated this wrapper in a test; it has run on no board. In a SoC::

    soc.tally = tally = TallyAccelerator(platform)
    soc.bus.add_slave("tally", tally.control, SoCRegion(size=0x1000, cached=False))
    soc.bus.add_master("tally", tally.memory)       # or soc.dma_bus, if the CPU has one
"""

import pathlib

from litex.gen import LiteXModule
from litex.soc.interconnect.axi import AXIInterface, AXILiteInterface
from migen import ClockSignal, Instance, ResetSignal, Signal

DATA_WIDTH = {data_width}
REQUEST = ("addr", "burst", "len", "size", "prot", "cache", "id")
CHANNELS = {{       # payload of each channel, and whether the accelerator drives it
    "memory": {{"aw": (REQUEST, True), "w": (("data", "strb", "last"), True),
               "b": (("resp", "id"), False), "ar": (REQUEST, True),
               "r": (("data", "resp", "last", "id"), False)}},
    "control": {{"aw": (("addr", "prot"), False), "w": (("data", "strb"), False),
                "b": (("resp",), True), "ar": (("addr", "prot"), False),
                "r": (("data", "resp"), True)}},
}}


class TallyAccelerator(LiteXModule):
    """`memory` is an AXI4 manager, `control` an AXI4-Lite subordinate, `interrupt` a level."""

    def __init__(self, platform, address_width=32, clock_domain="sys"):
        self.memory = AXIInterface(DATA_WIDTH, address_width, id_width=1)
        self.control = AXILiteInterface(32, address_width)
        self.interrupt = Signal()
        ports = {{"i_aclk": ClockSignal(clock_domain), "i_aresetn": ~ResetSignal(clock_domain),
                 "o_interrupt": self.interrupt}}
        for prefix, bus in (("m_axi", "memory"), ("s_axi", "control")):
            for channel, (fields, drives) in CHANNELS[bus].items():
                stream = getattr(getattr(self, bus), channel)
                for name in (*fields, "valid", "ready"):
                    out = drives != (name == "ready")
                    signal = getattr(stream, name)
                    if bus == "control" and name == "addr":
                        signal = signal[:{address_bits}]
                    ports[f"{{'o' if out else 'i'}}_{{prefix}}_{{channel}}{{name}}"] = signal
        self.specials += Instance("{module}", **ports)
        platform.add_source(str(pathlib.Path(__file__).with_name("{file}")))
'''


def write_packaging(module: str, verilog: pathlib.Path, *, port_bytes: int) -> list[pathlib.Path]:
    """Write a packaging script for Vivado, a core file for FuseSoC and a wrapper for LiteX.

    Parameters
    ----------
    module : str
        Name of the module.
    verilog : path
        Its file, beside which the others lie.
    port_bytes : int
        Bytes of a transfer of ``m_axi``.

    Returns
    -------
    list of path
        The three files.
    """
    vendor, library, name, version = VLNV.split(":")
    names = {"module": module, "file": verilog.name, "stem": verilog.stem, "vlnv": VLNV,
             "vendor": vendor, "library": library, "name": name, "version": version,
             "data_width": 8 * port_bytes, "address_bits": ADDRESS_BITS}
    written = []
    for text, ending in ((_TCL, ".tcl"), (_CORE, ".core"), (_LITEX, "_litex.py")):
        written.append(verilog.with_name(verilog.stem + ending))
        written[-1].write_text(text.format(**names))
    return written
