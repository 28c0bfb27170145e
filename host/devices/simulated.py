"""The RTL of the engine, compiled by Verilator, behind the device interface."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from host.devices.base import Device, DeviceError
from hw.config import EngineConfig
from sim.fast.engine import VerilatedCore
from sim.fast.library import SimulatorStopped

__all__ = ["SimulatedDevice"]


class SimulatedDevice(Device):
    """The ternary core in simulation, with the memory behind its weight port.

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
            self._core = VerilatedCore(config, progress=report)
        except (RuntimeError, OSError) as error:
            raise DeviceError(f"The simulator cannot be built: {error}") from error

    def close(self) -> None:
        """Free the simulated core and its memory."""
        super().close()
        self._core.close()

    def _load(self, handle: int, name: str, rows: int, image: NDArray[np.uint8]) -> None:
        self._core.load(rows, image)    # counts its handles as this class does

    def _product(self, handle: int, columns: NDArray[np.uint32],
                 values: NDArray[np.int8]) -> tuple[NDArray[np.int32], int, int]:
        try:
            results, counters = self._core.product(handle, columns, values)
        except SimulatorStopped as error:
            raise DeviceError(str(error)) from error
        return results, counters.cycles, counters.transfers
