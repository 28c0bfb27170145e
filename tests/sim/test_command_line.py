"""``python -m sim``: what it prints for good and for bad input."""

import subprocess
import sys

from sim import tools
from sim.command_line import main


def test_unknown_unit(capsys):
    assert main(["run", "ternery"]) == 2
    assert capsys.readouterr().err.startswith("'ternery' is not a unit with a bench (try ")


def test_unknown_case(capsys):
    assert main(["run", "--case", "no such case"]) == 2
    assert capsys.readouterr().err == "No bench has a case 'no such case'\n"


def test_missing_simulator_is_named(capsys, monkeypatch):
    monkeypatch.setitem(tools.TOOLS, "iverilog-of-mars", ("a simulator", "fly there"))
    assert tools.missing_tools("iverilog-of-mars") == [
        "iverilog-of-mars (a simulator) is not installed; fly there"]
    assert main(["tools"]) == 0
    assert "iverilog-of-mars (a simulator) is not installed; fly there" in capsys.readouterr().out


def test_tools_beside_this_python(monkeypatch, tmp_path):
    """They are found though the environment was not activated."""
    program = tmp_path / "bin" / "iverilog-of-mars"
    program.parent.mkdir()
    program.write_text("")
    program.chmod(0o755)
    monkeypatch.setitem(tools.TOOLS, "iverilog-of-mars", ("a simulator", "fly there"))
    assert tools.missing_tools("iverilog-of-mars")
    monkeypatch.setattr(sys, "executable", str(program.with_name("python")))
    assert not tools.missing_tools("iverilog-of-mars")


def test_list_names_every_bench(capsys):
    assert main(["list"]) == 0
    assert "lmul" in capsys.readouterr().out


def test_missing_extra_is_one_line():
    """After ``make demo`` alone, the packages of the benches are not there."""
    done = subprocess.run(
        [sys.executable, "-c", "import runpy, sys; sys.modules['cocotb_tools'] = None; "
         "sys.argv = ['sim', 'list']; runpy.run_module('sim', run_name='__main__')"],
        capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == ("The package cocotb_tools is not installed: pip install -e "
                           "'.[test,build]'\n")
