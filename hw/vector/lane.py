"""What each lane of the vector unit computes: unary functions by table, L-Mul products."""

from types import SimpleNamespace

from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from hw.arith.function_table import EXPONENTS, FIRST_EXPONENT, function_words
from hw.arith.lmul import wide_product
from hw.arith.product import finish
from hw.check import one_of
from hw.common.pipeline import Pipeline
from hw.config import TARGETS
from hw.formats.minifloat import bf16
from hw.isa import Function

__all__ = ["FUNCTION_LATENCY", "PRODUCT_LATENCY", "WIDE_LATENCY", "FunctionLanes", "LMulLane"]

#: Cycles from an operand to the function's result.
FUNCTION_LATENCY = 3
#: Cycles from two operands to the L-Mul product, and to the product before its range check.
PRODUCT_LATENCY = 5
WIDE_LATENCY = 2

_BITS = bf16.mantissa_bits


class FunctionLanes(wiring.Component):
    """Functions of one bf16 argument, for up to two lanes: they share the ports of one table.

    Correctly rounded for every argument: :func:`sim.golden.function_table.silu_table` and the
    like. Where the table ends, a rule goes on. Latency is :data:`FUNCTION_LATENCY` cycles,
    throughput one argument a lane and cycle.

    Parameters
    ----------
    lanes : int
        1 or 2.
    target : str
        One of :data:`hw.config.TARGETS`.

    Members
    -------
    function : In(8)
        COPY, RELU, SIGMOID_OF_NEGATIVE or SILU of :class:`hw.isa.Function`; must not change while
        an argument is under way.
    arguments, results : array of In(16) and Out(16)
    """

    function: Signal
    arguments: list
    results: list

    def __init__(self, lanes: int, *, target: str):
        self.target = one_of("Target", target, TARGETS)
        super().__init__({
            "function": In(8),
            "arguments": In(bf16.width).array(lanes), "results": Out(bf16.width).array(lanes)})

    def elaborate(self, platform):
        m = Module()
        # ECP5: two bits of every word fill a block. Whole words would need one block less, and a
        # multiplexer behind blocks that are slow enough without it.
        width = 2 if self.target == "ecp5" else bf16.magnitude_width
        words = function_words()
        slices: list[memory.Memory] = []
        for low in range(0, bf16.magnitude_width, width):
            used = min(width, bf16.magnitude_width - low)
            part = memory.Memory(shape=used, depth=len(words),
                                 init=[word >> low & (1 << used) - 1 for word in words])
            m.submodules[f"table_{low}"] = part
            slices.append(part)
        silu, sigmoid, relu = (Signal(name=name) for name in ("silu", "sigmoid", "relu"))
        m.d.sync += [
            silu.eq(self.function == Function.SILU),
            sigmoid.eq(self.function == Function.SIGMOID_OF_NEGATIVE),
            relu.eq(self.function == Function.RELU),
        ]
        for lane, x in enumerate(self.arguments):
            ports = [part.read_port() for part in slices]
            exponent = x[_BITS:bf16.magnitude_width]
            address = Cat(x[:_BITS + (EXPONENTS - 1).bit_length()], x[-1], silu)
            m.d.comb += [port.addr.eq(address) for port in ports]
            found = Signal(bf16.magnitude_width, name=f"found_{lane}", reset_less=True)
            m.d.sync += found.eq(Cat(port.data for port in ports))

            pipeline = Pipeline(m, enable=C(1), valid=C(1))
            at = pipeline.step(
                x=x, below=exponent < FIRST_EXPONENT, above=exponent >= FIRST_EXPONENT + EXPONENTS,
                nan=exponent.all() & x[:_BITS].any(), halved=(exponent - 1)[:bf16.exponent_bits],
                nothing=~exponent[1:].any())
            sign = at.x[-1]
            half = Mux(at.nothing, 0, Cat(at.x[:_BITS], at.halved))
            # Beyond the table: sigmoid(-x) is 1 for negative x and 0 for others, SiLU is -0 and x.
            rule = Mux(silu, Cat(Mux(at.below, half, Mux(sign, 0, at.x[:-1])), sign),
                       Mux(at.below, bf16.one - bf16.smallest_normal, Mux(sign, bf16.one, 0)))
            by_table = sigmoid | silu
            at = pipeline.step(
                inside=by_table & ~at.below & ~at.above, sign=sign & silu,
                rule=Mux(by_table, Mux(at.nan, bf16.nan, rule), Mux(relu & sign, 0, at.x)))
            result = pipeline.step(result=Mux(at.inside, Cat(found, at.sign), at.rule)).result
            m.d.comb += self.results[lane].eq(result)
        return m


class LMulLane(wiring.Component):
    """L-Mul product of bf16 numbers: :func:`sim.golden.lmul.lmul`, and before its range check.

    It never waits. Latency is :data:`PRODUCT_LATENCY` cycles, and :data:`WIDE_LATENCY` to what
    :func:`sim.golden.lmul.lmul_wide` returns.

    Members
    -------
    x, y : In(16)
    product : Out(16)
    wide : Out(signed(17))
        The magnitude as if the exponent had no bounds; meaningless beside an infinity or NaN.
    zero : Out(1)
        The product is zero; beside ``wide``.
    """

    x: Signal
    y: Signal
    product: Signal
    wide: Signal
    zero: Signal

    def __init__(self):
        super().__init__({
            "x": In(bf16.width), "y": In(bf16.width), "product": Out(bf16.width),
            "wide": Out(signed(bf16.magnitude_width + 2)), "zero": Out(1)})

    def elaborate(self, platform):
        m = Module()
        pipeline = Pipeline(m, enable=C(1), valid=C(1))
        at: SimpleNamespace = wide_product(pipeline, bf16, self.x, self.y,
                                           constant=bf16.constant())
        m.d.comb += [
            self.wide.eq(at.result),
            self.zero.eq(at.zero),
            self.product.eq(finish(pipeline, bf16, at, saturate=False).product),
        ]
        return m
