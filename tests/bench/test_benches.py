"""Every bench, every case, under both simulators."""

import pytest

from sim.runner import SIMULATORS, bench_cases, bench_names, run_bench
from sim.tools import missing_tools

RUNS = [(name, case, simulator) for name in bench_names() for case in bench_cases(name)
        for simulator in SIMULATORS]


@pytest.mark.parametrize(("name", "case", "simulator"), RUNS, ids=["-".join(run) for run in RUNS])
def test_bench(name, case, simulator, tmp_path):
    missing = missing_tools(*SIMULATORS[simulator])
    if missing:
        pytest.skip("; ".join(missing))
    result = run_bench(name, case, simulator, work_dir=tmp_path)
    assert result.tests > 0
    assert result.failed == 0


def test_every_bench_has_a_case():
    assert {name for name, _, _ in RUNS} == set(bench_names())
