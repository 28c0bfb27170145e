"""An exact floating-point multiplier, rounded once: what L-Mul is compared with."""

from amaranth import *
from amaranth.lib import stream, wiring

from hw.arith.product import classes, finish, operand_groups, product_members
from hw.common.pipeline import Pipeline
from hw.formats.minifloat import MiniFloat

__all__ = ["ExactMultiplier"]


class ExactMultiplier(wiring.Component):
    """Product of two floating-point numbers, rounded to nearest even.

    .. code-block:: text

        o.product = exact_product(fmt, i.x, i.y)                 (sim.golden.lmul)

    Zeros, overflow, infinity and NaN as :class:`hw.arith.lmul.LMul` treats them, by the same logic,
    so that the two differ in the product alone.

    The significands are multiplied by a tree of additions, one level a step. Latency is ``latency``
    cycles, 6 and one for each level: 8 for e4m3, 9 for bf16. Throughput is 1 product a cycle.
    ``i.ready`` depends combinationally on ``o.ready``.

    Parameters
    ----------
    fmt : MiniFloat
        Format of operands and product.
    saturate : bool
        Deliver the largest finite number on overflow, not infinity.
    specials : bool
        Recognize infinity and NaN operands. Without it, they must not occur.

    Members
    -------
    i : In(stream) of {x: fmt.width, y: fmt.width}
        Operands.
    o : Out(stream) of {product: fmt.width}
        One product for each pair.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, fmt: MiniFloat, *, saturate: bool = False, specials: bool = True):
        self.fmt = fmt
        self.saturate = saturate
        self.specials = specials
        self.latency = 6 + fmt.mantissa_bits.bit_length()
        super().__init__(product_members(fmt))

    def elaborate(self, platform):
        m = Module()
        fmt, bits = self.fmt, self.fmt.mantissa_bits
        enable = Signal()
        m.d.comb += [
            enable.eq(self.o.ready | ~self.o.valid),
            self.i.ready.eq(enable),
        ]
        pipeline = Pipeline(m, enable=enable, valid=self.i.valid)

        # A row is a multiple of x for one bit of y. All have the width of the product, which no sum
        # of rows exceeds; constant zeros cost nothing.
        x, y = self.i.p.x, self.i.p.y
        width = 2 * bits + 2
        rows = [Mux(bit, Cat(C(0, k), x[:bits], 1), C(0, width))
                for k, bit in enumerate(Cat(y[:bits], 1))]
        at = pipeline.step(
            sign=x[-1] ^ y[-1], exponent=x[bits:-1] + y[bits:-1], **operand_groups(fmt, x, y),
            rows=Cat(rows))
        beside = {"exponent": at.exponent - fmt.bias, **classes(fmt, at, specials=self.specials)}
        while len(at.rows) > width:
            rows = [at.rows[k:k + width] for k in range(0, len(at.rows), width)]
            sums = [sum(rows[k:k + 2], C(0))[:width] for k in range(0, len(rows), 2)]
            at = pipeline.step(sign=at.sign, **beside, rows=Cat(sums))
            beside = {name: getattr(at, name) for name in beside}

        # The product of the significands is in [1, 4): one bit more is rounded off from 2 on.
        high, half = at.rows[-1], at.rows[bits - 1]
        at = pipeline.step(
            sign=at.sign, exponent=at.exponent + high,
            fraction=Mux(high, at.rows[bits + 1:-1], at.rows[bits:-2]),
            half=Mux(high, at.rows[bits], half), rest=at.rows[:bits - 1].any() | (high & half),
            zero=at.zero, special=at.special, nan=at.nan)

        # A carry out of the fraction moves on into the exponent, as it must.
        up = at.half & (at.rest | at.fraction[0])
        result = Cat(at.fraction, at.exponent).as_signed() + up
        at = pipeline.step(sign=at.sign, result=result[:fmt.magnitude_width + 2].as_signed(),
                           zero=at.zero, special=at.special, nan=at.nan)
        at = finish(pipeline, fmt, at, saturate=self.saturate)
        m.d.comb += [
            self.o.valid.eq(at.valid),
            self.o.p.product.eq(at.product),
        ]
        return m
