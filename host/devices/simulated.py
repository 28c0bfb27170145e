"""The RTL of the engine and of the whole accelerator, compiled by Verilator, as devices.

Of all devices only these need Amaranth and a simulator.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from host.devices.accelerator import LATENCY, REFRESH, AcceleratorDevice, Report, TokenResult
from host.devices.engine import EngineDevice
from host.devices.errors import DeviceError
from host.files.image import Image
from hw.config import AcceleratorConfig, EngineConfig
from sim.fast.engine import VerilatedEngine
from sim.fast.library import SimulatorStopped
from sim.fast.machine import VerilatedAccelerator

__all__ = ["SimulatedAccelerator", "SimulatedEngine"]


class SimulatedEngine(EngineDevice):
    """The ternary accelerator in simulation, with the memory behind its weight port.

    Parameters
    ----------
    config : EngineConfig
    report : callable, optional
        Called with the share that is done (0 to 1) and what is under way, while the simulator is
        built.

    Raises
    ------
    DeviceError
        If the simulator cannot be built.
    """

    label = "simulated RTL"
    evidence = "simulated"

    def __init__(self, config: EngineConfig,
                 report: Callable[[float, str], None] | None = None):
        super().__init__(config)
        try:
            self._accelerator = VerilatedEngine(config, progress=report)
        except (RuntimeError, OSError) as error:
            raise DeviceError(f"The simulator cannot be built: {error}") from error

    def close(self) -> None:
        """Free the simulated accelerator and its memory."""
        super().close()
        self._accelerator.close()

    def _load(self, handle: int, name: str, rows: int, image: NDArray[np.uint8]) -> None:
        self._accelerator.load(rows, image)    # counts its handles as this class does

    def _product(self, handle: int, columns: NDArray[np.uint32],
                 values: NDArray[np.int8]) -> tuple[NDArray[np.int32], int, int]:
        try:
            results, counters = self._accelerator.product(handle, columns, values)
        except SimulatorStopped as error:
            raise DeviceError(str(error)) from error
        return results, counters.cycles, counters.transfers


class SimulatedAccelerator(AcceleratorDevice):
    """The RTL of the accelerator, compiled by Verilator, with a memory of :data:`LATENCY` cycles.

    Parameters
    ----------
    config : AcceleratorConfig
    report : callable, optional
        Called with the share that is done (0 to 1) and what is under way, while the simulator is
        built.

    Raises
    ------
    DeviceError
        If the simulator cannot be built.
    """

    label = "simulated accelerator"
    evidence = "simulated"

    def __init__(self, config: AcceleratorConfig, report: Report | None = None):
        super().__init__(config)
        try:
            self._accelerator = VerilatedAccelerator(config, latency=LATENCY, refresh=REFRESH,
                                                     progress=report)
        except (RuntimeError, ValueError, OSError) as error:
            raise DeviceError(f"The simulator cannot be built: {error}") from error

    def close(self) -> None:
        """Free the simulated accelerator and its memory."""
        self._accelerator.close()

    def _load(self, image: Image, report: Report) -> None:
        self._accelerator.load(image.program.encoded(), image.contents())

    def _token(self, token: int, start: int) -> TokenResult:
        try:
            run = self._accelerator.run([(token, start)])[0]
        except SimulatorStopped as error:
            raise DeviceError(str(error)) from error
        return TokenResult(run.emissions, run.cycles, run.reads + run.writes)

    def _reset(self) -> None:
        self._accelerator.reset()
