"""The sequencer's parts in the table that ``python -m hw.synth`` makes."""

from functools import partial

from hw.config import CoreConfig, EngineConfig
from hw.sequencer.sequencer import Sequencer
from hw.sequencer.top_k import TopK
from hw.synth import Unit

__all__ = ["UNITS"]

_BAR = ">= 95 MHz"
# Wide multiplexers of LUTs take nearly twice the LUTs, and nothing here needs their speed.
_SMALL = "-nowidelut"
_CONFIG = CoreConfig(engine=EngineConfig(target="ecp5"))

UNITS: dict[str, Unit] = {
    "sequencer": Unit(unit="sequencer and decoder", format="", build=partial(Sequencer, _CONFIG),
                      clock_mhz=150, bar=_BAR),
    "top-k": Unit(unit="top k", format="int24", build=partial(TopK, _CONFIG),
                  lanes=_CONFIG.vector_lanes, clock_mhz=150, bar=_BAR, synthesis=_SMALL),
}
