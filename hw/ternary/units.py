"""The units of the ternary engine in the table that ``python -m hw.synth`` makes."""

from functools import partial

from hw.config import EngineConfig
from hw.formats.trits import PACKINGS
from hw.synth import Unit
from hw.ternary.decoder import TritDecoder
from hw.ternary.engine import TernaryEngine
from hw.ternary.floorplan import block_ram_site
from hw.ternary.gearbox import Gearbox

__all__ = ["UNITS"]

_ENGINE = EngineConfig(target="ecp5")
_BOTH_WALKS = EngineConfig(target="ecp5", row_columns=1024)
#: All lanes leave at once, so there is no multiplexer: what the engine costs without its drain.
_NO_DRAIN = EngineConfig(target="ecp5", result_lanes=64)
# Wide multiplexers of LUTs are faster, but take twice the LUTs where tables are not that wide.
_SMALL = "-nowidelut"
# The more weight on timing, the closer the lanes to their block RAMs.
_TIMING = "--placer-heap-timingweight 40"

#: The engine from lane-wide weight word to results, with and without the drain's multiplexer, the
#: gearbox in front of it, and the decoders alone.
UNITS: dict[str, Unit] = {
    "engine": Unit(unit="ternary engine", format="5in8", build=partial(TernaryEngine, _ENGINE),
                   lanes=64, clock_mhz=170, bar="<= 44 LUT4-eq per lane at >= 150 MHz, 0 DSP",
                   synthesis=_SMALL, placement=_TIMING, floorplan=block_ram_site),
    "engine-both-walks": Unit(unit="engine, both walks", format="5in8",
                              build=partial(TernaryEngine, _BOTH_WALKS), lanes=64, clock_mhz=170,
                              bar="<= 65 LUT4-eq per lane, 0 DSP", synthesis=_SMALL,
                              placement=_TIMING, floorplan=block_ram_site),
    "engine-no-drain": Unit(unit="ternary engine, no drain multiplexer", format="5in8",
                            build=partial(TernaryEngine, _NO_DRAIN), lanes=64, clock_mhz=170,
                            bar="<= 36 LUT4-eq per lane",
                            synthesis=_SMALL, placement=_TIMING, floorplan=block_ram_site),
    "engine-generic": Unit(unit="ternary engine, inferred", format="5in8",
                           build=partial(TernaryEngine, EngineConfig()), lanes=64, clock_mhz=150),
    "gearbox": Unit(unit="gearbox", format="8 to 13 bytes", build=partial(Gearbox, _ENGINE),
                    lanes=64, clock_mhz=170, bar="<= 12 LUT4-eq per lane"),
}
for _packing in PACKINGS.values():
    _trits = 60     # a multiple of every packing's trits
    UNITS[f"decoder-{_packing.name}"] = Unit(
        unit="trit decoder", format=_packing.name, trits=_trits, clock_mhz=220, synthesis=_SMALL,
        build=partial(TritDecoder, packing=_packing.name, lanes=_trits, target="ecp5"),
        bar="<= 8 LUT4 per trit at >= 200 MHz, no block RAM")
