"""The table of units that ``python -m hw.synth`` measures, in the order of the data path."""

from functools import partial

from hw.activations.quantizer import Quantizer
from hw.activations.sparse_vector import SparseVectorMemory
from hw.activations.sparsity import SparsityPolicy
from hw.arith.bf16_add import Bf16Adder
from hw.arith.dequantize import ScaleUnit
from hw.arith.exact import ExactMultiplier
from hw.arith.lmul import LMul
from hw.arith.lmul_dot import LMulDot
from hw.attention.unit import AttentionUnit
from hw.bars import Bar
from hw.config import AcceleratorConfig, EngineConfig
from hw.control.dispatch import Dispatch
from hw.engine.engine import TernaryEngine
from hw.engine.gearbox import Gearbox
from hw.engine.trit_decoder import TritDecoder
from hw.formats.minifloat import FORMATS, bf16, e4m3, e5m2
from hw.formats.trits import PACKINGS
from hw.memory.axi4 import Axi4Master
from hw.memory.block_ram_memory import BlockRamMemory
from hw.memory.read_engine import ReadEngine
from hw.memory.sdram import SdramController
from hw.memory.sdram_chip import SdramChip
from hw.output.top_k import TopK
from hw.synth.floorplan import block_ram_site
from hw.synth.measure import Unit
from hw.vector.unit import VectorUnit

__all__ = ["UNITS"]

_ENGINE = EngineConfig(target="ecp5")
_BOTH_WALKS = EngineConfig(target="ecp5", row_columns=1024)
#: All lanes leave at once, so there is no multiplexer: what the engine costs without its drain.
_NO_WRITE_BACK = EngineConfig(target="ecp5", result_lanes=64)
_ACCELERATOR = AcceleratorConfig(engine=_ENGINE)
_ATTENTION = AcceleratorConfig(engine=_ENGINE, context=2048)
_PORT = {"address_width": _ACCELERATOR.address_width, "port_bytes": _ACCELERATOR.port_bytes}

# Wide multiplexers of LUTs are faster, but take twice the LUTs where tables are not that wide.
_SMALL = "-nowidelut"
# The more weight on timing, the closer the lanes to their block RAMs.
_TIMING = "--placer-heap-timingweight 40"

_NO_DSP = Bar("dsp", "<=", 0)


def _area_per_lane(most: float) -> Bar:
    return Bar("lut4_eq_per_lane", "<=", most)


def _clock(least: float) -> Bar:
    return Bar("fmax_mhz", ">=", least)


def _engine_units() -> dict[str, Unit]:
    """From lane-wide weight word to results, the gearbox in front of it, and the decoders alone."""
    placed = partial(Unit, format="5in8", lanes=64, clock_mhz=170, synthesis=_SMALL,
                     placement=_TIMING, floorplan=block_ram_site)
    units = {
        "engine": placed(unit="ternary engine", build=partial(TernaryEngine, _ENGINE),
                         bars=(_area_per_lane(44), _clock(150), _NO_DSP)),
        "engine-both-walks": placed(unit="engine, both walks",
                                    build=partial(TernaryEngine, _BOTH_WALKS),
                                    bars=(_area_per_lane(65), _NO_DSP)),
        "engine-no-drain": placed(unit="ternary engine, no drain multiplexer",
                                  build=partial(TernaryEngine, _NO_WRITE_BACK),
                                  bars=(_area_per_lane(36),)),
        "engine-generic": Unit(unit="ternary engine, inferred", format="5in8", lanes=64,
                               build=partial(TernaryEngine, EngineConfig()), clock_mhz=150),
        "gearbox": Unit(unit="gearbox", format="8 to 13 bytes", build=partial(Gearbox, _ENGINE),
                        lanes=64, clock_mhz=170, bars=(_area_per_lane(12),)),
    }
    trits = 60      # a multiple of every packing's trits
    for name in PACKINGS:
        units[f"decoder-{name}"] = Unit(
            unit="trit decoder", format=name, trits=trits, clock_mhz=220, synthesis=_SMALL,
            build=partial(TritDecoder, packing=name, lanes=trits, target="ecp5"),
            bars=(Bar("lut4_per_trit", "<=", 8), _clock(200), Bar("block_ram", "<=", 0)))
    return units


def _lmul_units() -> dict[str, Unit]:
    """L-Mul beside the exact multiplier, each as specified and without special values.

    Such a unit saturates, and does not recognize operands that are infinity or NaN.
    """
    bars_of = {"e4m3": (Bar("lut4_eq", "<=", 36), _clock(260)),
               "bf16": (Bar("lut4_eq", "<=", 72), _clock(235))}
    units = {}
    for name, fmt in FORMATS.items():
        for unit, component in (("lmul", LMul), ("exact multiplier", ExactMultiplier)):
            key = f"{unit.split()[0]}-{name}"
            bars = bars_of.get(name, ()) if component is LMul else ()
            units[key] = Unit(unit=unit, format=name, build=partial(component, fmt),
                              clock_mhz=300, bars=bars)
            units[f"{key}-no-specials"] = Unit(
                unit=f"{unit}, without special values", format=name, clock_mhz=300, bars=bars,
                build=partial(component, fmt, saturate=True, specials=False))
    for fmt in (e4m3, e5m2, bf16):
        units[f"lmul-dot-{fmt.name}"] = Unit(unit="lmul dot product", format=fmt.name,
                                             build=partial(LMulDot, fmt))
    return units


#: Every unit by the name that the command line takes.
UNITS: dict[str, Unit] = {
    **_engine_units(),
    **_lmul_units(),
    "bf16-adder": Unit(unit="bf16 adder", format="bf16", build=Bf16Adder, clock_mhz=150),
    "vector-unit": Unit(unit="vector unit", format="bf16", lanes=_ACCELERATOR.vector_lanes,
                        build=partial(VectorUnit, _ACCELERATOR), clock_mhz=150,
                        bars=(_clock(100),)),
    "quantizer": Unit(unit="quantizer", format="bf16 to int8", lanes=_ACCELERATOR.vector_lanes,
                      clock_mhz=150, bars=(_clock(100),), build=partial(Quantizer, _ACCELERATOR)),
    "scale": Unit(unit="scale", format="int24 to bf16", lanes=_ACCELERATOR.vector_lanes,
                  clock_mhz=150, bars=(_clock(100),), build=partial(ScaleUnit, _ACCELERATOR)),
    "read-engine": Unit(unit="read engine", format="8 bytes",
                        build=partial(ReadEngine, _ACCELERATOR), clock_mhz=150, bars=(_clock(95),)),
    "block-ram-memory": Unit(unit="block RAM memory", format="256 KiB, 16 bytes", clock_mhz=150,
                             build=partial(BlockRamMemory, address_width=18, port_bytes=16,
                                           depth=2 ** 14, target="ecp5"), bars=(_clock(95),)),
    "axi4": Unit(unit="AXI4 manager", format="8 bytes", build=partial(Axi4Master, **_PORT),
                 clock_mhz=150, bars=(_clock(95),)),
    "sdram": Unit(unit="SDRAM controller", format="x16, 4 bytes", clock_mhz=170,
                  bars=(Bar("lut4_eq", "<=", 900), _clock(140), Bar("block_ram", "<=", 2)),
                  build=partial(SdramController, chip=SdramChip(cas_latency=3),
                                clock_hz=133_000_000, address_width=25, port_bytes=4,
                                target="ecp5")),
    "dispatch": Unit(unit="dispatch and decoder", format="", build=partial(Dispatch, _ACCELERATOR),
                     clock_mhz=150, bars=(_clock(95),)),
    "top-k": Unit(unit="top-k", format="int24", build=partial(TopK, _ACCELERATOR),
                  lanes=_ACCELERATOR.vector_lanes, clock_mhz=150, bars=(_clock(95),),
                  synthesis=_SMALL),
    "sparse-vector-memory": Unit(unit="sparse vector memory", format="TwELL tiles", clock_mhz=120,
                                 bars=(_clock(85),),
                        build=partial(SparseVectorMemory, _ACCELERATOR)),
    "sparsity-policy": Unit(unit="sparsity policy", format="int8 and norms", clock_mhz=120,
                            bars=(_clock(85),), build=partial(SparsityPolicy, _ACCELERATOR)),
    "attention": Unit(unit="attention", format="bf16 and e4m3", clock_mhz=120, bars=(_clock(80),),
                      lanes=_ATTENTION.attention_heads * _ATTENTION.attention_elements,
                      build=partial(AttentionUnit, _ATTENTION), synthesis=_SMALL),
}
