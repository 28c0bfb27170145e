"""Conversions between bf16 and e4m3, the two formats of a cache."""

from amaranth import *

from hw.formats.minifloat import bf16, e4m3

__all__ = ["expanded", "rounded"]

_DROP = bf16.mantissa_bits - e4m3.mantissa_bits
_REBIAS = (bf16.bias - e4m3.bias) << e4m3.mantissa_bits


def expanded(byte: Value) -> Value:
    """Return the bf16 number of one of e4m3; subnormal numbers become zero."""
    exponent = byte[e4m3.mantissa_bits:e4m3.magnitude_width]
    field = (exponent + (bf16.bias - e4m3.bias))[:bf16.exponent_bits]
    normal = exponent.any()
    magnitude = Cat(C(0, _DROP), byte[:e4m3.mantissa_bits], field)
    return Cat(magnitude & normal.replicate(bf16.magnitude_width), byte[-1])


def rounded(number: Value) -> Value:
    """Return a finite bf16 number as one of e4m3: :func:`sim.golden.attention.to_cache`."""
    magnitude = number[:bf16.magnitude_width]
    # Ties go to even: half a unit less one, and one more for an odd unit.
    total = (magnitude + ((1 << (_DROP - 1)) - 1) + magnitude[_DROP])[_DROP:] - _REBIAS
    return Cat(Mux(total < e4m3.smallest_normal, 0,
                   Mux(total > e4m3.largest_finite, e4m3.largest_finite,
                       total[:e4m3.magnitude_width])), number[-1])
