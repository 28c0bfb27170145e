"""The list's parts in the table that ``python -m hw.synth`` makes."""

from functools import partial

from hw.config import CoreConfig, EngineConfig
from hw.sequencer.list_memory import ListMemory
from hw.sparse.select import Selector
from hw.synth import Unit

__all__ = ["UNITS"]

_BAR = ">= 85 MHz"
_CONFIG = CoreConfig(engine=EngineConfig(target="ecp5"))

UNITS: dict[str, Unit] = {
    "list-memory": Unit(unit="list memory", format="TwELL tiles", clock_mhz=120, bar=_BAR,
                        build=partial(ListMemory, _CONFIG)),
    "selector": Unit(unit="selector", format="int8 and norms", clock_mhz=120, bar=_BAR,
                     build=partial(Selector, _CONFIG)),
}
