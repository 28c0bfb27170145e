"""Sum of two bf16 numbers, exact and rounded once."""

from types import SimpleNamespace

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.arith.product import finish
from hw.common.pipeline import Pipeline
from hw.formats.minifloat import bf16

__all__ = ["LATENCY", "Bf16Adder", "leading_one"]

#: Cycles through the unit.
LATENCY = 10

_BITS = bf16.mantissa_bits
# Below the last place of the larger number: a guard bit, a rounding bit, and one for all the rest.
_EXTRA = 3


def leading_one(magnitude: Value, levels: range) -> tuple[Value, Value]:
    """Shift a number up by ``2**k`` for each of ``levels``, from the largest ``k`` down, if it can.

    Returns
    -------
    shifted : Value
        As wide as ``magnitude``.
    shift : Value
        By how much, in units of the smallest level.
    """
    width, taken = len(magnitude), []
    for k in reversed(levels):
        low = ~magnitude[-(1 << k):].any()
        magnitude = Mux(low, magnitude.shift_left(1 << k)[:width], magnitude)
        taken.append(low)
    return magnitude, Cat(reversed(taken))


class Bf16Adder(wiring.Component):
    """Sum or difference of two bf16 numbers: :func:`sim.golden.bf16.add`, bit for bit.

    Latency is :data:`LATENCY` cycles; throughput is 1 sum a cycle. ``i.ready`` depends
    combinationally on ``o.ready``.

    Members
    -------
    i : In(stream) of {x: 16, y: 16, subtract: 1}
        Operands; ``y`` is negated if ``subtract``.
    o : Out(stream) of {sum: 16}
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self):
        super().__init__({
            "i": In(stream.Signature(data.StructLayout(
                {"x": bf16.width, "y": bf16.width, "subtract": 1}))),
            "o": Out(stream.Signature(data.StructLayout({"sum": bf16.width}))),
        })

    def elaborate(self, platform):
        m = Module()
        enable = Signal()
        m.d.comb += [
            enable.eq(self.o.ready | ~self.o.valid),
            self.i.ready.eq(enable),
        ]
        pipeline = Pipeline(m, enable=enable, valid=self.i.valid)
        at = self._sum(pipeline, self.i.p.x, self.i.p.y, self.i.p.subtract)
        m.d.comb += [
            self.o.valid.eq(at.valid),
            self.o.p.sum.eq(at.product),
        ]
        return m

    @staticmethod
    def _sum(pipeline: Pipeline, x: Value, y: Value, subtract: Value) -> SimpleNamespace:
        exponent = slice(_BITS, bf16.magnitude_width)
        at = pipeline.step(
            x=x, y=y ^ Cat(C(0, bf16.magnitude_width), subtract), swap=y[:-1] > x[:-1],
            **{f"{name}_{operand}": value for operand, word in (("x", x), ("y", y))
               for name, value in (("normal", word[exponent].any()),
                                   ("special", word[exponent].all()),
                                   ("fraction", word[:_BITS].any()))})

        # The number with the larger magnitude, and the other one. A subnormal number is zero.
        large, small = Mux(at.swap, at.y, at.x), Mux(at.swap, at.x, at.y)
        large_normal = at.normal_x | at.normal_y
        small_normal = Mux(at.swap, at.normal_x, at.normal_y)
        opposite = at.x[-1] ^ at.y[-1]
        nan = ((at.special_x & at.fraction_x) | (at.special_y & at.fraction_y)
               | (at.special_x & at.special_y & opposite))
        at = pipeline.step(
            sign=large[-1] & ~nan, opposite=opposite, negative=at.x[-1] & at.y[-1],
            special=at.special_x | at.special_y, nan=nan, exponent=large[exponent],
            large=Cat(large[:_BITS], C(1)) & large_normal.replicate(_BITS + 1),
            small=Cat(small[:_BITS], C(1)) & small_normal.replicate(_BITS + 1),
            distance=(large[exponent] - small[exponent])[:bf16.exponent_bits])

        # Bits of the smaller number that its shift loses become one. The three extra bits are
        # enough: a difference of more than 3 shifts by at most one place when it is normalized.
        near, far = at.distance[:4], at.distance[4:].any()
        lost = Cat(at.small[k] & (near > k + _EXTRA) for k in range(_BITS + 1)).any()
        kept = Cat(C(0, _EXTRA), at.small) >> near
        at = pipeline.step(
            sign=at.sign, opposite=at.opposite, negative=at.negative, special=at.special,
            nan=at.nan, exponent=at.exponent, large=at.large,
            small=Cat(Mux(far, at.small[-1], kept[0] | lost),
                      Mux(far, 0, kept[1:])[:_BITS + _EXTRA]))

        # The lowest bit is the carry that completes a negation.
        width = _BITS + 1 + _EXTRA
        total = (Cat(at.opposite, C(0, _EXTRA), at.large)
                 + Cat(at.opposite, at.small ^ at.opposite.replicate(width)))[1:]
        at = pipeline.step(
            sign=at.sign, negative=at.negative, special=at.special, nan=at.nan,
            exponent=at.exponent, total=Cat(total[:width], total[width] & ~at.opposite))

        total, shift = leading_one(at.total, range(2, 4))
        at = pipeline.step(
            sign=at.sign, negative=at.negative, special=at.special, nan=at.nan,
            exponent=(at.exponent + 1 - (shift << 2))[:10].as_signed(), total=total)
        total, shift = leading_one(at.total, range(2))
        at = pipeline.step(
            sign=at.sign, negative=at.negative, special=at.special, nan=at.nan,
            exponent=(at.exponent - shift)[:10].as_signed(), total=total)

        # A difference of zero is +0; two zeros of one sign keep it.
        rest = len(at.total) - _BITS - 1
        zero = ~at.total[-1] & ~at.special
        up = at.total[rest - 1] & (at.total[:rest - 1].any() | at.total[rest])
        at = pipeline.step(
            sign=Mux(zero, at.negative, at.sign), zero=zero, special=at.special, nan=at.nan,
            result=Cat(at.total[rest:-1], at.exponent).as_signed() + up)
        return finish(pipeline, bf16, at, saturate=False)
