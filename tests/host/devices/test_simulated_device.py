"""The simulated RTL behind the device interface, and a whole model on it."""

import numpy as np
import pytest

import host.devices.simulated
from host.devices.engine import Driver, GoldenEngine
from host.devices.errors import DeviceError
from host.devices.generate import EngineReader, Generator
from host.devices.registry import DeviceName, open_engine
from host.devices.simulated import SimulatedEngine
from host.models.examples import tiny_model
from host.text.sampling import Sampler
from hw.config import EngineConfig
from sim.fast.library import SimulatorStopped
from sim.golden.gearbox import port_transfers
from sim.tools import ToolMissing, missing_tools

MISSING = missing_tools("verilator", "g++", "make", "perl")
needs_simulator = pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING))


@pytest.fixture(scope="module")
def device():
    device = open_engine(DeviceName("engine", "simulated"))
    yield device
    device.close()


@needs_simulator
def test_products(device):
    """Shapes of every kind, extreme values, zero vectors, batches beyond the engine's."""
    rng = np.random.default_rng(1)
    driver = Driver(device)
    for number, (rows, columns, batch, limit) in enumerate([
            (256, 256, 1, 1), (64, 300, 1, 1), (128, 40, 5, 1), (1, 1, 1, 364), (200, 77, 11, 13),
            (64, 30, 2, 1)]):
        name = f"m{number}"
        weights = rng.integers(-limit, limit + 1, (rows, columns))
        driver.load(name, weights)
        for activations in (rng.integers(-128, 128, (batch, columns)),
                            np.full((batch, columns), -128), np.zeros((batch, columns), int),
                            rng.integers(-2, 3, (batch, columns)) * rng.integers(0, 2, columns)):
            activations = activations.astype(np.int8)
            np.testing.assert_array_equal(driver(name, activations),
                                          activations.astype(np.int64) @ weights.T)


@needs_simulator
def test_counters(device):
    """The weight port limits a dense product at batch 1: its transfers are nearly all cycles."""
    config = device.config
    driver = Driver(device)
    driver.load("w", np.ones((256, 256), np.int8))
    before = device.counters.cycles, device.counters.transfers
    driver("w", np.ones((1, 256), np.int8))
    transfers = port_transfers(config, 256 * 4)
    assert device.counters.transfers - before[1] == transfers
    assert transfers < device.counters.cycles - before[0] < 1.05 * transfers


@needs_simulator
def test_model(device):
    """A prompt in batches and greedy tokens after it, as on the golden device."""
    model = tiny_model(layers=1)
    written = []
    for each in (device, GoldenEngine(device.config)):
        reader = EngineReader(model, each)
        written.append(list(Generator(reader).generate([40, 50, 60], 4, Sampler(temperature=0))))
        assert reader.checked.checked > 0
    assert written[0] == written[1]


class TestErrors:
    def test_tool_missing(self, monkeypatch):
        def build(config, progress):
            raise ToolMissing("verilator is not installed")

        monkeypatch.setattr(host.devices.simulated, "VerilatedEngine", build)
        with pytest.raises(DeviceError, match=r"^The simulator cannot be built: verilator is not "
                                              r"installed$"):
            SimulatedEngine(EngineConfig())

    @needs_simulator
    def test_stopped(self, device, monkeypatch):
        def stop(handle, columns, values):
            raise SimulatorStopped("The simulated accelerator moved nothing for 9 cycles")

        driver = Driver(device)
        driver.load("w", np.ones((4, 4), np.int8))
        monkeypatch.setattr(device._accelerator, "product", stop)
        with pytest.raises(DeviceError,
                           match=r"^The simulated accelerator moved nothing for 9 cycles$"):
            driver("w", np.ones((1, 4), np.int8))
