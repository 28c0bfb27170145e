"""What an engine and an accelerator have in common, wherever they are."""

import abc
import dataclasses
from typing import Any, Generic, TypeVar

from hw.config import AcceleratorConfig, EngineConfig

__all__ = ["Config", "Device"]

#: What configures a device.
Config = TypeVar("Config", EngineConfig, AcceleratorConfig)


class Device(abc.ABC, Generic[Config]):
    """Hardware, its simulation or its golden model.

    Attributes
    ----------
    config : EngineConfig or AcceleratorConfig
        Geometry of the hardware.
    label : str
        What it is, for people.
    evidence : str
        How its cycles are known: ``derived``, ``simulated`` or ``measured``.
    """

    label = "device"
    evidence: str

    def __init__(self, config: Config):
        self.config: Config = config

    def info(self) -> dict[str, Any]:
        """Describe the device: its kind, its configuration and the configuration's hash."""
        return {"device": self.label, "evidence": self.evidence,
                "configuration": dataclasses.asdict(self.config),
                "configuration_hash": f"{self.config.configuration_hash():08x}"}

    @abc.abstractmethod
    def close(self) -> None:
        """Give back what the device holds. It cannot be used afterwards."""
