"""The driver on the golden device, against plain integer products."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.compiler.errors import CompileError
from host.compiler.pack import pack_matrix, planes_needed
from host.devices.checked import CheckedProducts
from host.devices.engine import Driver, EngineDevice, GoldenEngine
from host.devices.errors import DeviceError, MismatchError
from host.devices.registry import DeviceName
from hw.config import EngineConfig
from hw.formats.minifloat import bf16
from sim.golden.lmul import lmul
from sim.timing.units import engine_cycles


def expected_product(weights, activations):
    return activations.astype(np.int64) @ weights.astype(np.int64).T


class RecordingDevice(GoldenEngine):
    """Notes the shape of each product: (groups, entries, batch)."""

    def __init__(self, config):
        super().__init__(config)
        self.shapes = []

    def product(self, handle, columns, values):
        self.shapes.append((self.config.groups(self._images[handle][1]), *values.shape))
        return super().product(handle, columns, values)


@settings(deadline=None)
@given(rows=st.integers(1, 90), columns=st.integers(1, 40), batch=st.integers(1, 7),
       count=st.integers(1, 5), lanes=st.integers(1, 9), depth_log2=st.integers(0, 4),
       max_batch=st.integers(1, 4), density=st.floats(0, 1), seed=st.integers(0, 2 ** 32 - 1))
def test_any_shape(rows, columns, batch, count, lanes, depth_log2, max_batch, density, seed):
    config = EngineConfig(lanes=lanes, result_lanes=1, accumulator_depth=2 ** depth_log2,
                          max_planes=5, max_batch=max_batch, packing="3in5")
    rng = np.random.default_rng(seed)
    limit = (3 ** count - 1) // 2
    weights = rng.integers(-limit, limit + 1, (rows, columns))
    activations = rng.integers(-128, 128, (batch, columns)).astype(np.int8)
    activations[rng.random(activations.shape) >= density] = 0

    device = RecordingDevice(config)
    driver = Driver(device)
    driver.load("w", weights)
    results = driver("w", activations)
    assert results.dtype == np.int32
    np.testing.assert_array_equal(results, expected_product(weights, activations))
    for groups, entries, size in device.shapes:
        assert groups * size <= config.accumulator_depth
        assert size <= max_batch
        assert groups * size != 2
        assert entries <= columns


def test_zero_columns_are_not_listed():
    config = EngineConfig()
    device = RecordingDevice(config)
    driver = Driver(device)
    driver.load("w", np.ones((256, 4), np.int8))
    driver("w", np.array([[0, 3, 0, 0], [0, 0, 0, -1]], np.int8))
    driver("w", np.zeros((1, 4), np.int8))
    assert device.shapes == [(4, 2, 2), (4, 1, 1)]
    counters = device.counters
    assert (counters.products, counters.entries, counters.skipped) == (2, 3, 2 + 3)
    assert counters.additions == 2 * 256 * 2 + 256
    assert counters.weight_bytes == 3 * 4 * 13
    assert counters.list_bytes == 2 * (2 + 2) + (2 + 1)
    assert counters.result_bytes == 3 * 256 * 4
    assert counters.transfers == 13 + 7
    assert counters.cycles == (engine_cycles(config, rows=256, columns=2, batch=2)
                               + engine_cycles(config, rows=256, columns=1))
    assert driver.loaded_bytes == 4 * 4 * 13


def test_counters_since():
    device = GoldenEngine(EngineConfig())
    driver = Driver(device)
    driver.load("w", np.ones((3, 4), np.int8))
    driver("w", np.ones((1, 4), np.int8))
    earlier = dataclasses.replace(device.counters)
    driver("w", np.ones((1, 4), np.int8))
    assert device.counters - earlier == earlier
    assert earlier + earlier == device.counters


def test_planes_needed():
    assert [planes_needed(w) for w in (0, 1, 2, 4, 5, 13, 14, 364, 365)] == [
        1, 1, 2, 2, 3, 3, 4, 6, 7]


def test_info():
    config = EngineConfig()
    assert GoldenEngine(config).info() == {
        "device": "golden model", "evidence": "derived",
        "configuration": {**config.__dict__},
        "configuration_hash": f"{config.configuration_hash():08x}"}


def test_no_lmul_unit():
    class Engine(RecordingDevice):
        lmul = EngineDevice.lmul

    with pytest.raises(DeviceError, match=r"^The golden model has no L-Mul unit$"):
        Engine(EngineConfig()).lmul(np.zeros(1, np.uint16), np.zeros(1, np.uint16))


def test_lmul():
    x = np.arange(0x3F00, 0x4100, dtype=np.uint16)
    np.testing.assert_array_equal(GoldenEngine(EngineConfig()).lmul(x, x[::-1]),
                                  lmul(bf16, x, x[::-1]))


class TestChecked:
    @staticmethod
    def driver():
        driver = Driver(GoldenEngine(EngineConfig()))
        driver.load("w", np.ones((3, 4), np.int8))
        return driver

    def test_equal(self):
        checked = CheckedProducts(self.driver(), self.driver(), "device under test")
        np.testing.assert_array_equal(checked("w", np.ones((2, 4), np.int8)), np.full((2, 3), 4))
        assert checked.checked == 6

    def test_first_difference(self):
        def wrong(name, activations):
            results = self.driver()(name, activations)
            results[1, 2] += 1
            return results

        checked = CheckedProducts(wrong, self.driver(), "device under test")
        with pytest.raises(MismatchError, match=r"^Matrix w row 2 \(activation vector 1 of 2\) "
                                                r"must give 4, but the device under test gave 5$"):
            checked("w", np.ones((2, 4), np.int8))
        assert checked.checked == 0


class TestErrors:
    @pytest.mark.parametrize("name", ["fpga", "", "serial", "serial:", "simulated:x", "Golden",
                                      "engine", "engine-serial", "board-golden"])
    def test_unknown_device(self, name):
        with pytest.raises(DeviceError, match=rf"^'{name}' is not a device \(try 'simulated', "
                                              rf"'golden', 'serial:PORT', 'engine-simulated', "
                                              rf"'engine-golden', 'engine-serial:PORT'\)$"):
            DeviceName.parse(name)

    def test_device_names(self):
        for name in ("simulated", "golden", "serial:/dev/ttyUSB0", "serial:socket://host:1",
                     "engine-simulated", "engine-golden", "engine-serial:COM3"):
            assert str(DeviceName.parse(name)) == name
            part = "engine" if name.startswith("engine") else "accelerator"
            assert DeviceName.parse(name).part == part
        assert DeviceName.parse("accelerator-golden") == DeviceName("accelerator", "golden")
        assert DeviceName.parse("engine-serial:COM3").port == "COM3"

    def test_overflow(self):
        weights = np.zeros((5, 300), np.int8)
        weights[3] = -13
        config = EngineConfig(accumulator_width=20)
        with pytest.raises(CompileError, match=r"^Matrix m row 3 could reach 499200, which must be "
                                               r"below 2\*\*18 for accumulators of 19 bits$"):
            pack_matrix("m", weights, EngineConfig(accumulator_width=19, max_planes=5))
        pack_matrix("m", weights, config)

    def test_token(self):
        """One column with activation 1 fits where the sum of a row would not."""
        weights = np.full((2, 60000), 364)
        with pytest.raises(CompileError, match=r"could reach"):
            pack_matrix("m", weights, EngineConfig())
        assert pack_matrix("m", weights, EngineConfig(), token=True).planes == 6

    def test_overflow_bound_is_tight(self):
        """2**17 itself does not fit 18 bits; one less column does, and the extreme is exact."""
        config = EngineConfig(accumulator_width=18, max_planes=5)
        with pytest.raises(CompileError, match=r"could reach 131072"):
            pack_matrix("m", np.ones((1, 1024), np.int8), config)
        driver = Driver(GoldenEngine(config))
        driver.load("m", np.ones((1, 1023), np.int8))
        assert driver("m", np.full((1, 1023), -128, np.int8)).tolist() == [[-128 * 1023]]

    def test_columns(self):
        with pytest.raises(CompileError, match=r"^Matrix m must have at most 16 columns for this "
                                               r"engine, not 17 \(engine field index_width\)$"):
            pack_matrix("m", np.ones((1, 17), np.int8), EngineConfig(index_width=4))

    def test_planes(self):
        with pytest.raises(CompileError, match=r"^Matrix m must fit 3 trit planes, but its largest "
                                               r"weight 14 needs 4$"):
            pack_matrix("m", np.array([[-14, 1]], np.int8), EngineConfig(max_planes=3))

    def test_smallest_int8(self):
        with pytest.raises(CompileError, match=r"weight 128 needs 6$"):
            pack_matrix("m", np.array([[-128]], np.int8), EngineConfig(max_planes=5))

    def test_activation_columns(self):
        driver = TestChecked.driver()
        with pytest.raises(ValueError, match=r"^Activations for matrix w must have 4 columns, "
                                             r"not 5$"):
            driver("w", np.ones((1, 5), np.int8))

    def test_list(self):
        device = GoldenEngine(EngineConfig())
        Driver(device).load("w", np.ones((3, 4), np.int8))
        with pytest.raises(ValueError, match=r"^List for matrix w must have a column for each of "
                                             r"its 2 values and at least one, not 1$"):
            device.product(0, np.zeros(1, np.uint32), np.zeros((2, 1), np.int8))
        with pytest.raises(ValueError, match=r"^List for matrix w must name columns below 4, "
                                             r"not 4$"):
            device.product(0, np.array([4], np.uint32), np.ones((1, 1), np.int8))
