"""Devices by the name that users give them."""

from collections.abc import Callable

from host.devices.accelerator import AcceleratorDevice, GoldenAccelerator, Report
from host.devices.engine import EngineDevice, GoldenEngine
from host.devices.errors import DeviceError
from host.devices.serial_accelerator import SerialAccelerator
from host.devices.serial_engine import SerialEngine
from hw.config import CoreConfig, EngineConfig

__all__ = ["open_accelerator", "open_engine"]


def open_engine(name: str, report: Callable[[float, str], None] | None = None) -> EngineDevice:
    """Open a device by the name that users give it.

    Parameters
    ----------
    name : str
        ``engine`` (its simulated RTL), ``engine-golden``, or ``serial:PORT``.
    report : callable, optional
        Called with the share that is done (0 to 1) and what is under way, if opening takes long.

    Raises
    ------
    DeviceError
        If there is no such device, or it cannot be opened.
    """
    if name == "engine-golden":
        return GoldenEngine(EngineConfig())
    if name == "engine":
        # Imported where it is asked for: a board needs neither Amaranth nor a simulator.
        from host.devices.simulated import SimulatedEngine
        return SimulatedEngine(EngineConfig(), report)
    kind, _, port = name.partition(":")
    if kind == "serial" and port:
        return SerialEngine(port)
    raise DeviceError(f"{name!r} is not a device (try 'sim', 'golden', 'core:PORT', 'engine', "
                      f"'engine-golden', 'serial:PORT')")


def open_accelerator(name: str, config: CoreConfig | None = None,
                     report: Report | None = None) -> AcceleratorDevice:
    """Open a device by the name that users give it.

    Parameters
    ----------
    name : str
        ``sim``, ``golden``, or ``core:PORT``.
    config : CoreConfig, optional
        That of a board's core is known by itself, and must be this one.
    report : callable, optional
        Called with the share that is done (0 to 1) and what is under way, if opening takes long.

    Raises
    ------
    DeviceError
        If it cannot be opened.
    """
    kind, _, port = name.partition(":")
    if kind == "core" and port:
        return SerialAccelerator(port, config=config)
    if name == "golden":
        return GoldenAccelerator(config or CoreConfig())
    # Imported where it is asked for: a board needs neither Amaranth nor a simulator.
    from host.devices.simulated import SimulatedAccelerator
    return SimulatedAccelerator(config or CoreConfig(), report)
