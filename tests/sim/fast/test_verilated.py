# amaranth: UnusedElaboratable=no

"""The simulated engine slice: its results, its cycles, and every message of the fast simulator."""

import dataclasses

import numpy as np
import pytest

import sim.fast.engine
import sim.fast.library
from hw.config import EngineConfig
from hw.engine.slice import EngineSlice
from sim.fast.engine import DESIGN, SimulatedProduct, VerilatedEngine
from sim.fast.library import SimulatorStopped
from sim.golden.gearbox import port_transfers
from sim.golden.trits import pack_words, planes
from sim.timing.units import engine_period, slice_cycles
from sim.tools import ToolMissing, missing_tools

MISSING = missing_tools("verilator", "g++", "make", "perl")
needs_simulator = pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING))

#: Rows, columns, planes, batch. Bound by the port, by the engine, and on the edge of both.
SHAPES = [(256, 256, 1, 1), (1024, 64, 1, 1), (64, 100, 1, 1), (192, 96, 1, 1), (32, 32, 1, 8),
          (70, 33, 3, 2), (130, 20, 6, 3), (64, 40, 2, 2), (128, 40, 1, 1), (65, 1, 1, 7),
          (1, 1, 1, 1), (1, 2, 1, 8), (2000, 3, 1, 4)]


def make(rng, rows, columns, plane_count, batch):
    limit = (3 ** plane_count - 1) // 2
    weights = rng.integers(-limit, limit + 1, (rows, columns))
    values = rng.integers(-128, 128, (columns, batch)).astype(np.int8)
    return weights, values


@needs_simulator
def test_products_and_cycles_equal_golden():
    config = EngineConfig()
    rng = np.random.default_rng(7)
    with VerilatedEngine(config) as simulator:
        for rows, columns, plane_count, batch in SHAPES:
            weights, values = make(rng, rows, columns, plane_count, batch)
            handle = simulator.load(rows, pack_words(planes(weights, plane_count), config))
            results, counters = simulator.product(handle, np.arange(columns), values)
            np.testing.assert_array_equal(results, values.T.astype(np.int64) @ weights.T)
            shape = {"rows": rows, "columns": columns, "planes": plane_count, "batch": batch}
            assert counters.cycles == slice_cycles(config, **shape), shape
            words = columns * plane_count * config.groups(rows)
            assert counters.words == words
            assert counters.weight_bytes == words * config.word_bytes
            assert counters.transfers == port_transfers(config, words)


@needs_simulator
@pytest.mark.parametrize(("latency", "stall"), [(0, 0.0), (40, 0.0), (0, 0.5), (9, 0.3)])
def test_queued_products_with_any_list_and_any_memory(latency, stall):
    config = EngineConfig()
    rng = np.random.default_rng(8)
    products, expected = [], []
    with VerilatedEngine(config, latency=latency, stall=stall) as simulator:
        for rows, columns, plane_count, batch in SHAPES:
            weights, _ = make(rng, rows, columns, plane_count, batch)
            handle = simulator.load(rows, pack_words(planes(weights, plane_count), config))
            listed = rng.integers(0, columns, 1 + columns // 2)     # in no order, repeated
            values = rng.integers(-128, 128, (len(listed), batch)).astype(np.int8)
            products.append(SimulatedProduct(handle, listed, values))
            expected.append(values.T.astype(np.int64) @ weights[:, listed].T)
        results, _ = simulator.run(products)
    for result, wanted in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, wanted)


@needs_simulator
def test_back_to_back_products_keep_the_port_busy():
    config = EngineConfig()
    rng = np.random.default_rng(9)
    weights, values = make(rng, 256, 256, 1, 1)
    count = 8
    with VerilatedEngine(config) as simulator:
        handle = simulator.load(256, pack_words(weights.astype(np.int8), config))
        _, counters = simulator.run([SimulatedProduct(handle, np.arange(256), values)] * count)
    cycles = counters[-1].last_result - counters[0].first_entry + 1
    transfers = sum(counter.transfers for counter in counters)
    shape = {"rows": 256, "columns": 256}
    assert engine_period(config, **shape) < transfers // count      # the port is what binds
    assert transfers / cycles > 0.95


@needs_simulator
def test_extreme_values():
    config = EngineConfig()
    columns = 2 ** 16 - 1               # 128 * columns just fits 24 bits
    with VerilatedEngine(config) as simulator:
        handle = simulator.load(2, pack_words(np.array([[1, -1], [-1, 0]], dtype=np.int8), config))
        listed = np.zeros(columns, dtype=np.uint32)
        values = np.full((columns, 1), -128, dtype=np.int8)
        results, _ = simulator.product(handle, listed, values)
    np.testing.assert_array_equal(results, [[-128 * columns, 128 * columns]])


@needs_simulator
def test_bad_arguments():
    config = EngineConfig()
    with VerilatedEngine(config) as simulator:
        with pytest.raises(ValueError, match=r"^Image of 70 rows must be uint8 of shape \(columns, "
                           r"planes, 2, 13\), not uint8 \(4, 1, 1, 13\)$"):
            simulator.load(70, np.zeros((4, 1, 1, 13), dtype=np.uint8))
        handle = simulator.load(64, np.zeros((4, 1, 1, 13), dtype=np.uint8))
        with pytest.raises(ValueError, match=r"^Listed columns must be below 4, not 4$"):
            simulator.product(handle, np.array([4]), np.ones((1, 1), dtype=np.int8))
        with pytest.raises(ValueError, match=r"^Values must have shape \(entries, batch\) with an "
                           r"entry for each of the 2 columns, not \(1, 1\)$"):
            simulator.product(handle, np.array([0, 1]), np.ones((1, 1), dtype=np.int8))


@needs_simulator
def test_no_progress_is_an_error(monkeypatch):
    monkeypatch.setattr(sim.fast.engine, "PATIENCE", 100)
    config = EngineConfig()
    with VerilatedEngine(config, latency=10_000) as simulator:
        handle = simulator.load(64, np.zeros((1, 1, 1, 13), dtype=np.uint8))
        message = (r"^The simulated engine slice moved nothing for 100 cycles, \d+ cycles after "
                   r"the start of a run$")
        with pytest.raises(SimulatorStopped, match=message):
            simulator.product(handle, np.array([0]), np.ones((1, 1), dtype=np.int8))


@pytest.mark.parametrize(("field", "width", "message"), [
    ("accumulator_width", 33, r"^Accumulator width must be at most 32 in the simulator, not 33$"),
    ("activation_width", 9, r"^Activation width must be at most 8 in the simulator, not 9$"),
])
def test_too_wide_for_the_simulator(field, width, message):
    with pytest.raises(ValueError, match=message):
        VerilatedEngine(EngineConfig(**{field: width}))


def test_port_too_wide_for_the_list():
    message = (r"^Weight port \(8 bytes\) must not need more than 2 words of 2 bytes at a time, "
               r"which is what the engine asks for ahead with batch 8$")
    with pytest.raises(ValueError, match=message):
        EngineSlice(EngineConfig(lanes=8))


def test_missing_tool(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sim.fast.library, "missing_tools", lambda *names: ["perl is not installed"])
    with pytest.raises(ToolMissing, match=r"^perl is not installed$"):
        VerilatedEngine(EngineConfig())


def test_a_step_that_stops_names_its_first_error(tmp_path):
    command = ["python3", "-c", "print('fine'); print('%Error: this is wrong'); exit(1)"]
    with pytest.raises(RuntimeError, match=r"^python3 stopped while building the simulator: "
                       r"%Error: this is wrong$"):
        sim.fast.library._run(command, tmp_path, {}, "python3")


@needs_simulator
def test_build_reports_progress_and_leaves_one_file(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = EngineConfig(lanes=4, result_lanes=2, accumulator_depth=8, max_batch=2, port_bytes=1)
    steps = []
    library = sim.fast.library.build_library(DESIGN, config, lambda *step: steps.append(step))
    assert [path.name for path in (tmp_path / "tally").iterdir()] == [library.name]
    assert steps[0] == (0.0, "writing Verilog")
    assert steps[-1] == (1.0, "ready")
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    steps.clear()
    with VerilatedEngine(dataclasses.replace(config, target="ecp5"),      # the same library
                         progress=lambda *step: steps.append(step)):
        assert steps == []
