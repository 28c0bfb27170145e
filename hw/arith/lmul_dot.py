# Ref: H. Luo, W. Sun, "Addition is All You Need for Energy-efficient Language Models", 2024
# Id: arXiv:2410.00907

"""Dot product of L-Mul products, independent of the order, rounded once."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.arith.lmul import wide_product
from hw.arith.product import finish
from hw.check import positive_int
from hw.common.pipeline import Pipeline
from hw.formats.minifloat import DEFAULT_WINDOW, WINDOWS, MiniFloat, bf16

__all__ = ["LMulDot"]


class LMulDot(wiring.Component):
    """Dot product of L-Mul products as bf16.

    .. code-block:: text

        o.sum = lmul_dot(fmt, x, y, offset=, window=, bound=, saturate=)      (sim.golden.lmul)

    A product enters the sum as an integer of ``window`` bits: its significand, shifted down from
    the top by the distance of its exponent from the bound, and truncated towards zero. For e4m3 and
    e5m2 the bound is that of the format and the window spans every product, so nothing is
    truncated; for bf16 the bound comes with each dot product.

    Latency from the last pair to the sum is ``latency`` cycles; throughput is 1 pair a cycle, dot
    products back to back. ``i.ready`` depends combinationally on ``o.ready`` and ``i_bound.valid``,
    ``i_bound.ready`` on ``o.ready``, ``i.valid`` and ``i.payload``.

    Parameters
    ----------
    fmt : MiniFloat
        ``e4m3``, ``e5m2`` or ``bf16``.
    offset : int, optional
        Units of the last place, as :meth:`MiniFloat.constant` takes it.
    window : int
        Bits of a product of bf16 in the sum, one of :data:`hw.formats.minifloat.WINDOWS`.
    max_length : int
        Most pairs of a dot product. Beyond it, the sum may overflow.
    saturate : bool
        Deliver the largest finite number of its sign on overflow, not infinity.

    Members
    -------
    i : In(stream) of {x: fmt.width, y: fmt.width, last: 1}
        Pairs; ``last`` ends a dot product.
    i_bound : In(stream) of {bound: signed(10)}
        For bf16 only: largest exponent field of a product, one for each dot product, taken with its
        last pair and needed from its first.
    o : Out(stream) of {sum: 16}
        One bf16 number for each dot product.

    Raises
    ------
    ValueError
        If the format has no dot product, or a number is out of range.
    """

    i: stream.Interface
    i_bound: stream.Interface
    o: stream.Interface

    def __init__(self, fmt: MiniFloat, *, offset: int | None = None, window: int = DEFAULT_WINDOW,
                 max_length: int = 4096, saturate: bool = False):
        if fmt.width > 8 and fmt != bf16:
            raise ValueError("Format of a dot product must be e4m3, e5m2 or bf16, "
                             f"not {fmt.name}")
        if window not in WINDOWS:
            raise ValueError(f"Window must be in {WINDOWS[0]}..{WINDOWS[-1]}, not {window!r}")
        self.fmt = fmt
        self.constant = fmt.constant(offset)
        self.max_length = positive_int("Longest dot product", max_length)
        self.saturate = saturate
        # Exponent fields of the largest product and of the smallest: two smallest normal numbers.
        self.bound = (2 * fmt.largest_finite - self.constant) >> fmt.mantissa_bits
        if fmt == bf16:
            self.window = window
        else:
            self.window = self.bound - (2 - fmt.bias) + fmt.mantissa_bits + 1
        # |sum| <= max_length * (2**window - 1)
        self.growth = ceil_log2(max_length)
        self.latency = 12 + ceil_log2(self.window + self.growth)

        members: dict = {
            "i": In(stream.Signature(data.StructLayout(
                {"x": fmt.width, "y": fmt.width, "last": 1}))),
            "o": Out(stream.Signature(data.StructLayout({"sum": bf16.width}))),
        }
        if fmt == bf16:
            members["i_bound"] = In(stream.Signature(data.StructLayout({"bound": signed(10)})))
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        fmt, bits, window = self.fmt, self.fmt.mantissa_bits, self.window
        width = window + self.growth
        enable, valid = Signal(), Signal()
        m.d.comb += enable.eq(self.o.ready | ~self.o.valid)
        if fmt == bf16:
            given = {"bound": self.i_bound.p.bound}
            m.d.comb += [
                valid.eq(self.i.valid & self.i_bound.valid),
                self.i.ready.eq(enable & self.i_bound.valid),
                self.i_bound.ready.eq(enable & self.i.valid & self.i.p.last),
            ]
        else:
            given = {}
            m.d.comb += [
                valid.eq(self.i.valid),
                self.i.ready.eq(enable),
            ]

        def beside(at, *names):
            """Values that a step takes along; a bound that is fixed needs no registers."""
            return {name: getattr(at, name) for name in (*names, *given)}

        # From operands to a term of the sum: 5 steps.
        pipeline = Pipeline(m, enable=enable, valid=valid)
        at = wide_product(pipeline, fmt, self.i.p.x, self.i.p.y, constant=self.constant,
                          last=self.i.p.last, **given)
        nothing = at.zero | at.special
        bound = at.bound if given else C(self.bound)
        at = pipeline.step(
            **beside(at, "sign", "last"), shift=bound - at.result[bits:].as_signed(),
            significand=Mux(nothing, 0, Cat(at.result[:bits], C(1))), nothing=nothing,
            infinite=at.special & ~at.zero, nan=at.nan.any() | (at.special & at.zero))

        # The shift takes two steps, the first by multiples of 8. A shift beyond the window leaves
        # nothing; a negative one is that of a product above the bound.
        aligned = Cat(C(0, window - bits - 1), at.significand)
        amount = at.shift[:ceil_log2(window)]
        at = pipeline.step(
            **beside(at, "sign", "last", "infinite"), amount=amount[:3],
            term=Mux(at.shift >= window, 0, aligned >> Cat(C(0, 3), amount[3:])),
            nan=at.nan | (at.shift[-1] & ~at.nothing))
        term = at.term >> at.amount
        at = pipeline.step(**beside(at, "sign", "last", "infinite", "nan"),
                           term=Mux(at.sign, ~term, term))

        # The sum, and the flags of the products in it. The sign of a term is also the carry that
        # completes its negation.
        first = Signal(init=1)
        total = Signal(signed(width + 1))
        nan, plus, minus = Signal(), Signal(), Signal()
        done = Signal()
        base = Mux(first, 0, total)
        with m.If(enable):
            m.d.sync += done.eq(at.valid & at.last)
            with m.If(at.valid):
                m.d.sync += [
                    first.eq(at.last),
                    total.eq((Cat(at.sign, base).as_signed()
                              + Cat(at.sign, at.term, at.sign).as_signed())[1:]),
                    nan.eq((nan & ~first) | at.nan),
                    plus.eq((plus & ~first) | (at.infinite & ~at.sign)),
                    minus.eq((minus & ~first) | (at.infinite & at.sign)),
                ]
        if given:
            bound = Signal.like(at.bound)
            with m.If(enable):
                m.d.sync += bound.eq(at.bound)

        # From the sum to bf16: its magnitude, a shift by halving steps until the leading one is on
        # top, rounding, and the ends of the range.
        pipeline = Pipeline(m, enable=enable, valid=done)
        special = nan | plus | minus
        no_number = nan | (plus & minus)
        at = pipeline.step(
            sign=Mux(special, minus, total[-1]) & ~no_number, special=special, nan=no_number,
            magnitude=Mux(total[-1], -total, total)[:width],
            exponent=bound + (self.growth + bf16.bias - fmt.bias))
        for k in reversed(range(ceil_log2(width))):
            low = ~at.magnitude[-(1 << k):].any()
            at = pipeline.step(
                sign=at.sign, special=at.special, nan=at.nan,
                magnitude=Mux(low, at.magnitude.shift_left(1 << k)[:width], at.magnitude),
                exponent=(at.exponent - low.shift_left(k))[:12].as_signed())
        rest = width - bf16.mantissa_bits - 1
        at = pipeline.step(
            sign=at.sign, special=at.special, nan=at.nan, zero=~at.magnitude[-1] & ~at.special,
            up=at.magnitude[rest - 1] & (at.magnitude[:rest - 1].any() | at.magnitude[rest]),
            result=Cat(at.magnitude[rest:-1], at.exponent).as_signed())
        at = pipeline.step(sign=at.sign, special=at.special, nan=at.nan, zero=at.zero,
                           result=at.result + at.up)
        at = finish(pipeline, bf16, at, saturate=self.saturate)
        m.d.comb += [
            self.o.valid.eq(at.valid),
            self.o.p.sum.eq(at.product),
        ]
        return m
