"""The save file of recorded waves: named signals, grouped by module."""

import pytest

from sim.command_line import main
from sim.tools import missing_tools
from sim.waves import write_save_file

VERILOG = r"""
module top(clk, i__payload, \odd$1 );
  input clk;
  input [3:0] i__payload;
  wire \$1 ;
  wire [7:0] \o.field ;
  reg [7:0] count = 8'h00;
  wire clk;
  \top.inner  inner (
    .clk(clk)
  );
endmodule

module \top.inner (clk);
  input clk;
  reg state = 1'h0;
endmodule
"""


def test_named_signals_of_all_modules(tmp_path):
    verilog, waves = tmp_path / "top.v", tmp_path / "top.fst"
    verilog.write_text(VERILOG)
    save = write_save_file(verilog, "top", waves)
    assert save == tmp_path / "top.gtkw"
    assert save.read_text().splitlines() == [
        f'[dumpfile] "{waves}"', "@200", "-top", "@28", "top.clk", "@22", "top.i__payload[3:0]",
        "@22", "top.count[7:0]", "@200", "-top.inner", "@28", "top.inner.clk", "@28",
        "top.inner.state"]


def test_the_command_says_where_the_waves_are(tmp_path, monkeypatch, capfd):
    if missing_tools("iverilog"):
        pytest.skip("; ".join(missing_tools("iverilog")))
    monkeypatch.chdir(tmp_path)
    assert main(["run", "router", "--simulator", "icarus", "--case", "one_walk", "--waves"]) == 0
    told = capfd.readouterr().out.splitlines()[-1]
    path = told.split("gtkwave ")[-1]
    assert told.startswith("Waves: build/waves/router-one_walk-icarus/")
    text = (tmp_path / path).read_text()
    assert "router.collector" in text
    assert "$" not in text
