"""The sum of the L-Mul squares of a vector, and one over its square root."""

from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.arith.function_table import rsqrt_words
from hw.common.pipeline import Pipeline
from hw.config import AcceleratorConfig
from hw.formats.minifloat import DEFAULT_WINDOW, bf16
from hw.vector.lane import WIDE_LATENCY

__all__ = ["SquareSum"]

_BITS = bf16.mantissa_bits


class SquareSum(wiring.Component):
    """Sum of L-Mul squares in a window below the largest one, and its reciprocal square root.

    .. code-block:: text

        root = rsqrt(lmul_dot(x, x))        (sim.golden.function_table.rsqrt_table, sim.golden.lmul)

    A word of squares a cycle. The sum is complete ``latency`` cycles after the operands of the last
    squares reached their lanes; normalization takes a cycle for each eight bits of the sum and
    seven more, the rest four. Infinity and NaN are the parent's business.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    clear : In(1)
        Start again at zero; no square may be under way.
    valid : In(1)
        ``wides`` and ``zeros`` are squares to be added.
    wides, zeros : array of In(signed(17)) and In(1)
        As :class:`hw.vector.lane.LMulLane` delivers them.
    bound : In(signed(10))
        Exponent field of the largest square.
    start : In(1)
        The sum is complete.
    done : Out(1)
        For one cycle, beside ``root``.
    root : Out(16)
    """

    clear: Signal
    valid: Signal
    wides: list
    zeros: list
    bound: Signal
    start: Signal
    done: Signal
    root: Signal

    def __init__(self, config: AcceleratorConfig):
        lanes = config.vector_lanes
        # Squares are not negative: |sum| <= elements * (2**window - 1).
        self.growth = ceil_log2(config.vector_depth)
        self.latency = WIDE_LATENCY + 3 + ceil_log2(lanes) + 1
        width = DEFAULT_WINDOW + self.growth
        self._shifts = (width - 1) // 8, 7
        super().__init__({
            "clear": In(1), "valid": In(1), "bound": In(signed(10)), "start": In(1),
            "wides": In(signed(bf16.magnitude_width + 2)).array(lanes), "zeros": In(1).array(lanes),
            "done": Out(1), "root": Out(bf16.width)})

    def elaborate(self, platform):
        m = Module()
        window = DEFAULT_WINDOW
        width = window + self.growth

        # A square is shifted down by the distance of its exponent from the bound, in two steps; a
        # shift beyond the window leaves nothing.
        terms = []
        for wide, zero in zip(self.wides, self.zeros, strict=True):
            pipeline = Pipeline(m, enable=C(1), valid=self.valid)
            at = pipeline.step(shift=(self.bound - wide[_BITS:].as_signed())[:11],
                               significand=Cat(wide[:_BITS], C(1)) & (~zero).replicate(_BITS + 1))
            beyond = at.shift >= window
            aligned = Cat(C(0, window - _BITS - 1), at.significand)
            at = pipeline.step(amount=at.shift[:3],
                               term=Mux(beyond, 0, aligned >> Cat(C(0, 3), at.shift[3:5])))
            at = pipeline.step(term=at.term >> at.amount)
            terms.append(at.term)
        valid = at.valid
        level = 0
        while len(terms) > 1:
            sums = []
            for k in range(0, len(terms), 2):
                value = terms[k] + terms[k + 1] if k + 1 < len(terms) else terms[k]
                total = Signal(len(value), name=f"sum_{level}_{k // 2}", reset_less=True)
                m.d.sync += total.eq(value)
                sums.append(total)
            later = Signal(name=f"sums_valid_{level}")
            m.d.sync += later.eq(valid)
            terms, valid, level = sums, later, level + 1
        total = Signal(width, reset_less=True)
        with m.If(self.clear):
            m.d.sync += total.eq(0)
        with m.Elif(valid):
            m.d.sync += total.eq(total + terms[0])

        # The leading one goes up by eights, then by ones. What decides is in registers before it
        # is asked for: whether each of the highest bytes is zero, and whether anything stays below
        # the half.
        coarse, fine = self._shifts
        shifted = Signal(width, reset_less=True)
        exponent = Signal(signed(11), reset_less=True)
        zeros = Signal(coarse, reset_less=True)
        below = Signal(reset_less=True)
        remaining = Signal(range(max(coarse, fine)))
        rest = width - _BITS - 1
        up = shifted[rest - 1] & (below | shifted[rest])
        rounded = Signal(signed(_BITS + 12), reset_less=True)
        words = rsqrt_words()
        m.submodules.table = table = memory.Memory(shape=8, depth=len(words), init=words)
        port = table.read_port()
        field = rounded[_BITS:].as_signed()
        m.d.comb += port.addr.eq(Cat(rounded[:_BITS], ~field[0]))
        found = Signal(8, reset_less=True)
        positive = Signal()
        scale = Signal(8, reset_less=True)
        with m.FSM():
            with m.State("ADD"):
                m.d.sync += [
                    shifted.eq(total),
                    zeros.eq(Cat(~total[width - 8 * k - 8:width - 8 * k].any()
                                 for k in range(coarse))),
                    exponent.eq(self.bound + self.growth),
                    remaining.eq(coarse - 1),
                ]
                with m.If(self.start):
                    m.next = "EIGHTS"
            with m.State("EIGHTS"):
                m.d.sync += remaining.eq(remaining - 1)
                with m.If(zeros[0]):
                    m.d.sync += [
                        shifted.eq(shifted << 8),
                        zeros.eq(zeros >> 1),
                        exponent.eq(exponent - 8),
                    ]
                with m.If(remaining == 0):
                    m.d.sync += remaining.eq(fine - 1)
                    m.next = "ONES"
            with m.State("ONES"):
                m.d.sync += [
                    remaining.eq(remaining - 1),
                    below.eq(shifted[:rest - 2].any() | (shifted[rest - 2] & shifted[-1])),
                ]
                with m.If(~shifted[-1]):
                    m.d.sync += [shifted.eq(shifted << 1), exponent.eq(exponent - 1)]
                with m.If(remaining == 0):
                    m.next = "ROUND"
            with m.State("ROUND"):
                m.d.sync += rounded.eq(Cat(shifted[rest:-1], exponent).as_signed() + up)
                m.next = "LOOK_UP"
            with m.State("LOOK_UP"):
                # A square root of 2**(2 j) or 2**(2 j + 1) halves the exponent. A sum of zero, or
                # below the smallest normal number, has the root 0, and so has an infinite one.
                m.d.sync += [
                    positive.eq(shifted[-1] & (field >= 1) & (field < bf16.infinity >> _BITS)),
                    scale.eq(189 + ~field[0] - field[1:8]),
                ]
                m.next = "ROOT"
            with m.State("ROOT"):
                m.d.sync += found.eq(port.data)
                m.next = "DONE"
            with m.State("DONE"):
                m.d.comb += self.done.eq(1)
                m.next = "ADD"
        m.d.comb += self.root.eq(Mux(
            positive, Cat(found[:_BITS], (scale + found[_BITS])[:bf16.exponent_bits], C(0, 1)), 0))
        return m
