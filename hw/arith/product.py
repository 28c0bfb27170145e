"""What L-Mul and the exact multiplier share: classes of operands, and the ends of the range."""

from types import SimpleNamespace

from amaranth import *
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from hw.common.pipeline import Pipeline
from hw.formats.minifloat import MiniFloat

__all__ = ["check_latency", "classes", "finish", "operand_groups", "product_members"]


def product_members(fmt: MiniFloat) -> dict:
    """Return the streams of a unit that multiplies: pairs in, products out."""
    return {
        "i": In(stream.Signature(data.StructLayout({"x": fmt.width, "y": fmt.width}))),
        "o": Out(stream.Signature(data.StructLayout({"product": fmt.width}))),
    }


def check_latency(latency: int, longest: int) -> int:
    """Return ``latency`` if a unit can have it, or raise ``ValueError``."""
    if latency not in range(1, longest + 1):
        raise ValueError(f"Latency must be in 1..{longest}, not {latency!r}")
    return latency


# A reduction over many bits takes two steps, in groups that one LUT4 holds: synthesis for speed
# would otherwise make it of wide multiplexers, which are three times as large.

def _any(bits: Value, also: Value | None = None) -> Value:
    """Tell of each group of ``bits`` whether one of them, or ``also``, is set."""
    if also is None:
        return Cat(bits[k:k + 4].any() for k in range(0, len(bits), 4))
    return Cat(bits[k:k + 3].any() | also for k in range(0, len(bits), 3))


def _all(bits: Value) -> Value:
    """Tell of each group of ``bits`` whether all are set."""
    return Cat(bits[k:k + 4].all() for k in range(0, len(bits), 4))


def _special_bits(fmt: MiniFloat, word: Value) -> Value:
    """Bits that are all ones in infinity and NaN."""
    return word[fmt.mantissa_bits if fmt.has_infinity else 0:fmt.magnitude_width]


def operand_groups(fmt: MiniFloat, x: Value, y: Value) -> dict[str, Value]:
    """Return the first step of the operands' classes, which :func:`classes` completes."""
    groups = {}
    for name, word in (("x", x), ("y", y)):
        groups[f"normal_{name}"] = _any(word[fmt.mantissa_bits:fmt.magnitude_width])
        groups[f"special_{name}"] = _all(_special_bits(fmt, word))
        groups[f"fraction_{name}"] = _any(word[:fmt.mantissa_bits])
    return groups


def classes(fmt: MiniFloat, at: SimpleNamespace, *, specials: bool) -> dict[str, Value]:
    """Return the classes of two operands from their groups.

    Returns
    -------
    dict
        ``zero``: one is zero or subnormal; ``special``: one is infinity or NaN; ``nan``: some flag
        is set if one is NaN. Without ``specials`` the last two are constants.
    """
    special = Cat(at.special_x.all(), at.special_y.all()) if specials else C(0, 2)
    if fmt.has_infinity:
        nan = special & Cat(at.fraction_x.any(), at.fraction_y.any())
    else:
        nan = special.any()
    return {"zero": ~(at.normal_x.any() & at.normal_y.any()), "special": special.any(), "nan": nan}


def finish(pipeline: Pipeline, fmt: MiniFloat, at: SimpleNamespace, *,
           saturate: bool) -> SimpleNamespace:
    """Add three steps to ``pipeline`` that bring a product into the range of its format.

    Parameters
    ----------
    pipeline : Pipeline
    fmt : MiniFloat
    at : namespace
        ``sign``; ``result``, signed and wider than a magnitude, which is the product's where that
        is in range; and the classes of the operands.
    saturate : bool
        Deliver the largest finite number on overflow even where there is infinity.

    Returns
    -------
    namespace
        ``product`` and ``valid``.
    """
    width = fmt.magnitude_width
    # A negative result may look large or normal: it is taken for a zero, which wins over large.
    at = pipeline.step(
        sign=at.sign, magnitude=at.result[:width],
        zero=(at.zero | at.result[-1]) & ~at.special,
        normal=_any(at.result[fmt.mantissa_bits:-1], at.special),
        large=_all(_special_bits(fmt, at.result)), over=at.result[width:-1].any() | at.special,
        special=at.special, nan=at.nan.any() | (at.special & at.zero))

    # What is over or special becomes one constant; only where both infinity and the largest finite
    # number occur is there anything to choose.
    limit = fmt.infinity if fmt.has_infinity and not saturate else fmt.largest_finite
    forced: Value = C(limit, width)
    if fmt.has_infinity and saturate:
        forced = Mux(at.special, C(fmt.infinity, width), forced)
    at = pipeline.step(
        {"magnitude": limit}, sign=at.sign, zero=at.zero | ~at.normal.any(), nan=at.nan,
        magnitude=Mux(at.over | at.large.all(), forced, at.magnitude))

    # NaN is one bit more than infinity, or than the largest finite number of a format without it.
    nan = at.nan << (fmt.mantissa_bits - 1 if fmt.has_infinity else 0)
    magnitude = Mux(at.zero, 0, at.magnitude | nan)[:width]
    return pipeline.step(product=Cat(magnitude, at.sign))
