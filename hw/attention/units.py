"""Attention in the table that ``python -m hw.synth`` makes."""

from functools import partial

from hw.attention.unit import AttentionUnit
from hw.config import CoreConfig, EngineConfig
from hw.synth import Unit

__all__ = ["UNITS"]

_CONFIG = CoreConfig(engine=EngineConfig(target="ecp5"), context=2048)
_LANES = _CONFIG.attention_heads * _CONFIG.attention_elements

UNITS: dict[str, Unit] = {
    "attention": Unit(unit="attention", format="bf16 and e4m3", lanes=_LANES, clock_mhz=120,
                      bar=">= 80 MHz", build=partial(AttentionUnit, _CONFIG),
                      synthesis="-nowidelut"),
}
