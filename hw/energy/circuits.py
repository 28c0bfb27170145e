# Ref: H. Luo, W. Sun, "Addition is All You Need for Energy-efficient Language Models", 2024
# Id: arXiv:2410.00907

"""Circuits that energies are compared with, and registers around those that have none.

Every calculation here is combinational, with registers in front of it and one behind it, so that
two of them differ in what they compute and not in how they are pipelined. Multiplications are left
to synthesis, which has several forms of them.
"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.arith.bf16_add import leading_one
from hw.arith.lmul import wide_product
from hw.arith.product import classes, finish, operand_groups
from hw.common.pipeline import Pipeline
from hw.engine.dot_tree import TritAdder
from hw.engine.trit_decoder import TritDecoder
from hw.formats.minifloat import MiniFloat, fp32
from hw.formats.trits import PACKINGS

__all__ = ["ACCUMULATOR_BITS", "LATENCY", "Circuit", "accumulated_floats", "accumulated_integers",
           "accumulated_trits", "decoded_trits", "float_sum", "integer_sum", "product"]

#: Cycles from the inputs of a :class:`Circuit` to its output.
LATENCY = 2
#: Bits of the accumulator of integers, as in the engine.
ACCUMULATOR_BITS = 24

#: Adds a calculation to a module: from the inputs by name, and what the output was in the cycle
#: before, to what it is next.
Calculation = Callable[[Module, Mapping[str, Value], Value], Value]


class Circuit(wiring.Component):
    """A calculation between registers.

    Parameters
    ----------
    inputs : mapping of str to int
        Bits of each input.
    width : int
        Bits of the output.
    calculation : callable

    Members
    -------
    each of the inputs : In
    o : Out(width)
        Two cycles behind the inputs.
    """

    o: Signal

    def __init__(self, inputs: Mapping[str, int], width: int, calculation: Calculation):
        self.inputs = dict(inputs)
        self.calculation = calculation
        super().__init__({**{name: In(bits) for name, bits in inputs.items()}, "o": Out(width)})

    def elaborate(self, platform):
        m = Module()
        held = {name: Signal(bits, name=f"held_{name}", reset_less=True)
                for name, bits in self.inputs.items()}
        output = Signal.like(self.o, reset_less=True)
        m.d.sync += [register.eq(getattr(self, name)) for name, register in held.items()]
        m.d.sync += output.eq(self.calculation(m, held, output))
        m.d.comb += self.o.eq(output)
        return m


def _steps(m: Module) -> Pipeline:
    """Return steps of a calculation without a register."""
    return Pipeline(m, enable=C(1), valid=C(1), wires=1000)


def _exact_wide(pipeline: Pipeline, fmt: MiniFloat, x: Value, y: Value) -> SimpleNamespace:
    """Add steps that make the product of two significands: ``sign``, ``exponent``, ``significand``.

    The significand has its leading one on top, and its exponent field the bias of ``fmt``.
    """
    bits = fmt.mantissa_bits
    at = pipeline.step(sign=x[-1] ^ y[-1],
                       exponent=(x[bits:-1] + y[bits:-1] - fmt.bias).as_signed(),
                       product=Cat(x[:bits], C(1)) * Cat(y[:bits], C(1)))
    high = at.product[-1]
    return pipeline.step(sign=at.sign, exponent=(at.exponent + high),
                         significand=Mux(high, at.product, at.product << 1)[:2 * bits + 2])


def _exact_product(m: Module, fmt: MiniFloat, x: Value, y: Value, *, specials: bool) -> Value:
    """Product as :func:`sim.golden.lmul.exact_product` has it."""
    pipeline, bits = _steps(m), fmt.mantissa_bits
    groups = pipeline.step(**operand_groups(fmt, x, y))
    at = _exact_wide(pipeline, fmt, x, y)
    rest = at.significand[:bits + 1]
    up = rest[-1] & (rest[:-1].any() | at.significand[bits + 1])
    result = Cat(at.significand[bits + 1:-1], at.exponent).as_signed() + up
    at = pipeline.step(sign=at.sign, result=result[:fmt.magnitude_width + 2].as_signed(),
                       **classes(fmt, groups, specials=specials))
    return finish(pipeline, fmt, at, saturate=False).product


def _lmul_product(m: Module, fmt: MiniFloat, x: Value, y: Value) -> Value:
    """Product as :func:`sim.golden.lmul.lmul` has it."""
    pipeline = _steps(m)
    at = wide_product(pipeline, fmt, x, y, constant=fmt.constant())
    return finish(pipeline, fmt, at, saturate=False).product


def product(fmt: MiniFloat, *, exact: bool) -> Circuit:
    """Return a multiplier: ``x`` and ``y`` to their product, rounded; special values and all."""
    def calculate(m, inputs, output):
        if exact:
            return _exact_product(m, fmt, inputs["x"], inputs["y"], specials=True)
        return _lmul_product(m, fmt, inputs["x"], inputs["y"])
    return Circuit({"x": fmt.width, "y": fmt.width}, fmt.width, calculate)


def _product_of_floats(m: Module, fmt: MiniFloat, x: Value, y: Value, *,
                       exact: bool) -> SimpleNamespace:
    """Return an unrounded product for :func:`_add`; one of fp32 is rounded to fp32."""
    width = fp32.mantissa_bits + 1
    if exact and fmt == fp32:
        return _unpack(_exact_product(m, fmt, x, y, specials=False))
    pipeline, bits = _steps(m), fmt.mantissa_bits
    zero = ~(x[bits:-1].any() & y[bits:-1].any())
    if exact:
        at = _exact_wide(pipeline, fmt, x, y)
        significand = at.significand
        exponent = at.exponent
    else:
        at = wide_product(pipeline, fmt, x, y, constant=fmt.constant(), specials=False)
        significand = Cat(at.result[:bits], C(1))
        exponent = at.result[bits:].as_signed()
    return pipeline.step(
        sign=at.sign, zero=zero, exponent=exponent + (fp32.bias - fmt.bias),
        significand=Mux(zero, 0, Cat(C(0, width - len(significand)), significand)))


def _unpack(x: Value) -> SimpleNamespace:
    bits = fp32.mantissa_bits
    zero = ~x[bits:-1].any()
    return SimpleNamespace(sign=x[-1], zero=zero, exponent=Cat(x[bits:-1], C(0, 1)).as_signed(),
                           significand=Mux(zero, 0, Cat(x[:bits], C(1))))


def _add(m: Module, x: SimpleNamespace, y: SimpleNamespace) -> Value:
    """Sum in fp32 of two unpacked numbers, rounded to nearest even.

    There are no special values; a sum below the smallest normal number is zero, and one of zero is
    +0.
    """
    pipeline, bits, extra = _steps(m), fp32.mantissa_bits, 3
    # Of two numbers that are not zero, the larger exponent decides, then the larger significand.
    swap = x.zero | (~y.zero & (
        (y.exponent > x.exponent)
        | ((y.exponent == x.exponent) & (y.significand > x.significand))))
    at = pipeline.step(
        sign=Mux(swap, y.sign, x.sign), opposite=x.sign ^ y.sign,
        exponent=Mux(swap, y.exponent, x.exponent),
        distance=Mux(swap, y.exponent - x.exponent, x.exponent - y.exponent),
        large=Mux(swap, y.significand, x.significand),
        small=Mux(swap, x.significand, y.significand))
    # Bits that the shift loses become one; what is shifted beyond all bits is that one alone.
    far = at.distance[5:].any()
    shifted = Cat(C(0, 32), at.small) >> at.distance[:5]
    kept, lost = shifted[32 - extra:], shifted[:32 - extra].any()
    at = pipeline.step(
        sign=at.sign, opposite=at.opposite, exponent=at.exponent, large=at.large,
        small=Mux(far, at.small.any(), kept | lost)[:bits + 1 + extra])
    width = bits + 2 + extra
    total = (Cat(at.opposite, C(0, extra), at.large)
             + Cat(at.opposite, at.small ^ at.opposite.replicate(len(at.small))))[1:]
    at = pipeline.step(
        sign=at.sign, exponent=at.exponent,
        total=Cat(total[:width - 1], total[width - 1] & ~at.opposite))
    total, shift = leading_one(at.total, range(5))
    at = pipeline.step(sign=at.sign, exponent=at.exponent + 1 - shift, total=total)
    rest = at.total[:width - bits - 1]
    up = rest[-1] & (rest[:-1].any() | at.total[width - bits - 1])
    zero = ~at.total[-1]
    at = pipeline.step(
        sign=at.sign, zero=zero,
        result=Cat(at.total[width - bits - 1:-1], at.exponent).as_signed() + up)
    exponent = at.result[bits:].as_signed()
    zero = at.zero | (exponent <= 0)
    infinite = ~zero & (exponent >= 255)
    magnitude = Mux(zero, 0, Mux(infinite, fp32.infinity, at.result[:fp32.magnitude_width]))
    return Cat(magnitude[:fp32.magnitude_width], at.sign & ~zero)


def accumulated_floats(fmt: MiniFloat, *, exact: bool) -> Circuit:
    """Return a multiply-accumulate unit: products are added up in fp32, each sum rounded.

    ``first`` begins a new sum. There are no special values.
    """
    def calculate(m, inputs, output):
        term = _product_of_floats(m, fmt, inputs["x"], inputs["y"], exact=exact)
        return _add(m, term, _unpack(Mux(inputs["first"], 0, output)))
    return Circuit({"x": fmt.width, "y": fmt.width, "first": 1}, fp32.width, calculate)


def float_sum() -> Circuit:
    """Return an adder of fp32."""
    def calculate(m, inputs, output):
        return _add(m, _unpack(inputs["x"]), _unpack(inputs["y"]))
    return Circuit({"x": fp32.width, "y": fp32.width}, fp32.width, calculate)


def integer_sum(width: int) -> Circuit:
    """Return an adder of integers."""
    return Circuit({"x": width, "y": width}, width,
                   lambda m, inputs, output: inputs["x"] + inputs["y"])


def accumulated_integers(width: int) -> Circuit:
    """Return a multiply-accumulate unit: int8 ``x`` times ``y`` of ``width`` bits."""
    def calculate(m, inputs, output):
        base = Mux(inputs["first"], 0, output)
        return base + inputs["x"].as_signed() * inputs["y"].as_signed()
    return Circuit({"x": 8, "y": width, "first": 1}, ACCUMULATOR_BITS, calculate)


def accumulated_trits() -> Circuit:
    """Return a ternary lane: int8 ``x`` is added, subtracted or neither."""
    def calculate(m, inputs, output):
        m.submodules.adder = adder = TritAdder(width=ACCUMULATOR_BITS, target="generic")
        m.d.comb += [
            adder.base.eq(Mux(inputs["first"], 0, output)),
            adder.operand.eq(inputs["x"].as_signed()),
            adder.nonzero.eq(inputs["nonzero"]),
            adder.negative.eq(inputs["negative"]),
        ]
        return adder.total
    return Circuit({"x": 8, "nonzero": 1, "negative": 1, "first": 1}, ACCUMULATOR_BITS, calculate)


def decoded_trits(packing: str) -> Circuit:
    """Return a decoder of one code: ``nonzero`` of its trits, and above it ``negative``.

    ``negative`` of a trit that is zero says nothing.
    """
    trits = PACKINGS[packing].trits

    def calculate(m, inputs, output):
        m.submodules.decoder = decoder = TritDecoder(packing=packing, lanes=trits)
        m.d.comb += decoder.codes.eq(inputs["code"])
        return Cat(decoder.nonzero, decoder.negative)
    return Circuit({"code": PACKINGS[packing].bits}, 2 * trits, calculate)
