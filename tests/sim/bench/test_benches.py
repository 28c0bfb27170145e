"""Every bench, every case, under both simulators."""

import pytest

from sim.runner import SIMULATORS, bench_cases, bench_names, run_bench, slow_runs
from sim.tools import missing_tools

RUNS = [(name, case, simulator) for name in bench_names() for case in bench_cases(name)
        for simulator in SIMULATORS]


@pytest.mark.parametrize(("name", "case", "simulator"), [
    pytest.param(*run, id="-".join(run), marks=[pytest.mark.slow] * (run[1:] in slow_runs(run[0])))
    for run in RUNS])
def test_bench(name, case, simulator, tmp_path):
    missing = missing_tools(*SIMULATORS[simulator])
    if missing:
        pytest.skip("; ".join(missing))
    result = run_bench(name, case, simulator, work_dir=tmp_path)
    assert result.tests > 0
    assert result.failed == 0


def test_every_bench_has_a_case():
    assert {name for name, _, _ in RUNS} == set(bench_names())


@pytest.mark.parametrize("name", bench_names())
def test_what_is_slow_exists_and_leaves_something(name):
    runs = {run[1:] for run in RUNS if run[0] == name}
    assert slow_runs(name) < runs
