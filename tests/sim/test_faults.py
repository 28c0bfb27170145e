"""The planted faults still fit the code; running them all is ``python -m sim faults``."""

import pathlib

import pytest

from sim.faults import FAULTS, ROOT
from sim.runner import bench_cases, bench_names


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.unit}: {fault.fault}")
def test_fault_can_be_planted(fault):
    text = (pathlib.Path(ROOT) / fault.path).read_text()
    assert text.count(fault.old) == 1
    assert fault.new != fault.old
    assert fault.case in bench_cases(fault.bench)


def test_every_unit_with_a_bench_is_broken_once():
    assert {fault.bench for fault in FAULTS} == set(bench_names())
