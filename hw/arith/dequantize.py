"""Integers of the engine become bf16 numbers: S of docs/numerics.md."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.arith.bf16_add import leading_one
from hw.arith.product import finish
from hw.common.pipeline import Pipeline
from hw.common.word import word_layout
from hw.config import AcceleratorConfig
from hw.engine.result_queue import result_layout
from hw.formats.minifloat import bf16

__all__ = ["LATENCY", "ScaleUnit"]

#: Cycles through the unit.
LATENCY = 10

_BITS = bf16.mantissa_bits


class ScaleUnit(wiring.Component):
    """Integers times a bf16 number times a power of two, rounded once.

    .. code-block:: text

        o.word[lane] = bf16(i.values[lane] * factor * 2**exponent)  (sim.golden.dequantize.scale)

    The significand of the factor is recoded to five digits of -2 to 2, so the product is five
    shifted additions. Latency is :data:`LATENCY` cycles; throughput is 1 transfer a cycle.
    ``i.ready`` depends combinationally on ``o.ready``.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    i : In(stream) of :func:`hw.engine.result_queue.result_layout`
        Integers, and the mark of a product's last transfer.
    factor : In(16)
    exponent : In(signed(11))
        Both go with each transfer as it is accepted.
    o : Out(stream) of {word: word_layout, last: 1}
    under_way : Out(1)
        There are transfers in the unit.
    """

    i: stream.Interface
    factor: Signal
    exponent: Signal
    o: stream.Interface
    under_way: Signal

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__({
            "i": In(stream.Signature(result_layout(config.engine))),
            "factor": In(bf16.width), "exponent": In(signed(11)),
            "o": Out(stream.Signature(data.StructLayout(
                {"word": word_layout(config), "last": 1}))),
            "under_way": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        enable = Signal()
        m.d.comb += [
            enable.eq(self.o.ready | ~self.o.valid),
            self.i.ready.eq(enable),
        ]
        last = self.i.p.last
        for step in range(LATENCY):
            later = Signal(name=f"last_{step}")
            with m.If(enable):
                m.d.sync += later.eq(last)
            last = later
        m.d.comb += self.o.p.last.eq(last)
        valid = Signal(LATENCY)
        with m.If(enable):
            m.d.sync += valid.eq(Cat(self.i.valid, valid))
        m.d.comb += self.under_way.eq(valid.any())
        for lane in range(self.config.vector_lanes):
            pipeline = Pipeline(m, enable=enable, valid=self.i.valid)
            at = self._scaled(pipeline, self.i.p.values[lane])
            m.d.comb += self.o.p.word[lane].eq(at.product)
        m.d.comb += self.o.valid.eq(at.valid)
        return m

    def _scaled(self, pipeline: Pipeline, value: Value):
        width = len(value)
        levels = ceil_log2(width)
        factor = self.factor
        exponent = factor[_BITS:bf16.magnitude_width]
        at = pipeline.step(
            sign=value[-1] ^ factor[-1], magnitude=Mux(value[-1], -value, value)[:width],
            factor=factor[:-1], exponent=exponent + self.exponent)

        # Leading one of the integer to the top. The field is that of a product in [1, 2).
        magnitude, shift = leading_one(at.magnitude, range(levels - 2, levels))
        special = at.factor[_BITS:].all()
        at = pipeline.step(
            sign=at.sign, magnitude=magnitude, significand=Cat(at.factor[:_BITS], C(1)),
            exponent=(at.exponent + width - 1 - (shift << levels - 2))[:13].as_signed(),
            special=special, nan=special & at.factor[:_BITS].any(), zero=~at.factor[_BITS:].any())
        magnitude, shift = leading_one(at.magnitude, range(levels - 2))
        zero = at.zero | ~magnitude[-1]
        nan = at.nan | (at.special & zero)
        at = pipeline.step(
            sign=at.sign & ~nan, magnitude=magnitude, significand=at.significand,
            exponent=(at.exponent - shift)[:13].as_signed(), special=at.special, nan=nan, zero=zero)

        rows = self._rows(at.magnitude, at.significand)
        along = {name: getattr(at, name) for name in ("sign", "exponent", "special", "nan", "zero")}
        at = pipeline.step(**along, low=rows[0] + rows[1], high=rows[2] + rows[3], top=rows[4])
        along = {name: getattr(at, name) for name in along}
        at = pipeline.step(**along, low=at.low, high=at.high + at.top)
        along = {name: getattr(at, name) for name in along}
        at = pipeline.step(**along, product=(at.low + at.high)[:width + _BITS + 1])

        # The product is in [1, 4): one bit more is rounded off from 2 on.
        above, rest = at.product[-1], width - 1
        fraction = Mux(above, at.product[rest + 1:-1], at.product[rest:-2])
        half = Mux(above, at.product[rest], at.product[rest - 1])
        sticky = at.product[:rest - 1].any() | (above & at.product[rest - 1])
        up = half & (sticky | fraction[0])
        at = pipeline.step(
            sign=at.sign, special=at.special, nan=at.nan, zero=at.zero,
            result=Cat(fraction, (at.exponent + above)[:13]).as_signed() + up)
        return finish(pipeline, bf16, at, saturate=False)

    @staticmethod
    def _rows(x: Value, significand: Value) -> list[Value]:
        """Multiples of ``x`` that add up to the product, modulo its width.

        The digit at ``4**k`` is ``b[2k] + b[2k-1] - 2 b[2k+1]``. A negative one is the complement
        of its multiple, and a one in a place that the next row leaves empty. The bit on top of the
        significand is 1, so the fifth digit is 1.
        """
        width = len(x)
        rows: list[Value] = []
        bits = Cat(C(0, 1), significand)
        carry: Value = C(0, 1)
        for k in range(len(significand) // 2):
            below, low, negative = bits[2 * k], bits[2 * k + 1], bits[2 * k + 2]
            once = low ^ below
            twice = (low == below) & (low ^ negative)
            multiple = (x & once.replicate(width)) | (x & twice.replicate(width)) << 1
            row = Cat(multiple ^ negative.replicate(width + 1), negative)
            if k:
                row = Cat(C(0, 2 * k - 2), carry, C(0, 1), row)
            rows.append(row.as_signed())
            carry = negative
        rows.append(Cat(C(0, len(significand) - 2), carry, C(0, 1), x, C(0, 1)).as_signed())
        return rows
