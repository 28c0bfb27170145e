"""A bench's tests in a given order and with tighter limits, as ``python -m sim mutate`` runs them.

This is a cocotb test module: variables of the environment say which bench, which tests, and how
much simulated time and processor time they may take.
"""

import importlib
import json
import os
import resource

__all__ = ["limits"]

_BENCH, _LIMITS, _SECONDS = "TALLY_BENCH", "TALLY_LIMITS_NS", "TALLY_SECONDS"


def limits(bench: str, simulated_ns: dict[str, int], seconds: float) -> dict[str, str]:
    """Return the environment for ``bench``: its tests in order, each with its simulated time.

    ``seconds`` of processor time end the simulator, which a loop without a register would keep busy
    for ever.
    """
    return {_BENCH: bench, _LIMITS: json.dumps(simulated_ns), _SECONDS: str(round(seconds) + 1)}


def _tests() -> dict:
    bench = importlib.import_module(f"sim.bench.bench_{os.environ[_BENCH]}")
    found = {test.name: test for generator in list(vars(bench).values())
             if hasattr(generator, "generate_tests") for test in generator.generate_tests()}
    chosen = {}
    for name, nanoseconds in json.loads(os.environ[_LIMITS]).items():
        found[name].timeout = (nanoseconds, "ns")
        chosen[name] = found[name]
    return chosen


if _BENCH in os.environ:
    _seconds = int(os.environ[_SECONDS])
    resource.setrlimit(resource.RLIMIT_CPU, (_seconds, _seconds))
    globals().update(_tests())
