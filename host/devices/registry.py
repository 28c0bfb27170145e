"""Devices by the name that users give them.

A name is ``PART-KIND``: the part is ``accelerator`` (it computes whole tokens) or ``engine`` (it
computes matrix products), the kind is ``simulated`` (its RTL, compiled by Verilator), ``golden``
(its golden model) or ``serial:PORT`` (a board). ``accelerator-`` may be left out.
"""

import dataclasses

from host.devices.accelerator import AcceleratorDevice, GoldenAccelerator, Report
from host.devices.engine import EngineDevice, GoldenEngine
from host.devices.errors import DeviceError
from host.devices.serial_accelerator import SerialAccelerator
from host.devices.serial_engine import SerialEngine
from hw.config import AcceleratorConfig, EngineConfig

__all__ = ["NAMES", "DeviceName", "open_accelerator", "open_engine"]

PARTS = ("accelerator", "engine")
KINDS = ("simulated", "golden", "serial")

#: All names, for people.
NAMES = ("simulated", "golden", "serial:PORT",
         "engine-simulated", "engine-golden", "engine-serial:PORT")


@dataclasses.dataclass(frozen=True)
class DeviceName:
    """A device's name, taken apart.

    Attributes
    ----------
    part : str
        ``accelerator`` or ``engine``.
    kind : str
        ``simulated``, ``golden`` or ``serial``.
    port : str
        The serial port; empty for other kinds.
    """

    part: str
    kind: str
    port: str = ""

    @classmethod
    def parse(cls, text: str) -> "DeviceName":
        """Take a name apart.

        Raises
        ------
        DeviceError
            If there is no such device.
        """
        rest, colon, port = text.partition(":")
        part, dash, kind = rest.partition("-")
        if not dash:
            part, kind = PARTS[0], rest
        if part in PARTS and kind in KINDS and (kind == "serial") == bool(port) == bool(colon):
            return cls(part, kind, port)
        raise DeviceError(f"{text!r} is not a device (try {', '.join(map(repr, NAMES))})")

    def __str__(self) -> str:
        name = self.kind if self.part == PARTS[0] else f"{self.part}-{self.kind}"
        return f"{name}:{self.port}" if self.port else name


def open_engine(name: DeviceName, report: Report | None = None) -> EngineDevice:
    """Open an engine.

    Parameters
    ----------
    name : DeviceName
        With the part ``engine``.
    report : callable, optional
        Called with the share that is done (0 to 1) and what is under way, if opening takes long.

    Raises
    ------
    DeviceError
        If it cannot be opened.
    """
    if name.kind == "serial":
        return SerialEngine(name.port)
    if name.kind == "golden":
        return GoldenEngine(EngineConfig())
    # Imported where it is asked for: a board needs neither Amaranth nor a simulator.
    from host.devices.simulated import SimulatedEngine
    return SimulatedEngine(EngineConfig(), report)


def open_accelerator(name: DeviceName, config: AcceleratorConfig | None = None,
                     report: Report | None = None) -> AcceleratorDevice:
    """Open an accelerator.

    Parameters
    ----------
    name : DeviceName
        With the part ``accelerator``.
    config : AcceleratorConfig, optional
        That of a board's accelerator is known by itself, and must be this one.
    report : callable, optional
        Called with the share that is done (0 to 1) and what is under way, if opening takes long.

    Raises
    ------
    DeviceError
        If it cannot be opened.
    """
    if name.kind == "serial":
        return SerialAccelerator(name.port, config=config)
    if name.kind == "golden":
        return GoldenAccelerator(config or AcceleratorConfig())
    # Imported where it is asked for: a board needs neither Amaranth nor a simulator.
    from host.devices.simulated import SimulatedAccelerator
    return SimulatedAccelerator(config or AcceleratorConfig(), report)
