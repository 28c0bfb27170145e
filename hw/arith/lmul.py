# Ref: H. Luo, W. Sun, "Addition is All You Need for Energy-efficient Language Models", 2024
# Id: arXiv:2410.00907

"""L-Mul: a product of two floating-point numbers as one addition of their bits."""

from types import SimpleNamespace

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In

from hw.arith.product import check_latency, classes, finish, operand_groups, product_members
from hw.common.pipeline import Pipeline
from hw.formats.minifloat import MiniFloat

__all__ = ["LATENCY", "LMul", "wide_product"]

#: Cycles through the fully pipelined unit.
LATENCY = 5


def wide_product(pipeline: Pipeline, fmt: MiniFloat, x: Value, y: Value, *, constant: int | Value,
                 specials: bool = True, **along: Value) -> SimpleNamespace:
    """Add two steps to ``pipeline`` that make an L-Mul product before range checks.

    Parameters
    ----------
    pipeline : Pipeline
    fmt : MiniFloat
    x, y : Value
        Operands.
    constant : int or Value
        As :meth:`MiniFloat.constant` returns it.
    specials : bool
        Recognize infinity and NaN.
    along : Value
        More values to take through the steps.

    Returns
    -------
    namespace
        ``sign``; ``result``, signed, of two bits more than a magnitude; the flags of
        :func:`hw.arith.product.classes`; ``valid`` and the values of ``along``.
    """
    width = fmt.magnitude_width
    # An odd offset, static, is the carry into the first addition, which shortens the second.
    carry = (fmt.one - constant) & 1 if isinstance(constant, int) else 0
    at = pipeline.step(
        sign=x[-1] ^ y[-1],
        total=(Cat(C(carry, 1), x[:width]) + Cat(C(carry, 1), y[:width]))[1:],
        **operand_groups(fmt, x, y), **along)
    # From -one to 2 * (2**width - 1): a sign and width + 1 bits.
    return pipeline.step(
        sign=at.sign, result=(at.total - (constant + carry))[:width + 2].as_signed(),
        **classes(fmt, at, specials=specials), **{name: getattr(at, name) for name in along})


class LMul(wiring.Component):
    """L-Mul product of two floating-point numbers.

    .. code-block:: text

        |o.product| = |i.x| + |i.y| - fmt.constant(offset)        (integers; the sign is an xor)

    with zeros, subnormal numbers, overflow, infinity and NaN as :func:`sim.golden.lmul.lmul` has
    them.

    Latency is ``latency`` cycles; throughput is 1 product a cycle. ``i.ready`` depends
    combinationally on ``o.ready``. The full pipeline is also the smallest form: its last two steps
    only force a register to a constant, which flip-flops do without logic.

    Parameters
    ----------
    fmt : MiniFloat
        Format of operands and product.
    offset : int, optional
        Units of the last place, as :meth:`MiniFloat.constant` takes it; 0 is the piecewise-affine
        product.
    runtime_offset : bool
        Take the offset from a port instead.
    saturate : bool
        Deliver the largest finite number on overflow, not infinity.
    specials : bool
        Recognize infinity and NaN operands. Without it, they must not occur.
    latency : int
        Register stages, 1 to :data:`LATENCY`.

    Members
    -------
    i : In(stream) of {x: fmt.width, y: fmt.width}
        Operands.
    o : Out(stream) of {product: fmt.width}
        One product for each pair.
    offset : In(fmt.mantissa_bits)
        With ``runtime_offset`` only. It must not change while a product is under way.

    Raises
    ------
    ValueError
        If ``offset`` or ``latency`` is out of range.
    """

    i: stream.Interface
    o: stream.Interface
    offset: Signal

    def __init__(self, fmt: MiniFloat, *, offset: int | None = None, runtime_offset: bool = False,
                 saturate: bool = False, specials: bool = True, latency: int = LATENCY):
        self.fmt = fmt
        self.constant = fmt.constant(offset)
        self.runtime_offset = runtime_offset
        self.saturate = saturate
        self.specials = specials
        self.latency = check_latency(latency, LATENCY)
        members = product_members(fmt)
        if runtime_offset:
            members["offset"] = In(fmt.mantissa_bits)
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        enable = Signal()
        m.d.comb += [
            enable.eq(self.o.ready | ~self.o.valid),
            self.i.ready.eq(enable),
        ]
        pipeline = Pipeline(m, enable=enable, valid=self.i.valid, wires=LATENCY - self.latency)
        constant = self.fmt.one - self.offset if self.runtime_offset else self.constant
        at = wide_product(pipeline, self.fmt, self.i.p.x, self.i.p.y, constant=constant,
                          specials=self.specials)
        at = finish(pipeline, self.fmt, at, saturate=self.saturate)
        m.d.comb += [
            self.o.valid.eq(at.valid),
            self.o.p.product.eq(at.product),
        ]
        return m
