"""The table of units that ``python -m hw.energy`` measures."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

from amaranth.lib import wiring

from hw.activations.quantizer import Quantizer
from hw.activations.sparsity import SparsityPolicy
from hw.arith.bf16_add import Bf16Adder
from hw.arith.exact import ExactMultiplier
from hw.arith.lmul import LMul
from hw.arith.lmul_dot import LMulDot
from hw.config import AcceleratorConfig, EngineConfig
from hw.energy import circuits, traces
from hw.energy.cells import FORMS
from hw.energy.measure import Trace
from hw.energy.traces import DOT_LENGTH, of_kinds
from hw.formats.minifloat import FORMATS, bf16, e4m3, fp16, fp32
from hw.formats.trits import PACKINGS
from hw.vector.lane import LMulLane

__all__ = ["UNITS", "Unit"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """One unit whose energy is measured.

    Attributes
    ----------
    unit, format : str
        Names in the table.
    operation : str
        What the energy is divided by the number of.
    build : callable
        Makes a new component.
    traces : callable
        Makes its traces, by the kind of operands.
    forms : tuple of str
        Forms of its multiplication that are tried, keys of :data:`hw.energy.cells.FORMS`; the one
        that takes least counts.
    """

    unit: str
    format: str
    operation: str
    build: Callable[[], wiring.Component]
    traces: Callable[[], Mapping[str, Trace]]
    forms: tuple[str, ...] = ("plain",)


_ALL_FORMS = tuple(FORMS)
_ACCELERATOR = AcceleratorConfig()
#: Its memories become flip-flops, for want of a memory in the libraries: the smallest that works.
_SELECTOR = AcceleratorConfig(
    engine=EngineConfig(lanes=4, result_lanes=2, index_width=9, port_bytes=1), vector_depth=128,
    list_depth=32)
_SELECTOR_LANES = 2


def _multipliers() -> dict[str, Unit]:
    """L-Mul beside the exact multiplier: between registers, and as pipelined units."""
    units = {}
    for name, fmt in FORMATS.items():
        for key, exact in (("lmul", False), ("exact", True)):
            units[f"{key}-{name}"] = Unit(
                unit="exact multiplier" if exact else "lmul", format=name, operation="product",
                build=partial(circuits.product, fmt, exact=exact),
                traces=of_kinds(traces.products, fmt, exact=exact),
                forms=_ALL_FORMS if exact else ("plain",))
    for fmt in (e4m3, bf16):
        for key, exact in (("lmul", False), ("exact", True)):
            units[f"{key}-pipelined-{fmt.name}"] = Unit(
                unit=f"{'exact multiplier' if exact else 'lmul'}, pipelined", format=fmt.name,
                operation="product", build=partial(ExactMultiplier if exact else LMul, fmt),
                traces=of_kinds(traces.streamed_products, fmt, exact=exact))
    return units


def _dot_products() -> dict[str, Unit]:
    """Multiply-accumulate units, on dot products of 64."""
    units = {}
    for fmt in (e4m3, fp16, bf16, fp32):
        for key, exact in (("lmul", False), ("exact", True)):
            units[f"dot-{key}-{fmt.name}"] = Unit(
                unit=f"{key} multiply-add into fp32", format=fmt.name,
                operation="multiply-add", forms=_ALL_FORMS if exact else ("plain",),
                build=partial(circuits.accumulated_floats, fmt, exact=exact),
                traces=of_kinds(traces.accumulated_floats, fmt, exact=exact))
    for fmt in (e4m3, bf16):
        units[f"dot-lmul-fixed-{fmt.name}"] = Unit(
            unit="lmul dot product in fixed point, pipelined", format=fmt.name,
            operation="multiply-add", build=partial(LMulDot, fmt, max_length=DOT_LENGTH),
            traces=of_kinds(traces.dot_products, fmt))
    for width in (4, 8):
        units[f"dot-int{width}"] = Unit(
            unit="multiply-add", format=f"int{width} times int8", operation="multiply-add",
            build=partial(circuits.accumulated_integers, width), forms=_ALL_FORMS,
            traces=of_kinds(traces.accumulated_integers, width))
    units["ternary-lane"] = Unit(
        unit="ternary lane", format="trit times int8", operation="multiply-add",
        build=circuits.accumulated_trits, traces=of_kinds(traces.accumulated_trits))
    return units


#: Every unit by the name that the command line takes.
UNITS: dict[str, Unit] = {
    **_multipliers(),
    "add-int32": Unit(unit="adder", format="int32", operation="sum",
                      build=partial(circuits.integer_sum, 32),
                      traces=of_kinds(traces.added_integers, 32)),
    "add-fp32": Unit(unit="adder", format="fp32", operation="sum", build=circuits.float_sum,
                     traces=of_kinds(traces.added_floats)),
    "add-bf16": Unit(unit="adder, pipelined", format="bf16", operation="sum", build=Bf16Adder,
                     traces=of_kinds(traces.streamed_sums)),
    **_dot_products(),
    **{f"decoder-{name}": Unit(
        unit="trit decoder", format=name, operation=f"code of {packing.trits} trits",
        build=partial(circuits.decoded_trits, name), traces=of_kinds(traces.decoded, name))
       for name, packing in PACKINGS.items()},
    "vector-lane": Unit(unit="L-Mul lane of the vector unit", format="bf16", operation="product",
                        build=LMulLane, traces=of_kinds(traces.lane_products)),
    "quantizer": Unit(unit="quantizer", format="bf16 to int8", operation="element",
                      build=partial(Quantizer, _ACCELERATOR),
                      traces=of_kinds(traces.quantized, _ACCELERATOR)),
    "sparsity-policy": Unit(
        unit="sparsity policy, memories of flip-flops", format="lists of 32", operation="entry",
        build=partial(SparsityPolicy, _SELECTOR, lanes=_SELECTOR_LANES),
        traces=of_kinds(traces.selected, _SELECTOR, _SELECTOR_LANES)),
}
