"""The vector unit's parts in the table that ``python -m hw.synth`` makes."""

from functools import partial

from hw.config import CoreConfig, EngineConfig
from hw.synth import Unit
from hw.vector.adder import Bf16Adder
from hw.vector.packer import Packer
from hw.vector.scale import ScaleUnit
from hw.vector.unit import VectorUnit

__all__ = ["UNITS"]

_BAR = ">= 100 MHz"
_CONFIG = CoreConfig(engine=EngineConfig(target="ecp5"))
_LANES = _CONFIG.vector_lanes

UNITS: dict[str, Unit] = {
    "bf16-adder": Unit(unit="bf16 adder", format="bf16", build=Bf16Adder, clock_mhz=150),
    "vector-unit": Unit(unit="vector unit", format="bf16", lanes=_LANES, clock_mhz=150, bar=_BAR,
                        build=partial(VectorUnit, _CONFIG)),
    "packer": Unit(unit="packer", format="bf16 to int8", lanes=_LANES, clock_mhz=150, bar=_BAR,
                   build=partial(Packer, _CONFIG)),
    "scale": Unit(unit="scale", format="int24 to bf16", lanes=_LANES, clock_mhz=150, bar=_BAR,
                  build=partial(ScaleUnit, _CONFIG)),
}
