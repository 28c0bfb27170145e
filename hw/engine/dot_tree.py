"""The sum over the lanes of trit times activation, one weight word a cycle."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from hw.check import one_of, positive_int
from hw.config import TARGETS, EngineConfig
from hw.engine.carry import ADD_TRIT, CARRY_IN_BOTH, carry_chain

__all__ = ["RowTree", "TritAdder"]


class TritAdder(wiring.Component):
    """``total = base + trit * operand``, modulo ``2**width``. Combinational.

    With target ``ecp5`` one bit is one half of a carry cell and nothing else, ``width + 1`` halves
    in all.

    Parameters
    ----------
    width : int
        Bits of the addends.
    target : str
        One of :data:`hw.config.TARGETS`.

    Members
    -------
    base, operand : In(width)
    nonzero, negative : In(1)
        The trit; ``negative`` is arbitrary where it is zero.
    total : Out(width)
    """

    base: Signal
    operand: Signal
    nonzero: Signal
    negative: Signal
    total: Signal

    def __init__(self, *, width: int, target: str):
        self.width = positive_int("Addend width", width)
        self.target = one_of("Target", target, TARGETS)
        super().__init__({"base": In(width), "operand": In(width), "nonzero": In(1),
                          "negative": In(1), "total": Out(width)})

    def elaborate(self, platform):
        m = Module()
        if self.target == "ecp5":
            carry_in = (CARRY_IN_BOTH, self.nonzero, self.negative, Const(1), Const(0), None)
            carry_chain(m, [carry_in, *[
                (ADD_TRIT, self.base[k], self.operand[k], self.negative, self.nonzero,
                 self.total[k]) for k in range(self.width)]])
        else:
            term = ((self.operand ^ self.negative.replicate(self.width))
                    & self.nonzero.replicate(self.width))
            # The lowest bit makes the carry; synthesis sees one adder.
            total = Cat(self.nonzero, self.base) + Cat(self.negative, term)
            m.d.comb += self.total.eq(total[1:])
        return m


class RowTree(wiring.Component):
    """Adds up the lanes' products of trit and activation. Pipelined: a word a cycle.

    Negation is ``~x`` and a carry. A tree over n lanes has n - 1 adders, and each has room for one
    carry. So lane 0 alone is negated for itself; of two sums that meet, the adder takes the carry
    that the right one lacks, and what the left one lacks stays with the total.

    Parameters
    ----------
    config : EngineConfig

    Attributes
    ----------
    latency : int
        Cycles from the inputs to ``total``.

    Members
    -------
    activations : array of In, one for each lane
    nonzero, negative : arrays of In(1)
        The trits, as :class:`hw.engine.trit_decoder.TritDecoder` delivers them.
    total : Out(signed)
        Wide enough for any sum.
    """

    activations: list[Signal]
    nonzero: list[Signal]
    negative: list[Signal]
    total: Signal

    def __init__(self, config: EngineConfig):
        self.config = config
        levels = exact_log2(config.lanes)
        self.latency = 1 + levels
        # No vectors: Icarus looks at all of one when a slice of it changes.
        super().__init__({
            "activations": In(signed(config.activation_width)).array(config.lanes),
            "nonzero": In(1).array(config.lanes),
            "negative": In(1).array(config.lanes),
            "total": Out(signed(config.activation_width + levels + 1)),
        })

    def elaborate(self, platform):
        m = Module()
        width, target = self.config.activation_width, self.config.target

        def later(value, name):
            register = Signal.like(value, name=name, reset_less=True)
            m.d.sync += register.eq(value)
            return register

        # In the first cycle every second lane is negated, in the next one it is added to the lane
        # beside it, whose sign and zero take part in the addition.
        sums = []       # with the two bits whose AND is the carry that the sum lacks
        for lane in range(0, self.config.lanes, 2):
            exact = lane == 0
            term = Signal(signed(width + exact), name=f"term_{lane}", reset_less=True)
            carry: Value = Const(0, 2)
            activation = self.activations[lane]
            if exact:
                m.submodules.negation = negation = TritAdder(width=width + 1, target=target)
                m.d.comb += [
                    negation.operand.eq(activation),
                    negation.nonzero.eq(self.nonzero[lane]),
                    negation.negative.eq(self.negative[lane]),
                ]
                m.d.sync += term.eq(negation.total)
            else:
                m.d.sync += term.eq((Cat(activation) ^ self.negative[lane].replicate(width))
                                    & self.nonzero[lane].replicate(width))
                flags = Cat(self.nonzero[lane], self.negative[lane])
                carry = later(later(flags, f"flags_{lane}"), f"carry_{lane}")
            beside = later(self.activations[lane + 1], f"activation_{lane + 1}")
            m.submodules[f"adder_{lane}"] = adder = TritAdder(width=len(term) + 1, target=target)
            m.d.comb += [
                adder.base.eq(term),
                adder.operand.eq(beside),
                adder.nonzero.eq(later(self.nonzero[lane + 1], f"nonzero_{lane + 1}")),
                adder.negative.eq(later(self.negative[lane + 1], f"negative_{lane + 1}")),
            ]
            sums.append((later(adder.total, f"sum_1_{lane // 2}"), carry))

        level = 1
        while len(sums) > 1:
            level += 1
            joined = []
            for k, ((left, carry), (right, taken)) in enumerate(zip(sums[::2], sums[1::2],
                                                                    strict=True)):
                total = Signal(signed(len(left) + 1), name=f"sum_{level}_{k}", reset_less=True)
                # The lowest bit makes the carry; synthesis sees one adder.
                m.d.sync += total.eq((Cat(taken[0], left).as_signed()
                                      + Cat(taken[1], right).as_signed())[1:])
                if k > 0:
                    carry = later(carry, f"carry_{level}_{k}")
                joined.append((total, carry))
            sums = joined
        m.d.comb += self.total.eq(sums[0][0].as_signed())
        return m
