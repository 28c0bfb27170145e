"""Worker processes: an interrupt ends them, whatever they have been given."""

import os
import time

import pytest

from host.measure.workers import worker_pool


def test_results_and_threads():
    before = os.environ.get("OPENBLAS_NUM_THREADS")
    with worker_pool(1) as pool:
        assert pool.submit(os.getenv, "OPENBLAS_NUM_THREADS").result() == "1"
    assert os.environ.get("OPENBLAS_NUM_THREADS") == before


def test_interrupt():
    """Nobody waits for what has been submitted."""
    began, processes = time.monotonic(), []

    def work():
        with worker_pool(1) as pool:
            assert pool.submit(abs, -1).result() == 1
            for _ in range(3):
                pool.submit(time.sleep, 600)
            processes.extend(pool._processes.values())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert len(processes) == 1
    for process in processes:
        process.join(60)
        assert process.exitcode
    assert time.monotonic() - began < 120
