"""Contents of the tables: correctly rounded functions of one bf16 argument, as plain data.

Between the rules of :data:`FIRST_EXPONENT` a table has a number for each argument; outside, the
function is a constant, x or x / 2. Tests compare every argument with
``sim.golden.function_table``. This module imports no Amaranth.
"""

import math
import struct

from hw.formats.minifloat import bf16

__all__ = ["EXPONENTS", "FIRST_EXPONENT", "function_words", "rsqrt_words"]

#: Exponent fields of which the table has every number. sigmoid and SiLU need 119 to 133: below
#: 2**-8 they are 1/2 and x/2 in bf16; from 2**7 on they are 0, 1, x or -0. One more makes 16, so
#: that the low bits of the field select them without an addition.
FIRST_EXPONENT = 118
EXPONENTS = 16

_FIELD_BITS = (EXPONENTS - 1).bit_length()


def _magnitude(value: float) -> int:
    """Round a number that is not negative to the nearest bf16 magnitude, ties to even."""
    drop = 52 - bf16.mantissa_bits
    bits = int.from_bytes(struct.pack(">d", value), "big")
    rounded = (bits + (1 << (drop - 1)) - 1 + (bits >> drop & 1)) >> drop
    magnitude = rounded - ((1023 - bf16.bias) << bf16.mantissa_bits)
    return magnitude if magnitude >= bf16.smallest_normal else 0


def _value(magnitude: int) -> float:
    """Value of the magnitude of a normal number."""
    m = bf16.mantissa_bits
    return math.ldexp((magnitude & ((1 << m) - 1)) + (1 << m), (magnitude >> m) - bf16.bias - m)


def function_words() -> list[int]:
    """Magnitudes of sigmoid(-x) and SiLU(x).

    The address is, from bit 0 up: mantissa field, low bits of the exponent field, sign, and 1 for
    SiLU. sigmoid is positive, SiLU has the sign of x.
    """
    m = bf16.mantissa_bits
    words = []
    for address in range(1 << (m + _FIELD_BITS + 2)):
        field = FIRST_EXPONENT + ((address >> m) - FIRST_EXPONENT) % EXPONENTS
        value = _value(field << m | address & ((1 << m) - 1))
        negative, silu = (address >> m + _FIELD_BITS + k & 1 for k in range(2))
        x = -value if negative else value
        words.append(_magnitude(value / (1 + math.exp(-x)) if silu else 1 / (1 + math.exp(x))))
    return words


def rsqrt_words() -> list[int]:
    """1 / sqrt(x) for x from 1 up to 4, as what its magnitude exceeds that of 1/2 by: 0 to 128.

    The address is the mantissa field and, above it, 1 for numbers from 2 on.
    """
    half = bf16.one - bf16.smallest_normal
    return [_magnitude(1 / math.sqrt(_value(bf16.one + address))) - half
            for address in range(2 << bf16.mantissa_bits)]
