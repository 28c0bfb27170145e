# amaranth: UnusedElaboratable=no

"""Units as Verilog: their ports' names, what linters say, and options that do not apply."""

import re
import subprocess

import pytest

from hw.build import main
from hw.config import AcceleratorConfig, EngineConfig
from hw.export import UNITS, write_unit
from hw.formats.minifloat import FORMATS
from sim.tools import missing_tools, simulation_environment

#: Fields, so that attention is in it, and a walk by row.
SMALL = AcceleratorConfig(
    engine=EngineConfig(lanes=8, result_lanes=4, row_columns=64, max_batch=4, index_width=9,
                        accumulator_width=20, accumulator_depth=16, max_planes=3, port_bytes=4),
    vector_depth=1024, program_depth=512, list_depth=64, queue_words=32, address_width=16,
    context=8, head_elements=16, attention_heads=2, attention_elements=2)
KEYWORDS = {"begin", "end", "module", "input", "output", "reg", "wire", "assign", "case", "if"}
PORT = re.compile(r"^  (input|output) (?:\[\d+:0\] )?(\S+);$", re.MULTILINE)


def needed(unit):
    kind = UNITS[unit].needs
    return {AcceleratorConfig: SMALL, EngineConfig: SMALL.engine}.get(
        kind, None if kind is type(None) else FORMATS["bf16"])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verilog")
    return {unit: write_unit(unit, needed(unit), folder / f"{unit}.v") for unit in UNITS}


def ports(text, module):
    """Return the ports of a module, {name: flow}."""
    top = text[text.index(f"module {module}("):]
    return {name: flow for flow, name in PORT.findall(top[:top.index("endmodule")])}


@pytest.mark.parametrize("unit", UNITS)
def test_names(written, unit):
    text = written[unit][0].read_text()
    modules = re.findall(r"^module (\S+?) ?\(", text, re.MULTILINE)
    name = f"tally_{unit.replace('-', '_')}"
    assert name in modules
    assert all(re.fullmatch(r"tally_\w+", module) for module in modules)
    assert len(set(modules)) == len(modules)
    assert "[-1:0]" not in text
    found = ports(text, name)
    assert found
    assert all(re.fullmatch(r"[a-z]\w*", port) and port not in KEYWORDS for port in found)
    assert not any("payload" in port for port in found)
    example = written[unit][1].read_text()
    assert all(f".{port}({port})" in example for port in found)


def test_ports_of_the_accelerator_are_those_of_the_buses(written):
    found = ports(written["accelerator"][0].read_text(), "tally_accelerator")
    expected = {"aclk": "input", "aresetn": "input", "i_program_index": "input",
                "i_program_instruction": "input", "i_program_ready": "output",
                "o_top_k_index": "output", "o_top_k_value": "output", "o_top_k_last": "output",
                "o_top_k_ready": "input", "m_axi_awvalid": "output", "m_axi_awready": "input",
                "m_axi_awlen": "output", "m_axi_wdata": "output", "m_axi_wlast": "output",
                "m_axi_bresp": "input", "m_axi_araddr": "output", "m_axi_rdata": "input",
                "m_axi_rready": "output", "m_axi_arid": "output", "m_axi_rid": "input"}
    assert expected.items() <= found.items()


@pytest.mark.parametrize("unit", UNITS)
def test_linters_say_nothing(written, unit):
    missing = missing_tools("verilator", "iverilog")
    if missing:
        pytest.skip("; ".join(missing))
    unit_file, example, *_ = written[unit]
    top = f"tally_{unit.replace('-', '_')}"
    for command in (
            ["verilator", "--lint-only", "-Wall", "--top-module", top, unit_file],
            ["iverilog", "-g2005", "-Wall", "-Wno-timescale", "-t", "null", unit_file, example]):
        done = subprocess.run(list(map(str, command)), text=True, check=False,
                              env=simulation_environment(), stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        assert done.returncode == 0, done.stdout
        assert "arning" not in done.stdout.replace("Walltime", "")


def test_the_command_writes_both_files(tmp_path, capsys):
    output = tmp_path / "new" / "unit.v"
    assert main(["verilog", "--unit", "slice", "--target=ecp5", "--lanes", "64", "--output",
                 str(output)]) == 0
    assert capsys.readouterr().out == (
        f"slice written to {output}, an example of its instantiation to "
        f"{output.with_name('unit_example.v')}\n")
    assert "CCU2C" in output.read_text()
    assert main(["verilog", "--unit", "lmul", "--format=e4m3", "--output", str(output)]) == 0
    assert "wire [7:0] o_" in output.with_name("unit_example.v").read_text()


@pytest.mark.parametrize(("arguments", "message"), [
    (["verilog", "--unit", "core"],
     r"'core' is no unit \(try accelerator, axi-accelerator, slice, .*\)"),
    (["verilog", "--seed", "3"], "Unit 'accelerator' has no such setting: leave out --seed"),
    (["verilog", "--unit", "engine", "--vector-depth", "64", "--no-pnr"],
     "Unit 'engine' has no such setting: leave out --no-pnr, --vector-depth"),
    (["verilog", "--unit", "lmul", "--lanes", "64"],
     "Unit 'lmul' has no such setting: leave out --lanes"),
    (["verilog", "--unit", "adder", "--format", "bf16"],
     "Unit 'adder' has no such setting: leave out --format"),
    (["verilog", "--lanes", "10"],
     r"Lane count \(10\) must be a multiple of the result lane count \(8\)"),
    (["list", "--lanes", "64"], "'list' takes no options: leave out --lanes"),
    (["icebreaker", "--unit", "lmul"], "Option --unit applies to 'verilog', not to a board")])
def test_options_that_do_not_apply(arguments, message, capsys):
    assert main(arguments) == 2
    assert re.fullmatch(message, capsys.readouterr().err.strip())


def test_attention_needs_a_context(capsys):
    assert main(["verilog", "--unit", "attention"]) == 2
    assert "context" in capsys.readouterr().err
