"""The memory's parts in the table that ``python -m hw.synth`` makes."""

from functools import partial

from hw.config import CoreConfig, EngineConfig
from hw.memory.axi4 import Axi4Master
from hw.memory.fetcher import Fetcher
from hw.memory.port import BlockRamMemory
from hw.synth import Unit

__all__ = ["UNITS"]

_BAR = ">= 95 MHz"
_CONFIG = CoreConfig(engine=EngineConfig(target="ecp5"))
_PORT = {"address_width": _CONFIG.address_width, "port_bytes": _CONFIG.port_bytes}

UNITS: dict[str, Unit] = {
    "fetcher": Unit(unit="fetcher", format="8 bytes", build=partial(Fetcher, _CONFIG),
                    clock_mhz=150, bar=_BAR),
    "block-ram-memory": Unit(unit="block RAM memory", format="256 KiB, 16 bytes", clock_mhz=150,
                             build=partial(BlockRamMemory, address_width=18, port_bytes=16,
                                           depth=2 ** 14, target="ecp5"), bar=_BAR),
    "axi4": Unit(unit="AXI4 manager", format="8 bytes", build=partial(Axi4Master, **_PORT),
                 clock_mhz=150, bar=_BAR),
}
