# amaranth: UnusedElaboratable=no

"""What lies beside the written accelerator: attributes, and files for Vivado, FuseSoC and LiteX."""

import dataclasses
import importlib.util
import re
import subprocess
import sys

import pytest
import yaml

from hw.axi_accelerator import AxiAccelerator
from hw.build import main
from hw.config import AcceleratorConfig, EngineConfig
from hw.export import write_unit
from hw.link.registers import VLNV
from hw.packaging import interface_attributes
from sim.tools import missing_tools, simulation_environment

CONFIG = AcceleratorConfig(
    engine=EngineConfig(lanes=8, result_lanes=4, index_width=9, accumulator_width=20,
                        accumulator_depth=16, max_planes=3, max_batch=1, port_bytes=4),
    vector_depth=512, program_depth=128, list_depth=64, queue_words=32, address_width=16)
MODULE = "tally_axi_accelerator"
ATTRIBUTE = re.compile(r'\(\* (X_INTERFACE_\w+) = "(.*)" \*\)')
PORT = re.compile(r"(input|output) (?:\[(\d+):0\] )?(\S+);$")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_unit("axi-accelerator", CONFIG,
                      tmp_path_factory.mktemp("packaging") / f"{MODULE}.v")


@pytest.fixture(scope="module")
def ports(written):
    """Return {port: (flow, width, attributes)}, and check that nothing else has attributes."""
    text = written[0].read_text()
    found, attributes = {}, {}
    for line in text.splitlines():
        if attribute := ATTRIBUTE.search(line):
            attributes[attribute[1]] = attribute[2]
        else:
            port = PORT.search(line)
            assert port or not attributes, line
            if port and text.index(line) > text.index(f"module {MODULE}("):
                found[port[3]] = port[1], int(port[2] or 0) + 1, attributes
            attributes = {}
        if line == "endmodule" and "aclk" in found:
            break
    assert text.count("X_INTERFACE") == sum(len(port[2]) for port in found.values())
    return found


def test_vivado_knows_every_port(ports):
    assert len(ports) == 2 + 1 + 19 + 33    # clock and reset, interrupt, s_axi, m_axi
    for name, (_, _, attributes) in ports.items():
        bus, _, signal = name.partition("axi_")
        expected = {
            "aclk": "xilinx.com:signal:clock:1.0 aclk CLK",
            "aresetn": "xilinx.com:signal:reset:1.0 aresetn RST",
            "interrupt": "xilinx.com:signal:interrupt:1.0 interrupt INTERRUPT",
        }.get(name, f"xilinx.com:interface:aximm:1.0 {bus}axi {signal.upper()}")
        assert attributes["X_INTERFACE_INFO"] == expected
    parameters = [attributes["X_INTERFACE_PARAMETER"] for *_, attributes in ports.values()
                  if "X_INTERFACE_PARAMETER" in attributes]
    by_name = {parameter.split(",")[0]: parameter for parameter in parameters}
    assert sorted(by_name) == [f"XIL_INTERFACENAME {name}" for name in (
        "aclk", "aresetn", "interrupt", "m_axi", "s_axi")]
    assert len(parameters) == 5
    assert "ASSOCIATED_BUSIF m_axi:s_axi" in by_name["XIL_INTERFACENAME aclk"]
    assert "POLARITY ACTIVE_LOW" in by_name["XIL_INTERFACENAME aresetn"]
    assert "SENSITIVITY LEVEL_HIGH" in by_name["XIL_INTERFACENAME interrupt"]


def test_widths_are_those_that_vivado_is_told(ports):
    for bus, data, address in (("m_axi", 32, 64), ("s_axi", 32, 12)):
        told = next(attributes["X_INTERFACE_PARAMETER"] for name, (_, _, attributes)
                    in ports.items() if name == f"{bus}_awaddr")
        assert f"DATA_WIDTH {data}," in told
        assert f"ADDR_WIDTH {address}," in told
        assert ports[f"{bus}_wdata"][1] == ports[f"{bus}_rdata"][1] == data
        assert ports[f"{bus}_awaddr"][1] == ports[f"{bus}_araddr"][1] == address
        assert ports[f"{bus}_wstrb"][1] == data // 8


def test_a_port_of_no_interface_is_refused():
    with pytest.raises(ValueError, match="Port executing belongs to no interface"):
        interface_attributes(["aclk", "executing"], port_bytes=4)


@pytest.mark.parametrize("port_bytes", [2, 64])
def test_ports_of_any_width(port_bytes, tmp_path):
    lanes = max(4, port_bytes // 2)
    engine = dataclasses.replace(CONFIG.engine, port_bytes=port_bytes, lanes=2 * lanes,
                                 result_lanes=lanes)
    config = dataclasses.replace(CONFIG, engine=engine)
    text = write_unit("axi-accelerator", config, tmp_path / "unit.v")[0].read_text()
    assert f"input [{8 * port_bytes - 1}:0] m_axi_rdata;" in text
    assert f"DATA_WIDTH {8 * port_bytes}, ADDR_WIDTH 64" in text


def test_a_port_that_is_too_wide_is_refused():
    engine = dataclasses.replace(CONFIG.engine, port_bytes=128, lanes=64, result_lanes=64)
    with pytest.raises(ValueError, match="Port byte count must be at most 64 with registers"):
        AxiAccelerator(dataclasses.replace(CONFIG, engine=engine))


def test_the_command_says_what_it_has_written(tmp_path, capsys):
    output = tmp_path / "other.v"
    assert main(["verilog", "--unit", "axi-accelerator", "--lanes", "8", "--row-columns", "64",
                 "--port-bytes", "2", "--max-batch", "1", "--output", str(output)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"for Vivado: {tmp_path / 'other.tcl'}", f"for FuseSoC: {tmp_path / 'other.core'}",
        f"for LiteX: {tmp_path / 'other_litex.py'}"]
    for name in ("other.tcl", "other.core", "other_litex.py"):
        assert "other.v" in (tmp_path / name).read_text()


def test_the_script_for_vivado_is_tcl_that_calls_what_it_should(written):
    """Run it in Tcl with a stand-in for each of Vivado's commands, which notes its arguments."""
    tkinter = pytest.importorskip("tkinter", reason="this Python has no Tcl")
    tcl = tkinter.Tcl()
    calls = []
    for name in ("create_project", "add_files", "set_property", "update_compile_order",
                 "ipx::package_project", "ipx::create_xgui_files", "ipx::update_checksums",
                 "ipx::check_integrity", "ipx::save_core", "close_project"):
        tcl.createcommand(name, lambda *words, name=name: calls.append((name, *words)) or "")
    for name in ("current_fileset", "ipx::current_core"):
        tcl.createcommand(name, lambda name=name: name)
    tcl.eval("namespace eval ipx {}")
    script = written[2]
    assert len(script.read_text().splitlines()) < 30
    tcl.evalfile(str(script))
    by_name = {call[0]: call[1:] for call in calls}
    folder = script.parent.as_posix()
    assert by_name["add_files"] == (f"{folder}/{MODULE}.v",)
    properties = {call[1]: call[2] for call in calls if call[0] == "set_property"}
    assert properties["top"] == MODULE
    vendor, library, name, version = VLNV.split(":")
    packaged = by_name["ipx::package_project"]
    assert packaged[packaged.index("-vendor") + 1] == vendor
    assert packaged[packaged.index("-library") + 1] == library
    assert (properties["name"], properties["version"]) == (name, version)
    assert calls[-2][0] == "ipx::save_core"


def test_the_core_file_keeps_the_rules_of_capi2(written):
    text = written[3].read_text()
    assert text.startswith("CAPI=2:\n")
    core = yaml.safe_load(text.removeprefix("CAPI=2:"))
    assert core.keys() == {"name", "description", "filesets", "targets"}
    assert core["name"] == VLNV
    assert core["filesets"] == {"rtl": {"files": [f"{MODULE}.v"], "file_type": "verilogSource"}}
    assert (written[3].parent / core["filesets"]["rtl"]["files"][0]).exists()
    for target in core["targets"].values():
        assert target["filesets"] == ["rtl"]
        assert target["toplevel"] == MODULE
        assert target.keys() <= {"filesets", "toplevel", "default_tool", "tools"}
    lint = core["targets"]["lint"]
    assert lint["default_tool"] in lint["tools"]


def test_fusesoc_reads_the_core_file(written):
    pytest.importorskip("fusesoc", reason="fusesoc is not installed; pip install -e '.[packaging]'")
    from fusesoc.capi2.coreparser import Core2Parser
    from fusesoc.core import Core
    core = Core(Core2Parser(), str(written[3]))
    assert str(core.name).strip("=~^<>") == VLNV
    for target in ("default", "lint"):
        flags = {"tool": "verilator", "target": target}
        assert core.get_toplevel(flags) == MODULE
        assert [file["name"] for file in core.get_files(flags)] == [f"{MODULE}.v"]


@pytest.mark.parametrize("standard", ["wishbone", "axi-lite", "axi"])
def test_litex_elaborates_the_wrapper_in_a_soc(written, ports, standard, tmp_path):
    """The SoC's Verilog names every port once, and Icarus elaborates it with the accelerator."""
    if importlib.util.find_spec("litex") is None or importlib.util.find_spec("migen") is None:
        pytest.skip("litex or migen is not installed; pip install -e '.[packaging]'")
    missing = missing_tools("iverilog")
    if missing:
        pytest.skip("; ".join(missing))
    assert len(written[4].read_text().splitlines()) < 60
    # LiteX warns of its own use of Python, and logs.
    done = subprocess.run([sys.executable, "-m", "tests.hw.litex_soc", written[4], standard,
                           tmp_path / "soc.v"], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(written[0])
    text = (tmp_path / "soc.v").read_text()
    instance = text[text.index(f"\n{MODULE} {MODULE}("):]
    instance = instance[:instance.index(");\n")]
    assert sorted(re.findall(r"\.(\w+)\s*\(", instance)) == sorted(ports)
    assert re.search(r"\.aresetn\s*\(\(~sys_rst", instance)
    done = subprocess.run(["iverilog", "-g2005", "-t", "null", "-s", "top",
                           tmp_path / "soc.v", written[0]], text=True, check=False,
                          cwd=tmp_path, env=simulation_environment(), capture_output=True)
    assert done.returncode == 0, done.stderr
