"""The adder of one lane: accumulator plus or minus the activation."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.check import one_of, positive_int
from hw.config import TARGETS
from hw.engine.carry import ADD_OR_SUBTRACT, CARRY_IN, carry_chain

__all__ = ["LaneAdder"]


class LaneAdder(wiring.Component):
    """``total = (stored | held) + (-operand if negative else operand)``, modulo ``2**width``.

    Combinational. At most one of ``stored`` and ``held`` is not zero, so that the choice between
    them costs no multiplexer. With target ``ecp5`` one bit is one half of a carry cell and nothing
    else, ``width + 1`` halves in all.

    Parameters
    ----------
    width : int
        Bits of the accumulator.
    target : str
        One of :data:`hw.config.TARGETS`.

    Members
    -------
    stored, held : In(width)
        The accumulator, from block RAM or from the lane's register.
    operand : In(width)
        The activation, sign-extended.
    negative : In(1)
        Subtract instead of add.
    total : Out(width)
    """

    stored: Signal
    held: Signal
    operand: Signal
    negative: Signal
    total: Signal

    def __init__(self, *, width: int, target: str):
        self.width = positive_int("Accumulator width", width)
        self.target = one_of("Target", target, TARGETS)
        super().__init__({
            "stored": In(width), "held": In(width), "operand": In(width), "negative": In(1),
            "total": Out(width),
        })

    def elaborate(self, platform):
        m = Module()
        if self.target == "ecp5":
            carry_in = (CARRY_IN, self.negative, Const(0), Const(1), Const(0), None)
            carry_chain(m, [carry_in, *[
                (ADD_OR_SUBTRACT, self.stored[k], self.held[k], self.operand[k], self.negative,
                 self.total[k]) for k in range(self.width)]])
        else:
            addend = self.operand ^ self.negative.replicate(self.width)
            # The lowest bit makes the carry; synthesis sees one adder.
            total = Cat(1, self.stored | self.held) + Cat(self.negative, addend)
            m.d.comb += self.total.eq(total[1:])
        return m
